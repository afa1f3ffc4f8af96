//! How often a peer may say what costs it nothing: pings, samples, empty words. Pure.

use std::time::Instant;

/// Tokens that come back each second, and the most there are at once.
const PER_SECOND: f64 = 10.0;
const BURST: f64 = 60.0;

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    counted_at: Instant,
}

impl Bucket {
    /// Returns a full bucket.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            counted_at: now,
        }
    }

    /// Takes a token; false when there is none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted_at);
        self.counted_at = now;
        self.tokens = (self.tokens + passed.as_secs_f64() * PER_SECOND).min(BURST);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_forgiven_and_a_flood_is_not() {
        let mut now = tokio::time::Instant::now().into_std();
        let mut bucket = Bucket::new(now);
        assert_eq!((0..1000).filter(|_| bucket.take(now)).count(), 60);
        now += Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| bucket.take(now)).count(), 10);
    }
}
