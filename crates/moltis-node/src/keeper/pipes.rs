//! Our ends of a child's descriptors: two pipes to read, one to write, or one terminal for all.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use moltis_proto::run::TtySize;
use rustix::fs::OFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

/// Bytes of the first read, and of the reads of a command that prints much.
const READ_BYTES_MIN: usize = 8 * 1024;
const READ_BYTES_MAX: usize = 256 * 1024;

/// Bytes of the pipe of a command that prints much. Pipes of one user share a limit (16,384 pages
/// in all, pipe(7)), so only those that fill the standard 64 KiB get more.
const PIPE_BYTES: usize = 256 * 1024;

/// End of file, as a terminal spells it.
const END_OF_TRANSMISSION: u8 = 4;

/// Our end of a terminal.
#[derive(Debug, Clone)]
pub(super) struct Terminal(Arc<AsyncFd<OwnedFd>>);

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
        Ok(Self(Arc::new(watched)))
    }

    /// Gives the terminal another size; the kernel tells its foreground group.
    pub(super) fn resize(&self, size: TtySize) {
        let size = rustix::termios::Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(self.0.get_ref(), size).ok(); // a terminal that is gone has no size
    }

    async fn read(&self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
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
        loop {
            let mut ready = self.0.writable().await?;
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
        if self.buffer.capacity() < max {
            self.buffer.reserve(self.read_bytes);
        }
        let read = match &mut self.end {
            SourceEnd::Pipe(pipe) => pipe.read_buf(&mut (&mut self.buffer).limit(max)).await?,
            SourceEnd::Terminal(terminal) => {
                let mut bytes = [0; 4096];
                let max = max.min(bytes.len());
                let read = terminal.read(&mut bytes[..max]).await?;
                self.buffer.extend_from_slice(&bytes[..read]);
                read
            }
        };
        if read == max {
            self.expect_more();
        }
        Ok(self.buffer.split().freeze())
    }

    /// Returns how many bytes wait to be read.
    pub(super) fn waiting(&self) -> u64 {
        let waiting = match &self.end {
            SourceEnd::Pipe(pipe) => rustix::io::ioctl_fionread(pipe.as_fd()),
            SourceEnd::Terminal(terminal) => rustix::io::ioctl_fionread(terminal.0.get_ref()),
        };
        waiting.unwrap_or(0)
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
        Ok(Self {
            end,
            at_line_start: true,
        })
    }

    pub(super) fn terminal(terminal: Terminal) -> Self {
        Self {
            end: SinkEnd::Terminal(terminal),
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
