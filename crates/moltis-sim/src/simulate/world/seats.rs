//! Who holds the connection of each device, as the gateway does it and not as it tells it: looked at
//! in the moment of each message (I11, I21), and of each start (I13).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moltis_gateway::simulation::Seen;
use moltis_proto::handshake::Epoch;
use moltis_proto::{DeviceId, InstanceId, RunId};
use tokio::time::Instant;

use crate::simulate::model::{Violation, violation};

/// Processes that take over from each other more often than this, within [`WITHIN`], use one key in
/// two places: a fourth time is told.
const TAKEOVERS: usize = 4;
const WITHIN: Duration = Duration::from_mins(5);

/// What one world knows of its connections. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Who holds the connection of each device, and whether it is still there.
    holders: BTreeMap<DeviceId, Holder>,
    /// Devices that the operator was told are refused.
    revoked: BTreeSet<DeviceId>,
    /// Runs whose start was given to a connection, by whatever life of the gateway.
    released: BTreeSet<RunId>,
    /// Runs of which it was told that they are cancelled before that.
    spared: BTreeSet<RunId>,
    /// Takeovers between processes in this life of the gateway.
    takeovers: BTreeMap<DeviceId, VecDeque<Instant>>,
    /// Devices whose key is in two places, as it is to be told, and as it was.
    cloned: BTreeMap<DeviceId, Instant>,
    told: BTreeSet<DeviceId>,
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    epoch: Epoch,
    instance: InstanceId,
    is_here: bool,
}

impl Seats {
    /// Another life of the gateway begins.
    pub(super) fn begin(&self) {
        let mut state = self.state();
        state.holders.clear();
        state.takeovers.clear();
        state.cloned.clear();
        state.told.clear();
    }

    /// The operator was told that this device is refused from now on.
    pub(super) fn revoked(&self, device: DeviceId) {
        self.state().revoked.insert(device);
    }

    /// The gateway has lost rows that were not synced: what was cancelled may be asked for anew.
    pub(super) fn lost_rows(&self) {
        self.state().spared.clear();
    }

    /// The database was put back: who was refused may be let in again.
    pub(super) fn restored(&self) {
        self.lost_rows();
        self.state().revoked.clear();
    }

    /// Somebody was told that a run is cancelled.
    pub(super) fn cancelled(&self, run: RunId) {
        let mut state = self.state();
        if !state.released.contains(&run) {
            state.spared.insert(run);
        }
    }

    /// It was told that the key of this device is in two places.
    pub(super) fn told(&self, device: DeviceId) {
        self.state().told.insert(device);
    }

    /// Looks at what the gateway does.
    pub(super) fn handle(&self, seen: Seen) -> Result<(), Violation> {
        let mut state = self.state();
        match seen {
            Seen::Seated {
                device,
                epoch,
                instance,
            } => state.seated(device, epoch, instance),
            Seen::Heard { device, epoch } => state.heard(device, epoch),
            Seen::Left { device, epoch } => {
                if let Some(holder) = state.holders.get_mut(&device)
                    && holder.epoch == epoch
                {
                    holder.is_here = false;
                }
                Ok(())
            }
            Seen::Released(run) => {
                state.released.insert(run);
                if state.spared.contains(&run) {
                    return Err(violation!("I13", "{run} is sent, and was cancelled before"));
                }
                Ok(())
            }
        }
    }

    /// I21: a key in two places is told of.
    pub(super) fn check_told(&self) -> Result<(), Violation> {
        let state = self.state();
        let now = Instant::now();
        let due = |since: &Instant| *since < now;
        let mut cloned = state.cloned.iter().filter(|(_, since)| due(since));
        match cloned.find(|(device, _)| !state.told.contains(device)) {
            None => Ok(()),
            Some((device, _)) => Err(violation!(
                "I21",
                "the key of {device} is in two places, and nobody is told"
            )),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn seated(
        &mut self,
        device: DeviceId,
        epoch: Epoch,
        instance: InstanceId,
    ) -> Result<(), Violation> {
        let holder = Holder {
            epoch,
            instance,
            is_here: true,
        };
        let Some(before) = self.holders.insert(device, holder) else {
            return Ok(());
        };
        if before.epoch.counter >= epoch.counter {
            return Err(violation!(
                "I21",
                "connection {} takes over from {}, which is newer",
                epoch.counter,
                before.epoch.counter
            ));
        }
        if before.is_here && before.instance != instance {
            self.note_takeover(device);
        }
        Ok(())
    }

    fn note_takeover(&mut self, device: DeviceId) {
        let now = Instant::now();
        let times = self.takeovers.entry(device).or_default();
        times.retain(|at| now - *at < WITHIN);
        times.push_back(now);
        if times.len() >= TAKEOVERS {
            self.cloned.entry(device).or_insert(now);
        }
    }

    fn heard(&self, device: DeviceId, epoch: Epoch) -> Result<(), Violation> {
        let Some(holder) = self.holders.get(&device) else {
            return Err(violation!(
                "I11",
                "a message of {device}, which is not here"
            ));
        };
        if holder.epoch != epoch {
            return Err(violation!(
                "I11",
                "a message of connection {} is obeyed, from which {} has taken over",
                epoch.counter,
                holder.epoch.counter
            ));
        }
        if self.revoked.contains(&device) {
            return Err(violation!(
                "I11",
                "a message of connection {} is obeyed, whose key was revoked before",
                epoch.counter
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceId = DeviceId::from_bytes([1; 16]);

    fn epoch(counter: u32) -> Epoch {
        Epoch {
            incarnation: 7,
            counter,
        }
    }

    fn seated(counter: u32, instance: u8) -> Seen {
        Seen::Seated {
            device: DEVICE,
            epoch: epoch(counter),
            instance: InstanceId::from_bytes([instance; 16]),
        }
    }

    fn heard(counter: u32) -> Seen {
        Seen::Heard {
            device: DEVICE,
            epoch: epoch(counter),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_alone_is_listened_to() {
        let seats = Seats::default();
        seats.handle(seated(1, 1)).unwrap();
        seats.handle(heard(1)).unwrap();
        seats.handle(seated(2, 2)).unwrap();
        seats.handle(heard(2)).unwrap();
        assert_eq!(seats.handle(heard(1)).unwrap_err().invariant, "I11");
        assert_eq!(seats.handle(seated(1, 1)).unwrap_err().invariant, "I21");
        seats.begin();
        seats.handle(seated(1, 1)).unwrap();
        seats.revoked(DEVICE);
        assert_eq!(seats.handle(heard(1)).unwrap_err().invariant, "I11");
    }

    #[test]
    fn what_is_cancelled_before_it_is_sent_is_never_sent() {
        let (seats, run) = (Seats::default(), RunId::from_bytes([3; 16]));
        let other = RunId::from_bytes([4; 16]);
        seats.handle(Seen::Released(other)).unwrap();
        seats.cancelled(run);
        seats.cancelled(other);
        seats.handle(Seen::Released(other)).unwrap();
        let released = seats.handle(Seen::Released(run));
        assert_eq!(released.unwrap_err().invariant, "I13");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_over_again_and_again_is_told_of() {
        let seats = Seats::default();
        for counter in 1..=5 {
            let instance = u8::try_from(counter % 2).unwrap();
            seats.handle(seated(counter, instance)).unwrap();
        }
        seats.check_told().unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(seats.check_told().unwrap_err().invariant, "I21");
        seats.told(DEVICE);
        seats.check_told().unwrap();
    }
}
