//! What is counted while the gateway works, for whoever watches it from outside.
//!
//! Each room owns its counters (a run's are in [`exec`](crate::exec), a handshake's at the door) and
//! counts where a thing happens, for some nanoseconds. Here are the words for that: [`Count`],
//! [`CountBy`], [`Seconds`], and the closed sets of words that may stand as labels. No label ever
//! holds a name, an id, an address or a path that somebody else chose, so that the number of series
//! is bounded by this program alone.
//!
//! What is a state and no event (who is here, what waits) is not counted but looked at when
//! somebody asks: [`scrape`] does that, and holds every name and every HELP. Nothing is global.
//! Without the feature `metrics` the same words count nothing.

#[cfg(feature = "metrics")]
mod counted;
#[cfg(feature = "metrics")]
pub(crate) mod scrape;
#[cfg(not(feature = "metrics"))]
mod uncounted;

use moltis_proto::code::Refusal;
use moltis_proto::run::Outcome;

#[cfg(feature = "metrics")]
pub(crate) use counted::{Count, CountBy, RouteSeconds, Seconds};
#[cfg(not(feature = "metrics"))]
pub(crate) use uncounted::{Count, CountBy, RouteSeconds, Seconds};

/// A closed set of words that may stand as the value of one label.
#[cfg_attr(
    not(feature = "metrics"),
    expect(dead_code, reason = "only who counts looks at them")
)]
pub(crate) trait Word: Copy + 'static {
    /// Every one of them: a series that has never moved stands there with a zero.
    const ALL: &'static [Self];

    /// Returns the word as it is written.
    fn as_str(self) -> &'static str;
}

/// How far the times reach that a histogram sorts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Of a disk: 50 µs to 1 s.
    Disk,
    /// Of an answer: 500 µs to 30 s.
    Answer,
    /// Of a command: 10 ms to a day.
    Command,
}

#[cfg_attr(
    not(feature = "metrics"),
    expect(dead_code, reason = "only who counts looks at them")
)]
impl Scale {
    /// Returns the upper bounds of the buckets, in seconds.
    pub(crate) const fn bounds(self) -> &'static [f64] {
        match self {
            Self::Disk => &[
                0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
                0.2, 0.5, 1.0,
            ],
            Self::Answer => &[
                0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
                30.0,
            ],
            Self::Command => &[
                0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 14_400.0,
                86_400.0,
            ],
        }
    }
}

/// What is counted of runs.
#[derive(Debug, Clone)]
pub(crate) struct RunCounts {
    /// Rows written for requests.
    pub(crate) created: Count,
    /// Processes that live, by their node's word.
    pub(crate) started: Count,
    /// Endings, by how.
    pub(crate) ended: CountBy<Outcome>,
    /// From the request to its process.
    pub(crate) start_time: Seconds,
    /// From the request to its end.
    pub(crate) whole_time: Seconds,
    /// Of that, what the command itself did not take.
    pub(crate) overhead: Seconds,
}

impl Default for RunCounts {
    fn default() -> Self {
        Self {
            created: Count::default(),
            started: Count::default(),
            ended: CountBy::new("outcome"),
            start_time: Seconds::new(Scale::Answer),
            whole_time: Seconds::new(Scale::Command),
            overhead: Seconds::new(Scale::Answer),
        }
    }
}

/// What is counted of output.
#[derive(Debug, Clone, Default)]
pub(crate) struct OutputCounts {
    /// Bytes that came from nodes.
    pub(crate) received: Count,
    /// Bytes that may be acknowledged, gaps not among them.
    pub(crate) stored: Count,
}

/// What is measured of the store.
#[derive(Debug, Clone)]
pub(crate) struct StoreTimes {
    /// One transaction, however many writes it holds.
    pub(crate) commit: Seconds,
    /// One sync of the disk.
    pub(crate) sync: Seconds,
}

impl Default for StoreTimes {
    fn default() -> Self {
        Self {
            commit: Seconds::new(Scale::Disk),
            sync: Seconds::new(Scale::Disk),
        }
    }
}

/// What is counted of handshakes.
#[derive(Debug, Clone)]
pub(crate) struct HandshakeCounts {
    /// Connections that became a node's.
    pub(crate) accepted: Count,
    /// Those that did not, by why.
    pub(crate) refused: CountBy<Refused>,
}

impl Default for HandshakeCounts {
    fn default() -> Self {
        Self {
            accepted: Count::default(),
            refused: CountBy::new("reason"),
        }
    }
}

macro_rules! words {
    ($(#[$of:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal;)* }) => {
        $(#[$of])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

words! {
    /// Why a connection at `/ws` became no node's.
    Refused {
        /// A browser: it sent an Origin or a cookie.
        Browser = "browser";
        /// No WebSocket with one of our subprotocols.
        NotANode = "not_a_node";
        /// Too many strangers, or too many failures from there.
        TurnedAway = "turned_away";
        /// The gateway stops.
        ShuttingDown = "shutting_down";
        /// It was not done in time.
        Timeout = "timeout";
        /// The peer left in the middle.
        Left = "left";
        /// A key that is none, or a signature of another.
        BadProof = "bad_proof";
        /// Bytes that do not belong there.
        Protocol = "protocol";
        /// The store could not be asked.
        StoreFailed = "store_failed";
        /// Unknown, and the pairing window is closed.
        PairingOff = "pairing_off";
        /// Too many requests wait.
        PendingFull = "pending_full";
        /// A person said no.
        Rejected = "rejected";
        /// The request waited too long.
        Expired = "expired";
        /// The node waits on a newer connection.
        Superseded = "superseded";
        /// The key was revoked.
        Revoked = "revoked";
        /// Another key for this device, or another device for this key.
        KeyMismatch = "key_mismatch";
        /// Unknown, and it did not ask to pair.
        Unknown = "unknown";
        /// No version of the protocol in common.
        Version = "version";
        /// Another node has this node id.
        NodeIdInUse = "node_id_in_use";
        /// Too many attempts of a key.
        RateLimited = "rate_limited";
        /// The gateway's own key.
        OwnKey = "own_key";
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::PairingOff => Self::PairingOff,
            Refusal::PendingFull => Self::PendingFull,
            Refusal::Rejected => Self::Rejected,
            Refusal::Revoked => Self::Revoked,
            Refusal::KeyMismatch => Self::KeyMismatch,
            Refusal::Unknown => Self::Unknown,
            Refusal::Version => Self::Version,
            Refusal::NodeIdInUse => Self::NodeIdInUse,
            Refusal::RateLimited { .. } => Self::RateLimited,
            Refusal::OwnKey => Self::OwnKey,
            Refusal::Expired => Self::Expired,
        }
    }
}

impl Word for Outcome {
    const ALL: &'static [Self] = &[
        Self::Exited,
        Self::Signaled,
        Self::TimedOut,
        Self::Cancelled,
        Self::FailedToStart,
        Self::Refused,
        Self::Lost,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Signaled => "signaled",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::FailedToStart => "failed_to_start",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }
}
