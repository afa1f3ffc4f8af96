//! The two clocks of a machine that may be suspended.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moltis_proto::liveness::Moment;

/// Reads both clocks at once.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// This machine's clocks.
    pub(crate) fn system() -> Self {
        Self(Arc::new(boottime))
    }

    /// Takes what counts through a suspend from elsewhere.
    pub(crate) fn with_boottime(read: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    pub(crate) fn now(&self) -> Moment {
        Moment {
            monotonic: tokio::time::Instant::now().into_std(),
            boottime: (self.0)(),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(target_os = "linux")]
const BOOTTIME: rustix::time::ClockId = rustix::time::ClockId::Boottime;

/// On macOS this one goes on in a sleep, and the one behind `Instant` does not.
#[cfg(not(target_os = "linux"))]
const BOOTTIME: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

fn boottime() -> Duration {
    let time = rustix::time::clock_gettime(BOOTTIME);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}
