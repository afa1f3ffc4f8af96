//! What lives as long as the gateway: every task is known, and all of them end together. The store and
//! the accept loop have tasks of their own, which end with them.
//!
//! Whoever starts something in the background asks a [`Tasks`]; the gateway stops and awaits all of
//! it in [`Tasks::shut_down`]. A task that outlives the grace is left to the runtime, and said so.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::system::System;

/// Starts tasks, stops them, and waits for them. Cloning shares the set.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    system: System,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Returns an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns an empty set on this machine.
    pub(crate) fn on(system: System) -> Self {
        Self {
            system,
            ..Self::default()
        }
    }

    /// Starts a task. It has to end soon after [`Tasks::stop`] says so.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let task = self.tracker.spawn(task);
        self.system.started(&task);
        task
    }

    /// Returns the token that is cancelled when everything shall end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Tells every task to end and waits for them, at most `grace`. Returns how many were still
    /// there then. May be called again.
    pub async fn shut_down(&self, grace: Duration) -> usize {
        self.stop.cancel();
        self.tracker.close();
        match tokio::time::timeout(grace, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_elapsed) => self.tracker.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_task_is_awaited() {
        let tasks = Tasks::new();
        let stop = tasks.stop().clone();
        let task = tasks.spawn(async move {
            stop.cancelled().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            7
        });
        assert_eq!(tasks.shut_down(Duration::from_secs(5)).await, 0);
        assert_eq!(task.await.unwrap(), 7);
        assert_eq!(tasks.shut_down(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_counted_and_holds_nobody() {
        let tasks = Tasks::new();
        tasks.spawn(std::future::pending::<()>());
        assert_eq!(tasks.shut_down(Duration::from_secs(5)).await, 1);
    }
}
