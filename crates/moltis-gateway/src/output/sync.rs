//! The thread that brings output onto the disk: 200 ms or 32 MiB after it was written, and before
//! a run is forgotten.
//!
//! A failed sync is final: what the disk holds is not known from then on, so no run is forgotten
//! any more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{OutputError, RunOutput};
use crate::system::System;
use crate::worker::{self, Line, Next, Turn, Worker};

/// Longest time between write(2) and a sync.
const DELAY: Duration = Duration::from_millis(200);

/// Bytes written since the last sync from which one comes early.
const UNSYNCED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// The end that others hold.
#[derive(Debug)]
pub(super) struct Syncing {
    worker: Worker<Queue>,
}

type Asker = oneshot::Sender<Result<(), OutputError>>;

#[derive(Debug, Default)]
struct Queue {
    /// Runs with bytes that no sync has covered, each once.
    written: Vec<Arc<RunOutput>>,
    /// How many bytes these are.
    written_bytes: u64,
    /// When these are due.
    due: Option<Instant>,
    /// Who waits for a run to be synced.
    asked: Vec<(Arc<RunOutput>, Asker)>,
    closed: bool,
}

/// Syncs runs until that fails.
#[derive(Default)]
struct Syncs {
    failed: Option<String>,
}

impl Syncing {
    pub(super) fn start(dir: &Path, system: &System) -> Result<Arc<Self>, OutputError> {
        let (queue, syncs) = (Queue::default(), Syncs::default());
        let worker = Worker::start(system, "moltis-outsync", queue, syncs)
            .map_err(|error| OutputError::file("start the thread that syncs", dir, error))?;
        Ok(Arc::new(Self { worker }))
    }

    /// Notes that a run has so many new bytes in its files.
    pub(super) fn note(&self, run: &Arc<RunOutput>, bytes: u64) {
        let mut queue = self.worker.queue();
        let was_much = queue.is_much();
        queue.written_bytes += bytes;
        let first = queue.written.is_empty();
        if !queue
            .written
            .iter()
            .any(|written| Arc::ptr_eq(written, run))
        {
            queue.written.push(Arc::clone(run));
        }
        if first || (queue.is_much() && !was_much) {
            drop(queue);
            self.worker.ring();
        }
    }

    /// Waits until all that was written of a run is on the disk.
    pub(super) async fn sync(&self, run: Arc<RunOutput>) -> Result<(), OutputError> {
        let (told, done) = oneshot::channel();
        self.worker.queue().asked.push((run, told));
        self.worker.ring();
        done.await.unwrap_or_else(|_| {
            Err(OutputError::SyncFailed {
                reason: "the gateway is shutting down".to_owned(),
            })
        })
    }
}

struct Work {
    written: Vec<Arc<RunOutput>>,
    asked: Vec<(Arc<RunOutput>, Asker)>,
}

impl Queue {
    fn is_much(&self) -> bool {
        self.written_bytes >= UNSYNCED_BYTES_MAX
    }

    fn is_in_a_hurry(&self) -> bool {
        !self.asked.is_empty() || self.is_much() || self.closed
    }
}

impl worker::Queue for Queue {
    type Work = Work;

    fn next(&mut self, now: Instant) -> Next<Work> {
        if self.written.is_empty() && self.asked.is_empty() {
            return if self.closed { Next::End } else { Next::Wait };
        }
        let due = *self.due.get_or_insert(now + DELAY);
        if now < due && !self.is_in_a_hurry() {
            return Next::WaitUntil(due);
        }
        self.due = None;
        self.written_bytes = 0;
        Next::Do(Work {
            written: std::mem::take(&mut self.written),
            asked: std::mem::take(&mut self.asked),
        })
    }

    fn close(&mut self) {
        self.closed = true;
    }
}

impl Turn<Queue> for Syncs {
    async fn turn(&mut self, _line: &Line<Queue>, work: Work) {
        // Those who wait come first.
        for (run, told) in work.asked {
            told.send(self.sync(&run).await).ok(); // the asker has gone
        }
        for run in work.written {
            self.sync(&run).await.ok(); // told to whoever asks next
        }
    }
}

impl Syncs {
    async fn sync(&mut self, run: &Arc<RunOutput>) -> Result<(), OutputError> {
        if let Some(reason) = &self.failed {
            return Err(OutputError::SyncFailed {
                reason: reason.clone(),
            });
        }
        run.sync_now().await.inspect_err(|error| {
            tracing::error!(run.id = %run.run_id(), %error, "output cannot be synced");
            let reason = std::error::Error::source(error)
                .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
            self.failed = Some(reason);
        })
    }
}
