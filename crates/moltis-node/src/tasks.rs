//! The only place of this crate that spawns: whoever starts a task can wait for all of them.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one owner, and the token that asks them to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Begins with none; they are asked to stop when `stop` is cancelled, or by `shut_down`.
    pub(crate) fn below(stop: &CancellationToken) -> Self {
        Self {
            tracker: TaskTracker::new(),
            stop: stop.child_token(),
        }
    }

    /// Returns the token that is cancelled when the tasks shall stop.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts a task.
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(task);
    }

    /// Asks all tasks to stop and waits for them, `grace` at the most. Returns whether all ended.
    pub(crate) async fn shut_down(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait())
            .await
            .is_ok()
    }
}
