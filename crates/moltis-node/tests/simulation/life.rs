//! What else a keeper does with a machine that is made up: signals, terminals, and one beside it.

use std::sync::Arc;
use std::time::Duration;

use moltis_proto::run::{ExitStatus, Outcome, RunSpec, StdinMode, Tty, TtySize};
use moltis_proto::{RunRefusal, ToKeeper};
use tempfile::TempDir;

use crate::client::{Client, Listed, WINDOWS, argv, id};
use crate::machine::Machine;
use crate::story::Stage;

fn stage() -> (TempDir, Stage) {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::new(Machine::new(None, Arc::default()), dir.path());
    (dir, stage)
}

#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_listen_is_killed_when_its_grace_is_over() {
    for (program, expected) in [("/sim/wait", 15), ("/sim/stay", 9)] {
        let (_dir, stage) = stage();
        let (mut client, _) = stage.client().await;
        let spec = argv(&[program, "1", "100000"]);
        client.start(id(1), spec).await;
        client.until(id(1), |run| run.pid.is_some()).await;
        let began = tokio::time::Instant::now();
        client.cancel(id(1), 20_000).await;
        let ending = client.finish(id(1)).await.ending();
        assert_eq!(ending.outcome, Outcome::Cancelled);
        assert_eq!(ending.status, Some(ExitStatus::Signal(expected)));
        let took_its_grace = began.elapsed() >= Duration::from_secs(20);
        assert_eq!(took_its_grace, expected == 9);
    }
}

#[tokio::test(start_paused = true)]
async fn a_terminal_echoes_is_resized_and_told_the_end() {
    let (_dir, stage) = stage();
    let (mut client, _) = stage.client().await;
    let size = TtySize { cols: 80, rows: 24 };
    let spec = RunSpec {
        stdin: StdinMode::Open,
        tty: Some(Tty {
            size,
            term: "xterm".to_owned(),
        }),
        ..argv(&["/sim/echo", "1"])
    };
    client.start(id(1), spec).await;
    client.stdin(id(1), 0, b"hello", false).await;
    client.until(id(1), |run| run.bytes[0] == b"hello").await;
    let size = TtySize {
        cols: 132,
        rows: 43,
    };
    let run_id = id(1);
    client.say(ToKeeper::Resize { run_id, size }).await;
    client.stdin(id(1), 5, b"", true).await;
    let run = client.finish(id(1)).await;
    assert_eq!(run.stdout(), "hello132x43");
    assert_eq!(run.ending().status, Some(ExitStatus::Code(0)));
}

#[tokio::test(start_paused = true)]
async fn an_older_keeper_is_found_beside_the_new_one_until_its_runs_are_forgotten() {
    let (_dir, stage) = stage();
    let old = stage.connect("0.9.0").await.swap_remove(0);
    let (mut old, _) = Client::attach(old).await;
    old.start(id(1), argv(&["/sim/wait", "1", "30"])).await;
    old.until(id(1), |run| run.pid.is_some()).await;

    let mut both = stage.connect("1.0.0").await;
    assert_eq!(both.len(), 2);
    let (_, listed) = Client::attach(both.remove(0)).await;
    assert_eq!(listed.runs, [], "new runs go to the new one");
    let (mut old, listed) = Client::attach(both.remove(0)).await;
    assert_eq!(listed.runs[0].run_id, id(1));
    old.resume(id(1), 0, 0).await;
    // Half a minute is a moment here.
    assert_eq!(old.finish(id(1)).await.ending().outcome, Outcome::Exited);
    old.say(ToKeeper::Forget { run_id: id(1) }).await;
    drop(old);

    tokio::time::sleep(Duration::from_mins(9)).await;
    assert_eq!(stage.connect("1.0.0").await.len(), 2);
    tokio::time::sleep(Duration::from_mins(11)).await;
    assert_eq!(stage.connect("1.0.0").await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_a_leaving_keeper_writes_down_what_is_left_finds_all_of_it_in_the_next() {
    let (_dir, stage) = stage();
    let (mut client, _) = stage.client().await;
    client.acknowledges = false;
    client
        .start(id(1), argv(&["/sim/print", "1", "300000", "0"]))
        .await;
    client.until(id(1), |run| run.next[0] == 300_000).await;
    stage.machine.disk.slow_down(Duration::from_secs(2));
    client.say(ToKeeper::Leave).await;
    while client.poll().await.is_some() {}

    // Its time for clients is over, and its disk has begun.
    let mut found = stage.connect("1.0.0").await;
    assert_eq!(found.len(), 2);
    let mut late = Client::knock(found.pop().unwrap(), WINDOWS).await;
    late.acknowledges = false;
    late.resume(id(1), 0, 0).await;
    while late.poll().await.is_some() {}

    while stage.connect("1.0.0").await.len() > 1 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (mut client, _) = stage.client().await;
    client.resume(id(1), 0, 0).await;
    let run = client.finish(id(1)).await;
    assert_eq!(run.gaps, []);
    assert_eq!(run.next[0], 300_000);
}

/// Attaches to the keeper that takes new runs.
async fn attach(stage: &Stage) -> (Client, Listed) {
    Client::attach(stage.connect("1.0.0").await.swap_remove(0)).await
}

/// Runs a command and has it forgotten.
async fn run_and_forget(client: &mut Client, number: u8) {
    let words = ["/sim/print", &number.to_string(), "1", "0"];
    let run = client.run(id(number), argv(&words)).await;
    assert_eq!(run.ending().outcome, Outcome::Exited);
    let run_id = id(number);
    client.say(ToKeeper::Forget { run_id }).await;
    refuses(client, number).await;
}

/// Sees that a forgotten run cannot be started again.
async fn refuses(client: &mut Client, number: u8) {
    let known = client.run(id(number), argv(&["/sim/wait", "1", "1"])).await;
    assert_eq!(known.refused, Some(RunRefusal::Forgotten), "{number}");
}

#[tokio::test(start_paused = true)]
async fn the_journals_of_dead_keepers_do_not_gather_and_what_they_forgot_stays_refused() {
    let (_dir, stage) = stage();
    for number in 1..=9 {
        let (mut client, listed) = attach(&stage).await;
        assert!(listed.journals.len() <= 2, "{:?}", listed.journals);
        run_and_forget(&mut client, number).await;
        stage.kill().await;
    }
    let (mut client, _) = attach(&stage).await;
    for number in 1..=9 {
        refuses(&mut client, number).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_keeper_that_left_has_forgotten_is_refused_by_the_next() {
    let (_dir, stage) = stage();
    let (mut client, _) = attach(&stage).await;
    run_and_forget(&mut client, 1).await;
    client.say(ToKeeper::Leave).await;
    while client.poll().await.is_some() {}
    let (mut client, _) = attach(&stage).await;
    refuses(&mut client, 1).await;
}

#[tokio::test(start_paused = true)]
async fn an_ending_that_the_disk_did_not_take_is_written_once_there_is_room() {
    let (_dir, stage) = stage();
    let (mut client, _) = attach(&stage).await;
    client.start(id(1), argv(&["/sim/wait", "1", "60"])).await;
    client.until(id(1), |run| run.pid.is_some()).await;
    drop(client);
    stage.machine.disk.fail("journal.append");
    tokio::time::sleep(Duration::from_secs(60 + 6)).await;
    stage.kill().await;

    let (mut client, _) = attach(&stage).await;
    client.resume(id(1), 0, 0).await;
    let ending = client.finish(id(1)).await.ending();
    assert_eq!(ending.outcome, Outcome::Exited);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_begins_whose_journal_another_one_has_just_looked_at() {
    let (_dir, stage) = stage();
    stage.machine.disk.hold("journal.make");
    let began = tokio::time::Instant::now();
    let (mut client, listed) = attach(&stage).await;
    assert_eq!(listed.journals.len(), 1);
    assert!(began.elapsed() < Duration::from_secs(1), "it is the first");
    run_and_forget(&mut client, 1).await;
}
