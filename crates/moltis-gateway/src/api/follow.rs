//! The frames of `GET runs/{id}/follow`: what `exec`, `attach` and the web UI read.
//!
//! A frame is u8 kind, u64 offset, u32 length, all big-endian, then so many bytes. Kinds are 1
//! stdout, 2 stderr, 3 gap, 4 ended, 5 keep-alive; gap and ended carry JSON, a keep-alive nothing.
//! The server writes [`header`] and then the bytes as they lie in memory; a client feeds a
//! [`Decoder`] what it reads. Nothing here reads or writes a socket.

use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::runs::{Run, Stream};

/// The media type of such a body.
pub const MEDIA_TYPE: &str = "application/vnd.moltis.follow";

/// What such a body is, in words.
pub const IN_WORDS: &str = "Frames of u8 kind, u64 offset, u32 length, big-endian, then so many \
bytes: 1 stdout, 2 stderr, 3 a gap (a `Gap` as JSON), 4 the end (a `Run` as JSON, and the last \
frame), 5 keep-alive. A body that ends without a frame of kind 4 was cut: go on with another \
request from the offsets that were reached.";

/// Bytes before those of the frame.
pub const HEADER_BYTES: usize = 13;

/// Bytes of one frame behind its header, at the most: a decoder never holds more than this.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// One thing that happened to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes that the command wrote.
    Output {
        /// To which of the two.
        stream: Stream,
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Bytes that it wrote and that are gone.
    Gap(Gap),
    /// It is over, and all of its output came before. The last frame.
    Ended(Box<Run>),
    /// Nothing happened for a while.
    KeepAlive,
}

/// Bytes that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// Of which output.
    pub stream: Stream,
    /// Offset of the first byte that is gone.
    pub from: u64,
    /// Offset behind the last one.
    pub to: u64,
    /// Why.
    pub reason: GapReason,
}

/// Why bytes of an output are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GapReason {
    /// There was more than is kept of one run.
    Limit,
    /// The disk was full.
    DiskFull,
    /// The disk failed.
    DiskFailed,
    /// The node had freed them: the gateway had acknowledged them once.
    Freed,
    /// The keeper that held them died.
    KeeperDied,
    /// The machine that held them, the gateway's or the node's, lost power before they were on its
    /// disk.
    PowerCut,
    /// A reason of a newer gateway; never sent.
    #[serde(other)]
    #[schemars(skip)]
    Unrecognised,
}

impl fmt::Display for GapReason {
    /// As a person reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "more was printed than is kept",
            Self::DiskFull => "the disk was full",
            Self::DiskFailed => "the disk failed",
            Self::Freed => "their node had given them to a gateway that does not have them",
            Self::KeeperDied => "the keeper that held them died",
            Self::PowerCut => "their machine lost its power before they were on its disk",
            Self::Unrecognised => "for a reason that a newer gateway knows",
        })
    }
}

/// Why a body is not made of frames.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// More bytes than a frame may hold.
    #[error(
        "a frame of kind {kind} announces {found} bytes: at most {FRAME_BYTES_MAX} are allowed"
    )]
    TooLong {
        /// Its kind.
        kind: u8,
        /// The length it announces.
        found: u32,
    },
    /// The JSON of a gap or an ending cannot be read.
    #[error("the JSON in a frame of kind {kind} cannot be read")]
    Json {
        /// Its kind.
        kind: u8,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const GAP: u8 = 3;
const ENDED: u8 = 4;
const KEEP_ALIVE: u8 = 5;

impl Frame {
    /// Returns the header, and the bytes that follow it. Output is not copied.
    pub fn encode(self) -> (Bytes, Bytes) {
        match self {
            Self::Output {
                stream,
                offset,
                bytes,
            } => (header(kind_of(stream), offset, bytes.len()), bytes),
            Self::Gap(gap) => {
                let json = to_json(&gap);
                (header(GAP, gap.from, json.len()), json)
            }
            Self::Ended(run) => {
                let json = to_json(&run);
                (header(ENDED, 0, json.len()), json)
            }
            Self::KeepAlive => (header(KEEP_ALIVE, 0, 0), Bytes::new()),
        }
    }
}

/// Takes a body in pieces of any size and gives its frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next whole frame, or `None` until more is fed. Frames of a kind that this
    /// version does not know are skipped.
    ///
    /// # Errors
    /// The body is not made of frames; nothing that follows can be trusted.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let Some(mut head) = self.buffer.get(..HEADER_BYTES) else {
                return Ok(None);
            };
            let (kind, offset, length) = (head.get_u8(), head.get_u64(), head.get_u32());
            let found = length;
            let length = usize::try_from(length)
                .ok()
                .filter(|length| *length <= FRAME_BYTES_MAX)
                .ok_or(FrameError::TooLong { kind, found })?;
            if self.buffer.len() - HEADER_BYTES < length {
                self.buffer
                    .reserve(HEADER_BYTES + length - self.buffer.len());
                return Ok(None);
            }
            self.buffer.advance(HEADER_BYTES);
            let bytes = self.buffer.split_to(length).freeze();
            if let Some(frame) = read(kind, offset, bytes)? {
                return Ok(Some(frame));
            }
        }
    }

    /// Returns what came of an output frame whose end has not come: to be asked for behind a cut, so
    /// that a road that carries less than a frame at a time still carries the output.
    pub fn take_torn(&mut self) -> Option<Frame> {
        let mut head = self.buffer.get(..HEADER_BYTES)?;
        let (kind, offset) = (head.get_u8(), head.get_u64());
        let bytes = std::mem::take(&mut self.buffer).split_off(HEADER_BYTES);
        let is_output = [STDOUT, STDERR].contains(&kind) && !bytes.is_empty();
        let frame = is_output.then(|| read(kind, offset, bytes.freeze()));
        frame?.ok()?
    }

    /// Returns whether the body stopped in the middle of a frame.
    pub fn is_torn(&self) -> bool {
        !self.buffer.is_empty()
    }
}

fn read(kind: u8, offset: u64, bytes: Bytes) -> Result<Option<Frame>, FrameError> {
    let output = |stream, bytes| Frame::Output {
        stream,
        offset,
        bytes,
    };
    Ok(Some(match kind {
        STDOUT => output(Stream::Stdout, bytes),
        STDERR => output(Stream::Stderr, bytes),
        GAP => Frame::Gap(from_json(kind, &bytes)?),
        ENDED => Frame::Ended(from_json(kind, &bytes)?),
        KEEP_ALIVE => Frame::KeepAlive,
        _ => return Ok(None),
    }))
}

fn kind_of(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => STDOUT,
        Stream::Stderr => STDERR,
    }
}

fn header(kind: u8, offset: u64, length: usize) -> Bytes {
    let length = u32::try_from(length).expect("frames are shorter than 4 GiB");
    let mut head = BytesMut::with_capacity(HEADER_BYTES);
    head.put_u8(kind);
    head.put_u64(offset);
    head.put_u32(length);
    head.freeze()
}

fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value)
        .expect("these types have string keys and no failing serializer")
        .into()
}

fn from_json<'a, T: Deserialize<'a>>(kind: u8, bytes: &'a [u8]) -> Result<T, FrameError> {
    serde_json::from_slice(bytes).map_err(|source| FrameError::Json { kind, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_kinds() -> Vec<Frame> {
        let run = serde_json::json!({
            "id": "00", "node": "local", "node_name": "local", "state": "ended",
            "outcome": "exited", "exit_code": 0, "tty": false, "requested_by": "operator",
            "created_at": "2026-01-02T03:04:05Z", "stdout_bytes": 3, "stderr_bytes": 9,
            "reachable": true, "unclaimed": false,
        });
        vec![
            Frame::Output {
                stream: Stream::Stdout,
                offset: 0,
                bytes: Bytes::from_static(b"abc"),
            },
            Frame::KeepAlive,
            Frame::Gap(Gap {
                stream: Stream::Stderr,
                from: 2,
                to: 1 << 40,
                reason: GapReason::Limit,
            }),
            Frame::Output {
                stream: Stream::Stderr,
                offset: 1 << 40,
                bytes: Bytes::from_static(b"\x00\xff"),
            },
            Frame::Ended(serde_json::from_value(run).unwrap()),
        ]
    }

    fn encoded(frames: &[Frame]) -> Vec<u8> {
        let mut body = Vec::new();
        for frame in frames {
            let (head, bytes) = frame.clone().encode();
            body.extend_from_slice(&head);
            body.extend_from_slice(&bytes);
        }
        body
    }

    #[test]
    fn frames_survive_any_cutting_of_the_body() {
        let frames = all_kinds();
        let body = encoded(&frames);
        for piece in [1, 2, 12, 13, 14, 100, body.len()] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for bytes in body.chunks(piece) {
                decoder.feed(bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames, "in pieces of {piece}");
            assert!(!decoder.is_torn());
        }
    }

    #[test]
    fn a_header_is_thirteen_bytes_big_endian() {
        let (head, bytes) = Frame::Output {
            stream: Stream::Stderr,
            offset: 0x0102,
            bytes: Bytes::from_static(b"xyz"),
        }
        .encode();
        assert_eq!(head[..], [2, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]);
        assert_eq!(bytes, "xyz");
    }

    #[test]
    fn a_kind_of_a_newer_gateway_is_skipped() {
        let mut decoder = Decoder::default();
        decoder.feed(&[9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'?']);
        decoder.feed(&encoded(&[Frame::KeepAlive]));
        assert_eq!(decoder.next_frame().unwrap(), Some(Frame::KeepAlive));
        assert_eq!(decoder.next_frame().unwrap(), None);
    }

    #[test]
    fn a_frame_too_long_to_hold_is_refused_before_it_is_read() {
        let mut decoder = Decoder::default();
        decoder.feed(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0]);
        assert!(matches!(
            decoder.next_frame(),
            Err(FrameError::TooLong { kind: 1, .. })
        ));
    }

    #[test]
    fn of_a_torn_output_the_beginning_counts_and_of_anything_else_nothing() {
        for frame in all_kinds() {
            let body = encoded(std::slice::from_ref(&frame));
            for length in 0..body.len() {
                let mut decoder = Decoder::default();
                decoder.feed(&body[..length]);
                assert_eq!(decoder.next_frame().unwrap(), None);
                let torn = decoder.take_torn();
                match (torn, frame.clone()) {
                    (
                        Some(Frame::Output {
                            stream,
                            offset,
                            bytes,
                        }),
                        Frame::Output {
                            stream: wanted,
                            offset: from,
                            bytes: all,
                        },
                    ) => {
                        assert_eq!((stream, offset), (wanted, from));
                        assert_eq!(bytes, all[..length - HEADER_BYTES]);
                    }
                    (torn, Frame::Output { .. }) => {
                        assert!(torn.is_none() && length <= HEADER_BYTES);
                    }
                    (torn, _) => assert_eq!(torn, None),
                }
                assert!(!decoder.is_torn() || length < HEADER_BYTES);
            }
        }
    }

    #[test]
    fn a_body_that_stops_in_a_frame_is_torn() {
        let mut decoder = Decoder::default();
        decoder.feed(&encoded(&all_kinds()[..1])[..15]);
        assert_eq!(decoder.next_frame().unwrap(), None);
        assert!(decoder.is_torn());
    }
}
