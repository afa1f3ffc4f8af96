//! One command on many nodes: the answers of `POST runs` with `select`.
//!
//! The request is [`super::runs::StartRun`]. Whoever was meant is in the answer: with a run, or with
//! the reason why there is none.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::runs::{Run, RunResult};

/// Answer of `POST runs` with `select`: 201, or 200 where an earlier request with the same key had
/// made all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetRuns {
    /// The runs, in the order in which they were asked for.
    pub items: Vec<Run>,
    /// Nodes that were meant and have no run.
    pub skipped: Vec<Skipped>,
}

/// Answer of `POST runs?wait=true` with `select`, when all runs are over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetResults {
    /// The runs with their output, in the order in which they were asked for. All outputs together
    /// have at most 32 MiB: the more runs, the less of each.
    pub items: Vec<RunResult>,
    /// Nodes that were meant and have no run.
    pub skipped: Vec<Skipped>,
}

/// Bytes of all outputs in [`FleetResults`], at the most.
pub const FLEET_OUTPUT_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A node that was meant and has no run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// The node's id.
    pub node: String,
    /// The node's name.
    pub node_name: String,
    /// Why, for programs.
    pub code: SkippedCode,
    /// Why, in words.
    pub detail: String,
}

/// Why a node that was meant has no run, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkippedCode {
    /// It was not connected.
    NodeOffline,
    /// It was revoked or forgotten while others were asked.
    NodeRevoked,
    /// Its owner does not let a variable in.
    EnvNotAllowed,
    /// It grants less time.
    TimeoutTooLong,
    /// The command does not fit one message to it.
    TooLarge,
    /// One before it did not exit 0, and `fail_fast` was asked for.
    FailFast,
    /// The gateway stopped before its turn came. Under the same key the request goes on with it.
    ShuttingDown,
    /// The gateway could not start it.
    Failed,
    /// A code of a newer gateway; never sent.
    #[serde(other)]
    #[schemars(skip)]
    Unrecognised,
}
