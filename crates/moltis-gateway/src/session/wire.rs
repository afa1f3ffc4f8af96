//! A WebSocket with a Noise channel inside: messages in, messages out, no more.
//!
//! Reading never waits for writing: [`Wire::next`] pushes what is queued and reads at the same
//! time. What is queued stays small, so that a message put in later waits behind little; the
//! session asks its machines for more only when the socket has taken all of it.

use std::task::Poll;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{Channel, NoiseError, Opener, Sealer};
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::{Codec, CodecError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::socket::Socket;

/// Bytes that are queued before the socket has to take them.
const QUEUED_MAX: usize = 64 * 1024;

/// How long the socket may take nothing before the connection is given up.
pub(crate) const WRITE_TIME_MAX: Duration = Duration::from_secs(20);

/// Capacity of a buffer that an idle connection keeps.
const IDLE_BYTES: usize = 512;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum WireError {
    #[error("the socket failed")]
    Socket(#[source] tungstenite::Error),
    #[error("the peer has closed the socket")]
    Closed,
    #[error("a text message came, where only binary ones are legal")]
    Text,
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    #[error(transparent)]
    Noise(#[from] NoiseError),
    #[error("a frame holds no message that belongs here")]
    Message(#[from] CodecError),
    #[error("the socket took nothing for {} s", WRITE_TIME_MAX.as_secs())]
    Stuck,
}

/// What has come of waiting.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A frame, still sealed.
    Frame(Bytes),
    /// A ping or pong of the WebSocket itself: no sign of life, and not for free.
    Noise,
    /// The socket has taken all that was queued.
    Flushed,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: Socket,
    codec: Codec,
    sealer: Sealer,
    opener: Opener,
    queued: usize,
    stall: Stall,
    plain: Vec<u8>,
    /// Room for a frame; its first `opened_bytes` are what was opened last.
    opened: Vec<u8>,
    opened_bytes: usize,
}

/// Since when the socket takes nothing of what is queued.
#[derive(Debug, Default)]
struct Stall {
    since: Option<Instant>,
    /// Bytes that the socket has taken in all.
    taken: u64,
}

impl Stall {
    fn handle_queued(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The socket has taken so much in all.
    fn handle_taken(&mut self, taken: u64, now: Instant) {
        if taken > self.taken {
            self.taken = taken;
            self.since = self.since.map(|_| now);
        }
    }
}

impl Wire {
    pub(crate) fn new(socket: Socket, codec: Codec, channel: Channel) -> Self {
        Self {
            socket,
            codec,
            sealer: channel.sealer,
            opener: channel.opener,
            queued: 0,
            stall: Stall::default(),
            plain: Vec::new(),
            opened: Vec::new(),
            opened_bytes: 0,
        }
    }

    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns whether another message may be queued.
    pub(crate) fn takes_more(&self) -> bool {
        self.queued < QUEUED_MAX
    }

    /// Returns when the connection has to be given up, unless the socket takes something.
    pub(crate) fn write_deadline(&self) -> Option<Instant> {
        self.stall.since.map(|since| since + WRITE_TIME_MAX)
    }

    /// Seals a message and queues it.
    pub(crate) fn queue<T: Serialize>(&mut self, message: &T) -> Result<(), WireError> {
        self.plain.clear();
        self.codec.encode_into(message, &mut self.plain)?;
        let mut sealed = Vec::with_capacity(self.plain.len() + 16);
        self.sealer.seal(&self.plain, &mut sealed)?;
        self.queued += sealed.len();
        self.stall.handle_queued(Instant::now());
        // What the socket does not take at once stays in its buffer: that is what `queued` counts.
        self.socket
            .start_send_unpin(Message::Binary(sealed.into()))
            .map_err(WireError::Socket)
    }

    /// Waits until something has come.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost when it is dropped.
    pub(crate) async fn next(&mut self) -> Result<Arrival, WireError> {
        std::future::poll_fn(|cx| {
            if self.queued > 0 {
                let flushed = self.socket.poll_flush_unpin(cx);
                let taken = self.socket.get_ref().written();
                self.stall.handle_taken(taken, Instant::now());
                if let Poll::Ready(flushed) = flushed {
                    flushed.map_err(WireError::Socket)?;
                    self.queued = 0;
                    self.stall.since = None;
                    return Poll::Ready(Ok(Arrival::Flushed));
                }
            }
            self.socket
                .poll_next_unpin(cx)
                .map(|message| match message {
                    Some(Ok(Message::Binary(frame))) if frame.len() <= FRAME_BYTES_MAX => {
                        Ok(Arrival::Frame(frame))
                    }
                    Some(Ok(Message::Binary(frame))) => Err(WireError::TooLong(frame.len())),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(Arrival::Noise),
                    Some(Ok(Message::Text(_) | Message::Frame(_))) => Err(WireError::Text),
                    Some(Ok(Message::Close(_))) | None => Err(WireError::Closed),
                    Some(Err(error)) => Err(WireError::Socket(error)),
                })
        })
        .await
    }

    /// Opens a frame. What it holds is read by [`Wire::decode`].
    pub(crate) fn open(&mut self, frame: &[u8]) -> Result<usize, WireError> {
        if self.opened.len() < frame.len() {
            self.opened.resize(frame.len(), 0);
        }
        self.opened_bytes = 0;
        self.opened_bytes = self.opener.open_into(frame, &mut self.opened)?;
        Ok(self.opened_bytes)
    }

    /// Reads the message in the frame that was opened last.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, WireError> {
        Ok(self.codec.decode(&self.opened[..self.opened_bytes])?)
    }

    /// Pushes out what is queued and closes the socket, at most until `deadline`. What the peer
    /// still sends is thrown away: a socket that is dropped with unread bytes is reset, and the
    /// peer would lose our last word.
    pub(crate) async fn close(mut self, deadline: Instant) {
        let close = async {
            self.socket.flush().await?;
            self.socket.close(None).await?;
            while let Some(message) = self.socket.next().await {
                message?;
            }
            Ok::<(), tungstenite::Error>(())
        };
        // It ends here either way; the peer may have gone first.
        tokio::time::timeout_at(deadline, close).await.ok();
    }

    /// Gives back what a busy time has grown.
    pub(crate) fn shrink(&mut self) {
        self.socket.get_mut().shrink();
        self.plain.clear();
        self.plain.shrink_to(IDLE_BYTES);
        self.opened_bytes = 0;
        self.opened.truncate(IDLE_BYTES);
        self.opened.shrink_to(IDLE_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_takes_little_is_not_stuck_and_one_that_takes_nothing_is() {
        let mut stall = Stall::default();
        let step = WRITE_TIME_MAX / 2;
        let began = Instant::now();
        stall.handle_queued(began);
        for number in 1..10 {
            let now = began + step * number;
            stall.handle_taken(number.into(), now);
            assert_eq!(stall.since, Some(now));
            stall.handle_queued(now);
        }
        stall.handle_taken(9, began + step * 11);
        assert_eq!(stall.since, Some(began + step * 9));
    }
}
