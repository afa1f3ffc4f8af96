//! Who is at the other end of a connection: an address, or a user of this machine.
//!
//! Made by the accept loop for each connection and found by handlers as `ConnectInfo<Peer>`. An
//! embedder who serves the router with `axum::serve` gets the same from
//! `into_make_service_with_connect_info::<Peer>()`; `ConnectInfo<SocketAddr>` does too, where other
//! handlers want that.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::extract::connect_info::Connected;
use axum::http::Extensions;
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
    /// A TCP connection with TLS on it, which ends here.
    Tls {
        /// Its address.
        remote: SocketAddr,
        /// Ours, as the peer dialled it.
        local: SocketAddr,
    },
    /// Somebody behind a proxy that is trusted.
    Proxied(Proxied),
    /// A process of this machine, by what the kernel says of it.
    Unix {
        /// Its effective user when it connected.
        uid: u32,
        /// Its process id, where the kernel tells.
        pid: Option<i32>,
    },
    /// A TCP connection of the embedder's server, which tells where from and no more. Transport and
    /// proxies are then the embedder's care.
    Remote(SocketAddr),
    /// The embedder's server does not say. Transport and addresses are then the embedder's care.
    Unknown,
}

/// Somebody behind a proxy that is trusted: who, as the proxy tells, and how the proxy came to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxied {
    /// Its address: never one of loopback, which no proxy can know of another machine. `None` where
    /// the proxy tells none that can be believed.
    pub client: Option<IpAddr>,
    /// The proxy's address.
    pub proxy: SocketAddr,
    /// Ours, as the proxy dialled it.
    pub local: SocketAddr,
    /// What is between the proxy and us.
    pub hop: Security,
    /// What is between the client and the proxy; `None` where the proxy does not tell.
    pub outside: Option<Security>,
}

/// Whether others on the way can read along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// They can.
    Plain,
    /// There is TLS.
    Tls,
}

impl Peer {
    /// Finds who sent a request, as the server that took it says.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        if let Some(ConnectInfo(peer)) = extensions.get() {
            return *peer;
        }
        match extensions.get() {
            Some(ConnectInfo(remote)) => Self::Remote(*remote),
            None => Self::Unknown,
        }
    }

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
    /// socket, and where a proxy does not tell.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp { remote, .. } | Self::Tls { remote, .. } | Self::Remote(remote) => {
                Some(remote.ip().to_canonical())
            }
            Self::Proxied(proxied) => proxied.client,
            Self::Unix { .. } | Self::Unknown => None,
        }
    }

    /// Returns the address under which what this peer does is counted: its own, or where a proxy
    /// does not tell it, nobody's (`0.0.0.0`), which is shared by all of those.
    pub fn source(&self) -> Option<IpAddr> {
        match self {
            Self::Proxied(proxied) => {
                let nobodys = IpAddr::from([0, 0, 0, 0]);
                Some(proxied.client.unwrap_or(nobodys))
            }
            _ => self.ip(),
        }
    }

    /// Returns the same peer, who speaks TLS.
    pub(super) fn over_tls(self) -> Self {
        match self {
            Self::Tcp { remote, local } => Self::Tls { remote, local },
            other => other,
        }
    }

    /// Returns the address of ours that was dialled.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp { local, .. } | Self::Tls { local, .. } => Some(*local),
            Self::Proxied(proxied) => Some(proxied.local),
            Self::Unix { .. } | Self::Remote(_) | Self::Unknown => None,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { remote, .. } | Self::Tls { remote, .. } | Self::Remote(remote) => {
                write!(f, "{remote}")
            }
            Self::Proxied(Proxied { client, proxy, .. }) => match client {
                Some(client) => write!(f, "{client} through {proxy}"),
                None => write!(f, "somebody behind {proxy}"),
            },
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
