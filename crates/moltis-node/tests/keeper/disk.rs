//! Disks that are full, and disks that fail: the command goes on, and what is gone is marked.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use moltis_proto::run::{GapReason, Outcome, RunState};
use moltis_proto::{RunRefusal, ToKeeper};

use crate::client::{Known, id, shell};
use crate::fixture::{Inside, Outside, not_tested};

/// A file system of 3 MiB, where we may mount one.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(dir: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs"])
            .arg(dir)
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then_some(Self(dir))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // Lazily: a keeper that is being killed may still be in there.
        Command::new("umount").arg("-l").arg(self.0).status().ok();
    }
}

/// Every byte that came is right, and everything else is a gap of this reason.
fn check(run: &Known, total: u64, reason: GapReason) {
    let gone: u64 = run.gaps.iter().map(|(_, from, to, _)| to - from).sum();
    assert!(run.gaps.iter().all(|gap| gap.3 == reason), "{:?}", run.gaps);
    assert!(gone > 0 && gone < total);
    assert_eq!(run.bytes[0].len() as u64 + gone, total);
    assert_eq!(run.ended.as_ref().unwrap().1.stdout, total);
    assert_eq!(run.ending().outcome, Outcome::Exited);
}

#[tokio::test]
async fn a_full_disk_leaves_a_marked_gap_and_a_keeper_that_works_again() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let Some(_mounted) = Small::mount(dir.path()) else {
        not_tested(
            "a full disk under a keeper",
            "no small file system may be mounted here",
        );
        return;
    };
    let keeper = Outside::start_in(Arc::clone(&dir), 1).await;
    let mut client = keeper.client().await;
    client
        .start(id(1), shell("head -c 20000000 /dev/zero"))
        .await;
    client.until(id(1), |run| run.pid.is_some()).await;
    drop(client);
    ended(async || keeper.attach().await.1.runs[0].state.clone()).await;

    // Output has left room for the journal: what would free the disk can be run.
    let (mut client, _) = keeper.attach().await;
    let longer_than_a_page = format!("true {}", "x".repeat(10_000));
    let run = client.run(id(4), shell(&longer_than_a_page)).await;
    assert_eq!(run.ending().outcome, Outcome::Exited);

    // Nothing can be taken while there is none.
    let filler = dir.path().join("filler");
    fill(&filler);
    let refused = client.run(id(2), shell(&longer_than_a_page)).await.refused;
    assert_eq!(refused, Some(RunRefusal::JournalFailed));

    std::fs::remove_file(&filler).unwrap();
    client.resume(id(1), 0, 0).await;
    check(client.finish(id(1)).await, 20_000_000, GapReason::DiskFull);
    client.say(ToKeeper::Forget { run_id: id(1) }).await;
    let run = client.run(id(3), shell("head -c 20000000 /dev/zero")).await;
    assert_eq!(run.bytes[0].len(), 20_000_000);
}

/// Writes until there is no room left.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [65_536, 1_024, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test]
async fn a_disk_that_fails_leaves_a_marked_gap() {
    let keeper = Inside::new();
    // A spool that cannot be opened: somebody else's directory has its name.
    let spool = keeper.dir.path().join(format!("{}.out", id(1)));
    std::fs::create_dir_all(spool.join("not empty")).unwrap();
    let mut client = keeper.client().await;
    client
        .start(id(1), shell("head -c 20000000 /dev/zero"))
        .await;
    client.until(id(1), |run| run.pid.is_some()).await;
    drop(client);
    ended(async || keeper.attach().await.1.runs[0].state.clone()).await;
    let (mut client, _) = keeper.attach().await;
    client.resume(id(1), 0, 0).await;
    check(
        client.finish(id(1)).await,
        20_000_000,
        GapReason::DiskFailed,
    );
}

/// Waits until a run is over.
async fn ended(state: impl AsyncFn() -> RunState) {
    let ended = async {
        while state().await != RunState::Ended {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::client::PATIENCE, ended)
        .await
        .unwrap();
}
