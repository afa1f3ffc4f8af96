//! What processes cost: memory and processor time, read from `/proc`.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;

/// One MiB in KiB, the unit of `/proc`.
const MIB: f64 = 1024.0;

/// Returns how much of a process is in memory, in KiB.
fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Returns how much of some processes is in memory, in MiB.
///
/// # Errors
///
/// When one of them is not there.
#[expect(
    clippy::cast_precision_loss,
    reason = "memory in KiB stays far below 2^52"
)]
pub(super) fn resident(pids: &[u32]) -> anyhow::Result<f64> {
    let sizes = pids
        .iter()
        .map(|pid| resident_kib(*pid).with_context(|| format!("process {pid} has ended")));
    Ok(sizes.sum::<anyhow::Result<u64>>()? as f64 / MIB)
}

/// Returns the processor time of a process since its start, without its children's, in milliseconds.
///
/// # Errors
///
/// When it is not there.
#[expect(clippy::cast_precision_loss, reason = "ticks stay far below 2^52")]
pub(super) fn processor_ms(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} has ended"))?;
    // The name in parentheses may hold anything; utime and stime are the 12th and 13th word after it.
    let words = stat
        .rsplit_once(") ")
        .map(|(_, words)| words)
        .unwrap_or_default();
    let ticks: u64 = words
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 * 1e3 / rustix::param::clock_ticks_per_second() as f64)
}

/// Watches the memory of some processes until it is asked for the peak.
#[derive(Debug)]
pub(super) struct Watch {
    pids: Vec<u32>,
    before_kib: Vec<u64>,
    peaks_kib: Arc<[AtomicU64]>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub(super) fn start(pids: &[u32]) -> Self {
        let now: Vec<_> = pids
            .iter()
            .map(|pid| resident_kib(*pid).unwrap_or_default())
            .collect();
        let peaks_kib: Arc<[_]> = now.iter().map(|kib| AtomicU64::new(*kib)).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        let (pids_there, peaks, over) =
            (pids.to_vec(), Arc::clone(&peaks_kib), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for (pid, peak) in pids_there.iter().zip(peaks.iter()) {
                    peak.fetch_max(resident_kib(*pid).unwrap_or_default(), Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        Self {
            pids: pids.to_vec(),
            before_kib: now,
            peaks_kib,
            is_over,
            thread,
        }
    }

    /// Returns by how much each process grew at its peak, in MiB, in the order given.
    #[expect(
        clippy::cast_precision_loss,
        reason = "memory in KiB stays far below 2^52"
    )]
    pub(super) fn growth(self) -> Vec<f64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().ok(); // what it saw is kept
        let peaks = self
            .peaks_kib
            .iter()
            .map(|peak| peak.load(Ordering::Relaxed));
        let pairs = peaks.zip(self.before_kib).take(self.pids.len());
        pairs
            .map(|(peak, before)| peak.saturating_sub(before) as f64 / MIB)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_size_and_a_time() {
        let pid = std::process::id();
        assert!(resident(&[pid]).unwrap() > 0.5);
        let before = processor_ms(pid).unwrap();
        let mut work = 0_u64;
        while processor_ms(pid).unwrap() <= before {
            work = work.wrapping_add(1);
        }
        assert!(work > 0);
        assert!(resident(&[0]).is_err());
    }

    #[test]
    fn growth_is_seen() {
        let watch = Watch::start(&[std::process::id()]);
        let big = vec![1_u8; 64 << 20];
        while watch.peaks_kib[0].load(Ordering::Relaxed) < watch.before_kib[0] + 32 * 1024 {
            thread::yield_now();
        }
        drop(big);
        assert!(watch.growth()[0] > 16.0);
    }
}
