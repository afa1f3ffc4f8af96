//! What processes cost: memory and processor time, read from `/proc`.

use std::fs;

use anyhow::Context as _;

/// One MiB in KiB, the unit of `/proc`.
const MIB: f64 = 1024.0;

/// Returns a figure of a process's `status` file, in KiB.
fn kib_of(pid: u32, figure: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(figure));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.with_context(|| format!("process {pid} tells no `{figure}`"))
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
pub(crate) fn resident(pids: &[u32]) -> anyhow::Result<f64> {
    let sizes = pids.iter().map(|pid| kib_of(*pid, "VmRSS:"));
    Ok(sizes.sum::<anyhow::Result<u64>>()? as f64 / MIB)
}

/// Returns the processor time of a process since its start, without its children's, in milliseconds.
///
/// # Errors
///
/// When it is not there.
#[expect(clippy::cast_precision_loss, reason = "ticks stay far below 2^52")]
pub(crate) fn processor_ms(pid: u32) -> anyhow::Result<f64> {
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

/// What some processes had in memory when they were looked at first.
#[derive(Debug)]
pub(crate) struct Peak(Vec<(u32, u64)>);

impl Peak {
    /// Looks at the processes now.
    ///
    /// # Errors
    ///
    /// When one of them is not there.
    pub(crate) fn over(pids: &[u32]) -> anyhow::Result<Self> {
        let now = pids.iter().map(|pid| {
            let kib = kib_of(*pid, "VmRSS:")?;
            anyhow::Ok((*pid, kib))
        });
        Ok(Self(now.collect::<anyhow::Result<_>>()?))
    }

    /// Returns by how much each was larger than that at its largest, in MiB, in the order given. The
    /// kernel keeps the peak of a whole life: processes that did something big before hide it.
    ///
    /// # Errors
    ///
    /// When one of them is not there.
    #[expect(
        clippy::cast_precision_loss,
        reason = "memory in KiB stays far below 2^52"
    )]
    pub(crate) fn growth(&self) -> anyhow::Result<Vec<f64>> {
        let growth = self.0.iter().map(|(pid, before)| {
            let peak = kib_of(*pid, "VmHWM:")?;
            Ok(peak.saturating_sub(*before) as f64 / MIB)
        });
        growth.collect()
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
    fn growth_is_seen_after_it_is_gone() {
        let peak = Peak::over(&[std::process::id()]).unwrap();
        drop(std::hint::black_box(vec![1_u8; 64 << 20]));
        assert!(peak.growth().unwrap()[0] > 16.0);
    }
}
