//! The runs of one connected peer: messages of its keeper in, messages for its keeper out.
//!
//! The same for a node's session and for the keeper of this machine. The driver around it moves
//! frames; nothing here waits. Each message is held against what this connection was given: a
//! message about another's run, a second ending, an offset that lies are a [`Violation`], and the
//! driver closes.
//!
//! Stored bytes are acknowledged as [`Inbox`] says; the driver calls [`Pump::handle_stored`] when
//! the store has moved on, and [`Pump::handle_timeout`] when [`Pump::poll_timeout`] has come.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use moltis_proto::code::RunRefusal;
use moltis_proto::limits::RUNS_MAX;
use moltis_proto::message::Windows;
use moltis_proto::run::inbox::{Fresh, Inbox, InboxError};
use moltis_proto::run::reconcile::{self, Action, NodeSide, Row};
use moltis_proto::run::{
    Ending, ExitStatus, GapReason, Outcome, RunSummary, Stream, Totals, TtySize,
};
use moltis_proto::{BootId, FromKeeper, JournalId, Payload, RunId, ToKeeper};

use super::ending;
use super::live::LiveRun;
use super::request::millis;
use super::stdin::StdinSent;
use super::{Shared, Unknown};
use crate::events::Event;
use crate::output::OutputError;
use crate::session::chain;
use crate::session::seat::{Command, Ready, Seat};
use crate::store::Target;
use tokio::sync::Notify;

/// Messages that wait for the socket before the mailbox is left alone.
const OUT_MAX: usize = 256;

/// Journals that one machine may name: one for each keeper that still holds runs.
const JOURNALS_MAX: usize = 256;

/// Times that a `Start` which met a leaving keeper is sent anew.
const START_TRIES_MAX: u8 = 3;

/// How a peer broke the rules. It is told `Protocol`, and its connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("a run message came before the list of runs was complete")]
    BeforeRuns,
    #[error("the list of runs contradicts itself, or has no end")]
    RunsList,
    #[error("a message about run {0}, which this connection was not given")]
    NotYours(RunId),
    #[error("a message about run {run_id} that cannot come now: {what}")]
    OutOfTurn { run_id: RunId, what: &'static str },
    #[error("run {run_id}: {source}")]
    Output {
        run_id: RunId,
        #[source]
        source: InboxError,
    },
    #[error("{found} bytes of output are under way on this connection, and {max} may be")]
    ConnectionWindow { found: u64, max: u64 },
    #[error("run {0} is said to have taken stdin that was never sent")]
    Stdin(RunId),
    #[error("the ending of run {0} contradicts itself")]
    Ending(RunId),
    #[error("output of run {0} was not taken")]
    NotTaken(RunId),
}

/// What this connection was given.
#[derive(Debug)]
struct Attached {
    run: Arc<LiveRun>,
    inbox: Inbox,
    stdin: StdinSent,
    phase: Phase,
    /// `Start` went out on this connection so often.
    starts: u8,
    cancel_sent: bool,
    size_sent: Option<TtySize>,
    /// Where it waits for its bytes to be acknowledged.
    queue: Queue,
    /// It stands in the turn of those with stdin.
    in_turn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `Start` is on its way; the answer is `Started`, `State` or `Refused`.
    AwaitStart,
    /// Output and the ending come.
    Flowing,
    /// The ending has come.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    None,
    /// In `unacked`, with this deadline.
    Unacked(Instant),
    /// In `unstored`: the deadline has come, and nothing of it is stored yet.
    Unstored,
}

#[derive(Debug)]
enum List {
    Incomplete {
        boot_id: Option<BootId>,
        journals: Vec<JournalId>,
        runs: Vec<RunSummary>,
    },
    Complete {
        boot_id: BootId,
        journals: Vec<JournalId>,
    },
}

impl List {
    const EMPTY: Self = Self::Incomplete {
        boot_id: None,
        journals: Vec::new(),
        runs: Vec::new(),
    };
}

/// The runs of one connection.
#[derive(Debug)]
pub(crate) struct Pump {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    windows: Windows,
    stored: Arc<Notify>,
    list: List,
    attached: HashMap<RunId, Attached>,
    out: VecDeque<ToKeeper>,
    /// Runs with bytes to acknowledge, each with the deadline that it came in with.
    unacked: VecDeque<(Instant, RunId)>,
    /// Runs whose deadline has come before anything was stored.
    unstored: VecDeque<RunId>,
    stdin_turn: VecDeque<RunId>,
    /// Output under way, of all runs.
    in_flight: u64,
    /// What `in_flight` was when all was last acknowledged for the connection's sake.
    relieved_at: u64,
}

impl Pump {
    /// `stored` is rung when bytes of one of these runs have been stored.
    pub(crate) fn new(
        shared: Arc<Shared>,
        seat: Arc<Seat>,
        windows: Windows,
        stored: Arc<Notify>,
    ) -> Self {
        Self {
            shared,
            seat,
            windows,
            stored,
            list: List::EMPTY,
            attached: HashMap::new(),
            out: VecDeque::new(),
            unacked: VecDeque::new(),
            unstored: VecDeque::new(),
            stdin_turn: VecDeque::new(),
            in_flight: 0,
            relieved_at: 0,
        }
    }

    /// A message has come from the keeper.
    pub(crate) fn handle_message(
        &mut self,
        message: FromKeeper,
        now: Instant,
    ) -> Result<(), Violation> {
        if let FromKeeper::Runs {
            boot_id,
            journals,
            runs,
            last,
        } = message
        {
            return self.handle_runs(boot_id, journals, runs, last, now);
        }
        if !self.is_complete() {
            return Err(Violation::BeforeRuns);
        }
        match message {
            FromKeeper::Output {
                run_id,
                stream,
                offset,
                bytes,
            } => self.handle_output(run_id, stream, offset, &bytes.0, now),
            FromKeeper::Gap {
                run_id,
                stream,
                from,
                to,
                reason,
            } => self.handle_gap(run_id, stream, (from, to), reason, now),
            FromKeeper::Ended {
                run_id,
                ending,
                totals,
            } => self.handle_ended(run_id, *ending, totals),
            FromKeeper::Started { run_id, pid } => self.handle_started(run_id, pid),
            FromKeeper::State { summary } => self.handle_state(&summary),
            FromKeeper::Refused { run_id, code } => self.handle_refused(run_id, code, now),
            FromKeeper::StdinAck {
                run_id,
                offset,
                closed,
            } => self.handle_stdin_ack(run_id, offset, closed),
            FromKeeper::Runs { .. } => Ok(()), // answered above
        }
    }

    /// A command has come from the mailbox.
    pub(crate) fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Start(run) => self.start(&run, now),
            Command::Look(run) => self.look(&run),
            Command::Adopt(run) => self.adopt(&run),
            Command::Forget(run_id) => self.forget(run_id),
        }
    }

    /// The store has moved on.
    pub(crate) fn handle_stored(&mut self, now: Instant) {
        for _ in 0..self.unacked.len() {
            let Some((due, run_id)) = self.unacked.pop_front() else {
                break;
            };
            self.settle_queued(run_id, Queue::Unacked(due), now);
        }
        for _ in 0..self.unstored.len() {
            let Some(run_id) = self.unstored.pop_front() else {
                break;
            };
            self.settle_queued(run_id, Queue::Unstored, now);
        }
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) has come.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while self.poll_timeout().is_some_and(|due| due <= now) {
            let Some((due, run_id)) = self.unacked.pop_front() else {
                break;
            };
            self.settle_queued(run_id, Queue::Unacked(due), now);
        }
    }

    /// Returns when the next acknowledgement is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        // All wait equally long, so the first to come is the first to be due.
        self.unacked.front().map(|(due, _)| *due)
    }

    /// Returns the next message for the keeper.
    pub(crate) fn poll_transmit(&mut self) -> Option<ToKeeper> {
        if let Some(message) = self.out.pop_front() {
            return Some(message);
        }
        while let Some(run_id) = self.stdin_turn.pop_front() {
            let Some(attached) = self.attached.get_mut(&run_id) else {
                continue;
            };
            let chunk = attached.run.wishes().stdin.next(
                &mut attached.stdin,
                self.windows.chunk_bytes_max as usize,
                self.windows.stdin_bytes.into(),
            );
            let Some(chunk) = chunk else {
                attached.in_turn = false;
                continue;
            };
            self.stdin_turn.push_back(run_id);
            return Some(ToKeeper::Stdin {
                run_id,
                offset: chunk.offset,
                bytes: Payload(chunk.bytes),
                eof: chunk.eof,
            });
        }
        None
    }

    /// Returns whether the mailbox may be emptied further.
    pub(crate) fn takes_commands(&self) -> bool {
        self.out.len() < OUT_MAX && self.is_complete()
    }

    /// Returns whether nothing is under way: memory that a busy time has grown may go.
    pub(crate) fn is_idle(&self) -> bool {
        self.attached.is_empty() && self.out.is_empty()
    }

    /// Gives back what a busy time has grown.
    pub(crate) fn shrink(&mut self) {
        self.attached.shrink_to_fit();
        self.out.shrink_to_fit();
        self.unacked.shrink_to_fit();
        self.unstored.shrink_to_fit();
        self.stdin_turn.shrink_to_fit();
    }

    fn is_complete(&self) -> bool {
        matches!(self.list, List::Complete { .. })
    }

    fn attached(&mut self, run_id: RunId) -> Result<&mut Attached, Violation> {
        self.attached
            .get_mut(&run_id)
            .ok_or(Violation::NotYours(run_id))
    }

    // --- the list of runs, and what follows from it ---

    fn handle_runs(
        &mut self,
        boot_id: BootId,
        journals: Vec<JournalId>,
        mut page: Vec<RunSummary>,
        last: bool,
        now: Instant,
    ) -> Result<(), Violation> {
        if self.is_complete() {
            // Another keeper stands behind the link: everything is taken up anew.
            self.detach_all();
        }
        let List::Incomplete {
            boot_id: known_boot,
            journals: known_journals,
            runs,
        } = &mut self.list
        else {
            return Err(Violation::RunsList);
        };
        if journals.is_empty() || journals.len() > JOURNALS_MAX {
            return Err(Violation::RunsList);
        }
        if *known_boot.get_or_insert(boot_id) != boot_id {
            return Err(Violation::RunsList);
        }
        if known_journals.is_empty() {
            *known_journals = journals;
        } else if *known_journals != journals {
            return Err(Violation::RunsList);
        }
        if page
            .iter()
            .any(|summary| !known_journals.contains(&summary.journal_id))
        {
            return Err(Violation::RunsList);
        }
        runs.append(&mut page);
        if runs.len() > RUNS_MAX * JOURNALS_MAX.min(4) {
            return Err(Violation::RunsList);
        }
        if last {
            let (runs, journals) = (std::mem::take(runs), std::mem::take(known_journals));
            self.complete(boot_id, journals, runs, now)?;
        }
        Ok(())
    }

    fn detach_all(&mut self) {
        self.list = List::EMPTY;
        self.seat.set_ready(None);
        self.attached.clear();
        self.out.clear();
        self.unacked.clear();
        self.unstored.clear();
        self.stdin_turn.clear();
        (self.in_flight, self.relieved_at) = (0, 0);
    }

    fn complete(
        &mut self,
        boot_id: BootId,
        journals: Vec<JournalId>,
        runs: Vec<RunSummary>,
        now: Instant,
    ) -> Result<(), Violation> {
        let count = runs.len();
        let mut listed: HashMap<RunId, RunSummary> =
            runs.into_iter().map(|run| (run.run_id, run)).collect();
        if listed.len() != count {
            return Err(Violation::RunsList);
        }
        let journal_id = *journals.first().ok_or(Violation::RunsList)?;
        for run in self.shared.live_at(&self.seat.sitter.target) {
            if !run.is_written() {
                continue;
            }
            let summary = listed.remove(&run.id);
            let node = NodeSide {
                boot_id,
                journals: &journals,
            };
            if run.record().unclaimed && summary.is_some() {
                run.set_listed(summary);
                continue;
            }
            let action = reconcile::decide(run.row(now), summary.as_ref(), node);
            self.reconcile(&run, summary.as_ref(), action);
        }
        self.list = List::Complete { boot_id, journals };
        self.seat.set_ready(Some(Ready {
            boot_id,
            journal_id,
        }));
        if let Target::Node(device) = self.seat.sitter.target {
            self.shared.events.send(Event::NodeOnline(device));
        }
        if !listed.is_empty() {
            self.shared.settle_unknown(Unknown {
                seat: Arc::clone(&self.seat),
                boot_id,
                runs: listed.into_values().collect(),
            });
        }
        Ok(())
    }

    fn reconcile(&mut self, run: &Arc<LiveRun>, summary: Option<&RunSummary>, action: Action) {
        if action != Action::Leave {
            tracing::debug!(run.id = %run.id, ?action, "a run meets its node again");
        }
        match (action, summary) {
            (Action::Resume | Action::Drain, Some(summary)) => self.resume(run, summary),
            (Action::StartAgain, _) => self.send_start(run),
            (Action::End { outcome, reason }, _) => {
                self.shared
                    .end(run, ending::found(outcome, reason), ending::Source::Known);
            }
            (Action::Alert, _) => {
                tracing::warn!(run.id = %run.id, "a node lists a run that was never sent to it");
            }
            // Whoever ends the run tells the node to forget it, once that is synced.
            (Action::Forget | Action::Leave | Action::KeepUnclaimed, _)
            | (Action::Resume | Action::Drain, None) => {}
        }
    }

    /// Takes a run up where the store stands.
    fn resume(&mut self, run: &Arc<LiveRun>, summary: &RunSummary) {
        let stored = Totals {
            stdout: run.output.stored(Stream::Stdout),
            stderr: run.output.stored(Stream::Stderr),
        };
        run.output.wake(Arc::clone(&self.stored));
        run.set_owner(self.seat.sitter.epoch);
        self.shared.note_listed(run, summary);
        let stdin = run.wishes().stdin.handle_resume(summary.stdin);
        let attached = Attached {
            run: Arc::clone(run),
            inbox: Inbox::new(&self.windows, stored.stdout, stored.stderr),
            stdin,
            phase: Phase::Flowing,
            starts: 0,
            cancel_sent: false,
            size_sent: None,
            queue: Queue::None,
            in_turn: false,
        };
        self.attached.insert(run.id, attached);
        self.out.push_back(ToKeeper::Resume {
            run_id: run.id,
            stdout: stored.stdout,
            stderr: stored.stderr,
        });
        self.look(run);
    }

    fn adopt(&mut self, run: &Arc<LiveRun>) {
        if self.attached.contains_key(&run.id) {
            return;
        }
        let Some(summary) = run.take_listed() else {
            return;
        };
        self.resume(run, &summary);
    }

    // --- starting ---

    fn start(&mut self, run: &Arc<LiveRun>, now: Instant) {
        let List::Complete { boot_id, journals } = &self.list else {
            return; // the list, once complete, decides
        };
        if self.attached.contains_key(&run.id) {
            return; // the list has decided: it was sent already
        }
        let node = NodeSide {
            boot_id: *boot_id,
            journals,
        };
        match run.row(now) {
            row @ Row::Open(_) => {
                let action = reconcile::decide(row, None, node);
                self.reconcile(run, None, action);
            }
            Row::None | Row::Elsewhere | Row::WaitingApproval | Row::Ended => {}
        }
    }

    fn send_start(&mut self, run: &Arc<LiveRun>) {
        let record = run.record();
        let Some(spec) = &record.spec else { return };
        run.output.wake(Arc::clone(&self.stored));
        run.set_owner(self.seat.sitter.epoch);
        let attached = self.attached.entry(run.id).or_insert_with(|| Attached {
            run: Arc::clone(run),
            inbox: Inbox::new(&self.windows, 0, 0),
            stdin: StdinSent::default(),
            phase: Phase::AwaitStart,
            starts: 0,
            cancel_sent: false,
            size_sent: None,
            queue: Queue::None,
            in_turn: false,
        });
        attached.phase = Phase::AwaitStart;
        attached.starts += 1;
        self.out.push_back(ToKeeper::Start {
            run_id: run.id,
            digest: record.digest,
            spec: Box::new(spec.clone()),
        });
        self.look(run);
    }

    fn handle_started(&mut self, run_id: RunId, pid: u32) -> Result<(), Violation> {
        let attached = self.attached(run_id)?;
        if attached.phase != Phase::AwaitStart {
            return Err(Violation::OutOfTurn {
                run_id,
                what: "it has started before",
            });
        }
        attached.phase = Phase::Flowing;
        let run = Arc::clone(&attached.run);
        self.shared.note_started(&run, Some(pid));
        Ok(())
    }

    fn handle_state(&mut self, summary: &RunSummary) -> Result<(), Violation> {
        let run_id = summary.run_id;
        let attached = self.attached(run_id)?;
        if attached.phase != Phase::AwaitStart || summary.digest != attached.run.record().digest {
            return Err(Violation::OutOfTurn {
                run_id,
                what: "nobody asked where it stands",
            });
        }
        let run = Arc::clone(&attached.run);
        self.drop_attached(run_id);
        self.resume(&run, summary);
        Ok(())
    }

    fn handle_refused(
        &mut self,
        run_id: RunId,
        code: RunRefusal,
        now: Instant,
    ) -> Result<(), Violation> {
        let attached = self.attached(run_id)?;
        if attached.phase != Phase::AwaitStart {
            return Err(Violation::OutOfTurn {
                run_id,
                what: "a run that has started cannot be refused",
            });
        }
        let (run, starts) = (Arc::clone(&attached.run), attached.starts);
        if code == RunRefusal::Leaving && starts < START_TRIES_MAX {
            self.send_start(&run);
            return Ok(());
        }
        self.drop_attached(run_id);
        if code == RunRefusal::DigestMismatch {
            tracing::warn!(run.id = %run_id, "a node knows this run's id with another command");
        }
        self.shared.end(
            &run,
            ending::refused(code, run.born, now),
            ending::Source::Known,
        );
        Ok(())
    }

    // --- output ---

    fn handle_output(
        &mut self,
        run_id: RunId,
        stream: Stream,
        offset: u64,
        bytes: &Bytes,
        now: Instant,
    ) -> Result<(), Violation> {
        let epoch = self.seat.sitter.epoch;
        let attached = self.attached(run_id)?;
        attached.refuse_before_start(run_id)?;
        let before = attached.inbox.in_flight();
        let fresh = attached
            .inbox
            .handle_output(stream, offset, bytes.len(), now)
            .map_err(|source| Violation::Output { run_id, source })?;
        if let Fresh::From { skip } = fresh
            && attached.run.is_owned_by(epoch)
        {
            let fresh = bytes.slice(skip..);
            append(&attached.run, stream, offset + skip as u64, fresh)?;
        }
        let after = attached.inbox.in_flight();
        self.count(before, after)?;
        self.settle_fresh(run_id, now);
        Ok(())
    }

    fn handle_gap(
        &mut self,
        run_id: RunId,
        stream: Stream,
        (from, to): (u64, u64),
        reason: GapReason,
        now: Instant,
    ) -> Result<(), Violation> {
        let epoch = self.seat.sitter.epoch;
        let attached = self.attached(run_id)?;
        attached.refuse_before_start(run_id)?;
        let fresh = attached
            .inbox
            .handle_gap(stream, from, to, now)
            .map_err(|source| Violation::Output { run_id, source })?;
        if fresh != Fresh::Nothing && attached.run.is_owned_by(epoch) {
            mark_gap(&attached.run, stream, from, to, reason)?;
        }
        self.settle_fresh(run_id, now);
        Ok(())
    }

    /// Counts what is under way on the whole connection, and gives credit back early when that
    /// runs short: many runs below their own quarter could fill it together.
    fn count(&mut self, before: u64, after: u64) -> Result<(), Violation> {
        self.in_flight = self.in_flight + after - before;
        let max = u64::from(self.windows.connection_bytes);
        if self.in_flight > max {
            return Err(Violation::ConnectionWindow {
                found: self.in_flight,
                max,
            });
        }
        Ok(())
    }

    fn relieve(&mut self, now: Instant) {
        let max = u64::from(self.windows.connection_bytes);
        if self.in_flight < self.relieved_at.min(max / 2) {
            self.relieved_at = 0;
        }
        if self.in_flight < max / 4 || self.in_flight < self.relieved_at + max / 8 {
            return;
        }
        let waiting = self.unacked.iter().map(|(_, run_id)| run_id);
        for run_id in waiting.chain(&self.unstored) {
            let Some(attached) = self.attached.get_mut(run_id) else {
                continue;
            };
            let before = attached.inbox.in_flight();
            if let Some(ack) = attached.take_ack(now) {
                self.in_flight -= before - attached.inbox.in_flight();
                self.out.push_back(ack);
            }
        }
        self.relieved_at = self.in_flight;
    }

    fn settle_fresh(&mut self, run_id: RunId, now: Instant) {
        let waits = self
            .attached
            .get(&run_id)
            .is_some_and(|attached| attached.queue != Queue::None);
        if waits {
            // It stands in a queue already; only an acknowledgement that is due now matters.
            self.acknowledge(run_id, now);
        } else {
            self.settle(run_id, now);
        }
        self.relieve(now);
    }

    /// A run has come to the front of a queue; one that was taken up anew stands elsewhere now.
    fn settle_queued(&mut self, run_id: RunId, queue: Queue, now: Instant) {
        let stands_here = self
            .attached
            .get(&run_id)
            .is_some_and(|attached| attached.queue == queue);
        if stands_here {
            self.settle(run_id, now);
        }
    }

    /// Sends the acknowledgement that is due, and puts the run where the next one waits.
    fn settle(&mut self, run_id: RunId, now: Instant) {
        self.acknowledge(run_id, now);
        let Some(attached) = self.attached.get_mut(&run_id) else {
            return;
        };
        attached.queue = match attached.inbox.poll_timeout() {
            None => Queue::None,
            Some(due) if due <= now => {
                self.unstored.push_back(run_id);
                Queue::Unstored
            }
            Some(due) => {
                self.unacked.push_back((due, run_id));
                Queue::Unacked(due)
            }
        };
    }

    fn acknowledge(&mut self, run_id: RunId, now: Instant) {
        let Some(attached) = self.attached.get_mut(&run_id) else {
            return;
        };
        let before = attached.inbox.in_flight();
        if let Some(ack) = attached.poll_ack(now) {
            self.in_flight -= before - attached.inbox.in_flight();
            self.out.push_back(ack);
        }
    }

    // --- the end ---

    fn handle_ended(
        &mut self,
        run_id: RunId,
        ending: Ending,
        totals: Totals,
    ) -> Result<(), Violation> {
        let epoch = self.seat.sitter.epoch;
        // A command that could not be spawned ends without having started.
        let attached = self.attached(run_id)?;
        if !is_consistent(&ending) {
            return Err(Violation::Ending(run_id));
        }
        attached
            .inbox
            .handle_ended(&totals, ending.outcome == Outcome::Lost)
            .map_err(|source| Violation::Output { run_id, source })?;
        attached.phase = Phase::Over;
        let run = Arc::clone(&attached.run);
        if run.is_owned_by(epoch) {
            let received = Totals {
                stdout: attached.inbox.received(Stream::Stdout),
                stderr: attached.inbox.received(Stream::Stderr),
            };
            self.shared.end(
                &run,
                ending::from_node(ending),
                ending::Source::Node(received),
            );
        }
        Ok(())
    }

    fn forget(&mut self, run_id: RunId) {
        self.drop_attached(run_id);
        self.out.push_back(ToKeeper::Forget { run_id });
    }

    fn drop_attached(&mut self, run_id: RunId) {
        if let Some(attached) = self.attached.remove(&run_id) {
            // Its entries in the queues are skipped when their turn comes.
            self.in_flight -= attached.inbox.in_flight();
        }
    }

    // --- what askers wish ---

    fn look(&mut self, run: &Arc<LiveRun>) {
        run.looks();
        let Some(attached) = self.attached.get_mut(&run.id) else {
            return; // what stays wished is looked at when the run is taken up
        };
        if attached.phase == Phase::Over {
            return;
        }
        let run_id = run.id;
        let mut wishes = run.wishes();
        if let Some(size) = wishes.size
            && attached.size_sent != Some(size)
        {
            attached.size_sent = Some(size);
            self.out.push_back(ToKeeper::Resize { run_id, size });
        }
        for signal in wishes.signals.drain(..) {
            self.out.push_back(ToKeeper::Signal { run_id, signal });
        }
        if let Some(grace) = wishes.cancel_grace
            && !attached.cancel_sent
        {
            attached.cancel_sent = true;
            self.out.push_back(ToKeeper::Cancel {
                run_id,
                grace_ms: millis(grace),
            });
        }
        if !attached.in_turn {
            attached.in_turn = true;
            self.stdin_turn.push_back(run_id);
        }
    }

    fn handle_stdin_ack(
        &mut self,
        run_id: RunId,
        offset: u64,
        closed: bool,
    ) -> Result<(), Violation> {
        let attached = self.attached(run_id)?;
        let acked = attached
            .run
            .wishes()
            .stdin
            .handle_ack(&attached.stdin, offset, closed);
        acked.map_err(|_| Violation::Stdin(run_id))?;
        attached.run.stdin_room.notify_waiters();
        if !attached.in_turn {
            attached.in_turn = true;
            self.stdin_turn.push_back(run_id);
        }
        Ok(())
    }
}

impl Attached {
    fn refuse_before_start(&self, run_id: RunId) -> Result<(), Violation> {
        match self.phase {
            Phase::AwaitStart => Err(Violation::OutOfTurn {
                run_id,
                what: "it has not started",
            }),
            Phase::Flowing | Phase::Over => Ok(()),
        }
    }

    fn poll_ack(&mut self, now: Instant) -> Option<ToKeeper> {
        self.look_at_store();
        let ack = self.inbox.poll_ack(now)?;
        Some(ToKeeper::Ack {
            run_id: self.run.id,
            stdout: ack.stdout,
            stderr: ack.stderr,
        })
    }

    fn take_ack(&mut self, now: Instant) -> Option<ToKeeper> {
        self.look_at_store();
        let ack = self.inbox.take_ack(now)?;
        Some(ToKeeper::Ack {
            run_id: self.run.id,
            stdout: ack.stdout,
            stderr: ack.stderr,
        })
    }

    fn look_at_store(&mut self) {
        for stream in Stream::BOTH {
            let stored = self.run.output.stored(stream);
            self.inbox.handle_stored(stream, stored);
        }
    }
}

/// Gives bytes to the store. What an earlier connection brought, and the store was still at when
/// this one took the run up, is known already.
fn append(run: &LiveRun, stream: Stream, offset: u64, mut bytes: Bytes) -> Result<(), Violation> {
    let known = run.output.end(stream).saturating_sub(offset);
    if known > 0 {
        let skip = usize::try_from(known).unwrap_or(usize::MAX);
        if skip >= bytes.len() {
            return Ok(());
        }
        bytes.advance(skip);
    }
    run.output
        .append(stream, offset + known, bytes)
        .map_err(|error| not_taken(run, &error))
}

fn mark_gap(
    run: &LiveRun,
    stream: Stream,
    from: u64,
    to: u64,
    reason: GapReason,
) -> Result<(), Violation> {
    let from = from.max(run.output.end(stream));
    if from >= to {
        return Ok(());
    }
    run.output
        .gap(stream, from, to, reason)
        .map_err(|error| not_taken(run, &error))
}

fn not_taken(run: &LiveRun, error: &OutputError) -> Violation {
    tracing::error!(run.id = %run.id, error = %chain(error), "output that the inbox let through was not taken");
    Violation::NotTaken(run.id)
}

/// A status that the kernel cannot have given with this outcome is a lie, or a mistake: success is
/// never guessed.
fn is_consistent(ending: &Ending) -> bool {
    let status = match ending.status {
        Some(ExitStatus::Code(code)) if !(0..=255).contains(&code) => return false,
        Some(ExitStatus::Signal(signal)) if !(1..=127).contains(&signal) => return false,
        status => status,
    };
    match ending.outcome {
        Outcome::Exited => matches!(status, Some(ExitStatus::Code(_))),
        Outcome::Signaled => matches!(status, Some(ExitStatus::Signal(_))),
        Outcome::FailedToStart | Outcome::Refused => status.is_none(),
        Outcome::TimedOut | Outcome::Cancelled | Outcome::Lost => true,
    }
}
