//! How much a run has written, where its keeper and the gateway do not know the same.

use std::fs;

use moltis_proto::code::RunRefusal;
use moltis_proto::limits::HEAD_BYTES_MAX;

use super::*;
use crate::output::OutputRead;
use crate::store::RunRecord;

/// Makes a run of which the row reached the disk, synced for somebody else, and none of its output.
async fn ended_before_a_power_cut(bench: &Bench, written: usize) -> RunRecord {
    let new = row_of(bench, &keyed());
    let (id, by) = (new.id, Actor::operator());
    bench.shared.store.create_run(new, &by).await.unwrap();
    let end = crate::store::Ended {
        ending: crate::store::testing::ending(),
        totals: totals(written),
        heads: crate::store::Heads::default(),
        started: None,
        at: bench.shared.clock.now(),
    };
    bench.shared.store.end_run(id, end).await.unwrap().unwrap();
    bench.shared.store.run(id).await.unwrap().unwrap()
}

#[tokio::test]
async fn what_came_and_waits_for_the_disk_counts_although_its_keeper_has_lost_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(request());
    let id = keeper.hear_start().await;
    drop(started.await.unwrap());
    // Somebody else's file has the name of the directory that its output would be written to.
    let place = dir.path().join("outputs").join(id.to_string());
    fs::write(&place, "").unwrap();
    keeper.say_started(id).await;
    let (first, rest) = (vec![7; HEAD_BYTES_MAX / 2], vec![8; HEAD_BYTES_MAX / 4 * 3]);
    let written = first.len() + rest.len();
    keeper.say_output(id, &Bytes::from(first)).await;
    keeper
        .say(FromKeeper::Output {
            run_id: id,
            stream: Stream::Stdout,
            offset: written as u64 - rest.len() as u64,
            bytes: Payload(Bytes::from(rest)),
        })
        .await;
    let [run] = &bench.shared.table.at(&Target::Local)[..] else {
        panic!("there is one run");
    };
    let run = Arc::clone(run);
    let came = tokio::time::timeout(PATIENCE, async {
        let mut progress = run.output.subscribe();
        let all = progress.wait_for(|now| now.end[0] == written as u64);
        all.await.unwrap();
    });
    came.await.unwrap();
    let summary = RunSummary {
        run_id: id,
        digest: run.record().digest,
        journal_id: JOURNAL,
        state: RunState::Ended,
        totals: totals(0),
        stdin: 0,
    };
    drop(keeper);
    let gone = tokio::time::timeout(PATIENCE, async {
        while bench.shared.seat_of(&Target::Local).is_some() {
            tokio::task::yield_now().await;
        }
    });
    gone.await.unwrap();
    // The next keeper has nothing of what the one before it had in memory.
    let mut keeper = bench.keeper(vec![summary]).await;
    let ToKeeper::Resume { stdout: stored, .. } = keeper.hear_word().await else {
        panic!("it is not resumed");
    };
    assert!(stored < written as u64, "{stored}");
    keeper.say_ended(id, usize::try_from(stored).unwrap()).await;
    fs::remove_file(&place).unwrap();
    assert_eq!(keeper.hear_forget().await, id);
    let row = bench.shared.store.run(id).await.unwrap().unwrap();
    assert_eq!((row.stage, row.totals), (RunStage::Ended, totals(written)));
    bench.end().await;
}

#[tokio::test]
async fn a_run_here_that_a_gateway_has_no_time_for_any_more_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let runs = bench.runs.clone();
    let asked = async move { runs.start(request(), &Principal::Operator).await };
    let asked = bench.shared.tasks.spawn(asked);
    let dialled = bench.connections.recv().await.unwrap();
    bench.shared.tasks.stop().cancel();
    let error = tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(error, Err(StartError::ShuttingDown)), "{error:?}");
    drop(dialled);
    bench.end().await;
}

#[tokio::test]
async fn the_same_request_here_is_the_same_run_whatever_time_a_run_has_here_since() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(keyed());
    let id = keeper.hear_start().await;
    started.await.unwrap();
    let since = Runs {
        local_timeout: Some(Duration::from_mins(7)),
        ..bench.runs.clone()
    };
    let ask = async |request: RunRequest| since.start(request, &Principal::Operator).await;
    assert_eq!(ask(keyed()).await.unwrap().id(), id);
    let others = [
        RunRequest {
            timeout: Some(Duration::from_mins(7)),
            ..keyed()
        },
        RunRequest {
            stdin: StdinSource::Bytes(Bytes::from_static(b"x")),
            ..keyed()
        },
        RunRequest {
            cwd: Some("/".to_owned()),
            ..keyed()
        },
    ];
    for other in others {
        let refused = ask(other).await;
        assert!(
            matches!(refused, Err(StartError::Conflict { .. })),
            "{refused:?}"
        );
    }
    bench.end().await;
}

#[tokio::test]
async fn output_of_an_ended_run_that_a_power_cut_took_comes_again_before_its_node_may_forget_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let (first, rest) = (
        vec![7; HEAD_BYTES_MAX / 4 * 3],
        vec![8; HEAD_BYTES_MAX / 4 * 3],
    );
    let behind = first.len() as u64;
    let written = first.len() + rest.len();
    let row = ended_before_a_power_cut(&bench, written).await;
    let id = row.id;
    let mut events = bench.shared.events.subscribe();
    let listed = RunSummary {
        run_id: id,
        digest: row.digest,
        journal_id: JOURNAL,
        state: RunState::Ended,
        totals: totals(written),
        stdin: 0,
    };
    let mut keeper = bench.keeper(vec![listed.clone()]).await;
    for cut in [true, false] {
        let word = keeper.hear_word().await;
        let resumed = matches!(word, ToKeeper::Resume { run_id, stdout: 0, .. } if run_id == id);
        assert!(resumed, "{word:?}");
        if cut {
            // Over a cut it is asked for anew.
            drop(keeper);
            let gone = tokio::time::timeout(PATIENCE, async {
                while bench.shared.seat_of(&Target::Local).is_some() {
                    tokio::task::yield_now().await;
                }
            });
            gone.await.unwrap();
            keeper = bench.keeper(vec![listed.clone()]).await;
        }
    }
    keeper.say_output(id, &Bytes::from(first)).await;
    keeper
        .say(FromKeeper::Output {
            run_id: id,
            stream: Stream::Stdout,
            offset: behind,
            bytes: Payload(Bytes::from(rest)),
        })
        .await;
    keeper.say_ended(id, written).await;
    assert_eq!(keeper.hear_forget().await, id);
    // It is over as it was, its output is whole, and nobody is told a second time.
    assert_eq!(bench.shared.store.run(id).await.unwrap().unwrap(), row);
    let ended = bench.shared.ended_output(&row).await.unwrap();
    assert!(bench.shared.outputs.is_whole(id, &ended).await.unwrap());
    while let Ok(Some(event)) = events.try_recv() {
        assert!(
            !matches!(event, crate::events::Event::RunEnded(_)),
            "{event:?}"
        );
    }
    // A node that lists it once more hears at once that it may forget it.
    drop(keeper);
    while bench.shared.seat_of(&Target::Local).is_some() {
        tokio::task::yield_now().await;
    }
    let mut keeper = bench.keeper(vec![listed]).await;
    assert_eq!(keeper.hear_forget().await, id);
    bench.end().await;
}

#[tokio::test]
async fn who_follows_an_ended_run_hears_its_end_when_the_node_that_brings_its_output_again_goes_away()
 {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let written = 2 * HEAD_BYTES_MAX;
    let row = ended_before_a_power_cut(&bench, written).await;
    let id = row.id;
    let listed = RunSummary {
        run_id: id,
        digest: row.digest,
        journal_id: JOURNAL,
        state: RunState::Ended,
        totals: totals(written),
        stdin: 0,
    };
    let mut keeper = bench.keeper(vec![listed.clone()]).await;
    assert!(matches!(keeper.hear_word().await, ToKeeper::Resume { .. }));
    let mut follow = bench.runs.follow(id, 0, 0).await.unwrap();
    drop(keeper);
    let told = async {
        let gap = follow.next().await;
        (gap, follow.next().await)
    };
    let (gap, end) = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert!(
        matches!(gap, Some(RunEvent::Gap { from: 0, to, .. }) if to == written as u64),
        "{gap:?}"
    );
    assert_eq!(end, Some(RunEvent::Ended(Arc::new(row))));
    // The next keeper is asked for it again.
    let mut keeper = bench.keeper(vec![listed]).await;
    assert!(matches!(keeper.hear_word().await, ToKeeper::Resume { .. }));
    bench.end().await;
}

#[tokio::test]
async fn output_that_lies_where_that_of_a_new_run_belongs_is_not_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let new = row_of(&bench, &keyed());
    // An older database was put back behind it.
    let earlier = bench.shared.outputs.run(new.id).unwrap();
    let bytes = Bytes::from(vec![7; 2 * HEAD_BYTES_MAX]);
    earlier.append(Stream::Stdout, 0, bytes).unwrap();
    earlier.synced().await.unwrap();
    drop(earlier);
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(keyed());
    assert_eq!(keeper.hear_start().await, new.id);
    keeper.say_started(new.id).await;
    keeper
        .say_output(new.id, &Bytes::from_static(b"ours"))
        .await;
    keeper.say_ended(new.id, 4).await;
    let record = started.await.unwrap().wait().await;
    assert_eq!(record.totals, totals(4));
    let told = bench.shared.outputs.run(new.id).unwrap();
    let read = told.read(Stream::Stdout, 0, 100).await.unwrap();
    assert!(format!("{read:?}").contains("ours"), "{read:?}");
    bench.end().await;
}

#[tokio::test]
async fn a_run_that_ended_stays_as_long_as_it_was_then_whatever_its_node_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let row = ended_before_a_power_cut(&bench, 2 * HEAD_BYTES_MAX).await;
    let id = row.id;
    let listed = RunSummary {
        run_id: id,
        digest: row.digest,
        journal_id: JOURNAL,
        state: RunState::Ended,
        totals: totals(3 * HEAD_BYTES_MAX),
        stdin: 0,
    };
    let mut keeper = bench.keeper(vec![listed]).await;
    assert_eq!(keeper.hear_forget().await, id);
    bench.end().await;
}

#[tokio::test]
async fn a_run_that_has_printed_is_not_said_to_be_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut handle = bench.create_keyed().await;
    let [run] = &bench.shared.table.at(&Target::Local)[..] else {
        panic!("there is one run");
    };
    let said = Bytes::from_static(b"said");
    run.output.append(Stream::Stdout, 0, said).unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    // As a machine does that has a copy of the other one's key.
    let _keeper = bench.keeper_of(OTHER_BOOT, Vec::new()).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    let ending = record.ending.as_ref().unwrap();
    assert_eq!(
        (ending.outcome, ending.reason),
        (Outcome::Lost, Some(Reason::NodeForgot))
    );
    assert_eq!(record.totals, totals(4));
    bench.end().await;
}

#[tokio::test]
async fn a_keeper_whose_connection_ends_while_it_brings_output_again_is_sought_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let row = ended_before_a_power_cut(&bench, 2 * HEAD_BYTES_MAX).await;
    let listed = RunSummary {
        run_id: row.id,
        digest: row.digest,
        journal_id: JOURNAL,
        state: RunState::Ended,
        totals: totals(2 * HEAD_BYTES_MAX),
        stdin: 0,
    };
    let mut keeper = bench.keeper(vec![listed.clone()]).await;
    let resumed = keeper.hear_word().await;
    assert!(matches!(resumed, ToKeeper::Resume { .. }), "{resumed:?}");
    let local = bench.runs.local.clone().unwrap();
    bench.shared.tasks.spawn(local.keep_up(false));
    drop(keeper);
    // Nobody asks for anything.
    let again = tokio::time::timeout(PATIENCE, bench.connections.recv()).await;
    let mut keeper = Keeper(again.unwrap().unwrap());
    assert!(matches!(keeper.hear().await, ToKeeper::Attach { .. }));
    let runs = FromKeeper::Runs {
        boot_id: BOOT,
        journals: vec![JOURNAL],
        runs: vec![listed],
        last: true,
    };
    keeper.say(runs).await;
    let resumed = keeper.hear_word().await;
    assert!(matches!(resumed, ToKeeper::Resume { .. }), "{resumed:?}");
    bench.end().await;
}

/// Leaves output of an earlier run with the id of [`keyed`], whose row an older database has not.
async fn earlier_output(bench: &Bench) -> RunId {
    let id = row_of(bench, &keyed()).id;
    let earlier = bench.shared.outputs.run(id).unwrap();
    let bytes = Bytes::from(vec![7; 2 * HEAD_BYTES_MAX]);
    earlier.append(Stream::Stdout, 0, bytes).unwrap();
    earlier.synced().await.unwrap();
    id
}

#[tokio::test]
async fn output_of_a_run_that_its_node_has_stays_in_its_place_though_the_node_goes_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::in_dir(dir.path()).await;
    earlier_output(&bench).await;
    let order = create::Order {
        is_listed: true,
        ..bench.order()
    };
    let handle = bench.shared.create(order).await.unwrap();
    assert_eq!(handle.output().totals(), totals(2 * HEAD_BYTES_MAX));
    assert_eq!(bench.shared.outputs.asides(), []);
    bench.end().await;
}

#[tokio::test]
async fn what_a_run_printed_that_its_node_has_forgotten_is_shown_behind_an_older_database() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let id = earlier_output(&bench).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    // What comes with the request is kept in the run's place, beside what is set aside.
    let with_stdin = || RunRequest {
        stdin: StdinSource::Bytes(Bytes::from_static(b"in")),
        ..keyed()
    };
    let started = bench.start(with_stdin());
    assert_eq!(keeper.hear_start().await, id);
    let mut handle = started.await.unwrap();
    assert_eq!(
        handle.record().totals,
        totals(0),
        "nobody knows yet whose it is"
    );
    // The gateway may die before the node has answered: what waits is found again.
    let found = Outputs::open(dir.path(), None, OutputLimits::default()).unwrap();
    assert_eq!(found.asides(), [id]);
    let code = RunRefusal::Forgotten;
    keeper.say(FromKeeper::Refused { run_id: id, code }).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    let ending = record.ending.as_ref().unwrap();
    assert_eq!(
        (ending.outcome, ending.reason),
        (Outcome::Lost, Some(Reason::NodeForgot))
    );
    assert_eq!(record.totals, totals(2 * HEAD_BYTES_MAX));
    let read = handle.output().read(Stream::Stdout, 0, 9).await.unwrap();
    assert_eq!(read, OutputRead::Bytes(Bytes::from_static(&[7; 9])));
    drop(handle);
    // Also when nobody holds the run any more.
    let again = bench.start(with_stdin()).await.unwrap();
    let end = 2 * HEAD_BYTES_MAX as u64;
    let read = again
        .output()
        .read(Stream::Stdout, end - 1, 9)
        .await
        .unwrap();
    assert_eq!(read, OutputRead::Bytes(Bytes::from_static(&[7])));
    assert_eq!(bench.shared.outputs.asides(), []);
    bench.end().await;
}

#[tokio::test]
async fn what_an_earlier_run_printed_goes_when_its_node_starts_another_one_with_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let id = earlier_output(&bench).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(keyed());
    assert_eq!(keeper.hear_start().await, id);
    let mut handle = started.await.unwrap();
    keeper.say_started(id).await;
    keeper.say_output(id, &Bytes::from_static(b"new")).await;
    keeper.say_ended(id, 3).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    assert_eq!(record.totals, totals(3));
    let read = handle.output().read(Stream::Stdout, 0, 9).await.unwrap();
    assert_eq!(read, OutputRead::Bytes(Bytes::from_static(b"new")));
    let gone = async {
        while bench.shared.outputs.bytes() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert_eq!(bench.shared.outputs.stored_runs().unwrap(), []);
    bench.end().await;
}
