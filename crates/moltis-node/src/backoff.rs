//! When to dial again. Pure: the randomness comes in as a number, the time as an argument.

use std::time::{Duration, Instant};

use moltis_proto::limits::{BACKOFF_MAX, BACKOFF_MIN, HEALTHY_AFTER};

/// Waits that double from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], each taken at random from its upper
/// half, so that many nodes do not come back in one moment. A connection that lived
/// [`HEALTHY_AFTER`] begins anew.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    failures: u32,
    connected_at: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    /// Begins with the shortest wait.
    pub(crate) fn new() -> Self {
        Self {
            failures: 0,
            connected_at: None,
        }
    }

    /// The gateway accepted this node.
    pub(crate) fn handle_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// The connection, or the attempt at one, is over. Returns how long to wait; `jitter` is any
    /// random number.
    pub(crate) fn handle_lost(&mut self, jitter: u32, now: Instant) -> Duration {
        let lived = self
            .connected_at
            .take()
            .map(|since| now.saturating_duration_since(since));
        if lived.is_some_and(|lived| lived >= HEALTHY_AFTER) {
            self.failures = 0;
        }
        let full = BACKOFF_MIN
            .saturating_mul(1 << self.failures.min(16))
            .min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        spread(full, jitter)
    }
}

/// Returns a time between half of `full` and `full`, but never below [`BACKOFF_MIN`].
pub(crate) fn spread(full: Duration, jitter: u32) -> Duration {
    let half = full / 2;
    let part = half.mul_f64(f64::from(jitter) / f64::from(u32::MAX));
    (half + part).max(BACKOFF_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin to count from")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn waits_grow_to_a_minute_and_stay_there() {
        let now = origin();
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..40)
            .map(|_| backoff.handle_lost(u32::MAX, now))
            .collect();
        assert_eq!(waits[0], Duration::from_millis(500));
        assert_eq!(waits[1], Duration::from_secs(1));
        assert_eq!(waits[6], Duration::from_secs(32));
        assert_eq!(waits[7], BACKOFF_MAX);
        assert_eq!(waits[39], BACKOFF_MAX);
    }

    #[test]
    fn jitter_stays_within_the_bounds() {
        for jitter in [0, 1, u32::MAX / 2, u32::MAX] {
            let mut backoff = Backoff::new();
            for _ in 0..40 {
                let wait = backoff.handle_lost(jitter, origin());
                assert!((BACKOFF_MIN..=BACKOFF_MAX).contains(&wait), "{wait:?}");
            }
        }
    }

    #[test]
    fn a_healthy_minute_begins_anew_and_a_short_life_does_not() {
        let start = origin();
        let mut backoff = Backoff::new();
        for _ in 0..10 {
            backoff.handle_lost(u32::MAX, start);
        }
        backoff.handle_connected(start);
        let short = backoff.handle_lost(u32::MAX, start + Duration::from_secs(59));
        assert_eq!(short, BACKOFF_MAX);
        backoff.handle_connected(start);
        let healthy = backoff.handle_lost(u32::MAX, start + Duration::from_mins(1));
        assert_eq!(healthy, BACKOFF_MIN);
    }
}
