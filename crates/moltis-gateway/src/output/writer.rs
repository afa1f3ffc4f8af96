//! The thread that writes output, for all runs in turn.
//!
//! Its queue holds each run at most once, so the runs bound it. Where a file cannot be written the
//! run is put aside and tried again each second: its bytes stay in memory, unacknowledged, and the
//! node's window and spool hold what comes behind them.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{OutputError, OutputTrouble, RunOutput};
use crate::system::System;
use crate::worker::{self, Line, Next, Turn, Worker};

/// Time between two tries at a disk that takes nothing.
const RETRY: Duration = Duration::from_secs(1);

/// What a turn left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nothing.
    Idle,
    /// Perhaps more to write.
    More,
}

/// The end that others hold.
#[derive(Debug)]
pub(super) struct Writing {
    worker: Worker<Queue>,
    trouble: Arc<watch::Sender<Option<OutputTrouble>>>,
}

#[derive(Debug, Default)]
struct Queue {
    runs: VecDeque<Arc<RunOutput>>,
    /// Runs whose files cannot be written now.
    aside: Vec<Arc<RunOutput>>,
    /// When those are tried again.
    retry_at: Option<Instant>,
    closed: bool,
}

/// What the thread writes with.
struct Pen {
    system: System,
    trouble: Arc<watch::Sender<Option<OutputTrouble>>>,
}

impl Writing {
    pub(super) fn start(dir: &Path, system: &System) -> Result<Arc<Self>, OutputError> {
        let trouble = Arc::new(watch::Sender::new(None));
        let pen = Pen {
            system: system.clone(),
            trouble: Arc::clone(&trouble),
        };
        let worker = Worker::start(system, "moltis-output", Queue::default(), pen)
            .map_err(|error| OutputError::file("start the thread that writes", dir, error))?;
        Ok(Arc::new(Self { worker, trouble }))
    }

    pub(super) fn schedule(&self, run: Arc<RunOutput>) {
        {
            let mut queue = self.worker.queue();
            if queue.closed {
                return; // nobody writes it any more
            }
            queue.runs.push_back(run);
        }
        self.worker.ring();
    }

    /// Writes what waits, once more where that could not be done, and ends the thread.
    pub(super) async fn close(&self) {
        self.worker.close().await;
    }

    /// Returns how many runs wait, those put aside among them.
    #[cfg(feature = "metrics")]
    pub(super) fn waiting(&self) -> usize {
        let queue = self.worker.queue();
        queue.runs.len() + queue.aside.len()
    }

    pub(super) fn trouble(&self) -> watch::Receiver<Option<OutputTrouble>> {
        self.trouble.subscribe()
    }
}

impl worker::Queue for Queue {
    type Work = Arc<RunOutput>;

    fn next(&mut self, now: Instant) -> Next<Self::Work> {
        if self.closed || self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.runs.extend(self.aside.drain(..));
        }
        if let Some(run) = self.runs.pop_front() {
            return Next::Do(run);
        }
        match self.retry_at {
            _ if self.closed => Next::End,
            Some(at) => Next::WaitUntil(at),
            None => Next::Wait,
        }
    }

    fn close(&mut self) {
        self.closed = true;
    }
}

impl Turn<Queue> for Pen {
    async fn turn(&mut self, line: &Line<Queue>, run: Arc<RunOutput>) {
        self.system.wait_for("output.write", run.dir()).await;
        match run.write_some() {
            Ok(Wait::Idle) => {}
            Ok(Wait::More) => {
                self.trouble
                    .send_if_modified(|trouble| trouble.take().is_some());
                if run.schedule() {
                    line.queue().runs.push_back(run);
                }
            }
            Err(error) => {
                self.tell(&error);
                // What comes meanwhile waits with it.
                let mut queue = line.queue();
                if !queue.closed && run.schedule() {
                    queue.aside.push(run);
                    queue.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
                }
            }
        }
    }
}

impl Pen {
    fn tell(&self, error: &OutputError) {
        let OutputError::File { path, source, .. } = error else {
            return;
        };
        let trouble = OutputTrouble {
            path: path.clone(),
            disk_full: matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            detail: source.to_string(),
        };
        self.trouble.send_if_modified(|was| {
            if was.is_some() {
                return false;
            }
            tracing::error!(path = %trouble.path.display(), error = %trouble.detail,
                "output cannot be written; it is tried again each second");
            *was = Some(trouble);
            true
        });
    }
}
