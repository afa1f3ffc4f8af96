//! From a `Start` to a child: its files are looked at aside, then it is written down, then spawned.
//!
//! Before it is written down nobody has promised anything: a client that goes meanwhile, or a keeper
//! that leaves, has not taken the run.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::AbortHandle;
use moltis_proto::key::Digest;
use moltis_proto::limits;
use moltis_proto::run::outbox::{Outbox, OutboxLimits};
use moltis_proto::run::stdin::StdinReceiver;
use moltis_proto::run::{Ending, Outcome, RunSpec, StdinMode, Stream};
use moltis_proto::{FromKeeper, JournalId, RunId, RunRefusal, ToKeeper};

use super::core::{Core, now};
use super::journal::Record;
use super::kernel::Name;
use super::lookers::{LOOK_TIME, Lookers, Place};
use super::program::StartFailure;
use super::run::Run;
use super::spawn::{Look, NoPlan, Plan};
use super::spool::Spool;
use crate::clock::Clock;

/// How long a start waits for the look of the one before it. Most take a hundredth of that, and so
/// runs start in the order in which they were asked for.
const PATIENCE: Duration = Duration::from_millis(50);

/// A look that took longer than this, by a clock that goes on in a sleep, was slept through: nobody waits
/// for files so long.
const AWAKE_FOR: Duration = Duration::from_secs(2 * LOOK_TIME.as_secs());

/// Messages for a run whose files are looked at that are put by. Its stdin window is less.
const PUT_BY_MAX: usize = 256;

/// Starts whose files are looked at.
#[derive(Debug)]
pub(super) struct Starts {
    under_way: HashMap<RunId, Start>,
    lookers: Lookers,
    /// When the last one began.
    last: Option<Instant>,
    clock: Clock,
}

#[derive(Debug)]
struct Start {
    digest: Digest,
    spec: Arc<RunSpec>,
    look: AbortHandle,
    /// When it began, by the clock that goes on in a sleep.
    since: Duration,
    /// What the client has said of it meanwhile.
    put_by: Vec<ToKeeper>,
}

impl Starts {
    pub(super) fn new() -> Self {
        Self {
            under_way: HashMap::new(),
            lookers: Lookers::new(),
            last: None,
            clock: Clock::system(),
        }
    }

    /// Takes out a start whose files were looked at, and what came of it: nothing where this machine slept
    /// meanwhile, for whoever asked may have been told by now that nothing would.
    fn take<T>(
        &mut self,
        run_id: RunId,
        planned: Result<T, NoPlan>,
    ) -> Option<(Start, Result<T, NoPlan>)> {
        let start = self.under_way.remove(&run_id)?;
        let took = self.clock.now().boottime.saturating_sub(start.since);
        let planned = match planned {
            Ok(_) if took > AWAKE_FOR => Err(NoPlan::Failed(StartFailure::in_words(
                "this machine slept, or its keeper stood still, while the files of the command were looked at, so nothing was started",
            ))),
            planned => planned,
        };
        Some((start, planned))
    }

    /// Puts a message by that is for a run whose files are looked at; returns any other.
    pub(super) fn put_by(&mut self, message: ToKeeper) -> Option<ToKeeper> {
        if matches!(
            message,
            ToKeeper::Start { .. } | ToKeeper::Cancel { .. } | ToKeeper::Forget { .. }
        ) {
            return Some(message);
        }
        let run_id = message.run_id();
        let start = run_id.and_then(|run_id| self.under_way.get_mut(&run_id));
        match start {
            Some(start) if start.put_by.len() < PUT_BY_MAX => {
                start.put_by.push(message);
                None
            }
            _ => Some(message),
        }
    }

    /// Returns whether this message has to wait until something else has been looked at.
    pub(super) fn hold(&mut self, message: &ToKeeper, now: Instant) -> bool {
        match message {
            ToKeeper::Start { .. } if self.under_way.is_empty() => false,
            ToKeeper::Start { .. } => {
                self.patient_until().is_some_and(|until| now < until) || self.lookers.are_all_busy()
            }
            ToKeeper::Cancel { .. } => false,
            message => {
                let run_id = message.run_id();
                run_id.is_some_and(|run_id| self.under_way.contains_key(&run_id))
            }
        }
    }

    /// Returns when a message that is held need not wait for the last look any more.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        // Else it is the end of a look that is waited for.
        let may_begin = !self.under_way.is_empty() && !self.lookers.are_all_busy();
        may_begin.then(|| self.patient_until()).flatten()
    }

    fn patient_until(&self) -> Option<Instant> {
        self.last.map(|last| last + PATIENCE)
    }

    /// Lets go of all of them, and returns what they were to start.
    pub(super) fn clear(&mut self) -> Vec<RunId> {
        let drained = self.under_way.drain().map(|(run_id, start)| {
            start.look.abort();
            run_id
        });
        drained.collect()
    }
}

impl Core {
    /// Handles a `Start`.
    pub(super) fn start(&mut self, run_id: RunId, digest: Digest, spec: RunSpec) {
        let known = self.runs.get(&run_id);
        let under_way = self.starts.under_way.get(&run_id);
        let as_known = known.map(|known| known.digest);
        let answer = match as_known.or(under_way.map(|start| start.digest)) {
            Some(other) if other != digest => Some(FromKeeper::Refused {
                run_id,
                code: RunRefusal::DigestMismatch,
            }),
            // What is still looked at is answered then.
            Some(_) => known.map(|known| FromKeeper::State {
                summary: known.summary(),
            }),
            None => self.begin(run_id, digest, spec),
        };
        self.answer(answer);
    }

    fn answer(&mut self, answer: Option<FromKeeper>) {
        if let (Some(client), Some(answer)) = (&mut self.client, answer) {
            client.tell(answer);
        }
    }

    /// Begins a run that is not known: has its files looked at. Returns what to tell the client at
    /// once.
    pub(super) fn begin(
        &mut self,
        run_id: RunId,
        digest: Digest,
        spec: RunSpec,
    ) -> Option<FromKeeper> {
        if let Some(code) = self.used.refusal(run_id) {
            return Some(FromKeeper::Refused { run_id, code });
        }
        if !spec.is_sound() {
            let code = self.used.refusal_of_unsound();
            return Some(self.refuse(run_id, code));
        }
        if self.leaving {
            // Not remembered: the next keeper takes it.
            let code = RunRefusal::Leaving;
            return Some(FromKeeper::Refused { run_id, code });
        }
        if self.runs.len() + self.starts.under_way.len() >= limits::RUNS_MAX {
            return Some(self.refuse(run_id, RunRefusal::TooMany));
        }
        let rules = match self.rules.current() {
            Ok(rules) => rules,
            Err(error) => {
                tracing::error!(error = %error, "no run is started");
                // The owner has not said no.
                let detail = format!("{error}: {}", error.source);
                return self.take(run_id, digest, &spec, Err(StartFailure::in_words(detail)));
            }
        };
        let spec = Arc::new(spec);
        let place = Place::default();
        let look = Look::new(self.kernel.eyes(), place.clone());
        if self.disk.is_simulated() {
            // No file system hangs there, and a world has one thread.
            let planned = Plan::new(&spec, &rules, &look);
            return self.go_on(run_id, digest, &spec, planned);
        }
        let of = Arc::clone(&spec);
        let planning = self
            .starts
            .lookers
            .look(&spec, place, move || Plan::new(&of, &rules, &look));
        match planning {
            Ok(planning) => {
                let look = self.ops.plan(run_id, async move {
                    planning
                        .await
                        .unwrap_or_else(|failure| Err(NoPlan::Failed(failure)))
                });
                let start = Start {
                    digest,
                    spec,
                    look,
                    since: self.starts.clock.now().boottime,
                    put_by: Vec::new(),
                };
                self.starts.under_way.insert(run_id, start);
                self.starts.last = Some(now());
                None
            }
            Err(failure) => self.take(run_id, digest, &spec, Err(failure)),
        }
    }

    /// Goes on with a start whose files were looked at.
    pub(super) fn handle_planned(&mut self, run_id: RunId, planned: Result<Plan, NoPlan>) {
        let Some((start, planned)) = self.starts.take(run_id, planned) else {
            return; // it was let go meanwhile
        };
        let answer = self.go_on(run_id, start.digest, &start.spec, planned);
        self.answer(answer);
        for message in start.put_by {
            if !self.obey(message) {
                return;
            }
        }
    }

    fn go_on(
        &mut self,
        run_id: RunId,
        digest: Digest,
        spec: &RunSpec,
        planned: Result<Plan, NoPlan>,
    ) -> Option<FromKeeper> {
        match planned {
            Err(NoPlan::Refused(code)) => Some(self.refuse(run_id, code)),
            Err(NoPlan::Failed(failure)) => self.take(run_id, digest, spec, Err(failure)),
            Ok(plan) => self.take(run_id, digest, spec, Ok(plan)),
        }
    }

    fn refuse(&mut self, run_id: RunId, code: RunRefusal) -> FromKeeper {
        self.used.insert(run_id, code);
        FromKeeper::Refused { run_id, code }
    }

    /// Writes the run down and starts it, or says why not.
    fn take(
        &mut self,
        run_id: RunId,
        digest: Digest,
        spec: &RunSpec,
        planned: Result<Plan, StartFailure>,
    ) -> Option<FromKeeper> {
        let ids = match self.accept(run_id, digest, spec) {
            Ok(ids) => ids,
            Err(refused) => return Some(refused),
        };
        match planned.and_then(|plan| self.spawn(ids, &plan, spec)) {
            Ok(pid) => Some(FromKeeper::Started { run_id, pid }),
            Err(StartFailure { reason, detail }) => {
                let ending = Ending::without_status(Outcome::FailedToStart, reason, detail);
                self.end_at_once(ids, ending);
                None
            }
        }
    }

    /// Writes down that the run is ours from now on.
    fn accept(
        &mut self,
        run_id: RunId,
        digest: Digest,
        spec: &RunSpec,
    ) -> Result<(RunId, Digest, JournalId), FromKeeper> {
        let accepted = Record::Accepted {
            run_id,
            digest,
            spec: Cow::Borrowed(spec),
        };
        match self.journals[0].append(&accepted) {
            Ok(()) => Ok((run_id, digest, self.journals[0].id())),
            Err(error) => {
                tracing::error!(run.id = %run_id, error = %error, "a run is refused");
                Err(self.refuse(run_id, RunRefusal::JournalFailed))
            }
        }
    }

    fn spawn(
        &mut self,
        ids: (RunId, Digest, JournalId),
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

    /// Calls off a start whose files are still looked at: nothing was spawned. Returns whether there
    /// was one.
    pub(super) fn call_off(&mut self, run_id: RunId) -> bool {
        let Some(start) = self.starts.under_way.remove(&run_id) else {
            return false;
        };
        // What was put by was for a command that never is.
        let Start {
            digest, spec, look, ..
        } = start;
        look.abort();
        match self.accept(run_id, digest, &spec) {
            Ok(ids) => {
                let detail = "it was cancelled before it was started".to_owned();
                let ending = Ending::without_status(Outcome::Cancelled, None, detail);
                self.end_at_once(ids, ending);
            }
            Err(refused) => self.answer(Some(refused)),
        }
        true
    }

    /// A run that has not started is over at once.
    fn end_at_once(&mut self, ids: (RunId, Digest, JournalId), ending: Ending) {
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
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_start_that_was_slept_through_comes_to_nothing() {
        let seconds = Arc::new(AtomicU64::new(1_000));
        let now = Arc::clone(&seconds);
        let mut starts = Starts::new();
        starts.clock =
            Clock::with_boottime(move || Duration::from_secs(now.load(Ordering::SeqCst)));
        let run_id = RunId::from_bytes([7; 16]);
        let mut looked_at_for = |took: u64| {
            let start = Start {
                digest: Digest::from_bytes([3; 32]),
                spec: Arc::new(moltis_proto::run::reconcile::question()),
                look: AbortHandle::new_pair().0,
                since: starts.clock.now().boottime,
                put_by: Vec::new(),
            };
            starts.under_way.insert(run_id, start);
            seconds.fetch_add(took, Ordering::SeqCst);
            starts.take(run_id, Ok(())).unwrap().1
        };
        assert!(looked_at_for(5).is_ok());
        let slept = looked_at_for(3_600);
        let Err(NoPlan::Failed(failure)) = slept else {
            panic!("it is obeyed: {slept:?}");
        };
        assert!(failure.detail.contains("slept"), "{}", failure.detail);
    }
}
