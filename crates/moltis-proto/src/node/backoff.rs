//! When to dial again. Pure: the randomness comes in as a number, the time as an argument.

use std::time::{Duration, Instant};

use crate::limits::{BACKOFF_MAX, BACKOFF_MIN, HEALTHY_AFTER};

/// Waits that double up to [`BACKOFF_MAX`], each taken at random from its upper half, so that many
/// nodes do not come back in one moment. The first is [`BACKOFF_MIN`] to twice of it. A connection that lived
/// [`HEALTHY_AFTER`] begins anew.
#[derive(Debug, Clone)]
pub struct Backoff {
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
    pub fn new() -> Self {
        Self {
            failures: 0,
            connected_at: None,
        }
    }

    /// The gateway accepted this node.
    pub fn handle_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// The connection, or the attempt at one, is over. Returns how long to wait; `jitter` is any
    /// random number.
    pub fn handle_lost(&mut self, jitter: u32, now: Instant) -> Duration {
        self.handle_sent_away(now);
        let full = BACKOFF_MIN
            .saturating_mul(2 << self.failures.min(16))
            .min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        spread(full, jitter)
    }

    /// The connection, or the attempt at one, is over, and the gateway said what that means for the
    /// next: it is there, and no wait grows for it.
    pub fn handle_sent_away(&mut self, now: Instant) {
        let lived = self
            .connected_at
            .take()
            .map(|since| now.saturating_duration_since(since));
        if lived.is_some_and(|lived| lived >= HEALTHY_AFTER) {
            self.failures = 0;
        }
    }

    /// Returns whether the wait that was given last was the first of its kind.
    pub fn is_at_first(&self) -> bool {
        self.failures <= 1
    }
}

/// Returns a time between half of `full` and `full`.
pub fn spread(full: Duration, jitter: u32) -> Duration {
    let half = full / 2;
    half + part_of(half, jitter)
}

/// Returns a time between nothing and `whole`.
pub fn part_of(whole: Duration, jitter: u32) -> Duration {
    whole.mul_f64(f64::from(jitter) / f64::from(u32::MAX))
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
        assert_eq!(waits[0], Duration::from_secs(1));
        assert_eq!(waits[1], Duration::from_secs(2));
        assert_eq!(waits[5], Duration::from_secs(32));
        assert_eq!(waits[6], BACKOFF_MAX);
        assert_eq!(waits[39], BACKOFF_MAX);
    }

    #[test]
    fn every_wait_is_spread_over_the_half_of_its_length() {
        let waits = |jitter| {
            let mut backoff = Backoff::new();
            (0..40).map(move |_| backoff.handle_lost(jitter, origin()))
        };
        let longest: Vec<_> = waits(u32::MAX).collect();
        for (wait, longest) in waits(0).zip(&longest) {
            assert!((BACKOFF_MIN..=BACKOFF_MAX).contains(&wait), "{wait:?}");
            assert_eq!(wait, *longest / 2);
        }
        for (wait, longest) in waits(u32::MAX / 2).zip(&longest) {
            let middle = longest.mul_f64(0.75);
            assert!(wait.abs_diff(middle) < Duration::from_millis(1), "{wait:?}");
        }
    }

    #[test]
    fn a_gateway_that_says_when_to_come_back_makes_no_wait_longer() {
        let start = origin();
        let mut backoff = Backoff::new();
        for _ in 0..10 {
            backoff.handle_sent_away(start);
        }
        assert_eq!(backoff.handle_lost(0, start), BACKOFF_MIN);
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
        assert!(!backoff.is_at_first());
        backoff.handle_connected(start);
        let healthy = backoff.handle_lost(u32::MAX, start + Duration::from_mins(1));
        assert_eq!(healthy, 2 * BACKOFF_MIN);
        assert!(backoff.is_at_first());
    }
}
