//! The way out for a command's output: bytes as they are where nobody looks, made visible where a
//! terminal does, and written by a thread of its own, so that a reader who is slow or asleep never
//! keeps us from hearing Ctrl+C.
//!
//! Called by the follow loop of `exec`, `shell` and `runs attach`.

use std::os::fd::BorrowedFd;

use bytes::Bytes;
use moltis_gateway::api::runs::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use crate::visible::Visible;

/// Pieces that wait for the writer. A full queue stops the reading of the gateway's answer.
const QUEUE: usize = 16;

/// Whether what other machines print may act on the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Escapes {
    /// Made visible where a terminal would read them.
    Shown,
    /// Passed on: the person asked for a terminal on the other side.
    Passed,
}

/// Hands pieces of output to the writing thread.
#[derive(Debug)]
pub(crate) struct Streams {
    queue: mpsc::Sender<(Stream, Bytes)>,
    ended: oneshot::Receiver<Result<(), WriteError>>,
}

/// Why output could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The reader is gone.
    #[error("whoever read the output has closed it")]
    Closed,
    /// A disk is full, a terminal is gone, …
    #[error("cannot write to {which}: {source}")]
    Io {
        /// `stdout` or `stderr`.
        which: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl Streams {
    /// Starts the writing thread on this process's own stdout and stderr.
    pub(crate) fn start(output: super::Output, escapes: Escapes) -> anyhow::Result<Self> {
        let (queue, pieces) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let shown = escapes == Escapes::Shown;
        let writers = [
            Writer::new("stdout", output.stdout_is_terminal() && shown),
            Writer::new("stderr", output.stderr_is_terminal() && shown),
        ];
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                end.send(write_all(pieces, writers)).ok(); // the process has given up on us
            })?;
        Ok(Self { queue, ended })
    }

    /// Hands over a piece, waiting for room.
    ///
    /// # Cancel safety
    /// A piece is handed over whole or not at all.
    ///
    /// # Errors
    /// The writer has ended; [`finish`](Self::finish) says why.
    pub(crate) async fn reserve(&self) -> Result<mpsc::Permit<'_, (Stream, Bytes)>, Stopped> {
        self.queue.reserve().await.map_err(|_| Stopped)
    }

    /// Waits until the writer ends by itself, which it does only when it fails.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn failed(&self) {
        self.queue.closed().await;
    }

    /// Waits until everything handed over is written.
    ///
    /// # Errors
    /// The first that a write met.
    pub(crate) async fn finish(self) -> Result<(), WriteError> {
        drop(self.queue);
        self.ended.await.unwrap_or(Ok(()))
    }
}

/// The writer has ended before its time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped;

struct Writer {
    which: &'static str,
    visible: Option<Visible>,
    shown: String,
}

impl Writer {
    fn new(which: &'static str, visible: bool) -> Self {
        Self {
            which,
            visible: visible.then(Visible::default),
            shown: String::new(),
        }
    }

    fn write(&mut self, fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), WriteError> {
        let which = self.which;
        match &mut self.visible {
            None => write_fd(fd, bytes, which),
            Some(visible) => {
                self.shown.clear();
                visible.feed(bytes, &mut self.shown);
                write_fd(fd, self.shown.as_bytes(), which)
            }
        }
    }

    fn finish(&mut self, fd: BorrowedFd<'_>) -> Result<(), WriteError> {
        let Some(visible) = &mut self.visible else {
            return Ok(());
        };
        self.shown.clear();
        visible.finish(&mut self.shown);
        write_fd(fd, self.shown.as_bytes(), self.which)
    }
}

fn write_all(
    mut pieces: mpsc::Receiver<(Stream, Bytes)>,
    [mut out, mut err]: [Writer; 2],
) -> Result<(), WriteError> {
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let (stdout_fd, stderr_fd) = (
        std::os::fd::AsFd::as_fd(&stdout),
        std::os::fd::AsFd::as_fd(&stderr),
    );
    while let Some((stream, bytes)) = pieces.blocking_recv() {
        match stream {
            Stream::Stdout => out.write(stdout_fd, &bytes)?,
            Stream::Stderr => err.write(stderr_fd, &bytes)?,
        }
    }
    out.finish(stdout_fd)?;
    err.finish(stderr_fd)
}

fn write_fd(fd: BorrowedFd<'_>, mut bytes: &[u8], which: &'static str) -> Result<(), WriteError> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Somebody who shares the descriptor made it non-blocking.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None).ok(); // write again says it
            }
            Err(Errno::PIPE) => return Err(WriteError::Closed),
            Err(error) => {
                return Err(WriteError::Io {
                    which,
                    source: error.into(),
                });
            }
        }
    }
    Ok(())
}
