//! A gateway that is away, or gives nothing: how long to wait before it is asked again, and when to
//! stop asking.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Pauses between attempts to reach a gateway that is away.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long a gateway may be away, or give nothing, before the run is left alone.
const AWAY_MAX: Duration = Duration::from_mins(10);

/// An attempt that took longer had found the gateway, which answers or is away within less.
const HELD: Duration = Duration::from_mins(2);

/// How a reader stands to its gateway.
#[derive(Debug)]
pub(crate) struct Away {
    pause: Duration,
    since: Option<Instant>,
}

impl Away {
    /// The gateway is there.
    pub(crate) fn new() -> Self {
        Self {
            pause: PAUSE_MIN,
            since: None,
        }
    }

    /// Returns whether it has been away for longer than anybody waits.
    pub(crate) fn is_too_long(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() > AWAY_MAX)
    }

    /// Returns the same where only the time tells whether an attempt that was made at `asked` had found
    /// it: a command that is quiet gives nothing for long.
    pub(crate) fn is_too_long_behind(&mut self, asked: Instant) -> bool {
        if asked.elapsed() > HELD {
            self.is_over();
        }
        self.is_too_long()
    }

    /// It is away; returns whether it was not before.
    pub(crate) fn begins(&mut self) -> bool {
        let begins = self.since.is_none();
        self.since.get_or_insert_with(Instant::now);
        begins
    }

    /// It is there; returns whether it was away.
    pub(crate) fn is_over(&mut self) -> bool {
        self.since.take().is_some()
    }

    /// It has given something, so that the next pause is a short one.
    pub(crate) fn gave(&mut self) {
        self.pause = PAUSE_MIN;
    }

    /// Waits before the next attempt, each time longer.
    pub(crate) async fn pause(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Connections to a gateway that is there and gives nothing, as one that cannot read its disk.
#[derive(Debug, Default)]
pub(crate) struct Barren {
    since: Option<Instant>,
}

impl Barren {
    /// A connection has ended; returns whether none has brought anything for longer than anybody
    /// waits.
    pub(crate) fn ended(&mut self, has_given: bool) -> bool {
        if has_given {
            self.since = None;
            return false;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() > AWAY_MAX
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_is_away_is_asked_for_ten_minutes() {
        let mut away = Away::new();
        assert!(!away.is_too_long());
        assert!(away.begins() && !away.begins());
        advance(AWAY_MAX).await;
        assert!(!away.is_too_long());
        advance(SECOND).await;
        assert!(away.is_too_long());
        assert!(away.is_over() && !away.is_over());
        assert!(!away.is_too_long());
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_command_is_followed_over_restarts_that_are_hours_apart() {
        let mut away = Away::new();
        for _ in 0..3 {
            let asked = Instant::now();
            advance(12 * AWAY_MAX).await;
            assert!(!away.is_too_long_behind(asked), "it was there meanwhile");
            assert!(away.begins());
            advance(SECOND).await;
        }
        let asked = Instant::now();
        advance(SECOND).await;
        assert!(!away.is_too_long_behind(asked));
        advance(AWAY_MAX).await;
        assert!(away.is_too_long_behind(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_give_nothing_are_made_for_ten_minutes() {
        let mut barren = Barren::default();
        assert!(!barren.ended(false), "the first");
        advance(AWAY_MAX).await;
        assert!(!barren.ended(false));
        assert!(!barren.ended(true), "one has given something");
        assert!(!barren.ended(false), "they count anew");
        advance(AWAY_MAX + SECOND).await;
        assert!(barren.ended(false));
    }
}
