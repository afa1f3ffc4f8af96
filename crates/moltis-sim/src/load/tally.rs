//! What has happened so far, counted, and told on stdout.
//!
//! A line is one JSON object. It is written ten times a second, so whoever reads them sees states
//! pass by. When nobody reads any more, the program ends.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{MissedTickBehavior, interval};

/// Time between two lines.
const EVERY: Duration = Duration::from_millis(100);

/// One count.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn more(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn less(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Keeps the largest.
    pub(super) fn at_least(&self, value: Duration) {
        let ms = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_max(ms, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// All counts.
        #[derive(Debug, Default)]
        pub(super) struct Tally {
            $($(#[$doc])* pub(super) $name: Count,)*
        }

        impl Tally {
            fn counts(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

tally! {
    /// Nodes that are connected now.
    connected,
    /// Attempts to connect.
    dialed,
    /// Connections that were accepted, in all.
    accepted,
    /// Accepted connections that have ended, in all.
    lost,
    /// Of those, ended by the gateway with a time to come back.
    goodbyes,
    /// The longest such time, in milliseconds.
    back_in_max_ms,
    /// Attempts that nobody answered: the gateway does not listen.
    unanswered,
    /// Attempts that were answered with a time to come back.
    told_later,
    /// Attempts that broke off, or came to something else than a verdict.
    broken,
    /// Verdicts against a node.
    refused,
    /// Connections that the gateway closed with a code.
    closed,
    /// Runs that were started.
    runs,
    /// Samples that were sent.
    samples,
    /// Connections of strangers that stand now.
    strangers,
}

impl Tally {
    /// Tells the counts until nobody reads them.
    pub(super) async fn tell(&self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let counts = self.counts().into_iter();
            let line: Map<_, _> = counts
                .map(|(name, count)| (name.to_owned(), Value::from(count)))
                .collect();
            let mut stdout = std::io::stdout().lock();
            let told = writeln!(stdout, "{}", Value::from(line)).and_then(|()| stdout.flush());
            if told.is_err() {
                return;
            }
        }
    }
}
