//! How a run comes to its end: the words of it, and the way into the store.
//!
//! One task takes a run from its last message to `Forget`: output complete, row written, everybody
//! told, then synced, then the node may delete it. It begins once for each run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use moltis_proto::code::RunRefusal;
use moltis_proto::limits::DETAIL_BYTES_MAX;
use moltis_proto::run::{Ending, Outcome, Reason, Totals};

use super::Shared;
use super::error::ReadError;
use super::live::LiveRun;
use super::request::millis;
use crate::events::Event;
use crate::output::OutputError;
use crate::session::chain;
use crate::session::seat::Command;
use crate::store::{Ended, RunStage, Started, StoreError, Written};

/// The wait before an ending that could not be written is tried again.
pub(super) const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Runs whose ends one sync has covered are forgotten in so many groups, this far apart: a new run
/// then never waits behind all of them.
const FORGET_GROUPS: u8 = 8;
const FORGET_APART: Duration = Duration::from_millis(25);

/// Returns the ending of a run that was found not to be there.
pub(crate) fn found(outcome: Outcome, reason: Reason) -> Ending {
    let detail = match reason {
        Reason::NotStarted => "its start has not come to its node, and it never begins",
        _ => "",
    };
    Ending {
        outcome,
        reason: Some(reason),
        status: None,
        detail: detail.to_owned(),
        duration_ms: 0,
        descendants_may_survive: false,
    }
}

/// Returns the ending of a run whose end was asked for before it was sent anywhere.
pub(crate) fn cancelled_unsent() -> Ending {
    let detail = "it was cancelled before it was sent to its node".to_owned();
    Ending::without_status(Outcome::Cancelled, None, detail)
}

/// Returns the ending of a run that its node refused.
pub(crate) fn refused(code: RunRefusal, born: Instant, now: Instant) -> Ending {
    let (outcome, reason, detail) = match code {
        RunRefusal::Policy => (
            Outcome::Refused,
            Some(Reason::Policy),
            "the policy of the node's owner does not allow this command".to_owned(),
        ),
        RunRefusal::EnvNotAllowed => (
            Outcome::Refused,
            Some(Reason::Policy),
            "the node's owner does not allow one of these variables".to_owned(),
        ),
        RunRefusal::TimeoutTooLong { longest_ms } => (
            Outcome::Refused,
            Some(Reason::Policy),
            format!(
                "the node runs a command for at most {} s",
                longest_ms / 1000
            ),
        ),
        RunRefusal::DigestMismatch => (
            Outcome::Refused,
            None,
            "the node knows this id with another command".to_owned(),
        ),
        RunRefusal::TooMany => (
            Outcome::Refused,
            None,
            "the node holds as many runs as it can".to_owned(),
        ),
        RunRefusal::Invalid => (
            Outcome::Refused,
            None,
            "the node found a value out of its bounds".to_owned(),
        ),
        RunRefusal::Leaving => (
            Outcome::FailedToStart,
            Some(Reason::NotStarted),
            "the node's keeper is leaving".to_owned(),
        ),
        RunRefusal::Forgotten => (
            Outcome::Lost,
            Some(Reason::NodeForgot),
            "the node has forgotten this run".to_owned(),
        ),
        RunRefusal::JournalFailed => (
            Outcome::FailedToStart,
            Some(Reason::NotStarted),
            "the node cannot write its journal".to_owned(),
        ),
    };
    Ending {
        outcome,
        reason,
        status: None,
        detail,
        duration_ms: millis(now.saturating_duration_since(born)),
        descendants_may_survive: false,
    }
}

/// Returns a node's ending with its words cut to what may be: they are shown to people.
pub(crate) fn from_node(mut ending: Ending) -> Ending {
    ending
        .detail
        .retain(|c| !moltis_proto::name::is_deceptive(c));
    let mut end = ending.detail.len().min(DETAIL_BYTES_MAX);
    while !ending.detail.is_char_boundary(end) {
        end -= 1;
    }
    ending.detail.truncate(end);
    ending
}

/// Returns the ending of a run of which output has come: what was not started prints nothing, so
/// another machine has answered, as one with a copy of the node's key does.
fn not_contradicted(ending: Ending) -> Ending {
    if ending.reason != Some(Reason::NotStarted) {
        return ending;
    }
    Ending {
        outcome: Outcome::Lost,
        reason: Some(Reason::NodeForgot),
        detail: "the node says that it does not know this run, and has sent output of it"
            .to_owned(),
        ..ending
    }
}

/// Where an ending comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// The node said it, behind this much output, and keeps the run until it hears `Forget`.
    Node(Totals),
    /// It follows from what is known here; the node does not hold the run.
    Known,
}

impl Shared {
    /// Ends a run, unless somebody has.
    pub(crate) fn end(self: &Arc<Self>, run: &Arc<LiveRun>, ending: Ending, source: Source) {
        if !run.take_ending() {
            return;
        }
        let (shared, run) = (Arc::clone(self), Arc::clone(run));
        self.tasks.spawn(async move {
            shared.finish(&run, ending, source).await;
        });
    }

    async fn finish(&self, run: &Arc<LiveRun>, ending: Ending, source: Source) {
        // Then all that was left to do was to take what a power cut had taken of its output.
        let was_over = run.is_over();
        self.settle_aside(run, &ending).await;
        let here = run.output.totals();
        let ending = match source {
            Source::Known if here != Totals::default() => not_contradicted(ending),
            _ => ending,
        };
        let totals = match source {
            // What has come here and waits for the disk may be more than its node has left.
            Source::Node(totals) => Totals {
                stdout: totals.stdout.max(here.stdout),
                stderr: totals.stderr.max(here.stderr),
            },
            Source::Known => here,
        };
        run.output.finish(totals);
        tokio::select! {
            biased;
            () = run.output.written() => {}
            () = self.stops_with_a_full_disk() => {
                // A node keeps the run, and what follows from what is known here follows again.
                tracing::warn!(run.id = %run.id, "the ending of a run waits for the disk longer than this process lives");
                return;
            }
        }
        let heads = run.output.heads();
        let at = self.clock.now();
        let record = run.record();
        let started = record.started_at.map(|at| Started {
            at,
            pid: record.pid,
        });
        let ended = Ended {
            ending: ending.clone(),
            totals,
            heads,
            started,
            at,
        };
        let tell = || {
            if was_over {
                return;
            }
            self.tell_ended(run, &ending, totals, at);
            tracing::info!(run.id = %run.id, outcome = ?ending.outcome, duration_ms = ending.duration_ms, "a run has ended");
        };
        let write = self.write_ending(run, ended, source);
        let written = match source {
            // The node keeps the run until it is written, so nobody has to wait for that (ADR 9).
            Source::Node(_) => {
                let (written, ()) = tokio::join!(write, async { tell() });
                written
            }
            Source::Known => write.await.inspect(|_| tell()),
        };
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                match source {
                    Source::Node(_) => {
                        tracing::error!(run.id = %run.id, %error, "the ending of a run cannot be written; its node keeps it");
                    }
                    // The next process concludes it anew, and perhaps otherwise: it is told to nobody.
                    Source::Known => {
                        tracing::error!(run.id = %run.id, %error, "the ending of a run cannot be written; whoever waits for it is told so");
                        run.fail(error);
                    }
                }
                return;
            }
        };
        self.let_stdin_go(run);
        match source {
            Source::Node(_) => self.forget(run, written).await,
            Source::Known => {}
        }
        self.table.remove(run);
    }

    /// What was set aside of an earlier run with this id is this run's where the node has forgotten it
    /// before it could start, and nobody's else.
    async fn settle_aside(&self, run: &Arc<LiveRun>, ending: &Ending) {
        if !self.outputs.is_aside(run.id) {
            return;
        }
        let is_its_own = ending.reason == Some(Reason::NodeForgot);
        let (outputs, output) = (self.outputs.clone(), Arc::clone(&run.output));
        let settle = move || {
            if is_its_own {
                return outputs.take_back(&output);
            }
            outputs.drop_aside(output.run_id())
        };
        match self.outputs.system().blocking(settle).await {
            Ok(Ok(())) | Err(_) => {} // the runtime is shutting down
            Ok(Err(error)) => {
                tracing::error!(run.id = %run.id, error = %chain(&error), "output of an earlier run with this id stays aside");
            }
        }
    }

    /// Deletes what was set aside: another run with that id has started.
    pub(super) fn drop_aside(&self, run: &Arc<LiveRun>) {
        if !self.outputs.is_aside(run.id) {
            return;
        }
        let (outputs, id) = (self.outputs.clone(), run.id);
        let system = self.outputs.system().clone();
        self.tasks.spawn(async move {
            let dropped = system.blocking(move || outputs.drop_aside(id)).await;
            if let Ok(Err(error)) = dropped {
                tracing::error!(run.id = %id, error = %chain(&error), "output of an earlier run with this id cannot be deleted");
            }
        });
    }

    /// Waits until the gateway stops while output cannot be written.
    async fn stops_with_a_full_disk(&self) {
        self.tasks.stop().cancelled().await;
        let mut trouble = self.outputs.trouble();
        trouble.wait_for(Option::is_some).await.map(drop).ok(); // `self` holds the sender
    }

    /// Waits until output is synced, unless the gateway stops while that cannot be done.
    pub(super) async fn unless_it_stops(
        &self,
        synced: impl Future<Output = Result<(), OutputError>>,
    ) -> Result<(), OutputError> {
        let stops = async {
            self.tasks.stop().cancelled().await;
            let mut trouble = self.outputs.sync_trouble();
            trouble.wait_for(Option::is_some).await.map(drop).ok(); // `self` holds the sender
        };
        tokio::select! {
            biased;
            synced = synced => synced,
            () = stops => Err(OutputError::SyncFailed {
                reason: "the gateway is shutting down".to_owned(),
            }),
        }
    }

    /// Lets everybody who holds the run know that it is over.
    fn tell_ended(&self, run: &LiveRun, ending: &Ending, totals: Totals, at: Timestamp) {
        {
            let mut wishes = run.wishes();
            wishes.stdin.close();
            wishes.signals.clear();
        }
        run.stdin_room.notify_waiters();
        run.update(|record| {
            record.stage = RunStage::Ended;
            record.ended_at = Some(at);
            record.ending = Some(ending.clone());
            record.totals = totals;
        });
        self.events.send(Event::RunEnded(run.id));
        self.count_ended(run, ending);
    }

    fn count_ended(&self, run: &LiveRun, ending: &Ending) {
        let counts = self.counts();
        counts.ended.one(ending.outcome);
        let Some(took) = run.since_asked() else {
            return;
        };
        counts.whole_time.note(took);
        if matches!(ending.outcome, Outcome::Exited | Outcome::Signaled) {
            let command = Duration::from_millis(ending.duration_ms);
            counts.overhead.note(took.saturating_sub(command));
        }
    }

    async fn write_ending(
        &self,
        run: &LiveRun,
        ended: Ended,
        source: Source,
    ) -> Result<Option<Written>, StoreError> {
        loop {
            let ended = ended.clone();
            let written = match source {
                Source::Node(_) => self.store.end_run_later(run.id, ended).await,
                Source::Known => self.store.end_run(run.id, ended).await,
            };
            match written {
                Err(error) if self.may_pass(&error) => {
                    tracing::warn!(run.id = %run.id, error = %chain(&error), "the ending of a run has to wait");
                    // Nobody can say whether this one passes: who waits is told, and may ask again.
                    if matches!(source, Source::Known) && !error.is_retryable() {
                        run.fail(error);
                    }
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                result => return result,
            }
        }
    }

    /// Returns whether what failed may be done a little later by this process.
    pub(super) fn may_pass(&self, error: &StoreError) -> bool {
        let passes = error.is_retryable()
            || matches!(error, StoreError::Database { .. }) && self.store.failure().is_none();
        passes && !self.tasks.stop().is_cancelled()
    }

    /// Lets the node delete a run, once its ending and its output would survive a power cut.
    async fn forget(&self, run: &Arc<LiveRun>, written: Option<Written>) {
        let synced = async {
            if let Some(written) = written {
                self.store.synced_soon(written, self.tasks.stop()).await?;
            }
            self.unless_it_stops(run.output.synced()).await?;
            Ok::<(), ReadError>(())
        };
        if let Err(error) = synced.await {
            // The node keeps the run; the next connection finds it and asks again.
            tracing::warn!(run.id = %run.id, error = %chain(&error), "a run is not on the disk yet");
            return;
        }
        let group = run.id.as_bytes()[0] % FORGET_GROUPS;
        tokio::select! {
            biased;
            () = self.tasks.stop().cancelled() => {}
            () = tokio::time::sleep(FORGET_APART * group.into()) => {}
        }
        if let Some(seat) = self.seat_of(&run.target()) {
            // A connection that is gone will list the run again.
            seat.send(Command::Forget(run.id)).await.ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_words_are_cut_and_hold_nothing_that_deceives() {
        let mut ending = found(Outcome::Exited, Reason::NotFound);
        ending.detail = format!("\u{1b}[31m\u{202e}é{}", "é".repeat(1000));
        let ending = from_node(ending);
        assert!(ending.detail.len() <= DETAIL_BYTES_MAX);
        assert!(ending.detail.starts_with("[31mé"));
    }
}
