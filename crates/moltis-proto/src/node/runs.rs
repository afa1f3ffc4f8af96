//! The runs of a node that holds its commands itself, from `start` to `forget`.
//!
//! A pure machine. Its driver owns the processes and a file; the machine owns every decision between
//! them and the gateway. After each call the driver does what [`Runs::poll_action`] says, sends what
//! [`Runs::poll_transmit`] gives while a gateway is attached, and comes back at
//! [`Runs::poll_timeout`] at the latest:
//!
//! ```text
//!   ToKeeper ─────▶ handle_message        poll_transmit ─────▶ FromKeeper
//!                                Runs
//!   the child ────▶ handle_*              poll_action ───────▶ the child, the file
//! ```
//!
//! It is the simple variant of our own keeper: output stays in memory, a bounded part of it, and the
//! rest is a gap; there are no terminals, and nobody is found who has left his process group. What it
//! remembers beyond the node's process is which runs were started and which are forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::UsedIds;
use super::held::{Held, Stage};
use crate::key::Digest;
use crate::message::Windows;
use crate::run::outbox::{Outbox, OutboxError, OutboxLimits, Recovered};
use crate::run::stdin::{StdinError, StdinReceiver};
use crate::run::turn::{Offer, Turn};
use crate::run::{
    Ending, ExitStatus, Outcome, Reason, RunSpec, RunSummary, StdinMode, Stream, Totals,
};
use crate::{BootId, Codec, FromKeeper, JournalId, RunId, RunRefusal, ToKeeper, env, limits};

/// What a table of runs is told once.
#[derive(Debug, Clone)]
pub struct RunsConfig {
    /// This boot of the machine.
    pub boot_id: BootId,
    /// The file that the driver keeps its [`Record`]s in; made at random with it.
    pub journal_id: JournalId,
    /// Runs held at once, ended ones that wait for `Forget` included. One more is refused as
    /// [`RunRefusal::TooMany`].
    pub runs_max: usize,
    /// Bytes of each stream in memory, above those that stay below the acknowledged offset.
    pub memory_bytes: u64,
    /// Variables that the node's owner lets a request set, beside the standard list.
    pub env_allow: Vec<String>,
}

/// What has to outlive the node's process: written down in the order in which it comes, and given to
/// [`Runs::new`] in that order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// A run is about to be started.
    Started {
        /// The run.
        run_id: RunId,
        /// The digest of its `Start`.
        digest: Digest,
        /// The boot in which that was.
        boot_id: BootId,
    },
    /// A run is forgotten.
    Forgotten {
        /// The run.
        run_id: RunId,
    },
}

/// What the driver has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the record down; only then spawn the command, in a process group of its own. Answered
    /// by [`Runs::handle_started`], [`Runs::handle_not_started`] or [`Runs::refuse`] before anything
    /// else is told.
    Start(RunId, Record, Box<RunSpec>),
    /// Do this with the child of a run that was started.
    Child(RunId, ToChild),
    /// Write the record down.
    Remember(Record),
}

/// What is done with a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToChild {
    /// Read an output once. Answered by [`Runs::handle_read`].
    Read {
        /// Which of the two.
        stream: Stream,
        /// Bytes to read at the most.
        bytes_max: usize,
    },
    /// Write these bytes, or some of them, into its stdin. Answered by [`Runs::handle_written`], or
    /// by [`Runs::handle_stdin_closed`] when it takes no more.
    Write(Bytes),
    /// Close its stdin.
    CloseStdin,
    /// Send this signal (signal(7)) to its process group. A zombie keeps the number of its group, so
    /// a child is not reaped before [`ToChild::LetGo`].
    Signal(i32),
    /// The run is over: reap it, and let go of pipes that somebody may still hold open.
    LetGo,
}

/// A gateway broke a rule: its connection is to be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunsError {
    /// It lied about offsets of output.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// It broke the order of stdin.
    #[error(transparent)]
    Stdin(#[from] StdinError),
    /// It said what only the owner of a machine says to a keeper.
    #[error("a gateway says neither `attach` nor `leave`")]
    KeeperOnly,
    /// It spoke of runs before it had been told of them.
    #[error("a message about a run came before the list of runs was sent")]
    BeforeList,
}

/// The runs that a node holds.
#[derive(Debug)]
pub struct Runs {
    config: RunsConfig,
    held: BTreeMap<RunId, Held>,
    used: UsedIds,
    gateway: Option<Gateway>,
    actions: VecDeque<Action>,
    /// Runs to which something happened.
    dirty: BTreeSet<RunId>,
}

/// A gateway that is there.
#[derive(Debug)]
struct Gateway {
    windows: Windows,
    /// What is said before any output.
    control: VecDeque<FromKeeper>,
    has_listed: bool,
    turn: Turn<RunId>,
}

impl Runs {
    /// Begins with what an earlier process has written down: runs of which nobody knows the ending
    /// are lost, as their commands were held by that process.
    pub fn new(config: RunsConfig, records: impl IntoIterator<Item = Record>) -> Self {
        let mut runs = Self {
            config,
            held: BTreeMap::new(),
            used: UsedIds::default(),
            gateway: None,
            actions: VecDeque::new(),
            dirty: BTreeSet::new(),
        };
        for record in records {
            match record {
                Record::Started {
                    run_id,
                    digest,
                    boot_id,
                } => {
                    let outbox = Outbox::recovered(
                        runs.outbox_limits(),
                        [Recovered::default(); 2],
                        lost(boot_id == runs.config.boot_id),
                    );
                    runs.held.insert(run_id, Held::over(digest, outbox));
                }
                Record::Forgotten { run_id } => {
                    runs.held.remove(&run_id);
                    runs.used.insert(run_id, RunRefusal::Forgotten);
                }
            }
        }
        runs
    }

    // The gateway comes, speaks, and goes.

    /// A gateway has accepted this node. The list of what it holds is sent first.
    pub fn handle_attached(&mut self, windows: Windows, codec: Codec, now: Instant) {
        self.handle_detached(now);
        let journals = [self.config.journal_id];
        let runs: Vec<_> = self
            .held
            .iter()
            .filter_map(|(id, held)| self.summary(*id, held))
            .collect();
        let control = FromKeeper::list(self.config.boot_id, &journals, &runs, codec).collect();
        for held in self.held.values_mut() {
            held.stdin.set_window(windows.stdin_bytes);
        }
        self.gateway = Some(Gateway {
            windows,
            control,
            has_listed: false,
            turn: Turn::new(windows.connection_bytes),
        });
    }

    /// The connection is over. Commands go on; what they write waits.
    pub fn handle_detached(&mut self, now: Instant) {
        if self.gateway.take().is_some() {
            for (run_id, held) in &mut self.held {
                held.outbox.handle_detached(now);
                self.dirty.insert(*run_id);
            }
        }
    }

    /// Does what the gateway says.
    ///
    /// # Errors
    /// [`RunsError`]; the runs go on.
    pub fn handle_message(&mut self, message: ToKeeper, now: Instant) -> Result<(), RunsError> {
        let Some(gateway) = &mut self.gateway else {
            return Ok(()); // said before it went
        };
        if !gateway.has_listed {
            return Err(RunsError::BeforeList);
        }
        let run_id = message.run_id().ok_or(RunsError::KeeperOnly)?;
        if let ToKeeper::Start { digest, spec, .. } = message {
            self.start(run_id, digest, spec, now);
            return Ok(());
        }
        // Whatever is said of a run that is gone was said before it was forgotten.
        let Some(held) = self.held.get_mut(&run_id) else {
            return Ok(());
        };
        match message {
            ToKeeper::Resume { stdout, stderr, .. } => {
                let offsets = Totals { stdout, stderr };
                let freed = held.outbox.handle_resume(&gateway.windows, offsets, now)?;
                gateway.turn.handle_freed(freed);
            }
            ToKeeper::Ack { stdout, stderr, .. } => {
                let offsets = Totals { stdout, stderr };
                let freed = held.outbox.handle_ack(offsets, now)?;
                gateway.turn.handle_freed(freed);
            }
            ToKeeper::Stdin {
                offset, bytes, eof, ..
            } => held.stdin.handle_stdin(offset, bytes.0, eof)?,
            ToKeeper::Signal { signal, .. } => held.signal(signal),
            ToKeeper::Cancel { grace_ms, .. } => {
                let grace = Duration::from_millis(grace_ms);
                held.end(Outcome::Cancelled, grace, now);
            }
            ToKeeper::Forget { .. } => self.forget(run_id, now),
            // No run has a terminal; the others were dealt with above.
            ToKeeper::Resize { .. }
            | ToKeeper::Start { .. }
            | ToKeeper::Attach { .. }
            | ToKeeper::Leave => {}
        }
        self.dirty.insert(run_id);
        Ok(())
    }

    fn start(&mut self, run_id: RunId, digest: Digest, spec: Box<RunSpec>, now: Instant) {
        if let Some(held) = self.held.get(&run_id) {
            let answer = if held.digest == digest {
                self.summary(run_id, held)
                    .map(|summary| FromKeeper::State { summary })
            } else {
                let code = RunRefusal::DigestMismatch;
                Some(FromKeeper::Refused { run_id, code })
            };
            self.tell(answer);
            return;
        }
        if let Err(code) = self.may_start(run_id, &spec) {
            self.used.insert(run_id, code);
            self.tell(Some(FromKeeper::Refused { run_id, code }));
            return;
        }
        let mut outbox = Outbox::new(self.outbox_limits());
        if let Some(gateway) = &self.gateway {
            outbox.follow(&gateway.windows, now);
        }
        let held = Held::starting(digest, spec.clone(), outbox);
        self.held.insert(run_id, held);
        if spec.tty.is_some() {
            let why = "this node has no terminals".to_owned();
            return self.handle_not_started(run_id, None, why);
        }
        let boot_id = self.config.boot_id;
        let record = Record::Started {
            run_id,
            digest,
            boot_id,
        };
        self.actions.push_back(Action::Start(run_id, record, spec));
    }

    fn may_start(&self, run_id: RunId, spec: &RunSpec) -> Result<(), RunRefusal> {
        if let Some(code) = self.used.refusal(run_id) {
            return Err(code);
        }
        if !spec.is_sound() {
            return Err(self.used.refusal_of_unsound());
        }
        // The gateway has looked at them too; a node believes nobody.
        if env::check(&spec.env, &self.config.env_allow).is_err() {
            return Err(RunRefusal::EnvNotAllowed);
        }
        if self.held.len() >= self.config.runs_max {
            return Err(RunRefusal::TooMany);
        }
        Ok(())
    }

    fn forget(&mut self, run_id: RunId, now: Instant) {
        let is_over = |held: &Held| matches!(held.stage, Stage::Over);
        if !self.held.get(&run_id).is_some_and(is_over) {
            return;
        }
        if let (Some(mut held), Some(gateway)) = (self.held.remove(&run_id), &mut self.gateway) {
            gateway.turn.handle_freed(held.outbox.handle_detached(now));
            gateway.turn.remove(run_id);
        }
        self.used.insert(run_id, RunRefusal::Forgotten);
        let record = Record::Forgotten { run_id };
        self.actions.push_back(Action::Remember(record));
    }

    // What became of actions, and what the children do.

    /// The command of [`Action::Start`] runs.
    pub fn handle_started(&mut self, run_id: RunId, pid: u32, now: Instant) {
        let Some(spec) = self.starting(run_id) else {
            return;
        };
        let windows = self.gateway.as_ref().map(|gateway| gateway.windows);
        let window_bytes = windows.map_or(limits::STDIN_WINDOW_BYTES, |w| w.stdin_bytes);
        let stdin = match spec.stdin {
            StdinMode::Empty => None,
            StdinMode::Open => Some(StdinReceiver::open(window_bytes)),
        };
        self.with(run_id, |held| {
            held.handle_started(pid, &spec, stdin, now);
        });
        self.tell(Some(FromKeeper::Started { run_id, pid }));
    }

    /// The command of [`Action::Start`] cannot be started: the run has failed. `detail` is for a
    /// person and may be empty.
    pub fn handle_not_started(&mut self, run_id: RunId, reason: Option<Reason>, detail: String) {
        if self.starting(run_id).is_some() {
            let ending = Ending::without_status(Outcome::FailedToStart, reason, detail);
            self.with(run_id, |held| held.outbox.finish(ending));
        }
    }

    /// The command of [`Action::Start`] is not to be started: its owner says no, or it cannot be
    /// remembered.
    pub fn refuse(&mut self, run_id: RunId, code: RunRefusal) {
        if self.starting(run_id).is_some() {
            self.held.remove(&run_id);
            self.used.insert(run_id, code);
            self.tell(Some(FromKeeper::Refused { run_id, code }));
        }
    }

    /// A [`ToChild::Read`] has read these bytes; none at the end of the stream, or where it fails.
    pub fn handle_read(&mut self, run_id: RunId, stream: Stream, bytes: Bytes, now: Instant) {
        self.with(run_id, |held| held.handle_read(stream, bytes, now));
    }

    /// A [`ToChild::Write`] has written so many bytes.
    pub fn handle_written(&mut self, run_id: RunId, bytes: usize) {
        self.with(run_id, |held| held.handle_written(bytes));
    }

    /// The child takes no more stdin.
    pub fn handle_stdin_closed(&mut self, run_id: RunId) {
        self.with(run_id, Held::handle_stdin_closed);
    }

    /// The child has ended, and waits to be reaped; `None` where the kernel does not say how.
    pub fn handle_exited(&mut self, run_id: RunId, status: Option<ExitStatus>, now: Instant) {
        self.with(run_id, |held| held.handle_exited(status, now));
    }

    /// The time of [`Runs::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_due = |held: &Held| held.poll_timeout().is_some_and(|at| at <= now);
        let due: Vec<_> = self
            .held
            .iter()
            .filter(|(_, held)| is_due(held))
            .map(|(id, _)| *id)
            .collect();
        for run_id in due {
            self.with(run_id, |held| held.handle_timeout(now));
        }
    }

    // What to do now.

    /// Returns the next thing for the driver to do.
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        self.settle(now);
        self.actions.pop_front()
    }

    /// Returns the next message for the gateway, if any may be sent now.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<FromKeeper> {
        self.settle(now);
        let gateway = self.gateway.as_mut()?;
        if let Some(message) = gateway.control.pop_front() {
            gateway.has_listed |= matches!(message, FromKeeper::Runs { last: true, .. });
            return Some(message);
        }
        let (held, dirty) = (&mut self.held, &mut self.dirty);
        gateway.turn.poll(|run_id, credit| {
            let Some(held) = held.get_mut(&run_id) else {
                return Offer::Nothing;
            };
            // What is sent may make room for what the child writes.
            dirty.insert(run_id);
            let offer = held.outbox.offer(credit, now);
            offer.map(|transmit| transmit.into_message(run_id))
        })
    }

    /// Returns when to call [`Runs::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.held.values().filter_map(Held::poll_timeout).min()
    }

    /// Lets every run to which something happened ask for what it needs.
    fn settle(&mut self, now: Instant) {
        while let Some(run_id) = self.dirty.pop_first() {
            let Some(held) = self.held.get_mut(&run_id) else {
                continue;
            };
            held.settle(run_id, now, &mut self.actions);
            let Some(gateway) = &mut self.gateway else {
                continue;
            };
            if !held.outbox.is_followed() {
                continue;
            }
            if let Some(state) = held.stdin.poll_ack() {
                gateway.control.push_back(FromKeeper::StdinAck {
                    run_id,
                    offset: state.offset,
                    closed: state.closed,
                });
            }
            if held.outbox.has_transmit() {
                gateway.turn.add(run_id);
            }
        }
    }

    // Helpers.

    /// Takes a run out of its wait for the driver; it is over until something else is said.
    fn starting(&mut self, run_id: RunId) -> Option<Box<RunSpec>> {
        let stage = &mut self.held.get_mut(&run_id)?.stage;
        match std::mem::replace(stage, Stage::Over) {
            Stage::Starting(spec) => Some(spec),
            other => {
                *stage = other;
                None
            }
        }
    }

    fn with(&mut self, run_id: RunId, change: impl FnOnce(&mut Held)) {
        if let Some(held) = self.held.get_mut(&run_id) {
            change(held);
            self.dirty.insert(run_id);
        }
    }

    fn tell(&mut self, message: Option<FromKeeper>) {
        if let Some(gateway) = &mut self.gateway {
            gateway.control.extend(message);
        }
    }

    fn outbox_limits(&self) -> OutboxLimits {
        OutboxLimits::in_memory(self.config.memory_bytes)
    }

    /// Returns where a run stands; `None` for one that is only being started.
    fn summary(&self, run_id: RunId, held: &Held) -> Option<RunSummary> {
        Some(RunSummary {
            run_id,
            digest: held.digest,
            journal_id: self.config.journal_id,
            state: held.state()?,
            totals: held.outbox.totals(),
            stdin: held.stdin.taken(),
        })
    }
}

fn lost(same_boot: bool) -> Ending {
    let (reason, detail) = if same_boot {
        (Reason::KeeperDied, "the node that held this run died")
    } else {
        (Reason::NodeRebooted, "the machine was started anew")
    };
    Ending {
        descendants_may_survive: same_boot,
        ..Ending::without_status(Outcome::Lost, Some(reason), detail.to_owned())
    }
}
