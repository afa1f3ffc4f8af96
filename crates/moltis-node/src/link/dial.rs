//! From an address to an upgraded WebSocket: resolve, connect, TLS, upgrade, each with a deadline.
//!
//! What answers instead of a gateway is told apart in [`answer`].

mod answer;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use moltis_proto::Subprotocol;
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::subprotocol::Negotiated;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::http::{Request, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use super::machine::Machine;
use crate::error::{LinkError, Step};
use crate::tls::{ExtraRoots, client_config};
use crate::url::GatewayUrl;

/// How long the name server may take.
const RESOLVE_TIME: Duration = Duration::from_secs(10);

/// How long one address may take to answer; the next one is tried then.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long TLS and the upgrade may take.
const UPGRADE_TIME: Duration = Duration::from_secs(10);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Bytes that the kernel holds unsent before it says that the socket is full: what a control frame
/// waits behind at the most.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Most frames towards a node are small; a larger one grows the buffer for a while.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// Bytes that are gathered before they are written: small frames that are ready together go
/// together, and one full of output goes at once.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// A stream of bytes to a gateway, and back.
pub(super) trait Road: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Road for T {}

/// A connection that carries WebSocket messages.
pub(super) type Socket = WebSocketStream<MaybeTlsStream<Box<dyn Road>>>;

/// Connects and upgrades. `roots` are trusted beside the system's.
pub(super) async fn dial(
    machine: &Machine,
    url: &GatewayUrl,
    roots: Option<&ExtraRoots>,
    offers: &[Subprotocol],
) -> Result<(Socket, Negotiated), LinkError> {
    let road = machine.reach(url).await?;
    let upgrade = Box::pin(upgrade(url, roots, road, offers));
    within(Step::Upgrade, UPGRADE_TIME, upgrade).await
}

/// Connects by this machine's own network.
pub(super) async fn reach(url: &GatewayUrl) -> Result<Box<dyn Road>, LinkError> {
    let addresses = resolve(url).await?;
    Ok(Box::new(connect(url, &addresses).await?))
}

/// Gives an attempt to connect its deadline, and its failure words.
pub(super) async fn attempt<S>(
    url: &GatewayUrl,
    connecting: impl Future<Output = io::Result<S>>,
) -> Result<S, LinkError> {
    let connecting = async {
        connecting.await.map_err(|source| match source.kind() {
            io::ErrorKind::ConnectionRefused => LinkError::ConnectionRefused { url: url.clone() },
            _ => LinkError::Unreachable {
                url: url.clone(),
                source,
            },
        })
    };
    within(Step::Connect, CONNECT_TIME, connecting).await
}

/// Gives a step its deadline.
pub(super) async fn within<T>(
    step: Step,
    after: Duration,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    match timeout(after, work).await {
        Ok(result) => result,
        Err(_elapsed) => Err(LinkError::TimedOut { step, after }),
    }
}

async fn resolve(url: &GatewayUrl) -> Result<Vec<SocketAddr>, LinkError> {
    let failed = |source| LinkError::Resolve {
        host: url.host().to_owned(),
        source,
    };
    let look_up = async {
        let found = tokio::net::lookup_host((url.host(), url.port())).await;
        found.map_err(failed)
    };
    let found = within(Step::Resolve, RESOLVE_TIME, look_up).await?;
    let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        return Err(failed(io::Error::from(io::ErrorKind::NotFound)));
    }
    Ok(addresses)
}

async fn connect(url: &GatewayUrl, addresses: &[SocketAddr]) -> Result<TcpStream, LinkError> {
    let mut first_error = None;
    for address in addresses {
        match attempt(url, TcpStream::connect(address)).await {
            Ok(stream) => {
                tune(&stream).map_err(LinkError::Broken)?;
                return Ok(stream);
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.expect("there was at least one address"))
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    #[cfg(not(target_os = "linux"))]
    socket.set_send_buffer_size(UNSENT_BYTES_MAX as usize)?;
    // A node that waits for approval sends no frames; the kernel finds out when its peer is gone.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    socket.set_tcp_keepalive(&keepalive)
}

async fn upgrade(
    url: &GatewayUrl,
    roots: Option<&ExtraRoots>,
    road: Box<dyn Road>,
    offers: &[Subprotocol],
) -> Result<(Socket, Negotiated), LinkError> {
    let names: Vec<&str> = offers.iter().map(|offer| offer.name()).collect();
    let request = Request::get(url.to_string())
        .header(header::HOST, url.authority())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, names.join(", "))
        .body(())
        .expect("an address that was parsed makes a request");
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let connector = if url.is_tls() {
        // Made anew for each connection, so that a root that the system has got since counts.
        Connector::Rustls(client_config(roots).map_err(|source| LinkError::Tls {
            url: url.clone(),
            source,
        })?)
    } else {
        Connector::Plain
    };
    let (socket, response) =
        client_async_tls_with_config(request, road, Some(config), Some(connector))
            .await
            .map_err(|error| answer::classify(url, offers, error))?;
    let chosen = response
        .headers()
        .get(header::SEC_WEBSOCKET_PROTOCOL)
        .and_then(|name| name.to_str().ok())
        .and_then(Subprotocol::from_name)
        .filter(|chosen| offers.contains(chosen))
        .ok_or_else(|| LinkError::NotAGateway {
            url: url.clone(),
            found: "it accepts WebSockets, but none that a node speaks".to_owned(),
        })?;
    let negotiated = Negotiated {
        offered: names.join(","),
        chosen,
    };
    Ok((socket, negotiated))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::fd::AsFd as _;

    use tokio::net::TcpListener;

    use super::*;

    /// Sends until the socket takes no more, and returns how much of it the kernel of this side
    /// holds. Nobody reads.
    async fn held_unsent(tuned: bool) -> io::Result<u64> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (near, (far, _)) = (near?, far?);
        if tuned {
            tune(&near)?;
        }
        let mut sent = 0;
        // Loopback is done before this is: what is not writable then stays so.
        while let Ok(writable) = timeout(Duration::from_millis(300), near.writable()).await {
            writable?;
            match near.try_write(&[0; 16 * 1024]) {
                Ok(bytes) => sent += bytes as u64,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        Ok(sent - rustix::io::ioctl_fionread(far.as_fd())?)
    }

    #[tokio::test]
    async fn a_socket_that_is_full_holds_little_that_control_would_wait_behind() {
        let most = u64::from(UNSENT_BYTES_MAX) + 64 * 1024;
        let (tuned, untuned) = (held_unsent(true).await, held_unsent(false).await);
        let (tuned, untuned) = (tuned.unwrap(), untuned.unwrap());
        assert!(tuned <= most, "{tuned} bytes wait");
        assert!(
            untuned > most,
            "{untuned} bytes: the system does so by itself"
        );
    }
}
