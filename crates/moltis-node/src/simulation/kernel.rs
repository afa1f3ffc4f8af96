//! The processes of a simulated machine.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use moltis_proto::run::{ExitStatus, StdinMode, Tty, TtySize};
use moltis_proto::{JournalId, RunId};
use tokio::io::{AsyncRead, AsyncWrite};

/// What a keeper asks a system about processes, and tells it to do. Process ids are positive.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Returns what is at a path, through links.
    ///
    /// # Errors
    /// As stat(2).
    fn look_at(&self, path: &Path) -> io::Result<Found>;

    /// Starts a child that leads a process group of its own.
    ///
    /// # Errors
    /// As fork(2) and execve(2).
    fn spawn(&self, order: &Order<'_>) -> io::Result<Child>;

    /// Returns when this child has ended.
    fn exit(&self, child: i32) -> BoxFuture<'static, ()>;

    /// Returns how this child has ended, which is still a zombie; `None` while it lives.
    fn status(&self, child: i32) -> Option<ExitStatus>;

    /// Lets go of a child that has ended. Its number is free when its group has no member left.
    fn reap(&self, child: i32);

    /// Sends a signal to every member of a group. Asked only while the leader is not reaped.
    fn signal_group(&self, leader: i32, signal: i32);

    /// Sends a signal to a process that [`escaped`](Self::escaped) has told of.
    fn signal_one(&self, pid: i32, signal: i32);

    /// Returns whether a group has members; a leader that was not reaped is one.
    fn group_lives(&self, leader: i32) -> bool;

    /// Returns the living processes that have descended from this child, which may be reaped, and
    /// have left its group; and whether these are all.
    fn escaped(&self, child: i32) -> (Vec<i32>, bool);

    /// Kills every process that was started for one of these runs, or has descended from one, by a
    /// keeper that is dead. Returns whether none is left. Without an implementation it kills
    /// nobody, and there is no telling.
    fn end_leftovers(&self, _runs: &[(RunId, JournalId)]) -> bool {
        false
    }

    /// Reaps the orphans that have ended, and returns those that live on; `None` where there is no
    /// telling.
    fn orphans(&self) -> Option<Vec<i32>>;
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// It is a directory.
    pub is_dir: bool,
    /// A file may be executed, a directory entered.
    pub may_execute: bool,
}

/// A child to start, as a keeper has decided it.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The run that it is for, and the journal which that stands in.
    pub run: (RunId, JournalId),
    /// Its program.
    pub file: &'a Path,
    /// Its argument vector, never empty.
    pub argv: &'a [String],
    /// Its whole environment.
    pub env: &'a BTreeMap<String, String>,
    /// Its directory.
    pub cwd: &'a Path,
    /// Whether its stdin is open.
    pub stdin: StdinMode,
    /// The terminal that it shall have.
    pub tty: Option<&'a Tty>,
}

/// A child that was started.
#[derive(Debug)]
pub struct Child {
    /// Its process id, which is its group's.
    pub pid: i32,
    /// Our ends of its descriptors.
    pub ends: Ends,
}

/// Our ends of a child's descriptors. Dropped, they are closed.
#[derive(Debug)]
pub enum Ends {
    /// For an [`Order`] without a terminal.
    Pipes {
        /// Present where stdin shall be open.
        stdin: Option<Box<dyn Input>>,
        /// Its stdout.
        stdout: Box<dyn Output>,
        /// Its stderr.
        stderr: Box<dyn Output>,
    },
    /// For one with a terminal.
    Terminal(Arc<dyn Terminal>),
}

/// Our end of a pipe that a child reads.
pub trait Input: AsyncWrite + fmt::Debug + Send + Unpin {}

impl<T: AsyncWrite + fmt::Debug + Send + Unpin> Input for T {}

/// Our end of a pipe that a child writes.
pub trait Output: AsyncRead + fmt::Debug + Send + Sync + Unpin {
    /// Returns how many bytes wait to be read.
    fn waiting(&self) -> u64;

    /// Returns whether some process has the other end. Without an implementation one has.
    fn is_held_open(&self) -> bool {
        true
    }
}

/// Our end of a terminal.
pub trait Terminal: fmt::Debug + Send + Sync {
    /// Reads some bytes; none once no process has the other end.
    ///
    /// # Errors
    /// As read(2).
    fn poll_read(&self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Writes some bytes, of which 4 is the end of what is typed.
    ///
    /// # Errors
    /// As write(2).
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Returns how many bytes wait to be read.
    fn waiting(&self) -> u64;

    /// Returns whether some process has the other end. Without an implementation one has.
    fn is_held_open(&self) -> bool {
        true
    }

    /// Gives it another size.
    fn resize(&self, size: TtySize);
}
