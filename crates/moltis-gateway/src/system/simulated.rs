//! The real machine, or one in a simulation.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::task::{JoinError, JoinHandle, coop};
use tokio::time::Instant;

use moltis_proto::handshake::Epoch;
use moltis_proto::{DeviceId, InstanceId, RunId};

use crate::session::moment;
use crate::simulation::{Edge, Incarnation, Seen, Step};
use crate::worker::{Line, Queue, Turn};

/// What the rooms of a gateway stand on. Cloning shares it; the default is the real machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct System(Option<Incarnation>);

impl System {
    /// Returns a machine in a simulation.
    pub(crate) fn simulated(incarnation: Incarnation) -> Self {
        Self(Some(incarnation))
    }

    /// Returns whether it is one in a simulation.
    pub(crate) fn is_simulated(&self) -> bool {
        self.0.is_some()
    }

    /// Does a step on the disk.
    pub(crate) fn step<T>(
        &self,
        what: &'static str,
        path: &Path,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(incarnation) = &self.0 else {
            return work();
        };
        let at = |edge| Step { what, path, edge };
        incarnation.step(at(Edge::Before))?;
        let done = work()?;
        incarnation.step(at(Edge::After)).ok(); // it is done
        Ok(done)
    }

    /// Does a step that brings what was written onto the disk.
    pub(crate) fn sync(
        &self,
        what: &'static str,
        path: &Path,
        work: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(incarnation) = &self.0 else {
            return work();
        };
        let at = |edge| Step { what, path, edge };
        incarnation.step(at(Edge::Before))?;
        work()?;
        // Of this step alone the system may say that it has failed where it was done.
        incarnation.step(at(Edge::After))
    }

    /// As [`sync`](Self::sync), where whoever asks can wait for as long as it takes.
    pub(crate) async fn slow_sync(
        &self,
        what: &'static str,
        path: &Path,
        work: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        self.wait_for(what, path).await;
        self.sync(what, path, work)
    }

    /// As [`step`](Self::step), for one that SQLite does; `failed` clothes what a disk says instead.
    pub(crate) async fn step_of_sqlite<T, E>(
        &self,
        what: &'static str,
        path: &Path,
        failed: impl FnOnce(io::Error) -> E,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(incarnation) = &self.0 else {
            return work.await;
        };
        let at = |edge| Step { what, path, edge };
        incarnation.step(at(Edge::Before)).map_err(failed)?;
        let done = work.await?;
        incarnation.step(at(Edge::After)).ok(); // it is done
        Ok(done)
    }

    /// As [`step_of_sqlite`](Self::step_of_sqlite), for closing a connection. Where the disk says
    /// no it is closed all the same: dropped, SQLite's thread would do it some time later.
    pub(crate) async fn close_of_sqlite<E>(
        &self,
        what: &'static str,
        path: &Path,
        failed: impl FnOnce(io::Error) -> E,
        close: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        let Some(incarnation) = &self.0 else {
            return close.await;
        };
        let at = |edge| Step { what, path, edge };
        let said = incarnation.step(at(Edge::Before)).map_err(failed);
        let closed = close.await;
        said?;
        closed?;
        incarnation.step(at(Edge::After)).ok(); // it is done
        Ok(())
    }

    /// Waits for as long as steps of this kind take.
    pub(crate) async fn wait_for(&self, what: &'static str, path: &Path) {
        if let Some(incarnation) = &self.0 {
            let time = incarnation.time_of(what, path);
            if !time.is_zero() {
                tokio::time::sleep(time).await;
            }
        }
    }

    /// A connection of a device counts from now on, and no older one.
    pub(crate) fn seated(&self, device: DeviceId, epoch: Epoch, instance: InstanceId) {
        self.see(Seen::Seated {
            device,
            epoch,
            instance,
        });
    }

    /// A message that came by a connection is obeyed.
    pub(crate) fn heard(&self, device: DeviceId, epoch: Epoch) {
        self.see(Seen::Heard { device, epoch });
    }

    /// A connection is over.
    pub(crate) fn left(&self, device: DeviceId, epoch: Epoch) {
        self.see(Seen::Left { device, epoch });
    }

    /// The start of a run is given to a connection.
    pub(crate) fn released(&self, run_id: RunId) {
        self.see(Seen::Released(run_id));
    }

    fn see(&self, seen: Seen) {
        if let Some(incarnation) = &self.0 {
            incarnation.see(seen);
        }
    }

    /// Returns how many bytes of output the disk below `dir` takes, where that is not the machine's
    /// to say.
    pub(crate) fn room(&self, dir: &Path) -> Option<u64> {
        self.0.as_ref().map(|incarnation| incarnation.room(dir))
    }

    /// Does work that blocks.
    ///
    /// # Errors
    /// Where it panics, or the runtime is shutting down.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        match &self.0 {
            Some(_) => Ok(work()),
            None => tokio::task::spawn_blocking(work).await,
        }
    }

    /// Waits for something that SQLite's threads alone bring about.
    pub(crate) async fn sqlite<F: Future>(&self, work: F) -> F::Output {
        match &self.0 {
            Some(_) => block_on(work),
            None => work.await,
        }
    }

    /// As [`sqlite`](Self::sqlite), for the answer to a statement.
    pub(crate) fn answer<'a, T: Send + 'a>(&self, answer: BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        match &self.0 {
            Some(_) => async { block_on(answer) }.boxed(),
            None => answer,
        }
    }

    /// As [`sqlite`](Self::sqlite), for several answers. All of them are waited for: behind the
    /// last one SQLite's thread has nothing left to do.
    pub(crate) fn answers<'a, T: Send + 'a>(&self, answers: BoxStream<'a, T>) -> BoxStream<'a, T> {
        if self.0.is_none() {
            return answers;
        }
        stream::once(async { stream::iter(block_on(answers.collect::<Vec<_>>())) })
            .flatten()
            .boxed()
    }

    /// Starts a task that ends by itself, when its owner is dropped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.started(&super::spawn(task));
    }

    /// Returns how long this boot has lasted. In a simulation all boots have begun with its time, which
    /// none of them sleeps through.
    pub(crate) fn boottime(&self) -> Duration {
        static BEGAN: OnceLock<Instant> = OnceLock::new();
        if self.0.is_none() {
            return moment::now().boottime;
        }
        BEGAN.get_or_init(Instant::now).elapsed()
    }

    /// Notes that a task was started.
    pub(crate) fn started<T>(&self, task: &JoinHandle<T>) {
        if let Some(incarnation) = &self.0 {
            incarnation.started(task.abort_handle());
        }
    }

    /// Begins to empty a queue.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub(crate) fn begin<Q: Queue>(
        &self,
        name: &str,
        line: Line<Q>,
        turn: impl Turn<Q>,
    ) -> io::Result<()> {
        if self.0.is_none() {
            return line.empty_on_thread(name, turn);
        }
        self.spawn(line.empty_in_task(turn));
        Ok(())
    }
}

/// Drives a future to its end on this thread, which does nothing else meanwhile.
fn block_on<F: Future>(work: F) -> F::Output {
    // A task that has used up its turn would be told to come again, by nobody.
    let mut work = pin!(coop::unconstrained(work));
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match work.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
