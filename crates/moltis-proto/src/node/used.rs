//! The ids that no run may have again: forgotten ones, and those that were refused.
//!
//! The newest [`USED_MAX`] of them: at two thousand runs a second that is more than the half minute in
//! which a `Start` may be repeated. Those of forgotten runs also stand in the journal, for the process
//! that comes after one that dies.

use std::collections::{HashMap, VecDeque};

use crate::{RunId, RunRefusal};

/// Ids that are remembered: about 6 MiB when all are taken.
pub const USED_MAX: usize = 100_000;

/// Ids that are used up, and what to answer to whoever wants one again.
#[derive(Debug, Default)]
pub struct UsedIds {
    refusals: HashMap<RunId, RunRefusal>,
    order: VecDeque<RunId>,
}

impl UsedIds {
    /// Returns what to answer to a `Start` with this id; `None` when it is free.
    pub fn refusal(&self, id: RunId) -> Option<RunRefusal> {
        self.refusals.get(&id).copied()
    }

    /// Returns what to answer to a `Start` with nothing to run in it, whose id is not among them. A
    /// gateway asks so whether a run has ever been here; where others may have had to give way, nobody
    /// can tell.
    pub fn refusal_of_unsound(&self) -> RunRefusal {
        if self.order.len() < USED_MAX {
            RunRefusal::Invalid
        } else {
            RunRefusal::Forgotten
        }
    }

    /// Remembers that this id is used up.
    pub fn insert(&mut self, id: RunId, refusal: RunRefusal) {
        if self.refusals.insert(id, refusal).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > USED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.refusals.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ids_give_way_and_the_newest_stay() {
        let id = |number: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
            RunId::from_bytes(bytes)
        };
        let mut used = UsedIds::default();
        assert_eq!(used.refusal_of_unsound(), RunRefusal::Invalid);
        for number in 0..USED_MAX + 10 {
            used.insert(id(number), RunRefusal::Forgotten);
            used.insert(id(number), RunRefusal::Forgotten);
        }
        assert_eq!(used.refusal(id(9)), None);
        assert_eq!(used.refusal(id(10)), Some(RunRefusal::Forgotten));
        assert_eq!(used.refusals.len(), USED_MAX);
        assert_eq!(used.refusal_of_unsound(), RunRefusal::Forgotten);
    }
}
