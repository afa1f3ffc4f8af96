//! What is written down of who did what, and the chain that shows whether it was changed.
//!
//! An [`Entry`] is appended in the transaction of the change it records (see [`crate::store`]).
//! Each row's hash covers the row and the hash before it, so an edit, a removal and a change of
//! order show. Whoever owns the gateway's disk can write a whole new chain: that is not defended
//! against here.
//!
//! Here are the words and the hash. Rows and the walk over them are in `store/audit.rs`.

use jiff::Timestamp;
use moltis_proto::key::Digest;
use sha2::{Digest as _, Sha256};

/// Who does something, for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `operator`, `token:<name>`, `user:<name>`, `node:<id>`, `gateway`.
    pub name: String,
    /// Where from: an address, `socket`; `None` for the gateway itself.
    pub source: Option<String>,
}

impl Actor {
    /// Returns the gateway itself, acting by a rule.
    pub fn gateway() -> Self {
        Self {
            name: "gateway".to_owned(),
            source: None,
        }
    }

    /// Returns the operator on the gateway's own socket.
    pub fn operator() -> Self {
        Self {
            name: "operator".to_owned(),
            source: Some("socket".to_owned()),
        }
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident = $text:literal;)*) => {
        /// What was done. The texts are for ever: they stand in hashed rows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Action {
            $($(#[$doc])* $variant,)*
        }

        impl Action {
            /// Returns the action as it stands in a row.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

actions! {
    /// The pairing window was opened.
    PairingOpen = "pairing.open";
    /// The pairing window was closed by hand.
    PairingClose = "pairing.close";
    /// A node asked to be let in.
    PairingRequest = "pairing.request";
    /// A request was approved, and the key pinned.
    PairingApprove = "pairing.approve";
    /// A request was rejected.
    PairingReject = "pairing.reject";
    /// A node that was approved elsewhere was pinned.
    NodeImport = "node.import";
    /// A known device came with another key, or a known key with another device.
    KeyMismatch = "node.key_mismatch";
    /// One key is used by several processes at once.
    NodeCloned = "node.cloned";
    /// A node got another display name.
    NodeRename = "node.rename";
    /// A node got other labels.
    NodeRelabel = "node.label";
    /// A node's key was refused for good.
    NodeRevoke = "node.revoke";
    /// A node's record was deleted.
    NodeForget = "node.forget";
    /// A run was asked for and written.
    RunStart = "run.start";
    /// A run was asked to end.
    RunCancel = "run.cancel";
    /// A run that nobody had asked for got an owner.
    RunClaim = "run.claim";
    /// A run is over.
    RunEnd = "run.end";
    /// A token was made.
    TokenCreate = "token.create";
    /// A token was revoked.
    TokenRevoke = "token.revoke";
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing to write down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, by the gateway's clock.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// What.
    pub action: Action,
    /// What it was done to: an id.
    pub subject: String,
    /// More, as JSON. Never a secret, never output, never the value of a variable.
    pub detail: serde_json::Value,
}

impl Entry {
    /// Makes an entry.
    pub fn new(
        at: Timestamp,
        actor: &Actor,
        action: Action,
        subject: &dyn std::fmt::Display,
        detail: serde_json::Value,
    ) -> Self {
        Self {
            at,
            actor: actor.clone(),
            action,
            subject: subject.to_string(),
            detail,
        }
    }
}

/// One row of the log, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Counts from 1 without holes.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Who.
    pub actor: String,
    /// Where from.
    pub source: Option<String>,
    /// What was done.
    pub action: String,
    /// To what.
    pub subject: String,
    /// JSON.
    pub detail: String,
}

/// The end of the chain: what the next row hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Number of the last row; 0 before the first.
    pub(crate) seq: u64,
    /// Its hash; zeros before the first.
    pub(crate) hash: [u8; 32],
}

impl Head {
    /// The head of an empty log.
    pub(crate) const EMPTY: Self = Self {
        seq: 0,
        hash: [0; 32],
    };

    /// Returns the entry as the next row, and the head behind it.
    pub(crate) fn next(self, entry: &Entry) -> (Line, Self) {
        let line = Line {
            seq: self.seq + 1,
            at_ms: entry.at.as_millisecond(),
            actor: entry.actor.name.clone(),
            source: entry.actor.source.clone(),
            action: entry.action.as_str().to_owned(),
            subject: entry.subject.clone(),
            detail: entry.detail.to_string(),
        };
        let after = self.after(&line);
        (line, after)
    }

    /// Returns the head behind `line`.
    pub(crate) fn after(self, line: &Line) -> Self {
        Self {
            seq: line.seq,
            hash: *line.hash(&Digest::from_bytes(self.hash)).as_bytes(),
        }
    }
}

/// `moltis audit 1`, filled with zeros to 32 bytes.
const LABEL: [u8; 32] = *b"moltis audit 1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

impl Line {
    /// Returns SHA-256(label ‖ `previous` ‖ seq ‖ at ‖ texts), numbers as eight bytes big-endian,
    /// each text behind its length in four bytes, an absent source as the length 2^32 - 1.
    pub fn hash(&self, previous: &Digest) -> Digest {
        let mut hash = Sha256::new();
        hash.update(LABEL);
        hash.update(previous.as_bytes());
        hash.update(self.seq.to_be_bytes());
        hash.update(self.at_ms.to_be_bytes());
        let texts = [
            Some(&self.actor),
            self.source.as_ref(),
            Some(&self.action),
            Some(&self.subject),
            Some(&self.detail),
        ];
        for text in texts {
            let length = text.map_or(u32::MAX, |text| {
                u32::try_from(text.len()).unwrap_or(u32::MAX - 1)
            });
            hash.update(length.to_be_bytes());
            hash.update(text.map_or(&[][..], |text| text.as_bytes()));
        }
        Digest::from_bytes(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Line);

    fn line() -> Line {
        Line {
            seq: 7,
            at_ms: 1,
            actor: "operator".to_owned(),
            source: None,
            action: "node.revoke".to_owned(),
            subject: "a".to_owned(),
            detail: "{}".to_owned(),
        }
    }

    #[test]
    fn every_column_is_under_the_hash() {
        let previous = Digest::from_bytes([1; 32]);
        let whole = line().hash(&previous);
        let changes: [Change; 7] = [
            |line| line.seq += 1,
            |line| line.at_ms += 1,
            |line| line.actor.push('x'),
            |line| line.source = Some(String::new()),
            |line| line.action.push('x'),
            |line| line.subject.push('x'),
            |line| line.detail.push(' '),
        ];
        for change in changes {
            let mut changed = line();
            change(&mut changed);
            assert_ne!(changed.hash(&previous), whole, "{changed:?}");
        }
        assert_ne!(line().hash(&Digest::from_bytes([2; 32])), whole);
    }

    #[test]
    fn a_character_cannot_wander_from_one_column_to_the_next() {
        let previous = Digest::from_bytes([0; 32]);
        let mut moved = line();
        moved.action.push('a');
        moved.subject.clear();
        assert_ne!(moved.hash(&previous), line().hash(&previous));
    }
}
