//! Frames on a keeper's socket: a length of four bytes, big-endian, then one message in postcard.
//!
//! Used by the keeper and by its clients: the link, the gateway's connector for `local`, and the
//! command line. A link that only passes messages through takes them as [`FrameReader::next`]
//! gives them: the bytes of a `FromKeeper` behind one byte for `ToGateway::Run` are that message.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use moltis_proto::codec::{Codec, CodecError};
use moltis_proto::limits::PLAINTEXT_BYTES_MAX;
use moltis_proto::run::Stream;
use moltis_proto::{FromKeeper, Payload, RunId, RunRefusal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes of the length before each message.
pub const PREFIX_BYTES: usize = 4;

/// A frame without bytes, which no message is: the last word of a keeper whose client broke a rule.
pub(crate) const RULE_BROKEN: [u8; PREFIX_BYTES] = [0; PREFIX_BYTES];

/// Bytes that a reader asks the socket for at once: some frames full of output.
const READ_BYTES: usize = 256 * 1024;

/// Why frames could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The socket failed.
    #[error("the keeper's socket failed")]
    Io(#[source] std::io::Error),
    /// A frame announces more bytes than a frame may have, or none.
    #[error("a frame of {found} bytes: expected 1 to {PLAINTEXT_BYTES_MAX}")]
    Length {
        /// The bytes that it announces.
        found: usize,
    },
    /// The keeper's last word: its client broke a rule.
    #[error("the keeper says that its client broke a rule")]
    RuleBroken,
    /// The socket ended inside a frame.
    #[error("the keeper's socket ended inside a frame")]
    Cut,
    /// A frame is not the message that belongs here.
    #[error("a frame is not a run message")]
    Message(#[source] CodecError),
}

/// The first byte of a [`FromKeeper::Refused`] in postcard.
const REFUSED: u8 = 3;

/// Returns whether a frame of a keeper says that it takes no new runs, because it leaves.
pub(crate) fn says_leaving(frame: &[u8]) -> bool {
    frame.first() == Some(&REFUSED)
        && matches!(
            decode(frame),
            Ok(FromKeeper::Refused {
                code: RunRefusal::Leaving,
                ..
            })
        )
}

/// The first byte of a [`FromKeeper::Output`] in postcard.
const OUTPUT: u8 = 4;

/// Returns whether a frame of a keeper is output.
pub(crate) fn is_output(frame: &[u8]) -> bool {
    frame.first() == Some(&OUTPUT)
}

/// The first byte of a [`FromKeeper::Runs`] in postcard.
const RUNS: u8 = 0;

/// Returns the run that a frame of a keeper is about: all but the list of runs begin with its id.
pub(crate) fn run_of(frame: &[u8]) -> Option<RunId> {
    let (first, rest) = frame.split_first()?;
    if *first == RUNS {
        return None;
    }
    postcard::take_from_bytes(rest)
        .ok()
        .map(|(run_id, _)| run_id)
}

/// What stands in front of the bytes of an [`FromKeeper::Output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutputHead {
    pub(crate) run_id: RunId,
    pub(crate) stream: Stream,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Returns the head of a keeper's frame of output without looking at its bytes; `None` when it is
/// another message.
pub(crate) fn output_head(frame: &[u8]) -> Option<OutputHead> {
    let rest = frame.strip_prefix(&[OUTPUT])?;
    let (head, _bytes) = postcard::take_from_bytes(rest).ok()?;
    let (run_id, stream, offset, length) = head;
    Some(OutputHead {
        run_id,
        stream,
        offset,
        length,
    })
}

/// Reads frames from one half of a socket.
#[derive(Debug)]
pub struct FrameReader<R> {
    half: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `half`.
    pub fn new(half: R) -> Self {
        Self {
            half,
            buffer: BytesMut::new(),
        }
    }

    /// Returns the next frame without its length; `None` when the socket ended between two frames.
    ///
    /// # Errors
    /// [`WireError`]; the reader is of no use after it.
    ///
    /// # Cancel safety
    /// Cancel safe: bytes that were read stay in the reader.
    pub async fn next(&mut self) -> Result<Option<Bytes>, WireError> {
        let frame = self.next_behind(0).await?;
        Ok(frame.map(|mut frame| frame.split_off(1)))
    }

    /// As [`next`](Self::next), with `first` in front of the frame, in the place of the last byte of
    /// its length: a message that holds this one begins so, and nothing is copied for it.
    pub(crate) async fn next_behind(&mut self, first: u8) -> Result<Option<Bytes>, WireError> {
        loop {
            let framed = take_framed(&mut self.buffer).map_err(|error| match error {
                WireError::Length { found: 0 } => WireError::RuleBroken,
                error => error,
            });
            if let Some(mut framed) = framed? {
                framed.advance(PREFIX_BYTES - 1);
                framed[0] = first;
                return Ok(Some(framed.freeze()));
            }
            if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 4 {
                self.buffer.reserve(READ_BYTES);
            }
            let read = self.half.read_buf(&mut self.buffer).await;
            if read.map_err(WireError::Io)? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(WireError::Cut)
                };
            }
        }
    }

    /// Returns the next frame as a message; `None` when the socket ended between two frames.
    ///
    /// # Errors
    /// [`WireError`]; the reader is of no use after it.
    ///
    /// # Cancel safety
    /// Cancel safe, as [`FrameReader::next`].
    pub async fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        self.next().await?.map(|frame| decode(&frame)).transpose()
    }
}

/// Writes frames to one half of a socket.
#[derive(Debug)]
pub struct FrameWriter<W> {
    half: W,
    frame: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to `half`.
    pub fn new(half: W) -> Self {
        Self {
            half,
            frame: Vec::new(),
        }
    }

    /// Writes one message.
    ///
    /// # Errors
    /// [`WireError::Message`] when it does not fit a frame: nothing was written then.
    ///
    /// # Cancel safety
    /// Not cancel safe: a frame may be written in part.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), WireError> {
        self.frame.clear();
        encode_into(message, &mut self.frame)?;
        self.half
            .write_all(&self.frame)
            .await
            .map_err(WireError::Io)
    }

    /// Writes one frame whose message is encoded already.
    ///
    /// # Errors
    /// [`WireError::Length`] when it does not fit a frame: nothing was written then.
    ///
    /// # Cancel safety
    /// Not cancel safe: a frame may be written in part.
    pub async fn send_encoded(&mut self, message: &[u8]) -> Result<(), WireError> {
        if !(1..=PLAINTEXT_BYTES_MAX).contains(&message.len()) {
            return Err(WireError::Length {
                found: message.len(),
            });
        }
        self.frame.clear();
        self.frame.put_u32(prefix(message.len()));
        self.frame.extend_from_slice(message);
        self.half
            .write_all(&self.frame)
            .await
            .map_err(WireError::Io)
    }
}

/// Appends one message with its length.
///
/// # Errors
/// [`WireError::Message`] when it does not fit a frame; `out` is then as before.
pub fn encode_into<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), WireError> {
    let start = out.len();
    out.put_u32(0);
    if let Err(error) = Codec::Postcard.encode_into(message, out) {
        out.truncate(start);
        return Err(WireError::Message(error));
    }
    let length = prefix(out.len() - start - PREFIX_BYTES);
    out[start..start + PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Appends a message that is encoded already, and fits a frame, with its length.
pub(crate) fn frame_into(message: &[u8], out: &mut BytesMut) {
    out.reserve(PREFIX_BYTES + message.len());
    out.put_u32(prefix(message.len()));
    out.put_slice(message);
}

/// Reads one message that fills the frame.
///
/// # Errors
/// [`WireError::Message`].
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, WireError> {
    Codec::Postcard.decode(frame).map_err(WireError::Message)
}

/// Appends everything of an `Output` frame that stands before its `bytes_len` bytes, so that they
/// can be written behind it without being copied.
pub(crate) fn output_header_into(
    run_id: RunId,
    stream: Stream,
    offset: u64,
    bytes_len: usize,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let start = out.len();
    let empty = FromKeeper::Output {
        run_id,
        stream,
        offset,
        bytes: Payload::default(),
    };
    encode_into(&empty, out)?;
    // The last byte is the length of an empty payload: 0. A varint of the true length follows.
    out.pop();
    let mut rest = bytes_len;
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
    let length = prefix(out.len() - start - PREFIX_BYTES + bytes_len);
    out[start..start + PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Takes one frame from the front of the buffer, when it is there as a whole.
pub(crate) fn take_frame(buffer: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
    let framed = take_framed(buffer)?;
    Ok(framed.map(|framed| framed.freeze().split_off(PREFIX_BYTES)))
}

/// Takes one frame with its length in front.
fn take_framed(buffer: &mut BytesMut) -> Result<Option<BytesMut>, WireError> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let found = u32::from_be_bytes(*prefix) as usize;
    if !(1..=PLAINTEXT_BYTES_MAX).contains(&found) {
        return Err(WireError::Length { found });
    }
    if buffer.len() < PREFIX_BYTES + found {
        return Ok(None);
    }
    Ok(Some(buffer.split_to(PREFIX_BYTES + found)))
}

/// The length as it is written: callers have checked that it is at most a frame.
fn prefix(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_output_is_read_without_its_bytes_and_nothing_else_has_one() {
        let run_id = RunId::from_bytes([7; 16]);
        for (stream, offset, length) in [(Stream::Stdout, 0, 1), (Stream::Stderr, 1 << 50, 60_000)]
        {
            let output = FromKeeper::Output {
                run_id,
                stream,
                offset,
                bytes: Payload(vec![0xff; length].into()),
            };
            let frame = Codec::Postcard.encode(&output).unwrap();
            let length = length as u64;
            let expected = OutputHead {
                run_id,
                stream,
                offset,
                length,
            };
            assert_eq!(output_head(&frame), Some(expected));
            assert!(!says_leaving(&frame));
        }
        let refused = |code| {
            let message = FromKeeper::Refused { run_id, code };
            Codec::Postcard.encode(&message).unwrap()
        };
        assert_eq!(output_head(&refused(RunRefusal::Leaving)), None);
        assert!(says_leaving(&refused(RunRefusal::Leaving)));
        assert!(!says_leaving(&refused(RunRefusal::TooMany)));
    }

    #[tokio::test]
    async fn messages_cross_whatever_the_pieces_are() {
        let (near, far) = tokio::io::duplex(7);
        let sent: Vec<FromKeeper> = (1..50u64)
            .map(|number| FromKeeper::StdinAck {
                run_id: RunId::from_bytes([1; 16]),
                offset: number << number,
                closed: false,
            })
            .collect();
        let messages = sent.clone();
        let writing = async move {
            let mut writer = FrameWriter::new(near);
            for message in &messages {
                writer.send(message).await.unwrap();
            }
        };
        let reading = async move {
            let mut reader = FrameReader::new(far);
            let mut got = Vec::new();
            while let Some(message) = reader.message::<FromKeeper>().await.unwrap() {
                got.push(message);
            }
            got
        };
        let ((), got) = tokio::join!(writing, reading);
        assert_eq!(got, sent);
    }

    #[test]
    fn the_header_of_an_output_and_its_bytes_are_that_message() {
        for length in [1, 127, 128, 16_383, 16_384, 61_440] {
            let bytes = Bytes::from(vec![7; length]);
            let (run_id, stream, offset) = (RunId::from_bytes([9; 16]), Stream::Stderr, 1 << 40);
            let mut frame = Vec::new();
            output_header_into(run_id, stream, offset, length, &mut frame).unwrap();
            frame.extend_from_slice(&bytes);
            let mut whole = Vec::new();
            let message = FromKeeper::Output {
                run_id,
                stream,
                offset,
                bytes: bytes.into(),
            };
            encode_into(&message, &mut whole).unwrap();
            assert_eq!(frame, whole, "{length}");
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_anything_is_kept() {
        for found in [0, prefix(PLAINTEXT_BYTES_MAX + 1), u32::MAX] {
            let mut buffer = BytesMut::from(&found.to_be_bytes()[..]);
            assert!(take_frame(&mut buffer).is_err(), "{found}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_ends_inside_a_frame_is_told_apart_from_an_end() {
        let mut reader = FrameReader::new(&[0, 0, 0, 9, 1][..]);
        assert!(matches!(reader.next().await, Err(WireError::Cut)));
        let mut reader = FrameReader::new(&[][..]);
        assert!(matches!(reader.next().await, Ok(None)));
    }
}
