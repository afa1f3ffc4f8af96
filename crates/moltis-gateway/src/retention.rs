//! Letting old things go: ended runs after their days, output past its total, old telemetry.
//!
//! One sweep is bounded work in slices, so that it holds up no run. [`keep_up`] sweeps every hour, and
//! when [`Outputs::over_limit`] says so.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use moltis_proto::RunId;

use crate::exec::Shared;
use crate::output::{OutputError, Outputs};
use crate::store::{Store, StoreError};
use crate::telemetry::HOURS_KEPT;

/// Runs that one transaction deletes: 64 × about 20 µs stay within 2 ms.
const SLICE: u32 = 64;

/// Time between two sweeps that nothing else asked for.
const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// A sweep rests this long: where only runs that are not over hold output, there is nothing to do
/// until one of them ends.
const REST: Duration = Duration::from_secs(10);

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// How long the rows of ended runs, with their output, are kept.
    pub runs: Duration,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            runs: Duration::from_hours(30 * 24),
        }
    }
}

/// What a sweep has let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Runs whose rows are gone.
    pub runs: usize,
    /// Runs whose output is gone, and whose rows say so.
    pub outputs: usize,
    /// Files of runs that have no row, left by a crash or a restored database.
    pub orphans: usize,
}

/// Why a sweep stopped. The next one goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SweepError {
    /// The store.
    #[error("old runs could not be deleted")]
    Store(#[from] StoreError),
    /// The files.
    #[error("old output could not be deleted")]
    Output(#[from] OutputError),
}

/// Sweeps every hour, and when there is too much output, until the gateway stops.
pub(crate) async fn keep_up(shared: Arc<Shared>, keep: Keep) {
    let stop = shared.tasks.stop().clone();
    let mut over_limit = shared.outputs.over_limit();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = over_limit.wait_for(|over| *over) => {}
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        let swept = sweep(&shared.store, &shared.outputs, keep, shared.clock.now()).await;
        match swept {
            Ok(swept) if swept == Swept::default() => {}
            Ok(swept) => tracing::info!(?swept, "let old runs and output go"),
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "old runs and output could not be let go"
            ),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REST) => {}
        }
    }
}

/// Deletes what is older than it shall be kept, then the oldest output while there is too much.
///
/// # Errors
/// Where rows or files cannot be deleted. What was deleted before that is gone.
pub async fn sweep(
    store: &Store,
    outputs: &Outputs,
    keep: Keep,
    now: Timestamp,
) -> Result<Swept, SweepError> {
    let mut swept = Swept::default();
    let age = jiff::SignedDuration::try_from(keep.runs).unwrap_or(jiff::SignedDuration::MAX);
    let before = now.saturating_sub(age).unwrap_or(Timestamp::MIN);
    loop {
        let old = store.oldest_ended(Some(before), SLICE).await?;
        if old.is_empty() {
            break;
        }
        swept.runs += old.len();
        remove(outputs, &old).await?;
        store.delete_runs(old).await?;
    }
    swept.orphans = orphans(store, outputs, before).await?;
    while *outputs.over_limit().borrow() {
        let old = store.oldest_ended(None, SLICE / 8).await?;
        if old.is_empty() {
            break;
        }
        swept.outputs += old.len();
        // First the word, then the loss: a reader in between finds nothing rather than a lie.
        store.free_output(old.clone(), now).await?;
        remove(outputs, &old).await?;
    }
    let hour = now.as_millisecond().div_euclid(3_600_000);
    store.expire_telemetry(hour - HOURS_KEPT).await?;
    Ok(swept)
}

/// Deletes old files of runs that no row knows. Young ones stay: after a power cut the row may be
/// lost while the node still brings the run back, and then these bytes are its output.
async fn orphans(store: &Store, outputs: &Outputs, before: Timestamp) -> Result<usize, SweepError> {
    let below = outputs.clone();
    let old = tokio::task::spawn_blocking(move || below.written_before(before));
    let old = old.await.unwrap_or(Ok(Vec::new()))?; // the runtime is shutting down
    let mut removed = 0;
    for run_id in old {
        if store.run(run_id).await?.is_none() {
            remove(outputs, &[run_id]).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

async fn remove(outputs: &Outputs, runs: &[RunId]) -> Result<(), OutputError> {
    let (outputs, runs) = (outputs.clone(), runs.to_vec());
    let removed = tokio::task::spawn_blocking(move || {
        runs.into_iter()
            .try_for_each(|run_id| outputs.remove(run_id))
    });
    removed.await.unwrap_or(Ok(())) // the runtime is shutting down
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use moltis_proto::run::{Stream, Totals};

    use super::*;
    use crate::output::OutputLimits;
    use crate::store::testing::{TestStore, at, ending, operator, run, store};
    use crate::store::{Ended, Heads};

    const BYTES: usize = 100_000;

    async fn ended(store: &TestStore, outputs: &Outputs, number: u8, seconds: i64) {
        store.create_run(run(number), &operator()).await.unwrap();
        let output = outputs.run(run(number).id).unwrap();
        output
            .append(Stream::Stdout, 0, Bytes::from(vec![1; BYTES]))
            .unwrap();
        output.written().await;
        let end = Ended {
            ending: ending(),
            totals: Totals {
                stdout: BYTES as u64,
                stderr: 0,
            },
            heads: Heads::default(),
            started: None,
            at: at(seconds),
        };
        store.end_run(run(number).id, end).await.unwrap().unwrap();
    }

    fn open(store: &TestStore, total_bytes_max: u64) -> Outputs {
        let limits = OutputLimits {
            total_bytes_max,
            ..OutputLimits::default()
        };
        Outputs::open(store.dir.path(), None, limits).unwrap()
    }

    #[tokio::test]
    async fn runs_go_after_their_days_with_their_files() {
        let store = store().await;
        let outputs = open(&store, u64::MAX);
        for number in 0..5 {
            ended(&store, &outputs, number, i64::from(number) * 100).await;
        }
        store.create_run(run(9), &operator()).await.unwrap();
        let keep = Keep {
            runs: Duration::from_secs(1000),
        };
        let swept = sweep(&store, &outputs, keep, at(1250)).await.unwrap();
        assert_eq!((swept.runs, swept.outputs), (3, 0));
        assert!(store.run(run(2).id).await.unwrap().is_none());
        assert!(store.run(run(3).id).await.unwrap().is_some());
        assert!(
            store.run(run(9).id).await.unwrap().is_some(),
            "it is not over"
        );
        assert_eq!(outputs.bytes(), 2 * BYTES as u64);
        assert_eq!(outputs.stored_runs().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn past_the_total_the_oldest_output_goes_and_the_rows_say_so() {
        let store = store().await;
        let outputs = open(&store, 4 * BYTES as u64);
        for number in 0..20 {
            ended(&store, &outputs, number, 0).await;
        }
        let swept = sweep(&store, &outputs, Keep::default(), at(10))
            .await
            .unwrap();
        assert_eq!((swept.runs, swept.outputs), (0, 16));
        assert!(outputs.bytes() <= 4 * BYTES as u64);
        let oldest = store.run(run(0).id).await.unwrap().unwrap();
        assert_eq!(oldest.output_freed_at, Some(at(10)));
        assert_eq!(oldest.totals.stdout, BYTES as u64);
        let newest = store.run(run(19).id).await.unwrap().unwrap();
        assert_eq!(newest.output_freed_at, None);
        // Nothing more to do, and a clock that was turned back harms nothing.
        let again = sweep(&store, &outputs, Keep::default(), Timestamp::MIN)
            .await
            .unwrap();
        assert_eq!(again, Swept::default());
    }

    #[tokio::test]
    async fn files_without_a_row_go_when_they_are_old() {
        let store = store().await;
        let outputs = open(&store, u64::MAX);
        ended(&store, &outputs, 1, 0).await;
        let orphan = outputs.run(run(2).id).unwrap();
        let bytes = Bytes::from(vec![1; BYTES]);
        orphan.append(Stream::Stderr, 0, bytes).unwrap();
        orphan.written().await;
        drop(orphan);
        let today = Timestamp::now();
        let tomorrow = today + Duration::from_hours(24);
        // The row of run 1 is young enough as long as it counts from the end that it names.
        let keep = Keep {
            runs: Duration::from_hours(20 * 365 * 24),
        };
        let swept = sweep(&store, &outputs, keep, today).await.unwrap();
        assert_eq!(swept.orphans, 0);
        let removed = orphans(&store, &outputs, tomorrow).await.unwrap();
        assert_eq!(removed, 1);
        assert_eq!(outputs.stored_runs().unwrap(), [run(1).id]);
    }
}
