//! Processors, load, memory, the root disk and uptime.
//!
//! Reading them takes well below a millisecond, but a file system may hang (a dead network mount),
//! so the reading is done on a thread of its own and awaited with a deadline. A reading that hangs
//! is not started a second time.

use std::path::PathBuf;
use std::time::Duration;

use moltis_proto::telemetry::Sample;
use sysinfo::{MemoryRefreshKind, System};
use tokio::task::JoinHandle;

/// How long a reading may take before the last one is sent again.
const DEADLINE: Duration = Duration::from_secs(2);

/// Reads the machine's own figures.
#[derive(Debug)]
pub(crate) struct Host {
    root: PathBuf,
    last: Sample,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing was read yet.
    Fresh,
    /// What the next interval is measured against.
    Idle(Box<System>),
    /// A thread reads.
    Reading(JoinHandle<Option<(Box<System>, Sample)>>),
}

impl Host {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            last: Sample::default(),
            state: State::Fresh,
        }
    }

    /// Returns a sample with the host's figures, and nothing in its lists.
    pub(crate) async fn sample(&mut self) -> Sample {
        if !matches!(self.state, State::Reading(_)) {
            let before = std::mem::replace(&mut self.state, State::Fresh);
            let root = self.root.clone();
            self.state = State::Reading(tokio::task::spawn_blocking(move || match before {
                State::Idle(system) => Some(read(system, &root, false)),
                State::Fresh | State::Reading(_) => {
                    Some(read(Box::new(System::new().ok()?), &root, true))
                }
            }));
        }
        if let State::Reading(reading) = &mut self.state
            && let Ok(done) = tokio::time::timeout(DEADLINE, reading).await
        {
            self.state = match done {
                Ok(Some((system, sample))) => {
                    self.last = sample;
                    State::Idle(system)
                }
                Ok(None) | Err(_) => State::Fresh,
            };
        }
        self.last.clone()
    }
}

fn read(mut system: Box<System>, root: &std::path::Path, first: bool) -> (Box<System>, Sample) {
    system.refresh_cpu_usage();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let (disk_total_bytes, disk_available_bytes) = disk(root);
    let cpus = system.cpus().len();
    #[expect(clippy::cast_possible_truncation, reason = "a load fits into an f32")]
    let load_1m = System::load_average().map_or(0.0, |load| load.one) as f32;
    let sample = Sample {
        cpu_count: u32::try_from(cpus).unwrap_or(u32::MAX),
        cpu_usage_percent: (!first)
            .then(|| system.global_cpu_usage())
            .filter(|usage| usage.is_finite())
            .map(|usage| usage.clamp(0.0, 100.0)),
        load_1m: if load_1m.is_finite() { load_1m } else { 0.0 },
        memory_total_bytes: system.total_memory(),
        memory_available_bytes: system.available_memory(),
        disk_total_bytes,
        disk_available_bytes,
        uptime_seconds: System::uptime().unwrap_or(0),
        ..Sample::default()
    };
    (system, sample)
}

/// The size of one file system, and what an ordinary user could still write (statvfs(3)). Listing
/// all of them would touch mounts that nobody asked about.
fn disk(root: &std::path::Path) -> (u64, u64) {
    match rustix::fs::statvfs(root) {
        Ok(stat) => (
            stat.f_frsize.saturating_mul(stat.f_blocks),
            stat.f_frsize.saturating_mul(stat.f_bavail),
        ),
        Err(_) => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_root_that_is_not_there_costs_the_disk_only() {
        let sample = Host::new(PathBuf::from("/nonexistent")).sample().await;
        assert_eq!(sample.disk_total_bytes, 0);
        assert!(sample.memory_total_bytes > 0);
    }
}
