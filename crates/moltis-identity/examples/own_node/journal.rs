//! What has to survive the node's own process: which runs it was given, and which it forgot.
//!
//! A line for each, written and synced before anything is done about it: `start <run> <digest>`,
//! `forget <run>`, and first of all the journal's own id.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use moltis_identity::random;
use moltis_proto::key::Digest;
use moltis_proto::{JournalId, RunId};

use super::Result;

pub(crate) struct Journal {
    pub(crate) id: JournalId,
    /// Runs that were started and not forgotten, with their digests.
    pub(crate) started: BTreeMap<RunId, Digest>,
    forgotten: BTreeSet<RunId>,
    file: File,
}

impl Journal {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            let id = JournalId::from_bytes(random::bytes());
            write_whole(path, &format!("journal {id}\n"))?;
        }
        let text = fs::read_to_string(path)?;
        let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let head = lines.next();
        let Some(["journal", id]) = head.as_deref() else {
            return Err(format!("{} is not a journal", path.display()).into());
        };
        let mut journal = Self {
            id: id.parse()?,
            started: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            file: File::options().append(true).open(path)?,
        };
        for line in lines {
            match line[..] {
                ["start", run_id, digest] => {
                    let digest = serde_json::from_str(&format!("\"{digest}\""))?;
                    journal.started.insert(run_id.parse()?, digest);
                }
                ["forget", run_id] => journal.forgot(run_id.parse()?),
                // The last line of a process that died while it wrote: nothing came of it.
                _ => {}
            }
        }
        Ok(journal)
    }

    pub(crate) fn is_forgotten(&self, run_id: RunId) -> bool {
        self.forgotten.contains(&run_id)
    }

    /// Remembers a run. Only then may it be started.
    pub(crate) fn start(&mut self, run_id: RunId, digest: Digest) -> Result {
        let text = serde_json::to_string(&digest)?;
        self.write(&format!("start {run_id} {}\n", text.trim_matches('"')))?;
        self.started.insert(run_id, digest);
        Ok(())
    }

    pub(crate) fn forget(&mut self, run_id: RunId) -> Result {
        self.write(&format!("forget {run_id}\n"))?;
        self.forgot(run_id);
        Ok(())
    }

    fn forgot(&mut self, run_id: RunId) {
        self.started.remove(&run_id);
        self.forgotten.insert(run_id);
    }

    fn write(&mut self, line: &str) -> Result {
        self.file.write_all(line.as_bytes())?;
        Ok(self.file.sync_data()?)
    }
}

/// Writes a file that is there whole or not at all.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(fs::rename(&new, path)?)
}
