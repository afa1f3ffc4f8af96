//! What a dead keeper leaves, and what the next one makes of it.

use std::sync::Arc;
use std::time::Duration;

use moltis_proto::run::{GapReason, Outcome, Reason, RunState, Stream};
use moltis_proto::{RunRefusal, ToKeeper};
use tokio::time::Instant;

use crate::client::{argv, id, shell};
use crate::fixture::{Inside, Outside, gone, is_alive};

#[tokio::test]
async fn a_copy_of_a_keepers_directory_does_not_end_what_runs_in_the_original() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    client.start(id(1), argv(&["sleep", "60"])).await;
    let pid = client.until(id(1), |run| run.pid.is_some()).await.pid;
    let copy = Arc::new(tempfile::tempdir().unwrap());
    for entry in std::fs::read_dir(keeper.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "journal") {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let other = Outside::start_in(copy, 1).await;
    let (_, listed) = other.attach().await;
    assert_eq!(listed.runs.len(), 1);
    assert!(is_alive(pid.unwrap()), "its keeper lives");
    client.cancel(id(1), 0).await;
    let ending = client.finish(id(1)).await.ending().clone();
    assert_eq!(ending.outcome, Outcome::Cancelled);
}

#[tokio::test]
async fn a_dead_keepers_runs_are_taken_over() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    client.run(id(1), shell("echo forgotten")).await;
    client.say(ToKeeper::Forget { run_id: id(1) }).await;
    client.run(id(2), shell("echo ended; exit 3")).await;
    client.start(id(3), argv(&["sleep", "60"])).await;
    client.until(id(3), |run| run.pid.is_some()).await;
    client
        .start(id(4), shell("head -c 9000000 /dev/zero; sleep 60"))
        .await;
    client.until(id(4), |run| run.pid.is_some()).await;
    let (_, listed) = keeper.attach().await;
    let journal = listed.journals[0];
    settled(&keeper, 4, 9_000_000).await;
    let dir = keeper.kill();
    let left = listed.runs.iter().filter_map(|run| match run.state {
        RunState::Running { pid } => Some(pid),
        RunState::Ended => None,
    });
    let left: Vec<u32> = left.collect();
    assert_eq!(left.len(), 2);
    let keeper = Outside::start_in(Arc::clone(&dir), 1).await;
    for pid in left {
        if cfg!(target_os = "linux") {
            gone(pid).await; // the next keeper knows its predecessor's processes, and ends them
        } else {
            kill_group(pid);
        }
    }
    let (mut client, listed) = keeper.attach().await;
    assert_eq!(listed.journals.len(), 2);
    assert_ne!(listed.journals[0], journal);
    assert_eq!(listed.journals[1], journal);
    assert_eq!(listed.runs.len(), 3);
    assert!(
        listed
            .runs
            .iter()
            .all(|run| run.state == RunState::Ended && run.journal_id == journal)
    );
    let forgotten = client.run(id(1), shell("echo forgotten")).await.refused;
    assert_eq!(
        forgotten,
        Some(RunRefusal::Forgotten),
        "by the dead one too"
    );
    // What the gateway has of an ended run is not missed; what nobody has is a gap.
    client.resume(id(2), 0, 0).await;
    let run = client.finish(id(2)).await;
    assert_eq!(run.gaps, [(Stream::Stdout, 0, 6, GapReason::KeeperDied)]);
    assert_eq!(
        run.ending().status,
        Some(moltis_proto::run::ExitStatus::Code(3))
    );
    client.resume(id(3), 0, 0).await;
    let ending = client.finish(id(3)).await.ending().clone();
    assert_eq!(
        (ending.outcome, ending.reason),
        (Outcome::Lost, Some(Reason::KeeperDied))
    );
    assert_eq!(ending.descendants_may_survive, !cfg!(target_os = "linux"));
    client.resume(id(4), 0, 0).await;
    let run = client.finish(id(4)).await;
    assert!(run.gaps.is_empty());
    assert!(
        run.bytes[0].len() > 7_000_000,
        "{} bytes",
        run.bytes[0].len()
    );

    // A gateway that has more than the spool is believed.
    client.resume(id(4), 9_500_000, 0).await;
    let run = client.finish(id(4)).await;
    assert_eq!(run.ended.as_ref().unwrap().1.stdout, 9_500_000);
    for number in 2..=4 {
        client.say(ToKeeper::Forget { run_id: id(number) }).await;
    }
    client.run(id(9), argv(&[])).await; // heard behind the others
    assert!(keeper.attach().await.1.runs.is_empty());
    let dir = keeper.kill();
    let keeper = Outside::start_in(dir, 1).await;
    let (mut client, listed) = keeper.attach().await;
    assert!(listed.runs.is_empty());
    for number in 1..=4 {
        let refused = client.run(id(number), shell("true")).await.refused;
        assert_eq!(refused, Some(RunRefusal::Forgotten), "run {number}");
    }
}

#[tokio::test]
async fn a_run_whose_keepers_died_one_after_the_other_may_be_known_better_by_the_gateway() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    let line = "head -c 100000 /dev/zero; sleep 60";
    client.start(id(1), shell(line)).await;
    client
        .until(id(1), |run| run.bytes[0].len() == 100_000)
        .await;
    let pid = client.runs[&id(1)].pid.unwrap();
    let dir = keeper.kill();
    kill_group(pid); // nobody else ends it now
    for _ in 0..2 {
        let keeper = Outside::start_in(Arc::clone(&dir), 1).await;
        let (mut client, listed) = keeper.attach().await;
        assert_eq!(listed.runs.len(), 1);
        client.resume(id(1), 100_000, 0).await;
        let run = client.finish(id(1)).await;
        assert_eq!(run.ending().outcome, Outcome::Lost);
        assert_eq!(run.ended.as_ref().unwrap().1.stdout, 100_000);
        keeper.kill();
    }
}

#[tokio::test]
async fn a_keeper_that_lives_takes_over_from_one_that_dies_beside_it() {
    let living = Inside::new();
    let dying = Outside::start_in(Arc::clone(&living.dir), 1).await;
    let (mut client, listed) = dying.attach().await;
    let journal = listed.journals[0];
    client.run(id(1), shell("exit 3")).await;
    client.run(id(2), shell("true")).await;
    client.say(ToKeeper::Forget { run_id: id(2) }).await;
    client.run(id(9), argv(&[])).await; // heard behind it
    let (_, listed) = living.attach().await;
    assert!(listed.runs.is_empty(), "the other one lives");
    dying.kill();
    let (mut client, listed) = living.attach().await;
    assert_eq!(listed.journals[1..], [journal]);
    let runs: Vec<_> = listed.runs.iter().map(|run| run.run_id).collect();
    assert_eq!(runs, [id(1)]);
    client.resume(id(1), 0, 0).await;
    assert_eq!(client.finish(id(1)).await.ending().outcome, Outcome::Exited);
    let refused = client.run(id(2), shell("true")).await.refused;
    assert_eq!(refused, Some(RunRefusal::Forgotten));
    assert_eq!(living.attach().await.1.journals.len(), 2, "once");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_is_not_a_dead_keepers_own_lives_on_however_alike_it_is() {
    let sleep = ["sleep", "61"];
    // A run of the same id in another place, and somebody's process of the same words.
    let (dying, other) = (Outside::start().await, Outside::start().await);
    let mut left = Vec::new();
    for keeper in [&dying, &other] {
        let mut client = keeper.client().await;
        client.start(id(1), argv(&sleep)).await;
        let run = client.until(id(1), |run| run.pid.is_some()).await;
        left.push(run.pid.unwrap());
    }
    let mut words = std::process::Command::new(sleep[0]);
    let mut bystander = words.args(&sleep[1..]).spawn().unwrap();
    let dir = dying.kill();
    let _next = Outside::start_in(dir, 1).await;
    gone(left[0]).await;
    assert!(is_alive(left[1]), "a run of another keeper was ended");
    assert!(
        is_alive(bystander.id()),
        "a process that is no run was ended"
    );
    let listed = other.attach().await.1;
    assert!(matches!(listed.runs[0].state, RunState::Running { .. }));
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

/// Ends a process group that has lost its keeper.
fn kill_group(leader: u32) {
    let group = format!("-{leader}");
    let killed = std::process::Command::new("kill")
        .args(["-9", "--", &group])
        .status();
    assert!(killed.unwrap().success());
}

/// Waits until the keeper has so much of a run, nobody following it.
async fn settled(keeper: &Outside, number: u8, bytes: u64) {
    let began = Instant::now();
    loop {
        let (_, listed) = keeper.attach().await;
        let run = listed.runs.iter().find(|run| run.run_id == id(number));
        if run.is_some_and(|run| run.totals.stdout == bytes) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn after_another_boot_running_runs_are_lost_to_it() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    client.start(id(1), argv(&["sleep", "60"])).await;
    let pid = client
        .until(id(1), |run| run.pid.is_some())
        .await
        .pid
        .unwrap();
    let dir = keeper.kill();
    std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    let keeper = Outside::start_in(dir, 2).await;
    let (mut client, listed) = keeper.attach().await;
    assert_eq!(listed.boot_id, moltis_proto::BootId::from_bytes([2; 16]));
    client.resume(id(1), 0, 0).await;
    let ending = client.finish(id(1)).await.ending();
    assert_eq!(
        (ending.outcome, ending.reason),
        (Outcome::Lost, Some(Reason::NodeRebooted))
    );
    assert!(!ending.descendants_may_survive);
}

#[tokio::test]
async fn a_corrupt_journal_is_read_up_to_its_last_good_record() {
    let keeper = Outside::start().await;
    let mut client = keeper.client().await;
    client.run(id(1), shell("exit 1")).await;
    client.run(id(2), shell("exit 2")).await;
    let dir = keeper.kill();
    let journal = std::fs::read_dir(dir.path())
        .unwrap()
        .flatten()
        .find(|entry| {
            entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "journal")
        });
    let path = journal.unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    let length = bytes.len();
    bytes[length - 3] ^= 0x40;
    bytes.extend_from_slice(b"the end of a keeper that died writing");
    std::fs::write(&path, bytes).unwrap();
    std::fs::write(dir.path().join("knonsense.journal"), "nonsense").unwrap();

    let keeper = Outside::start_in(dir, 1).await;
    let (mut client, listed) = keeper.attach().await;
    assert_eq!(listed.runs.len(), 2);
    client.resume(id(1), 0, 0).await;
    assert_eq!(client.finish(id(1)).await.ending().outcome, Outcome::Exited);
    client.resume(id(2), 0, 0).await;
    assert_eq!(client.finish(id(2)).await.ending().outcome, Outcome::Lost);
}
