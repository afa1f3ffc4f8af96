//! One run of many, as who asked for all of them holds it: its end, and no output.

use std::sync::{Arc, OnceLock};

use moltis_proto::RunId;
use tokio::sync::watch;

use crate::exec::RunHandle;
use crate::store::{RunRecord, RunStage, StoreError};

/// One run of a fleet. It holds no output: [`Runs::handle`](crate::exec::Runs::handle) does.
#[derive(Debug, Clone)]
pub struct FleetRun {
    /// Its id.
    pub id: RunId,
    /// Whether an earlier request with the same key had made it.
    pub existed: bool,
    record: watch::Receiver<Arc<RunRecord>>,
    unwritten: Arc<OnceLock<StoreError>>,
}

impl FleetRun {
    pub(in crate::exec) fn of(handle: &RunHandle) -> Self {
        Self {
            id: handle.id(),
            existed: handle.existed(),
            record: handle.record.clone(),
            unwritten: Arc::clone(&handle.unwritten),
        }
    }

    /// Returns its record as it is now.
    pub fn record(&self) -> Arc<RunRecord> {
        Arc::clone(&self.record.borrow())
    }

    /// Waits until it is over, and returns the record with its ending; without one where the store
    /// does not take it, as [`RunHandle::wait`].
    ///
    /// # Cancel safety
    /// Dropping it lets go of the waiting only.
    pub async fn wait(&mut self) -> Arc<RunRecord> {
        let unwritten = &self.unwritten;
        let ended =
            |record: &Arc<RunRecord>| record.stage == RunStage::Ended || unwritten.get().is_some();
        // An error means that nobody changes it any more: it is what it is.
        self.record.wait_for(ended).await.map(drop).ok();
        self.record()
    }
}
