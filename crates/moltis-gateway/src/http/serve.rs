//! The accept loop: each connection becomes a task that speaks HTTP/1.1 with the router, by TLS where
//! there is a certificate and the peer begins so.
//!
//! Not `axum::serve`, which has no limit on the time and size of a request's head, and whose
//! buffers are large. Called by `Gateway::serve`; it returns when `stop` is cancelled and every
//! connection is done, or its grace is over. Upgraded connections belong to their sessions.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::forwarded::Proxies;
use super::guests::{Guest, Guests};
use super::hangup::Hangup;
use super::listen::{Connection, Listener};
use super::peer::Peer;
use super::tls::{Opened, Tls};
use super::write_timeout::{WRITE_TIME_MAX, WriteTimeout};

/// How long a peer may take for the head of a request, the wait for it included.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a peer may take for its first byte and, where that begins TLS, for the handshake.
const OPEN_TIME_MAX: Duration = Duration::from_secs(10);

/// Bytes of a request's head. A longer one is answered 431.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Headers of one request. More are answered 431.
const HEADERS_MAX: usize = 64;

/// Bytes that one connection buffers; hyper takes no less than 8 KiB.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// The longest that one connection too many is told to stay away, in seconds.
const TOO_MANY_SECONDS: u8 = 4;

/// How long answers under way may take once the gateway stops.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// The wait after a failed accept: no descriptor is free, and trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a TCP connection meets before its first request. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reception {
    /// The count of connections. One for which there is no room is closed.
    pub(crate) guests: Guests,
    /// HTTPS.
    pub(crate) tls: Option<Tls>,
    /// Peers that speak for many, each of which is counted by itself elsewhere.
    pub(crate) proxies: Proxies,
}

/// Answers on `listener` until `stop`.
pub(crate) async fn serve(
    listener: Listener,
    router: Router,
    reception: Reception,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((Connection::Tcp(stream), peer)) => {
                let source = peer.ip().filter(|ip| !reception.proxies.trust(*ip));
                let Some(guest) = reception.guests.admit(source) else {
                    tracing::debug!(peer.addr = %peer, "a connection too many was closed");
                    if reception.tls.is_none() {
                        send_away(&stream);
                    }
                    continue;
                };
                let (router, stop) = (router.clone(), stop.clone());
                match &reception.tls {
                    None => {
                        let speak = speak(stream, peer, router, stop);
                        connections.spawn(until(cut.clone(), counted(guest, speak)));
                    }
                    Some(tls) => {
                        let open = open(tls.clone(), stream, peer, router, stop);
                        connections.spawn(until(cut.clone(), counted(guest, open)));
                    }
                }
            }
            Ok((Connection::Unix(stream), peer)) => {
                let speak = speak(stream, peer, router.clone(), stop.clone());
                connections.spawn(until(cut.clone(), speak));
            }
            Err(error) => pause_after(&error).await,
        }
    }
    drop(listener);
    connections.close();
    if timeout(STOP_GRACE, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

async fn counted(guest: Guest, work: impl Future<Output = ()>) {
    work.await;
    drop(guest);
}

/// Finds out what a peer speaks, and speaks it.
async fn open(tls: Tls, stream: TcpStream, peer: Peer, router: Router, stop: CancellationToken) {
    let opening = timeout(OPEN_TIME_MAX, tls.open_connection(stream));
    let opened = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        // The room of a handshake is given back before the first request.
        opened = Box::pin(opening) => opened,
    };
    match opened {
        Ok(Ok(Opened::Plain(stream))) => Box::pin(speak(stream, peer, router, stop)).await,
        Ok(Ok(Opened::Tls(stream))) => {
            Box::pin(speak(stream, peer.over_tls(), router, stop)).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(peer.addr = %peer, %error, "a connection came to no TLS");
        }
        Err(_) => tracing::debug!(peer.addr = %peer, "a connection took too long to begin"),
    }
}

/// Says when to come back, without waiting for anything: a request was not read, and an answer that
/// the socket does not take at once is lost.
fn send_away(stream: &TcpStream) {
    let [random] = moltis_identity::random::bytes();
    let seconds = 1 + random % TOO_MANY_SECONDS;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: {seconds}\r\nconnection: close\r\n\
         content-length: 0\r\n\r\n"
    );
    let socket = socket2::SockRef::from(stream);
    socket.send(answer.as_bytes()).ok(); // the peer has gone
    socket.shutdown(std::net::Shutdown::Write).ok(); // likewise
}

async fn until(cut: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = cut.cancelled() => {}
        () = work => {}
    }
}

/// Speaks HTTP on one connection until it closes, or is idle after `stop`.
pub(crate) async fn speak<S>(stream: S, peer: Peer, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let hangup = Hangup::default();
    let by_handlers = hangup.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(by_handlers.clone());
        let router = router.clone();
        async move {
            Ok::<_, Infallible>(
                router
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|no| match no {}),
            )
        }
    });
    let write_time_max = patience(peer, WRITE_TIME_MAX);
    let stream = TokioIo::new(WriteTimeout::new(stream, write_time_max));
    let mut connection = pin!(
        reader(peer)
            .serve_connection(stream, service)
            .with_upgrades()
    );
    let spoken = async {
        tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    let ended = tokio::select! {
        biased;
        () = hangup.asked() => {
            tracing::debug!(peer.addr = %peer, "a connection was closed with its answer");
            return;
        }
        ended = spoken => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(peer.addr = %peer, %error, "a connection ended badly");
    }
}

/// Returns what reads the requests of this peer.
pub(super) fn reader(peer: Peer) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .header_read_timeout(patience(peer, HEAD_TIME_MAX));
    builder
}

/// Returns how long a peer is waited for. The local user may think between two requests, and in the
/// middle of an answer; a stranger may not hold the socket.
fn patience(peer: Peer, with_strangers: Duration) -> Option<Duration> {
    match peer {
        Peer::Unix { .. } => None,
        Peer::Tcp { .. }
        | Peer::Tls { .. }
        | Peer::Proxied(_)
        | Peer::Remote(_)
        | Peer::Unknown => Some(with_strangers),
    }
}

/// A connection that died before it was accepted is nobody's problem; a lack of descriptors is.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    ) {
        return;
    }
    tracing::error!(%error, "connections cannot be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
