//! What this node tells of its machine. The figures are Linux's; elsewhere they are zero.

use std::collections::BTreeMap;
use std::fs;

use moltis_identity::{NodeIdentity, random};
use moltis_proto::handshake::{Introduction, PolicyMode};
use moltis_proto::telemetry::{Platform, Sample};
use moltis_proto::{BootId, Labels, NodeName};

use super::Result;

pub(crate) fn introduction(identity: &NodeIdentity) -> Result<Introduction> {
    Ok(Introduction {
        node_id: identity.node_id.clone(),
        name: NodeName::new("Own node")?,
        labels: Labels::default(),
        platform: Platform {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            kernel: read("/proc/sys/kernel/osrelease"),
            hostname: read("/proc/sys/kernel/hostname"),
            ..Platform::default()
        },
        version: "own_node 2".to_owned(),
        user: variable("USER"),
        working_dir: home(),
        timeout_ms: 0,
        policy: PolicyMode::Full,
        env_allow: Vec::new(),
        capabilities: Vec::new(),
    })
}

/// The kernel's id of this boot; where it has none, every process counts as one.
pub(crate) fn boot_id() -> BootId {
    let id = read("/proc/sys/kernel/random/boot_id").replace('-', "");
    id.parse()
        .unwrap_or_else(|_| BootId::from_bytes(random::bytes()))
}

pub(crate) fn sample() -> Sample {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo");
    let first = |path| -> Option<f64> { read(path).split(' ').next()?.parse().ok() };
    let disk = rustix::fs::statvfs("/").ok();
    let bytes = |blocks: fn(&rustix::fs::StatVfs) -> u64| {
        disk.as_ref().map_or(0, |disk| blocks(disk) * disk.f_frsize)
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a load needs no more digits, and an uptime is positive"
    )]
    Sample {
        cpu_count: u32::try_from(cpus).unwrap_or(u32::MAX),
        load_1m: first("/proc/loadavg").unwrap_or_default() as f32,
        memory_total_bytes: kib(&memory, "MemTotal:"),
        memory_available_bytes: kib(&memory, "MemAvailable:"),
        disk_total_bytes: bytes(|disk| disk.f_blocks),
        disk_available_bytes: bytes(|disk| disk.f_bavail),
        uptime_seconds: first("/proc/uptime").unwrap_or_default() as u64,
        ..Sample::default()
    }
}

fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    number.unwrap_or_default() * 1024
}

/// What every command's environment begins with; nothing of the node's own passes beside it.
pub(crate) fn base_env() -> BTreeMap<String, String> {
    ["HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "PATH"]
        .into_iter()
        .map(|name| (name.to_owned(), variable(name)))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

pub(crate) fn home() -> String {
    Some(variable("HOME"))
        .filter(|home| home.starts_with('/'))
        .unwrap_or_else(|| "/".to_owned())
}

fn variable(name: &str) -> String {
    let value = std::env::var_os(name).unwrap_or_default();
    value.to_string_lossy().into_owned()
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim_end().to_owned()
}
