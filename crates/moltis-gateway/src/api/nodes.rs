//! Nodes: the list, one of them, and what may be changed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use moltis_proto::name::{LABELS_MAX, NAME_CHARS_MAX};

use super::Timestamp;
use super::runs::Run;
use super::telemetry::{Platform, Telemetry};

/// Nodes of one page, at the most and where nothing is said.
pub const PAGE_MAX: u32 = 1000;

/// One node, as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Its id, unique on a gateway.
    pub id: String,
    /// Its display name, which others may have too.
    pub name: String,
    /// Whether it is here.
    pub state: NodeState,
    /// `SHA256:…` of its key.
    pub fingerprint: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What the machine is.
    pub platform: Platform,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
    /// Its last sample; `None` before the first.
    pub telemetry: Option<Telemetry>,
}

/// Whether a node is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Connected.
    Online,
    /// Paired, not connected.
    Offline,
    /// Its key is refused for good.
    Revoked,
}

impl NodeState {
    /// Returns the word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Revoked => "revoked",
        }
    }
}

/// Everything known of one node: `GET nodes/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeDetail {
    /// As in the list.
    #[serde(flatten)]
    pub node: Node,
    /// Where commands start.
    pub working_dir: String,
    /// Longest time of a command, in seconds; 0 is no limit.
    pub timeout_seconds: u64,
    /// What the machine's owner lets run.
    pub policy: Policy,
    /// Variables that the owner lets in beside the standard ones.
    pub env_allow: Vec<String>,
    /// The account that commands run as.
    pub user: String,
    /// Version of the node's software.
    pub version: String,
    /// Since when it is connected; `None` while it is not.
    pub connected_since: Option<Timestamp>,
    /// Where it connects from; `None` while it is not.
    pub remote_address: Option<String>,
    /// When it was approved.
    pub paired_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Its newest runs, newest first.
    pub recent_runs: Vec<Run>,
}

/// What a machine's owner lets run on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Everything.
    Full,
    /// Nothing.
    Off,
    /// What is on the owner's list.
    AllowList,
}

/// Body of `PATCH nodes/{id}`: what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchNode {
    /// The new display name: 1 to 64 visible characters, and no name of a route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = NAME_CHARS_MAX))]
    pub name: Option<String>,
    /// The new labels, all of them: 32 at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = LABELS_MAX))]
    pub labels: Option<BTreeMap<String, String>>,
}

/// Query of `GET nodes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListNodes {
    /// Only nodes in this state; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NodeState>,
    /// Only nodes that this selector means, of which no revoked one is; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub select: Option<String>,
    /// At most so many: 1 to 1000, 1000 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = PAGE_MAX))]
    pub limit: Option<u32>,
    /// `next` of the page before. A node that is renamed between two pages may be missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub cursor: Option<String>,
}
