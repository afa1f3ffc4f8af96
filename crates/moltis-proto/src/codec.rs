//! Bytes to message and back, in either codec. Size is checked before parsing.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::PLAINTEXT_BYTES_MAX;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// postcard 1: compact and fast; what our own ends speak.
    Postcard,
    /// JSON (RFC 8259): for nodes written where postcard is not at hand.
    Json,
}

/// Why bytes are not a message, or a message does not become bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A frame, or the message for one, is longer than a frame may be.
    #[error("a message of {found} bytes does not fit a frame of {max}")]
    TooLong {
        /// Its length.
        found: usize,
        /// The longest.
        max: usize,
    },
    /// Bytes remain behind the message.
    #[error("{0} bytes are left over behind the message")]
    Leftover(usize),
    /// Not a message of the expected type.
    #[error("not a message")]
    Postcard(#[source] postcard::Error),
    /// Not a message of the expected type.
    #[error("not a message")]
    Json(#[source] serde_json::Error),
}

impl Codec {
    /// Appends the message to `out`.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] when the message does not fit one frame; `out` is then as before.
    pub fn encode_into<T: Serialize>(
        self,
        message: &T,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let start = out.len();
        match self {
            Self::Postcard => {
                postcard::to_io(message, &mut *out).map_err(CodecError::Postcard)?;
            }
            Self::Json => {
                serde_json::to_writer(&mut *out, message).map_err(CodecError::Json)?;
            }
        }
        let found = out.len() - start;
        if found > PLAINTEXT_BYTES_MAX {
            out.truncate(start);
            return Err(CodecError::TooLong {
                found,
                max: PLAINTEXT_BYTES_MAX,
            });
        }
        Ok(())
    }

    /// Returns the message as bytes.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] when the message does not fit one frame.
    pub fn encode<T: Serialize>(self, message: &T) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::with_capacity(128);
        self.encode_into(message, &mut out)?;
        Ok(out)
    }

    /// Reads one message that fills `bytes` to the last.
    ///
    /// # Errors
    /// Every way in which bytes are not such a message; none of them allocates more than the bytes
    /// that are there.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, CodecError> {
        if bytes.len() > PLAINTEXT_BYTES_MAX {
            return Err(CodecError::TooLong {
                found: bytes.len(),
                max: PLAINTEXT_BYTES_MAX,
            });
        }
        match self {
            Self::Postcard => {
                let (message, rest) =
                    postcard::take_from_bytes(bytes).map_err(CodecError::Postcard)?;
                if !rest.is_empty() {
                    return Err(CodecError::Leftover(rest.len()));
                }
                Ok(message)
            }
            Self::Json => serde_json::from_slice(bytes).map_err(CodecError::Json),
        }
    }
}
