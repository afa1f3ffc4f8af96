//! One run's turn of the thread that syncs: which files it has to cover, and what may keep it from that.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::super::disk::Unsynced;
use super::super::sync::NotSynced;
use super::super::{OutputError, files};
use super::{RunOutput, lock};

impl RunOutput {
    /// One turn of the syncing thread: all that was written when it began is on the disk when it
    /// ends.
    pub(in crate::output) async fn sync_now(&self) -> Result<(), NotSynced> {
        let written = {
            let memory = self.memory();
            [memory[0].on_disk(), memory[1].on_disk()]
        };
        let unsynced = lock(&self.disk).take_unsynced();
        let synced = self.sync(&unsynced, written).await;
        let mut disk = lock(&self.disk);
        if let Err(NotSynced::Later(_)) = &synced {
            disk.put_back(unsynced);
        }
        disk.sync_done();
        synced
    }

    async fn sync(&self, unsynced: &Unsynced, written: [u64; 2]) -> Result<(), NotSynced> {
        let Unsynced { files, new_names } = unsynced;
        if files.is_empty() && !new_names {
            return Ok(());
        }
        for (path, file) in files {
            self.sync_file("output.sync", path, file, File::sync_data)
                .await?;
        }
        if let Some(boot_id) = self.boot_id {
            let path = self.dir.join(files::SYNCED);
            match files::write_synced(&self.system, &path, boot_id, written) {
                Ok(file) => {
                    self.sync_file("output.sync_synced", &path, &file, File::sync_data)
                        .await?;
                }
                // The run was let go meanwhile, its directory with it.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => {
                    return Err(NotSynced::Later(OutputError::file("write", &path, error)));
                }
            }
        }
        if *new_names {
            for dir in [Some(self.dir.as_path()), self.dir.parent()]
                .into_iter()
                .flatten()
            {
                match File::open(dir) {
                    Ok(file) => {
                        self.sync_file("output.sync_dir", dir, &file, File::sync_all)
                            .await?;
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                    Err(error) => {
                        return Err(NotSynced::Later(OutputError::file("open", dir, error)));
                    }
                }
            }
        }
        Ok(())
    }

    async fn sync_file(
        &self,
        what: &'static str,
        path: &Path,
        file: &File,
        sync: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), NotSynced> {
        let synced = self.system.slow_sync(what, path, || sync(file)).await;
        synced.map_err(|error| NotSynced::Failed(OutputError::file("sync", path, error)))
    }
}
