//! A queue, and the thread that empties it.
//!
//! What to do and when is the queue's to say ([`Queue::next`]), without waiting; how it is done is a
//! [`Turn`]. The thread ends when the [`Worker`] is closed or dropped, behind what was brought before.
//! In a simulation a task takes the place of the thread.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::system::System;

/// What is to be done.
pub(crate) trait Queue: Send + 'static {
    /// What one turn does.
    type Work: Send;

    /// Returns what to do at this moment. Called again after each turn, whenever the worker was
    /// rung for, and at the moment that it has named.
    fn next(&mut self, now: Instant) -> Next<Self::Work>;

    /// Takes note that nobody brings anything any more.
    fn close(&mut self);
}

/// What to do at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next<W> {
    /// This.
    Do(W),
    /// Nothing, until somebody rings.
    Wait,
    /// Nothing, until somebody rings or this moment has come.
    WaitUntil(Instant),
    /// Nothing, ever again.
    End,
}

/// How work is done.
pub(crate) trait Turn<Q: Queue>: Send + 'static {
    /// Does it. Nothing but a simulated disk may make it wait.
    fn turn(&mut self, line: &Line<Q>, work: Q::Work) -> impl Future<Output = ()> + Send;
}

/// The end of those who bring work.
#[derive(Debug)]
pub(crate) struct Worker<Q: Queue>(Line<Q>);

impl<Q: Queue> Worker<Q> {
    /// Starts a thread with this name.
    ///
    /// # Errors
    /// Where there can be no more threads.
    pub(crate) fn start(
        system: &System,
        name: &str,
        queue: Q,
        turn: impl Turn<Q>,
    ) -> io::Result<Self> {
        let line = Line(Arc::new(Shared {
            queue: Mutex::new(queue),
            bell: Bell::default(),
            ended: watch::Sender::new(false),
        }));
        system.begin(name, line.clone(), turn)?;
        Ok(Self(line))
    }

    /// Returns the queue.
    pub(crate) fn queue(&self) -> MutexGuard<'_, Q> {
        self.0.queue()
    }

    /// Has the queue asked what to do next.
    pub(crate) fn ring(&self) {
        self.0.ring();
    }

    /// Closes the queue, and waits until what lies in it is done and the thread does nothing more.
    pub(crate) async fn close(&self) {
        self.queue().close();
        self.ring();
        let mut ended = self.0.0.ended.subscribe();
        ended.wait_for(|ended| *ended).await.ok(); // `self` holds the sender
    }
}

impl<Q: Queue> Drop for Worker<Q> {
    fn drop(&mut self) {
        self.queue().close();
        self.ring();
    }
}

/// The queue, as both ends hold it.
#[derive(Debug)]
pub(crate) struct Line<Q>(Arc<Shared<Q>>);

#[derive(Debug)]
struct Shared<Q> {
    queue: Mutex<Q>,
    bell: Bell,
    /// The thread does nothing more.
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Bell {
    thread: Condvar,
    #[cfg(feature = "simulation")]
    task: tokio::sync::Notify,
}

impl<Q> Clone for Line<Q> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q: Queue> Line<Q> {
    /// Returns the queue.
    pub(crate) fn queue(&self) -> MutexGuard<'_, Q> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        self.0.bell.thread.notify_one();
        #[cfg(feature = "simulation")]
        self.0.bell.task.notify_one();
    }

    /// Starts the thread.
    pub(crate) fn empty_on_thread(self, name: &str, mut turn: impl Turn<Q>) -> io::Result<()> {
        let empty = move || {
            while let Some(work) = self.wait() {
                turn.turn(&self, work)
                    .now_or_never()
                    .expect("no turn waits for anything on a real machine");
            }
            drop(turn);
            self.0.ended.send_replace(true);
        };
        let builder = std::thread::Builder::new().name(name.to_owned());
        builder.spawn(empty).map(drop)
    }

    fn wait(&self) -> Option<Q::Work> {
        let bell = &self.0.bell.thread;
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            queue = match queue.next(now) {
                Next::Do(work) => return Some(work),
                Next::End => return None,
                Next::Wait => bell.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Next::WaitUntil(at) => {
                    let time = at.saturating_duration_since(now);
                    let waited = bell.wait_timeout(queue, time);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Does what the thread does.
    #[cfg(feature = "simulation")]
    pub(crate) async fn empty_in_task(self, mut turn: impl Turn<Q>) {
        let bell = &self.0.bell.task;
        loop {
            let next = self.queue().next(Instant::now());
            match next {
                Next::Do(work) => {
                    turn.turn(&self, work).await;
                    // As another thread does, it lets others go on between two turns.
                    tokio::task::yield_now().await;
                }
                Next::End => {
                    drop(turn);
                    self.0.ended.send_replace(true);
                    return;
                }
                Next::Wait => bell.notified().await,
                Next::WaitUntil(at) => {
                    tokio::time::timeout_at(at, bell.notified()).await.ok(); // or rung for
                }
            }
        }
    }
}
