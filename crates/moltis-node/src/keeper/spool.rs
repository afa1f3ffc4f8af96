//! The spool file of one stream: the driver of [`SpoolOp`], and what a dead keeper left of it.
//!
//! A page with a checked header, then the bytes where the outbox says. The file is made at the
//! first write and gone when it is cleared.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use moltis_proto::RunId;
use moltis_proto::run::outbox::{SpoolDone, SpoolHeader, SpoolOp};
use moltis_proto::run::{GapReason, Stream};

use super::disk::Disk;
use super::process::while_nothing_spawns;

/// The header's room: a page, so that the bytes behind it begin on one.
const HEADER_BYTES: u64 = 4096;
/// Bytes of it that are read and written.
pub(super) const PAGE_BYTES: usize = 256;
/// The first bytes of every spool.
const MAGIC: &[u8; 8] = b"moltis s";

/// The spool of one stream.
#[derive(Debug)]
pub(super) struct Spool {
    disk: Disk,
    path: PathBuf,
    file: Option<File>,
}

impl Spool {
    /// The spool of this stream in `dir`, whether or not there is a file yet.
    pub(super) fn new(disk: &Disk, dir: &Path, run_id: RunId, stream: Stream) -> Self {
        let kind = match stream {
            Stream::Stdout => "out",
            Stream::Stderr => "err",
        };
        Self {
            disk: disk.clone(),
            path: dir.join(format!("{run_id}.{kind}")),
            file: None,
        }
    }

    /// Returns another handle of the same spool, which opens the file for itself.
    pub(super) fn other_handle(&self) -> Self {
        Self {
            disk: self.disk.clone(),
            path: self.path.clone(),
            file: None,
        }
    }

    /// Does what the outbox asks. Blocks on the disk.
    pub(super) fn perform(&mut self, op: SpoolOp) -> Result<SpoolDone, GapReason> {
        let done = match op {
            SpoolOp::Write {
                before,
                parts,
                after,
            } => self.write(before, parts, &after),
            SpoolOp::Read { position, length } => self.read(position, length),
            SpoolOp::Clear => {
                self.delete();
                Ok(SpoolDone::Done)
            }
        };
        done.map_err(|error| reason_of(&error))
    }

    /// Deletes the file, where there is one.
    pub(super) fn delete(&mut self) {
        self.file = None;
        let (disk, path) = (&self.disk, &self.path);
        // It may never have been made.
        disk.step("spool.delete", path, || fs::remove_file(path))
            .ok();
    }

    /// Returns the header that a dead keeper left; `None` where there is no sound one.
    pub(super) fn header(&mut self) -> Option<SpoolHeader> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
            .ok()?;
        let mut page = [0; PAGE_BYTES];
        file.read_exact_at(&mut page, 0).ok()?;
        let header = read_header(&page);
        self.file = Some(file);
        header
    }

    fn write(
        &mut self,
        before: Option<SpoolHeader>,
        parts: Vec<(u64, Bytes)>,
        after: &SpoolHeader,
    ) -> io::Result<SpoolDone> {
        let (disk, path, file) = self.opened()?;
        let ends = parts
            .iter()
            .map(|(position, part)| HEADER_BYTES + position + part.len() as u64);
        disk.check_room(file, ends.max().unwrap_or_default())?;
        if let Some(before) = &before {
            disk.step("spool.before", path, || write_header(file, before))?;
        }
        for (position, part) in parts {
            let to = HEADER_BYTES + position;
            disk.step("spool.write", path, || file.write_all_at(&part, to))?;
        }
        disk.step("spool.after", path, || write_header(file, after))?;
        Ok(SpoolDone::Done)
    }

    fn read(&mut self, position: u64, length: u64) -> io::Result<SpoolDone> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        let (disk, path, file) = self.opened()?;
        let from = HEADER_BYTES + position;
        disk.step("spool.read", path, || file.read_exact_at(&mut bytes, from))?;
        Ok(SpoolDone::Read(bytes.into()))
    }

    /// Returns the file, opened, with its disk and its path.
    fn opened(&mut self) -> io::Result<(&Disk, &Path, &File)> {
        let Self { disk, path, file } = self;
        if file.is_none() {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.mode(0o600);
            let made = disk.step("spool.make", path, || {
                while_nothing_spawns(|| options.open(&*path))
            });
            *file = Some(made?);
        }
        let file = file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok((disk, path, file))
    }
}

fn write_header(file: &File, header: &SpoolHeader) -> io::Result<()> {
    file.write_all_at(&page_of(header)?, 0)
}

/// Returns the page of a header.
pub(super) fn page_of(header: &SpoolHeader) -> io::Result<[u8; PAGE_BYTES]> {
    let body = postcard::to_stdvec(header).map_err(io::Error::other)?;
    let mut page = [0; PAGE_BYTES];
    let length = u8::try_from(body.len()).map_err(io::Error::other)?;
    let head = MAGIC.len() + 5;
    page[..MAGIC.len()].copy_from_slice(MAGIC);
    page[MAGIC.len()..head - 1].copy_from_slice(&crc32fast::hash(&body).to_be_bytes());
    page[head - 1] = length;
    page[head..head + body.len()].copy_from_slice(&body);
    Ok(page)
}

/// Reads the header in a page; `None` where there is no sound one.
pub(super) fn read_header(page: &[u8; PAGE_BYTES]) -> Option<SpoolHeader> {
    let body = page.strip_prefix(MAGIC)?;
    let crc = u32::from_be_bytes(*body.first_chunk()?);
    let length = usize::from(*body.get(4)?);
    let body = body.get(5..5 + length)?;
    if crc32fast::hash(body) != crc {
        return None;
    }
    let header: SpoolHeader = postcard::from_bytes(body).ok()?;
    header.is_sound().then_some(header)
}

fn reason_of(error: &io::Error) -> GapReason {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => GapReason::DiskFull,
        _ => GapReason::DiskFailed,
    }
}
