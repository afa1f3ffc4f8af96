//! The two clocks of liveness: one that stands still while the machine sleeps, one that does not.

use std::time::Duration;

use moltis_proto::liveness::Moment;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Counts through a suspend.
#[cfg(any(target_os = "linux", target_os = "android"))]
const THROUGH_SLEEP: ClockId = ClockId::Boottime;
/// Counts through a suspend: on macOS the monotonic clock does, where Rust's own does not.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const THROUGH_SLEEP: ClockId = ClockId::Monotonic;

/// Reads both.
pub(crate) fn now() -> Moment {
    at(Instant::now().into_std())
}

/// Returns the moment of now, whose monotonic clock was just read.
pub(crate) fn at(monotonic: std::time::Instant) -> Moment {
    let boot = clock_gettime(THROUGH_SLEEP);
    Moment {
        monotonic,
        boottime: Duration::new(
            u64::try_from(boot.tv_sec).unwrap_or_default(),
            u32::try_from(boot.tv_nsec).unwrap_or_default(),
        ),
    }
}
