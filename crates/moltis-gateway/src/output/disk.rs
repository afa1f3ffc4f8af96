//! The open files of one run, as the writing thread uses them.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use moltis_identity::files::open_here;
use moltis_proto::BootId;
use moltis_proto::run::{GapReason, Stream};

use super::{OutputError, files};
use crate::system::System;

/// Pieces that one writev(2) takes (`IOV_MAX` is 1024 on Linux and macOS).
const IOVECS_MAX: usize = 512;

/// Lines after which the file with the gaps is made short: some 300 KB.
const NOTES_MAX: usize = 8 * 1024;

/// What one run has open for writing.
#[derive(Debug)]
pub(super) struct Disk {
    system: System,
    dir: PathBuf,
    boot_id: Option<BootId>,
    segment_bytes: u64,
    open: [Option<Segment>; 2],
    gaps: Option<Arc<File>>,
    /// Lines that were written to the file with the gaps since it was last made short.
    notes: usize,
    /// It was made short since something was taken to be synced.
    is_short: bool,
    /// Files with bytes that no sync has covered.
    unsynced: Vec<(PathBuf, Arc<File>)>,
    /// A name was made that the directory may not have on the disk yet.
    new_names: bool,
    /// What was taken to be synced is not synced yet.
    at_sync: bool,
}

/// What a sync has to cover.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) files: Vec<(PathBuf, Arc<File>)>,
    /// Whether the directory belongs to it.
    pub(super) new_names: bool,
}

#[derive(Debug)]
struct Segment {
    from: u64,
    to: u64,
    path: PathBuf,
    file: Arc<File>,
}

/// What one write did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wrote {
    /// Where the segment begins.
    pub(super) segment: u64,
    /// Where the stream's bytes on disk end now.
    pub(super) to: u64,
}

impl Disk {
    pub(super) fn new(
        system: System,
        dir: PathBuf,
        boot_id: Option<BootId>,
        segment_bytes: u64,
    ) -> Self {
        Self {
            system,
            dir,
            boot_id,
            segment_bytes,
            open: [None, None],
            gaps: None,
            notes: 0,
            is_short: false,
            unsynced: Vec::new(),
            new_names: false,
            at_sync: false,
        }
    }

    /// Has the next sync cover a segment that an earlier process wrote, with all names beside it.
    pub(super) fn take_over(&mut self, stream: Stream, from: u64) -> Result<(), OutputError> {
        for path in [
            files::segment(&self.dir, stream, from),
            self.dir.join(files::GAPS),
        ] {
            match open_here(&path, File::options().read(true)) {
                Ok(file) => self.note_unsynced(path, &Arc::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(OutputError::file("open", &path, error)),
            }
        }
        self.new_names = true;
        Ok(())
    }

    /// Goes on with a segment that an earlier process began.
    pub(super) fn go_on(&mut self, stream: Stream, from: u64, to: u64) -> Result<(), OutputError> {
        let path = files::segment(&self.dir, stream, from);
        let file =
            files::append_to(&path).map_err(|error| OutputError::file("open", &path, error))?;
        self.open[stream.index()] = Some(Segment {
            from,
            to,
            path,
            file: Arc::new(file),
        });
        Ok(())
    }

    /// Appends pieces that begin at `from`, all or, where a segment ends or the disk is full, some.
    pub(super) fn write(
        &mut self,
        stream: Stream,
        from: u64,
        mut pieces: Vec<Bytes>,
    ) -> Result<Wrote, OutputError> {
        self.keep_what_fits(stream, from, &mut pieces)?;
        let system = self.system.clone();
        let segment = self.segment(stream, from)?;
        let file = Arc::clone(&segment.file);
        let mut left: &mut [Bytes] = &mut pieces;
        while !left.is_empty() {
            let slices: Vec<_> = left
                .iter()
                .take(IOVECS_MAX)
                .map(|piece| IoSlice::new(piece))
                .collect();
            let write = || (&*file).write_vectored(&slices);
            match system.step("output.write", &segment.path, write) {
                Ok(0) => break,
                Ok(mut wrote) => {
                    segment.to += wrote as u64;
                    while let Some(piece) = left.first_mut() {
                        if wrote < piece.len() {
                            piece.advance(wrote);
                            break;
                        }
                        wrote -= piece.len();
                        left = &mut left[1..];
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What is written already is told first; the next call meets the error again.
                Err(_) if segment.to > from => break,
                Err(error) => return Err(OutputError::file("write to", &segment.path, error)),
            }
        }
        let wrote = Wrote {
            segment: segment.from,
            to: segment.to,
        };
        let path = segment.path.clone();
        self.note_unsynced(path, &file);
        Ok(wrote)
    }

    /// Cuts pieces to the room that there is.
    fn keep_what_fits(
        &self,
        stream: Stream,
        from: u64,
        pieces: &mut Vec<Bytes>,
    ) -> Result<(), OutputError> {
        let outputs = self.dir.parent().unwrap_or(&self.dir);
        let room = files::room(&self.system, outputs).map_err(|error| {
            let path = files::segment(&self.dir, stream, from);
            OutputError::file("write to", &path, error)
        })?;
        let mut room = usize::try_from(room).unwrap_or(usize::MAX);
        for piece in &mut *pieces {
            piece.truncate(room);
            room -= piece.len();
        }
        pieces.retain(|piece| !piece.is_empty());
        Ok(())
    }

    /// Writes a gap down. The next bytes go into a segment of their own.
    pub(super) fn note_gap(
        &mut self,
        stream: Stream,
        from: u64,
        to: u64,
        reason: GapReason,
    ) -> Result<(), OutputError> {
        self.open[stream.index()] = None;
        self.note(stream, from, to, reason)
    }

    /// Writes down that a segment will be deleted to make room.
    pub(super) fn note_lost(
        &mut self,
        stream: Stream,
        from: u64,
        to: u64,
    ) -> Result<(), OutputError> {
        self.note(stream, from, to, GapReason::Limit)
    }

    fn note(
        &mut self,
        stream: Stream,
        from: u64,
        to: u64,
        reason: GapReason,
    ) -> Result<(), OutputError> {
        let path = self.dir.join(files::GAPS);
        let mut line = files::gap_line(stream, from, to, reason);
        // Taken, so that behind a write that failed it is looked at anew.
        let file = if let Some(file) = self.gaps.take() {
            file
        } else {
            let torn = files::is_torn(&path);
            if torn.map_err(|error| OutputError::file("read", &path, error))? {
                line.insert(0, '\n'); // a line of its own, and not the rest of that one
            }
            Arc::new(self.make(&path)?)
        };
        let write = || (&*file).write_all(line.as_bytes());
        self.system
            .step("output.gap", &path, write)
            .map_err(|error| OutputError::file("write to", &path, error))?;
        self.gaps = Some(Arc::clone(&file));
        self.notes += 1;
        self.note_unsynced(path, &file);
        Ok(())
    }

    /// Returns whether the file with the gaps should be made short.
    pub(super) fn has_many_notes(&self) -> bool {
        self.notes >= NOTES_MAX
    }

    /// Puts these lines in the place of all notes.
    pub(super) fn replace_notes(&mut self, lines: &str) -> Result<(), OutputError> {
        let path = self.dir.join(files::GAPS);
        let file = Arc::new(files::replace_gaps(&self.system, &self.dir, lines)?);
        self.unsynced.retain(|(unsynced, _)| *unsynced != path);
        self.gaps = Some(file);
        self.notes = 0;
        self.is_short = true;
        self.new_names = true;
        Ok(())
    }

    /// Deletes a segment; returns the bytes that this frees.
    pub(super) fn drop_segment(&mut self, stream: Stream, from: u64) -> Result<u64, OutputError> {
        let path = files::segment(&self.dir, stream, from);
        self.unsynced.retain(|(unsynced, _)| *unsynced != path);
        let length = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        self.system
            .step("output.delete", &path, || std::fs::remove_file(&path))
            .map_err(|error| OutputError::file("delete", &path, error))?;
        Ok(length)
    }

    /// Returns whether a sync has something to cover, or is at it.
    pub(super) fn has_unsynced(&self) -> bool {
        self.at_sync || self.new_names || !self.unsynced.is_empty()
    }

    /// Takes what a sync has to cover. [`Disk::sync_done`] has to follow.
    pub(super) fn take_unsynced(&mut self) -> Unsynced {
        self.at_sync = true;
        self.is_short = false;
        Unsynced {
            files: std::mem::take(&mut self.unsynced),
            new_names: std::mem::take(&mut self.new_names),
        }
    }

    /// Has the next sync cover what this one could not.
    pub(super) fn put_back(&mut self, unsynced: Unsynced) {
        let notes = self.dir.join(files::GAPS);
        for (path, file) in unsynced.files {
            // Another file has its name since, and is on the disk.
            if !self.is_short || path != notes {
                self.note_unsynced(path, &file);
            }
        }
        self.new_names |= unsynced.new_names;
    }

    /// Notes that a sync has ended.
    pub(super) fn sync_done(&mut self) {
        self.at_sync = false;
    }

    /// Returns the segment that bytes at `from` go into, beginning one where it is due.
    fn segment(&mut self, stream: Stream, from: u64) -> Result<&mut Segment, OutputError> {
        let at = stream.index();
        let goes_on = self.open[at]
            .as_ref()
            .is_some_and(|open| open.to == from && open.to - open.from < self.segment_bytes);
        if !goes_on {
            let path = files::segment(&self.dir, stream, from);
            let file = Arc::new(self.make(&path)?);
            self.open[at] = Some(Segment {
                from,
                to: from,
                path,
                file,
            });
        }
        Ok(self.open[at].as_mut().expect("a segment was just made"))
    }

    fn make(&mut self, path: &Path) -> Result<File, OutputError> {
        if !self.dir.exists() {
            files::make_dir(&self.system, &self.dir)?;
        }
        let synced = self.dir.join(files::SYNCED);
        if let Some(boot_id) = self.boot_id.filter(|_| !synced.exists()) {
            // From here on a missing record means that the power was cut.
            files::write_synced(&self.system, &synced, boot_id, [0; 2])
                .map_err(|error| OutputError::file("write", &synced, error))?;
        }
        self.new_names = true;
        self.system
            .step("output.make_file", path, || files::append_to(path))
            .map_err(|error| OutputError::file("make", path, error))
    }

    /// Has the next sync cover a file that was just made, with its name.
    pub(super) fn note_made(&mut self, path: PathBuf, file: &Arc<File>) {
        self.forget(&path);
        self.note_unsynced(path, file);
        self.new_names = true;
    }

    /// A file is gone: no sync has to cover it.
    pub(super) fn forget(&mut self, path: &Path) {
        self.unsynced.retain(|(unsynced, _)| unsynced != path);
    }

    fn note_unsynced(&mut self, path: PathBuf, file: &Arc<File>) {
        if !self.unsynced.iter().any(|(unsynced, _)| *unsynced == path) {
            self.unsynced.push((path, Arc::clone(file)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn a_sync_that_comes_again_covers_the_notes_that_are_there_by_then() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Disk::new(System::default(), dir.path().to_owned(), None, 1024);
        let note = |disk: &mut Disk, from| {
            let noted = disk.note_gap(Stream::Stdout, from, from + 1, GapReason::DiskFull);
            noted.unwrap();
        };
        note(&mut disk, 0);
        let unsynced = disk.take_unsynced();
        let line = files::gap_line(Stream::Stdout, 0, 1, GapReason::DiskFull);
        disk.replace_notes(&line).unwrap();
        disk.put_back(unsynced);
        note(&mut disk, 1);
        let path = dir.path().join(files::GAPS);
        let there = std::fs::metadata(&path).unwrap().ino();
        let unsynced = disk.take_unsynced().files;
        let [(name, file)] = &unsynced[..] else {
            panic!("{unsynced:?}");
        };
        assert_eq!((name, file.metadata().unwrap().ino()), (&path, there));
        // Where nothing has taken its place it is covered all the same.
        disk.put_back(Unsynced {
            files: unsynced,
            new_names: false,
        });
        assert_eq!(disk.take_unsynced().files.len(), 1);
    }
}
