//! The thread that brings output onto the disk: 200 ms or 32 MiB after it was written, and before
//! a run is forgotten.
//!
//! A failed sync is final: what the disk holds is not known from then on, so no run is forgotten
//! any more. What only cannot be opened or written for a moment is tried again each second.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::{OutputError, RunOutput};
use crate::session::chain;
use crate::system::System;
use crate::worker::{self, Line, Next, Turn, Worker};

/// Longest time between write(2) and a sync.
const DELAY: Duration = Duration::from_millis(200);

/// Bytes written since the last sync from which one comes early.
const UNSYNCED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Time between two tries at what cannot be synced for the moment.
const RETRY: Duration = Duration::from_secs(1);

/// Why a run is not on the disk.
#[derive(Debug)]
pub(super) enum NotSynced {
    /// Something could not be opened or written. What is unsynced stays so.
    Later(OutputError),
    /// The sync itself failed: the kernel may have thrown away what it could not write.
    Failed(OutputError),
}

/// What stands in the way of syncing output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncTrouble {
    /// A sync has failed: only a restart helps. Else it is tried again each second.
    pub is_final: bool,
    /// What the system said.
    pub detail: String,
}

impl fmt::Display for SyncTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = &self.detail;
        if self.is_final {
            return write!(
                f,
                "output cannot be kept since the disk failed, and nodes keep what ends until the gateway is restarted: {detail}"
            );
        }
        write!(f, "output waits to be synced: {detail}")
    }
}

/// The end that others hold.
#[derive(Debug)]
pub(super) struct Syncing {
    worker: Worker<Queue>,
    trouble: Arc<watch::Sender<Option<SyncTrouble>>>,
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
    /// Runs that cannot be synced now.
    aside: Work,
    /// When those are tried again.
    retry_at: Option<Instant>,
    closed: bool,
}

/// Syncs runs until that fails.
struct Syncs {
    failed: Option<String>,
    trouble: Arc<watch::Sender<Option<SyncTrouble>>>,
}

impl Syncing {
    pub(super) fn start(dir: &Path, system: &System) -> Result<Arc<Self>, OutputError> {
        let trouble = Arc::new(watch::Sender::new(None));
        let syncs = Syncs {
            failed: None,
            trouble: Arc::clone(&trouble),
        };
        let worker = Worker::start(system, "moltis-outsync", Queue::default(), syncs)
            .map_err(|error| OutputError::file("start the thread that syncs", dir, error))?;
        Ok(Arc::new(Self { worker, trouble }))
    }

    /// Notes that a run has so many new bytes in its files.
    pub(super) fn note(&self, run: &Arc<RunOutput>, bytes: u64) {
        let mut queue = self.worker.queue();
        if queue.closed {
            return; // nobody syncs it any more
        }
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
        {
            let mut queue = self.worker.queue();
            if !queue.closed {
                queue.asked.push((run, told));
            }
        }
        self.worker.ring();
        done.await.unwrap_or_else(|_| {
            Err(OutputError::SyncFailed {
                reason: "the gateway is shutting down".to_owned(),
            })
        })
    }

    /// Tells what stands in its way.
    pub(super) fn trouble(&self) -> watch::Receiver<Option<SyncTrouble>> {
        self.trouble.subscribe()
    }

    /// Syncs what was written so far, and ends the thread.
    pub(super) async fn close(&self) {
        self.worker.close().await;
    }
}

#[derive(Debug, Default)]
struct Work {
    written: Vec<Arc<RunOutput>>,
    asked: Vec<(Arc<RunOutput>, Asker)>,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.written.is_empty() && self.asked.is_empty()
    }
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
        if self.closed || self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            let Work { written, asked } = std::mem::take(&mut self.aside);
            self.written.extend(written);
            self.asked.extend(asked);
        }
        if self.written.is_empty() && self.asked.is_empty() {
            return match self.retry_at {
                _ if self.closed => Next::End,
                Some(at) => Next::WaitUntil(at),
                None => Next::Wait,
            };
        }
        let due = *self.due.get_or_insert(now + DELAY);
        if now < due && !self.is_in_a_hurry() {
            return Next::WaitUntil(self.retry_at.map_or(due, |at| at.min(due)));
        }
        self.due = None;
        self.written_bytes = 0;
        let asked = std::mem::take(&mut self.asked);
        let mut written = std::mem::take(&mut self.written);
        written.retain(|run| !asked.iter().any(|(other, _)| Arc::ptr_eq(run, other)));
        Next::Do(Work { written, asked })
    }

    fn close(&mut self) {
        self.closed = true;
    }
}

impl Turn<Queue> for Syncs {
    async fn turn(&mut self, line: &Line<Queue>, work: Work) {
        let mut aside = Work::default();
        // Those who wait come first. Whoever hears that all is synced may move the files: nobody has
        // them here any more.
        for (run, told) in work.asked {
            let synced = match self.sync(&run).await {
                Err(NotSynced::Later(_)) if !line.queue().closed => {
                    aside.asked.push((run, told));
                    continue;
                }
                Err(NotSynced::Later(error) | NotSynced::Failed(error)) => Err(error),
                Ok(()) => Ok(()),
            };
            drop(run);
            told.send(synced).ok(); // the asker has gone
        }
        for run in work.written {
            // What has failed is told to whoever asks next.
            if let Err(NotSynced::Later(_)) = self.sync(&run).await {
                aside.written.push(run);
            }
        }
        let mut queue = line.queue();
        if aside.is_empty() && queue.aside.is_empty() && self.failed.is_none() {
            self.tell(None);
        }
        if aside.is_empty() || queue.closed {
            return;
        }
        queue.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
        queue.aside.written.extend(aside.written);
        queue.aside.asked.extend(aside.asked);
    }
}

impl Syncs {
    async fn sync(&mut self, run: &Arc<RunOutput>) -> Result<(), NotSynced> {
        if let Some(reason) = &self.failed {
            return Err(NotSynced::Failed(OutputError::SyncFailed {
                reason: reason.clone(),
            }));
        }
        let synced = run.sync_now().await;
        match &synced {
            Ok(()) => {}
            Err(NotSynced::Later(error)) => {
                let detail = chain(error);
                let is_final = false;
                if self.trouble.borrow().is_none() {
                    tracing::warn!(run.id = %run.run_id(), error = %detail, "output cannot be synced for the moment; it is tried again each second");
                }
                self.tell(Some(&SyncTrouble { is_final, detail }));
            }
            Err(NotSynced::Failed(error)) => {
                let detail = chain(error);
                tracing::error!(run.id = %run.run_id(), error = %detail, "output cannot be synced");
                self.failed = Some(detail.clone());
                let is_final = true;
                self.tell(Some(&SyncTrouble { is_final, detail }));
            }
        }
        synced
    }

    fn tell(&self, trouble: Option<&SyncTrouble>) {
        self.trouble.send_if_modified(|told| {
            let is_news = told.as_ref() != trouble;
            *told = trouble.cloned();
            is_news
        });
    }
}
