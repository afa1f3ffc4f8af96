//! The thread that brings output onto the disk: 200 ms or 32 MiB after it was written, and before
//! a run is forgotten.
//!
//! A failed sync is final: what the disk holds is not known from then on, so no run is forgotten
//! any more.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::{OutputError, RunOutput};

/// Longest time between write(2) and a sync.
const DELAY: Duration = Duration::from_millis(200);

/// Bytes written since the last sync from which one comes early.
const UNSYNCED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// The thread's end that others hold.
#[derive(Debug)]
pub(super) struct Syncing {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    failed: watch::Sender<Option<Arc<str>>>,
}

type Asker = oneshot::Sender<Result<(), OutputError>>;

#[derive(Debug, Default)]
struct Queue {
    /// Runs with bytes that no sync has covered, each once.
    written: Vec<Arc<RunOutput>>,
    /// How many bytes these are.
    written_bytes: u64,
    /// Who waits for a run to be synced.
    asked: Vec<(Arc<RunOutput>, Asker)>,
    closed: bool,
}

impl Syncing {
    pub(super) fn start(dir: &Path) -> Result<Arc<Self>, OutputError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            failed: watch::Sender::new(None),
        });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("moltis-outsync".to_owned())
            .spawn(move || {
                while let Some((written, asked)) = thread.next() {
                    thread.turn(written, asked);
                }
            })
            .map_err(|error| OutputError::file("start the thread that syncs", dir, error))?;
        Ok(Arc::new(Self { shared }))
    }

    /// Notes that a run has so many new bytes in its files.
    pub(super) fn note(&self, run: &Arc<RunOutput>, bytes: u64) {
        let mut queue = self.shared.queue();
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
            self.shared.work.notify_one();
        }
    }

    /// Waits until all that was written of a run is on the disk.
    pub(super) async fn sync(&self, run: Arc<RunOutput>) -> Result<(), OutputError> {
        let (told, done) = oneshot::channel();
        self.shared.queue().asked.push((run, told));
        self.shared.work.notify_one();
        done.await.unwrap_or_else(|_| {
            Err(OutputError::SyncFailed {
                reason: "the gateway is shutting down".to_owned(),
            })
        })
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.work.notify_one();
    }
}

type Work = (Vec<Arc<RunOutput>>, Vec<(Arc<RunOutput>, Asker)>);

impl Queue {
    fn is_much(&self) -> bool {
        self.written_bytes >= UNSYNCED_BYTES_MAX
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until somebody asks, or what was written is old or much enough.
    fn next(&self) -> Option<Work> {
        let mut queue = self.queue();
        loop {
            if queue.written.is_empty() && queue.asked.is_empty() {
                if queue.closed {
                    return None;
                }
                queue = self
                    .work
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let hurry =
                |queue: &mut Queue| queue.asked.is_empty() && !queue.is_much() && !queue.closed;
            (queue, _) = self
                .work
                .wait_timeout_while(queue, DELAY, hurry)
                .unwrap_or_else(PoisonError::into_inner);
            queue.written_bytes = 0;
            return Some((
                std::mem::take(&mut queue.written),
                std::mem::take(&mut queue.asked),
            ));
        }
    }

    fn turn(&self, written: Vec<Arc<RunOutput>>, asked: Vec<(Arc<RunOutput>, Asker)>) {
        // Those who wait come first.
        for (run, told) in asked {
            told.send(self.sync(&run)).ok(); // the asker has gone
        }
        for run in written {
            self.sync(&run).ok(); // told to whoever asks next
        }
    }

    fn sync(&self, run: &Arc<RunOutput>) -> Result<(), OutputError> {
        if let Some(reason) = &*self.failed.borrow() {
            return Err(OutputError::SyncFailed {
                reason: reason.as_ref().to_owned(),
            });
        }
        run.sync_now().inspect_err(|error| {
            tracing::error!(run.id = %run.run_id(), %error, "output cannot be synced");
            let reason = std::error::Error::source(error)
                .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
            self.failed.send_replace(Some(reason.into()));
        })
    }
}
