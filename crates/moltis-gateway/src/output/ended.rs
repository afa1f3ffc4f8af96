//! Output of runs that are over: opened for reading, and deleted.

use std::sync::{Arc, Mutex, Weak};

use moltis_proto::RunId;
use moltis_proto::run::Stream;

use super::run::lock;
use super::{EndedOutput, Inner, OutputError, Outputs, RunOutput, files};

/// Those that were opened for reading and are held.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<Vec<Weak<RunOutput>>>);

impl Readers {
    fn note(&self, run: &Arc<RunOutput>) {
        let mut readers = lock(&self.0);
        readers.retain(|run| run.strong_count() > 0);
        readers.push(Arc::downgrade(run));
    }

    fn of(&self, run_id: RunId) -> Vec<Arc<RunOutput>> {
        let readers = lock(&self.0);
        let held = readers.iter().filter_map(Weak::upgrade);
        held.filter(|run| run.run_id() == run_id).collect()
    }
}

impl Outputs {
    /// Returns the output of an ended run, for reading. What its totals name and nothing holds is a
    /// gap.
    ///
    /// # Errors
    /// Where its files cannot be read.
    pub async fn ended(
        &self,
        run_id: RunId,
        ended: &EndedOutput,
    ) -> Result<Arc<RunOutput>, OutputError> {
        let held = self.held(run_id);
        // A repeated request may have opened it anew before it learnt that the run is over.
        if let Some(run) = held.filter(|run| run.subscribe().borrow().finished) {
            return Ok(run);
        }
        let ended = ended.clone();
        let open = move |inner: &Inner| RunOutput::of_ended(inner, run_id, &ended);
        let run = self.aside(open).await.map(Arc::new)?;
        self.0.readers.note(&run);
        Ok(run)
    }

    /// Returns whether its files and its row still hold what an ended run wrote: all but the gaps that
    /// are known, and what was deleted to make room.
    ///
    /// # Errors
    /// Where its files cannot be read.
    pub(crate) async fn is_whole(
        &self,
        run_id: RunId,
        ended: &EndedOutput,
    ) -> Result<bool, OutputError> {
        if ended.freed {
            return Ok(true);
        }
        let found = self.aside(move |inner: &Inner| RunOutput::recover(inner, run_id));
        let found = found.await?.totals();
        let reaches = |stream| {
            let head = ended.heads.of(stream).len() as u64;
            found.of(stream).max(head) >= ended.totals.of(stream)
        };
        Ok(Stream::BOTH.into_iter().all(reaches))
    }

    /// Deletes the files of a run, and what was set aside of it. Those of one that
    /// [is at work](Self::is_at_work) stay.
    ///
    /// # Errors
    /// Where they cannot be deleted. Files that are not there are no error.
    pub fn remove(&self, run_id: RunId) -> Result<(), OutputError> {
        if self.is_at_work(run_id) {
            return Ok(());
        }
        // First the word, then the loss: who reads on is told what became of it.
        for run in self
            .0
            .readers
            .of(run_id)
            .into_iter()
            .chain(self.held(run_id))
        {
            run.free();
        }
        self.drop_aside(run_id)?;
        let _alone = self.0.files_of(run_id);
        let freed = files::remove(&self.0.system, &self.0.dir.join(run_id.to_string()))?;
        self.0.space.less(freed);
        Ok(())
    }
}
