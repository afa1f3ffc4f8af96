//! One run that a node holds: its child between the spawn and the ending, as far as it can be thought
//! without touching it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::runs::{Action, ToChild};
use crate::RunId;
use crate::key::Digest;
use crate::limits::{DRAIN, GRACE_MAX};
use crate::run::outbox::Outbox;
use crate::run::stdin::{StdinReceiver, StdinWrite};
use crate::run::{Ending, ExitStatus, Outcome, RunSpec, RunState, Stream};

/// Bytes read from a child at once.
const READ_BYTES: u64 = 64 * 1024;
/// What may wait in a pipe whose child has ended: the capacity of one (pipe(7)).
const PIPE_BYTES: u64 = 64 * 1024;

// The same numbers on every system that a node runs on (signal(7)).
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

#[derive(Debug)]
pub(super) struct Held {
    pub(super) digest: Digest,
    pub(super) outbox: Outbox,
    pub(super) stdin: StdinReceiver,
    pub(super) stage: Stage,
    lanes: [Lane; 2],
    sink: Sink,
    /// For the child's process group, in order.
    signals: Vec<i32>,
}

/// How far a run has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// The driver was asked to spawn its child.
    Starting(Box<RunSpec>),
    /// The child lives, or has ended and its output is awaited.
    Running(Life),
    /// Nothing happens any more.
    Over,
}

/// A child that is not let go.
#[derive(Debug)]
pub(super) struct Life {
    pid: u32,
    spawned: Instant,
    /// When its time is over, while it has any left.
    time_over: Option<Instant>,
    grace: Duration,
    wish: Option<Wish>,
    has_exited: bool,
    /// What the kernel said about its end.
    status: Option<ExitStatus>,
    was_held_open: bool,
}

/// Why a child is being ended.
#[derive(Debug)]
struct Wish {
    outcome: Outcome,
    /// When SIGTERM has had its time; absent once SIGKILL is sent.
    kill_at: Option<Instant>,
}

/// Our end of one output.
#[derive(Debug, Default)]
struct Lane {
    state: LaneState,
    /// The child has ended: whoever still holds the pipe is awaited up to this time.
    close_at: Option<Instant>,
    /// That time is over, and only so many bytes can be the child's own.
    left: Option<u64>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum LaneState {
    Idle,
    Reading,
    #[default]
    Closed,
}

/// Our end of stdin.
#[derive(Debug, PartialEq, Eq)]
enum Sink {
    Idle,
    Writing,
    Closed,
}

impl Held {
    /// A run that the driver is asked to start.
    pub(super) fn starting(digest: Digest, spec: Box<RunSpec>, outbox: Outbox) -> Self {
        Self {
            stage: Stage::Starting(spec),
            ..Self::over(digest, outbox)
        }
    }

    /// A run that is over.
    pub(super) fn over(digest: Digest, outbox: Outbox) -> Self {
        Self {
            digest,
            outbox,
            stdin: StdinReceiver::closed(),
            stage: Stage::Over,
            lanes: Default::default(),
            sink: Sink::Closed,
            signals: Vec::new(),
        }
    }

    /// Returns where it stands; `None` while nobody knows.
    pub(super) fn state(&self) -> Option<RunState> {
        match &self.stage {
            Stage::Starting(_) => None,
            Stage::Running(life) => Some(RunState::Running { pid: life.pid }),
            Stage::Over => Some(RunState::Ended),
        }
    }

    // What happens to the child.

    /// The child lives. `stdin` is open where the run wants it so.
    pub(super) fn handle_started(
        &mut self,
        pid: u32,
        spec: &RunSpec,
        stdin: Option<StdinReceiver>,
        now: Instant,
    ) {
        if let Some(stdin) = stdin {
            self.stdin = stdin;
            self.sink = Sink::Idle;
        }
        for lane in &mut self.lanes {
            lane.state = LaneState::Idle;
        }
        let timeout = spec.timeout_ms.map(Duration::from_millis);
        self.stage = Stage::Running(Life {
            pid,
            spawned: now,
            // A time beyond what the clock can say is no limit.
            time_over: timeout.and_then(|timeout| now.checked_add(timeout)),
            grace: Duration::from_millis(spec.grace_ms),
            wish: None,
            has_exited: false,
            status: None,
            was_held_open: false,
        });
    }

    pub(super) fn handle_read(&mut self, stream: Stream, bytes: Bytes, now: Instant) {
        let lane = &mut self.lanes[stream.index()];
        if lane.state == LaneState::Closed {
            return; // its time was over
        }
        let length = bytes.len() as u64;
        lane.left = lane.left.map(|left| left.saturating_sub(length));
        if length == 0 {
            return self.close(stream);
        }
        lane.state = LaneState::Idle;
        let is_last = lane.left == Some(0);
        self.outbox.handle_output(stream, bytes, now);
        if is_last {
            self.close(stream);
        }
    }

    pub(super) fn handle_written(&mut self, bytes: usize) {
        if self.sink == Sink::Writing {
            self.sink = Sink::Idle;
            self.stdin.handle_taken(bytes);
        }
    }

    pub(super) fn handle_stdin_closed(&mut self) {
        self.sink = Sink::Closed;
        self.stdin.handle_closed();
    }

    /// The child has ended. What is left of its group goes with it, when it was ended.
    pub(super) fn handle_exited(&mut self, status: Option<ExitStatus>, now: Instant) {
        let Stage::Running(life) = &mut self.stage else {
            return;
        };
        if life.has_exited {
            return;
        }
        life.has_exited = true;
        life.status = status;
        life.time_over = None;
        if life.wish.is_some() {
            self.signals.push(SIGKILL);
        }
        for lane in &mut self.lanes {
            lane.close_at = Some(now + DRAIN);
        }
    }

    // What somebody wishes.

    pub(super) fn signal(&mut self, number: i32) {
        if let Stage::Running(life) = &self.stage
            && !life.has_exited
            && (1..=64).contains(&number)
        {
            self.signals.push(number);
        }
    }

    /// Begins to end the child. A second wish can only make it sooner.
    pub(super) fn end(&mut self, outcome: Outcome, grace: Duration, now: Instant) {
        let Stage::Running(life) = &mut self.stage else {
            return;
        };
        if life.has_exited {
            // It ended by itself; those that hold its output open do not have to be waited for.
            self.signals.push(SIGKILL);
            for lane in &mut self.lanes {
                lane.close_at = lane.close_at.map(|at| at.min(now));
            }
            return;
        }
        let kill_at = now + grace.min(GRACE_MAX);
        if let Some(wish) = &mut life.wish {
            wish.kill_at = wish.kill_at.map(|at| at.min(kill_at));
            return;
        }
        life.time_over = None;
        life.wish = Some(Wish {
            outcome,
            kill_at: Some(kill_at),
        });
        self.signals.push(SIGTERM);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let Stage::Running(life) = &self.stage else {
            return None;
        };
        let kill_at = life.wish.as_ref().and_then(|wish| wish.kill_at);
        let kill_at = kill_at.filter(|_| !life.has_exited);
        let close_at = self.lanes.iter().map(|lane| lane.close_at);
        let times = close_at.chain([life.time_over, kill_at]);
        times.flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let Stage::Running(life) = &mut self.stage else {
            return;
        };
        if let Some(wish) = &mut life.wish
            && !life.has_exited
            && is_due(wish.kill_at)
        {
            wish.kill_at = None;
            self.signals.push(SIGKILL);
        }
        for stream in Stream::BOTH {
            let lane = &mut self.lanes[stream.index()];
            if !is_due(lane.close_at) {
                continue;
            }
            lane.close_at = None;
            life.was_held_open |= lane.state != LaneState::Closed;
            match lane.state {
                // What waits in the pipe for room is the last that is read.
                LaneState::Idle if lane.left.is_none() => lane.left = Some(PIPE_BYTES),
                LaneState::Idle | LaneState::Closed => {}
                LaneState::Reading => {
                    lane.state = LaneState::Closed;
                    self.outbox.handle_eof(stream);
                }
            }
        }
        let (is_over, grace) = (is_due(life.time_over), life.grace);
        if is_over {
            self.end(Outcome::TimedOut, grace, now);
        }
    }

    // What there is to do.

    /// Asks for whatever the child needs now, and ends the run when nothing of it can come any more.
    pub(super) fn settle(&mut self, run_id: RunId, now: Instant, actions: &mut VecDeque<Action>) {
        let mut ask = |what| actions.push_back(Action::Child(run_id, what));
        self.signals
            .drain(..)
            .map(ToChild::Signal)
            .for_each(&mut ask);
        for stream in Stream::BOTH {
            let lane = &mut self.lanes[stream.index()];
            if lane.state == LaneState::Idle
                && let Some(room) = self.outbox.may_read(stream)
            {
                lane.state = LaneState::Reading;
                if lane.left.is_some() {
                    lane.close_at = Some(now + DRAIN);
                }
                let bytes_max = room.min(lane.left.unwrap_or(room)).min(READ_BYTES);
                let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
                ask(ToChild::Read { stream, bytes_max });
            }
        }
        if self.sink == Sink::Idle
            && let Some(write) = self.stdin.poll_write()
        {
            match write {
                StdinWrite::Bytes(bytes) => {
                    self.sink = Sink::Writing;
                    ask(ToChild::Write(bytes));
                }
                StdinWrite::Close => {
                    self.handle_stdin_closed();
                    ask(ToChild::CloseStdin);
                }
            }
        }
        if let Some(ending) = self.ending(now) {
            self.handle_stdin_closed();
            self.outbox.finish(ending);
            self.stage = Stage::Over;
            ask(ToChild::LetGo);
        }
    }

    /// Returns how the run ended, once the child has and both of its outputs are at their end.
    fn ending(&self, now: Instant) -> Option<Ending> {
        let Stage::Running(life) = &self.stage else {
            return None;
        };
        if !life.has_exited
            || self
                .lanes
                .iter()
                .any(|lane| lane.state != LaneState::Closed)
        {
            return None;
        }
        let status = life.status;
        let by_itself = match status {
            Some(ExitStatus::Code(_)) => Outcome::Exited,
            Some(ExitStatus::Signal(_)) => Outcome::Signaled,
            None => Outcome::Lost,
        };
        let lasted = now.saturating_duration_since(life.spawned);
        let outcome = life.wish.as_ref().map_or(by_itself, |wish| wish.outcome);
        Some(Ending {
            status,
            duration_ms: u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
            // A group that was ended is gone; who had left it before, nobody here can tell.
            descendants_may_survive: life.was_held_open || life.wish.is_some(),
            ..Ending::without_status(outcome, None, String::new())
        })
    }

    fn close(&mut self, stream: Stream) {
        self.lanes[stream.index()] = Lane::default();
        self.outbox.handle_eof(stream);
    }
}
