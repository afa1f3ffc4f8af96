//! From an address to an upgraded socket with a Noise channel in it, and messages on that.
//!
//! Buffers are as small as they may be: ten thousand of these stand in one process.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{self, Initiator, Opener, Sealer};
use moltis_proto::handshake::Binding;
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::{Codec, Subprotocol};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::http::{HeaderMap, Request, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// How long the gateway may take for each step.
const STEP_TIME: Duration = Duration::from_secs(30);

/// Bytes that a connection keeps for reading.
const READ_BUFFER_BYTES: usize = 512;

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody listens there.
    Unanswered,
    /// The gateway wants to be left alone for so long.
    Later(Duration),
    /// It began and came to nothing.
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

/// Messages over a sealed channel over a WebSocket.
#[derive(Debug)]
pub(super) struct Road {
    socket: WebSocketStream<TcpStream>,
    pub(super) binding: Binding,
    codec: Codec,
    sealer: Sealer,
    opener: Opener,
}

/// Connects from this address.
pub(super) async fn connect(from: IpAddr, to: SocketAddr) -> Result<TcpStream, Failure> {
    let connect = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    };
    match timeout(STEP_TIME, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(Failure::Unanswered)
        }
        Ok(Err(error)) => Err(anyhow::Error::new(error).context("connecting").into()),
        Err(_elapsed) => Err(Failure::Unanswered),
    }
}

/// Upgrades a connection to a WebSocket of the best subprotocol.
pub(super) async fn upgrade(
    stream: TcpStream,
    to: SocketAddr,
) -> Result<(WebSocketStream<TcpStream>, Negotiated), Failure> {
    let offers: Vec<&str> = noise::preferred_offers()
        .into_iter()
        .map(Subprotocol::name)
        .collect();
    let offered = offers.join(",");
    let request = Request::get(format!("ws://{to}/ws"))
        .header(header::HOST, to.to_string())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, &offered)
        .body(())?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let upgrading = client_async_with_config(request, stream, Some(config));
    let (socket, response) = match timeout(STEP_TIME, upgrading).await? {
        Ok(upgraded) => upgraded,
        Err(tungstenite::Error::Http(response))
            if response.status() == StatusCode::SERVICE_UNAVAILABLE =>
        {
            return Err(Failure::Later(retry_after(response.headers())));
        }
        Err(error) => return Err(error.into()),
    };
    let chosen = response.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
    let chosen = chosen
        .and_then(|name| Subprotocol::from_name(name.to_str().ok()?))
        .ok_or_else(|| anyhow::anyhow!("the gateway chose no subprotocol"))?;
    Ok((socket, Negotiated { offered, chosen }))
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(header::RETRY_AFTER);
    let seconds = seconds.and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

impl Road {
    /// Connects, upgrades, and agrees on keys.
    pub(super) async fn lay(from: IpAddr, to: SocketAddr) -> Result<Self, Failure> {
        let stream = connect(from, to).await?;
        let (mut socket, negotiated) = upgrade(stream, to).await?;
        let (initiator, message_1) = Initiator::new(&negotiated)?;
        socket.send(Message::Binary(message_1.into())).await?;
        let message_2 = timeout(STEP_TIME, next_frame(&mut socket)).await??;
        let channel = initiator.finish(&message_2)?;
        Ok(Self {
            socket,
            binding: channel.binding,
            codec: negotiated.chosen.codec(),
            sealer: channel.sealer,
            opener: channel.opener,
        })
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, message: &impl Serialize) -> anyhow::Result<()> {
        let plain = self.codec.encode(message)?;
        let mut frame = Vec::with_capacity(plain.len() + 16);
        self.sealer.seal(&plain, &mut frame)?;
        let sending = self.socket.send(Message::Binary(frame.into()));
        timeout(STEP_TIME, sending).await??;
        Ok(())
    }

    /// Waits for the next message.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn receive<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let frame = next_frame(&mut self.socket).await?;
        let mut plain = Vec::new();
        self.opener.open(&frame, &mut plain)?;
        Ok(self.codec.decode(&plain)?)
    }

    /// As [`Road::receive`], for no longer than a step may take.
    pub(super) async fn receive_soon<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        timeout(STEP_TIME, self.receive()).await?
    }
}

async fn next_frame(socket: &mut WebSocketStream<TcpStream>) -> anyhow::Result<bytes::Bytes> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(frame))) => return Ok(frame),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => anyhow::bail!("the gateway has hung up"),
            Some(Ok(other)) => anyhow::bail!("the gateway sent {other:?}"),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}
