//! A gateway that is away: how long to wait before it is asked again, and when to stop asking.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Pauses between attempts to reach a gateway that is away.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long a gateway may be away before the run is left alone.
const AWAY_MAX: Duration = Duration::from_mins(10);

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
