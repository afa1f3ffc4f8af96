//! Output of an earlier run, set aside while nobody knows whether a new one has its id.
//!
//! Behind an older database a repeated request makes a row for an id whose run may be long over. What
//! lies in its place is the output of that run where the node has forgotten it, and of nobody where
//! it starts now. Until the node says so it waits in `<run>.before`, which is no run's place.

use std::path::{Path, PathBuf};

use moltis_proto::RunId;
use moltis_proto::run::Totals;

use super::{Inner, OutputError, Outputs, RunOutput, files};

/// What is added to the name of a run's directory.
const BEFORE: &str = "before";

/// Returns where output of an earlier run with this id waits.
pub(super) fn place(outputs: &Path, run_id: RunId) -> PathBuf {
    outputs.join(format!("{run_id}.{BEFORE}"))
}

/// Returns whose output waits in this directory, where that is what it is for.
pub(super) fn run_of(path: &Path) -> Option<RunId> {
    let (id, kind) = path.file_name()?.to_str()?.split_once('.')?;
    id.parse().ok().filter(|_| kind == BEFORE)
}

impl Outputs {
    /// Sets aside what lies in a run's place, so that another one may begin there. What is at work
    /// stays.
    ///
    /// # Errors
    /// Where it cannot be moved.
    pub(crate) fn set_aside(&self, run_id: RunId) -> Result<(), OutputError> {
        if self.is_at_work(run_id) || !self.has_files(run_id) {
            return Ok(());
        }
        self.drop_aside(run_id)?;
        let inner = &*self.0;
        let _alone = inner.files_of(run_id);
        let (from, to) = (
            inner.dir.join(run_id.to_string()),
            place(&inner.dir, run_id),
        );
        inner.rename(&from, &to)?;
        inner.asides().insert(run_id);
        Ok(())
    }

    /// Returns whether output of an earlier run with this id waits.
    pub(crate) fn is_aside(&self, run_id: RunId) -> bool {
        self.0.asides().contains(&run_id)
    }

    /// Returns whose output waits.
    pub(crate) fn asides(&self) -> Vec<RunId> {
        self.0.asides().iter().copied().collect()
    }

    /// Gives a run the output that was set aside, which is its own after all. One that has something
    /// already keeps that. Looks at the disk: not for a task of the runtime.
    ///
    /// # Errors
    /// Where it cannot be moved or read. It waits then.
    pub(crate) fn take_back(&self, run: &RunOutput) -> Result<(), OutputError> {
        let (inner, run_id) = (&*self.0, run.run_id());
        if !self.is_aside(run_id) || run.totals() != Totals::default() {
            return Ok(());
        }
        // What came with the request in vain lies there, and nothing else.
        run.drop_stdin();
        {
            let _alone = inner.files_of(run_id);
            let to = inner.dir.join(run_id.to_string());
            files::remove(&inner.system, &to)?;
            inner.rename(&place(&inner.dir, run_id), &to)?;
            inner.asides().remove(&run_id);
        }
        run.take_over(inner.recovered(run_id)?.extents);
        Ok(())
    }

    /// Deletes what was set aside: it is nobody's. Looks at the disk, as above.
    ///
    /// # Errors
    /// Where it cannot be deleted.
    pub(crate) fn drop_aside(&self, run_id: RunId) -> Result<(), OutputError> {
        if !self.is_aside(run_id) {
            return Ok(());
        }
        let inner = &*self.0;
        let _alone = inner.files_of(run_id);
        let freed = files::remove(&inner.system, &place(&inner.dir, run_id))?;
        inner.asides().remove(&run_id);
        inner.space.less(freed);
        Ok(())
    }
}

impl Inner {
    /// Moves a directory, also for a power cut: a row that is written behind it is on the disk first
    /// otherwise, and finds what was moved in its place.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), OutputError> {
        self.system
            .step("output.move", from, || std::fs::rename(from, to))
            .map_err(|error| OutputError::file("move", from, error))?;
        let dir = &self.dir;
        self.system
            .sync("output.sync_dir", dir, || {
                std::fs::File::open(dir)?.sync_all()
            })
            .map_err(|error| OutputError::file("sync", dir, error))
    }
}
