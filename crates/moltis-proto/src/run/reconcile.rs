//! What becomes of each run when a connection stands again: one table, one function.
//!
//! The gateway has a row, the node has a list; both are right about what they know, and neither
//! guesses. The driver asks [`decide`] for every row of the node's device and for every run that
//! the node lists, once the list is complete. Who listens to which connection, and that a run
//! which two devices list belongs to its row's device, is the driver's part: it hands in the rows
//! of this device only, and a foreign row as [`Row::Elsewhere`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits::START_TIME_MAX;
use crate::run::{Command, Outcome, Reason, RunSpec, RunState, RunSummary, StdinMode};
use crate::{BootId, JournalId, RunRefusal};

/// What the gateway knows of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// Nothing.
    None,
    /// The run is another device's.
    Elsewhere,
    /// Nobody has allowed it yet.
    WaitingApproval,
    /// Not over.
    Open(OpenRow),
    /// Over; the node may forget it once that is synced.
    Ended,
}

/// A row that is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRow {
    /// What the gateway last heard.
    pub progress: Progress,
    /// Where the `Start` was first sent to.
    pub boot_id: BootId,
    /// See [`boot_id`](Self::boot_id).
    pub journal_id: JournalId,
    /// Whether this very process of the gateway wrote the row.
    pub same_incarnation: bool,
    /// Time since the run was asked for, by a clock that nobody turns and that counts the sleep of the
    /// gateway's machine; `None` where another boot of it has written the row, or nobody knows.
    pub age: Option<Duration>,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// `Start` was sent, or was about to be.
    Starting,
    /// The node has said that it runs.
    Running,
}

/// What the node says of itself, with the list complete.
#[derive(Debug, Clone, Copy)]
pub struct NodeSide<'a> {
    /// This boot of its machine.
    pub boot_id: BootId,
    /// Every journal present, the one for new runs first.
    pub journals: &'a [JournalId],
}

/// What to do about one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Leave,
    /// It runs: ask for output from the stored offsets; a pending cancel and the last size of the
    /// terminal are sent again.
    Resume,
    /// It is over: ask for output from the stored offsets; the ending follows, then `Forget`.
    Drain,
    /// Send the `Start` again: the id makes it safe. A node that has had it, and has forgotten it since,
    /// says so.
    StartAgain,
    /// Ask the node whether it has ever had it, by a [`question`]: the row may be of a database that
    /// was put back, and the node may have forgotten the run since.
    Ask,
    /// It is over here and now.
    End {
        /// How.
        outcome: Outcome,
        /// Why that is known.
        reason: Reason,
    },
    /// The node may delete it, once the row's ending is synced.
    Forget,
    /// Nobody here knows it: keep it, show it, never end it.
    KeepUnclaimed,
    /// As [`KeepUnclaimed`](Self::KeepUnclaimed), and somebody should look: it is another
    /// device's run.
    Alert,
}

/// Decides about one run: `listed` is the node's own line about it.
pub fn decide(row: Row, listed: Option<&RunSummary>, node: NodeSide<'_>) -> Action {
    match (row, listed) {
        (Row::None | Row::Elsewhere | Row::WaitingApproval | Row::Ended, None) => Action::Leave,
        (Row::None, Some(_)) => Action::KeepUnclaimed,
        // Nothing was ever sent for a run that waits for approval, so this is no run of ours.
        (Row::Elsewhere | Row::WaitingApproval, Some(_)) => Action::Alert,
        (Row::Ended, Some(_)) => Action::Forget,
        (Row::Open(_), Some(summary)) => match summary.state {
            RunState::Running { .. } => Action::Resume,
            RunState::Ended => Action::Drain,
        },
        (Row::Open(row), None) => decide_unlisted(row, node),
    }
}

/// The node does not list a run that should be there.
fn decide_unlisted(row: OpenRow, node: NodeSide<'_>) -> Action {
    let lost = |reason| Action::End {
        outcome: Outcome::Lost,
        reason,
    };
    if row.boot_id != node.boot_id {
        return lost(Reason::NodeRebooted);
    }
    if !node.journals.contains(&row.journal_id) {
        return lost(Reason::JournalWiped);
    }
    match row.progress {
        // It goes to the keeper of the first journal, which has to be the one that was asked: of
        // another one nobody could say that it was not asked before.
        Progress::Starting
            if row.age.is_some_and(|age| age <= START_TIME_MAX)
                && node.journals.first() == Some(&row.journal_id) =>
        {
            Action::StartAgain
        }
        // The journal that would hold it is here and does not, and whoever says that a run may be
        // forgotten is this process, which has not: it provably never started.
        Progress::Starting if row.same_incarnation => Action::End {
            outcome: Outcome::FailedToStart,
            reason: Reason::NotStarted,
        },
        // An older state of the database may have been put back, behind which the run was over and
        // forgotten. The keeper of the first journal alone is asked what is new to it.
        Progress::Starting if node.journals.first() == Some(&row.journal_id) => Action::Ask,
        Progress::Running | Progress::Starting => lost(Reason::NodeForgot),
    }
}

/// Returns the spec of a `Start` that no node obeys, and that asks whether it knows the id: it has no
/// word to run. A node that has had the run says [`RunRefusal::Forgotten`], and any other refusal uses
/// the id up: the run has not started and never will.
pub fn question() -> RunSpec {
    RunSpec {
        command: Command::Argv(Vec::new()),
        cwd: None,
        env: BTreeMap::new(),
        timeout_ms: None,
        grace_ms: 0,
        stdin: StdinMode::Empty,
        tty: None,
    }
}

/// Returns how a run ends whose node has answered a [`question`] so; `None` where the answer is still
/// to come, from the keeper after this one.
pub fn answered(code: RunRefusal) -> Option<(Outcome, Reason)> {
    match code {
        RunRefusal::Leaving => None,
        // With another command it is not this run that the node knows, and nobody knows this one.
        RunRefusal::Forgotten | RunRefusal::DigestMismatch => {
            Some((Outcome::Lost, Reason::NodeForgot))
        }
        RunRefusal::Policy
        | RunRefusal::EnvNotAllowed
        | RunRefusal::TimeoutTooLong { .. }
        | RunRefusal::TooMany
        | RunRefusal::Invalid
        | RunRefusal::JournalFailed => Some((Outcome::FailedToStart, Reason::NotStarted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunId;
    use crate::key::Digest;
    use crate::run::Totals;

    const BOOT: BootId = BootId::from_bytes([1; 16]);
    const OTHER_BOOT: BootId = BootId::from_bytes([2; 16]);
    const JOURNAL: JournalId = JournalId::from_bytes([3; 16]);
    const OLDER_JOURNAL: JournalId = JournalId::from_bytes([4; 16]);
    const WIPED_JOURNAL: JournalId = JournalId::from_bytes([5; 16]);

    const NODE: NodeSide<'_> = NodeSide {
        boot_id: BOOT,
        journals: &[JOURNAL, OLDER_JOURNAL],
    };

    const STARTING: OpenRow = OpenRow {
        progress: Progress::Starting,
        boot_id: BOOT,
        journal_id: JOURNAL,
        same_incarnation: true,
        age: Some(Duration::from_secs(1)),
    };

    const RUNNING: OpenRow = OpenRow {
        progress: Progress::Running,
        ..STARTING
    };

    fn listed(state: RunState) -> RunSummary {
        RunSummary {
            run_id: RunId::from_bytes([9; 16]),
            digest: Digest::from_bytes([9; 32]),
            journal_id: JOURNAL,
            state,
            totals: Totals::default(),
            stdin: 0,
        }
    }

    fn running() -> RunSummary {
        listed(RunState::Running { pid: 7 })
    }

    fn ended() -> RunSummary {
        listed(RunState::Ended)
    }

    fn unlisted(row: OpenRow) -> Action {
        decide(Row::Open(row), None, NODE)
    }

    fn lost(reason: Reason) -> Action {
        Action::End {
            outcome: Outcome::Lost,
            reason,
        }
    }

    const NOT_STARTED: Action = Action::End {
        outcome: Outcome::FailedToStart,
        reason: Reason::NotStarted,
    };

    #[test]
    fn nothing_is_sent_for_a_run_that_waits_for_approval() {
        assert_eq!(decide(Row::WaitingApproval, None, NODE), Action::Leave);
    }

    #[test]
    fn a_run_that_runs_is_resumed_whatever_the_row_knew() {
        for row in [STARTING, RUNNING] {
            assert_eq!(
                decide(Row::Open(row), Some(&running()), NODE),
                Action::Resume
            );
        }
    }

    #[test]
    fn a_run_that_is_over_is_drained() {
        for row in [STARTING, RUNNING] {
            assert_eq!(decide(Row::Open(row), Some(&ended()), NODE), Action::Drain);
        }
    }

    #[test]
    fn what_the_node_lists_counts_even_after_a_reboot_or_from_another_journal() {
        for row in [
            OpenRow {
                boot_id: OTHER_BOOT,
                ..RUNNING
            },
            OpenRow {
                journal_id: WIPED_JOURNAL,
                ..RUNNING
            },
        ] {
            assert_eq!(decide(Row::Open(row), Some(&ended()), NODE), Action::Drain);
        }
    }

    #[test]
    fn a_start_that_got_lost_is_sent_again_also_by_the_next_process_of_the_gateway() {
        for same_incarnation in [true, false] {
            let row = OpenRow {
                same_incarnation,
                ..STARTING
            };
            assert_eq!(unlisted(row), Action::StartAgain);
        }
    }

    #[test]
    fn a_start_that_an_older_keeper_did_not_get_goes_to_no_other() {
        let in_older = OpenRow {
            journal_id: OLDER_JOURNAL,
            ..STARTING
        };
        assert_eq!(unlisted(in_older), NOT_STARTED);
    }

    #[test]
    fn after_thirty_seconds_a_start_that_got_lost_has_failed() {
        let aged = |age| unlisted(OpenRow { age, ..STARTING });
        assert_eq!(aged(Some(START_TIME_MAX)), Action::StartAgain);
        let too_late = START_TIME_MAX + Duration::from_millis(1);
        assert_eq!(aged(Some(too_late)), NOT_STARTED);
        assert_eq!(aged(None), NOT_STARTED);
    }

    #[test]
    fn another_process_of_the_gateway_that_is_too_late_asks() {
        let row = OpenRow {
            same_incarnation: false,
            age: None,
            ..STARTING
        };
        assert_eq!(unlisted(row), Action::Ask);
        // Nobody is asked what an older keeper has forgotten.
        let in_older = OpenRow {
            journal_id: OLDER_JOURNAL,
            ..row
        };
        assert_eq!(unlisted(in_older), lost(Reason::NodeForgot));
    }

    #[test]
    fn what_is_asked_is_nothing_to_start_and_only_a_node_that_never_knew_it_has_not_started() {
        assert!(!question().is_sound());
        let not_started = Some((Outcome::FailedToStart, Reason::NotStarted));
        let lost = Some((Outcome::Lost, Reason::NodeForgot));
        for (code, expected) in [
            (RunRefusal::Invalid, not_started),
            (RunRefusal::TooMany, not_started),
            (RunRefusal::Policy, not_started),
            (RunRefusal::Forgotten, lost),
            (RunRefusal::DigestMismatch, lost),
            (RunRefusal::Leaving, None),
        ] {
            assert_eq!(answered(code), expected, "{code:?}");
        }
    }

    #[test]
    fn a_run_that_ran_and_is_not_there_was_forgotten() {
        assert_eq!(unlisted(RUNNING), lost(Reason::NodeForgot));
        let row = OpenRow {
            same_incarnation: false,
            ..RUNNING
        };
        assert_eq!(unlisted(row), lost(Reason::NodeForgot));
    }

    #[test]
    fn another_boot_says_rebooted_before_the_journal_is_looked_at() {
        for row in [STARTING, RUNNING] {
            for journal_id in [JOURNAL, WIPED_JOURNAL] {
                let row = OpenRow {
                    boot_id: OTHER_BOOT,
                    journal_id,
                    ..row
                };
                assert_eq!(unlisted(row), lost(Reason::NodeRebooted));
            }
        }
    }

    #[test]
    fn a_journal_that_is_not_there_was_wiped() {
        for row in [STARTING, RUNNING] {
            let row = OpenRow {
                journal_id: WIPED_JOURNAL,
                ..row
            };
            assert_eq!(unlisted(row), lost(Reason::JournalWiped));
        }
    }

    #[test]
    fn a_run_that_ended_here_is_forgotten_there() {
        for summary in [running(), ended()] {
            assert_eq!(decide(Row::Ended, Some(&summary), NODE), Action::Forget);
        }
        assert_eq!(decide(Row::Ended, None, NODE), Action::Leave);
    }

    #[test]
    fn a_run_that_nobody_knows_is_kept_and_shown() {
        for summary in [running(), ended()] {
            assert_eq!(
                decide(Row::None, Some(&summary), NODE),
                Action::KeepUnclaimed
            );
        }
    }

    #[test]
    fn a_run_that_another_device_has_the_row_of_is_reported() {
        assert_eq!(
            decide(Row::Elsewhere, Some(&running()), NODE),
            Action::Alert
        );
        assert_eq!(
            decide(Row::WaitingApproval, Some(&running()), NODE),
            Action::Alert
        );
        assert_eq!(decide(Row::Elsewhere, None, NODE), Action::Leave);
    }
}
