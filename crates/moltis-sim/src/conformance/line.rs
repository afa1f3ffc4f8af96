//! One connection of a node, as the gateway's end of it: WebSocket, Noise, frames.
//!
//! Nothing here follows the protocol by itself: a row may send whatever it likes, in any order.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{Channel, Responder};
use moltis_proto::Subprotocol;
use moltis_proto::handshake::Binding;
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::subprotocol::Negotiated;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::http::HeaderMap;

use super::trouble::{Played, Story, Trouble, ensure, failed, seconds};

/// The request that asked for the upgrade.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
}

/// What comes over a connection.
#[derive(Debug)]
pub(super) enum Came {
    /// A binary message.
    Frame(Bytes),
    /// The answer to a WebSocket ping.
    Pong,
    /// The end, in words.
    Closed(String),
    /// Nothing in the time given.
    Nothing,
}

/// The gateway's end of a connection.
#[derive(Debug)]
pub(super) struct Line {
    socket: WebSocketStream<TcpStream>,
    pub(super) asked: Asked,
    negotiated: Negotiated,
    channel: Option<Channel>,
    patience: Duration,
    story: Story,
}

impl Line {
    pub(super) fn new(
        socket: WebSocketStream<TcpStream>,
        asked: Asked,
        negotiated: Negotiated,
        patience: Duration,
        story: Story,
    ) -> Self {
        Self {
            socket,
            asked,
            negotiated,
            channel: None,
            patience,
            story,
        }
    }

    pub(super) fn subprotocol(&self) -> Subprotocol {
        self.negotiated.chosen
    }

    /// Returns what both ends hold after Noise.
    pub(super) fn binding(&self) -> Played<Binding> {
        let channel = self.channel.as_ref();
        channel
            .map(|channel| channel.binding)
            .ok_or_else(|| Trouble::Stage(anyhow::anyhow!("no Noise handshake was made")))
    }

    /// Steps 1 and 2: a channel.
    pub(super) async fn noise(&mut self) -> Played {
        let answer = self.noise_answer().await?;
        self.write(answer).await;
        Ok(())
    }

    /// Takes message 1 and returns message 2 without sending it.
    pub(super) async fn noise_answer(&mut self) -> Played<Vec<u8>> {
        let message_1 = self.frame("the first message of Noise").await?;
        let responder = Responder::new(&self.negotiated).map_err(anyhow::Error::from)?;
        let (channel, message_2) = responder
            .respond(&message_1)
            .map_err(|error| failed("a first Noise message: 32 bytes, `e`", error.to_string()))?;
        self.channel = Some(channel);
        self.story.did("Noise is done");
        Ok(message_2)
    }

    /// Sends any bytes as one binary message.
    pub(super) async fn write(&mut self, bytes: Vec<u8>) {
        self.write_message(Message::Binary(bytes.into())).await;
    }

    /// Sends any WebSocket message. A node that has had enough may have closed already.
    pub(super) async fn write_message(&mut self, message: Message) {
        self.socket.send(message).await.ok();
    }

    /// Seals any bytes as the next frame.
    pub(super) fn seal(&mut self, plain: &[u8]) -> Played<Vec<u8>> {
        let mut sealed = Vec::new();
        let channel = self.channel.as_mut();
        let channel = channel.ok_or_else(|| anyhow::anyhow!("no Noise handshake was made"))?;
        let done = channel.sealer.seal(plain, &mut sealed);
        done.map_err(anyhow::Error::from)?;
        Ok(sealed)
    }

    /// Sends any bytes, sealed.
    pub(super) async fn write_plain(&mut self, plain: &[u8]) -> Played {
        let sealed = self.seal(plain)?;
        self.write(sealed).await;
        Ok(())
    }

    /// Sends a message as the node's codec has it.
    pub(super) async fn send<T: Serialize + std::fmt::Debug>(&mut self, message: &T) -> Played {
        let codec = self.subprotocol().codec();
        let plain = codec.encode(message).map_err(anyhow::Error::from)?;
        self.story.sent(format_args!("{message:?}"));
        self.write_plain(&plain).await
    }

    /// Returns what comes next.
    pub(super) async fn read(&mut self, until: Instant) -> Played<Came> {
        loop {
            let Ok(message) = timeout_at(until, self.socket.next()).await else {
                return Ok(Came::Nothing);
            };
            let came = match message {
                None => Came::Closed("the connection ended".to_owned()),
                Some(Err(error)) => Came::Closed(format!("the connection broke: {error}")),
                Some(Ok(Message::Close(_))) => Came::Closed("the connection was closed".to_owned()),
                Some(Ok(Message::Binary(frame))) => {
                    ensure(
                        frame.len() <= FRAME_BYTES_MAX,
                        "binary messages of at most 65,535 bytes",
                        format!("one of {} bytes", frame.len()),
                    )?;
                    Came::Frame(frame)
                }
                Some(Ok(Message::Pong(_))) => Came::Pong,
                Some(Ok(Message::Ping(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Text(text))) => {
                    return Err(failed(
                        "binary messages only",
                        format!("a text message: {text}"),
                    ));
                }
            };
            if let Came::Closed(how) = &came {
                self.story.came(how);
            }
            return Ok(came);
        }
    }

    /// Returns the next frame, which has to come.
    async fn frame(&mut self, expected: &str) -> Played<Bytes> {
        let until = Instant::now() + self.patience;
        loop {
            match self.read(until).await? {
                Came::Frame(frame) => return Ok(frame),
                Came::Pong => {}
                Came::Closed(how) => return Err(failed(expected, how)),
                Came::Nothing => {
                    let came = format!("nothing for {}", seconds(self.patience));
                    return Err(failed(expected, came));
                }
            }
        }
    }

    /// Opens a frame and reads it.
    pub(super) fn open<T: DeserializeOwned + std::fmt::Debug>(
        &mut self,
        frame: &[u8],
        expected: &str,
    ) -> Played<T> {
        let mut plain = Vec::new();
        let channel = self.channel.as_mut();
        let channel = channel.ok_or_else(|| anyhow::anyhow!("no Noise handshake was made"))?;
        channel.opener.open(frame, &mut plain).map_err(|error| {
            failed(
                "a frame sealed for this channel, in its turn",
                error.to_string(),
            )
        })?;
        let codec = self.subprotocol().codec();
        let message: T = codec.decode(&plain).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let shown = super::trouble::shown(&plain);
            let came = format!(
                "{error}: {}; the bytes are {shown}",
                cause.unwrap_or_default()
            );
            failed(format!("{expected}, as section 3 or 5 writes it"), came)
        })?;
        self.story.came(format_args!("{message:?}"));
        Ok(message)
    }

    /// Returns the next message, which has to be one of this type.
    pub(super) async fn receive<T: DeserializeOwned + std::fmt::Debug>(
        &mut self,
        expected: &str,
    ) -> Played<T> {
        let frame = self.frame(expected).await?;
        self.open(&frame, expected)
    }

    /// Closes as a gateway does that has said its last word: what was said before is heard.
    pub(super) async fn close(mut self) {
        self.write_message(Message::Close(None)).await;
        let until = Instant::now() + self.patience;
        while let Ok(Came::Frame(_) | Came::Pong) = self.read(until).await {}
    }

    /// The node has to close now and may say nothing before: `why` it has to.
    pub(super) async fn closes_without_a_word(&mut self, why: &str) -> Played {
        self.closes_saying(why, 0).await
    }

    /// The node has to close, after at most so many frames that were under way already.
    pub(super) async fn closes_saying(&mut self, why: &str, frames_max: usize) -> Played {
        let expected = format!("the node closes: {why}");
        let until = Instant::now() + self.patience;
        let mut frames = 0;
        loop {
            match self.read(until).await? {
                Came::Closed(_) => return Ok(()),
                Came::Pong => {}
                Came::Frame(frame) => {
                    frames += 1;
                    if frames > frames_max {
                        let came = format!("it went on with a frame of {} bytes", frame.len());
                        return Err(failed(expected, came));
                    }
                }
                Came::Nothing => {
                    let came = format!("it is still connected after {}", seconds(self.patience));
                    return Err(failed(expected, came));
                }
            }
        }
    }
}
