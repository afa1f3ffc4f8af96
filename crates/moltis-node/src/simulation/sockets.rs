//! Unix sockets in memory: the paths are files as real ones would be, the connections are pipes.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use crate::keeper::KeeperStream;

/// Connections that wait to be accepted.
const BACKLOG: usize = 16;
/// Bytes that wait between a keeper and its client.
const DUPLEX_BYTES: usize = 256 * 1024;

/// The sockets of one machine, as one of its processes has them.
///
/// A path stands for its listener also when it is renamed, as long as only the ending changes; a
/// copy of its directory holds files that nobody listens behind.
#[derive(Debug, Clone, Default)]
pub struct Sockets {
    listeners: Arc<Mutex<HashMap<PathBuf, Listener>>>,
    is_cut: Arc<AtomicBool>,
}

#[derive(Debug, Clone)]
struct Listener {
    clients: mpsc::Sender<KeeperStream>,
    is_cut: Arc<AtomicBool>,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: DuplexStream,
    /// Whoever has it is dead: what it still says is heard by nobody.
    is_cut: Arc<AtomicBool>,
}

impl Sockets {
    /// Returns the same sockets for another process of this machine.
    #[must_use]
    pub fn of_process(&self) -> Self {
        Self {
            listeners: Arc::clone(&self.listeners),
            is_cut: Arc::default(),
        }
    }

    /// Ends what this process says and hears, in this moment: it is dead, and its future will be
    /// dropped at the next chance. What it has said before still arrives.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    /// Opens a socket, and makes its file.
    pub(crate) fn bind(&self, path: &Path) -> io::Result<mpsc::Receiver<KeeperStream>> {
        OpenOptions::new().write(true).create_new(true).open(path)?;
        let (clients, arriving) = mpsc::channel(BACKLOG);
        let listener = Listener {
            clients,
            is_cut: Arc::clone(&self.is_cut),
        };
        let mut listeners = self.listeners();
        listeners.retain(|_, listener| !listener.clients.is_closed());
        listeners.insert(path.with_extension(""), listener);
        Ok(arriving)
    }

    /// Connects to whoever listens behind a path.
    pub(crate) async fn connect(&self, path: &Path) -> io::Result<KeeperStream> {
        if !path.exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let listener = self.listeners().get(&path.with_extension("")).cloned();
        let listener = listener.filter(|listener| !listener.is_cut.load(Ordering::Relaxed));
        let Some(Listener { clients, is_cut }) = listener else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
        let far = Socket {
            stream: far,
            is_cut,
        };
        let near = Socket {
            stream: near,
            is_cut: Arc::clone(&self.is_cut),
        };
        let sent = clients.send(far.into()).await;
        sent.map_err(|_gone| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(near.into())
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<PathBuf, Listener>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner) // each change is whole
    }
}

impl Socket {
    fn says_nothing(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.says_nothing() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.says_nothing() {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
