//! Runs: rows become answers, and words of the wire become words of the API.

use std::sync::Arc;

use moltis_proto::run::{self as wire, Command, ExitStatus};

use crate::api::follow::{Gap, GapReason};
use crate::api::runs::{Outcome, OutcomeReason, Run, RunResult, State, Stream};
use crate::exec::RunStatus;
use crate::store::{RunRecord, RunStage};

/// What is said of a run that its node says is over, and that nobody here has asked for.
const OVER_THERE: &str =
    "its node says that it is over: claim it, and how it ended and what it printed will come";

impl Run {
    /// Puts a row together with the present. `node_name` is the machine's name now; without one it
    /// stands as the row shows it.
    pub(crate) fn of(status: RunStatus, node_name: Option<String>) -> Self {
        let (state, is_over_there) = (status.stage().into(), status.is_over_there);
        let record = Arc::unwrap_or_clone(status.record);
        let (exit_code, signal) = exit_status(&record);
        let spec = record.spec;
        let (argv, command) = match spec.as_ref().map(|spec| &spec.command) {
            Some(Command::Argv(argv)) => (Some(argv.clone()), None),
            Some(Command::Shell(line)) => (None, Some(line.clone())),
            None => (None, None),
        };
        let ending = record.ending;
        Self {
            id: record.id.to_string(),
            node_name: node_name.unwrap_or_else(|| record.shown.clone()),
            node: record.shown,
            state,
            outcome: ending.as_ref().map(|ending| ending.outcome.into()),
            outcome_reason: ending
                .as_ref()
                .and_then(|ending| ending.reason)
                .map(Into::into),
            exit_code,
            signal,
            duration_ms: ending.as_ref().and_then(duration_ms),
            detail: ending
                .map(|ending| ending.detail)
                .filter(|detail| !detail.is_empty())
                .or_else(|| is_over_there.then(|| OVER_THERE.to_owned())),
            command,
            argv,
            cwd: spec.as_ref().and_then(|spec| spec.cwd.clone()),
            tty: spec.as_ref().is_some_and(|spec| spec.tty.is_some()),
            timeout_seconds: spec
                .and_then(|spec| spec.timeout_ms)
                .map(|ms| ms.div_ceil(1000)),
            requested_by: record.requested_by,
            created_at: record.created_at,
            started_at: record.started_at,
            ended_at: record.ended_at,
            cancel_requested_at: record.cancel_requested_at,
            stdout_bytes: status.totals.stdout,
            stderr_bytes: status.totals.stderr,
            reachable: status.reachable,
            last_heard_at: status.last_heard_at,
            output_waits: status.output_waits.map(|trouble| trouble.to_string()),
            unclaimed: record.unclaimed,
        }
    }
}

impl RunResult {
    /// Puts an ended run together with its output; `None` while it is not over.
    pub(crate) fn of(run: Run, stdout: (String, bool), stderr: (String, bool)) -> Option<Self> {
        Some(Self {
            outcome: run.outcome?,
            run_id: run.id,
            node: run.node,
            node_name: run.node_name,
            outcome_reason: run.outcome_reason,
            exit_code: run.exit_code,
            signal: run.signal,
            detail: run.detail,
            stdout: stdout.0,
            stderr: stderr.0,
            stdout_bytes: run.stdout_bytes,
            stderr_bytes: run.stderr_bytes,
            truncated: stdout.1 || stderr.1,
            duration_ms: run.duration_ms,
        })
    }
}

/// Of a run that is lost nobody has seen the end.
fn duration_ms(ending: &wire::Ending) -> Option<u64> {
    (ending.outcome != wire::Outcome::Lost).then_some(ending.duration_ms)
}

fn exit_status(record: &RunRecord) -> (Option<i32>, Option<i32>) {
    match record.ending.as_ref().and_then(|ending| ending.status) {
        Some(ExitStatus::Code(code)) => (Some(code), None),
        Some(ExitStatus::Signal(number)) => (None, Some(number)),
        None => (None, None),
    }
}

impl From<RunStage> for State {
    fn from(stage: RunStage) -> Self {
        match stage {
            RunStage::WaitingApproval => Self::WaitingApproval,
            RunStage::Starting => Self::Starting,
            RunStage::Running => Self::Running,
            RunStage::Ended => Self::Ended,
        }
    }
}

impl From<State> for RunStage {
    fn from(state: State) -> Self {
        match state {
            State::WaitingApproval => Self::WaitingApproval,
            State::Starting => Self::Starting,
            State::Running => Self::Running,
            State::Ended => Self::Ended,
        }
    }
}

impl From<wire::Outcome> for Outcome {
    fn from(outcome: wire::Outcome) -> Self {
        match outcome {
            wire::Outcome::Exited => Self::Exited,
            wire::Outcome::Signaled => Self::Signaled,
            wire::Outcome::TimedOut => Self::TimedOut,
            wire::Outcome::Cancelled => Self::Cancelled,
            wire::Outcome::FailedToStart => Self::FailedToStart,
            wire::Outcome::Refused => Self::Refused,
            wire::Outcome::Lost => Self::Lost,
        }
    }
}

impl From<wire::Reason> for OutcomeReason {
    fn from(reason: wire::Reason) -> Self {
        match reason {
            wire::Reason::NotStarted => Self::NotStarted,
            wire::Reason::NodeRebooted => Self::NodeRebooted,
            wire::Reason::NodeForgot => Self::NodeForgot,
            wire::Reason::NodeRevoked => Self::NodeRevoked,
            wire::Reason::JournalWiped => Self::JournalWiped,
            wire::Reason::KeeperDied => Self::KeeperDied,
            wire::Reason::ConnectionLost => Self::ConnectionLost,
            wire::Reason::NotFound => Self::NotFound,
            wire::Reason::NotExecutable => Self::NotExecutable,
            wire::Reason::WorkingDir => Self::WorkingDir,
            wire::Reason::Policy => Self::Policy,
            wire::Reason::ApprovalDenied => Self::ApprovalDenied,
        }
    }
}

impl From<wire::Stream> for Stream {
    fn from(stream: wire::Stream) -> Self {
        match stream {
            wire::Stream::Stdout => Self::Stdout,
            wire::Stream::Stderr => Self::Stderr,
        }
    }
}

impl From<Stream> for wire::Stream {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

impl From<wire::GapReason> for GapReason {
    fn from(reason: wire::GapReason) -> Self {
        match reason {
            wire::GapReason::Limit => Self::Limit,
            wire::GapReason::DiskFull => Self::DiskFull,
            wire::GapReason::DiskFailed => Self::DiskFailed,
            wire::GapReason::Freed => Self::Freed,
            wire::GapReason::KeeperDied => Self::KeeperDied,
            wire::GapReason::PowerCut => Self::PowerCut,
        }
    }
}

/// Makes the gap of a follower.
pub(crate) fn gap(stream: wire::Stream, from: u64, to: u64, reason: wire::GapReason) -> Gap {
    Gap {
        stream: stream.into(),
        from,
        to,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_lost_has_no_duration() {
        let of = |outcome| wire::Ending {
            duration_ms: 7,
            ..wire::Ending::without_status(outcome, None, String::new())
        };
        assert_eq!(duration_ms(&of(wire::Outcome::Cancelled)), Some(7));
        assert_eq!(duration_ms(&of(wire::Outcome::Lost)), None);
    }
}
