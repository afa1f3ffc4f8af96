//! A file system that never answers, under the files of a command.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use moltis_proto::run::{Outcome, RunSpec, StdinMode};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use crate::client::{argv, id, shell};
use crate::fixture::{Outside, not_tested};

/// A keeper that sees a directory on which nothing answers while this file is open. Absent where
/// there can be none.
async fn keeper() -> Option<(Outside, File, TempDir)> {
    let dead = tempfile::tempdir().unwrap();
    match Outside::start_beside_dead(dead.path()).await {
        Ok((keeper, fuse)) => Some((keeper, fuse, dead)),
        Err(why) => {
            not_tested("a file system that never answers", &why);
            None
        }
    }
}

fn within(cwd: &str) -> RunSpec {
    RunSpec {
        cwd: Some(cwd.to_owned()),
        stdin: StdinMode::Open,
        ..shell("echo started")
    }
}

#[tokio::test]
async fn a_dead_mount_stops_the_starts_on_it_and_nothing_else() {
    let Some((keeper, fuse, dead)) = keeper().await else {
        return;
    };
    let dead = dead.path().to_str().unwrap();
    let mut client = keeper.client().await;
    client.start(id(1), shell("sleep 60")).await;
    client.until(id(1), |known| known.pid.is_some()).await;
    let began = Instant::now();
    client.start(id(2), within(dead)).await;
    client.start(id(3), argv(&[&format!("{dead}/x")])).await;
    // What goes into it comes right behind it, and holds up nobody.
    client.stdin(id(2), 0, b"in", true).await;
    client.stdin(id(3), 0, b"in", true).await;
    // Others start, run and are cancelled meanwhile.
    client.run(id(4), shell("true")).await;
    client.cancel(id(1), 0).await;
    assert_eq!(
        client.finish(id(1)).await.ending().outcome,
        Outcome::Cancelled
    );
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    // One that is cancelled meanwhile never starts.
    client.start(id(5), within(&format!("{dead}/five"))).await;
    client.cancel(id(5), 0).await;
    assert_eq!(
        client.finish(id(5)).await.ending().outcome,
        Outcome::Cancelled
    );
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    for number in [2, 3] {
        let ending = client.finish(id(number)).await.ending().clone();
        assert_eq!(ending.outcome, Outcome::FailedToStart);
        assert_eq!(ending.reason, None);
        assert!(ending.detail.contains(dead), "{}", ending.detail);
    }
    // The same again is not waited for.
    let again = client.run(id(6), within(dead));
    let again = timeout(Duration::from_secs(2), again).await.unwrap();
    assert_eq!(again.ending().outcome, Outcome::FailedToStart);
    // Late answers start nothing.
    drop(fuse);
    client.run(id(7), shell("true")).await;
    for number in [2, 3, 5, 6] {
        assert_eq!(client.runs[&id(number)].stdout(), "");
    }
}

#[tokio::test]
async fn a_script_whose_interpreter_is_on_a_dead_mount_does_not_hang_the_keeper() {
    let Some((keeper, _fuse, dead)) = keeper().await else {
        return;
    };
    let script = keeper.dir.path().join("script");
    let text = format!("#!{}/python\n", dead.path().display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let mut client = keeper.client().await;
    client.start(id(1), argv(&[script.to_str().unwrap()])).await;
    let other = client.run(id(2), shell("true"));
    timeout(Duration::from_secs(4), other).await.unwrap();
    let ending = client.finish(id(1)).await.ending().clone();
    assert_eq!(ending.outcome, Outcome::FailedToStart);
    assert!(ending.detail.contains("/python"), "{}", ending.detail);
}

#[tokio::test]
async fn a_start_whose_client_goes_while_it_is_looked_at_was_not_taken() {
    let Some((keeper, fuse, dead)) = keeper().await else {
        return;
    };
    let dead = dead.path().to_str().unwrap();
    let mut client = keeper.client().await;
    client.start(id(1), within(dead)).await;
    client.run(id(2), shell("true")).await;
    drop(client);
    let (mut next, listed) = keeper.attach().await;
    let listed: Vec<_> = listed.runs.iter().map(|run| run.run_id).collect();
    assert_eq!(listed, [id(2)]);
    drop(fuse);
    // It is new to the keeper, and nothing can be found there any more.
    let again = next.run(id(1), within(dead)).await;
    assert_eq!(again.ending().outcome, Outcome::FailedToStart);
    assert_eq!(again.stdout(), "");
}
