//! Samples and platforms.

use jiff::Timestamp;
use moltis_proto::telemetry as wire;

use crate::api::telemetry::{Gpu, Platform, Provider, ProviderKind, Runtime, Telemetry};

impl From<wire::Platform> for Platform {
    fn from(platform: wire::Platform) -> Self {
        let wire::Platform {
            os,
            arch,
            version,
            kernel,
            hostname,
        } = platform;
        Self {
            os,
            arch,
            version,
            kernel,
            hostname,
        }
    }
}

impl Telemetry {
    /// Puts a sample together with what the gateway knows of it.
    pub(crate) fn of(sample: wire::Sample, sampled_at: Timestamp, stale: bool) -> Self {
        Self {
            cpu_count: sample.cpu_count,
            cpu_usage_percent: sample.cpu_usage_percent,
            load_1m: sample.load_1m,
            memory_total_bytes: sample.memory_total_bytes,
            memory_available_bytes: sample.memory_available_bytes,
            disk_total_bytes: sample.disk_total_bytes,
            disk_available_bytes: sample.disk_available_bytes,
            uptime_seconds: sample.uptime_seconds,
            gpus: sample.gpus.into_iter().map(Gpu::from).collect(),
            runtimes: sample.runtimes.into_iter().map(Runtime::from).collect(),
            providers: sample.providers.into_iter().map(Provider::from).collect(),
            sampled_at,
            stale,
        }
    }
}

impl From<wire::Gpu> for Gpu {
    fn from(gpu: wire::Gpu) -> Self {
        Self {
            name: gpu.name,
            memory_total_bytes: gpu.memory_total_bytes,
            memory_used_bytes: gpu.memory_used_bytes,
        }
    }
}

impl From<wire::Runtime> for Runtime {
    fn from(runtime: wire::Runtime) -> Self {
        Self {
            name: runtime.name,
            version: runtime.version,
        }
    }
}

impl From<wire::Provider> for Provider {
    fn from(provider: wire::Provider) -> Self {
        Self {
            name: provider.name,
            kind: match provider.kind {
                wire::ProviderKind::Ollama => ProviderKind::Ollama,
                wire::ProviderKind::ApiKey => ProviderKind::ApiKey,
            },
            models: provider.models,
            variable: provider.variable,
        }
    }
}
