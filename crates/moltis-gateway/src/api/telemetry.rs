//! What a machine is and has, as JSON.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Platform {
    /// `linux` or `macos`.
    pub os: String,
    /// `x86_64`, `aarch64`, `arm`.
    pub arch: String,
    /// `Debian 12`, `macOS 15.1`.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    /// The machine's own name for itself.
    pub hostname: String,
}

/// The last sample of a machine. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Telemetry {
    /// Logical CPUs.
    pub cpu_count: u32,
    /// Percent of all CPUs since the sample before, 0 to 100; `None` in the first.
    pub cpu_usage_percent: Option<f32>,
    /// Load average over a minute.
    pub load_1m: f32,
    /// Memory.
    pub memory_total_bytes: u64,
    /// Memory that a new program could have.
    pub memory_available_bytes: u64,
    /// The root file system.
    pub disk_total_bytes: u64,
    /// What a user could still write to it.
    pub disk_available_bytes: u64,
    /// Seconds since the machine was started.
    pub uptime_seconds: u64,
    /// GPUs, where the machine tells.
    pub gpus: Vec<Gpu>,
    /// Language runtimes.
    pub runtimes: Vec<Runtime>,
    /// Model providers.
    pub providers: Vec<Provider>,
    /// When it arrived, by the gateway's clock.
    pub sampled_at: Timestamp,
    /// It is older than it should be, or the node is gone.
    pub stale: bool,
}

/// One graphics processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// As its driver names it.
    pub name: String,
    /// Its memory.
    pub memory_total_bytes: u64,
    /// How much of it is in use.
    pub memory_used_bytes: u64,
}

/// One language runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Runtime {
    /// `python`, `node`, `ruby`, `go`, `rust` or `java`.
    pub name: String,
    /// `3.11.2`.
    pub version: String,
}

/// One provider of models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Provider {
    /// `ollama`, `anthropic`, `openai`, …
    pub name: String,
    /// How it is there.
    pub kind: ProviderKind,
    /// Its models, where it lists them.
    pub models: Vec<String>,
    /// The environment variable that holds its key: the name, never the value.
    pub variable: Option<String>,
}

/// How a provider of models is present on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// An Ollama answers there.
    Ollama,
    /// A key for it is set.
    ApiKey,
}
