//! The runs that are under way, and the places of those that are about to be.
//!
//! A run is in the table from the moment its row is written, or found open, until its ending is
//! written. Whoever turns a row into a run holds the [`Place`] of its id meanwhile, so that there
//! is never a second value of one run.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moltis_proto::RunId;
use tokio::sync::watch;

use super::live::LiveRun;
#[cfg(feature = "metrics")]
use crate::store::RunStage;
use crate::store::Target;

/// All runs that are under way.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    by_id: HashMap<RunId, Arc<LiveRun>>,
    by_target: HashMap<Target, HashMap<RunId, Arc<LiveRun>>>,
    /// Closed when whoever holds the place has left it.
    places: HashMap<RunId, watch::Receiver<()>>,
}

/// How many runs there are in each state.
#[cfg(feature = "metrics")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Open {
    /// Their process is not known yet.
    pub(crate) starting: usize,
    /// Their process lives, as far as is known.
    pub(crate) running: usize,
    /// They are over, and their ending is not written or their node still holds them.
    pub(crate) ending: usize,
}

/// What there is at an id.
#[derive(Debug)]
pub(crate) enum Spot<'a> {
    /// A run that is under way.
    Live(Arc<LiveRun>),
    /// None, and the right to look at the row and to make one.
    Free(Place<'a>),
}

/// The right to make the run of an id. Dropping it leaves the id to others.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    table: &'a Table,
    id: RunId,
    _left: watch::Sender<()>,
}

impl Table {
    /// Returns a run that is under way.
    pub(crate) fn get(&self, id: RunId) -> Option<Arc<LiveRun>> {
        self.lock().by_id.get(&id).cloned()
    }

    /// Returns all runs that are under way at a place.
    pub(crate) fn at(&self, target: &Target) -> Vec<Arc<LiveRun>> {
        let inner = self.lock();
        let runs = inner.by_target.get(target);
        runs.map(|runs| runs.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Returns how many runs there are in each state.
    #[cfg(feature = "metrics")]
    pub(crate) fn open(&self) -> Open {
        let runs: Vec<_> = self.lock().by_id.values().cloned().collect();
        let mut open = Open::default();
        for run in runs {
            match run.record().stage {
                _ if run.is_ending() => open.ending += 1,
                RunStage::Ended => open.ending += 1,
                RunStage::WaitingApproval | RunStage::Starting => open.starting += 1,
                RunStage::Running => open.running += 1,
            }
        }
        open
    }

    /// Returns the places where runs are under way.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.lock().by_target.keys().cloned().collect()
    }

    /// Returns the run with this id, or its place. Waits while somebody else holds the place.
    ///
    /// # Cancel safety
    /// Nothing is held when it is dropped.
    pub(crate) async fn spot(&self, id: RunId) -> Spot<'_> {
        loop {
            let mut theirs = {
                let mut inner = self.lock();
                if let Some(run) = inner.by_id.get(&id) {
                    return Spot::Live(Arc::clone(run));
                }
                match inner.places.entry(id) {
                    Entry::Occupied(theirs) => theirs.get().clone(),
                    Entry::Vacant(free) => {
                        let (left, held) = watch::channel(());
                        free.insert(held);
                        return Spot::Free(Place {
                            table: self,
                            id,
                            _left: left,
                        });
                    }
                }
            };
            theirs.changed().await.ok(); // nothing is ever sent: an error says that it was left
        }
    }

    /// Takes a run out whose ending is written.
    pub(crate) fn remove(&self, run: &LiveRun) {
        let target = run.target();
        let mut inner = self.lock();
        inner.by_id.remove(&run.id);
        if let Some(runs) = inner.by_target.get_mut(&target) {
            runs.remove(&run.id);
            if runs.is_empty() {
                inner.by_target.remove(&target);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Puts the run into the table.
    pub(crate) fn fill(self, run: LiveRun) -> Arc<LiveRun> {
        let target = run.target();
        let run = Arc::new(run);
        let mut inner = self.table.lock();
        inner.by_id.insert(run.id, Arc::clone(&run));
        inner
            .by_target
            .entry(target)
            .or_default()
            .insert(run.id, Arc::clone(&run));
        drop(inner);
        run
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.table.lock().places.remove(&self.id);
    }
}
