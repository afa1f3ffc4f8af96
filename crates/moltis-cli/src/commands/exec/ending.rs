//! What the end of a followed run means: the words for stderr, the object of `--json`, the code.

use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::{Outcome, OutcomeReason, Run, RunResult};

use super::super::Context;
use super::super::runs::state_of;
use super::collect::Collected;
use crate::api::ApiError;
use crate::exit::Exit;
use crate::failure::{Failure, failure};
use crate::output::streams::WriteError;
use crate::units::short;

/// How the following ended.
#[derive(Debug)]
pub(super) enum End {
    /// The run is over.
    Ended(Box<Run>),
    /// A second Ctrl+C: the run is left alone.
    Left,
    /// Nothing that is typed reaches the run any more.
    Deaf(ApiError),
    /// The gateway is gone for good, or forgot the run.
    Failed(ApiError),
    /// The run is over, and what it printed could not all be written.
    Unwritable(Box<Run>, WriteError),
    /// The run is over, and nobody wants to wait until what it printed is written.
    Unread,
}

/// Says what is left to say and returns the exit code.
pub(super) fn finish(
    context: &Context,
    run_id: &str,
    json: bool,
    end: End,
    collected: [Collected; 2],
    ended_by: Option<i32>,
) -> anyhow::Result<Exit> {
    let attach = format!("moltis runs attach {}", short(run_id));
    match end {
        End::Ended(run) if json => {
            context.output.json(&result(&run, collected))?;
            Ok(code(&run, ended_by))
        }
        End::Ended(run) => {
            if let Some(words) = explain(&run) {
                context
                    .output
                    .note(&format!("run {}: {words}", short(&run.id)));
            }
            if run.outcome_reason == Some(OutcomeReason::Policy) {
                context.output.hint(
                    "what may run there, and how to change it: moltis node policy, on that machine",
                );
            }
            Ok(code(&run, ended_by))
        }
        End::Left => Err(failure(format!("left the run {run_id}"))
            .hint(match ended_by {
                Some(_) => format!("it is being cancelled; what becomes of it: {attach}"),
                None => format!("it may still be running: {attach}"),
            })
            .exit(Exit::CANCELLED)
            .into()),
        End::Deaf(error) => Err(failure(format!(
            "left the run {run_id}: what is typed does not reach it any more"
        ))
        .because(error.into_failure())
        .hint(format!("it may still be running: {attach}"))
        .exit(Exit::UNKNOWN)
        .into()),
        End::Failed(error) => {
            let forgotten = error.code() == Some(Code::NotFound);
            let cause = match error {
                // Its hint is of a question that a person has typed.
                ApiError::Cut(cut) => failure(cut.to_string()),
                error => error.into_failure(),
            };
            let failure = failure(format!("what became of the run {run_id} is not known"))
                .because(cause)
                .exit(Exit::UNKNOWN);
            Err(if forgotten {
                failure
            } else {
                failure.hint(format!("when the gateway is back: {attach}"))
            }
            .into())
        }
        End::Unwritable(_, WriteError::Closed) => Ok(Exit::CLOSED_PIPE),
        End::Unwritable(run, error) => Err(unwritable(&run, &error).into()),
        End::Unread => Ok(Exit::CANCELLED),
    }
}

/// Says what became of a run whose output found no room, and where the output is.
fn unwritable(run: &Run, error: &WriteError) -> Failure {
    let id = short(&run.id);
    let ended = state_of(run);
    failure(format!("{error}; the run {id} {ended}"))
        .hint(format!(
            "what it printed until then: moltis runs output {id}"
        ))
        .exit(Exit::NOT_RUN)
}

/// Returns the exit code of an ended run. One that we cancelled because of a signal ends as that
/// signal would have ended us.
fn code(run: &Run, ended_by: Option<i32>) -> Exit {
    match (Exit::of_run(run), ended_by) {
        (Exit::CANCELLED, Some(signal)) => Exit::of_signal(signal),
        (code, _) => code,
    }
}

/// Returns what the exit code alone would leave open.
fn explain(run: &Run) -> Option<String> {
    let detail = run.detail.as_deref().filter(|detail| !detail.is_empty());
    let what = match run.outcome? {
        Outcome::Exited | Outcome::Signaled | Outcome::Cancelled => return None,
        Outcome::TimedOut => match run.duration_ms {
            Some(ms) => format!("timed out after {} s", (ms + 500) / 1000),
            None => "timed out".to_owned(),
        },
        Outcome::FailedToStart => "could not be started".to_owned(),
        Outcome::Refused => format!("refused by {}", run.node_name),
        Outcome::Lost => "what became of it is not known".to_owned(),
    };
    let reason = run
        .outcome_reason
        .and_then(|reason| serde_json::to_value(reason).ok())
        .and_then(|reason| reason.as_str().map(|reason| reason.replace('_', " ")));
    Some(match (detail, reason) {
        (Some(detail), _) => format!("{what}: {detail}"),
        (None, Some(reason)) => format!("{what}: {reason}"),
        (None, None) => what,
    })
}

fn result(run: &Run, [stdout, stderr]: [Collected; 2]) -> RunResult {
    let (stdout, stdout_cut) = stdout.finish();
    let (stderr, stderr_cut) = stderr.finish();
    RunResult {
        run_id: run.id.clone(),
        node: run.node.clone(),
        node_name: run.node_name.clone(),
        outcome: run.outcome.unwrap_or(Outcome::Lost),
        outcome_reason: run.outcome_reason,
        exit_code: run.exit_code,
        signal: run.signal,
        detail: run.detail.clone(),
        stdout,
        stderr,
        stdout_bytes: run.stdout_bytes,
        stderr_bytes: run.stderr_bytes,
        truncated: stdout_cut || stderr_cut,
        duration_ms: run.duration_ms,
    }
}
