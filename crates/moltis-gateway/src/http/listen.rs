//! Sockets to listen on: a TCP address, or the Unix socket of the local administrator.
//!
//! Called by whoever starts a gateway; [`super::serve`] takes what is made here.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};

use super::peer::Peer;

/// Connections that the kernel holds until we accept them: many nodes dial at once after a restart.
const BACKLOG: u32 = 4096;

/// Bytes of output that wait in the kernel before more is asked for, so that a short message waits
/// behind little.
const NOT_SENT_BYTES: u32 = 128 * 1024;

/// Bytes that may wait in the system for a reader on the Unix socket.
const UNIX_SEND_BUFFER_BYTES: usize = 1024 * 1024;

/// Bytes of a path in `sockaddr_un` less its final zero: 108 on Linux, 104 on macOS.
const UNIX_PATH_BYTES_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The port is taken.
    #[error("cannot listen on {address}: another program does already")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another gateway answers there.
    #[error("a gateway is running already: it answers on `{}`", path.display())]
    AlreadyRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error(
        "the socket path `{}` has {found} bytes: at most {UNIX_PATH_BYTES_MAX} fit into a socket address",
        path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        found: usize,
    },
    /// Something that is no socket lies there.
    #[error("`{}` is in the way: it is {found}, expected a socket: move it away", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What lies there.
        found: &'static str,
    },
    /// The file cannot be made.
    #[error("cannot {doing} the socket `{}`", path.display())]
    Unix {
        /// What failed.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listener {
    /// A TCP address.
    Tcp(TcpListener),
    /// The Unix socket, whose file goes when this is dropped.
    Unix(SocketFile),
}

/// A bound Unix socket and its file.
#[derive(Debug)]
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Listener {
    /// Listens on a TCP address; port 0 picks one.
    ///
    /// # Errors
    /// [`ListenError::InUse`] and [`ListenError::Tcp`].
    pub fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        let listen = || {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        listen()
            .map(Self::Tcp)
            .map_err(|source| match source.kind() {
                ErrorKind::AddrInUse => ListenError::InUse { address },
                _ => ListenError::Tcp { address, source },
            })
    }

    /// Listens on a Unix socket that only its owner may open. A file that nobody answers on is
    /// removed first.
    ///
    /// # Errors
    /// [`ListenError::AlreadyRunning`] when somebody answers there, and the other Unix variants.
    pub async fn unix(path: &Path) -> Result<Self, ListenError> {
        let found = path.as_os_str().len();
        if found > UNIX_PATH_BYTES_MAX {
            let path = path.to_owned();
            return Err(ListenError::PathTooLong { path, found });
        }
        clear_stale(path).await?;
        let failed = |doing| {
            move |source| ListenError::Unix {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        let listener = UnixListener::bind(path).map_err(failed("make"))?;
        // Between bind and this line the directory, mode 0700, keeps others away.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(failed("restrict"))?;
        let inode = std::fs::metadata(path).map_err(failed("look at"))?.ino();
        Ok(Self::Unix(SocketFile {
            listener,
            path: path.to_owned(),
            inode,
        }))
    }

    /// Returns the TCP address in use, with the port that was picked.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Waits for the next connection.
    pub(super) async fn accept(&self) -> io::Result<(Connection, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let tune = || {
                    stream.set_nodelay(true)?;
                    socket2::SockRef::from(&stream).set_tcp_notsent_lowat(NOT_SENT_BYTES)
                };
                if let Err(error) = tune() {
                    tracing::debug!(%error, "a new connection cannot be tuned");
                }
                let peer = Peer::of_tcp(&stream);
                Ok((Connection::Tcp(stream), peer))
            }
            Self::Unix(file) => {
                let (stream, _) = file.listener.accept().await?;
                // Long output wakes its reader less often. The system may give less.
                let socket = socket2::SockRef::from(&stream);
                socket.set_send_buffer_size(UNIX_SEND_BUFFER_BYTES).ok();
                let peer = Peer::of_unix(&stream);
                Ok((Connection::Unix(stream), peer))
            }
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Connection {
    Tcp(tokio::net::TcpStream),
    Unix(UnixStream),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the socket's file stays behind");
        }
    }
}

/// Returns the address that this machine uses on its network; `None` where it has none. Nothing is
/// sent: connecting a UDP socket only asks the kernel for a route.
pub fn lan_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // TEST-NET-1 (RFC 5737): nobody's address, so the default route answers.
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

/// Removes a socket that nobody listens on.
async fn clear_stale(path: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::FileTypeExt as _;
    let owned = || path.to_owned();
    let file = match std::fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(ListenError::Unix {
                doing: "look for",
                path: owned(),
                source,
            });
        }
    };
    if !file.file_type().is_socket() {
        let found = moltis_identity::files::kind(file.file_type());
        return Err(ListenError::NotASocket {
            path: owned(),
            found,
        });
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ListenError::AlreadyRunning { path: owned() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|source| ListenError::Unix {
                doing: "remove the stale",
                path: owned(),
                source,
            }),
        Err(source) => Err(ListenError::Unix {
            doing: "try",
            path: owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let living = Listener::unix(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            Listener::unix(&path).await,
            Err(ListenError::AlreadyRunning { .. })
        ));
        drop(living);
        assert!(!path.exists(), "its file goes with it");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(
            Listener::unix(&path).await,
            Err(ListenError::NotASocket {
                found: "a regular file",
                ..
            })
        ));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_path_that_fits_no_socket_address_is_named() {
        let path = Path::new("/tmp").join("x".repeat(120));
        let error = Listener::unix(&path).await.unwrap_err();
        assert!(error.to_string().contains("has 125 bytes"), "{error}");
    }

    #[tokio::test]
    async fn a_port_in_use_is_told_with_its_address() {
        let first = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.address().unwrap();
        let error = Listener::tcp(address).unwrap_err();
        assert!(matches!(error, ListenError::InUse { address: found } if found == address));
    }
}
