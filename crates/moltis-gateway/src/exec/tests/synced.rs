//! What must wait for the disk: the word that a run may be forgotten, the answer to somebody who
//! leaves, and a start that its machine would forget with its row.

use std::sync::mpsc as std_mpsc;

use crate::store::StoreError;

use super::*;

const OTHER_JOURNAL: JournalId = JournalId::from_bytes([4; 16]);

/// A disk that syncs when the test lets it.
struct Disk {
    asked: std_mpsc::Receiver<()>,
    let_go: std_mpsc::Sender<()>,
}

impl Disk {
    async fn store(dir: &Path) -> (Store, Self) {
        let (ask, asked) = std_mpsc::channel();
        let (let_go, gate) = std_mpsc::channel();
        let sync = move || {
            ask.send(()).ok(); // the test has seen enough
            gate.recv().map_err(std::io::Error::other)
        };
        let store = Store::open_with(&System::default(), dir, move |_| sync)
            .await
            .unwrap();
        (store, Self { asked, let_go })
    }

    /// Waits until somebody wants what is written to be on the disk.
    async fn asked(self) -> Self {
        let wait = move || {
            self.asked
                .recv_timeout(PATIENCE)
                .expect("nobody waits for the disk");
            self
        };
        tokio::task::spawn_blocking(wait).await.unwrap()
    }

    fn let_go(&self) {
        self.let_go.send(()).unwrap();
    }
}

#[tokio::test]
async fn a_run_is_forgotten_only_when_it_would_survive_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk) = Disk::store(dir.path()).await;
    let mut bench = Bench::on(store, dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(request());
    let id = keeper.hear_start().await;
    keeper.say_started(id).await;
    keeper.say_ended(id, 0).await;
    started.await.unwrap().wait().await;
    let disk = disk.asked().await;
    assert_eq!(bench.stage(id).await, RunStage::Ended);
    let mark = bench.mark().await;
    assert_eq!(keeper.hear_forget().await, mark, "the disk is not done");
    disk.let_go();
    assert_eq!(keeper.hear_forget().await, id);
    bench.end().await;
}

#[tokio::test]
async fn who_leaves_a_run_alone_hears_of_it_when_it_would_survive_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk) = Disk::store(dir.path()).await;
    let mut bench = Bench::on(store, dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let request = RunRequest {
        detach: true,
        ..request()
    };
    let first = bench.start(request);
    keeper.hear_start().await;
    let disk = disk.asked().await;
    assert!(!first.is_finished(), "the disk is not done");
    disk.let_go();
    assert!(!first.await.unwrap().existed());
    bench.end().await;
}

#[tokio::test]
async fn who_leaves_a_run_alone_that_runs_and_is_not_kept_is_told_just_that() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk) = Disk::store(dir.path()).await;
    let mut bench = Bench::on(store, dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let request = RunRequest {
        detach: true,
        ..request()
    };
    let runs = bench.runs.clone();
    let first = async move { runs.start(request, &Principal::Operator).await };
    let first = bench.shared.tasks.spawn(first);
    let sent = keeper.hear_start().await;
    drop(disk.asked().await);
    let error = first.await.unwrap().unwrap_err();
    assert!(
        matches!(error, StartError::Unkept { id, .. } if id == sent),
        "{error:?}"
    );
    // Of many it is told which.
    let handle = bench.runs.handle(sent).await.unwrap();
    let mut made = fleet::Made::default();
    made.fleet.runs.push(FleetRun::of(&handle));
    let error = bench.runs.settle(made).await.unwrap_err();
    assert!(
        matches!(&error, FleetError::Unkept { runs, .. } if *runs == [sent]),
        "{error:?}"
    );
    bench.end().await;
}

#[tokio::test]
async fn a_cancel_goes_out_although_the_store_cannot_note_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk) = Disk::store(dir.path()).await;
    let mut bench = Bench::on(store, dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(request());
    let id = keeper.hear_start().await;
    started.await.unwrap();
    drop(disk);
    assert!(bench.shared.store.synced_so_far().await.is_err());
    let cancelled = bench.runs.cancel(id, None, &Principal::Operator).await;
    assert!(cancelled.unwrap().record.cancel_requested_at.is_some());
    let cancel = keeper.hear_word().await;
    assert!(
        matches!(cancel, ToKeeper::Cancel { run_id, .. } if run_id == id),
        "{cancel:?}"
    );
    // Of one whose keeper is away nobody can promise it.
    drop(keeper);
    until(async || bench.shared.seat_of(&Target::Local).is_none().then_some(())).await;
    let refused = bench.runs.cancel(id, None, &Principal::Operator).await;
    assert!(matches!(refused, Err(RunError::Store(_))), "{refused:?}");
    bench.end().await;
}

#[tokio::test]
async fn who_repeats_a_request_and_leaves_waits_for_the_disk_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk) = Disk::store(dir.path()).await;
    let mut bench = Bench::on(store, dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let first = bench.start(keyed());
    let disk = disk.asked().await;
    disk.let_go();
    keeper.hear_start().await;
    assert!(!first.await.unwrap().existed());
    // Nobody knows any more what of the store its run is.
    let other = bench.start(request());
    keeper.hear_start().await;
    other.await.unwrap();
    let request = RunRequest {
        detach: true,
        ..keyed()
    };
    let again = bench.start(request);
    let disk = disk.asked().await;
    assert!(!again.is_finished(), "the disk is not done");
    disk.let_go();
    assert!(again.await.unwrap().existed());
    bench.end().await;
}

#[tokio::test]
async fn a_start_that_could_be_asked_for_again_leaves_when_its_row_would_survive_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk) = Disk::store(dir.path()).await;
    let mut bench = Bench::on(store, dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let first = bench.start(keyed());
    let disk = disk.asked().await;
    let mark = bench.mark().await;
    assert_eq!(keeper.hear_forget().await, mark, "the disk is not done");
    assert!(!first.is_finished());
    disk.let_go();
    let id = keeper.hear_start().await;
    assert_eq!(first.await.unwrap().id(), id);
    // Without a key nobody asks for this one again.
    let other = bench.start(request());
    keeper.hear_start().await;
    other.await.unwrap();
    bench.end().await;
}

#[tokio::test]
async fn a_start_that_waited_for_the_disk_goes_to_the_keeper_that_is_there_then() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk) = Disk::store(dir.path()).await;
    let mut bench = Bench::on(store, dir.path()).await;
    let keeper = bench.keeper(Vec::new()).await;
    let first = bench.start(keyed());
    let disk = disk.asked().await;
    drop(keeper);
    while bench.shared.seat_of(&Target::Local).is_some() {
        tokio::task::yield_now().await;
    }
    let mut keeper = bench.keeper_with(BOOT, OTHER_JOURNAL, Vec::new()).await;
    disk.let_go();
    let id = keeper.hear_start().await;
    keeper.say_started(id).await;
    keeper.say_ended(id, 0).await;
    let mut handle = first.await.unwrap();
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    assert_eq!(record.ending.as_ref().unwrap().outcome, Outcome::Exited);
    drop(disk); // its ending may be synced or not
    bench.end().await;
}

#[tokio::test]
async fn a_start_whose_row_the_disk_has_not_taken_never_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk) = Disk::store(dir.path()).await;
    let mut bench = Bench::on(store, dir.path()).await;
    let keeper = bench.keeper(Vec::new()).await;
    let (runs, request) = (bench.runs.clone(), keyed());
    let id = row_of(&bench, &request).id;
    let first = async move { runs.start(request, &Principal::Operator).await };
    let first = bench.shared.tasks.spawn(first);
    drop(disk.asked().await);
    let error = first.await.unwrap().unwrap_err();
    // The next process of the gateway may find its row.
    let is_open = matches!(error, StartError::Unkept { id: of, .. } if of == id);
    assert!(is_open, "{error:?}");
    // Somebody looks at what is in the file, and the keeper is met again.
    bench.runs.handle(id).await.unwrap();
    drop(keeper);
    while bench.shared.seat_of(&Target::Local).is_some() {
        tokio::task::yield_now().await;
    }
    let mut keeper = bench.keeper(Vec::new()).await;
    // It is asked whether it knows it, by what nothing can come of.
    match keeper.hear_word().await {
        ToKeeper::Start { run_id, spec, .. } if run_id == id => {
            assert!(!spec.is_sound(), "{spec:?}");
        }
        other => panic!("{other:?}"),
    }
    let mark = bench.mark().await;
    assert_eq!(keeper.hear_forget().await, mark, "it was sent");
    bench.end().await;
}

#[tokio::test]
async fn who_waits_for_an_ending_that_cannot_be_written_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let (store, disk) = Disk::store(dir.path()).await;
    let mut bench = Bench::on(store, dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(request());
    let id = keeper.hear_start().await;
    let mut handle = started.await.unwrap();
    let (mut follow, mut of_fleet) = (handle.follow(0, 0), FleetRun::of(&handle));
    drop(disk);
    assert!(bench.shared.store.synced_so_far().await.is_err());
    // The gateway concludes this ending by itself, and no node brings it again.
    let code = moltis_proto::code::RunRefusal::Policy;
    keeper.say(FromKeeper::Refused { run_id: id, code }).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await;
    let record = record.expect("it is told to nobody");
    assert_eq!((record.stage, &record.ending), (RunStage::Starting, &None));
    let read_only = |error: &StoreError| matches!(error, StoreError::ReadOnly { .. });
    assert!(handle.failure().is_some_and(read_only));
    let record = tokio::time::timeout(PATIENCE, of_fleet.wait()).await;
    assert!(record.expect("a fleet waits for ever").ending.is_none());
    // Who follows it is cut off, and who comes later hears why.
    let next = tokio::time::timeout(PATIENCE, follow.next()).await.unwrap();
    assert_eq!(next, None);
    let refused = bench.runs.follow(id, 0, 0).await;
    assert!(matches!(refused, Err(RunError::Store(error)) if read_only(&error)));
    bench.end().await;
}
