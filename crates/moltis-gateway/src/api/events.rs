//! What happens, as `GET events` and `GET runs/{id}/events` tell it: server-sent events.
//!
//! Each event is named by its kind and carries one JSON object. Events of the whole gateway carry
//! the thing that they are about as it stood when the event was written, so that a reader keeps the
//! newest and needs no other request. Events of one run carry its output, in base64.
//!
//! An `id` is for `Last-Event-ID` alone: a reader sends back the last one that it has, as it stands.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::nodes::Node;
use super::pairing::{PairingRequest, PairingStatus};
use super::runs::{Run, Stream};
use super::telemetry::Telemetry;

/// The media type of such a body.
pub const MEDIA_TYPE: &str = "text/event-stream";

/// Header of a request that takes up a stream where it was left.
pub const LAST_EVENT_ID_HEADER: &str = "last-event-id";

/// The name of the event that says that others were missed; it carries [`Reset`].
pub const RESET: &str = "reset";

/// The events of the gateway, in words.
pub const IN_WORDS: &str = "Server-sent events, each with `event`, `id` and `data`, which is one \
JSON object: the thing as it stood when the event was written. `node.online`, `node.offline`, \
`node.changed` and `key_cloned` carry a `Node`, `node.forgotten` a `ForgottenNode`, `telemetry` a \
`NodeTelemetry`, `pairing.changed` a `PairingStatus`, `pairing.request` a `PairingRequest`, \
`pairing.decided` a `PairingDecided`, `key_mismatch` a `KeyMismatch`, `run.started` and `run.ended` \
a `Run`. `reset` carries a `Reset`: events were missed, and the lists are to be read again. Comments \
and blocks without `data` are signs of life; their `id` counts.";

/// The events of a run, in words.
pub const RUN_IN_WORDS: &str = "Server-sent events, each with `event`, `id` and `data`, which is \
one JSON object: `started` (a `Run`), `output` (an `Output`), `gap` (a `Gap`), and last `ended` (a \
`Run`). An `id` that is none of this run's is answered with `reset` (a `Reset`) and everything from \
the beginning. A body that ends without `ended` was cut: go on with another request.";

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $text:literal;)*) => {
        /// What an event of the gateway is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum EventKind {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl EventKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the name of the event.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl std::str::FromStr for EventKind {
            type Err = UnknownKind;

            fn from_str(text: &str) -> Result<Self, UnknownKind> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(UnknownKind { found: text.chars().take(64).collect() }),
                }
            }
        }
    };
}

kinds! {
    /// A node is connected and ready for runs. Carries [`Node`].
    NodeOnline = "node.online";
    /// A node's connection is gone. Carries [`Node`].
    NodeOffline = "node.offline";
    /// A node was paired, renamed, labelled or revoked, or says something else of itself. Carries
    /// [`Node`].
    NodeChanged = "node.changed";
    /// A node's record was deleted. Carries [`ForgottenNode`].
    NodeForgotten = "node.forgotten";
    /// A node has sent a sample. Carries [`NodeTelemetry`].
    Telemetry = "telemetry";
    /// The pairing window was opened or has closed. Carries [`PairingStatus`].
    PairingChanged = "pairing.changed";
    /// A request to pair is new, or has come again with another code. Carries [`PairingRequest`].
    PairingRequest = "pairing.request";
    /// A request to pair was answered or has expired. Carries [`PairingDecided`].
    PairingDecided = "pairing.decided";
    /// A known device came with another key, or a known key with another device. Carries
    /// [`KeyMismatch`].
    KeyMismatch = "key_mismatch";
    /// Several processes use one node's key: it was probably copied. Carries [`Node`].
    KeyCloned = "key_cloned";
    /// A run's process lives. Carries [`Run`].
    RunStarted = "run.started";
    /// A run is over. Carries [`Run`].
    RunEnded = "run.ended";
}

/// A text names no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no event: there are {}", list())]
pub struct UnknownKind {
    found: String,
}

fn list() -> String {
    let all: Vec<_> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
    all.join(", ")
}

impl std::fmt::Display for EventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The `data` of an event of the gateway; its kind is told by the event's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EventData {
    /// A run.
    Run(Box<Run>),
    /// A request to pair that waits.
    PairingRequest(Box<PairingRequest>),
    /// What became of one.
    PairingDecided(PairingDecided),
    /// A wrong key.
    KeyMismatch(KeyMismatch),
    /// The pairing window.
    Pairing(PairingStatus),
    /// A node's sample.
    Telemetry(Box<NodeTelemetry>),
    /// A node.
    Node(Box<Node>),
    /// A node that is known no more.
    Forgotten(ForgottenNode),
}

/// A node whose record was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForgottenNode {
    /// The id that it had.
    pub id: String,
    /// The name that it had.
    pub name: String,
    /// `SHA256:…` of its key, which may ask to pair again.
    pub fingerprint: String,
}

/// A sample of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeTelemetry {
    /// The node's id.
    pub id: String,
    /// Its name now.
    pub name: String,
    /// The sample.
    pub telemetry: Telemetry,
}

/// What became of a request to pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PairingDecided {
    /// The request's id.
    pub id: String,
    /// What was decided.
    pub decision: Decision,
    /// The node id that was asked for.
    pub node_id: String,
    /// The display name that was asked for.
    pub name: String,
    /// `SHA256:…` of the key that asked.
    pub fingerprint: String,
    /// Who decided; `gateway` where nobody did in time.
    pub decided_by: String,
    /// When.
    pub decided_at: Timestamp,
}

/// The answer to a request to pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The key is pinned: it is a node now.
    Approved,
    /// A person said no.
    Rejected,
    /// Nobody said anything in time.
    Expired,
}

/// A connection that showed a key which is not that of the node that it said to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyMismatch {
    /// The id of the known node.
    pub node: String,
    /// Its name now.
    pub node_name: String,
    /// `SHA256:…` of the key that is pinned.
    pub fingerprint: String,
    /// `SHA256:…` of the key that was shown last.
    pub shown_fingerprint: String,
    /// Where that came from.
    pub remote_address: String,
    /// When such a key was first shown.
    pub first_seen_at: Timestamp,
    /// When one was shown last.
    pub last_seen_at: Timestamp,
    /// How often.
    pub times: u64,
}

/// The `data` of the event [`RESET`]: events were missed, and what was read before may be old. Read
/// the lists again; every event behind this one is newer than it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reset {
    /// Why they were missed.
    pub reason: ResetReason,
}

/// Why events were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResetReason {
    /// The last id is another process's: the gateway was started anew.
    Restarted,
    /// More has happened since than is kept.
    TooOld,
    /// The last id is none that this stream has given.
    UnknownId,
    /// A reason of a newer gateway; never sent.
    #[serde(other)]
    #[schemars(skip)]
    Unrecognised,
}

/// Query of `GET events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Names of events, separated by commas; all that the asker may see when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub types: Option<String>,
    /// As the header `Last-Event-ID`, for who cannot set one. The header goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_id: Option<String>,
}

/// Query of `GET runs/{id}/events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunEventsQuery {
    /// As the header `Last-Event-ID`, for who cannot set one. The header goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_id: Option<String>,
}

/// The `data` of the event `output` of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// To which of the two it was written.
    pub stream: Stream,
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes, in base64 (RFC 4648, section 4).
    pub data: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_the_same_word_everywhere() {
        for kind in EventKind::ALL {
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("\"{kind}\""));
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
    }

    #[test]
    fn an_unknown_kind_is_answered_with_the_list() {
        let error = "node.gone".parse::<EventKind>().unwrap_err().to_string();
        assert!(
            error.starts_with("`node.gone` is no event: there are node.online, "),
            "{error}"
        );
    }
}
