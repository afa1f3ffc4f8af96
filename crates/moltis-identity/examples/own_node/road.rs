//! Messages over a sealed channel over a WebSocket: sections 1 and 2 of the protocol.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{self, Initiator, Opener, Sealer};
use moltis_proto::handshake::{Allowance, Binding};
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::{Codec, Subprotocol};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::header::{RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::{Leave, Result, for_good};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(crate) struct Road {
    /// What both proofs are bound to.
    pub(crate) binding: Binding,
    socket: Socket,
    sealer: Sealer,
    opener: Opener,
    codec: Codec,
    /// What a gateway may say before it has accepted.
    allowance: Allowance,
}

impl Road {
    pub(crate) async fn dial(url: &str) -> Result<Self> {
        let offers: Vec<&str> = noise::preferred_offers()
            .into_iter()
            .map(Subprotocol::name)
            .collect();
        let offered = offers.join(",");
        let mut request = url.into_client_request()?;
        request
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, offered.parse()?);
        let config = WebSocketConfig::default()
            .max_message_size(Some(FRAME_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));
        let connected = connect_async_with_config(request, Some(config), true);
        let (mut socket, response) = Box::pin(connected).await?;
        let chosen = response
            .headers()
            .get(SEC_WEBSOCKET_PROTOCOL)
            .and_then(|name| Subprotocol::from_name(name.to_str().ok()?))
            .ok_or("this is not a gateway")?;

        let (initiator, message_1) = Initiator::new(&Negotiated { offered, chosen })?;
        socket.send(Message::Binary(message_1.into())).await?;
        let channel = initiator.finish(&next(&mut socket).await?)?;
        Ok(Self {
            binding: channel.binding,
            socket,
            sealer: channel.sealer,
            opener: channel.opener,
            codec: chosen.codec(),
            allowance: Allowance::new(),
        })
    }

    pub(crate) async fn send(&mut self, message: &impl Serialize) -> Result {
        let mut frame = Vec::new();
        self.sealer.seal(&self.codec.encode(message)?, &mut frame)?;
        Ok(self.socket.send(Message::Binary(frame.into())).await?)
    }

    /// Returns the next message of a gateway that has not accepted yet: a short one.
    pub(crate) async fn receive_first<T: DeserializeOwned>(&mut self) -> Result<T> {
        let frame = next(&mut self.socket).await?;
        // A patient gateway repeats itself for an hour; no frame of it is long.
        let spent = std::mem::take(&mut self.allowance).take(frame.len());
        spent?;
        self.open(&frame)
    }

    /// Returns the next message. Cancel safe: what has come is returned, or still in the socket.
    pub(crate) async fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let frame = next(&mut self.socket).await?;
        self.open(&frame)
    }

    fn open<T: DeserializeOwned>(&mut self, frame: &[u8]) -> Result<T> {
        let mut plaintext = Vec::new();
        self.opener.open(frame, &mut plaintext)?;
        Ok(self.codec.decode(&plaintext)?)
    }
}

async fn next(socket: &mut Socket) -> Result<Vec<u8>> {
    loop {
        match socket.next().await.ok_or("the gateway has gone")?? {
            Message::Binary(frame) => return Ok(frame.into()),
            // Answered by the library, and no sign of life.
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return Err("the gateway has closed the connection".into()),
            other => return Err(format!("the gateway sent {other:?}").into()),
        }
    }
}

/// Says what an attempt that failed means for the next one.
pub(crate) fn leave(error: Box<dyn std::error::Error + Send + Sync>) -> Leave {
    let Some(Error::Http(response)) = error.downcast_ref::<Error>() else {
        return Leave::Passing(error);
    };
    if response.status().as_u16() != 503 {
        return for_good(format!(
            "this is no gateway: it answers {}",
            response.status()
        ));
    }
    let seconds = response.headers().get(RETRY_AFTER);
    let seconds = seconds.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    Leave::Later(Duration::from_secs(seconds.unwrap_or(5)))
}
