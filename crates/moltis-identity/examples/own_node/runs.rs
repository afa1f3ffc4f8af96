//! The runs that this node holds, from `start` to `forget`, and what there is to say of them.
//!
//! The machines of `moltis_proto::run` do the thinking: an [`Outbox`] numbers a run's output and
//! keeps what is not acknowledged, a [`Turn`] lets many runs share one connection.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use moltis_proto::key::Digest;
use moltis_proto::message::Windows;
use moltis_proto::run::outbox::{Outbox, Recovered, Transmit};
use moltis_proto::run::turn::{Offer, Turn};
use moltis_proto::run::{Command, Ending, Outcome, Reason, RunSpec, RunState, RunSummary, Totals};
use moltis_proto::{BootId, FromKeeper, Payload, RunId, RunRefusal, ToKeeper, env};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Result;
use super::child::{self, LIMITS, Run};
use super::journal::Journal;
use super::machine;

/// Runs of one page: many fit a frame in either codec.
const PAGE: usize = 128;

pub(crate) struct Runs {
    journal: Journal,
    boot_id: BootId,
    held: BTreeMap<RunId, Held>,
    /// Answers that do not wait for anybody's turn.
    answers: VecDeque<FromKeeper>,
    turn: Turn<RunId>,
    windows: Windows,
    wake: Arc<Notify>,
    commands: JoinSet<()>,
}

struct Held {
    digest: Digest,
    run: Arc<Run>,
}

impl Runs {
    pub(crate) fn open(journal: &Path, boot_id: BootId) -> Result<Self> {
        let journal = Journal::open(journal)?;
        // What an earlier process of this node held is lost: its commands were its own.
        let wake = Arc::new(Notify::new());
        let lost = |(&run_id, &digest): (&RunId, &Digest)| {
            let ending = Ending {
                detail: "the node was started anew".to_owned(),
                ..child::ending(Outcome::Lost, Some(Reason::KeeperDied))
            };
            let outbox = Outbox::recovered(LIMITS, [Recovered::default(); 2], ending);
            let run = Run::over(outbox, &wake);
            (run_id, Held { digest, run })
        };
        Ok(Self {
            held: journal.started.iter().map(lost).collect(),
            journal,
            boot_id,
            answers: VecDeque::new(),
            turn: Turn::new(0),
            windows: Windows {
                run_bytes: 0,
                connection_bytes: 0,
                stdin_bytes: 0,
                chunk_bytes_max: 0,
            },
            wake,
            commands: JoinSet::new(),
        })
    }

    /// Returns what is notified when a run has something to say.
    pub(crate) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Returns the list of what this node holds, in pages. Nothing is sent of a run before the
    /// gateway resumes it.
    pub(crate) fn handle_connected(&mut self, windows: Windows) -> Vec<FromKeeper> {
        self.windows = windows;
        self.turn = Turn::new(windows.connection_bytes);
        let held = self.held.iter();
        let all: Vec<_> = held
            .map(|(&run_id, held)| self.summary(run_id, held))
            .collect();
        let page = |runs: &[RunSummary], last| FromKeeper::Runs {
            boot_id: self.boot_id,
            journals: vec![self.journal.id],
            runs: runs.to_vec(),
            last,
        };
        let mut pages: Vec<_> = all.chunks(PAGE).map(|runs| page(runs, false)).collect();
        match pages.last_mut() {
            Some(FromKeeper::Runs { last, .. }) => *last = true,
            _ => pages.push(page(&[], true)),
        }
        pages
    }

    pub(crate) fn handle_disconnected(&mut self) {
        self.answers.clear();
        for held in self.held.values() {
            held.run.outbox().handle_detached(now());
            held.run.changed();
        }
    }

    /// Does what the gateway says.
    ///
    /// # Errors
    /// When it broke a rule.
    pub(crate) fn handle(&mut self, message: ToKeeper) -> Result {
        while self.commands.try_join_next().is_some() {} // their ends are told by their runs
        let Some(run_id) = message.run_id() else {
            return Err("the gateway said what only a keeper hears".into());
        };
        if let ToKeeper::Start { digest, spec, .. } = message {
            self.start(run_id, digest, *spec);
            return Ok(());
        }
        // Whatever is said of a run that is gone was said before it was forgotten.
        let Some(held) = self.held.get(&run_id) else {
            return Ok(());
        };
        let run = &held.run;
        match message {
            ToKeeper::Resume { stdout, stderr, .. } => {
                let offsets = Totals { stdout, stderr };
                let freed = run.outbox().handle_resume(&self.windows, offsets, now())?;
                self.turn.handle_freed(freed);
                run.stdin().set_window(self.windows.stdin_bytes);
            }
            ToKeeper::Ack { stdout, stderr, .. } => {
                let offsets = Totals { stdout, stderr };
                let freed = run.outbox().handle_ack(offsets, now())?;
                self.turn.handle_freed(freed);
            }
            ToKeeper::Stdin {
                offset, bytes, eof, ..
            } => run.stdin().handle_stdin(offset, bytes.0, eof)?,
            ToKeeper::Signal { signal, .. } => run.signal(signal),
            ToKeeper::Cancel { grace_ms, .. } => run.cancel(grace_ms),
            ToKeeper::Forget { .. } => return self.forget(run_id),
            // There are no terminals here; `Start`, `Attach` and `Leave` are dealt with above.
            ToKeeper::Resize { .. }
            | ToKeeper::Start { .. }
            | ToKeeper::Attach { .. }
            | ToKeeper::Leave => {}
        }
        run.changed();
        Ok(())
    }

    /// Starts a run, once in the lifetime of its id.
    fn start(&mut self, run_id: RunId, digest: Digest, spec: RunSpec) {
        if let Some(held) = self.held.get(&run_id) {
            self.answers.push_back(if held.digest == digest {
                let summary = self.summary(run_id, held);
                FromKeeper::State { summary }
            } else {
                let code = RunRefusal::DigestMismatch;
                FromKeeper::Refused { run_id, code }
            });
            return;
        }
        if let Err(code) = self.may_start(run_id, digest, &spec) {
            let refused = FromKeeper::Refused { run_id, code };
            self.answers.push_back(refused);
            return;
        }
        let (run, pid) = child::start(spec, &self.windows, &self.wake, &mut self.commands);
        let started = pid.map(|pid| FromKeeper::Started { run_id, pid });
        self.answers.extend(started);
        run.outbox().follow(&self.windows, now());
        self.held.insert(run_id, Held { digest, run });
    }

    /// Checks a run, and remembers it before anything comes of it.
    fn may_start(
        &mut self,
        run_id: RunId,
        digest: Digest,
        spec: &RunSpec,
    ) -> Result<(), RunRefusal> {
        if self.journal.is_forgotten(run_id) {
            return Err(RunRefusal::Forgotten);
        }
        if !is_sound(spec) {
            return Err(RunRefusal::Invalid);
        }
        // The gateway has looked at them too; a node believes nobody.
        if env::check(&spec.env, &[]).is_err() {
            return Err(RunRefusal::EnvNotAllowed);
        }
        let remembered = self.journal.start(run_id, digest);
        remembered.map_err(|_| RunRefusal::JournalFailed)
    }

    fn forget(&mut self, run_id: RunId) -> Result {
        self.journal.forget(run_id)?;
        if let Some(held) = self.held.remove(&run_id) {
            self.turn
                .handle_freed(held.run.outbox().handle_detached(now()));
            self.turn.remove(run_id);
        }
        Ok(())
    }

    /// Returns the next thing to say, if any may be said now.
    pub(crate) fn poll(&mut self) -> Option<FromKeeper> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        for (&run_id, held) in &self.held {
            if !held.run.outbox().is_followed() {
                continue;
            }
            if let Some(state) = held.run.stdin().poll_ack() {
                let (offset, closed) = (state.offset, state.closed);
                return Some(FromKeeper::StdinAck {
                    run_id,
                    offset,
                    closed,
                });
            }
            if held.run.outbox().has_transmit() {
                self.turn.add(run_id);
            }
        }
        let held = &self.held;
        self.turn.poll(|run_id, credit| {
            let Some(held) = held.get(&run_id) else {
                return Offer::Nothing;
            };
            let mut outbox = held.run.outbox();
            match outbox.poll_transmit(credit, now()) {
                Some(transmit) => Offer::Frame {
                    bytes: match &transmit {
                        Transmit::Output { bytes, .. } => bytes.len(),
                        Transmit::Gap { .. } | Transmit::Ended { .. } => 0,
                    },
                    more: outbox.has_transmit(),
                    frame: said(run_id, transmit),
                },
                None if outbox.wants_credit() => Offer::WantsCredit,
                None => Offer::Nothing,
            }
        })
    }

    fn summary(&self, run_id: RunId, held: &Held) -> RunSummary {
        RunSummary {
            run_id,
            digest: held.digest,
            journal_id: self.journal.id,
            state: match held.run.pid() {
                Some(pid) => RunState::Running { pid },
                None => RunState::Ended,
            },
            totals: held.run.outbox().totals(),
            stdin: held.run.stdin().taken(),
        }
    }
}

fn said(run_id: RunId, transmit: Transmit) -> FromKeeper {
    match transmit {
        Transmit::Output {
            stream,
            offset,
            bytes,
        } => FromKeeper::Output {
            run_id,
            stream,
            offset,
            bytes: Payload(bytes),
        },
        Transmit::Gap {
            stream,
            from,
            to,
            reason,
        } => FromKeeper::Gap {
            run_id,
            stream,
            from,
            to,
            reason,
        },
        Transmit::Ended { ending, totals } => FromKeeper::Ended {
            run_id,
            ending: Box::new(ending),
            totals,
        },
    }
}

/// Section 6, "Starting": what no node runs.
fn is_sound(spec: &RunSpec) -> bool {
    let is_text = |text: &String| !text.contains('\0');
    let has_command = match &spec.command {
        Command::Argv(words) => !words.is_empty() && words.iter().all(is_text),
        Command::Shell(line) => is_text(line),
    };
    let cwd = spec.cwd.as_ref();
    has_command
        && cwd.is_none_or(|cwd| cwd.starts_with('/') && is_text(cwd))
        && spec.timeout_ms != Some(0)
        && spec.grace_ms <= 300_000
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Returns the base that commands start from, above it what the request says.
pub(crate) fn env_of(spec: &RunSpec) -> BTreeMap<String, String> {
    let mut env = machine::base_env();
    env.extend(spec.env.clone());
    env
}
