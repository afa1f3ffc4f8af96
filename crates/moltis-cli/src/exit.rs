//! The one table of exit codes.
//!
//! `node exec` and `runs attach` end with the code of the command; everything else that can happen
//! to them stands here too, so that a script tells the two apart.

use std::process::ExitCode;

use moltis_gateway::api::runs::{Outcome, OutcomeReason, Run};

/// What this process ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit(u8);

impl Exit {
    /// All is done.
    pub(crate) const SUCCESS: Self = Self(0);
    /// It failed; stderr says why.
    pub(crate) const FAILURE: Self = Self(1);
    /// The command line is wrong.
    pub(crate) const USAGE: Self = Self(2);
    /// The run was over its time.
    pub(crate) const TIMED_OUT: Self = Self(124);
    /// Moltis could not run it: no such node, offline, refused, denied, gateway not reached.
    pub(crate) const NOT_RUN: Self = Self(125);
    /// The program is there and may not be executed.
    pub(crate) const NOT_EXECUTABLE: Self = Self(126);
    /// There is no such program.
    pub(crate) const NOT_FOUND: Self = Self(127);
    /// Cancelled, by Ctrl+C as a rule.
    pub(crate) const CANCELLED: Self = Self(130);
    /// Whoever read our stdout has closed it: 128 and SIGPIPE, as a shell says it.
    pub(crate) const CLOSED_PIPE: Self = Self(128 + 13);
    /// What became of the run is not known.
    pub(crate) const UNKNOWN: Self = Self(255);

    /// Returns the code of a command that this signal ended.
    pub(crate) fn of_signal(signal: i32) -> Self {
        u8::try_from(signal).map_or(Self::UNKNOWN, |signal| Self(signal.saturating_add(128)))
    }

    /// Returns the code that stands for a run that is over.
    pub(crate) fn of_run(run: &Run) -> Self {
        let Some(outcome) = run.outcome else {
            return Self::UNKNOWN;
        };
        match outcome {
            Outcome::Exited => run
                .exit_code
                .and_then(|code| u8::try_from(code).ok())
                .map_or(Self::UNKNOWN, Self),
            Outcome::Signaled => run.signal.map_or(Self::UNKNOWN, Self::of_signal),
            Outcome::TimedOut => Self::TIMED_OUT,
            Outcome::Cancelled => Self::CANCELLED,
            Outcome::FailedToStart => match run.outcome_reason {
                Some(OutcomeReason::NotFound) => Self::NOT_FOUND,
                Some(OutcomeReason::NotExecutable) => Self::NOT_EXECUTABLE,
                _ => Self::NOT_RUN,
            },
            Outcome::Refused => Self::NOT_RUN,
            Outcome::Lost => Self::UNKNOWN,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(outcome: &str, reason: Option<&str>, code: Option<i32>, signal: Option<i32>) -> Run {
        serde_json::from_value(serde_json::json!({
            "id": "00", "node": "local", "node_name": "local", "state": "ended",
            "outcome": outcome, "outcome_reason": reason, "exit_code": code, "signal": signal,
            "tty": false, "requested_by": "operator", "created_at": "2026-01-02T03:04:05Z",
            "stdout_bytes": 0, "stderr_bytes": 0, "reachable": true, "unclaimed": false,
        }))
        .unwrap()
    }

    #[test]
    fn every_outcome_has_the_code_that_the_documentation_promises() {
        for (run, expected) in [
            (run("exited", None, Some(0), None), 0),
            (run("exited", None, Some(7), None), 7),
            (run("exited", None, Some(255), None), 255),
            (run("signaled", None, None, Some(9)), 137),
            (run("timed_out", None, None, Some(15)), 124),
            (run("cancelled", None, None, Some(15)), 130),
            (run("failed_to_start", Some("not_found"), None, None), 127),
            (
                run("failed_to_start", Some("not_executable"), None, None),
                126,
            ),
            (run("failed_to_start", Some("working_dir"), None, None), 125),
            (run("failed_to_start", Some("not_started"), None, None), 125),
            (run("refused", Some("policy"), None, None), 125),
            (run("lost", Some("node_rebooted"), None, None), 255),
        ] {
            assert_eq!(Exit::of_run(&run), Exit(expected), "{run:?}");
        }
    }
}
