//! What has happened, for whoever wants to follow: the source of server-sent events.
//!
//! The newest events lie in one bounded [`Ring`], numbered from 1 in the order in which they
//! happened, and every [`Follower`] reads them there at its own pace. So nobody who makes an event
//! ever waits or pays for readers, a reader that is slow or gone holds nothing, and one that comes
//! back with the number of its last event goes on behind it. A follower that is too far behind is
//! told so, and reads the present state again.
//!
//! Events carry ids, not contents: what is shown is what is stored. Who turns them into text is
//! [`crate::http`].

mod ring;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moltis_proto::{DeviceId, RequestId, RunId};
use tokio::sync::watch;

pub use self::ring::{EVENTS_KEPT, SAMPLES_KEPT};
use self::ring::{Found, Ring};
use crate::api::events::EventKind;
use crate::store::{NodeRecord, RunRecord};

/// Something that has happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A node is connected and ready for runs.
    NodeOnline(DeviceId),
    /// A node's connection is gone.
    NodeOffline(DeviceId),
    /// A node's record, or what it says of itself, has changed.
    NodeChanged(DeviceId),
    /// A node's record, which was this, is deleted.
    NodeForgotten(Arc<NodeRecord>),
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
    /// A run is over that nobody had claimed; this is the last that is known of it.
    RunLetGo(Arc<RunRecord>),
}

impl Event {
    /// Returns what it is about.
    pub fn kind(&self) -> EventKind {
        match self {
            Self::NodeOnline(_) => EventKind::NodeOnline,
            Self::NodeOffline(_) => EventKind::NodeOffline,
            Self::NodeChanged(_) => EventKind::NodeChanged,
            Self::NodeForgotten(_) => EventKind::NodeForgotten,
            Self::Telemetry(_) => EventKind::Telemetry,
            Self::KeyCloned(_) => EventKind::KeyCloned,
            Self::KeyMismatch(_) => EventKind::KeyMismatch,
            Self::PairingChanged => EventKind::PairingChanged,
            Self::PairingRequest(_) => EventKind::PairingRequest,
            Self::PairingDecided(_) => EventKind::PairingDecided,
            Self::RunStarted(_) => EventKind::RunStarted,
            Self::RunEnded(_) | Self::RunLetGo(_) => EventKind::RunEnded,
        }
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// Every kind.
    pub const ALL: Self = Self(u32::MAX);

    /// Returns whether this kind is in it.
    pub fn contains(self, kind: EventKind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    fn bit(kind: EventKind) -> u32 {
        1 << kind as u32
    }
}

impl FromIterator<EventKind> for Kinds {
    fn from_iter<I: IntoIterator<Item = EventKind>>(kinds: I) -> Self {
        Self(kinds.into_iter().fold(0, |set, kind| set | Self::bit(kind)))
    }
}

/// Events have been missed: more has happened than is kept. The present state is to be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more has happened since than is kept: read the present state again")]
pub struct Missed;

/// The gateway's bell, and what rang it lately. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ring: Mutex<Ring>,
    /// The number of the newest event.
    newest: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Inner {
            ring: Mutex::default(),
            newest: watch::Sender::new(0),
        }))
    }
}

impl Events {
    /// Rings.
    pub fn send(&self, event: Event) {
        let newest = self.ring().push(event);
        // Two who ring at once may come here in either order.
        self.0.newest.send_if_modified(|known| {
            let newer = *known < newest;
            *known = newest.max(*known);
            newer
        });
    }

    /// Returns how many followers there are.
    #[cfg(feature = "metrics")]
    pub(crate) fn followers(&self) -> usize {
        self.0.newest.receiver_count()
    }

    /// Returns a follower of all that happens from now on.
    pub fn subscribe(&self) -> Follower {
        self.follow(Kinds::ALL)
    }

    /// Returns a follower of these kinds from now on.
    pub fn follow(&self, kinds: Kinds) -> Follower {
        let wake = self.0.newest.subscribe();
        let at = self.ring().newest();
        Follower {
            events: self.clone(),
            wake,
            at,
            kinds,
        }
    }

    /// Returns a follower of these kinds that goes on behind the event with this number.
    ///
    /// # Errors
    /// Where some of what happened since is not kept any more.
    pub fn resume(&self, kinds: Kinds, behind: u64) -> Result<Follower, Missed> {
        let mut follower = self.follow(kinds);
        match self.ring().find(behind, kinds) {
            Found::Gone => Err(Missed),
            Found::Next(..) | Found::Nothing => {
                follower.at = behind;
                Ok(follower)
            }
        }
    }

    /// Returns the number of the newest event; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.ring().newest()
    }

    /// What a panic left behind is whole all the same: each change is one step.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads events one after the other, each once. It holds its place and nothing else.
#[derive(Debug)]
pub struct Follower {
    events: Events,
    wake: watch::Receiver<u64>,
    /// The number of the last event that it was given, or that was not for it.
    at: u64,
    kinds: Kinds,
}

impl Follower {
    /// Waits for the next event, and returns it.
    ///
    /// # Errors
    /// Where events were missed. What comes after that happened later.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost when it is dropped.
    pub async fn recv(&mut self) -> Result<Event, Missed> {
        self.next().await.map(|(_, event)| event)
    }

    /// Returns the next event where one has happened already.
    ///
    /// # Errors
    /// As [`Follower::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Event>, Missed> {
        Ok(self.try_next()?.map(|(_, event)| event))
    }

    /// As [`Follower::recv`], with the event's number.
    pub(crate) async fn next(&mut self) -> Result<(u64, Event), Missed> {
        loop {
            // What rings from here on is not missed.
            self.wake.borrow_and_update();
            if let Some(next) = self.try_next()? {
                return Ok(next);
            }
            self.wake.changed().await.ok(); // `self.events` holds the sender
        }
    }

    /// Returns the number behind which it goes on.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    fn try_next(&mut self) -> Result<Option<(u64, Event)>, Missed> {
        let ring = self.events.ring();
        let found = ring.find(self.at, self.kinds);
        let newest = ring.newest();
        drop(ring);
        match found {
            Found::Next(number, event) => {
                self.at = number;
                Ok(Some((number, event)))
            }
            Found::Nothing => {
                self.at = newest;
                Ok(None)
            }
            Found::Gone => {
                self.at = newest;
                Err(Missed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u8) -> Event {
        Event::RunEnded(RunId::from_bytes([number; 16]))
    }

    #[tokio::test]
    async fn a_follower_that_is_too_far_behind_is_told_and_nobody_waits_for_it() {
        let events = Events::default();
        let mut follower = events.subscribe();
        for _ in 0..=EVENTS_KEPT {
            events.send(Event::PairingChanged);
        }
        assert_eq!(follower.recv().await, Err(Missed));
        events.send(run(1));
        assert_eq!(follower.recv().await, Ok(run(1)), "it goes on from there");
    }

    #[tokio::test]
    async fn each_follower_is_given_everything_once_and_in_order() {
        let events = Events::default();
        let followers: Vec<_> = (0..4).map(|_| events.subscribe()).collect();
        let reading = followers.into_iter().map(async |mut follower| {
            let mut seen = Vec::new();
            while seen.len() < 1000 {
                seen.push(follower.next().await.unwrap().0);
                tokio::task::yield_now().await;
            }
            seen
        });
        let ringing = async {
            for number in 0..1000_u32 {
                events.send(run(number.to_le_bytes()[0]));
                if number % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        };
        let (seen, ()) = tokio::join!(futures_util::future::join_all(reading), ringing);
        let all: Vec<u64> = (1..=1000).collect();
        assert!(seen.iter().all(|seen| *seen == all));
    }

    #[tokio::test]
    async fn who_comes_back_goes_on_behind_its_last_event() {
        let events = Events::default();
        let mut first = events.subscribe();
        events.send(run(1));
        let (number, _) = first.next().await.unwrap();
        drop(first);
        events.send(run(2));
        events.send(Event::PairingChanged);
        let runs = Kinds::from_iter([EventKind::RunEnded]);
        let mut again = events.resume(runs, number).unwrap();
        assert_eq!(again.try_recv(), Ok(Some(run(2))));
        assert_eq!(again.try_recv(), Ok(None), "the rest is not for it");
        assert_eq!(
            again.at(),
            events.newest(),
            "and need not be looked at again"
        );
    }
}
