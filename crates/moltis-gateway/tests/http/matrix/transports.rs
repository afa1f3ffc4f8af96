//! A gateway that is reached in every way that there is.

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as AnyBody, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use moltis_gateway::clock::Clock;
use moltis_gateway::http::listen::Listener;
use moltis_gateway::http::peer::{Peer, Proxied, Security};
use moltis_gateway::{Gateway, GatewayConfig};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::client::Answer;

/// A way to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// TCP to an address of loopback.
    Loopback,
    /// TCP to an address of the network, without TLS. Not every machine has one, so the router is
    /// told of it; real ones are tried by the tests of the binary.
    Network,
    /// The same with TLS: the router is told of it too.
    NetworkByTls,
    /// A proxy on this machine, which was asked by https from elsewhere.
    Proxy,
    /// A proxy on this machine, which was asked by http from elsewhere.
    ProxyInTheClear,
    /// The Unix socket, by the gateway's own user.
    UnixSocket,
    /// The Unix socket, by another user: the router is told of it.
    SocketOfAnother,
}

impl Transport {
    /// Every way.
    pub(super) const ALL: [Self; 7] = [
        Self::Loopback,
        Self::Network,
        Self::NetworkByTls,
        Self::Proxy,
        Self::ProxyInTheClear,
        Self::UnixSocket,
        Self::SocketOfAnother,
    ];

    /// Returns whether more than health and the nodes' door is answered there.
    pub(super) fn serves_the_site(self) -> bool {
        !matches!(self, Self::Network | Self::ProxyInTheClear)
    }

    /// Returns whether the system says who asks, and that it is the owner; `None` where it says
    /// nothing, and tokens count.
    pub(super) fn is_the_owner(self) -> Option<bool> {
        match self {
            Self::UnixSocket => Some(true),
            Self::SocketOfAnother => Some(false),
            Self::Loopback
            | Self::Network
            | Self::NetworkByTls
            | Self::Proxy
            | Self::ProxyInTheClear => None,
        }
    }
}

/// Where the router is told that it was dialled.
const ON_THE_NETWORK: &str = "192.0.2.1:9090";

/// Where a proxy on this machine dials.
const BEHIND_A_PROXY: &str = "127.0.0.1:9090";

/// A gateway without nodes.
pub(super) struct House {
    gateway: Gateway,
    clock: Clock,
    port: u16,
    dir: TempDir,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl House {
    /// Opens one on loopback and on a Unix socket.
    pub(super) async fn open() -> Self {
        let dir = TempDir::new().unwrap();
        let clock = Clock::manual("2026-01-02T03:04:05Z".parse().unwrap());
        let gateway = Gateway::builder(GatewayConfig::new(dir.path().join("home")))
            .clock(clock.clone())
            .build()
            .await
            .unwrap();
        let tcp = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = tcp.address().unwrap().port();
        let unix = Listener::unix(&dir.path().join("g.sock")).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for listener in [tcp, unix] {
            let (gateway, stop) = (gateway.clone(), stop.clone());
            tasks.spawn(async move { gateway.serve(listener, &stop).await });
        }
        Self {
            gateway,
            clock,
            port,
            dir,
            stop,
            tasks,
        }
    }

    /// Turns the clock on, so far that every token until now has expired.
    pub(super) fn later(&self) {
        let now: Timestamp = self.clock.now();
        self.clock.set(now + SignedDuration::from_secs(61));
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn ask(&self, transport: Transport, request: Request<Full<Bytes>>) -> Answer {
        match transport {
            Transport::Loopback => {
                let address = SocketAddr::from(([127, 0, 0, 1], self.port));
                let stream = TcpStream::connect(address).await.unwrap();
                read(exchange(stream, at(request, &address.to_string())).await).await
            }
            Transport::Network => {
                let peer = Peer::Tcp {
                    remote: "192.0.2.9:50000".parse().unwrap(),
                    local: ON_THE_NETWORK.parse().unwrap(),
                };
                read(self.told(at(request, ON_THE_NETWORK), peer).await).await
            }
            Transport::NetworkByTls => {
                let peer = Peer::Tls {
                    remote: "192.0.2.9:50000".parse().unwrap(),
                    local: ON_THE_NETWORK.parse().unwrap(),
                };
                read(self.told(at(request, ON_THE_NETWORK), peer).await).await
            }
            Transport::Proxy | Transport::ProxyInTheClear => {
                let outside = match transport {
                    Transport::Proxy => Security::Tls,
                    _ => Security::Plain,
                };
                let peer = Peer::Proxied(Proxied {
                    client: Some("203.0.113.9".parse().unwrap()),
                    proxy: "127.0.0.1:50000".parse().unwrap(),
                    local: BEHIND_A_PROXY.parse().unwrap(),
                    hop: Security::Plain,
                    outside: Some(outside),
                });
                read(self.told(at(request, BEHIND_A_PROXY), peer).await).await
            }
            Transport::UnixSocket => {
                let socket = self.dir.path().join("g.sock");
                let stream = UnixStream::connect(socket).await.unwrap();
                read(exchange(stream, request).await).await
            }
            Transport::SocketOfAnother => {
                let uid = rustix::process::geteuid().as_raw() + 1000;
                let peer = Peer::Unix { uid, pid: None };
                read(self.told(request, peer).await).await
            }
        }
    }

    /// Hands a request to the router, with these words of who sent it.
    async fn told(&self, request: Request<Full<Bytes>>, peer: Peer) -> Response<Body> {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        self.gateway.router().oneshot(request).await.unwrap()
    }

    pub(super) async fn shut(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.gateway.shutdown().await;
    }
}

fn at(mut request: Request<Full<Bytes>>, host: &str) -> Request<Full<Bytes>> {
    request.headers_mut().insert(HOST, host.parse().unwrap());
    request
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Response<Incoming> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

/// Reads an answer; of one that would go on for ever, the head.
async fn read<B: AnyBody<Error: std::fmt::Debug>>(response: Response<B>) -> Answer {
    let (parts, body) = response.into_parts();
    let media = parts.headers.get(CONTENT_TYPE);
    let body = if media.is_some_and(|media| media == "text/event-stream") {
        Bytes::new()
    } else {
        body.collect().await.unwrap().to_bytes()
    };
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}
