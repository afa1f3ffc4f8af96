//! Wall time as an input.
//!
//! Whoever stamps a row or decides by the time of day asks a [`Clock`], so that tests can turn it.
//! Rows hold milliseconds; finer parts are cut. Waiting and measuring is not done here: that is
//! tokio's monotonic clock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// Where the time of day comes from. Cloning shares the source.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// Returns the clock of this machine.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// Returns a clock that stands at `now` until [`Clock::set`] turns it.
    pub fn manual(now: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(
            now.as_millisecond(),
        ))))
    }

    /// Returns the time, cut to milliseconds.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => cut(Timestamp::now()),
            Source::Manual(at) => from_millis(at.load(Ordering::SeqCst)),
        }
    }

    /// Turns a manual clock, backwards too. The clock of the machine stays as it is.
    pub fn set(&self, now: Timestamp) {
        if let Source::Manual(at) = &self.0 {
            at.store(now.as_millisecond(), Ordering::SeqCst);
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

/// Cuts a time to milliseconds: what rows can hold.
pub(crate) fn cut(at: Timestamp) -> Timestamp {
    from_millis(at.as_millisecond())
}

/// Returns the time of a row. What no calendar holds becomes the nearest that one does.
pub(crate) fn from_millis(at: i64) -> Timestamp {
    Timestamp::from_millisecond(at).unwrap_or(if at < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_until_it_is_turned() {
        let clock = Clock::manual(from_millis(1_000));
        let shared = clock.clone();
        assert_eq!(clock.now(), from_millis(1_000));
        shared.set(from_millis(-5));
        assert_eq!(clock.now(), from_millis(-5));
    }

    #[test]
    fn times_that_no_calendar_holds_are_brought_to_its_edge() {
        assert_eq!(from_millis(i64::MAX), Timestamp::MAX);
        assert_eq!(from_millis(i64::MIN), Timestamp::MIN);
    }
}
