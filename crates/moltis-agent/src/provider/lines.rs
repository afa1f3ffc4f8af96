//! Lines of an answer, out of pieces that are cut anywhere.

use bytes::BytesMut;
use tokio_util::codec::{Decoder as _, LinesCodec, LinesCodecError};

use super::dialect::NoAnswer;

/// Bytes of one line. The longest that anybody has reason to send is the arguments of a tool call.
pub(super) const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Cuts bytes into lines, each at most [`LINE_BYTES_MAX`] long.
#[derive(Debug)]
pub(super) struct Lines {
    codec: LinesCodec,
    waiting: BytesMut,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self {
            codec: LinesCodec::new_with_max_length(LINE_BYTES_MAX),
            waiting: BytesMut::new(),
        }
    }

    /// Takes a piece, and hands on each line that is whole, without its end.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        mut handle: impl FnMut(&str) -> Result<(), NoAnswer>,
    ) -> Result<(), NoAnswer> {
        self.waiting.extend_from_slice(piece);
        while let Some(line) = self.codec.decode(&mut self.waiting).map_err(why)? {
            handle(&line)?;
        }
        Ok(())
    }

    /// Hands on what stands behind the last end of a line.
    pub(super) fn finish(
        &mut self,
        mut handle: impl FnMut(&str) -> Result<(), NoAnswer>,
    ) -> Result<(), NoAnswer> {
        while let Some(line) = self.codec.decode_eof(&mut self.waiting).map_err(why)? {
            handle(&line)?;
        }
        Ok(())
    }
}

fn why(error: LinesCodecError) -> NoAnswer {
    match error {
        LinesCodecError::MaxLineLengthExceeded => {
            NoAnswer::TooMuch(format!("a line is longer than {LINE_BYTES_MAX} bytes"))
        }
        LinesCodecError::Io(error) => NoAnswer::Unreadable {
            expected: "a line of text".to_owned(),
            found: error.to_string(),
        },
    }
}
