//! The pairing window, and the requests that wait for a person.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use moltis_proto::limits::WINDOW_TIME_MAX;

use super::telemetry::Platform;
use super::{Timestamp, number};

/// Answer of `GET pairing` and `PUT pairing`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PairingStatus {
    /// Whether new nodes may ask.
    pub enabled: bool,
    /// When the window closes by itself; `None` while it is closed.
    pub expires_at: Option<Timestamp>,
}

/// Body of `PUT pairing`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPairing {
    /// Open or close the window.
    pub enabled: bool,
    /// How long it stays open: 1 to 3600 seconds, 600 when left out. Only with `enabled: true`.
    #[serde(
        default,
        deserialize_with = "number::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = WINDOW_TIME_MAX.as_secs()))]
    pub for_seconds: Option<u64>,
}

/// One request to pair: an item of `GET pairing/requests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PairingRequest {
    /// Its id; in a path its first 8 digits do.
    pub id: String,
    /// The display name that the machine would like.
    pub name: String,
    /// The node id that it would like.
    pub node_id: String,
    /// What the machine says that it is.
    pub platform: Platform,
    /// The labels that it would like.
    pub labels: BTreeMap<String, String>,
    /// `SHA256:…` of its key.
    pub fingerprint: String,
    /// The code that stands on its screen too.
    pub connection_code: String,
    /// Where it last connected from.
    pub remote_address: String,
    /// When it first asked.
    pub requested_at: Timestamp,
    /// When the request goes away by itself.
    pub expires_at: Timestamp,
    /// What a person should know before approving, in words.
    pub warnings: Vec<String>,
}

/// Body of `POST pairing/requests/{id}/approve`: what the person saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// The fingerprint as it was shown.
    pub fingerprint: String,
    /// The connection code as it was shown.
    pub connection_code: String,
}

/// Answer of `GET pairing/command`: the line to type on the other machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PairingCommand {
    /// What to type on the machine that joins; it names `--host` and `--gateway-key`.
    pub command: String,
    /// The URL in it.
    pub url: String,
    /// The gateway's fingerprint in it.
    pub gateway_fingerprint: String,
    /// Why another machine cannot use it as it is, and what to do.
    pub warning: Option<String>,
}
