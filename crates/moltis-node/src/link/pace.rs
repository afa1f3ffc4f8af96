//! How fast the road to the gateway is, and how long a frame may be on it. Pure.
//!
//! On a slow road a long frame keeps everything behind it waiting: a pong, the end of another run.
//! So output is cut smaller there. The rate can be told only while the socket is what holds us up;
//! a socket that takes all that there is says nothing but that it is fast enough.

use std::time::{Duration, Instant};

/// Below this many bytes a second a road is slow.
pub(super) const SLOW_RATE: u64 = 1_000_000;

/// Bytes of output in one frame on a slow road.
pub(super) const SLOW_CHUNK_BYTES: usize = 16 * 1024;

/// How long the socket has to be busy before its rate is believed.
const MEASURED_OVER: Duration = Duration::from_millis(500);

/// Measures while there is something to send.
#[derive(Debug, Default)]
pub(super) struct Pace {
    busy_since: Option<Instant>,
    sent: u64,
    was_held_up: bool,
    slow: bool,
}

impl Pace {
    /// So many bytes were handed to the socket.
    pub(super) fn handle_sent(&mut self, bytes: usize, now: Instant) {
        let since = *self.busy_since.get_or_insert(now);
        self.sent += bytes as u64;
        let busy = now.saturating_duration_since(since);
        if busy >= MEASURED_OVER {
            let rate = u128::from(self.sent) * 1000 / busy.as_millis().max(1);
            self.slow = self.was_held_up && rate < u128::from(SLOW_RATE);
            self.begin();
        }
    }

    /// The socket takes nothing more for the moment.
    pub(super) fn handle_held_up(&mut self) {
        self.was_held_up = true;
    }

    /// There is nothing to send: what was measured so far would say too little.
    pub(super) fn handle_idle(&mut self) {
        self.begin();
    }

    /// Returns whether output should go in short frames.
    pub(super) fn is_slow(&self) -> bool {
        self.slow
    }

    fn begin(&mut self) {
        self.busy_since = None;
        self.sent = 0;
        self.was_held_up = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Road {
        pace: Pace,
        now: Instant,
    }

    impl Road {
        #[expect(clippy::disallowed_methods, reason = "an origin to count from")]
        fn new() -> Self {
            Self {
                pace: Pace::default(),
                now: Instant::now(),
            }
        }

        /// Sends for two seconds at this rate, held up each time or never.
        fn send(&mut self, bytes_a_second: usize, held_up: bool) -> bool {
            for _ in 0..20 {
                if held_up {
                    self.pace.handle_held_up();
                }
                self.now += Duration::from_millis(100);
                self.pace.handle_sent(bytes_a_second / 10, self.now);
            }
            self.pace.is_slow()
        }
    }

    #[test]
    fn only_a_socket_that_holds_us_up_is_slow() {
        let mut road = Road::new();
        assert!(!road.pace.is_slow(), "nothing is known yet");
        assert!(!road.send(50_000, false), "a command that prints little");
        assert!(road.send(50_000, true));
        assert!(!road.send(5_000_000, true), "the road became faster");
    }

    #[test]
    fn a_pause_is_not_measured() {
        let mut road = Road::new();
        for _ in 0..20 {
            road.pace.handle_held_up();
            road.pace.handle_sent(60_000, road.now);
            road.pace.handle_idle();
            road.now += Duration::from_secs(1);
        }
        assert!(!road.pace.is_slow());
    }
}
