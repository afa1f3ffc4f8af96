//! The thread that writes output, for all runs in turn.
//!
//! Its queue holds each run at most once, so the runs bound it. Where a file cannot be written the
//! run is put aside and tried again each second: its bytes stay in memory, unacknowledged, and the
//! node's window and spool hold what comes behind them.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::{OutputError, OutputTrouble, RunOutput};

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

/// The thread's end that others hold.
#[derive(Debug)]
pub(super) struct Writing {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    trouble: watch::Sender<Option<OutputTrouble>>,
}

#[derive(Debug, Default)]
struct Queue {
    runs: VecDeque<Arc<RunOutput>>,
    /// Runs whose files cannot be written now.
    aside: Vec<Arc<RunOutput>>,
    closed: bool,
}

impl Writing {
    pub(super) fn start(dir: &Path) -> Result<Arc<Self>, OutputError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            trouble: watch::Sender::new(None),
        });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("moltis-output".to_owned())
            .spawn(move || {
                while let Some(run) = thread.next() {
                    thread.turn(run);
                }
            })
            .map_err(|error| OutputError::file("start the thread that writes", dir, error))?;
        Ok(Arc::new(Self { shared }))
    }

    pub(super) fn schedule(&self, run: Arc<RunOutput>) {
        self.shared.queue().runs.push_back(run);
        self.shared.work.notify_one();
    }

    /// Returns how many runs wait, those put aside among them.
    #[cfg(feature = "metrics")]
    pub(super) fn waiting(&self) -> usize {
        let queue = self.shared.queue();
        queue.runs.len() + queue.aside.len()
    }

    pub(super) fn trouble(&self) -> watch::Receiver<Option<OutputTrouble>> {
        self.shared.trouble.subscribe()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a run with work; `None` when nobody is left to bring any.
    fn next(&self) -> Option<Arc<RunOutput>> {
        let mut queue = self.queue();
        loop {
            if let Some(run) = queue.runs.pop_front() {
                return Some(run);
            }
            if queue.closed {
                return None;
            }
            queue = if queue.aside.is_empty() {
                self.work
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner)
            } else {
                let (mut queue, _) = self
                    .work
                    .wait_timeout(queue, RETRY)
                    .unwrap_or_else(PoisonError::into_inner);
                let aside = std::mem::take(&mut queue.aside);
                queue.runs.extend(aside);
                queue
            };
        }
    }

    fn turn(&self, run: Arc<RunOutput>) {
        match run.write_some() {
            Ok(Wait::Idle) => {}
            Ok(Wait::More) => {
                self.trouble
                    .send_if_modified(|trouble| trouble.take().is_some());
                if run.schedule() {
                    self.queue().runs.push_back(run);
                }
            }
            Err(error) => {
                self.tell(&error);
                // What comes meanwhile waits with it.
                if run.schedule() {
                    self.queue().aside.push(run);
                }
            }
        }
    }

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
