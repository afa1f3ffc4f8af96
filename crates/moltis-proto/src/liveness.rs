//! Is the peer still there? One machine for both ends of an accepted connection.
//!
//! Any complete frame that opens counts as a sign of life. A side that has received nothing for a
//! while sends a ping; one that has received nothing for three times as long gives up. A side that
//! slept (its lid was shut, its machine suspended) must not obey frames from before: the caller
//! reads a clock that counts through a suspend beside the monotonic one, and asks this machine
//! *before* it looks at a frame.
//!
//! Driven by `node::link` and `gateway::session`. Nothing here reads a clock.

use std::time::{Duration, Instant};

use crate::code::CloseCode;
use crate::handshake::SessionLimits;

/// One moment on two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Counts while the machine runs.
    pub monotonic: Instant,
    /// Counts through a suspend too, from any fixed origin (`CLOCK_BOOTTIME` on Linux,
    /// `CLOCK_MONOTONIC` on macOS).
    pub boottime: Duration,
}

impl Moment {
    /// Returns the time that has passed since `earlier`, a suspend included.
    pub fn since(self, earlier: Self) -> Duration {
        let awake = self.monotonic.saturating_duration_since(earlier.monotonic);
        awake.max(self.boottime.saturating_sub(earlier.boottime))
    }
}

/// Why a connection has to be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lifeless {
    /// The peer said nothing for too long.
    #[error("nothing was heard for {} seconds", .0.as_secs())]
    Silence(Duration),
    /// This machine slept; whatever is in the buffers is from before.
    #[error("this machine slept for {} seconds", .0.as_secs())]
    Slept(Duration),
}

impl Lifeless {
    /// Returns what to tell the peer.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::Silence(_) => CloseCode::Silence,
            Self::Slept(_) => CloseCode::Slept,
        }
    }
}

/// The heartbeat of one connection.
#[derive(Debug, Clone)]
pub struct Liveness {
    ping_after: Duration,
    silence_max: Duration,
    heard: Moment,
    ping_due: Instant,
    pings_sent: u64,
}

impl Liveness {
    /// Begins with the connection's acceptance, which counts as the first frame.
    pub fn new(limits: &SessionLimits, now: Moment) -> Self {
        let floor = |ms: u64| Duration::from_millis(ms.clamp(100, 24 * 3_600_000));
        let ping_after = floor(limits.ping_after_ms);
        Self {
            ping_after,
            silence_max: floor(limits.silence_max_ms).max(ping_after),
            heard: now,
            ping_due: now.monotonic + ping_after,
            pings_sent: 0,
        }
    }

    /// A complete frame has been opened; call this before looking at what it says.
    ///
    /// # Errors
    /// The connection is over: the frame must not be obeyed.
    pub fn handle_frame(&mut self, now: Moment) -> Result<(), Lifeless> {
        self.check(now)?;
        self.heard = now;
        self.ping_due = now.monotonic + self.ping_after;
        Ok(())
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) has come, or the driver has woken for any
    /// other reason. Returns the number of a ping to send now, if one is due.
    ///
    /// # Errors
    /// The connection is over.
    pub fn handle_timeout(&mut self, now: Moment) -> Result<Option<u64>, Lifeless> {
        self.check(now)?;
        if now.monotonic < self.ping_due {
            return Ok(None);
        }
        self.ping_due = now.monotonic + self.ping_after;
        self.pings_sent += 1;
        Ok(Some(self.pings_sent))
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub fn poll_timeout(&self) -> Instant {
        self.ping_due.min(self.gives_up_at())
    }

    fn gives_up_at(&self) -> Instant {
        self.heard.monotonic + self.silence_max
    }

    fn check(&self, now: Moment) -> Result<(), Lifeless> {
        let silent = now
            .monotonic
            .saturating_duration_since(self.heard.monotonic);
        if silent >= self.silence_max {
            return Err(Lifeless::Silence(silent));
        }
        let passed = now.boottime.saturating_sub(self.heard.boottime);
        if passed > self.silence_max {
            return Err(Lifeless::Slept(passed.saturating_sub(silent)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock {
        origin: Instant,
        awake: Duration,
        asleep: Duration,
    }

    impl Clock {
        #[expect(clippy::disallowed_methods, reason = "an origin to count from")]
        fn new() -> Self {
            Self {
                origin: Instant::now(),
                awake: Duration::ZERO,
                asleep: Duration::ZERO,
            }
        }

        fn now(&self) -> Moment {
            Moment {
                monotonic: self.origin + self.awake,
                boottime: self.awake + self.asleep,
            }
        }

        fn run(&mut self, seconds: u64) -> Moment {
            self.awake += Duration::from_secs(seconds);
            self.now()
        }

        fn sleep(&mut self, seconds: u64) -> Moment {
            self.asleep += Duration::from_secs(seconds);
            self.now()
        }
    }

    fn start() -> (Clock, Liveness) {
        let clock = Clock::new();
        let liveness = Liveness::new(&SessionLimits::STANDARD, clock.now());
        (clock, liveness)
    }

    #[test]
    fn a_silent_peer_is_pinged_twice_and_dropped_at_the_deadline() {
        let (mut clock, mut liveness) = start();
        assert_eq!(liveness.handle_timeout(clock.run(14)), Ok(None));
        assert_eq!(liveness.handle_timeout(clock.run(1)), Ok(Some(1)));
        assert_eq!(liveness.handle_timeout(clock.run(0)), Ok(None));
        assert_eq!(liveness.handle_timeout(clock.run(15)), Ok(Some(2)));
        assert_eq!(liveness.handle_timeout(clock.run(14)), Ok(None));
        assert_eq!(
            liveness.handle_timeout(clock.run(1)),
            Err(Lifeless::Silence(Duration::from_secs(45)))
        );
    }

    #[test]
    fn any_frame_puts_the_deadline_off() {
        let (mut clock, mut liveness) = start();
        for _ in 0..100 {
            assert_eq!(liveness.handle_frame(clock.run(14)), Ok(()));
            assert_eq!(liveness.handle_timeout(clock.now()), Ok(None));
        }
        assert_eq!(
            liveness.poll_timeout(),
            clock.now().monotonic + Duration::from_secs(15)
        );
    }

    #[test]
    fn the_next_wake_up_is_never_behind_the_end() {
        let (mut clock, mut liveness) = start();
        for _ in 0..4 {
            let due = liveness.poll_timeout();
            let wait = due - clock.now().monotonic;
            if liveness.handle_timeout(clock.run(wait.as_secs())).is_err() {
                assert_eq!(clock.awake, Duration::from_secs(45));
                return;
            }
        }
        panic!("the connection outlived its deadline");
    }

    #[test]
    fn a_frame_from_before_a_suspend_is_not_obeyed() {
        let (mut clock, mut liveness) = start();
        clock.run(1);
        assert_eq!(
            liveness.handle_frame(clock.sleep(60)),
            Err(Lifeless::Slept(Duration::from_mins(1)))
        );
        assert_eq!(
            liveness
                .handle_timeout(clock.now())
                .map_err(Lifeless::close_code),
            Err(CloseCode::Slept)
        );
    }

    #[test]
    fn a_short_nap_does_no_harm() {
        let (mut clock, mut liveness) = start();
        clock.run(4);
        assert_eq!(liveness.handle_frame(clock.sleep(40)), Ok(()));
    }

    #[test]
    fn a_clock_that_goes_backwards_ends_nothing() {
        let (mut clock, mut liveness) = start();
        clock.sleep(1000);
        clock.run(10);
        let mut liveness_later = Liveness::new(&SessionLimits::STANDARD, clock.now());
        let earlier = Moment {
            boottime: Duration::ZERO,
            ..clock.now()
        };
        assert_eq!(liveness_later.handle_frame(earlier), Ok(()));
        assert!(liveness.handle_timeout(clock.now()).is_err());
    }

    #[test]
    fn limits_from_the_wire_cannot_make_it_spin_or_overflow() {
        let clock = Clock::new();
        for ms in [0, 1, u64::MAX] {
            let limits = SessionLimits {
                telemetry_interval_ms: ms,
                ping_after_ms: ms,
                silence_max_ms: ms,
            };
            let liveness = Liveness::new(&limits, clock.now());
            assert!(liveness.poll_timeout() > clock.now().monotonic);
        }
    }
}
