//! The dispatcher with a keeper that a test plays: what is told and what is sent. Below it is what
//! must wait for the disk.

mod failing;
mod listed;
mod synced;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use moltis_proto::run::{
    Command, Ending, ExitStatus, Outcome, Reason, RunState, RunSummary, Stream,
};
use moltis_proto::{BootId, Codec, FromKeeper, JournalId, Payload, RunId, ToKeeper};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::*;
use crate::clock::Clock;
use crate::events::Events;
use crate::local::{Connecting, KeeperStream};
use crate::output::{OutputLimits, Outputs};
use crate::pairing::PairingDesk;
use crate::roster::Roster;
use crate::store::{NewRun, Store};
use crate::system::System;
use crate::tasks::Tasks;

mod totals;
const PATIENCE: Duration = Duration::from_secs(20);
const BOOT: BootId = BootId::from_bytes([1; 16]);
const OTHER_BOOT: BootId = BootId::from_bytes([3; 16]);
const JOURNAL: JournalId = JournalId::from_bytes([2; 16]);

/// A dispatcher in a home of its own.
struct Bench {
    runs: Runs,
    shared: Arc<Shared>,
    connections: mpsc::Receiver<DuplexStream>,
}

impl Bench {
    async fn in_dir(dir: &Path) -> Self {
        Self::on(Store::open(dir).await.unwrap(), dir).await
    }

    async fn on(store: Store, dir: &Path) -> Self {
        let (clock, events, tasks) = (Clock::system(), Events::default(), Tasks::new());
        let outputs = Outputs::open(dir, None, OutputLimits::default()).unwrap();
        let desk = PairingDesk::open(store.clone(), clock.clone(), events.clone(), &tasks);
        let desk = desk.await.unwrap();
        let incarnation = u32::from_be_bytes(moltis_identity::random::bytes());
        let roster = Roster::new(incarnation, desk.nodes(), events.clone());
        let shared = Shared::new(store, outputs, roster, events, tasks, clock, desk);
        shared.load().await.unwrap();
        let (dialled, connections) = mpsc::channel(4);
        let connector = move || -> Connecting {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            dialled.try_send(theirs).unwrap();
            Box::pin(async { Ok(vec![Box::new(ours) as Box<dyn KeeperStream>]) })
        };
        let windows = crate::GatewayConfig::new(dir).windows;
        let local = Local::new(Arc::clone(&shared), Box::new(connector), windows);
        let runs = Runs::new(Arc::clone(&shared), Some(local), "local", None);
        Self {
            runs,
            shared,
            connections,
        }
    }

    /// Has the keeper dialled, and lists these runs as what it holds.
    async fn keeper(&mut self, held: Vec<RunSummary>) -> Keeper {
        self.keeper_of(BOOT, held).await
    }

    /// As [`keeper`](Self::keeper), on this boot of the machine.
    async fn keeper_of(&mut self, boot_id: BootId, held: Vec<RunSummary>) -> Keeper {
        self.keeper_with(boot_id, JOURNAL, held).await
    }

    /// As [`keeper_of`](Self::keeper_of), with this journal.
    async fn keeper_with(
        &mut self,
        boot_id: BootId,
        journal_id: JournalId,
        held: Vec<RunSummary>,
    ) -> Keeper {
        let local = self.runs.local.clone().unwrap();
        let greet = async {
            let mut keeper = Keeper(self.connections.recv().await.unwrap());
            assert!(matches!(keeper.hear().await, ToKeeper::Attach { .. }));
            keeper
                .say(FromKeeper::Runs {
                    boot_id,
                    journals: vec![journal_id],
                    runs: held,
                    last: true,
                })
                .await;
            keeper
        };
        let (keeper, ready) = tokio::join!(greet, local.ready());
        ready.unwrap();
        keeper
    }

    /// Starts a request in the background.
    fn start(&self, request: RunRequest) -> tokio::task::JoinHandle<RunHandle> {
        let runs = self.runs.clone();
        self.shared
            .tasks
            .spawn(async move { runs.start(request, &Principal::Operator).await.unwrap() })
    }

    /// Makes the run of [`keyed`], wherever its keeper is.
    async fn create_keyed(&self) -> RunHandle {
        self.shared.create(self.order()).await.unwrap()
    }

    /// What [`keyed`] has become when its row is due.
    fn order(&self) -> create::Order {
        create::Order {
            new: row_of(self, &keyed()),
            stdin: StdinSource::Empty,
            detach: false,
            by: Actor::operator(),
            asked: tokio::time::Instant::now(),
            is_listed: false,
        }
    }

    async fn stage(&self, id: RunId) -> RunStage {
        self.shared.store.run(id).await.unwrap().unwrap().stage
    }

    async fn listed(&self, stage: RunStage, limit: u32) -> Vec<RunId> {
        let mut filter = RunFilter {
            stage: Some(stage),
            ..RunFilter::default()
        };
        let mut found = Vec::new();
        loop {
            let (page, next) = self.runs.list(&filter, limit).await.unwrap();
            found.extend(page.into_iter().map(|run| run.record.id));
            if next.is_none() {
                return found;
            }
            filter.before = next;
        }
    }

    /// Puts a `Forget` of another run into the mailbox: what lies there before it is sent before.
    async fn mark(&self) -> RunId {
        let mark = random_id();
        let seat = self.shared.seat_of(&Target::Local).unwrap();
        let command = crate::session::seat::Command::Forget(mark);
        seat.send(command).await.unwrap();
        mark
    }

    async fn end(self) {
        self.shared.tasks.shut_down(PATIENCE).await;
        self.shared.store.close().await;
    }
}

/// The keeper of this machine, played.
struct Keeper(DuplexStream);

impl Keeper {
    async fn hear(&mut self) -> ToKeeper {
        let read = async {
            let length = self.0.read_u32().await.unwrap();
            let mut frame = vec![0; length as usize];
            self.0.read_exact(&mut frame).await.unwrap();
            Codec::Postcard.decode(&frame).unwrap()
        };
        let heard = tokio::time::timeout(PATIENCE, read).await;
        heard.expect("the gateway says nothing")
    }

    /// Returns the next message that is no acknowledgement.
    async fn hear_word(&mut self) -> ToKeeper {
        loop {
            match self.hear().await {
                ToKeeper::Ack { .. } => {}
                word => return word,
            }
        }
    }

    async fn hear_start(&mut self) -> RunId {
        match self.hear_word().await {
            ToKeeper::Start { run_id, .. } => run_id,
            other => panic!("{other:?}"),
        }
    }

    async fn hear_forget(&mut self) -> RunId {
        match self.hear_word().await {
            ToKeeper::Forget { run_id } => run_id,
            other => panic!("{other:?}"),
        }
    }

    async fn say(&mut self, message: FromKeeper) {
        let bytes = Codec::Postcard.encode(&message).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        self.0.write_u32(length).await.unwrap();
        self.0.write_all(&bytes).await.unwrap();
    }

    async fn say_started(&mut self, run_id: RunId) {
        self.say(FromKeeper::Started { run_id, pid: 7 }).await;
    }

    async fn say_output(&mut self, run_id: RunId, bytes: &Bytes) {
        self.say(FromKeeper::Output {
            run_id,
            stream: Stream::Stdout,
            offset: 0,
            bytes: Payload(bytes.clone()),
        })
        .await;
    }

    async fn say_ended(&mut self, run_id: RunId, stdout: usize) {
        let ending = Ending {
            outcome: Outcome::Exited,
            reason: None,
            status: Some(ExitStatus::Code(5)),
            detail: String::new(),
            duration_ms: 3,
            descendants_may_survive: false,
        };
        self.say(FromKeeper::Ended {
            run_id,
            ending: Box::new(ending),
            totals: totals(stdout),
        })
        .await;
    }
}

/// Does something as far as it comes without waiting, and leaves it there.
async fn as_far_as_it_comes(future: impl Future) {
    let mut future = Box::pin(future);
    let polled =
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending()));
    assert!(polled.await, "it had nothing to wait for");
}

/// Waits until a look finds something.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, found).await;
    found.expect("what was waited for did not come")
}

fn totals(stdout: usize) -> Totals {
    Totals {
        stdout: stdout as u64,
        stderr: 0,
    }
}

fn request() -> RunRequest {
    RunRequest::new(Command::Shell("true".to_owned())).on("local")
}

fn keyed() -> RunRequest {
    RunRequest {
        idempotency_key: Some("key".to_owned()),
        ..request()
    }
}

/// The row that `request` would make.
fn row_of(bench: &Bench, request: &RunRequest) -> NewRun {
    let rules = PlaceRules {
        name: "local",
        timeout_max: None,
        timeout_default: None,
        env_allow: &[],
    };
    let spec = request::spec_of(request, &rules).unwrap();
    let key = RunKey {
        principal: "operator".to_owned(),
        key: request.idempotency_key.clone().unwrap(),
    };
    NewRun {
        id: key.run_id(),
        key: Some(key),
        requested_by: "operator".to_owned(),
        digest: request::digest_of(None, &spec, &request.stdin),
        target: Target::Local,
        shown: "local".to_owned(),
        spec,
        stage: RunStage::Starting,
        incarnation: bench.shared.roster.incarnation(),
        boot_id: Some(BOOT),
        journal_id: Some(JOURNAL),
        created_at: bench.shared.clock.now(),
        asked: bench.shared.outputs.moment_of_boot(),
    }
}

#[tokio::test]
async fn an_ending_that_cannot_be_written_is_told_and_the_next_process_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(request());
    let id = keeper.hear_start().await;
    let mut handle = started.await.unwrap();
    // More than the free room of any page, and less than makes a file.
    let output = Bytes::from(vec![b'x'; 50_000]);
    keeper.say_started(id).await;
    keeper.say_output(id, &output).await;
    crate::store::testing::fill(&bench.shared.store).await;
    keeper.say_ended(id, output.len()).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    let ending = record.ending.clone().unwrap();
    assert_eq!(ending.status, Some(ExitStatus::Code(5)));
    assert_ne!(bench.stage(id).await, RunStage::Ended, "the disk is full");
    assert_eq!(bench.listed(RunStage::Ended, 1).await, [id]);
    assert_eq!(bench.listed(RunStage::Running, 1).await, []);
    let mark = bench.mark().await;
    assert_eq!(
        keeper.hear_forget().await,
        mark,
        "it is still to be written"
    );
    bench.end().await;

    let mut bench = Bench::in_dir(dir.path()).await;
    assert_ne!(bench.stage(id).await, RunStage::Ended);
    let summary = RunSummary {
        run_id: id,
        digest: record.digest,
        journal_id: JOURNAL,
        state: RunState::Ended,
        totals: totals(output.len()),
        stdin: 0,
    };
    let mut keeper = bench.keeper(vec![summary]).await;
    let resumed = keeper.hear_word().await;
    assert!(
        matches!(resumed, ToKeeper::Resume { run_id, stdout: 0, .. } if run_id == id),
        "{resumed:?}"
    );
    keeper.say_output(id, &output).await;
    keeper.say_ended(id, output.len()).await;
    assert_eq!(keeper.hear_forget().await, id);
    let row = bench.shared.store.run(id).await.unwrap().unwrap();
    assert_eq!((row.stage, row.ending), (RunStage::Ended, Some(ending)));
    assert_eq!(row.totals, totals(output.len()));
    bench.end().await;
}

#[tokio::test]
async fn a_run_ends_whole_when_its_asker_has_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let started = bench.start(request());
    let id = keeper.hear_start().await;
    let mut handle = started.await.unwrap();
    let waiting = bench.shared.tasks.spawn(async move { handle.wait().await });
    keeper.say_started(id).await;
    keeper.say_output(id, &Bytes::from_static(b"hi")).await;
    keeper.say_ended(id, 2).await;
    waiting.abort();
    assert_eq!(keeper.hear_forget().await, id);
    let row = bench.shared.store.run(id).await.unwrap().unwrap();
    assert_eq!((row.stage, row.totals), (RunStage::Ended, totals(2)));
    let heads = bench.shared.store.run_heads(id).await.unwrap();
    assert_eq!(&heads.stdout[..], b"hi");
    bench.end().await;
}

#[tokio::test]
async fn a_run_starts_although_its_asker_leaves_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    {
        let runs = bench.runs.clone();
        let start = runs.start(keyed(), &Principal::Operator);
        // The row is on its way.
        as_far_as_it_comes(start).await;
    }
    let id = keeper.hear_start().await;
    let again = bench.start(keyed()).await.unwrap();
    assert_eq!(again.id(), id);
    keeper.say_started(id).await;
    keeper.say_ended(id, 0).await;
    assert_eq!(keeper.hear_forget().await, id);
    bench.end().await;
}

#[tokio::test]
async fn a_repeated_request_sends_a_run_whose_row_nobody_took_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let new = row_of(&bench, &keyed());
    let (id, by) = (new.id, Actor::operator());
    bench.shared.store.create_run(new, &by).await.unwrap();
    let mut handle = bench.start(keyed()).await.unwrap();
    assert!(handle.existed());
    assert_eq!(keeper.hear_start().await, id);
    keeper.say_started(id).await;
    keeper.say_ended(id, 0).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    assert_eq!(record.ending.as_ref().unwrap().outcome, Outcome::Exited);
    bench.end().await;
}

#[tokio::test]
async fn a_start_that_never_left_goes_to_the_next_boot_of_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    // Its keeper is gone when the row is written, and another boot answers.
    let mut handle = bench.create_keyed().await;
    let id = handle.id();
    let mut keeper = bench.keeper_of(OTHER_BOOT, Vec::new()).await;
    assert_eq!(keeper.hear_start().await, id);
    keeper.say_started(id).await;
    keeper.say_ended(id, 0).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    assert_eq!(record.ending.as_ref().unwrap().outcome, Outcome::Exited);
    bench.end().await;
}

#[tokio::test]
async fn a_start_that_never_left_begins_within_30_seconds_or_not_at_all() {
    for (seconds, begins) in [(29, true), (31, false)] {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::in_dir(dir.path()).await;
        let mut handle = bench.create_keyed().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
        let mut keeper = bench.keeper_of(OTHER_BOOT, Vec::new()).await;
        if begins {
            assert_eq!(keeper.hear_start().await, handle.id());
        } else {
            let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
            let ending = record.ending.as_ref().unwrap();
            assert_eq!(ending.outcome, Outcome::FailedToStart);
            assert_eq!(ending.reason, Some(Reason::NotStarted));
            let mark = bench.mark().await;
            assert_eq!(keeper.hear_forget().await, mark, "nothing was started");
        }
        bench.end().await;
    }
}

#[tokio::test]
async fn a_run_that_is_cancelled_before_its_start_has_left_never_starts() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    // Its keeper is gone when the row is written, and back when it is cancelled.
    let mut handle = bench.create_keyed().await;
    let cancel = bench
        .runs
        .cancel(handle.id(), None, &Principal::Operator)
        .await;
    assert!(
        cancel.unwrap().record.ending.is_none(),
        "nobody has ended it"
    );
    let mut keeper = bench.keeper(Vec::new()).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    let ending = record.ending.as_ref().unwrap();
    assert_eq!((ending.outcome, ending.status), (Outcome::Cancelled, None));
    assert_eq!(record.started_at, None);
    let mark = bench.mark().await;
    assert_eq!(keeper.hear_forget().await, mark, "nothing was sent");
    bench.end().await;
}

#[tokio::test]
async fn a_start_that_left_is_lost_with_the_boot_that_may_have_obeyed_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let mut handle = bench.start(keyed()).await.unwrap();
    keeper.hear_start().await;
    drop(keeper);
    while bench.shared.seat_of(&Target::Local).is_some() {
        tokio::task::yield_now().await;
    }
    let _keeper = bench.keeper_of(OTHER_BOOT, Vec::new()).await;
    let record = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap();
    let ending = record.ending.as_ref().unwrap();
    assert_eq!(ending.outcome, Outcome::Lost);
    assert_eq!(ending.reason, Some(Reason::NodeRebooted));
    bench.end().await;
}

#[tokio::test]
async fn a_run_that_its_keeper_lists_and_whose_row_nobody_took_up_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let new = row_of(&bench, &keyed());
    let (id, digest) = (new.id, new.digest);
    let by = Actor::operator();
    bench.shared.store.create_run(new, &by).await.unwrap();
    let summary = RunSummary {
        run_id: id,
        digest,
        journal_id: JOURNAL,
        state: RunState::Running { pid: 7 },
        totals: totals(0),
        stdin: 0,
    };
    let mut keeper = bench.keeper(vec![summary]).await;
    let resumed = keeper.hear_word().await;
    assert!(
        matches!(resumed, ToKeeper::Resume { run_id, .. } if run_id == id),
        "{resumed:?}"
    );
    bench
        .runs
        .cancel(id, None, &Principal::Operator)
        .await
        .unwrap();
    let cancel = keeper.hear_word().await;
    assert!(
        matches!(cancel, ToKeeper::Cancel { run_id, .. } if run_id == id),
        "{cancel:?}"
    );
    bench.end().await;
}

#[tokio::test]
async fn a_list_by_state_goes_by_what_is_known_and_not_by_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::in_dir(dir.path()).await;
    let mut keeper = bench.keeper(Vec::new()).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let started = bench.start(request());
        ids.push(keeper.hear_start().await);
        started.await.unwrap();
    }
    for id in [ids[1], ids[3]] {
        let mut seen = bench.shared.table.get(id).unwrap().watch();
        keeper.say_started(id).await;
        let running = seen.wait_for(|record| record.stage == RunStage::Running);
        tokio::time::timeout(PATIENCE, running)
            .await
            .unwrap()
            .unwrap();
    }
    for limit in [1, 2, 10] {
        let running = bench.listed(RunStage::Running, limit).await;
        assert_eq!(running, [ids[3], ids[1]]);
        let starting = bench.listed(RunStage::Starting, limit).await;
        assert_eq!(starting, [ids[4], ids[2], ids[0]]);
        assert_eq!(bench.listed(RunStage::Ended, limit).await, []);
    }
    bench.end().await;
}

#[tokio::test]
async fn a_follower_whose_run_is_let_go_of_hears_the_end_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::in_dir(dir.path()).await;
    let row = row_of(&bench, &keyed());
    let by = Actor::operator();
    bench
        .shared
        .store
        .create_run(row.clone(), &by)
        .await
        .unwrap();
    let record = bench.shared.store.run(row.id).await.unwrap().unwrap();
    let run = Arc::new(bench.shared.live_of(record).unwrap());
    let mut follow = handle(&run, false).follow(0, 0);
    drop(run);
    let next = tokio::time::timeout(PATIENCE, follow.next()).await.unwrap();
    assert_eq!(next, None);
    bench.end().await;
}
