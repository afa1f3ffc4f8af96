//! Who is known, and who is here.
//!
//! Known is who has a record: a [`Directory`], made anew and swapped whole when a record changes,
//! so that looking somebody up never waits. Here is who has a connection: one [`Seat`] for each
//! device, the newest. An older connection that ends later never takes a newer one's seat away.
//!
//! Written by sessions, by `local` and by the gateway's administration; read by everybody.

mod takeovers;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use moltis_proto::code::CloseCode;
use moltis_proto::handshake::Epoch;
use moltis_proto::telemetry::Sample;
use moltis_proto::{DeviceId, InstanceId};

use crate::events::{Event, Events};
use crate::exec::route::{Directory, Route, RouteError};
use crate::exec::select::{Known, Selector, Standing};
use crate::session::seat::Seat;
use crate::store::NodeRecord;
use takeovers::Takeovers;

/// Who is known and who is here. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Roster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    incarnation: u32,
    counter: AtomicU32,
    known: RwLock<Arc<Directory>>,
    here: RwLock<HashMap<DeviceId, Arc<Seat>>>,
    samples: RwLock<HashMap<DeviceId, Arc<StampedSample>>>,
    /// When devices that were here since this process began were last heard.
    heard: RwLock<HashMap<DeviceId, Timestamp>>,
    /// How many were here when the gateway began to end.
    at_the_end: OnceLock<usize>,
    takeovers: Mutex<Takeovers>,
    events: Events,
}

/// A sample and when it arrived, by the gateway's clock.
#[derive(Debug, Clone)]
pub struct StampedSample {
    /// When.
    pub at: Timestamp,
    /// What.
    pub sample: Sample,
}

/// A node as it is known, and whether it is here.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its record.
    pub record: Arc<NodeRecord>,
    /// Its connection; `None` while it is offline.
    pub presence: Option<Presence>,
    /// When something was last heard of it since this process began; `None` before the first.
    pub heard_at: Option<Timestamp>,
    /// Its last sample since this process began; `None` before the first.
    pub sample: Option<Arc<StampedSample>>,
}

/// How many nodes there are in each state.
#[cfg(feature = "metrics")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Connected, and ready for runs.
    pub(crate) online: usize,
    /// Known, and not that.
    pub(crate) offline: usize,
    /// Refused for good.
    pub(crate) revoked: usize,
}

/// What a newer connection of a device tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// The old one was lost, or its program started anew.
    Harmless,
    /// Several processes use one key: to be said once, until it has been quiet for a while.
    Cloned,
}

/// A connection that is ready for runs.
#[derive(Debug, Clone)]
pub struct Presence {
    /// Since when.
    pub since: Timestamp,
    /// From where, where that is known.
    pub remote: Option<IpAddr>,
    /// When its last frame arrived.
    pub heard_at: Timestamp,
    /// How far its clock is ahead of the gateway's, less the time that its word was on the way;
    /// `None` before it has told it.
    pub clock_ahead: Option<SignedDuration>,
    /// Its record as it was when it was accepted: what it says of itself on this connection.
    pub accepted_as: Option<Arc<NodeRecord>>,
}

impl NodeView {
    /// Returns what selectors ask about, as it is known now.
    pub fn known(&self) -> Known<'_> {
        let platform = &self.said().platform;
        let sample = self.sample.as_ref().map(|stamped| &stamped.sample);
        Known {
            name: self.record.name.as_str(),
            standing: match self.presence {
                Some(_) => Standing::Online,
                None => Standing::Offline,
            },
            labels: &self.record.labels,
            os: &platform.os,
            arch: &platform.arch,
            runtimes: sample.map_or_else(Vec::new, |sample| {
                sample
                    .runtimes
                    .iter()
                    .map(|one| one.name.as_str())
                    .collect()
            }),
            providers: sample.map_or_else(Vec::new, |sample| {
                sample
                    .providers
                    .iter()
                    .map(|one| one.name.as_str())
                    .collect()
            }),
        }
    }

    /// Returns whether a selector means it. One that is revoked is never meant.
    pub fn is_meant_by(&self, select: &Selector) -> bool {
        self.record.revoked_at.is_none() && select.matches(&self.known())
    }

    /// Returns when something was last heard of it: by this process, or as the record says.
    pub fn last_seen(&self) -> Option<Timestamp> {
        self.heard_at.max(self.record.last_seen_at)
    }

    /// Returns the record that holds what the node says of itself: on its connection, or, while it
    /// is offline, on its last.
    pub fn said(&self) -> &NodeRecord {
        let here = self.presence.as_ref();
        here.and_then(|here| here.accepted_as.as_deref())
            .unwrap_or(&self.record)
    }
}

impl Roster {
    /// Returns a roster of these nodes, none of them here. The incarnation is random for each
    /// process.
    pub(crate) fn new(
        incarnation: u32,
        records: impl IntoIterator<Item = Arc<NodeRecord>>,
        events: Events,
    ) -> Self {
        Self(Arc::new(Inner {
            incarnation,
            counter: AtomicU32::new(0),
            known: RwLock::new(Arc::new(Directory::new(records))),
            here: RwLock::default(),
            samples: RwLock::default(),
            heard: RwLock::default(),
            at_the_end: OnceLock::new(),
            takeovers: Mutex::default(),
            events,
        }))
    }

    /// Returns everybody who is known, as one consistent snapshot.
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&read(&self.0.known))
    }

    /// Returns all nodes, revoked ones too, sorted by name, id and device.
    pub fn list(&self) -> Vec<NodeView> {
        let directory = self.directory();
        let mut nodes: Vec<NodeView> = directory.iter().map(|record| self.view(record)).collect();
        nodes.sort_by(|a, b| {
            let (a, b) = (&a.record, &b.record);
            (&a.name, &a.node_id, a.device_id).cmp(&(&b.name, &b.node_id, b.device_id))
        });
        nodes
    }

    /// Returns the nodes that a selector means, sorted by name and id: offline ones too, revoked
    /// ones never.
    pub fn meant_by(&self, select: &Selector) -> Vec<NodeView> {
        let mut nodes = self.list();
        nodes.retain(|node| node.is_meant_by(select));
        nodes
    }

    /// Returns the node with this device.
    pub fn get(&self, device: DeviceId) -> Option<NodeView> {
        let directory = self.directory();
        directory.get(device).map(|record| self.view(record))
    }

    /// Finds the node that a word names: its id, its name, or the beginning of its id.
    ///
    /// # Errors
    /// [`RouteError`], with the candidates where there are several.
    pub fn find(&self, word: &str) -> Result<NodeView, RouteError> {
        let directory = self.directory();
        directory.find(word).map(|record| self.view(record))
    }

    /// Finds the place that a route names.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn route(&self, text: &str) -> Result<Route, RouteError> {
        self.directory().route(text)
    }

    /// Returns how many nodes are here.
    pub fn here(&self) -> usize {
        read(&self.0.here).len()
    }

    /// Counts who is known, by state. The same words as in the API: online is who takes runs.
    #[cfg(feature = "metrics")]
    pub(crate) fn census(&self) -> Census {
        let directory = self.directory();
        let here = read(&self.0.here);
        let mut census = Census::default();
        for record in directory.iter() {
            let seat = here.get(&record.device_id);
            if record.revoked_at.is_some() {
                census.revoked += 1;
            } else if seat.is_some_and(|seat| seat.ready().is_some()) {
                census.online += 1;
            } else {
                census.offline += 1;
            }
        }
        census
    }

    /// Returns how many nodes were here when this was asked first: by the first of them that is
    /// told to go.
    pub(crate) fn here_at_the_end(&self) -> usize {
        *self.0.at_the_end.get_or_init(|| self.here())
    }

    fn view(&self, record: &Arc<NodeRecord>) -> NodeView {
        let seat = self.seat(record.device_id);
        let here = seat.as_ref().map(|seat| seat.heard_at());
        let heard_at = here.max(read(&self.0.heard).get(&record.device_id).copied());
        let presence = seat
            .filter(|seat| seat.ready().is_some())
            .map(|seat| Presence {
                since: seat.sitter.since,
                remote: seat.sitter.remote,
                heard_at: seat.heard_at(),
                clock_ahead: seat.clock_ahead(),
                accepted_as: seat.sitter.record.clone(),
            });
        NodeView {
            record: Arc::clone(record),
            presence,
            heard_at,
            sample: read(&self.0.samples).get(&record.device_id).cloned(),
        }
    }

    /// Swaps what is known.
    pub(crate) fn set_known(&self, records: impl IntoIterator<Item = Arc<NodeRecord>>) {
        let directory = Arc::new(Directory::new(records));
        keep_samples_of(&mut write(&self.0.samples), &directory);
        write(&self.0.heard).retain(|device, _| directory.get(*device).is_some());
        *write(&self.0.known) = directory;
    }

    /// Returns an epoch that no connection has had.
    pub(crate) fn next_epoch(&self) -> Epoch {
        Epoch {
            incarnation: self.0.incarnation,
            counter: self.0.counter.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    /// Returns the random number of this process.
    pub(crate) fn incarnation(&self) -> u32 {
        self.0.incarnation
    }

    /// Returns the seat of a device.
    pub(crate) fn seat(&self, device: DeviceId) -> Option<Arc<Seat>> {
        read(&self.0.here).get(&device).cloned()
    }

    /// Returns all seats.
    pub(crate) fn seats(&self) -> Vec<Arc<Seat>> {
        read(&self.0.here).values().cloned().collect()
    }

    /// Gives a device's seat to its newest connection. The one before is told to close, and
    /// returned, so that the newer one can wait for its end; beside it whether the device's key
    /// has just been found in two places.
    pub(crate) fn take_seat(
        &self,
        device: DeviceId,
        seat: &Arc<Seat>,
        now: Instant,
    ) -> Option<(Arc<Seat>, Takeover)> {
        let before = {
            let mut here = write(&self.0.here);
            let is_newer =
                |sitting: &Arc<Seat>| sitting.sitter.epoch.counter > seat.sitter.epoch.counter;
            if here.get(&device).is_some_and(is_newer) {
                // Of two that were accepted in one moment the newer one was here first.
                seat.close(CloseCode::Superseded);
                return None;
            }
            here.insert(device, Arc::clone(seat))?
        };
        before.close(CloseCode::Superseded);
        let takeover = self.note_takeover(device, before.sitter.instance_id, seat, now);
        Some((before, takeover))
    }

    fn note_takeover(
        &self,
        device: DeviceId,
        before: InstanceId,
        seat: &Arc<Seat>,
        now: Instant,
    ) -> Takeover {
        if before == seat.sitter.instance_id {
            return Takeover::Harmless;
        }
        let cloned = self
            .0
            .takeovers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .note(device, now);
        if cloned {
            tracing::warn!(
                device.id = %device,
                peer.addr = ?seat.sitter.remote,
                "several processes take over from each other with one node's key: it was probably copied; the newest stays"
            );
            self.0.events.send(Event::KeyCloned(device));
            return Takeover::Cloned;
        }
        Takeover::Harmless
    }

    /// Returns whether several processes take over from each other with this device's key.
    pub(crate) fn is_cloned(&self, device: DeviceId, now: Instant) -> bool {
        let takeovers = self.0.takeovers.lock();
        let takeovers = takeovers.unwrap_or_else(PoisonError::into_inner);
        takeovers.is_reported(device, now)
    }

    /// A connection has ended. Its seat is free, unless a newer one has it.
    pub(crate) fn leave_seat(&self, device: DeviceId, seat: &Arc<Seat>) -> bool {
        // Before the seat is empty, so that there is no moment in which it was never heard.
        let heard_at = seat.heard_at();
        write(&self.0.heard)
            .entry(device)
            .and_modify(|known| *known = heard_at.max(*known))
            .or_insert(heard_at);
        let mut here = write(&self.0.here);
        let own = here
            .get(&device)
            .is_some_and(|sitting| Arc::ptr_eq(sitting, seat));
        if own {
            here.remove(&device);
        }
        own
    }

    /// Keeps a node's newest sample.
    pub(crate) fn set_sample(&self, device: DeviceId, at: Timestamp, sample: Sample) {
        write(&self.0.samples).insert(device, Arc::new(StampedSample { at, sample }));
        self.0.events.send(Event::Telemetry(device));
    }
}

/// Drops the samples of those who are not known any more.
fn keep_samples_of(samples: &mut HashMap<DeviceId, Arc<StampedSample>>, known: &Directory) {
    samples.retain(|device, _| known.get(*device).is_some());
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::seat::Sitter;
    use crate::store::Target;

    const DEVICE: DeviceId = DeviceId::from_bytes([1; 16]);

    fn seat(counter: u32) -> Arc<Seat> {
        let (seat, _mailbox) = Seat::new(Sitter {
            target: Target::Node(DEVICE),
            epoch: Epoch {
                incarnation: 7,
                counter,
            },
            instance_id: InstanceId::from_bytes([2; 16]),
            codec: moltis_proto::Codec::Postcard,
            record: None,
            remote: None,
            since: Timestamp::UNIX_EPOCH,
        });
        seat
    }

    #[test]
    fn the_newest_connection_has_the_seat_whichever_comes_to_it_first() {
        let now = tokio::time::Instant::now().into_std();
        for order in [[1, 2], [2, 1]] {
            let roster = Roster::new(7, [], Events::default());
            let seats = order.map(seat);
            for seat in &seats {
                roster.take_seat(DEVICE, seat, now);
            }
            for seat in &seats {
                let is_newest = seat.sitter.epoch.counter == 2;
                assert_eq!(seat.is_closing(), !is_newest, "{order:?}");
            }
            let sitting = roster.seat(DEVICE).unwrap();
            assert_eq!(sitting.sitter.epoch.counter, 2, "{order:?}");
        }
    }
}
