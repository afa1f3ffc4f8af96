//! Where a keeper's clients come from: a Unix socket of our own user, or the program around us.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::connect::KeeperStream;
#[cfg(feature = "simulation")]
use crate::simulation;

/// How long the door rests when the system has no descriptor for a client.
const REST: Duration = Duration::from_millis(100);

/// How the sockets of keepers end that take new runs, and those of keepers that leave.
pub(super) const SOCKET: &str = "sock";
pub(super) const LEAVING: &str = "leaving";

/// Where sockets are opened and reached: in the file system, unless a simulation has its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sockets {
    #[cfg(feature = "simulation")]
    simulated: Option<simulation::Sockets>,
}

/// Where clients come from.
#[derive(Debug)]
pub(super) struct Door {
    clients: Clients,
    /// It takes nobody before then.
    rests_until: Option<Instant>,
    /// Where they find it now.
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Clients {
    /// Of a socket.
    Socket(UnixListener),
    /// Of handles in this process.
    Memory(mpsc::Receiver<KeeperStream>),
}

impl Sockets {
    /// Sockets that a simulation has made up.
    #[cfg(feature = "simulation")]
    pub(crate) fn simulated(sockets: simulation::Sockets) -> Self {
        Self {
            simulated: Some(sockets),
        }
    }

    /// Opens a socket that only our own user may use.
    #[cfg_attr(
        not(feature = "simulation"),
        expect(clippy::unused_self, reason = "there is one way")
    )]
    pub(super) fn open(&self, path: &Path) -> io::Result<Door> {
        #[cfg(feature = "simulation")]
        if let Some(sockets) = &self.simulated {
            return Ok(Door {
                clients: Clients::Memory(sockets.bind(path)?),
                rests_until: None,
                path: Some(path.to_owned()),
            });
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        Ok(Door {
            clients: Clients::Socket(listener),
            rests_until: None,
            path: Some(path.to_owned()),
        })
    }

    /// Knocks at a socket.
    pub(super) async fn connect(&self, path: &Path) -> io::Result<KeeperStream> {
        #[cfg(feature = "simulation")]
        if let Some(sockets) = &self.simulated {
            return sockets.connect(path).await;
        }
        UnixStream::connect(path).await.map(KeeperStream::from)
    }
}

impl Door {
    /// A door for handles in this process.
    pub(super) fn memory(clients: mpsc::Receiver<KeeperStream>) -> Self {
        Self {
            clients: Clients::Memory(clients),
            rests_until: None,
            path: None,
        }
    }

    /// Returns the next client; waits for ever when none can come any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> KeeperStream {
        loop {
            if let Some(until) = self.rests_until {
                sleep_until(until).await;
                self.rests_until = None;
            }
            match &mut self.clients {
                Clients::Socket(listener) => match listener.accept().await {
                    Ok((stream, _)) if is_ours(&stream) => return stream.into(),
                    Ok(_) => tracing::warn!("another user knocks at the keeper's socket"),
                    Err(error) => {
                        tracing::warn!(error = %error, "the keeper's socket takes no client");
                        // Whoever waits here turns to something else at every event, and comes back.
                        self.rests_until = Some(Instant::now() + REST);
                    }
                },
                Clients::Memory(clients) => match clients.recv().await {
                    Some(stream) => return stream,
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Gives the socket the name of one that leaves: it is still found by whoever has runs here, and
    /// by nobody who looks for a keeper for new ones.
    pub(super) fn show_leaving(&mut self) {
        if let Some(path) = &mut self.path {
            let leaving = path.with_extension(LEAVING);
            if fs::rename(&*path, &leaving).is_ok() {
                *path = leaving;
            }
        }
    }

    /// Closes the door, and takes its path away.
    pub(super) fn close(self) {
        drop(self.clients);
        if let Some(path) = self.path {
            fs::remove_file(path).ok(); // whoever finds it gets no answer
        }
    }
}

/// Returns whether the peer runs as the same user.
fn is_ours(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == ours)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use rustix::net::{AddressFamily, SocketType};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_door_that_took_nobody_rests_however_often_it_is_asked() {
        // One that does not listen: accept(2) fails.
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let socket = std::os::unix::net::UnixListener::from(socket);
        socket.set_nonblocking(true).unwrap();
        let mut door = Door {
            clients: Clients::Socket(UnixListener::from_std(socket).unwrap()),
            rests_until: None,
            path: None,
        };
        let asked = timeout(REST / 10, door.next()).await;
        assert!(asked.is_err());
        let (clients, arriving) = mpsc::channel(1);
        let (stream, _far) = tokio::io::duplex(1);
        clients.try_send(stream.into()).unwrap();
        door.clients = Clients::Memory(arriving);
        for _ in 0..3 {
            assert!(door.next().now_or_never().is_none(), "it rests");
        }
        timeout(REST, door.next()).await.unwrap();
    }
}
