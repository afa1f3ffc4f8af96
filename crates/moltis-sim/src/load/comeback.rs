//! When a node dials again: the rules of `docs/protocol.md`, section 7. Pure.

use std::time::Duration;

use moltis_proto::limits::{BACKOFF_MAX, BACKOFF_MIN, HEALTHY_AFTER};
use tokio::time::Instant;

/// What the end of a connection, or of an attempt at one, says about the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The gateway named a time.
    In(Duration),
    /// As the back-off says.
    BackOff,
}

/// Waits that grow, of one node.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Comeback {
    failures: u32,
    accepted_at: Option<Instant>,
}

impl Comeback {
    /// The gateway accepted the node.
    pub(super) fn accepted(&mut self, now: Instant) {
        self.accepted_at = Some(now);
    }

    /// Returns how long to wait; `jitter` is any random number.
    pub(super) fn wait(&mut self, next: Next, jitter: u32, now: Instant) -> Duration {
        let lived = self.accepted_at.take();
        if lived.is_some_and(|since| now.saturating_duration_since(since) >= HEALTHY_AFTER) {
            self.failures = 0;
        }
        let part = f64::from(jitter) / f64::from(u32::MAX);
        match next {
            // Never sooner than it was asked to, and not all at once; nothing has failed.
            Next::In(wait) => wait.max(BACKOFF_MIN) + (wait / 4).mul_f64(part),
            Next::BackOff => {
                let full = BACKOFF_MIN
                    .saturating_mul(2 << self.failures.min(16))
                    .min(BACKOFF_MAX);
                self.failures = self.failures.saturating_add(1);
                full / 2 + (full / 2).mul_f64(part)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_double_to_a_minute_and_begin_anew_after_a_healthy_one() {
        let mut comeback = Comeback::default();
        let mut wait = || comeback.wait(Next::BackOff, u32::MAX, Instant::now());
        let waits: Vec<_> = (0..9).map(|_| wait().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        comeback.accepted(Instant::now());
        tokio::time::advance(HEALTHY_AFTER).await;
        let first = comeback.wait(Next::BackOff, 0, Instant::now());
        assert_eq!(first, BACKOFF_MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_names_a_time_is_never_asked_sooner() {
        let mut comeback = Comeback::default();
        let asked = Duration::from_secs(8);
        for (jitter, seconds) in [(0, 8), (u32::MAX, 10)] {
            let wait = comeback.wait(Next::In(asked), jitter, Instant::now());
            assert_eq!(wait.as_secs(), seconds);
        }
    }
}
