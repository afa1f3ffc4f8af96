//! A run that somebody waits for: its end, and its output as text.

mod text;

use moltis_proto::RunId;
use moltis_proto::run::Stream;

use self::text::{Gathered, Parts, parts};
use super::ApiState;
use super::error::{ApiError, ApiResult};
use crate::api::problem::Code;
use crate::api::runs::RunResult;
use crate::exec::RunHandle;
use crate::output::{OutputRead, RunOutput};

/// Bytes read at once.
const PIECE: usize = 256 * 1024;

/// When a gateway that stops may be asked again.
const RETRY_AFTER_SECONDS: u64 = 2;

/// Waits until a run is over, or the gateway stops. Of each output at most `part` bytes of its
/// beginning and of its end go into the result.
pub(super) async fn wait(desk: &ApiState, mut run: RunHandle, part: u64) -> ApiResult<RunResult> {
    tokio::select! {
        biased;
        _ = run.wait() => {}
        () = desk.stop().cancelled() => return Err(stopped(&run)),
    };
    if let Some(error) = run.failure() {
        return Err(error.clone().into());
    }
    let record = run.record();
    let totals = record.totals;
    let stdout = gather(run.output(), Stream::Stdout, totals.stdout, part).await?;
    let stderr = gather(run.output(), Stream::Stderr, totals.stderr, part).await?;
    let run = desk.run(desk.runs().status_of(record));
    RunResult::of(run, stdout, stderr)
        .ok_or_else(|| ApiError::internal("tell how the run ended", "it ended without an outcome"))
}

fn stopped(run: &RunHandle) -> ApiError {
    let id = run.id();
    let error = ApiError::new(
        Code::ShuttingDown,
        format!("the gateway stops; the run {id} goes on"),
    );
    unfinished(error, &[id], run.record().key.is_some())
        .hint(format!("when it is back: moltis runs attach {id}"))
}

/// Says that many runs go on without this gateway.
pub(super) fn all_stopped(runs: &[RunId], has_key: bool) -> ApiError {
    let error = ApiError::new(
        Code::ShuttingDown,
        format!("the gateway stops; {} runs go on", runs.len()),
    );
    unfinished(error, runs, has_key).hint("when it is back: moltis runs list")
}

/// Only under a key may it be asked again: else all of it would run twice.
fn unfinished(error: ApiError, runs: &[RunId], has_key: bool) -> ApiError {
    let error = error.runs(runs);
    if has_key {
        error.retry_after(RETRY_AFTER_SECONDS)
    } else {
        error
    }
}

/// Reads an output, or its two ends, as text.
async fn gather(
    output: &RunOutput,
    stream: Stream,
    total: u64,
    part: u64,
) -> ApiResult<(String, bool)> {
    let mut gathered = Gathered::default();
    match parts(total, part) {
        Parts::Whole => read(output, stream, 0, total, &mut gathered).await?,
        Parts::HeadAndTail(head, tail) => {
            read(output, stream, 0, head, &mut gathered).await?;
            gathered.leave_out(tail - head);
            read(output, stream, tail, total, &mut gathered).await?;
        }
    }
    Ok(gathered.finish())
}

/// Reads the bytes from `at` up to `end`. What is gone is left out, and said so.
async fn read(
    output: &RunOutput,
    stream: Stream,
    mut at: u64,
    end: u64,
    into: &mut Gathered,
) -> ApiResult<()> {
    while at < end {
        let room = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE);
        match output.read(stream, at, room).await? {
            OutputRead::Bytes(bytes) => {
                into.push(&bytes);
                at += bytes.len() as u64;
            }
            OutputRead::Gap { to, .. } => {
                into.leave_out(to.min(end) - at);
                at = to;
            }
            // The row names more than is there: what is missing is gone.
            OutputRead::End | OutputRead::Wait => {
                into.leave_out(end - at);
                break;
            }
        }
    }
    Ok(())
}
