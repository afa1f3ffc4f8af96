//! What one end may tell the other about a failure: codes, never internals.

use serde::{Deserialize, Serialize};

/// Why a gateway turns a node away after a valid proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Refusal {
    /// The key is not known, and the pairing window is closed.
    PairingOff,
    /// Too many requests wait already.
    PendingFull,
    /// A person rejected the request.
    Rejected,
    /// A person revoked this key.
    Revoked,
    /// The device is known with another key, or the key with another device.
    KeyMismatch,
    /// The key is not known, and the node did not ask to pair.
    Unknown,
    /// No ledger number is spoken by both.
    Version,
    /// Another node holds this node id.
    NodeIdInUse,
    /// Too many attempts; come back later.
    RateLimited {
        /// Milliseconds to wait.
        retry_ms: u64,
    },
    /// The node showed the gateway's own key.
    OwnKey,
    /// The request to pair expired without an answer.
    Expired,
}

/// Why a node refuses a run that the gateway asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RunRefusal {
    /// The owner's policy on this machine does not allow the command.
    Policy,
    /// An environment variable is not on this machine's list.
    EnvNotAllowed,
    /// More time was asked for than this machine grants.
    TimeoutTooLong {
        /// The longest that is granted, in milliseconds.
        longest_ms: u64,
    },
    /// The same id is known with another digest.
    DigestMismatch,
    /// More runs than this machine takes at once.
    TooMany,
    /// A value is out of its bounds: an empty argv, a NUL, a path that is not absolute.
    Invalid,
    /// The keeper is leaving; the next one takes the run.
    Leaving,
    /// The journal cannot be written.
    JournalFailed,
    /// The run was forgotten: its id is used up.
    Forgotten,
}

/// Why a side closes a connection for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CloseCode {
    /// A newer connection of the same device has taken over.
    Superseded,
    /// The node was revoked.
    Revoked,
    /// The peer broke a rule of the protocol.
    Protocol,
    /// Nothing was heard for too long.
    Silence,
    /// This machine slept; the connection is from before.
    Slept,
    /// Settings changed; the connection is made anew.
    Settings,
}

/// Why a side goes away for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GoodbyeReason {
    /// The process ends in good order.
    Shutdown,
    /// The process is replaced by another version.
    Upgrade,
}
