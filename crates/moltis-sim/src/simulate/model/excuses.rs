//! What has gone wrong in the world, and so may be told of a run: each with its time, for nothing
//! that came before a run was asked for excuses anything of it.

use std::collections::BTreeMap;

use crate::simulate::net::Place;

/// A moment, counted in troubles.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Since(usize);

/// What can go wrong with consequences that somebody is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Trouble {
    /// A keeper of this place died.
    KeeperDied(Place),
    /// A keeper of this place has begun, so that new runs are another one's.
    KeeperBegan(Place),
    /// A keeper of this place was asked to leave, and ended its runs.
    KeeperLeft(Place),
    /// This machine was started anew.
    Rebooted(Place),
    /// It has lost files on the way.
    LostFiles(Place),
    /// A disk of this machine was full or failed; the gateway's is 0.
    DiskFailed(Place),
    /// The gateway's process ended, in whatever way.
    GatewayDied,
    /// The gateway's machine lost its power.
    GatewayLostPower,
    /// The gateway's database was put back to an older state.
    Restored,
    /// This machine has slept for longer than a connection may be silent.
    Slept(Place),
    /// The operator asked to refuse the key of this machine.
    Revoking(Place),
    /// The operator was told that it is refused from now on.
    Revoked(Place),
}

/// All that has gone wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Excuses {
    count: usize,
    /// When each trouble came last.
    last: BTreeMap<Trouble, usize>,
}

impl Excuses {
    pub(super) fn note(&mut self, trouble: Trouble) {
        self.count += 1;
        self.last.insert(trouble, self.count);
    }

    pub(super) fn now(&self) -> Since {
        Since(self.count)
    }

    fn came(&self, trouble: Trouble, since: Since) -> bool {
        self.last.get(&trouble).is_some_and(|last| *last > since.0)
    }

    pub(super) fn keeper_died(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::KeeperDied(place), since)
    }

    pub(super) fn keeper_began(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::KeeperBegan(place), since)
    }

    pub(super) fn keeper_left(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::KeeperLeft(place), since)
    }

    pub(super) fn rebooted(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::Rebooted(place), since)
    }

    pub(super) fn lost_files(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::LostFiles(place), since)
    }

    /// A disk in trouble may be noticed at any time later.
    pub(super) fn disk_had_trouble(&self, place: Place) -> bool {
        let mut places = [0, place].into_iter();
        places.any(|place| self.last.contains_key(&Trouble::DiskFailed(place)))
    }

    pub(super) fn gateway_died(&self, since: Since) -> bool {
        self.came(Trouble::GatewayDied, since)
    }

    pub(super) fn gateway_lost_power(&self, since: Since) -> bool {
        self.came(Trouble::GatewayLostPower, since)
    }

    pub(super) fn restored(&self, since: Since) -> bool {
        self.came(Trouble::Restored, since)
    }

    /// Returns whether an ending that was told then may have been on nobody's disk: the gateway
    /// tells it before its row is written, as its node keeps it; and a node in whose journal there
    /// is no room keeps it in memory.
    pub(super) fn forgot_ending(&self, place: Place, asked: Since, told: Since) -> bool {
        let in_memory = self.disk_had_trouble(place)
            && (self.rebooted(place, asked) || self.keeper_died(place, asked));
        self.gateway_died(told)
            && (in_memory || self.rebooted(place, told) || self.was_revoked(place))
    }

    /// Returns whether the gateway may have forgotten what it knew then.
    pub(super) fn lost_rows(&self, since: Since) -> bool {
        self.gateway_lost_power(since) || self.restored(since)
    }

    pub(super) fn has_lost_rows(&self) -> bool {
        self.lost_rows(Since(0))
    }

    pub(super) fn was_revoked(&self, place: Place) -> bool {
        self.last.contains_key(&Trouble::Revoking(place))
    }
}
