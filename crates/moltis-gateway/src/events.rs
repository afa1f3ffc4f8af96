//! What has happened, for whoever wants to follow: the source of server-sent events later.
//!
//! One bounded broadcast. Nobody who makes an event ever waits: a follower that lags is told how
//! many it has missed and reads the present state again. Events carry ids, not contents, so that
//! what is shown is always what is stored.

use moltis_proto::{DeviceId, RequestId, RunId};
use tokio::sync::broadcast;

/// Events that a follower may be behind. One that is further behind has missed the oldest.
pub const EVENTS_KEPT: usize = 1024;

/// Something that has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A node is connected and ready for runs.
    NodeOnline(DeviceId),
    /// A node's connection is gone.
    NodeOffline(DeviceId),
    /// A node's record, or what it says of itself, has changed.
    NodeChanged(DeviceId),
    /// A sample has arrived.
    Telemetry(DeviceId),
    /// Several processes use one node's key.
    KeyCloned(DeviceId),
    /// A known device came with another key, or a known key with another device.
    KeyMismatch(DeviceId),
    /// The pairing window was opened or has closed.
    PairingChanged,
    /// A request to pair is new or has changed.
    PairingRequest(RequestId),
    /// A request to pair was answered.
    PairingDecided(RequestId),
    /// A run's process lives.
    RunStarted(RunId),
    /// A run is over.
    RunEnded(RunId),
}

/// The gateway's bell. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(EVENTS_KEPT))
    }
}

impl Events {
    /// Rings.
    pub fn send(&self, event: Event) {
        // Nobody listens: that is how it is most of the time.
        self.0.send(event).ok();
    }

    /// Returns how many receivers there are.
    #[cfg(feature = "metrics")]
    pub(crate) fn followers(&self) -> usize {
        self.0.receiver_count()
    }

    /// Returns a receiver of all that happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_that_lags_is_told_and_nobody_waits_for_it() {
        let events = Events::default();
        let mut follower = events.subscribe();
        for _ in 0..=EVENTS_KEPT {
            events.send(Event::PairingChanged);
        }
        assert_eq!(
            follower.recv().await,
            Err(broadcast::error::RecvError::Lagged(1))
        );
        assert_eq!(follower.recv().await, Ok(Event::PairingChanged));
    }
}
