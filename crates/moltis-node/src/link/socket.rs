//! An upgraded socket with its Noise channel, and what its failures mean.

use std::io;

use moltis_identity::noise::{Opener, Sealer};
use moltis_proto::Codec;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::ProtocolError;

use super::dial::Socket;
use crate::error::{LinkError, Step};

/// A channel to a gateway: frames go in and out sealed.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) socket: Socket,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) codec: Codec,
}

/// Turns a failure of the socket into words. `during` is `None` once the node was accepted.
pub(super) fn broken(error: Error, during: Option<Step>) -> LinkError {
    match error {
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            LinkError::Hangup { during }
        }
        Error::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            LinkError::Hangup { during }
        }
        Error::Io(source) => LinkError::Broken(source),
        Error::Capacity(_) => LinkError::Protocol("a message is longer than a frame may be"),
        Error::Protocol(_) | Error::Utf8(_) | Error::AttackAttempt => {
            LinkError::Protocol("what came is no WebSocket message")
        }
        other => LinkError::Broken(io::Error::other(other)),
    }
}
