//! The two halves of a channel that stands. Each counts its own frames, so neither waits for the
//! other and both may be used at once.

use std::sync::Arc;

use moltis_proto::limits::{FRAME_BYTES_MAX, PLAINTEXT_BYTES_MAX};
use snow::{HandshakeState, StatelessTransportState};

use super::{NoiseError, TAG_BYTES, library};

/// Seals outgoing frames, in the order in which they must be sent.
#[derive(Debug)]
pub struct Sealer {
    transport: Arc<StatelessTransportState>,
    counter: Counter,
}

/// Opens incoming frames, in the order in which they were sealed.
#[derive(Debug)]
pub struct Opener {
    transport: Arc<StatelessTransportState>,
    counter: Counter,
}

/// The number of the next frame; `None` once the half has failed.
#[derive(Debug)]
struct Counter(Option<u64>);

pub(super) fn split(state: HandshakeState) -> Result<(Sealer, Opener), NoiseError> {
    let transport = Arc::new(state.into_stateless_transport_mode().map_err(library)?);
    let sealer = Sealer {
        transport: Arc::clone(&transport),
        counter: Counter(Some(0)),
    };
    let opener = Opener {
        transport,
        counter: Counter(Some(0)),
    };
    Ok((sealer, opener))
}

impl Sealer {
    /// Appends one frame to `out`: the plaintext, sealed, and 16 bytes. Allocates only where `out`
    /// has too little room.
    ///
    /// # Errors
    /// [`NoiseError::TooLong`], and the channel goes on; after any other error it is closed.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            return Err(NoiseError::TooLong {
                found: plaintext.len(),
            });
        }
        let number = self.counter.next()?;
        let start = out.len();
        out.resize(start + plaintext.len() + TAG_BYTES, 0);
        let sealed = self
            .transport
            .write_message(number, plaintext, &mut out[start..]);
        sealed.map_err(|error| {
            out.truncate(start);
            self.counter.close();
            library(error)
        })?;
        Ok(())
    }
}

impl Opener {
    /// Appends the plaintext of one frame to `out`. Allocates only where `out` has too little room.
    ///
    /// # Errors
    /// `out` is then as before, and the channel is closed for good.
    pub fn open(&mut self, frame: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let start = out.len();
        out.resize(start + frame.len(), 0);
        let opened = self.open_into(frame, &mut out[start..]);
        out.truncate(start + opened.as_ref().copied().unwrap_or(0));
        opened.map(drop)
    }

    /// Writes the plaintext of one frame to the front of `out` and returns its length. `out` must be
    /// as long as the frame; what is behind the plaintext is of no use afterwards.
    ///
    /// # Errors
    /// The channel is closed for good.
    ///
    /// # Panics
    /// If `out` is shorter than `frame`.
    pub fn open_into(&mut self, frame: &[u8], out: &mut [u8]) -> Result<usize, NoiseError> {
        let number = self.counter.next()?;
        if !(TAG_BYTES..=FRAME_BYTES_MAX).contains(&frame.len()) {
            self.counter.close();
            return Err(NoiseError::FrameLength { found: frame.len() });
        }
        // ring opens in place: with room for the tag as well snow needs no buffer of its own.
        let opened = self
            .transport
            .read_message(number, frame, &mut out[..frame.len()]);
        opened.map_err(|_| {
            self.counter.close();
            NoiseError::Open { number }
        })
    }
}

/// What the fuzz targets need: a channel at its first frame without a handshake for each. Never in a
/// build for anything else: a key that numbers two frames alike hides neither.
#[cfg(fuzzing)]
impl Sealer {
    #[doc(hidden)]
    pub fn rewound(&self) -> Self {
        Self {
            transport: Arc::clone(&self.transport),
            counter: Counter(Some(0)),
        }
    }
}

#[cfg(fuzzing)]
impl Opener {
    #[doc(hidden)]
    pub fn rewound(&self) -> Self {
        Self {
            transport: Arc::clone(&self.transport),
            counter: Counter(Some(0)),
        }
    }
}

impl Counter {
    /// Takes a number. The highest is never used: Noise keeps it for itself (specification, 5.1).
    fn next(&mut self) -> Result<u64, NoiseError> {
        let number = self.0.ok_or(NoiseError::Closed)?;
        if number == u64::MAX {
            return Err(NoiseError::Exhausted);
        }
        self.0 = Some(number + 1);
        Ok(number)
    }

    fn close(&mut self) {
        self.0 = None;
    }
}
