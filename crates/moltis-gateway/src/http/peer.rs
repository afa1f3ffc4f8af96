//! Who is at the other end of a connection: an address, or a user of this machine.
//!
//! Made by the accept loop for each connection and found by handlers as `ConnectInfo<Peer>`. An
//! embedder who serves the router with `axum::serve` gets the same from
//! `into_make_service_with_connect_info::<Peer>()`.

use std::net::{IpAddr, SocketAddr};

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP connection.
    Tcp {
        /// Its address.
        remote: SocketAddr,
        /// Ours, as the peer dialled it.
        local: SocketAddr,
    },
    /// A process of this machine, by what the kernel says of it.
    Unix {
        /// Its effective user when it connected.
        uid: u32,
        /// Its process id, where the kernel tells.
        pid: Option<i32>,
    },
    /// The embedder's server does not say. Transport and addresses are then the embedder's care.
    Unknown,
}

impl Peer {
    /// Reads both ends of a TCP connection; `Unknown` when the connection is gone already.
    pub fn of_tcp(stream: &TcpStream) -> Self {
        match (stream.peer_addr(), stream.local_addr()) {
            (Ok(remote), Ok(local)) => Self::Tcp { remote, local },
            _ => Self::Unknown,
        }
    }

    /// Asks the kernel who connected; `Unknown` when it does not tell.
    pub fn of_unix(stream: &UnixStream) -> Self {
        match stream.peer_cred() {
            Ok(cred) => Self::Unix {
                uid: cred.uid(),
                pid: cred.pid(),
            },
            Err(_) => Self::Unknown,
        }
    }

    /// Returns the peer's IP address, an IPv4 address in IPv6 clothes as IPv4; `None` for a Unix
    /// socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp { remote, .. } => Some(remote.ip().to_canonical()),
            Self::Unix { .. } | Self::Unknown => None,
        }
    }

    /// Returns the address of ours that was dialled.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp { local, .. } => Some(*local),
            Self::Unix { .. } | Self::Unknown => None,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { remote, .. } => write!(f, "{remote}"),
            Self::Unix {
                uid,
                pid: Some(pid),
            } => write!(f, "user {uid}, process {pid}"),
            Self::Unix { uid, pid: None } => write!(f, "user {uid}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self::of_tcp(stream.io())
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self::of_unix(stream.io())
    }
}
