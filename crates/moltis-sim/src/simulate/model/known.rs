//! One request, what came of it, and what may be told of that.

use std::collections::BTreeSet;
use std::time::Duration;

use moltis_gateway::api::runs::{Outcome, OutcomeReason, Run, RunResult};
use moltis_proto::limits::{OUTBOX_MEMORY_BYTES, START_TIME_MAX};
use moltis_proto::run::ExitStatus;

use super::excuses::{Excuses, Since};
use super::output::Reads;
use super::{Checked, Violation, violation};
use crate::simulate::kernel::script::{Stream, Tag};
use crate::simulate::net::Place;

/// Bytes of a stream that go with a keeper, at the most: its memory, what it keeps below an
/// acknowledgement, a full pipe, and a piece on its way between them.
pub(super) const MEMORY_BYTES: u64 = OUTBOX_MEMORY_BYTES + (64 + 64 + 256) * 1024;

/// How much longer than its timeout a run may live: the grace, what it leaves behind, and a keeper
/// that has other work.
const OVERTIME: Duration = START_TIME_MAX;

/// By when a keeper has written down how a run ended whose child is gone: its output is read first,
/// which waits for who follows it.
const NOTED_WITHIN: Duration = Duration::from_secs(30);

/// What is known of one request, and of what came of it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) place: Place,
    pub(super) key: Option<String>,
    /// The timeouts that were asked for under its key: one of them is the run's.
    pub(super) timeouts: Vec<Option<Duration>>,
    pub(super) asked: Since,
    /// When it was asked for again, under its key.
    pub(super) asked_last: Since,
    /// When its place was connected last before it was asked for.
    pub(super) connected: Since,
    pub(super) ids: BTreeSet<String>,
    /// When somebody was first told of its run, whose row is there then.
    pub(super) answered: Option<Since>,
    /// Since when that row is known to be on the gateway's disk.
    pub(super) is_row_synced: bool,
    pub(super) executed: Option<Since>,
    pub(super) written: [u64; 2],
    /// How much that was when a keeper of its place died first: perhaps nobody has read the rest.
    pub(super) written_to_keeper: Option<[u64; 2]>,
    /// How much of it its spools held last, and since when that is deleted.
    pub(super) spooled: [(u64, Option<Since>); 2],
    /// A power cut of the gateway has taken output of it, which its keeper may have let go.
    pub(super) was_taken_by_power: bool,
    pub(super) status: Option<(ExitStatus, Since)>,
    pub(super) was_halted: bool,
    pub(super) is_cancelled: bool,
    /// When somebody was told that its end is on its way.
    pub(super) cancel_taken: Option<Since>,
    /// The caller was told that nothing was started, and cannot ask again.
    pub(super) was_refused: bool,
    pub(super) told: Option<(Told, Since)>,
    /// What readers got.
    pub(super) reads: [Reads; 2],
}

/// How a caller was told that a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) outcome: Outcome,
    pub(super) reason: Option<OutcomeReason>,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    /// Bytes of stdout and stderr.
    pub(super) totals: [u64; 2],
}

impl Told {
    pub(super) fn by_run(outcome: Outcome, run: &Run) -> Self {
        Self {
            outcome,
            reason: run.outcome_reason,
            exit_code: run.exit_code,
            signal: run.signal,
            totals: [run.stdout_bytes, run.stderr_bytes],
        }
    }

    pub(super) fn by_result(result: &RunResult) -> Self {
        Self {
            outcome: result.outcome,
            reason: result.outcome_reason,
            exit_code: result.exit_code,
            signal: result.signal,
            totals: [result.stdout_bytes, result.stderr_bytes],
        }
    }

    /// Returns whether this one says that nothing was started, and the later one that nobody knows. A
    /// gateway whose row was not synced concludes it anew, and the journal may be another one by then.
    fn is_nothing_and(&self, later: &Self) -> bool {
        self.reason == Some(OutcomeReason::NotStarted)
            && later.reason == Some(OutcomeReason::NodeForgot)
    }

    /// Returns whether the later one is the same but for bytes that a gateway had in memory when it told
    /// this one: a keeper that has died cannot bring them again.
    fn is_shortened_by(&self, later: &Self) -> bool {
        let is_no_more = |at: usize| later.totals[at] <= self.totals[at];
        let same = Self {
            totals: self.totals,
            ..later.clone()
        };
        self.outcome == Outcome::Lost && same == *self && is_no_more(0) && is_no_more(1)
    }

    /// Returns whether the other one could have been told instead.
    pub(super) fn may_become(
        &self,
        later: &Self,
        (place, begun, since): (Place, Since, Since),
        excuses: &Excuses,
    ) -> bool {
        (self.is_nothing_and(later) && excuses.power_took(since))
            || (self.is_shortened_by(later) && excuses.death_took_ending(since))
            || excuses.restored_without_ending(since)
            || excuses.forgot_ending(place, begun, since)
    }
}

impl Known {
    pub(super) fn new(place: Place, key: Option<String>, asked: Since, connected: Since) -> Self {
        Self {
            place,
            key,
            timeouts: Vec::new(),
            asked,
            asked_last: asked,
            connected,
            ids: BTreeSet::new(),
            answered: None,
            is_row_synced: false,
            executed: None,
            written: [0; 2],
            written_to_keeper: None,
            spooled: [(0, None); 2],
            was_taken_by_power: false,
            status: None,
            was_halted: false,
            is_cancelled: false,
            cancel_taken: None,
            was_refused: false,
            told: None,
            reads: Default::default(),
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.executed.is_some() && self.status.is_none() && !self.was_halted
    }

    /// Returns since when its place matters to it: since it began there, else since its place was
    /// last heard of before it was asked for.
    pub(super) fn begun(&self) -> Since {
        self.executed.unwrap_or(self.connected)
    }

    /// Takes note of how it is told to have ended, and looks at whether that may be.
    pub(super) fn ended(&mut self, tag: Tag, told: Told, excuses: &Excuses) -> Checked {
        if self
            .told
            .as_ref()
            .is_some_and(|(before, _)| *before == told)
        {
            return Ok(());
        }
        if let Some((before, since)) = &self.told
            && !before.may_become(&told, (self.place, self.begun(), *since), excuses)
        {
            return Err(violation!(
                "I7",
                "{tag} was told {before:?}, and now {told:?}"
            ));
        }
        self.check_ending(tag, &told, excuses)?;
        self.check_totals(tag, &told, excuses)?;
        let since = self.told.take().map(|(_, since)| since);
        self.told = Some((told, since.unwrap_or(excuses.now())));
        Ok(())
    }

    /// Looks at whether the world has such an end for this run.
    fn check_ending(&self, tag: Tag, told: &Told, excuses: &Excuses) -> Checked {
        let by_kernel = match (told.exit_code, told.signal) {
            (Some(code), None) => Some(ExitStatus::Code(code)),
            (None, Some(signal)) => Some(ExitStatus::Signal(signal)),
            (None, None) => None,
            (Some(_), Some(_)) => return Err(violation!("I8", "{tag} has a code and a signal")),
        };
        let status = self.status.map(|(status, _)| status);
        if by_kernel.is_some() && by_kernel != status {
            return Err(violation!(
                "I8",
                "{tag} is told {told:?}, and its kernel says {status:?}"
            ));
        }
        let objection = match told.outcome {
            Outcome::Exited | Outcome::Signaled => by_kernel
                .is_none()
                .then_some(("I8", "without a word of the kernel")),
            Outcome::Cancelled => (!self.is_cancelled
                && !excuses.keeper_leaves(self.place, self.begun()))
            .then_some(("I8", "and nobody has asked for its end")),
            Outcome::TimedOut => {
                (!self.was_time_over()).then_some(("I8", "and its time was not over"))
            }
            Outcome::FailedToStart | Outcome::Refused => {
                // The same key asked anew of a database that was put back and knows nothing of it.
                let knew = self
                    .executed
                    .is_none_or(|at| at < self.asked_last && excuses.restored_over(at));
                (!knew).then_some(("I10", "and it was executed"))
            }
            Outcome::Lost => {
                (!self.may_be_lost(told, excuses)).then_some(("I18", "and nothing excuses it"))
            }
        };
        if let Some((invariant, why)) = objection {
            let words = format!("{tag} is told {told:?}, {why}");
            return Err(Violation { invariant, words });
        }
        if self.was_halted && matches!(told.outcome, Outcome::Exited | Outcome::Signaled) {
            return Err(violation!(
                "I9",
                "{tag} is told {told:?}, and its machine was switched off"
            ));
        }
        Ok(())
    }

    /// Returns whether it has lived as long as some timeout that was asked for.
    fn was_time_over(&self) -> bool {
        let (Some(begun), Some((_, ended))) = (self.executed, self.status) else {
            return false;
        };
        let lived = ended.time.saturating_sub(begun.time);
        self.timeouts.iter().flatten().any(|time| lived >= *time)
    }

    /// Returns whether it lives, and every timeout that was asked for is long over.
    pub(super) fn is_overdue(&self, now: Since) -> bool {
        let Some(begun) = self.executed.filter(|_| self.is_alive()) else {
            return false;
        };
        let lived = now.time.saturating_sub(begun.time);
        let is_over =
            |timeout: &Option<Duration>| timeout.is_some_and(|time| lived > time + OVERTIME);
        !self.timeouts.is_empty() && self.timeouts.iter().all(is_over)
    }

    fn may_be_lost(&self, told: &Told, excuses: &Excuses) -> bool {
        let (place, begun) = (self.place, self.begun());
        // One that leaves as its disk fails cannot write down how its runs ended.
        let left_in_trouble =
            excuses.keeper_left(place, begun) && excuses.disk_had_trouble(place, begun);
        match told.reason {
            Some(OutcomeReason::NodeRebooted) => {
                self.was_contested(excuses)
                    || excuses.rebooted(place, begun)
                        && (self.was_unnoted(excuses) || self.was_forgotten(excuses))
            }
            Some(OutcomeReason::KeeperDied) => {
                (excuses.keeper_died(place, begun) && self.was_unnoted(excuses)) || left_in_trouble
            }
            // Of one that was executed a journal is there, as long as its keeper's files are and nobody
            // was told that it is over.
            Some(OutcomeReason::JournalWiped) => {
                excuses.lost_files(place, begun)
                    || self.was_contested(excuses)
                    || self.was_forgotten(excuses)
                    || excuses.disk_had_trouble(place, begun)
                    || (self.executed.is_none()
                        && (excuses.keeper_left(place, begun) || excuses.keeper_died(place, begun)))
            }
            // Of a start that was under way nobody can be asked when new runs are another keeper's
            // (ADR 70), and of one that was not started a power cut may take the row that says so.
            Some(OutcomeReason::NodeForgot) => {
                self.was_forgotten(excuses)
                    || excuses.cloned(place, self.asked)
                    || (self.executed.is_none()
                        && excuses.gateway_died(self.asked)
                        && excuses.keeper_began(place, begun))
            }
            Some(OutcomeReason::NodeRevoked) => excuses.was_revoked(place),
            _ => false,
        }
    }

    /// Returns whether a machine took over from another one with the same key since it was asked for: to
    /// the gateway its machine is on another boot, whether its start arrives or not.
    pub(super) fn was_contested(&self, excuses: &Excuses) -> bool {
        excuses.cloned(self.place, self.asked)
    }

    /// Returns whether its end may stand in no journal: it had no end of its own, or its keeper died
    /// before it could write that down.
    fn was_unnoted(&self, excuses: &Excuses) -> bool {
        let (place, begun) = (self.place, self.begun());
        let is_spoiled = excuses.lost_files(place, begun)
            || excuses.disk_had_trouble(place, begun)
            || self.was_contested(excuses);
        let by = |(_, ended): (_, Since)| ended.time + NOTED_WITHIN;
        is_spoiled
            || self
                .status
                .is_none_or(|status| excuses.keeper_ended_by(place, begun, by(status)))
    }

    /// Returns whether its node may have been told to forget it, by a gateway of whose database an
    /// older state was put back since.
    fn was_forgotten(&self, excuses: &Excuses) -> bool {
        match &self.told {
            Some((told, since)) if told.reason == Some(OutcomeReason::NotStarted) => {
                excuses.took_row(*since)
            }
            Some((_, since)) => excuses.restored_without_ending(*since),
            None => excuses.restored(self.begun()),
        }
    }

    /// Looks at whether all is accounted for that the child wrote.
    fn check_totals(&self, tag: Tag, told: &Told, excuses: &Excuses) -> Checked {
        let (written, totals) = (self.written, told.totals);
        let is_right = match told.outcome {
            Outcome::Lost => [0, 1].into_iter().all(|at| {
                let least = self.least(told, excuses, at);
                (least..=written[at]).contains(&totals[at])
            }),
            Outcome::FailedToStart | Outcome::Refused => true,
            _ => totals == written,
        };
        if is_right {
            return Ok(());
        }
        Err(violation!(
            "I4",
            "{tag} is {told:?}, and has written {written:?}, of which {:?} cannot be gone",
            [0, 1].map(|at| self.least(told, excuses, at))
        ))
    }

    /// Returns how much of a lost run's stream must be known: what a reader got, and what its spool
    /// held, whoever has died since it was written.
    fn least(&self, told: &Told, excuses: &Excuses, at: usize) -> u64 {
        let (place, begun) = (self.place, self.begun());
        let by_node = matches!(
            told.reason,
            Some(OutcomeReason::KeeperDied | OutcomeReason::NodeRebooted)
        );
        let has_spool = by_node
            && !excuses.lost_files(place, begun)
            && !excuses.disk_had_trouble(place, begun)
            && !self.was_contested(excuses);
        // What was read of it before it was deleted lay in memory, or, where it is forgotten, in a row.
        let (bytes, deleted) = self.spooled[at];
        let went = deleted.is_some_and(|deleted| {
            excuses.keeper_died(place, deleted) || self.was_forgotten(excuses)
        });
        let spooled = if has_spool && !went { bytes } else { 0 };
        if excuses.gateway_lost_power(begun) || excuses.restored(begun) {
            return spooled;
        }
        let read = self.reads[at].high.map_or(0, |(to, since)| {
            if excuses.gateway_died(since) {
                to.saturating_sub(MEMORY_BYTES)
            } else {
                to
            }
        });
        let left = if has_spool {
            let written = self.written_to_keeper.unwrap_or(self.written);
            written[at].saturating_sub(MEMORY_BYTES)
        } else {
            0
        };
        read.max(spooled).max(left)
    }
}

/// Returns the index of a stream.
pub(super) fn at(stream: Stream) -> usize {
    usize::from(stream == Stream::Err)
}
