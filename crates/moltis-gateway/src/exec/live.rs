//! One run that is not over, or whose node has not been told to forget it: what all who have to do
//! with it share.
//!
//! The record that everybody sees is swapped whole and can be watched. What askers wish for lies
//! under a lock that nobody holds across an await, until the connection's task looks at it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use moltis_proto::RunId;
use moltis_proto::handshake::Epoch;
use moltis_proto::limits::STDIN_WINDOW_BYTES;
use moltis_proto::liveness::Moment;
use moltis_proto::run::reconcile::{OpenRow, Progress, Row};
use moltis_proto::run::{RunState, RunSummary, TtySize};
use tokio::sync::{Notify, watch};

use super::stdin::StdinQueue;
use crate::output::RunOutput;
use crate::store::{RunRecord, RunStage, StoreError, Target};

/// Signals that wait for one run, at most.
pub(crate) const SIGNALS_MAX: usize = 16;

/// What askers want of a run, until its connection's task has sent it.
#[derive(Debug)]
pub(crate) struct Wishes {
    pub(crate) cancel_grace: Option<Duration>,
    pub(crate) size: Option<TtySize>,
    pub(crate) signals: Vec<i32>,
    pub(crate) stdin: StdinQueue,
}

/// A run that is under way.
#[derive(Debug)]
pub(crate) struct LiveRun {
    pub(crate) id: RunId,
    /// When this process made or found it.
    pub(crate) born: Moment,
    /// When this process was asked for it; `None` where it found it.
    asked: Option<Instant>,
    /// Whether this process wrote the row.
    pub(crate) ours: bool,
    /// How long ago it was asked for when it was born here; `None` where nobody knows.
    age_at_birth: Option<Duration>,
    pub(crate) output: Arc<RunOutput>,
    /// Wakes who waits for room in stdin.
    pub(crate) stdin_room: Notify,
    record: watch::Sender<Arc<RunRecord>>,
    wishes: Mutex<Wishes>,
    /// A `Look` lies in a mailbox.
    looked_for: AtomicBool,
    /// Somebody has taken it upon them to end the run: there is one ending.
    ending: AtomicBool,
    /// Why its ending, which is known here alone, could not be written: nobody hears of it before it is.
    unwritten: Arc<OnceLock<StoreError>>,
    /// The connection whose word counts: the counter of its epoch.
    owner: AtomicU32,
    /// Its `Start` has gone to nobody, or to a keeper that was leaving and refused it: it has
    /// provably not started.
    unsent: AtomicBool,
    /// What the node said of a run that its connection has not taken up.
    listed: Mutex<Option<RunSummary>>,
}

impl LiveRun {
    pub(crate) fn new(record: RunRecord, ours: bool, output: Arc<RunOutput>, now: Moment) -> Self {
        // A run that this process has just written has taken no stdin. Of any other its node knows.
        let stdin = if ours && record.stage == RunStage::Starting {
            StdinQueue::new(STDIN_WINDOW_BYTES.into())
        } else {
            StdinQueue::taken_up(STDIN_WINDOW_BYTES.into())
        };
        let wishes = Wishes {
            cancel_grace: record.cancel_requested_at.and(record.cancel_grace),
            size: record.tty_size,
            signals: Vec::new(),
            stdin,
        };
        Self {
            id: record.id,
            born: now,
            asked: None,
            ours,
            age_at_birth: ours.then_some(Duration::ZERO),
            output,
            stdin_room: Notify::new(),
            record: watch::Sender::new(Arc::new(record)),
            wishes: Mutex::new(wishes),
            looked_for: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            unwritten: Arc::default(),
            owner: AtomicU32::new(0),
            unsent: AtomicBool::new(false),
            listed: Mutex::new(None),
        }
    }

    /// This process was asked for it at this time and has just written its row.
    pub(crate) fn asked_at(self, asked: Instant) -> Self {
        Self {
            asked: Some(asked),
            unsent: AtomicBool::new(true),
            ..self
        }
    }

    /// A process of before was asked for it so long ago, and its row is on the disk.
    pub(crate) fn asked_before(self, age: Option<Duration>) -> Self {
        Self {
            age_at_birth: age,
            ..self
        }
    }

    /// Returns the time since this process was asked for it; `None` where it found it.
    pub(crate) fn since_asked(&self) -> Option<Duration> {
        let now = tokio::time::Instant::now().into_std();
        self.asked.map(|asked| now.saturating_duration_since(asked))
    }

    /// Returns whether this word of a node is of this run, and not of another command with its id.
    pub(crate) fn is_told_of_by(&self, summary: &RunSummary) -> bool {
        summary.digest == self.record.borrow().digest
    }

    /// Keeps what the node says of a run until its connection takes it up: an unclaimed one when
    /// somebody claims it.
    pub(crate) fn set_listed(&self, summary: Option<RunSummary>) {
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = summary;
    }

    /// Returns whether the node says that a run is over which was not taken up.
    pub(crate) fn is_listed_as_over(&self) -> bool {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = listed.as_ref();
        listed.is_some_and(|summary| summary.state == RunState::Ended)
    }

    /// Returns what the node last said of a run that was not taken up, once.
    pub(crate) fn take_listed(&self) -> Option<RunSummary> {
        self.listed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Returns the record as it is now.
    pub(crate) fn record(&self) -> Arc<RunRecord> {
        Arc::clone(&self.record.borrow())
    }

    /// Returns a view that hears of every change of the record.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<RunRecord>> {
        self.record.subscribe()
    }

    /// Changes the record.
    pub(crate) fn update(&self, change: impl FnOnce(&mut RunRecord)) {
        self.record
            .send_modify(|record| change(Arc::make_mut(record)));
    }

    pub(crate) fn target(&self) -> Target {
        self.record.borrow().target.clone()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.record.borrow().stage == RunStage::Ended
    }

    /// Returns what askers wish. Held for a few instructions only.
    pub(crate) fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the caller has to put a `Look` into the mailbox: false when one lies there.
    pub(crate) fn wants_look(&self) -> bool {
        !self.looked_for.swap(true, Ordering::AcqRel)
    }

    /// The task looks now: what is wished from here on needs another `Look`.
    pub(crate) fn looks(&self) {
        self.looked_for.store(false, Ordering::Release);
    }

    /// Takes it upon the caller to end the run; false when somebody else has.
    pub(crate) fn take_ending(&self) -> bool {
        !self.ending.swap(true, Ordering::AcqRel)
    }

    /// Returns whether an ending is on its way, or written.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Its ending cannot be written: whoever waits for it waits no longer.
    pub(crate) fn fail(&self, error: StoreError) {
        self.unwritten.set(error).ok(); // the first one is told
        self.record.send_modify(|_| {});
    }

    /// Returns where it stands why the ending cannot be written.
    pub(super) fn unwritten(&self) -> Arc<OnceLock<StoreError>> {
        Arc::clone(&self.unwritten)
    }

    /// Hands the run to a connection: no older one is listened to any more, whatever it still does.
    /// Returns whether it is this connection's, and not a newer one's.
    pub(crate) fn set_owner(&self, epoch: Epoch) -> bool {
        self.owner.fetch_max(epoch.counter, Ordering::SeqCst) <= epoch.counter
    }

    /// A keeper that was leaving has refused it; the next one may be asked.
    pub(crate) fn turn_away(&self) {
        self.unsent.store(true, Ordering::SeqCst);
    }

    /// Returns whether it may go to a keeper that its row does not name: it has provably not
    /// started. The caller owns it (see [`set_owner`](Self::set_owner)) and sends it, or ends it.
    pub(crate) fn take_unsent(&self) -> bool {
        self.unsent.swap(false, Ordering::SeqCst)
    }

    /// Has `Start` go out on this connection. Returns false where a newer one has the run: either
    /// this sees the newer owner, or that one's [`take_unsent`](Self::take_unsent) sees this.
    pub(crate) fn may_send(&self, epoch: Epoch) -> bool {
        self.unsent.store(false, Ordering::SeqCst);
        self.set_owner(epoch)
    }

    /// Returns whether this connection's word counts.
    pub(crate) fn is_owned_by(&self, epoch: Epoch) -> bool {
        self.owner.load(Ordering::SeqCst) == epoch.counter
    }

    /// Returns whether a connection behind this one has it.
    pub(crate) fn is_owned_behind(&self, epoch: Epoch) -> bool {
        self.owner.load(Ordering::SeqCst) > epoch.counter
    }

    /// Returns the row as the table of reconciliation sees it. A sleep of this machine makes it older:
    /// what was asked for before is not started behind it.
    pub(crate) fn row(&self, now: Moment) -> Row {
        let record = self.record.borrow();
        let progress = match record.stage {
            RunStage::WaitingApproval => return Row::WaitingApproval,
            RunStage::Starting => Progress::Starting,
            // One that is over, and whose output comes again, is drained like one that runs.
            RunStage::Running | RunStage::Ended => Progress::Running,
        };
        if self.is_ending() {
            return Row::Ended;
        }
        // A row that was never sent has no boot: only one that waits for approval.
        let (Some(boot_id), Some(journal_id)) = (record.boot_id, record.journal_id) else {
            return Row::WaitingApproval;
        };
        Row::Open(OpenRow {
            progress,
            boot_id,
            journal_id,
            same_incarnation: self.ours,
            age: self.age_at_birth.map(|age| age + now.since(self.born)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::create::record_of;
    use crate::output::{OutputLimits, Outputs};
    use crate::store::testing::run;

    #[tokio::test]
    async fn a_sleep_of_the_gateways_machine_makes_a_start_older() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), None, OutputLimits::default()).unwrap();
        let (record, output) = (record_of(run(1)), outputs.run(run(1).id).unwrap());
        let born = Moment {
            monotonic: tokio::time::Instant::now().into_std(),
            boottime: Duration::from_hours(1),
        };
        let run = LiveRun::new(record, true, output, born);
        let [second, night] = [Duration::from_secs(1), Duration::from_hours(8)];
        for (ran, passed, age) in [(second, second, second), (second, night, night)] {
            let now = Moment {
                monotonic: born.monotonic + ran,
                boottime: born.boottime + passed,
            };
            let Row::Open(row) = run.row(now) else {
                panic!("it is not over");
            };
            assert_eq!(row.age, Some(age));
        }
    }
}
