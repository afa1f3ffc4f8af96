//! What a keeper lists and nobody here has, or not as it is: claims, requests that meet them, and
//! other commands under the same id.

use moltis_proto::key::Digest;
use moltis_proto::limits::HEAD_BYTES_MAX;

use super::*;
use crate::exec::table::Spot;

fn listed(run_id: RunId, digest: Digest) -> RunSummary {
    RunSummary {
        run_id,
        digest,
        journal_id: JOURNAL,
        state: RunState::Running { pid: 7 },
        totals: totals(0),
        stdin: 0,
    }
}

fn invented() -> RunSummary {
    listed(random_id(), Digest::from_bytes([3; 32]))
}

/// Waits until a run that nobody has asked for can be claimed.
async fn claimable(bench: &Bench, id: RunId) -> Arc<LiveRun> {
    until(async || bench.shared.table.get(id)).await
}

#[tokio::test]
async fn output_of_a_run_that_its_node_has_stays_where_its_request_comes_before_the_list_is_settled()
 {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let new = row_of(&bench, &keyed());
    // An older database was put back behind it.
    let earlier = bench.shared.outputs.run(new.id).unwrap();
    let bytes = Bytes::from(vec![7; 2 * HEAD_BYTES_MAX]);
    earlier.append(Stream::Stdout, 0, bytes).unwrap();
    earlier.synced().await.unwrap();
    drop(earlier);
    // A list is settled one by one, and somebody is at the first of them.
    let (shared, first) = (Arc::clone(&bench.shared), invented());
    let Spot::Free(place) = shared.table.spot(first.run_id).await else {
        panic!("nobody has it");
    };
    let theirs = RunSummary {
        totals: totals(2 * HEAD_BYTES_MAX),
        ..listed(new.id, new.digest)
    };
    let mut keeper = bench.keeper(vec![first, theirs.clone()]).await;
    let started = bench.start(keyed());
    assert_eq!(keeper.hear_start().await, new.id);
    keeper.say(FromKeeper::State { summary: theirs }).await;
    let ToKeeper::Resume { stdout, .. } = keeper.hear_word().await else {
        panic!("it is not resumed");
    };
    assert_eq!(stdout, 2 * HEAD_BYTES_MAX as u64, "it was deleted");
    keeper.say_ended(new.id, 2 * HEAD_BYTES_MAX).await;
    let record = started.await.unwrap().wait().await;
    assert_eq!(record.totals, totals(2 * HEAD_BYTES_MAX));
    assert_eq!(keeper.hear_forget().await, new.id);
    drop(place);
    bench.end().await;
}

#[tokio::test]
async fn a_claim_goes_on_when_its_asker_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let summary = invented();
    let id = summary.run_id;
    let mut keeper = bench.keeper(vec![summary]).await;
    claimable(&bench, id).await;
    as_far_as_it_comes(bench.runs.claim(id, &Principal::Operator)).await;
    let resumed = keeper.hear_word().await;
    assert!(
        matches!(resumed, ToKeeper::Resume { run_id, .. } if run_id == id),
        "{resumed:?}"
    );
    bench.end().await;
}

#[tokio::test]
async fn a_claim_is_heard_of_by_who_takes_the_run_up_in_this_moment() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::in_dir(dir.path()).await;
    let (shared, id) = (Arc::clone(&bench.shared), random_id());
    let Spot::Free(place) = shared.table.spot(id).await else {
        panic!("nobody has it");
    };
    let (here, at) = (shared.roster.incarnation(), shared.clock.now());
    let (digest, shown) = (Digest::from_bytes([3; 32]), "local".to_owned());
    let added =
        shared
            .store
            .add_unclaimed(id, digest, &Target::Local, shown, BOOT, JOURNAL, here, at);
    added.await.unwrap().unwrap();
    let row = shared.store.run(id).await.unwrap().unwrap();
    let runs = bench.runs.clone();
    let claim = async move { runs.claim(id, &Principal::Operator).await };
    let claim = shared.tasks.spawn(claim);
    until(async || {
        let row = shared.store.run(id).await.unwrap().unwrap();
        (!row.unclaimed).then_some(())
    })
    .await;
    let run = place.fill(shared.live_of(row).unwrap());
    assert!(!claim.await.unwrap().unwrap().record.unclaimed);
    assert!(
        !run.record().unclaimed,
        "it cannot be claimed a second time"
    );
    bench.end().await;
}

#[tokio::test]
async fn a_request_for_a_run_that_is_let_go_of_in_this_moment_starts_it_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let new = row_of(&bench, &keyed());
    let id = new.id;
    let mut keeper = bench.keeper(vec![listed(id, new.digest)]).await;
    let run = claimable(&bench, id).await;
    let deleted = bench.shared.store.delete_unclaimed(id).await.unwrap();
    assert!(deleted.is_some());
    let started = bench.start(keyed());
    until(async || bench.shared.store.run(id).await.unwrap()).await;
    bench.shared.end_without_a_row(&run);
    assert_eq!(keeper.hear_start().await, id);
    let mut handle = started.await.unwrap();
    keeper.say_started(id).await;
    keeper.say_ended(id, 0).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    assert_eq!(record.ending.as_ref().unwrap().outcome, Outcome::Exited);
    assert_eq!(keeper.hear_forget().await, id);
    bench.end().await;
}

#[tokio::test]
async fn another_command_under_the_id_of_a_run_is_left_alone() {
    for is_taken_up in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::in_dir(dir.path()).await;
        let new = row_of(&bench, &keyed());
        let (id, by) = (new.id, Actor::operator());
        bench.shared.store.create_run(new, &by).await.unwrap();
        if is_taken_up {
            bench.runs.handle(id).await.unwrap();
        }
        let (another, last) = (listed(id, Digest::from_bytes([9; 32])), invented());
        let settled = last.run_id;
        let mut keeper = bench.keeper(vec![another, last]).await;
        claimable(&bench, settled).await;
        let mark = bench.mark().await;
        assert_eq!(keeper.hear_forget().await, mark, "it is another command");
        assert_ne!(bench.stage(id).await, RunStage::Ended);
        bench.end().await;
    }
}
