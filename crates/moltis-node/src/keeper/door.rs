//! Where a keeper's clients come from: a Unix socket of our own user, or the program around us.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::connect::KeeperStream;

/// How long the door rests when the system has no descriptor for a client.
const REST: Duration = Duration::from_millis(100);

/// How the sockets of keepers end that take new runs, and those of keepers that leave.
pub(super) const SOCKET: &str = "sock";
pub(super) const LEAVING: &str = "leaving";

/// Where clients come from.
#[derive(Debug)]
pub(super) enum Door {
    /// A socket, and its path now.
    Socket(UnixListener, PathBuf),
    /// The handles of a keeper in this process.
    Memory(mpsc::Receiver<DuplexStream>),
}

impl Door {
    /// Opens a socket that only our own user may use.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        Ok(Self::Socket(listener, path.to_owned()))
    }

    /// Returns the next client; waits for ever when none can come any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> KeeperStream {
        loop {
            match self {
                Self::Socket(listener, _) => match listener.accept().await {
                    Ok((stream, _)) if is_ours(&stream) => return stream.into(),
                    Ok(_) => tracing::warn!("another user knocks at the keeper's socket"),
                    Err(error) => {
                        tracing::warn!(error = %error, "the keeper's socket takes no client");
                        tokio::time::sleep(REST).await;
                    }
                },
                Self::Memory(clients) => match clients.recv().await {
                    Some(stream) => return stream.into(),
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Gives the socket the name of one that leaves: it is still found by whoever has runs here, and
    /// by nobody who looks for a keeper for new ones.
    pub(super) fn show_leaving(&mut self) {
        if let Self::Socket(_, path) = self {
            let leaving = path.with_extension(LEAVING);
            if std::fs::rename(&*path, &leaving).is_ok() {
                *path = leaving;
            }
        }
    }

    /// Closes the door, and takes its path away.
    pub(super) fn close(self) {
        if let Self::Socket(listener, path) = self {
            drop(listener);
            std::fs::remove_file(path).ok(); // whoever finds it gets no answer
        }
    }
}

/// Returns whether the peer runs as the same user.
fn is_ours(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == ours)
}
