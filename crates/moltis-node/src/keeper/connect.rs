//! The way to the keeper of a directory: find the living one, or have one started.
//!
//! Used by the link, by the gateway's connector for `local`, and by `moltis node remove`.
//! What comes back is one stream that speaks [`super::wire`], whichever keeper is behind it.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use moltis_identity::files;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::UnixStream;

use super::door::{LEAVING, SOCKET, Sockets};
use super::journal;
#[cfg(feature = "simulation")]
use crate::simulation;

/// How often a keeper that was started is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Bytes that may wait in the system between a keeper and its client.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;

/// How often one is started again: the one before may have met a keeper that has left since.
const START_EVERY: Duration = Duration::from_secs(1);

/// How long a keeper that was started may take until its socket answers.
pub const START_TIME: Duration = Duration::from_secs(10);

/// Why no keeper could be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The directory cannot be read.
    #[error("cannot look for a keeper in `{}`", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A keeper may be there and cannot be connected to.
    #[error("cannot connect to the keeper's socket `{}`", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No keeper answered, and none could be started.
    #[error("cannot start a keeper for `{}`", dir.display())]
    Start {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A keeper was started, but its socket did not answer in time.
    #[error("the keeper started for `{}` did not answer within {} s", dir.display(), START_TIME.as_secs())]
    NoAnswer {
        /// The directory.
        dir: PathBuf,
    },
    /// A keeper was started and did not answer, and nothing can be written to its directory.
    #[error("no keeper can begin in `{}`: nothing can be written there", dir.display())]
    Unwritable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Starts the process `moltis keeper --dir <dir>`, detached.
pub trait Starter: Send + Sync {
    /// Starts it and returns; its socket answers later.
    ///
    /// # Errors
    /// What the system said.
    fn start(&self, dir: &Path) -> io::Result<()>;
}

impl<F: Fn(&Path) -> io::Result<()> + Send + Sync> Starter for F {
    fn start(&self, dir: &Path) -> io::Result<()> {
        self(dir)
    }
}

/// A connection to a keeper: both directions of [`super::wire`].
#[derive(Debug)]
pub struct KeeperStream(Inner);

#[derive(Debug)]
enum Inner {
    Unix(UnixStream),
    Memory(DuplexStream),
    #[cfg(feature = "simulation")]
    Simulated(simulation::Socket),
}

impl From<UnixStream> for KeeperStream {
    fn from(stream: UnixStream) -> Self {
        // With room for several frames both ends are woken less often. The system may give less.
        SockRef::from(&stream)
            .set_send_buffer_size(SEND_BUFFER_BYTES)
            .ok();
        Self(Inner::Unix(stream))
    }
}

impl From<DuplexStream> for KeeperStream {
    fn from(stream: DuplexStream) -> Self {
        Self(Inner::Memory(stream))
    }
}

#[cfg(feature = "simulation")]
impl From<simulation::Socket> for KeeperStream {
    fn from(stream: simulation::Socket) -> Self {
        Self(Inner::Simulated(stream))
    }
}

/// Connects to every living keeper of `dir`, the one for new runs first: that is the one of
/// `version`, which is started where none answers. Those of other versions keep the runs that they
/// have, and leave when the last one is forgotten and nobody is attached. One that leaves is never
/// the first.
///
/// # Errors
/// [`ConnectError`], each naming the directory.
pub async fn connect_all(
    dir: &Path,
    starter: &dyn Starter,
    version: &str,
) -> Result<Vec<KeeperStream>, ConnectError> {
    connect_all_by(&Sockets::default(), dir, starter, version).await
}

/// As [`connect_all`], by these sockets.
pub(crate) async fn connect_all_by(
    sockets: &Sockets,
    dir: &Path,
    starter: &dyn Starter,
    version: &str,
) -> Result<Vec<KeeperStream>, ConnectError> {
    if let Some(found) = ours_first(living(sockets, dir).await?, version) {
        return Ok(found);
    }
    let answered = async {
        loop {
            starter.start(dir).map_err(|source| ConnectError::Start {
                dir: dir.to_owned(),
                source,
            })?;
            let began = tokio::time::Instant::now();
            while began.elapsed() < START_EVERY {
                if let Some(found) = ours_first(living(sockets, dir).await?, version) {
                    return Ok(found);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    };
    let answered = tokio::time::timeout(START_TIME, answered).await;
    answered.unwrap_or_else(|_elapsed| {
        let dir = dir.to_owned();
        Err(match can_be_written(&dir) {
            Ok(()) => ConnectError::NoAnswer { dir },
            Err(source) => ConnectError::Unwritable { dir, source },
        })
    })
}

/// Looks whether a keeper could begin its journal here: whoever cannot has nowhere to say so.
fn can_be_written(dir: &Path) -> io::Result<()> {
    let path = dir.join(".probe");
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let written = files::open(&path, options).and_then(|mut file| file.write_all(&[0; 4096]));
    fs::remove_file(&path).ok(); // it may never have been made
    written
}

/// Connects to a living keeper of `dir` that takes new runs; `None` where none answers.
///
/// # Errors
/// [`ConnectError::Directory`] when the directory cannot be read, and [`ConnectError::Socket`]; a
/// directory that is missing holds none.
pub async fn find(dir: &Path) -> Result<Option<KeeperStream>, ConnectError> {
    Ok(first(living(&Sockets::default(), dir).await?))
}

/// Connects to every living keeper of `dir`, also to those that leave.
///
/// # Errors
/// [`ConnectError::Directory`] when the directory cannot be read, and [`ConnectError::Socket`]; a
/// directory that is missing holds none.
pub async fn find_all(dir: &Path) -> Result<Vec<KeeperStream>, ConnectError> {
    let living = living(&Sockets::default(), dir).await?.into_iter();
    Ok(living.map(|living| living.stream).collect())
}

/// Returns whether keepers of `dir` live there, or have left runs: any journal says so. Looks at the
/// disk. A directory that cannot be read holds none.
pub fn has_journals(dir: &Path) -> bool {
    journal::all(dir).is_ok_and(|journals| !journals.is_empty())
}

/// A keeper that answered.
struct Living {
    stream: KeeperStream,
    /// It takes no new runs.
    leaves: bool,
    version: Option<String>,
}

/// Returns the stream of one that takes new runs.
fn first(living: Vec<Living>) -> Option<KeeperStream> {
    let mut living = living.into_iter();
    let first = living.find(|living| !living.leaves);
    first.map(|living| living.stream)
}

/// Returns the streams of those that live with the one of this version first; `None` without one.
fn ours_first(living: Vec<Living>, version: &str) -> Option<Vec<KeeperStream>> {
    let ours = living
        .iter()
        .position(|living| !living.leaves && living.version.as_deref() == Some(version))?;
    let mut streams: Vec<_> = living.into_iter().map(|living| living.stream).collect();
    streams.swap(0, ours);
    Some(streams)
}

/// Knocks at every socket in `dir`.
async fn living(by: &Sockets, dir: &Path) -> Result<Vec<Living>, ConnectError> {
    let mut living = Vec::new();
    let mut met = HashSet::new();
    for socket in sockets(dir)? {
        // One that gives its socket another name meanwhile may be listed under both.
        if met.contains(&socket.with_extension("")) {
            continue;
        }
        if let Some((stream, socket)) = knock(by, socket).await? {
            met.insert(socket.with_extension(""));
            living.push(Living {
                stream,
                leaves: socket.extension().is_some_and(|kind| kind == LEAVING),
                version: journal::version_of(&socket.with_extension("journal")),
            });
        }
    }
    Ok(living)
}

/// Connects to whoever listens at a socket, or has just given it the name of one that leaves; `None`
/// where nobody does. What only hinders us says nothing about who lives: a keeper that is left out
/// is taken for one that is gone with its runs.
async fn knock(
    by: &Sockets,
    mut socket: PathBuf,
) -> Result<Option<(KeeperStream, PathBuf)>, ConnectError> {
    loop {
        match by.connect(&socket).await {
            Ok(stream) => return Ok(Some((stream, socket))),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if socket.extension().is_none_or(|kind| kind != SOCKET) {
                    return Ok(None);
                }
                socket.set_extension(LEAVING);
            }
            Err(source) => return Err(ConnectError::Socket { socket, source }),
        }
    }
}

/// Returns the sockets in `dir`, whether or not anybody listens.
fn sockets(dir: &Path) -> Result<Vec<PathBuf>, ConnectError> {
    let unreadable = |source| ConnectError::Directory {
        dir: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut sockets = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let ours = path
            .file_stem()
            .is_some_and(|stem| stem.as_encoded_bytes().starts_with(b"k"));
        if ours
            && path
                .extension()
                .is_some_and(|kind| kind == SOCKET || kind == LEAVING)
        {
            sockets.push(path);
        }
    }
    sockets.sort();
    Ok(sockets)
}

/// What a stream of either kind does.
trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

impl KeeperStream {
    /// Returns the process of the keeper; `None` where it is in this one, or the system does not tell.
    pub(crate) fn pid(&self) -> Option<i32> {
        match &self.0 {
            Inner::Unix(stream) => stream.peer_cred().ok()?.pid(),
            Inner::Memory(_) => None,
            #[cfg(feature = "simulation")]
            Inner::Simulated(_) => None,
        }
    }

    fn io(self: Pin<&mut Self>) -> Pin<&mut dyn Io> {
        match &mut self.get_mut().0 {
            Inner::Unix(stream) => Pin::new(stream),
            Inner::Memory(stream) => Pin::new(stream),
            #[cfg(feature = "simulation")]
            Inner::Simulated(stream) => Pin::new(stream),
        }
    }
}

impl AsyncRead for KeeperStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for KeeperStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true // each of them is
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    const ID: &str = "k00000000000000000000000000000001";

    #[tokio::test]
    async fn a_keeper_that_cannot_be_connected_to_is_not_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{ID}.sock"));
        let stale = UnixListener::bind(&path).unwrap();
        drop(stale);
        assert!(find_all(dir.path()).await.unwrap().is_empty());
        fs::remove_file(&path).unwrap();
        // What the system says of it is neither that nobody listens nor that it is gone.
        let _hinders = UnixDatagram::bind(&path).unwrap();
        let found = find_all(dir.path()).await;
        assert!(
            matches!(found, Err(ConnectError::Socket { .. })),
            "{found:?}"
        );
    }

    #[tokio::test]
    async fn a_keeper_that_begins_to_leave_while_it_is_looked_for_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join(format!("{ID}.sock"));
        let leaving = socket.with_extension(LEAVING);
        let _keeper = UnixListener::bind(&leaving).unwrap();
        let found = knock(&Sockets::default(), socket.clone()).await.unwrap();
        assert_eq!(found.unwrap().1, leaving);
        // Listed under both names, of which one is gone by then, it is one keeper.
        std::os::unix::fs::symlink(dir.path().join("gone"), &socket).unwrap();
        assert_eq!(find_all(dir.path()).await.unwrap().len(), 1);
        fs::remove_file(&socket).unwrap();
        fs::remove_file(&leaving).unwrap();
        assert!(knock(&Sockets::default(), socket).await.unwrap().is_none());
    }
}
