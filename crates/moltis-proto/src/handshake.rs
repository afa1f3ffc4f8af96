//! Who is who: the story between the Noise handshake and the first frame that counts.
//!
//! | step | who | what |
//! |---|---|---|
//! | 1, 2 | both | Noise NN; both then hold the handshake hash `h` |
//! | 3 | gateway → node | [`GatewayProof`] |
//! | 4 | node → gateway | [`NodeProof`], only after the gateway's key matched the pin |
//! | 5 | node → gateway | [`Introduction`] |
//! | 6 | gateway → node | [`Verdict`]; after `Pending` others follow |
//!
//! Each proof is an Ed25519 signature over a [`Transcript`] that holds `h`: it is worth nothing on
//! any other channel. The machines are [`gateway::GatewayHandshake`] and [`node::NodeHandshake`];
//! whoever drives one decodes each frame, takes its length from an [`Allowance`] first, hands the
//! message in and sends what comes out. A message out of turn, like any other error, closes a
//! machine for good. The pair is tested over the real Noise channel in `moltis-identity`.

mod allowance;
mod connection_code;
mod error;
pub mod gateway;
mod introduction;
pub mod node;
mod transcript;

pub use allowance::Allowance;
pub use connection_code::{ConnectionCode, ConnectionCodeError};
pub use error::{HandshakeError, Proof};
pub use transcript::Transcript;

use serde::{Deserialize, Serialize};

use crate::code::Refusal;
use crate::key::{Digest, Nonce, PublicKey, Signature};
use crate::message::Windows;
use crate::name::{Labels, NodeId, NodeName};
use crate::subprotocol::Subprotocol;
use crate::telemetry::Platform;
use crate::version::Ledger;
use crate::{BootId, DeviceId, InstanceId, RequestId};

/// Holds a private key, wherever that is.
pub trait Signer {
    /// Returns the public half.
    fn public_key(&self) -> PublicKey;

    /// Signs the transcript (RFC 8032, Ed25519).
    fn sign(&self, transcript: &Transcript) -> Signature;
}

/// Checks what others signed, and hashes.
pub trait Verifier {
    /// Returns whether `signature` over the transcript is `key`'s, by the strict rules: canonical
    /// encodings, no small-order point, one signature for one message.
    fn verify(&self, key: &PublicKey, transcript: &Transcript, signature: &Signature) -> bool;

    /// Returns whether `key` is a sound public key: a canonical point of large order.
    fn is_sound(&self, key: &PublicKey) -> bool;

    /// Returns the SHA-256 of the parts, one after the other.
    fn sha256(&self, parts: &[&[u8]]) -> Digest;
}

/// The channel on which a handshake runs: what both proofs are bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The Noise handshake hash.
    pub hash: [u8; 32],
    /// What was agreed on in the upgrade.
    pub subprotocol: Subprotocol,
}

/// Step 3: the gateway shows its key and challenges the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayProof {
    /// The gateway's key.
    pub gateway_key: PublicKey,
    /// Fresh random bytes, the challenge.
    pub nonce_g: Nonce,
    /// Lowest ledger number that the gateway speaks.
    pub ledger_min: Ledger,
    /// Highest ledger number that the gateway speaks.
    pub ledger_max: Ledger,
    /// SHA-256 of the secret that [`Verdict::Pending`] reveals.
    pub code_commit: Digest,
    /// Over the transcript of all fields above.
    pub signature: Signature,
}

/// Step 4: the node answers the challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeProof {
    /// The node's key.
    pub node_key: PublicKey,
    /// Made once together with the key.
    pub device_id: DeviceId,
    /// This process.
    pub instance_id: InstanceId,
    /// This boot of the machine.
    pub boot_id: BootId,
    /// What the node wants.
    pub intent: Intent,
    /// The ledger number that the node chose from the gateway's range.
    pub ledger: Ledger,
    /// Fresh random bytes of the node.
    pub nonce_n: Nonce,
    /// Over the transcript of all fields above and the gateway's key, nonce and commitment.
    pub signature: Signature,
}

/// What a node wants of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// To work. A stranger is turned away.
    Connect,
    /// To be asked for. A stranger becomes a request, while the window is open.
    Pair,
}

/// Step 5: what the node says of itself. Claims: the approved record decides. Nothing in it
/// changes within a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introduction {
    /// The id that it would like to have.
    pub node_id: NodeId,
    /// The name that it would like to have.
    pub name: NodeName,
    /// The labels that it would like to have.
    pub labels: Labels,
    /// What the machine is.
    pub platform: Platform,
    /// Version of the node's software, as its author writes it.
    pub version: String,
    /// The account that commands run as.
    pub user: String,
    /// Where commands start.
    pub working_dir: String,
    /// Longest time of a command in milliseconds; 0 is no limit.
    pub timeout_ms: u64,
    /// What the machine's owner lets run.
    pub policy: PolicyMode,
    /// Names of variables that the owner lets in beside the standard ones.
    pub env_allow: Vec<String>,
    /// What else it can do, by name; none are defined yet.
    pub capabilities: Vec<String>,
}

/// What a machine's owner lets run on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyMode {
    /// Everything.
    #[default]
    Full,
    /// Nothing.
    Off,
    /// What is on the owner's list.
    AllowList,
}

/// Step 6: what becomes of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Verdict {
    /// Welcome. `Runs` is next.
    Accepted {
        /// This connection, for the gateway's own fences and for logs.
        epoch: Epoch,
        /// How much may be under way.
        windows: Windows,
        /// What the gateway expects.
        limits: SessionLimits,
        /// The ledger number of this connection.
        ledger: Ledger,
    },
    /// A person has to decide. The connection stays, and this is said again every
    /// [`PING_AFTER`](crate::limits::PING_AFTER) as a sign of life, until another verdict follows.
    Pending {
        /// The request.
        request_id: RequestId,
        /// Milliseconds until it expires.
        expires_in_ms: u64,
        /// The secret behind `code_commit`.
        code_reveal: Nonce,
    },
    /// No.
    Refused {
        /// Why.
        code: Refusal,
    },
}

/// One accepted connection: the gateway's process and a counter in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Random for each process of a gateway.
    pub incarnation: u32,
    /// Counts the accepted connections of that process.
    pub counter: u32,
}

/// What a gateway expects of an accepted node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionLimits {
    /// Milliseconds between telemetry samples.
    pub telemetry_interval_ms: u64,
    /// Milliseconds without receiving after which a ping is sent.
    pub ping_after_ms: u64,
    /// Milliseconds without receiving after which the connection is given up.
    pub silence_max_ms: u64,
}

impl SessionLimits {
    /// The limits of [`crate::limits`].
    pub const STANDARD: Self = Self {
        telemetry_interval_ms: crate::limits::TELEMETRY_INTERVAL.as_secs() * 1000,
        ping_after_ms: crate::limits::PING_AFTER.as_secs() * 1000,
        silence_max_ms: crate::limits::SILENCE_MAX.as_secs() * 1000,
    };
}
