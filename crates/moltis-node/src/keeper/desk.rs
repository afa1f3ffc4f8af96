//! What a keeper answers to its client, message by message.
//!
//! A client that breaks the order of things, or lies about offsets, is let go; its runs are not
//! touched. How a run is started stands in [`super::starting`].

use std::time::Duration;

use moltis_proto::limits;
use moltis_proto::run::Totals;
use moltis_proto::{RunId, RunRefusal, ToKeeper};

use super::core::{Core, now};
use super::journal::Record;

impl Core {
    /// Takes what the client has said, up to one `Start`, which takes its time, and not what has to
    /// wait until something was looked at. Returns whether there is more to take now.
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
            let Some(message) = self.starts.put_by(message) else {
                continue;
            };
            if self.starts.hold(&message, now()) {
                client.hold(message);
                return false;
            }
            let takes_time = matches!(message, ToKeeper::Start { .. });
            if !self.obey(message) {
                return false;
            }
            if takes_time {
                return true;
            }
        }
        false
    }

    /// Handles what the client has said; returns whether it is still ours.
    pub(super) fn obey(&mut self, message: ToKeeper) -> bool {
        let handled = self.handle_message(message);
        if let Err(why) = &handled {
            tracing::warn!("the client breaks a rule: {why}");
            self.turn_away("it broke a rule");
        }
        handled.is_ok()
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
            } => self.start(run_id, digest, *spec),
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
