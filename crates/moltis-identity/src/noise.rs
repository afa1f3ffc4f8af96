//! The Noise channel: `Noise_NN_25519_<cipher>_BLAKE2s`, secrecy and integrity on any road.
//!
//! NN knows nobody: who is at the other end is proven afterwards, by signatures over the
//! [`Binding`] that both ends of a channel share. Here are the two messages of the Noise handshake
//! and the two halves of the channel. Sockets, and the frames inside, are not here.

mod resolver;
mod transport;

use moltis_proto::Subprotocol;
use moltis_proto::handshake::Binding;
use moltis_proto::limits::PLAINTEXT_BYTES_MAX;
use moltis_proto::subprotocol::{Cipher, Negotiated};
use snow::{Builder, HandshakeState};

use resolver::Resolver;
pub use transport::{Opener, Sealer};

/// Bytes of the Noise handshake's first message: one ephemeral key.
const MESSAGE_1_BYTES: usize = 32;
/// Bytes of the second: one ephemeral key and the tag of an empty payload.
const MESSAGE_2_BYTES: usize = 32 + TAG_BYTES;
/// Bytes that a frame is longer than its plaintext.
const TAG_BYTES: usize = 16;

/// What the Noise channel can fail with. The connection is then closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoiseError {
    /// A message of the Noise handshake has another length than it must have.
    #[error(
        "message {message} of the Noise handshake has {found} bytes, but {expected} are expected"
    )]
    Length {
        /// Which of the two.
        message: u8,
        /// Its length.
        found: usize,
        /// The only right length.
        expected: usize,
    },
    /// The peer's ephemeral key is zero or of low order: the secret would be known to anybody.
    #[error("the peer sent an ephemeral key of low order")]
    LowOrder,
    /// Message 2 does not open.
    #[error(
        "the gateway's Noise message does not open: the offered subprotocols were changed on the way"
    )]
    Prologue,
    /// A frame was changed, left out, repeated, or comes from another channel.
    #[error("frame {number} does not open with this channel's key")]
    Open {
        /// Its place among the frames of this direction, from 0.
        number: u64,
    },
    /// A frame cannot be one by its length.
    #[error("a frame of {found} bytes is none: expected 16 to 65535")]
    FrameLength {
        /// Its length.
        found: usize,
    },
    /// More plaintext than one frame holds.
    #[error("{found} bytes do not fit a frame of {PLAINTEXT_BYTES_MAX}")]
    TooLong {
        /// How much there was.
        found: usize,
    },
    /// The channel has failed before.
    #[error("the channel is closed by an earlier error")]
    Closed,
    /// All numbers of frames are used.
    #[error("the channel has carried as many frames as one key may")]
    Exhausted,
    /// A primitive is missing or failed: a defect of this build or of the machine.
    #[error("the Noise library failed: {0}")]
    Library(String),
}

/// One end of a channel: what to sign, and the two halves, which may live in two tasks.
#[derive(Debug)]
pub struct Channel {
    /// What both proofs are bound to.
    pub binding: Binding,
    /// Outgoing frames.
    pub sealer: Sealer,
    /// Incoming frames.
    pub opener: Opener,
}

/// The node's side of the Noise handshake.
#[derive(Debug)]
pub struct Initiator {
    state: HandshakeState,
    subprotocol: Subprotocol,
}

/// The gateway's side of the Noise handshake.
#[derive(Debug)]
pub struct Responder {
    state: HandshakeState,
    subprotocol: Subprotocol,
}

impl Initiator {
    /// Begins: returns the machine and message 1.
    ///
    /// # Errors
    /// [`NoiseError::Library`].
    pub fn new(negotiated: &Negotiated) -> Result<(Self, Vec<u8>), NoiseError> {
        Self::begin(negotiated, None)
    }

    fn begin(
        negotiated: &Negotiated,
        ephemeral: Option<&[u8; 32]>,
    ) -> Result<(Self, Vec<u8>), NoiseError> {
        let prologue = negotiated.prologue();
        let mut state = builder(negotiated.chosen, &prologue, ephemeral)?
            .build_initiator()
            .map_err(library)?;
        // snow asks for the room of a tag that this message does not have.
        let mut message_1 = vec![0; MESSAGE_1_BYTES + TAG_BYTES];
        let length = state.write_message(&[], &mut message_1).map_err(library)?;
        message_1.truncate(length);
        let subprotocol = negotiated.chosen;
        Ok((Self { state, subprotocol }, message_1))
    }

    /// Takes message 2; the channel then stands.
    ///
    /// # Errors
    /// [`NoiseError::Length`], [`NoiseError::LowOrder`], or [`NoiseError::Prologue`] when the two
    /// ends do not see the same offers and choice.
    pub fn finish(mut self, message_2: &[u8]) -> Result<Channel, NoiseError> {
        check_length(2, message_2, MESSAGE_2_BYTES)?;
        self.state
            .read_message(message_2, &mut [])
            .map_err(|error| match error {
                snow::Error::Dh => NoiseError::LowOrder,
                snow::Error::Decrypt => NoiseError::Prologue,
                other => library(other),
            })?;
        channel(self.state, self.subprotocol)
    }
}

impl Responder {
    /// Waits for message 1.
    ///
    /// # Errors
    /// [`NoiseError::Library`].
    pub fn new(negotiated: &Negotiated) -> Result<Self, NoiseError> {
        Self::begin(negotiated, None)
    }

    fn begin(negotiated: &Negotiated, ephemeral: Option<&[u8; 32]>) -> Result<Self, NoiseError> {
        let prologue = negotiated.prologue();
        let state = builder(negotiated.chosen, &prologue, ephemeral)?
            .build_responder()
            .map_err(library)?;
        let subprotocol = negotiated.chosen;
        Ok(Self { state, subprotocol })
    }

    /// Takes message 1 and returns message 2 and the channel, which then stands.
    ///
    /// # Errors
    /// [`NoiseError::Length`] or [`NoiseError::LowOrder`].
    pub fn respond(mut self, message_1: &[u8]) -> Result<(Channel, Vec<u8>), NoiseError> {
        check_length(1, message_1, MESSAGE_1_BYTES)?;
        self.state
            .read_message(message_1, &mut [])
            .map_err(library)?;
        let mut message_2 = vec![0; MESSAGE_2_BYTES];
        self.state
            .write_message(&[], &mut message_2)
            .map_err(|error| match error {
                snow::Error::Dh => NoiseError::LowOrder,
                other => library(other),
            })?;
        Ok((channel(self.state, self.subprotocol)?, message_2))
    }
}

/// Returns what a node offers, best first: AES leads where the CPU computes it.
pub fn preferred_offers() -> Vec<Subprotocol> {
    if cpu_has_aes() {
        vec![Subprotocol::PostcardAes, Subprotocol::Postcard]
    } else {
        vec![Subprotocol::Postcard]
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn cpu_has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_has_aes() -> bool {
    false
}

fn builder<'a>(
    subprotocol: Subprotocol,
    prologue: &'a [u8],
    ephemeral: Option<&'a [u8; 32]>,
) -> Result<Builder<'a>, NoiseError> {
    let pattern = match subprotocol.cipher() {
        Cipher::ChaChaPoly => "Noise_NN_25519_ChaChaPoly_BLAKE2s",
        Cipher::AesGcm => "Noise_NN_25519_AESGCM_BLAKE2s",
    };
    let params = pattern.parse().map_err(library)?;
    let builder = Builder::with_resolver(params, Box::new(Resolver::new()))
        .prologue(prologue)
        .map_err(library)?;
    Ok(match ephemeral {
        Some(ephemeral) => builder.fixed_ephemeral_key_for_testing_only(ephemeral),
        None => builder,
    })
}

fn channel(state: HandshakeState, subprotocol: Subprotocol) -> Result<Channel, NoiseError> {
    let hash = <[u8; 32]>::try_from(state.get_handshake_hash())
        .map_err(|_| NoiseError::Library("a handshake hash is not 32 bytes".to_owned()))?;
    let (sealer, opener) = transport::split(state)?;
    Ok(Channel {
        binding: Binding { hash, subprotocol },
        sealer,
        opener,
    })
}

fn check_length(message: u8, bytes: &[u8], expected: usize) -> Result<(), NoiseError> {
    if bytes.len() == expected {
        return Ok(());
    }
    Err(NoiseError::Length {
        message,
        found: bytes.len(),
        expected,
    })
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that `map_err` wants"
)]
fn library(error: snow::Error) -> NoiseError {
    NoiseError::Library(error.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
