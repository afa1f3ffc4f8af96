//! Letting old things go: ended runs after their days, output past its total, old telemetry.
//!
//! One sweep is bounded work in slices, so that it holds up no run, and no end of the gateway. [`keep_up`]
//! sweeps when the gateway begins, for it may never live for an hour, and every hour from then on; it makes room when [`Outputs::over_limit`] says so. A run whose output is still to be written or synced
//! stays whole; a later sweep finds it.
//!
//! Age is time that the machine has demonstrably lived ([`life`], ADR 72): a wall clock that jumps lets
//! nothing go.

mod life;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use moltis_proto::RunId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::life::COUNT_EVERY;
pub(crate) use self::life::Life;
use crate::exec::Shared;
use crate::output::{OutputError, Outputs};
use crate::session::chain;
use crate::store::{RunStage, Store, StoreError};
use crate::telemetry::HOURS_KEPT;

/// Runs that one transaction deletes: 64 × about 20 µs stay within 2 ms.
const SLICE: u32 = 64;

/// Time between two sweeps that nothing else asked for.
const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// Runs with files of which one transaction looks whether they have rows: 256 × about 5 µs.
const LOOK_SLICE: usize = 256;

/// A sweep rests this long: where only runs that are not over hold output, there is nothing to do
/// until one of them ends.
const REST: Duration = Duration::from_secs(10);

/// The pause behind a sweep that could not make enough room: what is ending now can go soon.
const REST_WHILE_OVER: Duration = Duration::from_secs(1);

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// How long the rows of ended runs, with their output, are kept: as much of the machine's life.
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

/// Sweeps at once and every hour, and makes room when there is too much output, until the gateway stops.
pub(crate) async fn keep_up(shared: Arc<Shared>, keep: Keep, mut life: Life) {
    let stop = shared.tasks.stop().clone();
    let mut over_limit = shared.outputs.over_limit();
    let broom = Broom {
        store: &shared.store,
        outputs: &shared.outputs,
        stop: &stop,
    };
    match broom.leftovers().await {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "deleted the rest of output that was let go"),
        Err(error) => tracing::error!(
            error = &error as &dyn std::error::Error,
            "the rest of output that was let go could not be deleted"
        ),
    }
    let mut due = Instant::now();
    let mut looks = due;
    loop {
        let over = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = over_limit.wait_for(|over| *over) => true,
            () = tokio::time::sleep_until(looks) => false,
        };
        looks = Instant::now() + COUNT_EVERY;
        life.go_on()
            .await
            .unwrap_or_else(|error| life::note_failure(&error));
        let now = shared.clock.now();
        let swept = if Instant::now() >= due {
            due = Instant::now() + SWEEP_EVERY;
            broom.sweep(keep, now).await
        } else if over {
            let freed = broom.make_room(now).await;
            freed.map(|outputs| Swept {
                outputs,
                ..Swept::default()
            })
        } else {
            continue;
        };
        match swept {
            Ok(swept) if swept == Swept::default() => {}
            Ok(swept) => tracing::info!(?swept, "let old runs and output go"),
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "old runs and output could not be let go"
            ),
        }
        if !over {
            continue;
        }
        let rest = if *over_limit.borrow_and_update() {
            REST_WHILE_OVER
        } else {
            REST
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(rest) => {}
        }
    }
    life.count()
        .await
        .unwrap_or_else(|error| life::note_failure(&error));
}

/// Lets go of what may go.
#[derive(Clone, Copy)]
struct Broom<'a> {
    store: &'a Store,
    outputs: &'a Outputs,
    /// Heard between two slices: what is left then is the next process's.
    stop: &'a CancellationToken,
}

impl Broom<'_> {
    /// Deletes what is older than it shall be kept, then the oldest output while there is too much. `now`
    /// is what is shown as the time at which output went.
    ///
    /// # Errors
    /// Where rows or files cannot be deleted. What was deleted before that is gone.
    async fn sweep(&self, keep: Keep, now: Timestamp) -> Result<Swept, SweepError> {
        let mut swept = Swept::default();
        let lived = self.store.lived().await?.total;
        // What is stamped with a count may have come up to one step behind it.
        let until = |age: Duration| lived.checked_sub(age.saturating_add(COUNT_EVERY));
        if let Some(until) = until(keep.runs) {
            swept.runs = self.let_go(until, now).await?;
            self.store.expire_fleets(until).await?;
        }
        swept.orphans = self.orphans(until(keep.runs)).await?;
        swept.outputs = self.make_room(now).await?;
        if let Some(until) = until(HOURS_KEPT) {
            self.store.expire_telemetry(until).await?;
        }
        Ok(swept)
    }

    /// Deletes the runs that ended when the machine had lived for `until` or less.
    async fn let_go(&self, until: Duration, now: Timestamp) -> Result<usize, SweepError> {
        let (mut gone, mut after) = (0, 0);
        while !self.stop.is_cancelled() {
            let old = self.store.oldest_ended(Some(until), after, SLICE).await?;
            let Some((last, _)) = old.last() else { break };
            after = *last;
            let old = self.at_rest(old);
            // As below: a death in between leaves rows that say why their output is not there.
            self.store.free_output(old.clone(), now).await?;
            let removed = self.remove(old).await;
            gone += removed.len();
            self.store.delete_runs(removed).await?;
        }
        Ok(gone)
    }

    /// Deletes the files of ended runs, oldest first, until there is not too much on the disk, or what
    /// is there belongs to runs that are not over.
    async fn make_room(&self, now: Timestamp) -> Result<usize, SweepError> {
        let (mut freed, mut after) = (0, 0);
        while self.is_over_limit() && self.outputs.bytes_at_rest() > 0 {
            let old = self.store.oldest_ended(None, after, SLICE / 8).await?;
            let Some((last, _)) = old.last() else { break };
            after = *last;
            let old = self.with_files(self.at_rest(old)).await;
            for run_id in old {
                if !self.is_over_limit() {
                    break; // what need not go stays
                }
                // First the word, then the loss: a reader in between finds nothing rather than a lie.
                self.store.free_output(vec![run_id], now).await?;
                freed += self.remove(vec![run_id]).await.len();
            }
        }
        Ok(freed)
    }

    /// Returns whether there is too much, and time to do something about it.
    fn is_over_limit(&self) -> bool {
        *self.outputs.over_limit().borrow() && !self.stop.is_cancelled()
    }

    fn at_rest(&self, runs: Vec<(u64, RunId)>) -> Vec<RunId> {
        let runs = runs.into_iter().map(|(_, run_id)| run_id);
        runs.filter(|run_id| !self.outputs.is_at_work(*run_id))
            .collect()
    }

    /// Returns those whose end would make room: a short run lies in its row and takes no file.
    async fn with_files(&self, mut runs: Vec<RunId>) -> Vec<RunId> {
        let below = self.outputs.clone();
        let found = self.outputs.system().blocking(move || {
            runs.retain(|run_id| below.has_files(*run_id));
            runs
        });
        found.await.unwrap_or_default() // the runtime is shutting down
    }

    /// Deletes what a death in the middle of making room has left: files of runs whose rows say that they
    /// have none, and what was set aside of runs that are over. No sweep looks at those rows again.
    async fn leftovers(&self) -> Result<usize, SweepError> {
        let below = self.outputs.clone();
        let stored = self.outputs.system().blocking(move || below.stored_runs());
        let stored = stored.await.unwrap_or(Ok(Vec::new()))?; // the runtime is shutting down
        let mut removed = 0;
        for run_id in stored {
            if self.stop.is_cancelled() {
                break;
            }
            let Some(row) = self.store.run(run_id).await? else {
                continue;
            };
            if row.output_freed_at.is_some() {
                removed += self.remove(vec![run_id]).await.len();
            } else if row.stage == RunStage::Ended {
                // Or what it was given, and did not want.
                let below = self.outputs.clone();
                let tidied = self.outputs.system().blocking(move || {
                    let is_aside = below.is_aside(run_id);
                    if is_aside {
                        below.drop_aside(run_id)?;
                    }
                    below.drop_stdin(run_id)?;
                    Ok::<_, OutputError>(is_aside)
                });
                match tidied.await {
                    Ok(Ok(was_aside)) => removed += usize::from(was_aside),
                    Ok(Err(error)) => tracing::error!(
                        run.id = %run_id,
                        error = &error as &dyn std::error::Error,
                        "what is left of a run that is over cannot be deleted"
                    ),
                    Err(_) => {} // the runtime is shutting down
                }
            }
        }
        Ok(removed)
    }

    /// Looks for files of runs that no row knows, and deletes those of which that has been known since
    /// `until` or longer. Others stay: after a power cut the row may be lost while the node still brings
    /// the run back, and then these bytes are its output.
    async fn orphans(&self, until: Option<Duration>) -> Result<usize, SweepError> {
        let below = self.outputs.clone();
        let stored = self.outputs.system().blocking(move || below.stored_runs());
        let stored = stored.await.unwrap_or(Ok(Vec::new()))?; // the runtime is shutting down
        for slice in stored.chunks(LOOK_SLICE) {
            if self.stop.is_cancelled() {
                return Ok(0);
            }
            self.store.note_orphans(slice).await?;
        }
        let Some(until) = until else { return Ok(0) };
        let mut removed = 0;
        for run_id in self.store.orphans(until).await? {
            if self.stop.is_cancelled() {
                break;
            }
            if self.store.run(run_id).await?.is_some() || self.outputs.is_at_work(run_id) {
                continue;
            }
            for run_id in self.remove(vec![run_id]).await {
                self.store.forget_orphan(run_id).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Deletes the files of runs, and returns those that have none any more. One that cannot be deleted
    /// keeps up no other: it is told, and the next sweep tries it again, as it does those that are left
    /// when the gateway stops.
    async fn remove(&self, mut runs: Vec<RunId>) -> Vec<RunId> {
        let below = self.outputs.clone();
        let stop = self.stop.clone();
        let removed = self.outputs.system().blocking(move || {
        runs.retain(|run_id| !stop.is_cancelled() && match below.remove(*run_id) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(run.id = %run_id, error = %chain(&error), "output of a run cannot be deleted");
                false
            }
        });
        runs
    });
        removed.await.unwrap_or_default() // the runtime is shutting down
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use moltis_proto::run::{Stream, Totals};

    use super::*;
    use crate::output::{OutputLimits, RunOutput};
    use crate::store::testing::{TestStore, at, ending, live, operator, run, store};
    use crate::store::{Ended, Heads};

    const BYTES: usize = 100_000;

    fn broom<'a>(store: &'a Store, outputs: &'a Outputs, stop: &'a CancellationToken) -> Broom<'a> {
        Broom {
            store,
            outputs,
            stop,
        }
    }

    async fn sweep(
        store: &Store,
        outputs: &Outputs,
        keep: Keep,
        now: Timestamp,
    ) -> Result<Swept, SweepError> {
        let stop = CancellationToken::new();
        broom(store, outputs, &stop).sweep(keep, now).await
    }

    /// A run that ends when the machine has lived for so many seconds.
    async fn ended(store: &TestStore, outputs: &Outputs, number: u8, seconds: u64) {
        live(store, seconds).await;
        store.create_run(run(number), &operator()).await.unwrap();
        let output = outputs.run(run(number).id).unwrap();
        output
            .append(Stream::Stdout, 0, Bytes::from(vec![1; BYTES]))
            .unwrap();
        output.written().await;
        finish(&output).await;
        let end = Ended {
            ending: ending(),
            totals: Totals {
                stdout: BYTES as u64,
                stderr: 0,
            },
            heads: Heads::default(),
            started: None,
            at: at(0),
        };
        store.end_run(run(number).id, end).await.unwrap().unwrap();
    }

    async fn finish(output: &Arc<RunOutput>) {
        output.finish(output.totals());
        output.synced().await.unwrap();
        let at_rest = async {
            while output.is_at_work() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), at_rest)
            .await
            .expect("output stays at work");
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
            ended(&store, &outputs, number, u64::from(number) * 100).await;
        }
        store.create_run(run(9), &operator()).await.unwrap();
        let keep = Keep {
            runs: Duration::from_secs(1000),
        };
        // Whatever the time of day is said to be.
        let now = at(10 * 365 * 24 * 3600);
        for (seconds, gone) in [(0, 0), (1250, 3), (1250, 0)] {
            live(&store, seconds + COUNT_EVERY.as_secs()).await;
            let swept = sweep(&store, &outputs, keep, now).await.unwrap();
            assert_eq!((swept.runs, swept.outputs), (gone, 0), "{seconds}");
        }
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
    async fn a_run_whose_files_cannot_be_deleted_keeps_up_no_other() {
        let store = store().await;
        let outputs = open(&store, u64::MAX);
        for number in 1..4 {
            ended(&store, &outputs, number, 0).await;
        }
        // A directory in the place of a file cannot be deleted as one.
        let files = store.dir.path().join("outputs").join(run(1).id.to_string());
        let segment = files.join(format!("out-{:016x}", 0));
        std::fs::remove_file(&segment).unwrap();
        std::fs::create_dir(&segment).unwrap();
        let keep = Keep {
            runs: Duration::from_secs(1000),
        };
        live(&store, 10_000).await;
        for (found, left) in [(2, 1), (0, 1)] {
            let swept = sweep(&store, &outputs, keep, at(1)).await.unwrap();
            assert_eq!(swept.runs, found);
            assert_eq!(outputs.stored_runs().unwrap().len(), left);
        }
        std::fs::remove_dir(&segment).unwrap();
        let swept = sweep(&store, &outputs, keep, at(1)).await.unwrap();
        assert_eq!(swept.runs, 1);
        assert!(store.run(run(1).id).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_sweep_ends_when_the_gateway_stops_and_the_next_one_goes_on() {
        let store = store().await;
        let outputs = open(&store, BYTES as u64);
        for number in 0..3 {
            ended(&store, &outputs, number, 0).await;
        }
        live(&store, 10_000).await;
        let stop = CancellationToken::new();
        stop.cancel();
        let broom = broom(&store, &outputs, &stop);
        let keep = Keep {
            runs: Duration::ZERO,
        };
        assert_eq!(broom.sweep(keep, at(1)).await.unwrap(), Swept::default());
        assert_eq!(broom.make_room(at(1)).await.unwrap(), 0);
        let all: Vec<_> = (0..3).map(|number| run(number).id).collect();
        assert_eq!(broom.remove(all).await, []);
        assert_eq!(outputs.stored_runs().unwrap().len(), 3);
        let swept = sweep(&store, &outputs, keep, at(1)).await.unwrap();
        assert_eq!(swept.runs, 3);
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
    async fn what_a_death_in_the_middle_of_making_room_has_left_is_deleted() {
        let store = store().await;
        let outputs = open(&store, u64::MAX);
        for number in [1, 2] {
            ended(&store, &outputs, number, 0).await;
        }
        // The row was written, and the files were not deleted.
        store.free_output(vec![run(1).id], at(1)).await.unwrap();
        let stop = CancellationToken::new();
        let leftovers = async || broom(&store, &outputs, &stop).leftovers().await.unwrap();
        assert_eq!(leftovers().await, 1);
        assert_eq!(outputs.stored_runs().unwrap(), [run(2).id]);
        assert_eq!(outputs.bytes(), BYTES as u64);
        assert_eq!(leftovers().await, 0);
        // And stdin that a run had not taken when it ended.
        let given = outputs.run(run(2).id).unwrap();
        given.keep_stdin(b"in").unwrap();
        assert_eq!(leftovers().await, 0);
        assert!(!given.has_stdin());
        assert_eq!(outputs.bytes(), BYTES as u64);
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
        finish(&orphan).await;
        let stop = CancellationToken::new();
        let until = async |seconds| {
            let until = Some(Duration::from_secs(seconds));
            let broom = broom(&store, &outputs, &stop);
            broom.orphans(until).await.unwrap()
        };
        // It is as old as the first look at it, whatever its files and the time of day say.
        live(&store, 50).await;
        assert_eq!(until(49).await, 0);
        live(&store, 100).await;
        let far = Timestamp::MAX;
        let swept = sweep(&store, &outputs, Keep::default(), far).await;
        assert_eq!(swept.unwrap(), Swept::default());
        assert_eq!(until(50).await, 1);
        assert_eq!(outputs.stored_runs().unwrap(), [run(1).id]);
        assert_eq!(until(100).await, 0);
    }

    #[tokio::test]
    async fn a_run_that_is_not_synced_keeps_its_files_and_syncing_goes_on() {
        let store = store().await;
        let outputs = open(&store, BYTES as u64);
        for number in [1, 2] {
            ended(&store, &outputs, number, 0).await;
        }
        // As it is in the moment behind an ending: the row says so, and more is to be synced.
        let at_work = outputs.run(run(1).id).unwrap();
        let end = at_work.end(Stream::Stdout);
        let more = Bytes::from(vec![2; BYTES]);
        at_work.append(Stream::Stdout, end, more).unwrap();
        at_work.written().await;
        let far = Keep {
            runs: Duration::ZERO,
        };
        live(&store, COUNT_EVERY.as_secs()).await;
        for keep in [Keep::default(), far] {
            sweep(&store, &outputs, keep, at(1000)).await.unwrap();
            assert!(outputs.has_files(run(1).id));
            assert!(!outputs.has_files(run(2).id));
        }
        assert!(store.run(run(1).id).await.unwrap().is_some());
        assert!(store.run(run(2).id).await.unwrap().is_none());
        // Then it goes like any other, whoever reads it.
        finish(&at_work).await;
        sweep(&store, &outputs, far, at(1000)).await.unwrap();
        assert!(!outputs.has_files(run(1).id));
        at_work.synced().await.unwrap();
    }

    #[tokio::test]
    async fn where_only_open_runs_hold_output_no_ended_run_loses_any() {
        let store = store().await;
        let outputs = open(&store, BYTES as u64);
        // A short one, which lies in its row and takes no room.
        store.create_run(run(1), &operator()).await.unwrap();
        let heads = Heads {
            stdout: Bytes::from_static(b"short"),
            ..Heads::default()
        };
        let end = Ended {
            ending: ending(),
            totals: Totals {
                stdout: 5,
                stderr: 0,
            },
            heads: heads.clone(),
            started: None,
            at: at(0),
        };
        store.end_run(run(1).id, end).await.unwrap().unwrap();
        let open = outputs.run(run(2).id).unwrap();
        let bytes = Bytes::from(vec![1; 2 * BYTES]);
        open.append(Stream::Stdout, 0, bytes).unwrap();
        open.written().await;
        assert!(*outputs.over_limit().borrow());
        let swept = sweep(&store, &outputs, Keep::default(), at(10));
        assert_eq!(swept.await.unwrap(), Swept::default());
        assert_eq!(store.run_heads(run(1).id).await.unwrap(), heads);
    }
}
