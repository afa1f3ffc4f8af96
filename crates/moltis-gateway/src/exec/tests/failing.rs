//! What becomes of a run where the store or the disk fails for a while, and where somebody leaves in
//! the middle of a word.

use std::fs;

use moltis_proto::code::RunRefusal;
use moltis_proto::limits::HEAD_BYTES_MAX;

use super::*;
use crate::store::testing;

#[tokio::test]
async fn an_ending_that_the_database_failed_to_take_is_written_later() {
    for is_known_here in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::in_dir(dir.path()).await;
        let mut keeper = bench.keeper(Vec::new()).await;
        let started = bench.start(request());
        let id = keeper.hear_start().await;
        let mut handle = started.await.unwrap();
        testing::refuse_changes(&bench.shared.store).await;
        if is_known_here {
            let code = RunRefusal::Policy;
            keeper.say(FromKeeper::Refused { run_id: id, code }).await;
        } else {
            keeper.say_started(id).await;
            keeper.say_ended(id, 0).await;
        }
        let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
        // Who waits for what is known here alone is told that it fails.
        assert_eq!(record.ending.is_none(), is_known_here);
        assert_eq!(handle.failure().is_some(), is_known_here);
        testing::take_changes(&bench.shared.store).await;
        until(async || (bench.stage(id).await == RunStage::Ended).then_some(())).await;
        if is_known_here {
            let ended = handle
                .record
                .wait_for(|record| record.stage == RunStage::Ended);
            tokio::time::timeout(PATIENCE, ended)
                .await
                .unwrap()
                .unwrap();
            assert!(handle.failure().is_none());
        } else {
            assert_eq!(keeper.hear_forget().await, id);
        }
        assert!(bench.runs.wait(id).await.unwrap().ending.is_some());
        until(async || bench.shared.table.get(id).is_none().then_some(())).await;
        bench.end().await;
    }
}

#[tokio::test]
async fn an_ending_that_waits_for_a_full_disk_holds_up_no_end_of_the_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(request());
    let id = keeper.hear_start().await;
    drop(started.await.unwrap());
    // Somebody else's file has the name of the directory that its output would be written to.
    fs::write(dir.path().join("outputs").join(id.to_string()), "").unwrap();
    keeper.say_started(id).await;
    let (first, rest) = (vec![7; HEAD_BYTES_MAX / 2], vec![8; HEAD_BYTES_MAX / 4 * 3]);
    let (behind, written) = (first.len() as u64, first.len() + rest.len());
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
    let run = bench.shared.table.get(id).unwrap();
    until(async || run.is_ending().then_some(())).await;
    let left = bench.shared.tasks.shut_down(PATIENCE).await;
    assert_eq!(left, 0, "it waits for the disk");
    assert_ne!(bench.stage(id).await, RunStage::Ended);
    bench.shared.store.close().await;
}

#[tokio::test]
async fn a_run_whose_files_cannot_be_read_keeps_no_other_from_being_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::in_dir(dir.path()).await;
    let by = Actor::operator();
    let new = row_of(&bench, &keyed());
    let id = new.id;
    for run in [new, testing::run(9)] {
        bench.shared.store.create_run(run, &by).await.unwrap();
    }
    bench.end().await;
    let files = dir.path().join("outputs").join(id.to_string());
    fs::create_dir_all(files.join("gaps")).unwrap();
    std::os::unix::fs::symlink("nowhere", files.join(format!("out-{:016x}", 0))).unwrap();

    let bench = Bench::in_dir(dir.path()).await;
    assert!(bench.shared.table.get(testing::run(9).id).is_some());
    assert!(matches!(
        bench.runs.handle(id).await,
        Err(RunError::Output(_))
    ));
    // It is there again when its files are.
    fs::remove_dir_all(&files).unwrap();
    bench.runs.handle(id).await.unwrap();
    bench.end().await;
}

#[tokio::test]
async fn a_cancel_goes_on_when_its_asker_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(request());
    let id = keeper.hear_start().await;
    started.await.unwrap();
    as_far_as_it_comes(bench.runs.cancel(id, None, &Principal::Operator)).await;
    let cancel = keeper.hear_word().await;
    assert!(
        matches!(cancel, ToKeeper::Cancel { run_id, .. } if run_id == id),
        "{cancel:?}"
    );
    bench.end().await;
}
