//! One sample of a machine: shapes and units.

use serde::{Deserialize, Serialize};

/// What a machine has and does at one moment. The gateway's clock stamps it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Logical CPUs.
    pub cpu_count: u32,
    /// Percent of all CPUs over the time since the last sample, 0 to 100; `None` in the first.
    pub cpu_usage_percent: Option<f32>,
    /// Load average over a minute.
    pub load_1m: f32,
    /// Bytes of memory.
    pub memory_total_bytes: u64,
    /// Bytes of memory that a new program could have.
    pub memory_available_bytes: u64,
    /// Bytes of the root file system.
    pub disk_total_bytes: u64,
    /// Bytes of the root file system that a user could still write.
    pub disk_available_bytes: u64,
    /// Seconds since the machine was started.
    pub uptime_seconds: u64,
    /// GPUs, where the machine tells.
    pub gpus: Vec<Gpu>,
    /// Language runtimes found.
    pub runtimes: Vec<Runtime>,
    /// Model providers found.
    pub providers: Vec<Provider>,
    /// Lists were cut to fit a frame.
    pub cut: bool,
}

/// One graphics processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// As its driver names it.
    pub name: String,
    /// Bytes of its memory.
    pub memory_total_bytes: u64,
    /// Bytes in use.
    pub memory_used_bytes: u64,
}

/// One language runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// `python`, `node`, `ruby`, `go`, `rust` or `java`.
    pub name: String,
    /// As it prints it, without its name: `3.11.2`.
    pub version: String,
}

/// One provider of models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// An Ollama answers on this machine.
    Ollama,
    /// A key for it is set.
    ApiKey,
}

/// What a machine is: constant for the life of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// `linux` or `macos`.
    pub os: String,
    /// As Rust names it: `x86_64`, `aarch64`, `arm`.
    pub arch: String,
    /// `Debian 12`, `macOS 15.1`.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    /// The machine's own name for itself.
    pub hostname: String,
}
