//! The runs of one connected peer: messages of its keeper in, messages for its keeper out.
//!
//! The same for a node's session and for the keeper of this machine. The driver around it moves
//! frames; nothing here waits. Each message is held against what this connection was given: a
//! message about another's run, a second ending, an offset that lies are a [`Violation`], and the
//! driver closes.
//!
//! Stored bytes are acknowledged as [`Inbox`] says; the driver calls [`Pump::handle_stored`] when
//! the store has moved on, and [`Pump::handle_timeout`] when [`Pump::poll_timeout`] has come.

mod list;
mod output;
mod upload;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use moltis_proto::code::RunRefusal;
use moltis_proto::limits::{JOURNALS_MAX, RUNS_MAX, RUNS_TIME_MAX, START_TIME_MAX};
use moltis_proto::message::Windows;
use moltis_proto::run::inbox::{Fresh, Inbox, InboxError};
use moltis_proto::run::reconcile::{self, Action, NodeSide, Row};
use moltis_proto::run::{
    Ending, ExitStatus, GapReason, Outcome, RunSpec, RunSummary, Stream, Totals, TtySize,
};
use moltis_proto::{BootId, FromKeeper, JournalId, Payload, RunId, ToKeeper};

use self::upload::Upload;

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

/// Just behind the time in which a `Start` may be sent again.
const TOO_LATE: Duration = START_TIME_MAX.saturating_add(Duration::from_millis(1));

/// How a peer broke the rules. It is told `Protocol`, and its connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("a run message came before the list of runs was complete")]
    BeforeRuns,
    #[error("the list of runs contradicts itself, or has no end")]
    RunsList,
    #[error("the list of runs came a second time on one connection")]
    SecondList,
    #[error("the list of runs was not complete within {} s", RUNS_TIME_MAX.as_secs())]
    ListLate,
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
    /// It is asked for what it knows, by a `Start` that nothing can come of.
    AwaitWord,
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
    /// When the list has to be complete.
    list_due: Instant,
    attached: HashMap<RunId, Attached>,
    out: VecDeque<ToKeeper>,
    /// Runs with bytes to acknowledge, each with the deadline that it came in with.
    unacked: VecDeque<(Instant, RunId)>,
    /// Runs whose deadline has come before anything was stored.
    unstored: VecDeque<RunId>,
    stdin_turn: VecDeque<RunId>,
    /// Stdin under way, of all runs; `None` where the keeper is on this machine.
    upload: Option<Upload>,
    /// Runs that a leaving keeper has refused, each with the time when it is too late for another.
    turned_away: VecDeque<(Instant, Arc<LiveRun>)>,
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
        now: Instant,
    ) -> Self {
        let is_remote = matches!(seat.sitter.target, Target::Node(_));
        Self {
            shared,
            seat,
            windows,
            stored,
            list: List::EMPTY,
            list_due: now + RUNS_TIME_MAX,
            attached: HashMap::new(),
            out: VecDeque::new(),
            unacked: VecDeque::new(),
            unstored: VecDeque::new(),
            stdin_turn: VecDeque::new(),
            upload: is_remote.then(Upload::new),
            turned_away: VecDeque::new(),
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
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), Violation> {
        if !self.is_complete() && self.list_due <= now {
            return Err(Violation::ListLate);
        }
        while let Some((due, run_id)) = self.unacked.pop_front_if(|(due, _)| *due <= now) {
            self.settle_queued(run_id, Queue::Unacked(due), now);
        }
        while let Some((_, run)) = self.turned_away.pop_front_if(|(due, _)| *due <= now) {
            self.start(&run, now);
        }
        if let Some(upload) = &mut self.upload {
            upload.handle_timeout(now);
        }
        Ok(())
    }

    /// Returns when the next thing is due: an acknowledgement most often.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        // In each queue all wait equally long, so the first to come is the first to be due.
        let acknowledge = self.unacked.front().map(|(due, _)| *due);
        let give_up = self.turned_away.front().map(|(due, _)| *due);
        let list = (!self.is_complete()).then_some(self.list_due);
        let probe = self.upload.as_ref().and_then(Upload::poll_timeout);
        let all = [acknowledge, give_up, list, probe];
        all.into_iter().flatten().min()
    }

    /// Returns whether the keeper has said that it leaves: another one has to be found.
    pub(crate) fn is_left(&self) -> bool {
        !self.turned_away.is_empty()
    }

    /// Returns the next message for the keeper.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<ToKeeper> {
        if let Some(message) = self.out.pop_front() {
            return Some(message);
        }
        while !self.stdin_turn.is_empty() {
            let mut chunk_max = self.windows.chunk_bytes_max as usize;
            if let Some(upload) = &mut self.upload {
                chunk_max = upload.next_chunk(chunk_max, now)?;
            }
            let Some(run_id) = self.stdin_turn.pop_front() else {
                break;
            };
            let Some(attached) = self.attached.get_mut(&run_id) else {
                continue;
            };
            let chunk = attached.run.wishes().stdin.next(
                &mut attached.stdin,
                chunk_max,
                self.windows.stdin_bytes.into(),
            );
            let Some(chunk) = chunk else {
                attached.in_turn = false;
                continue;
            };
            self.stdin_turn.push_back(run_id);
            if let Some(upload) = &mut self.upload {
                upload.handle_sent(chunk.bytes.len(), now);
            }
            return Some(ToKeeper::Stdin {
                run_id,
                offset: chunk.offset,
                bytes: Payload(chunk.bytes),
                eof: chunk.eof,
            });
        }
        None
    }

    /// Returns the number of a ping that has to go behind what was transmitted so far: it asks how far
    /// stdin has come.
    pub(crate) fn poll_probe(&mut self, now: Instant) -> Option<u64> {
        self.upload.as_mut()?.poll_probe(now)
    }

    /// A pong has come.
    pub(crate) fn handle_pong(&mut self, number: u64, now: Instant) {
        if let Some(upload) = &mut self.upload {
            upload.handle_pong(number, now);
        }
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
        self.turned_away.shrink_to_fit();
    }

    fn is_complete(&self) -> bool {
        matches!(self.list, List::Complete { .. })
    }

    fn attached(&mut self, run_id: RunId) -> Result<&mut Attached, Violation> {
        self.attached
            .get_mut(&run_id)
            .ok_or(Violation::NotYours(run_id))
    }

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
        self.seat.note_forgotten(run_id);
        self.out.push_back(ToKeeper::Forget { run_id });
    }

    fn drop_attached(&mut self, run_id: RunId) {
        if let Some(attached) = self.attached.remove(&run_id) {
            // Its entries in the queues are skipped when their turn comes.
            self.in_flight -= attached.inbox.in_flight();
        }
    }

    fn look(&mut self, run: &Arc<LiveRun>) {
        run.looks();
        let Some(attached) = self.attached.get_mut(&run.id) else {
            return; // what stays wished is looked at when the run is taken up
        };
        if matches!(attached.phase, Phase::Over | Phase::AwaitWord) {
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
        let (acked, is_delivered) = {
            let stdin = &mut attached.run.wishes().stdin;
            let acked = stdin.handle_ack(offset, closed);
            (acked, stdin.is_delivered())
        };
        acked.map_err(|_| Violation::Stdin(run_id))?;
        attached.run.stdin_room.notify_waiters();
        let delivered = is_delivered.then(|| Arc::clone(&attached.run));
        if !attached.in_turn {
            attached.in_turn = true;
            self.stdin_turn.push_back(run_id);
        }
        if let Some(run) = delivered {
            self.shared.let_stdin_go(&run);
        }
        Ok(())
    }
}

impl Attached {
    fn refuse_before_start(&self, run_id: RunId) -> Result<(), Violation> {
        match self.phase {
            Phase::AwaitStart | Phase::AwaitWord => Err(Violation::OutOfTurn {
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
