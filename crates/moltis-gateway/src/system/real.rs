//! The real machine alone: nothing stands between the gateway and it.

#![expect(
    clippy::unused_self,
    clippy::unused_async,
    reason = "with the feature `simulation` the same calls have something to ask"
)]

use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use moltis_proto::handshake::Epoch;
use moltis_proto::{DeviceId, InstanceId, RunId};
use tokio::task::{JoinError, JoinHandle};

use crate::session::moment;
use crate::worker::{Line, Queue, Turn};

/// What the rooms of a gateway stand on.
#[derive(Debug, Clone, Default)]
pub(crate) struct System(());

impl System {
    /// Does a step on the disk.
    pub(crate) fn step<T>(
        &self,
        _what: &'static str,
        _path: &Path,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        work()
    }

    /// Does a step that brings what was written onto the disk.
    pub(crate) fn sync(
        &self,
        _what: &'static str,
        _path: &Path,
        work: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        work()
    }

    /// As [`sync`](Self::sync), where whoever asks can wait for as long as it takes.
    pub(crate) async fn slow_sync(
        &self,
        _what: &'static str,
        _path: &Path,
        work: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        work()
    }

    /// As [`step`](Self::step), for one that SQLite does; `failed` clothes what a disk says instead.
    pub(crate) async fn step_of_sqlite<T, E>(
        &self,
        _what: &'static str,
        _path: &Path,
        _failed: impl FnOnce(io::Error) -> E,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        work.await
    }

    /// As [`step_of_sqlite`](Self::step_of_sqlite), for closing a connection.
    pub(crate) async fn close_of_sqlite<E>(
        &self,
        _what: &'static str,
        _path: &Path,
        _failed: impl FnOnce(io::Error) -> E,
        close: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        close.await
    }

    /// Waits for as long as steps of this kind take.
    pub(crate) async fn wait_for(&self, _what: &'static str, _path: &Path) {}

    /// Returns how many bytes of output the disk below `dir` takes, where that is not the machine's
    /// to say.
    pub(crate) fn room(&self, _dir: &Path) -> Option<u64> {
        None
    }

    /// A connection of a device counts from now on, and no older one.
    pub(crate) fn seated(&self, _device: DeviceId, _epoch: Epoch, _instance: InstanceId) {}

    /// A message that came by a connection is obeyed.
    pub(crate) fn heard(&self, _device: DeviceId, _epoch: Epoch) {}

    /// A connection is over.
    pub(crate) fn left(&self, _device: DeviceId, _epoch: Epoch) {}

    /// The start of a run is given to a connection.
    pub(crate) fn released(&self, _run_id: RunId) {}

    /// Does work that blocks.
    ///
    /// # Errors
    /// Where it panics, or the runtime is shutting down.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        tokio::task::spawn_blocking(work).await
    }

    /// Waits for something that SQLite's threads alone bring about.
    pub(crate) async fn sqlite<F: Future>(&self, work: F) -> F::Output {
        work.await
    }

    /// As [`sqlite`](Self::sqlite), for the answer to a statement.
    pub(crate) fn answer<'a, T: Send + 'a>(&self, answer: BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        answer
    }

    /// As [`sqlite`](Self::sqlite), for several answers.
    pub(crate) fn answers<'a, T: Send + 'a>(&self, answers: BoxStream<'a, T>) -> BoxStream<'a, T> {
        answers
    }

    /// Starts a task that ends by itself, when its owner is dropped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(super::spawn(task));
    }

    /// Returns how long this boot has lasted, the sleep of the machine included.
    pub(crate) fn boottime(&self) -> Duration {
        moment::now().boottime
    }

    /// Notes that a task was started.
    pub(crate) fn started<T>(&self, _task: &JoinHandle<T>) {}

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
        line.empty_on_thread(name, turn)
    }
}
