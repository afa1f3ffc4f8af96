//! What else a keeper does with a machine that is made up: signals, terminals, and one beside it.

use std::sync::Arc;
use std::time::Duration;

use moltis_proto::ToKeeper;
use moltis_proto::run::{ExitStatus, Outcome, RunSpec, StdinMode, Tty, TtySize};
use tempfile::TempDir;

use crate::client::{Client, argv, id};
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
