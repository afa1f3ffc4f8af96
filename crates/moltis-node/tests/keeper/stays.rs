//! What outlives a client, and how a keeper leaves.

use std::sync::Arc;
use std::time::Duration;

use moltis_proto::run::{GapReason, Outcome, RunState, Stream};
use moltis_proto::{RunRefusal, ToKeeper};
use tokio::time::Instant;

use crate::client::{Client, argv, id, shell};
use crate::fixture::{Inside, Outside, gone, is_alive};

#[tokio::test]
async fn a_run_goes_on_without_a_client_and_is_resumed_at_each_point() {
    let keeper = Inside::new();
    let (mut client, listed) = keeper.attach().await;
    assert!(listed.runs.is_empty());
    client
        .start(
            id(1),
            shell("for n in 1 2 3 4 5 6 7 8 9; do echo $n; sleep 0.03; done"),
        )
        .await;
    let mut next = 0;
    for round in 0..5 {
        client.until(id(1), |run| run.next[0] > next).await;
        next = client.runs[&id(1)].next[0];
        drop(client);
        let (again, listed) = keeper.attach().await;
        client = again;
        assert_eq!(listed.runs.len(), 1, "round {round}");
        // From where it stopped, or from before: what was sent already comes again.
        next -= next.min(2 * (round % 2));
        client.resume(id(1), next, 0).await;
    }
    let from = usize::try_from(next).unwrap();
    let run = client.finish(id(1)).await;
    assert_eq!(run.stdout(), "1\n2\n3\n4\n5\n6\n7\n8\n9\n"[from..]);
    assert_eq!(run.ending().outcome, Outcome::Exited);
}

#[tokio::test]
async fn an_ended_run_is_kept_until_it_is_forgotten_and_its_id_for_ever() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client.run(id(1), shell("echo kept; exit 3")).await;
    for _ in 0..2 {
        let (again, listed) = keeper.attach().await;
        client = again;
        assert_eq!(listed.runs[0].state, RunState::Ended);
        assert_eq!(listed.runs[0].totals.stdout, 5);
        client.resume(id(1), 0, 0).await;
        assert_eq!(client.finish(id(1)).await.stdout(), "kept\n");
    }
    client.say(ToKeeper::Forget { run_id: id(1) }).await;
    let run = client.run(id(1), shell("echo kept; exit 3")).await;
    assert_eq!(run.refused, Some(RunRefusal::Forgotten));
    assert!(keeper.attach().await.1.runs.is_empty());
}

#[tokio::test]
async fn the_same_start_twice_is_one_run_and_another_under_its_id_is_refused() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    let file = keeper.dir.path().join("count");
    let line = format!("echo once >> {}; sleep 0.2", file.display());
    client.start(id(1), shell(&line)).await;
    client.until(id(1), |run| run.pid.is_some()).await;
    let pid = client.runs[&id(1)].pid.unwrap();
    client.start(id(1), shell(&line)).await;
    let run = client.until(id(1), |run| run.state.is_some()).await;
    assert_eq!(run.state.as_ref().unwrap().state, RunState::Running { pid });
    client
        .start_with_digest(id(1), 99, shell("echo another"))
        .await;
    client
        .until(id(1), |run| run.refused == Some(RunRefusal::DigestMismatch))
        .await;
    client.until(id(1), |run| run.ended.is_some()).await;
    client.start(id(1), shell(&line)).await;
    let run = client.until(id(1), |run| run.state.is_some()).await;
    assert_eq!(run.state.as_ref().unwrap().state, RunState::Ended);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "once\n");
}

#[tokio::test]
async fn the_newest_client_supersedes_and_one_that_says_nothing_does_not() {
    let keeper = Outside::start().await;
    let mut first = keeper.client().await;
    let _silent = keeper.stream().await;
    first.run(id(1), shell("echo still here")).await;
    let mut second = keeper.client().await;
    assert!(first.poll().await.is_none());
    second.run(id(2), shell("true")).await;
}

#[tokio::test]
async fn a_client_that_lies_is_let_go_and_its_runs_are_not_touched() {
    let keeper = Inside::new();
    let lies = [
        ToKeeper::Ack {
            run_id: id(1),
            stdout: 1_000,
            stderr: 0,
        },
        ToKeeper::Resume {
            run_id: id(1),
            stdout: 1_000,
            stderr: 0,
        },
        ToKeeper::Stdin {
            run_id: id(1),
            offset: 5,
            bytes: b"x".as_slice().into(),
            eof: false,
        },
        ToKeeper::Attach {
            windows: crate::client::WINDOWS,
        },
    ];
    let mut client = keeper.client().await;
    let mut spec = shell("echo ready; read line; echo $line");
    spec.stdin = moltis_proto::run::StdinMode::Open;
    client.start(id(1), spec).await;
    client.until(id(1), |run| run.next[0] == 6).await;
    for lie in lies {
        client.say(lie).await;
        while client.poll().await.is_some() {}
        client = keeper.client().await;
        client.resume(id(1), 0, 0).await;
        client.until(id(1), |run| run.next[0] == 6).await;
    }
    client.stdin(id(1), 0, b"fine\n", true).await;
    assert_eq!(client.finish(id(1)).await.stdout(), "ready\nfine\n");
}

#[tokio::test]
async fn garbage_on_the_socket_harms_nobody() {
    use tokio::io::AsyncWriteExt as _;
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[0, 0, 0, 3, 0xff, 0xff, 0xff],
        &[0xff; 64],
    ] {
        let mut stream = keeper.stream().await;
        stream.write_all(garbage).await.unwrap();
    }
    client.run(id(1), shell("true")).await;
    let (mut rude, _) = keeper.attach().await;
    rude.say_raw(&[0xff; 300]).await;
    assert!(rude.poll().await.is_none());
    keeper.client().await;
}

#[tokio::test]
async fn output_that_nobody_takes_goes_to_the_spool_and_comes_whole_later() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client
        .start(id(1), shell("head -c 20000000 /dev/zero; echo end >&2"))
        .await;
    client.until(id(1), |run| run.pid.is_some()).await;
    drop(client);
    let began = Instant::now();
    // The command ends, although nobody takes anything.
    loop {
        let (_, listed) = keeper.attach().await;
        if listed.runs[0].state == RunState::Ended {
            assert_eq!(listed.runs[0].totals.stdout, 20_000_000);
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (mut client, _) = keeper.attach().await;
    client.keeps = false;
    client.resume(id(1), 0, 0).await;
    let run = client.finish(id(1)).await;
    assert_eq!(run.next, [20_000_000, 4]);
    assert!(run.gaps.is_empty());
    let spool = keeper.dir.path().join(format!("{}.out", id(1)));
    client.say(ToKeeper::Forget { run_id: id(1) }).await;
    while spool.exists() {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_full_spool_keeps_the_beginning_and_the_newest_and_marks_the_gap() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    // The numbers in the output say where it is from.
    client.start(id(1), shell("seq -f %099.0f 1 1000000")).await;
    client.until(id(1), |run| run.pid.is_some()).await;
    drop(client);
    let ended = async {
        while keeper.attach().await.1.runs[0].state != RunState::Ended {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::client::PATIENCE, ended)
        .await
        .unwrap();
    let (mut client, _) = keeper.attach().await;
    client.resume(id(1), 0, 0).await;
    let run = client.finish(id(1)).await;
    assert_eq!(run.ended.as_ref().unwrap().1.stdout, 100_000_000);
    let [(Stream::Stdout, from, to, GapReason::Limit)] = run.gaps[..] else {
        panic!("one gap expected: {:?}", run.gaps);
    };
    assert!(from >= 1 << 20);
    assert!(100_000_000 - to >= 60 << 20);
    let line_at = |offset: u64| format!("{:099}\n", offset / 100 + 1);
    assert!(run.bytes[0].starts_with(line_at(0).as_bytes()));
    assert!(run.bytes[0].ends_with(line_at(99_999_900).as_bytes()));
    let behind = usize::try_from(from + (to.next_multiple_of(100) - to)).unwrap();
    let line = &run.bytes[0][behind..behind + 100];
    assert_eq!(line, line_at(to.next_multiple_of(100)).as_bytes());
}

/// Waits until each run that the keeper holds has ended, with nobody attached in between.
async fn all_are_over(keeper: &Inside) {
    let ended = async {
        let is_over = |listed: &crate::client::Listed| {
            let mut runs = listed.runs.iter();
            runs.all(|run| run.state == RunState::Ended)
        };
        while !is_over(&keeper.attach().await.1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::client::PATIENCE, ended)
        .await
        .unwrap();
}

#[tokio::test]
async fn all_spools_of_a_keeper_together_stay_within_their_limit() {
    const LIMIT: u64 = 8 << 20;
    let keeper = Inside::limited(LIMIT);
    let mut client = keeper.client().await;
    client.acknowledges = false; // all of it is asked for again
    for number in 1..=4 {
        client
            .start(id(number), shell("seq -f %099.0f 1 100000"))
            .await;
        client.until(id(number), |run| run.pid.is_some()).await;
    }
    drop(client);
    all_are_over(&keeper).await;
    let files = std::fs::read_dir(keeper.dir.path()).unwrap().flatten();
    let spools = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "out"));
    let taken: u64 = spools.map(|file| file.metadata().unwrap().len()).sum();
    // One write of each may be on its way when the limit is reached.
    assert!(
        taken > LIMIT / 2 && taken < LIMIT + (4 << 20),
        "{taken} bytes"
    );
    let (mut client, _) = keeper.attach().await;
    for number in 1..=4 {
        client.resume(id(number), 0, 0).await;
        let run = client.finish(id(number)).await;
        assert_eq!(run.ended.as_ref().unwrap().1.stdout, 10_000_000);
        let gaps = &run.gaps;
        assert!(
            matches!(gaps[..], [(Stream::Stdout, _, _, GapReason::Limit)]),
            "{gaps:?}"
        );
        assert!(run.bytes[0].starts_with(format!("{:099}\n", 1).as_bytes()));
    }
}

#[tokio::test]
async fn where_nothing_can_be_spooled_the_memory_of_a_keeper_stays_within_its_limit() {
    const RUNS: u8 = 100;
    const LIMIT: usize = (48 << 20) + RUNS as usize * (256 << 10);
    let keeper = Inside::limited(0);
    let mut client = keeper.client().await;
    client.acknowledges = false; // all of it is asked for again
    let line = "head -c 1200000 /dev/zero; head -c 1200000 /dev/zero >&2";
    for number in 1..=RUNS {
        client.start(id(number), shell(line)).await;
        client.until(id(number), |run| run.pid.is_some()).await;
    }
    drop(client);
    all_are_over(&keeper).await;
    let (mut client, _) = keeper.attach().await;
    let mut held = 0;
    for number in 1..=RUNS {
        client.resume(id(number), 0, 0).await;
        let run = client.finish(id(number)).await;
        let totals = run.ended.as_ref().unwrap().1;
        assert_eq!((totals.stdout, totals.stderr), (1_200_000, 1_200_000));
        held += run.bytes.iter().map(Vec::len).sum::<usize>();
    }
    assert!(held > 40 << 20 && held < LIMIT, "{held} bytes");
}

#[tokio::test]
async fn leave_ends_every_run_and_then_the_keeper() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    let line = "trap 'sleep 0.5; exit' TERM; echo ready; while :; do sleep 0.01; done";
    client.start(id(1), shell(line)).await;
    let pid = client
        .until(id(1), |run| run.next[0] > 0)
        .await
        .pid
        .unwrap();
    client.say(ToKeeper::Leave).await;
    client.start(id(2), shell("true")).await;
    assert_eq!(
        client.finish(id(2)).await.refused,
        Some(RunRefusal::Leaving)
    );
    assert_eq!(
        client.finish(id(1)).await.ending().outcome,
        Outcome::Cancelled
    );
    while client.poll().await.is_some() {}
    let dir = keeper.wait();
    assert!(!is_alive(pid));
    // Nobody has forgotten the run, so the next keeper tells its end.
    let keeper = Outside::start_in(dir, 1).await;
    let (mut client, listed) = keeper.attach().await;
    assert_eq!(listed.runs.len(), 1);
    client.resume(id(1), 0, 0).await;
    assert_eq!(
        client.finish(id(1)).await.ending().outcome,
        Outcome::Cancelled
    );
}

#[tokio::test]
async fn a_keeper_that_leaves_spools_what_its_client_does_not_take() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    client.acknowledges = false;
    // It all fits the window: the client has it, but does not say that it is stored.
    let line = "head -c 900000 /dev/zero; echo all >&2; exec sleep 60";
    client.start(id(1), shell(line)).await;
    client.until(id(1), |run| run.next == [900_000, 4]).await;
    client.say(ToKeeper::Leave).await;
    while client.poll().await.is_some() {}
    let dir = keeper.wait();
    let keeper = Outside::start_in(dir, 1).await;
    let (mut client, _) = keeper.attach().await;
    client.resume(id(1), 0, 0).await;
    let run = client.finish(id(1)).await;
    assert_eq!(run.ending().outcome, Outcome::Cancelled);
    assert!(run.gaps.is_empty(), "{:?}", run.gaps);
    assert_eq!(run.next, [900_000, 4]);
}

#[tokio::test]
async fn a_keeper_that_leaves_is_found_by_those_who_have_runs_there_and_is_nobodys_first() {
    use moltis_node::keeper::connect;
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    let line = "trap '' TERM; echo ready; while :; do sleep 0.01; done";
    client.start(id(1), shell(line)).await;
    client.until(id(1), |run| run.next[0] > 0).await;
    client.say(ToKeeper::Leave).await;
    let refused = client.run(id(2), shell("true")).await.refused;
    assert_eq!(refused, Some(RunRefusal::Leaving));
    let dir = keeper.dir.path();
    assert!(connect::find(dir).await.unwrap().is_none());
    // Its own version starts another one beside it.
    let next = Outside::start_in(Arc::clone(&keeper.dir), 1).await;
    let none = |_: &std::path::Path| panic!("there is one");
    let mut found = connect::connect_all(dir, &none, "1.0.0").await.unwrap();
    assert_eq!(found.len(), 2);
    let (_, leaving) = Client::attach(found.pop().unwrap()).await;
    let (mut client, first) = Client::attach(found.pop().unwrap()).await;
    assert_eq!((leaving.runs.len(), first.runs.len()), (1, 0));
    client.run(id(2), shell("true")).await;
    // When it is gone, the next one has what it left.
    keeper.wait();
    let (_, listed) = next.attach().await;
    assert_eq!(listed.journals[1..], leaving.journals);
    assert_eq!(listed.runs.len(), 2);
}

#[tokio::test]
async fn a_keeper_in_this_process_takes_its_children_with_it() {
    let keeper = Inside::new();
    let mut client = keeper.client().await;
    client.start(id(1), argv(&["sleep", "60"])).await;
    let pid = client
        .until(id(1), |run| run.pid.is_some())
        .await
        .pid
        .unwrap();
    keeper.keeper.shut_down().await;
    gone(pid).await;
}

#[tokio::test]
async fn a_second_keeper_of_the_same_version_finds_the_first_and_goes() {
    let keeper = Outside::start().await;
    let second = Outside::start_in(Arc::clone(&keeper.dir), 1).await;
    second.wait();
    let client: Client = keeper.client().await;
    drop(client);
}
