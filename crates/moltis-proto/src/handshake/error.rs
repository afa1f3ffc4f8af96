//! What a handshake can fail with. Every one of these has closed its machine for good.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::code::Refusal;
use crate::key::{Digest, PublicKey};
use crate::limits::{HANDSHAKE_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use crate::version::{Ledger, LedgerRange};

/// Whose proof an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Step 3.
    Gateway,
    /// Step 4.
    Node,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::Node => "node",
        })
    }
}

/// Why a handshake ended without trust.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// A message came when another was due, or after the end.
    #[error("a `{found}` came out of turn: the handshake was waiting for {awaited}")]
    OutOfTurn {
        /// The message that came.
        found: &'static str,
        /// What was due.
        awaited: &'static str,
    },
    /// A frame is longer than a stranger's may be.
    #[error(
        "a frame of {found} bytes is too long before acceptance: at most {HANDSHAKE_FRAME_BYTES_MAX}"
    )]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// All frames together are more than a stranger's may be.
    #[error("the peer sent more than {HANDSHAKE_BYTES_MAX} bytes before acceptance")]
    TooMuch,
    /// The key is not a canonical point of large order.
    #[error("the {proof} showed a weak or malformed key: any signature fits such a key")]
    WeakKey {
        /// Whose.
        proof: Proof,
    },
    /// The signature is not that of the key, over this channel and these fields.
    #[error("the {proof}'s proof is not signed by its key for this connection")]
    Signature {
        /// Whose.
        proof: Proof,
    },
    /// The peer proved to hold our own key: a copied key file, or our own connection led back.
    #[error(
        "the peer holds our own key: one key file serves two programs, or the address leads back to ourselves"
    )]
    OwnKey,
    /// The gateway proved another key than the pinned one.
    #[error(
        "the gateway's key is {}, but {} is pinned",
        fingerprint(found),
        fingerprint(pinned)
    )]
    GatewayKeyChanged {
        /// Fingerprint of the pinned key.
        pinned: Digest,
        /// Fingerprint of the key that the gateway proved.
        found: Digest,
        /// That key.
        found_key: PublicKey,
    },
    /// Node and gateway have no ledger number in common. Seen by the node.
    #[error(
        "the gateway speaks protocol {theirs}, this node {ours}: update the {}", older(*ours, *theirs)
    )]
    NoCommonLedger {
        /// What the node speaks.
        ours: LedgerRange,
        /// What the gateway speaks.
        theirs: LedgerRange,
    },
    /// The node chose a ledger number that this gateway does not speak. Seen by the gateway.
    #[error("the node chose protocol {}, but this gateway speaks {ours}", found.0)]
    LedgerNotOffered {
        /// What the gateway speaks.
        ours: LedgerRange,
        /// What the node chose.
        found: Ledger,
    },
    /// The verdict names another ledger number than the one that the node signed.
    #[error("the gateway accepted protocol {}, but {} was agreed", found.0, agreed.0)]
    LedgerChanged {
        /// What was agreed.
        agreed: Ledger,
        /// What the verdict says.
        found: Ledger,
    },
    /// The revealed secret is not the one that was committed to before our nonce was known.
    #[error(
        "the gateway's commitment does not open: the connection code would be of its own choice"
    )]
    Commitment,
    /// A field of the introduction is out of its bounds.
    #[error("the node's introduction is refused: its `{field}` {problem}")]
    Introduction {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl HandshakeError {
    /// Returns what the gateway may tell the node; `None` where the connection just closes: before
    /// a valid proof nobody learns why.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::OwnKey => Some(Refusal::OwnKey),
            Self::LedgerNotOffered { .. } => Some(Refusal::Version),
            Self::OutOfTurn { .. }
            | Self::TooLong { .. }
            | Self::TooMuch
            | Self::WeakKey { .. }
            | Self::Signature { .. }
            | Self::GatewayKeyChanged { .. }
            | Self::NoCommonLedger { .. }
            | Self::LedgerChanged { .. }
            | Self::Commitment
            | Self::Introduction { .. } => None,
        }
    }
}

fn fingerprint(digest: &Digest) -> String {
    format!("`SHA256:{}`", STANDARD_NO_PAD.encode(digest.as_bytes()))
}

fn older(ours: LedgerRange, theirs: LedgerRange) -> &'static str {
    if ours.max < theirs.min {
        "node"
    } else {
        "gateway"
    }
}
