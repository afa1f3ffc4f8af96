//! Our ends of a child's descriptors: two pipes to read, one to write, or one terminal for all.

#[cfg(feature = "simulation")]
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use moltis_proto::run::TtySize;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

#[cfg(feature = "simulation")]
use crate::simulation;

/// Bytes of the first read, and of the reads of a command that prints much.
const READ_BYTES_MIN: usize = 8 * 1024;
const READ_BYTES_MAX: usize = 256 * 1024;

/// Bytes of the pipe of a command that prints much. Pipes of one user share a limit (16,384 pages
/// in all, pipe(7)), so only those that fill the standard 64 KiB get more.
const PIPE_BYTES: usize = 256 * 1024;

/// Bytes that a terminal may hold for who reads it: more than that is written behind a look at it.
/// Linux holds some 12 KiB.
const TERMINAL_BYTES_MAX: u64 = 64 * 1024;

/// End of file, as a terminal spells it.
const END_OF_TRANSMISSION: u8 = 4;

/// Our end of a terminal.
#[derive(Debug, Clone)]
pub(super) enum Terminal {
    System(Arc<AsyncFd<OwnedFd>>),
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn simulation::Terminal>),
}

/// An output of the child.
#[derive(Debug)]
pub(super) struct Source {
    end: SourceEnd,
    buffer: BytesMut,
    read_bytes: usize,
    widened: bool,
}

#[derive(Debug)]
enum SourceEnd {
    Pipe(pipe::Receiver),
    Terminal(Terminal),
    #[cfg(feature = "simulation")]
    Simulated(Box<dyn simulation::Output>),
}

/// The stdin of the child.
#[derive(Debug)]
pub(super) struct Sink {
    end: SinkEnd,
    /// The last byte that was written ended a line.
    at_line_start: bool,
}

#[derive(Debug)]
enum SinkEnd {
    Pipe(pipe::Sender),
    Terminal(Terminal),
    #[cfg(feature = "simulation")]
    Simulated(Box<dyn simulation::Input>),
}

impl Terminal {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that lie about their descriptor: this one owns it"
        )]
        let watched = AsyncFd::new(fd)?;
        Ok(Self::System(Arc::new(watched)))
    }

    /// Gives the terminal another size; the kernel tells its foreground group.
    pub(super) fn resize(&self, size: TtySize) {
        match self {
            Self::System(fd) => {
                let size = rustix::termios::Winsize {
                    ws_row: size.rows,
                    ws_col: size.cols,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                rustix::termios::tcsetwinsize(fd.get_ref(), size).ok(); // a terminal that is gone has no size
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(terminal) => terminal.resize(size),
        }
    }

    async fn read(&self, out: &mut [u8]) -> io::Result<usize> {
        let fd = match self {
            Self::System(fd) => fd,
            #[cfg(feature = "simulation")]
            Self::Simulated(terminal) => {
                return poll_fn(|cx| terminal.poll_read(cx, out)).await;
            }
        };
        loop {
            let mut ready = fd.readable().await?;
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *out)?));
            match read {
                // The last process that held the other end is gone (Linux says it so).
                Ok(Err(error)) if error.raw_os_error() == Some(5) => return Ok(0),
                Ok(read) => return read,
                Err(_would_block) => {}
            }
        }
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let fd = match self {
            Self::System(fd) => fd,
            #[cfg(feature = "simulation")]
            Self::Simulated(terminal) => {
                return poll_fn(|cx| terminal.poll_write(cx, bytes)).await;
            }
        };
        loop {
            let mut ready = fd.writable().await?;
            if let Ok(written) = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                return written;
            }
        }
    }
}

impl Source {
    pub(super) fn pipe(fd: OwnedFd) -> io::Result<Self> {
        let end = SourceEnd::Pipe(pipe::Receiver::from_owned_fd(fd)?);
        Ok(Self::new(end))
    }

    pub(super) fn terminal(terminal: Terminal) -> Self {
        Self::new(SourceEnd::Terminal(terminal))
    }

    #[cfg(feature = "simulation")]
    pub(super) fn simulated(output: Box<dyn simulation::Output>) -> Self {
        Self::new(SourceEnd::Simulated(output))
    }

    fn new(end: SourceEnd) -> Self {
        Self {
            end,
            buffer: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
            widened: false,
        }
    }

    /// Returns the next bytes, at most `max`; none at the end.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is read then.
    pub(super) async fn read(&mut self, max: usize) -> io::Result<Bytes> {
        let max = max.min(self.read_bytes);
        self.buffer.reserve(max);
        let read = match &mut self.end {
            SourceEnd::Pipe(pipe) => pipe.read_buf(&mut (&mut self.buffer).limit(max)).await?,
            SourceEnd::Terminal(terminal) => {
                let mut bytes = [0; 4096];
                let max = max.min(bytes.len());
                let read = terminal.read(&mut bytes[..max]).await?;
                self.buffer.extend_from_slice(&bytes[..read]);
                read
            }
            #[cfg(feature = "simulation")]
            SourceEnd::Simulated(output) => {
                let buffer = &mut (&mut self.buffer).limit(max);
                output.read_buf(buffer).await?
            }
        };
        if read == max {
            self.expect_more();
        }
        Ok(self.take_read())
    }

    /// Takes what was read out of the buffer. A piece holds all of the memory that it lies in, which
    /// nobody counts: where that is much more than the piece, the piece is copied.
    fn take_read(&mut self) -> Bytes {
        if self.buffer.len() >= self.buffer.capacity() / 2 {
            return std::mem::take(&mut self.buffer).freeze();
        }
        let read = Bytes::copy_from_slice(&self.buffer);
        self.buffer.clear();
        if read.len() < self.read_bytes / 4 {
            // It prints little now, and an idle buffer is memory too.
            self.read_bytes = (self.read_bytes / 4).max(READ_BYTES_MIN);
            self.buffer = BytesMut::new();
        }
        read
    }

    /// Returns how many bytes wait to be read, at most; 0 where none do.
    pub(super) fn waiting_bytes_max(&self) -> u64 {
        match &self.end {
            SourceEnd::Pipe(pipe) => rustix::io::ioctl_fionread(pipe.as_fd()).unwrap_or(0),
            SourceEnd::Terminal(Terminal::System(fd)) => {
                // A count of what a terminal has leaves out what is still on its way through it.
                let mut fds = [PollFd::new(fd.get_ref(), PollFlags::IN)];
                rustix::event::poll(&mut fds, Some(&Timespec::default())).ok(); // it is as good as closed
                let waits = fds[0].revents().contains(PollFlags::IN);
                if waits { TERMINAL_BYTES_MAX } else { 0 }
            }
            #[cfg(feature = "simulation")]
            SourceEnd::Terminal(Terminal::Simulated(terminal)) => terminal.waiting(),
            #[cfg(feature = "simulation")]
            SourceEnd::Simulated(output) => output.waiting(),
        }
    }

    /// Returns whether some process holds the other end.
    pub(super) fn is_held_open(&self) -> bool {
        let is_open = |mut fds: [PollFd<'_>; 1]| {
            rustix::event::poll(&mut fds, Some(&Timespec::default())).ok(); // it says nothing then
            !fds[0].revents().contains(PollFlags::HUP)
        };
        match &self.end {
            SourceEnd::Pipe(pipe) => is_open([PollFd::new(pipe, PollFlags::empty())]),
            SourceEnd::Terminal(Terminal::System(fd)) => {
                is_open([PollFd::new(fd.get_ref(), PollFlags::empty())])
            }
            #[cfg(feature = "simulation")]
            SourceEnd::Terminal(Terminal::Simulated(terminal)) => terminal.is_held_open(),
            #[cfg(feature = "simulation")]
            SourceEnd::Simulated(output) => output.is_held_open(),
        }
    }

    fn expect_more(&mut self) {
        self.read_bytes = (self.read_bytes * 4).min(READ_BYTES_MAX);
        #[cfg(target_os = "linux")]
        if !self.widened
            && self.read_bytes == READ_BYTES_MAX
            && let SourceEnd::Pipe(pipe) = &self.end
        {
            self.widened = true;
            rustix::pipe::fcntl_setpipe_size(pipe.as_fd(), PIPE_BYTES).ok(); // slower, no less right
        }
    }
}

impl Sink {
    pub(super) fn pipe(fd: OwnedFd) -> io::Result<Self> {
        let end = SinkEnd::Pipe(pipe::Sender::from_owned_fd(fd)?);
        Ok(Self::new(end))
    }

    pub(super) fn terminal(terminal: Terminal) -> Self {
        Self::new(SinkEnd::Terminal(terminal))
    }

    #[cfg(feature = "simulation")]
    pub(super) fn simulated(input: Box<dyn simulation::Input>) -> Self {
        Self::new(SinkEnd::Simulated(input))
    }

    fn new(end: SinkEnd) -> Self {
        Self {
            end,
            at_line_start: true,
        }
    }

    /// Writes some of these bytes and returns how many.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is written then.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.end {
            SinkEnd::Pipe(pipe) => pipe.write(bytes).await?,
            SinkEnd::Terminal(terminal) => terminal.write(bytes).await?,
            #[cfg(feature = "simulation")]
            SinkEnd::Simulated(input) => input.write(bytes).await?,
        };
        if let Some(last) = written.checked_sub(1) {
            self.at_line_start = bytes.get(last) == Some(&b'\n');
        }
        Ok(written)
    }

    /// Ends the child's stdin. A terminal stays open: it is told the end as a person would tell it,
    /// twice where a line was begun, because the first one only sends that line off.
    pub(super) async fn close(self) {
        if let SinkEnd::Terminal(terminal) = &self.end {
            let ends = [END_OF_TRANSMISSION; 2];
            let ends = if self.at_line_start {
                &ends[..1]
            } else {
                &ends
            };
            terminal.write(ends).await.ok(); // a terminal that is gone has ended
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_short_read_holds_no_long_buffer() {
        let (far, mut near) = io::pipe().unwrap();
        let mut source = Source::pipe(far.into()).unwrap();
        // A command that prints much, and then a line at a time.
        let mut left = 1024 * 1024;
        let writer = std::thread::spawn(move || {
            near.write_all(&vec![7; left]).unwrap();
            near
        });
        while left > 0 {
            left -= source.read(left).await.unwrap().len();
        }
        let mut near = writer.join().unwrap();
        for length in [60_000, 3_000, 3_000, 3_000] {
            near.write_all(&vec![1; length]).unwrap();
            let read = source.read(usize::MAX).await.unwrap();
            let (bytes, held) = (read.len(), read.try_into_mut().unwrap().capacity());
            assert!(held <= 2 * bytes, "{bytes} bytes hold {held}");
        }
        assert!(source.buffer.capacity() <= 2 * READ_BYTES_MIN);
    }
}
