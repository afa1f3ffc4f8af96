//! What dispatcher, sessions and endings share: the runs that are under way, and the rooms around.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use moltis_proto::code::CloseCode;
use moltis_proto::run::{Outcome, Reason, RunState, RunSummary};
use moltis_proto::telemetry::Sample;
use moltis_proto::{DeviceId, RunId};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::error::{ReadError, RunError};
use super::handle::RunHandle;
use super::live::LiveRun;
use super::request::digest_of;
use super::table::{Spot, Table};
use super::{StdinSource, device_of, ending};
use crate::clock::Clock;
use crate::events::{Event, Events};
use crate::metrics::{Count, RunCounts};
use crate::output::{EndedOutput, Outputs};
use crate::pairing::PairingDesk;
use crate::roster::Roster;
use crate::session::seat::{Command, Seat};
use crate::session::{chain, moment};
use crate::store::{BootMoment, RunRecord, RunStage, Store, StoreError, Target};
use crate::tasks::Tasks;
use crate::telemetry::{self, History, HourRow, Point};

/// How long the note that a run has started may wait: one that ends before needs none.
const NOTE_AFTER: Duration = Duration::from_millis(100);

/// What rooms around a run share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) outputs: Outputs,
    pub(crate) roster: Roster,
    pub(crate) events: Events,
    pub(crate) tasks: Tasks,
    pub(crate) clock: Clock,
    pub(crate) desk: PairingDesk,
    pub(crate) table: Table,
    local_seat: RwLock<Option<Arc<Seat>>>,
    history: Mutex<Recorded>,
    counts: RunCounts,
    /// Connections closed because the node broke the rules.
    faults: Count,
    /// Runs that have started, and whose rows do not say so yet.
    to_note: Mutex<Vec<(Instant, Arc<LiveRun>)>>,
    to_note_woken: Notify,
    /// See [`Shared::take_owed`].
    is_owed: AtomicBool,
}

/// Telemetry that is not written yet.
#[derive(Debug, Default)]
struct Recorded {
    hours: History,
    /// Hours that have ended.
    finished: Vec<HourRow>,
}

/// Which hours to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// Those whose minute it is.
    Due,
    /// All with news.
    All,
}

/// Returns the time between two moments of one boot; `None` where they are not, or where its clock has
/// gone back, as in a machine that was put back to an earlier state.
fn age(asked: Option<BootMoment>, now: Option<BootMoment>) -> Option<Duration> {
    let (asked, now) = asked.zip(now)?;
    if asked.boot_id != now.boot_id {
        return None;
    }
    now.boottime.checked_sub(asked.boottime)
}

/// A run that was found.
#[derive(Debug)]
pub(crate) enum Met {
    /// It is under way.
    Live(Arc<LiveRun>),
    /// It is over: this is its row.
    Ended(Box<RunRecord>),
}

impl Met {
    /// Returns its record as it is now.
    pub(crate) fn record(&self) -> Arc<RunRecord> {
        match self {
            Self::Live(run) => run.record(),
            Self::Ended(row) => Arc::new((**row).clone()),
        }
    }
}

impl Shared {
    pub(crate) fn new(
        store: Store,
        outputs: Outputs,
        roster: Roster,
        events: Events,
        tasks: Tasks,
        clock: Clock,
        desk: PairingDesk,
    ) -> Arc<Self> {
        let shared = Arc::new(Self {
            store,
            outputs,
            roster,
            events,
            tasks,
            clock,
            desk,
            table: Table::default(),
            local_seat: RwLock::default(),
            history: Mutex::default(),
            counts: RunCounts::default(),
            faults: Count::default(),
            to_note: Mutex::default(),
            to_note_woken: Notify::new(),
            is_owed: AtomicBool::new(false),
        });
        shared.tasks.spawn(note_starts(Arc::clone(&shared)));
        shared
    }

    /// Takes up what an earlier process left open: runs, and the hour of telemetry.
    pub(crate) async fn load(&self) -> Result<(), ReadError> {
        let rows = self.store.all_open_runs().await?;
        let is_starting = |row: &RunRecord| row.stage == RunStage::Starting;
        // A start that goes out again must not outlive its row.
        let is_on_disk = rows.iter().any(is_starting) && self.store.synced_so_far().await.is_ok();
        for row in rows {
            let Spot::Free(place) = self.table.spot(row.id).await else {
                continue;
            };
            let (id, asked) = (row.id, row.asked);
            match self.live_of(row) {
                Ok(run) => {
                    let now = self.outputs.moment_of_boot().filter(|_| is_on_disk);
                    drop(place.fill(run.asked_before(age(asked, now))));
                }
                // The others are not to wait for it: who asks for it, and its node, meet the error.
                Err(error) => {
                    tracing::error!(run.id = %id, error = %chain(&error), "a run cannot be taken up");
                }
            }
        }
        let hour = self.clock.now().as_second().div_euclid(3600);
        for row in self.store.telemetry_of_hour(hour).await? {
            self.history().hours.resume(row);
        }
        Ok(())
    }

    /// Finds a run. An open row that nobody has is taken up: whoever waits for its end waits for
    /// something, and its node's next connection settles it.
    pub(crate) async fn meet(&self, id: RunId) -> Result<Option<Met>, ReadError> {
        if let Some(run) = self.table.get(id) {
            return Ok(Some(Met::Live(run)));
        }
        match self.store.run(id).await? {
            None => return Ok(None),
            Some(row) if row.stage == RunStage::Ended => return Ok(Some(Met::Ended(row.into()))),
            Some(_) => {}
        }
        let place = match self.table.spot(id).await {
            Spot::Live(run) => return Ok(Some(Met::Live(run))),
            Spot::Free(place) => place,
        };
        // It may have ended before the place was ours; while it is, nothing changes.
        let met = match self.store.run(id).await? {
            None => return Ok(None),
            Some(row) if row.stage == RunStage::Ended => Met::Ended(row.into()),
            Some(row) => {
                tracing::warn!(run.id = %id, "a run was open, and nobody had it; it is taken up");
                Met::Live(place.fill(self.live_of(row)?))
            }
        };
        Ok(Some(met))
    }

    /// Returns the run of an open row.
    pub(super) fn live_of(&self, row: RunRecord) -> Result<LiveRun, ReadError> {
        let output = self.outputs.run(row.id)?;
        // Where the disk fails nothing is started, and least of all what may not outlast a power cut.
        let ours = row.incarnation == self.roster.incarnation() && self.store.failure().is_none();
        let run = LiveRun::new(row, ours, output, moment::now());
        if let Some(stdin) = run.output.kept_stdin() {
            // What a power cut has spoiled is not what was asked for.
            if is_of(&run.record(), &stdin) {
                run.wishes().stdin.fill(stdin);
            } else if run.record().spec.is_none() {
                tracing::warn!(run.id = %run.id, "stdin is kept of a run that nobody here has asked for: whose it is cannot be told, so it is not given on");
            } else {
                tracing::error!(run.id = %run.id, "the kept stdin of a run is spoiled; the same request under its key brings it again");
            }
        }
        Ok(run)
    }

    /// The node has all of a run's stdin, or nobody wants it any more.
    pub(crate) fn let_stdin_go(&self, run: &LiveRun) {
        if !run.output.has_stdin() {
            return;
        }
        let output = Arc::clone(&run.output);
        let system = self.outputs.system().clone();
        self.tasks.spawn(async move {
            let gone = system.blocking(move || output.drop_stdin()).await;
            gone.ok(); // the runtime is shutting down: it goes with the run
        });
    }

    /// Returns what an asker holds of a run.
    pub(super) async fn handle(&self, met: Met) -> Result<RunHandle, ReadError> {
        match met {
            Met::Live(run) => Ok(super::handle(&run, true)),
            Met::Ended(row) => self.ended(*row).await,
        }
    }

    /// Returns what an asker holds of an ended run.
    pub(super) async fn ended(&self, row: RunRecord) -> Result<RunHandle, ReadError> {
        let ended = self.ended_output(&row).await?;
        let output = self.outputs.ended(row.id, &ended).await?;
        Ok(RunHandle::of_ended(row, output))
    }

    /// Returns what the row of an ended run says of its output.
    pub(super) async fn ended_output(&self, row: &RunRecord) -> Result<EndedOutput, ReadError> {
        Ok(EndedOutput {
            totals: row.totals,
            heads: self.store.run_heads(row.id).await?,
            freed: row.output_freed_at.is_some(),
        })
    }

    /// Returns the connection of a place.
    pub(crate) fn seat_of(&self, target: &Target) -> Option<Arc<Seat>> {
        match target {
            Target::Local => self
                .local_seat
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            Target::Node(device) => self.roster.seat(*device),
            Target::Ssh(_) => None,
        }
    }

    /// Gives the seat of this machine to its newest connection. The one before is told to close.
    pub(crate) fn take_local_seat(&self, seat: &Arc<Seat>) {
        let before = self.local_seat().replace(Arc::clone(seat));
        if let Some(before) = before {
            before.close(CloseCode::Superseded);
        }
    }

    /// A connection to this machine's keepers has ended. Its seat is free, unless a newer one has
    /// it.
    pub(crate) fn leave_local_seat(&self, seat: &Arc<Seat>) {
        self.local_seat()
            .take_if(|sitting| Arc::ptr_eq(sitting, seat));
    }

    fn local_seat(&self) -> RwLockWriteGuard<'_, Option<Arc<Seat>>> {
        self.local_seat
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the connection look at what is wished for a run. One that is gone does so when it is
    /// back.
    pub(crate) async fn look(&self, run: &Arc<LiveRun>) {
        let Some(seat) = self.seat_of(&run.target()) else {
            return;
        };
        if run.wants_look() && seat.send(Command::Look(Arc::clone(run))).await.is_err() {
            run.looks();
        }
    }

    /// A connection has ended. Runs that are over and whose output came again on it are let be as
    /// their rows have them: who follows one hears its end, and the next list finds what is missing.
    pub(crate) fn let_be(&self, seat: &Seat) {
        let mut has_more = false;
        for run in self.table.at(&seat.sitter.target) {
            if run.is_over() && !run.is_owned_behind(seat.sitter.epoch) && run.take_ending() {
                run.output.finish(run.record().totals);
                self.table.remove(&run);
                has_more = true;
            }
        }
        if has_more && seat.sitter.target == Target::Local {
            self.is_owed.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether a keeper of this machine has more of a run that is over, which the connection
    /// that it came by did not live to bring. Whoever asks sees to it: the next one is told no.
    pub(crate) fn take_owed(&self) -> bool {
        self.is_owed.swap(false, Ordering::Relaxed)
    }

    /// A node has started a run.
    pub(crate) fn note_started(&self, run: &Arc<LiveRun>, pid: Option<u32>) {
        if run.record().stage != RunStage::Starting {
            return;
        }
        let at = self.clock.now();
        run.update(|record| {
            record.stage = RunStage::Running;
            record.started_at = Some(at);
            record.pid = pid;
        });
        self.events.send(Event::RunStarted(run.id));
        self.counts.started.one();
        if let Some(took) = run.since_asked() {
            self.counts.start_time.note(took);
        }
        let due = Instant::now() + NOTE_AFTER;
        let mut to_note = self.to_note.lock().unwrap_or_else(PoisonError::into_inner);
        to_note.push((due, Arc::clone(run)));
        if to_note.len() == 1 {
            self.to_note_woken.notify_one();
        }
    }

    /// A node lists a run that is open here.
    pub(crate) fn note_listed(&self, run: &Arc<LiveRun>, summary: &RunSummary) {
        let pid = match summary.state {
            RunState::Running { pid } => Some(pid),
            RunState::Ended => None,
        };
        if pid.is_some() {
            self.note_started(run, pid);
        }
        if run.record().journal_id != Some(summary.journal_id) {
            run.update(|record| record.journal_id = Some(summary.journal_id));
        }
    }
}

/// Returns whether a run was asked for with these bytes.
fn is_of(record: &RunRecord, stdin: &Bytes) -> bool {
    let stdin = StdinSource::Bytes(stdin.clone());
    let device = device_of(&record.target);
    let spec = record.spec.as_ref();
    spec.is_some_and(|spec| digest_of(device, spec, &stdin) == record.digest)
}

/// Writes down which runs have started, a little later: most end before, and need no note.
async fn note_starts(shared: Arc<Shared>) {
    let stop = shared.tasks.stop().clone();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.to_note_woken.notified() => {}
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(NOTE_AFTER) => {}
        }
        loop {
            let due: Vec<_> = {
                let mut to_note = shared
                    .to_note
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *to_note)
            };
            if due.is_empty() {
                break;
            }
            for (at, run) in due {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep_until(at) => {}
                }
                let record = run.record();
                if run.is_ending() || record.stage != RunStage::Running {
                    continue;
                }
                let started_at = record.started_at.unwrap_or(record.created_at);
                let noted = shared
                    .store
                    .mark_started(run.id, record.pid.unwrap_or(0), started_at)
                    .await;
                if let Err(error) = noted {
                    tracing::warn!(run.id = %run.id, %error, "the start of a run cannot be noted");
                }
            }
        }
    }
}

impl Shared {
    /// Returns whether a device may not connect any more. Asks the desk itself, which knows first.
    pub(crate) fn is_revoked(&self, device: DeviceId) -> bool {
        let record = self.desk.node(device);
        record.is_none_or(|record| record.revoked_at.is_some())
    }

    /// Keeps a node's sample, as far as a machine can have it: the last, and its figures in the
    /// history.
    pub(crate) fn keep_sample(&self, device: DeviceId, mut sample: Sample) {
        telemetry::make_plausible(&mut sample);
        let at = self.clock.now();
        {
            let mut history = self.history();
            let finished = history.hours.record(device, &sample, at);
            history.finished.extend(finished);
        }
        self.roster.set_sample(device, at, sample);
    }

    /// Returns a node's points since `since`, oldest first.
    pub(crate) async fn history_of(
        &self,
        device: DeviceId,
        since: Timestamp,
    ) -> Result<Vec<Point>, StoreError> {
        let current = self.history().hours.current(device);
        History::read(&self.store, device, current, since).await
    }

    /// Returns the hours to write now: those that are due, or at the end all.
    pub(crate) fn hours_to_write(&self, which: Write) -> Vec<HourRow> {
        let mut history = self.history();
        let mut rows = std::mem::take(&mut history.finished);
        rows.extend(match which {
            Write::Due => history.hours.due(self.clock.now()),
            Write::All => history.hours.all(),
        });
        rows
    }

    /// Forgets the history of a node that is not known any more.
    pub(crate) fn forget_history(&self, device: DeviceId) {
        self.history().hours.forget(device);
    }

    fn history(&self) -> MutexGuard<'_, Recorded> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what was left open at nodes that were revoked or forgotten, and whose runs a crash kept
    /// from being ended then.
    pub(crate) fn end_all_of_unwelcome(self: &Arc<Self>) {
        for target in self.table.targets() {
            if let Target::Node(device) = target
                && self.is_revoked(device)
            {
                self.end_all_of_revoked(device);
            }
        }
    }

    /// Ends all runs of a node that may not come back: nothing will ever be heard of them.
    pub(crate) fn end_all_of_revoked(self: &Arc<Self>, device: DeviceId) {
        for run in self.table.at(&Target::Node(device)) {
            let mut ending = ending::found(Outcome::Lost, Reason::NodeRevoked);
            // Nobody will tell its keeper: what it had started goes on there.
            ending.descendants_may_survive = run.record().started_at.is_some();
            self.end(&run, ending, ending::Source::Known);
        }
    }

    /// Does what must not stop half-way, whoever asked for it stays or not.
    pub(super) async fn to_the_end<T: Send + 'static>(
        &self,
        deed: impl Future<Output = Result<T, RunError>> + Send + 'static,
    ) -> Result<T, RunError> {
        match self.tasks.spawn(deed).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_ended_with_the_runtime) => Err(StoreError::Closed.into()),
            },
        }
    }

    /// Returns what is counted of runs.
    pub(crate) fn counts(&self) -> &RunCounts {
        &self.counts
    }

    /// Counts a node that broke the rules.
    pub(crate) fn count_fault(&self) {
        self.faults.one();
    }

    /// Returns how many did.
    #[cfg(feature = "metrics")]
    pub(crate) fn faults(&self) -> &Count {
        &self.faults
    }

    /// Returns how many commands wait in the mailboxes of all who are here.
    #[cfg(feature = "metrics")]
    pub(crate) fn commands_waiting(&self) -> usize {
        let nodes = self.roster.seats();
        let local = self.seat_of(&Target::Local);
        nodes.iter().chain(&local).map(|seat| seat.waiting()).sum()
    }
}
