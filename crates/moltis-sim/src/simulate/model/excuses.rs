//! What has gone wrong in the world, and so may be told of a run: each with its time, for nothing
//! that came before a run was asked for excuses anything of it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::simulate::net::Place;

/// By when an ending that somebody was told has its row, where the store takes writes (ADR 9): endings
/// gather for 5 ms, and a slow disk takes some seconds.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// A moment: how much had happened, and how old the world was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Since {
    count: usize,
    pub(super) time: Duration,
}

/// What can go wrong with consequences that somebody is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Trouble {
    /// A keeper of this place died.
    KeeperDied(Place),
    /// A keeper of this place has begun, so that new runs are another one's.
    KeeperBegan(Place),
    /// The keepers of this place were asked to leave, and end their runs.
    KeeperLeaves(Place),
    /// A keeper of this place has left, asked or because it had nothing to do.
    KeeperLeft(Place),
    /// This machine was started anew.
    Rebooted(Place),
    /// Another machine has a copy of its key, and one of the two has just taken over from the other:
    /// to the gateway it is the same machine on another boot.
    Cloned(Place),
    /// It has lost files on the way.
    LostFiles(Place),
    /// A step of a keeper of this machine met a full disk.
    DiskFull(Place),
    /// A step of a keeper of this machine failed.
    DiskFailed(Place),
    /// A step of the gateway met a disk that was full or failed.
    StoreFailed,
    /// The gateway's process ended, in whatever way.
    GatewayDied,
    /// The gateway's machine lost its power.
    GatewayLostPower,
    /// The state of the gateway's database was noted.
    BackedUp,
    /// The gateway's database was put back to the state that was noted.
    Restored,
    /// This machine has slept for longer than a connection may be silent.
    Slept(Place),
    /// The operator asked to refuse the key of this machine.
    Revoking(Place),
    /// The operator was told that it is refused from now on.
    Revoked(Place),
}

/// An end of the gateway, a power cut of its machine, or a state of its database.
#[derive(Debug, Clone, Copy)]
struct Stand {
    at: Since,
    /// Every row that was there then is on the disk.
    synced: Since,
    /// Its store had met a disk that took nothing, and may take nothing since.
    was_troubled: bool,
}

/// All that has gone wrong.
#[derive(Debug, Default)]
pub(super) struct Excuses {
    now: Since,
    began: Option<Instant>,
    /// When each trouble came last.
    last: BTreeMap<Trouble, Since>,
    /// When keepers of a place died, or it was switched off.
    ends: BTreeMap<Place, Vec<Since>>,
    deaths: Vec<Stand>,
    cuts: Vec<Stand>,
    copy: Option<Stand>,
    /// Each with the state that was put back.
    restores: Vec<(Since, Stand)>,
    /// Every row that was there then is on the disk.
    synced: Since,
    /// The sync that is under way has begun then.
    syncing: Option<Since>,
}

impl Excuses {
    /// Something happens.
    pub(super) fn go_on(&mut self) {
        let now = Instant::now();
        self.now = Since {
            count: self.now.count + 1,
            time: now - *self.began.get_or_insert(now),
        };
    }

    pub(super) fn note(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::KeeperDied(place) | Trouble::Rebooted(place) => {
                self.ends.entry(place).or_default().push(self.now);
            }
            Trouble::GatewayDied => {
                self.syncing = None;
                self.deaths.push(self.stand());
            }
            Trouble::GatewayLostPower => {
                let died = self.deaths.last();
                let was_troubled = died.is_some_and(|death| death.was_troubled);
                self.cuts.push(Stand {
                    was_troubled,
                    ..self.stand()
                });
            }
            Trouble::BackedUp => self.copy = Some(self.stand()),
            Trouble::Restored => self.restores.extend(self.copy.map(|copy| (self.now, copy))),
            _ => {}
        }
        self.last.insert(trouble, self.now);
    }

    /// The gateway's store begins a sync.
    pub(super) fn syncs(&mut self) {
        self.syncing = Some(self.now);
    }

    /// That sync is done.
    pub(super) fn has_synced(&mut self) {
        self.synced = self.syncing.take().unwrap_or(self.synced);
    }

    pub(super) fn now(&self) -> Since {
        self.now
    }

    fn stand(&self) -> Stand {
        let died = self.deaths.last().map(|death| death.at).unwrap_or_default();
        Stand {
            at: self.now,
            synced: self.synced,
            was_troubled: self.came(Trouble::StoreFailed, died),
        }
    }

    fn came(&self, trouble: Trouble, since: Since) -> bool {
        self.last.get(&trouble).is_some_and(|last| *last > since)
    }

    pub(super) fn keeper_died(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::KeeperDied(place), since) || self.cloned(place, since)
    }

    /// Returns whether a keeper of this place died, or its machine, behind `since` and by this time.
    pub(super) fn keeper_ended_by(&self, place: Place, since: Since, time: Duration) -> bool {
        let mut ends = self.ends.get(&place).into_iter().flatten();
        ends.any(|end| *end > since && end.time <= time)
    }

    pub(super) fn keeper_began(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::KeeperBegan(place), since)
    }

    /// Returns whether a keeper has begun behind the last death of one.
    pub(super) fn has_heir(&self, place: Place) -> bool {
        let died = self.last.get(&Trouble::KeeperDied(place));
        died.is_none_or(|died| self.keeper_began(place, *died))
    }

    /// Returns whether keepers were asked to leave.
    pub(super) fn keeper_leaves(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::KeeperLeaves(place), since)
    }

    /// Returns whether a keeper is gone, asked or not.
    pub(super) fn keeper_left(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::KeeperLeft(place), since) || self.keeper_leaves(place, since)
    }

    pub(super) fn rebooted(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::Rebooted(place), since) || self.cloned(place, since)
    }

    pub(super) fn cloned(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::Cloned(place), since)
    }

    pub(super) fn lost_files(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::LostFiles(place), since)
    }

    pub(super) fn disk_was_full(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::DiskFull(place), since)
    }

    pub(super) fn disk_failed(&self, place: Place, since: Since) -> bool {
        self.came(Trouble::DiskFailed(place), since)
    }

    /// Returns whether the disk of a place's keepers was in trouble.
    pub(super) fn disk_had_trouble(&self, place: Place, since: Since) -> bool {
        self.disk_was_full(place, since) || self.disk_failed(place, since)
    }

    /// Returns whether the gateway's disk was in trouble.
    pub(super) fn store_failed(&self, since: Since) -> bool {
        self.came(Trouble::StoreFailed, since)
    }

    pub(super) fn gateway_died(&self, since: Since) -> bool {
        self.came(Trouble::GatewayDied, since)
    }

    pub(super) fn gateway_lost_power(&self, since: Since) -> bool {
        self.came(Trouble::GatewayLostPower, since)
    }

    /// Returns whether a power cut of the gateway may have taken a row that was there then: no sync
    /// that began later was done.
    pub(super) fn power_took(&self, row: Since) -> bool {
        let mut cuts = self.cuts.iter();
        cuts.any(|cut| cut.at > row && cut.synced < row)
    }

    /// Returns whether a database was put back that was older than this.
    pub(super) fn restored_over(&self, row: Since) -> bool {
        let mut restores = self.restores.iter();
        restores.any(|(at, copy)| *at > row && copy.at < row)
    }

    /// Returns whether any database was put back since.
    pub(super) fn restored(&self, since: Since) -> bool {
        self.came(Trouble::Restored, since)
    }

    /// Returns whether the gateway may have forgotten a row that was there then.
    pub(super) fn took_row(&self, row: Since) -> bool {
        self.power_took(row) || self.restored_over(row)
    }

    /// Returns whether a database was put back that did not hold an ending that was told then.
    pub(super) fn restored_without_ending(&self, told: Since) -> bool {
        let mut restores = self.restores.iter();
        restores.any(|(at, copy)| {
            *at > told && (copy.may_lack_ending(told) || self.took_ending_by(told, copy.at))
        })
    }

    /// Returns whether the gateway may have died before the row of an ending was written, or synced,
    /// that was told then.
    pub(super) fn death_took_ending(&self, told: Since) -> bool {
        self.took_ending_by(told, self.now)
    }

    /// Returns whether it may have died so by this moment.
    fn took_ending_by(&self, told: Since, by: Since) -> bool {
        let is_between = |stand: &&Stand| stand.at > told && stand.at <= by;
        let mut deaths = self.deaths.iter().filter(is_between);
        let mut cuts = self.cuts.iter().filter(is_between);
        deaths.any(|death| death.may_lack_ending(told))
            || cuts.any(|cut| cut.synced < told || cut.may_lack_ending(told))
    }

    /// Returns whether an ending that was told then may have been on nobody's disk: the gateway
    /// tells it before its row is written, as its node keeps it; and a node in whose journal there
    /// is no room keeps it in memory.
    pub(super) fn forgot_ending(&self, place: Place, begun: Since, told: Since) -> bool {
        let in_memory = self.disk_had_trouble(place, begun)
            && (self.rebooted(place, begun) || self.keeper_died(place, begun));
        self.death_took_ending(told)
            && (in_memory || self.rebooted(place, told) || self.was_revoked(place))
    }

    /// Returns whether any row was ever lost.
    pub(super) fn has_lost_rows(&self) -> bool {
        !self.cuts.is_empty() || !self.restores.is_empty()
    }

    /// Returns whether the gateway may have lost, since then, output that it had: with its power, or
    /// what lay in its memory.
    pub(super) fn death_took_output(&self, read: Since) -> bool {
        let mut deaths = self.deaths.iter();
        deaths.any(|death| death.at > read && death.may_lack_ending(read))
    }

    pub(super) fn was_revoked(&self, place: Place) -> bool {
        self.last.contains_key(&Trouble::Revoking(place))
    }
}

impl Stand {
    fn may_lack_ending(&self, told: Since) -> bool {
        self.at.time < told.time + WRITTEN_WITHIN || self.was_troubled
    }
}
