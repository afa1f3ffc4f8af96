//! Stdin that came whole with a request, kept until the node has all of it.
//!
//! Whoever asked and was told of the run has no reason to ask again: what the node has not taken when
//! the gateway dies would be lost, and the command would wait for it for ever. So it lies in a file
//! beside the output, mode 0600, and counts as output does. It is written before the row is, and synced
//! where the row is before anybody is told; the next process gives it on. A power cut may spoil a file
//! that was not synced: whoever reads it compares what the digest of the run says.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use moltis_identity::files::{open_here, read_here};
use moltis_proto::RunId;

use super::run::lock;
use super::{OutputError, Outputs, RunOutput, files};

/// That no stdin is kept.
pub(super) const NONE: u64 = u64::MAX;

impl RunOutput {
    /// Writes the stdin of the run into its file, in the place of what is there.
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub(crate) fn keep_stdin(self: &Arc<Self>, bytes: &[u8]) -> Result<(), OutputError> {
        let path = self.dir().join(files::STDIN);
        let failed = |error| OutputError::file("write", &path, error);
        {
            let mut disk = lock(&self.disk);
            let outputs = self.dir().parent().unwrap_or(self.dir());
            let room = files::room(&self.system, outputs).map_err(failed)?;
            if room < bytes.len() as u64 {
                return Err(failed(std::io::ErrorKind::StorageFull.into()));
            }
            if !self.dir().exists() {
                files::make_dir(&self.system, self.dir())?;
            }
            let write = || {
                let mut options = std::fs::OpenOptions::new();
                let options = options.write(true).create(true).truncate(true);
                let mut file = open_here(&path, options.mode(0o600))?;
                file.write_all(bytes)?;
                Ok(file)
            };
            let file = self.system.step("output.stdin", &path, write);
            let file = file.map_err(|error| {
                std::fs::remove_file(&path).ok(); // half of it is worth nothing
                std::fs::remove_dir(self.dir()).ok(); // something else may lie there
                failed(error)
            })?;
            disk.note_made(path, &Arc::new(file));
        }
        let length = bytes.len() as u64;
        let before = self.stdin_bytes.swap(length, Ordering::Relaxed);
        self.space.less(if before == NONE { 0 } else { before });
        self.space.more(length);
        self.syncing.note(self, length);
        Ok(())
    }

    /// Waits until the kept stdin survives a power cut.
    ///
    /// # Errors
    /// Where the disk failed to keep it.
    pub(crate) async fn stdin_synced(self: &Arc<Self>) -> Result<(), OutputError> {
        self.syncing.sync(Arc::clone(self)).await
    }

    /// Returns whether stdin is kept.
    pub(crate) fn has_stdin(&self) -> bool {
        self.stdin_bytes.load(Ordering::Relaxed) != NONE
    }

    /// Returns the stdin that an earlier process, or this one, has kept.
    pub(crate) fn kept_stdin(&self) -> Option<Bytes> {
        if !self.has_stdin() {
            return None;
        }
        let path = self.dir().join(files::STDIN);
        let read = read_here(&path).inspect_err(|error| {
            tracing::error!(run.id = %self.run_id(), %error, "the kept stdin of a run cannot be read");
        });
        read.ok().map(Bytes::from)
    }

    /// Lets go of the kept stdin, and of the directory where nothing else lies in it.
    pub(crate) fn drop_stdin(&self) {
        let mut disk = lock(&self.disk);
        let before = self.stdin_bytes.swap(NONE, Ordering::Relaxed);
        if before == NONE {
            return;
        }
        let path = self.dir().join(files::STDIN);
        disk.forget(&path);
        let remove = || std::fs::remove_file(&path);
        if let Err(error) = self.system.step("output.drop_stdin", &path, remove) {
            tracing::warn!(run.id = %self.run_id(), %error, "the kept stdin of a run cannot be deleted");
            return; // it goes with the run
        }
        self.space.less(before);
        if !self.is_filed() {
            std::fs::remove_file(self.dir().join(files::SYNCED)).ok(); // there is none most often
            std::fs::remove_dir(self.dir()).ok(); // something else lies there
        }
    }
}

impl Outputs {
    /// Lets go of the stdin that is kept of a run, where there is any.
    ///
    /// # Errors
    /// Where its files cannot be read.
    pub(crate) fn drop_stdin(&self, run_id: RunId) -> Result<(), OutputError> {
        if files::stdin_bytes(&self.0.dir.join(run_id.to_string())).is_some() {
            self.run(run_id)?.drop_stdin();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use moltis_proto::BootId;
    use moltis_proto::run::Stream;

    use super::super::OutputLimits;
    use super::*;

    const ID: RunId = RunId::from_bytes([1; 16]);

    fn open(dir: &std::path::Path) -> Outputs {
        let boot = Some(BootId::from_bytes([1; 16]));
        Outputs::open(dir, boot, OutputLimits::default()).unwrap()
    }

    #[tokio::test]
    async fn kept_stdin_is_there_for_the_next_process_until_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let run = open(dir.path()).run(ID).unwrap();
        assert_eq!(run.kept_stdin(), None);
        run.keep_stdin(b"first").unwrap();
        run.keep_stdin(b"all of it").unwrap();
        let mode = run.dir().join(files::STDIN).metadata().unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        run.stdin_synced().await.unwrap();
        let outputs = open(dir.path());
        assert_eq!(outputs.bytes(), 9);
        let run = outputs.run(ID).unwrap();
        assert_eq!(run.kept_stdin().unwrap(), "all of it");
        run.append(Stream::Stdout, 0, Bytes::from_static(b"short"))
            .unwrap();
        run.drop_stdin();
        run.drop_stdin();
        assert_eq!((outputs.bytes(), run.kept_stdin()), (0, None));
        assert!(!outputs.has_files(ID), "a short run makes no file");
        assert_eq!(open(dir.path()).run(ID).unwrap().kept_stdin(), None);
    }

    #[tokio::test]
    async fn output_lies_beside_kept_stdin_and_stays_when_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = open(dir.path());
        let run = outputs.run(ID).unwrap();
        run.keep_stdin(b"in").unwrap();
        let bytes = Bytes::from(vec![7; 100_000]);
        run.append(Stream::Stdout, 0, bytes).unwrap();
        run.synced().await.unwrap();
        run.drop_stdin();
        assert_eq!(outputs.bytes(), 100_000);
        let reborn = open(dir.path());
        assert_eq!(reborn.run(ID).unwrap().end(Stream::Stdout), 100_000);
        // And what is let go with the run is counted.
        reborn.run(ID).unwrap().keep_stdin(b"in").unwrap();
        let reborn = open(dir.path());
        reborn.remove(ID).unwrap();
        assert_eq!(reborn.bytes(), 0);
    }
}
