//! What a keeper answers to its client, message by message.
//!
//! A client that breaks the order of things, or lies about offsets, is let go; its runs are not
//! touched.

use std::borrow::Cow;
use std::time::Duration;

use moltis_proto::key::Digest;
use moltis_proto::limits;
use moltis_proto::run::outbox::{Outbox, OutboxLimits};
use moltis_proto::run::stdin::StdinReceiver;
use moltis_proto::run::{Ending, Outcome, RunSpec, StdinMode, Stream, Totals};
use moltis_proto::{FromKeeper, RunId, RunRefusal, ToKeeper};

use super::core::{Core, now};
use super::journal::Record;
use super::kernel::Name;
use super::program::StartFailure;
use super::run::Run;
use super::spawn::{NoPlan, Plan};
use super::spool::Spool;

impl Core {
    /// Takes what the client has said, up to one `Start`, which takes its time. Returns whether
    /// there is more.
    pub(super) fn hear(&mut self) -> bool {
        while let Some(client) = &mut self.client {
            let message = match client.poll_message() {
                Ok(Some(message)) => message,
                Ok(None) => return false,
                Err(error) => {
                    tracing::warn!(error = %error, "the client sends what is no message");
                    self.turn_away("it sends what is no message");
                    return false;
                }
            };
            let takes_time = matches!(message, ToKeeper::Start { .. });
            if let Err(why) = self.handle_message(message) {
                tracing::warn!("the client breaks a rule: {why}");
                self.turn_away("it broke a rule");
                return false;
            }
            if takes_time {
                return true;
            }
        }
        false
    }

    fn handle_message(&mut self, message: ToKeeper) -> Result<(), String> {
        if !matches!(message, ToKeeper::Attach { .. } | ToKeeper::Leave) {
            // Only a gateway says so, and it has read the list first.
            self.let_spent_journals_go();
        }
        match message {
            ToKeeper::Attach { .. } => return Err("it attaches twice".to_owned()),
            ToKeeper::Start {
                run_id,
                digest,
                spec,
            } => self.start(run_id, digest, &spec),
            ToKeeper::Resume {
                run_id,
                stdout,
                stderr,
            } => self.resume(run_id, Totals { stdout, stderr })?,
            ToKeeper::Ack {
                run_id,
                stdout,
                stderr,
            } => self.acknowledge(run_id, Totals { stdout, stderr })?,
            ToKeeper::Stdin {
                run_id,
                offset,
                bytes,
                eof,
            } => {
                let mut refused = Ok(());
                self.with(run_id, |run| {
                    refused = run.stdin.handle_stdin(offset, bytes.0, eof);
                });
                refused.map_err(|error| error.to_string())?;
            }
            ToKeeper::Resize { run_id, size } => self.with(run_id, |run| run.resize(size)),
            ToKeeper::Signal { run_id, signal } => self.with(run_id, |run| {
                if let Some(life) = &run.life {
                    life.signal(signal);
                }
            }),
            ToKeeper::Cancel { run_id, grace_ms } => {
                let grace = Duration::from_millis(grace_ms).min(limits::GRACE_MAX);
                self.cancel(run_id, grace);
            }
            ToKeeper::Forget { run_id } => self.forget(run_id),
            ToKeeper::Leave => self.leave(),
        }
        Ok(())
    }

    // Starting.

    fn start(&mut self, run_id: RunId, digest: Digest, spec: &RunSpec) {
        let answer = if let Some(known) = self.runs.get(&run_id) {
            if known.digest == digest {
                Some(FromKeeper::State {
                    summary: known.summary(),
                })
            } else {
                let code = RunRefusal::DigestMismatch;
                Some(FromKeeper::Refused { run_id, code })
            }
        } else {
            self.begin(run_id, digest, spec)
        };
        if let (Some(client), Some(answer)) = (&mut self.client, answer) {
            client.tell(answer);
        }
    }

    /// Begins a run that is not known. Returns what to tell the client at once.
    pub(super) fn begin(
        &mut self,
        run_id: RunId,
        digest: Digest,
        spec: &RunSpec,
    ) -> Option<FromKeeper> {
        if let Some(code) = self.used.refusal(run_id) {
            return Some(FromKeeper::Refused { run_id, code });
        }
        if !spec.is_sound() {
            let code = self.used.refusal_of_unsound();
            self.used.insert(run_id, code);
            return Some(FromKeeper::Refused { run_id, code });
        }
        if self.leaving {
            // Not remembered: the next keeper takes it.
            let code = RunRefusal::Leaving;
            return Some(FromKeeper::Refused { run_id, code });
        }
        let planned = match self.plan(spec) {
            Err(NoPlan::Refused(code)) => {
                self.used.insert(run_id, code);
                return Some(FromKeeper::Refused { run_id, code });
            }
            Err(NoPlan::Failed(failure)) => Err(failure),
            Ok(plan) => Ok(plan),
        };
        let accepted = Record::Accepted {
            run_id,
            digest,
            spec: Cow::Borrowed(spec),
        };
        if let Err(error) = self.journals[0].append(&accepted) {
            tracing::error!(run.id = %run_id, error = %error, "a run is refused");
            let code = RunRefusal::JournalFailed;
            self.used.insert(run_id, code);
            return Some(FromKeeper::Refused { run_id, code });
        }
        let journal = self.journals[0].id();
        let ids = (run_id, digest, journal);
        match planned.and_then(|plan| self.spawn(ids, &plan, spec)) {
            Ok(pid) => Some(FromKeeper::Started { run_id, pid }),
            Err(failure) => {
                self.fail(ids, failure);
                None
            }
        }
    }

    fn plan(&mut self, spec: &RunSpec) -> Result<Plan, NoPlan> {
        if self.runs.len() >= limits::RUNS_MAX {
            return Err(NoPlan::Refused(RunRefusal::TooMany));
        }
        let rules = self.rules.current().map_err(|error| {
            tracing::error!(error = %error, "every run is refused");
            NoPlan::Refused(RunRefusal::Policy)
        })?;
        Plan::new(spec, &rules, &self.kernel)
    }

    fn spawn(
        &mut self,
        ids: (RunId, Digest, moltis_proto::JournalId),
        plan: &Plan,
        spec: &RunSpec,
    ) -> Result<u32, StartFailure> {
        let name = Name {
            run: ids.0,
            journal: ids.2,
        };
        let spawned = plan.spawn(&mut self.kernel, name)?;
        let pid = spawned.child.id();
        let now = now();
        let (mut outbox, mut stdin) = (
            Outbox::new(OutboxLimits::default()),
            match spec.stdin {
                StdinMode::Open => StdinReceiver::open(limits::STDIN_WINDOW_BYTES),
                StdinMode::Empty => StdinReceiver::closed(),
            },
        );
        if spawned.stderr.is_none() {
            outbox.handle_eof(Stream::Stderr);
        }
        if let Some(client) = &self.client {
            stdin.set_window(client.windows.stdin_bytes);
            outbox.follow(&client.windows, now);
        }
        let started = Record::Started { run_id: ids.0, pid };
        if let Err(error) = self.journals[0].append(&started) {
            tracing::warn!(run.id = %ids.0, error = %error, "a process id is not in the journal");
        }
        let spools = self.spools(ids.0);
        let run = Run::started(
            ids,
            (plan, spawned),
            (outbox, stdin),
            spools,
            (&mut self.ops, now),
        );
        self.insert(run);
        Ok(pid)
    }

    /// A run that could not start is over at once.
    fn fail(&mut self, ids: (RunId, Digest, moltis_proto::JournalId), failure: StartFailure) {
        let StartFailure { reason, detail } = failure;
        let ending = Ending::without_status(Outcome::FailedToStart, reason, detail);
        let mut outbox = Outbox::new(OutboxLimits::default());
        if let Some(client) = &self.client {
            outbox.follow(&client.windows, now());
        }
        outbox.finish(ending);
        let spools = self.spools(ids.0);
        self.insert(Run::over(ids, outbox, spools));
        self.write_ending(ids.0);
    }

    fn spools(&self, run_id: RunId) -> [Spool; 2] {
        Stream::BOTH.map(|stream| Spool::new(&self.disk, &self.dir, run_id, stream))
    }

    // Following.

    fn resume(&mut self, run_id: RunId, offsets: Totals) -> Result<(), String> {
        let (Some(client), Some(run)) = (&mut self.client, self.runs.get_mut(&run_id)) else {
            return Ok(()); // forgotten meanwhile
        };
        let freed = run.outbox.handle_resume(&client.windows, offsets, now());
        client
            .turn
            .handle_freed(freed.map_err(|error| error.to_string())?);
        run.take_windows(&client.windows);
        self.with(run_id, |_| {});
        Ok(())
    }

    fn acknowledge(&mut self, run_id: RunId, offsets: Totals) -> Result<(), String> {
        let (Some(client), Some(run)) = (&mut self.client, self.runs.get_mut(&run_id)) else {
            return Ok(()); // forgotten meanwhile
        };
        let freed = run.outbox.handle_ack(offsets, now());
        client
            .turn
            .handle_freed(freed.map_err(|error| error.to_string())?);
        self.with(run_id, |_| {});
        Ok(())
    }

    fn forget(&mut self, run_id: RunId) {
        if self.runs.get(&run_id).is_none_or(|run| run.life.is_some()) {
            tracing::warn!(run.id = %run_id, "a run that is not over cannot be forgotten");
            return;
        }
        let Some(run) = self.remove(run_id) else {
            return;
        };
        let forgotten = Record::Forgotten { run_id };
        let journals = &mut self.journals;
        let journal = journals
            .iter_mut()
            .find(|journal| journal.id() == run.journal);
        if let Some(Err(error)) = journal.map(|journal| journal.append(&forgotten)) {
            tracing::warn!(run.id = %run_id, error = %error, "a forgotten run is still in the journal");
        }
        self.used.insert(run_id, RunRefusal::Forgotten);
        let spools = run.into_spools();
        if !spools.is_empty() {
            self.ops.delete(spools);
        }
    }
}
