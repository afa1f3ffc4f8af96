//! How a keeper leaves: its runs end, its client hears of it, and the disk keeps the rest.

use moltis_proto::limits;
use moltis_proto::run::Outcome;
use moltis_proto::{FromKeeper, RunRefusal};

use super::super::run::Run;
use super::{Core, Going, LEAVE_TIME, mark_dirty, now};

impl Core {
    /// Begins to leave: every run is ended, nothing new is taken.
    pub(in crate::keeper) fn leave(&mut self) {
        self.leaving = true;
        for run_id in self.starts.clear() {
            let code = RunRefusal::Leaving;
            if let Some(client) = &mut self.client {
                client.tell(FromKeeper::Refused { run_id, code });
            }
        }
        let now = now();
        for run in self.runs.values_mut() {
            if let Some(life) = &mut run.life {
                let adopted = || self.kernel.orphans(&self.leaders);
                life.end(Outcome::Cancelled, limits::GRACE, now, &adopted);
            }
            mark_dirty(run, &mut self.dirty);
        }
    }

    /// Returns whether a keeper that leaves may go: all runs are over, and the client and the disk
    /// have what they can have.
    pub(super) fn is_over(&mut self) -> bool {
        if !self.leaving || self.runs.values().any(|run| run.life.is_some()) {
            return false;
        }
        let now = now();
        if matches!(self.going, Going::No) {
            self.going = Going::Telling(now + LEAVE_TIME);
        }
        if let Going::Telling(by) = self.going
            && (by <= now || self.is_told())
        {
            self.going = Going::Spilling(now + LEAVE_TIME);
            self.detach("this keeper leaves");
            for run in self.runs.values_mut() {
                run.outbox.spill(now);
                mark_dirty(run, &mut self.dirty);
            }
            self.advance();
        }
        match self.going {
            Going::No | Going::Telling(_) => false,
            Going::Spilling(by) => by <= now || !self.runs.values().any(Run::is_spooling),
        }
    }

    /// Returns whether the client has everything that it can take.
    fn is_told(&self) -> bool {
        let Some(client) = &self.client else {
            return true;
        };
        let mut runs = self.runs.values();
        client.is_drained() && !runs.any(|run| run.outbox.awaits_client())
    }
}
