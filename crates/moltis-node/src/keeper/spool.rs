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
use moltis_proto::limits::disk_reserve_bytes;
use moltis_proto::run::outbox::{SpoolDone, SpoolHeader, SpoolOp};
use moltis_proto::run::{GapReason, Stream};

use super::process::while_nothing_spawns;

/// The header's room: a page, so that the bytes behind it begin on one.
const HEADER_BYTES: u64 = 4096;
/// The first bytes of every spool.
const MAGIC: &[u8; 8] = b"moltis s";

/// The spool of one stream.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    file: Option<File>,
}

impl Spool {
    /// The spool of this stream in `dir`, whether or not there is a file yet.
    pub(super) fn new(dir: &Path, run_id: RunId, stream: Stream) -> Self {
        let kind = match stream {
            Stream::Stdout => "out",
            Stream::Stderr => "err",
        };
        Self {
            path: dir.join(format!("{run_id}.{kind}")),
            file: None,
        }
    }

    /// Returns another handle of the same spool, which opens the file for itself.
    pub(super) fn other_handle(&self) -> Self {
        Self {
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
        fs::remove_file(&self.path).ok(); // it may never have been made
    }

    /// Returns the header that a dead keeper left; `None` where there is no sound one.
    pub(super) fn header(&mut self) -> Option<SpoolHeader> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
            .ok()?;
        let mut page = [0; 256];
        file.read_exact_at(&mut page, 0).ok()?;
        let body = page.strip_prefix(MAGIC)?;
        let crc = u32::from_be_bytes(*body.first_chunk()?);
        let length = usize::from(*body.get(4)?);
        let body = body.get(5..5 + length)?;
        if crc32fast::hash(body) != crc {
            return None;
        }
        let header: SpoolHeader = postcard::from_bytes(body).ok()?;
        self.file = Some(file);
        header.is_sound().then_some(header)
    }

    fn write(
        &mut self,
        before: Option<SpoolHeader>,
        parts: Vec<(u64, Bytes)>,
        after: &SpoolHeader,
    ) -> io::Result<SpoolDone> {
        let file = self.file()?;
        let ends = parts
            .iter()
            .map(|(position, part)| HEADER_BYTES + position + part.len() as u64);
        check_room(file, ends.max().unwrap_or_default())?;
        if let Some(before) = &before {
            write_header(file, before)?;
        }
        for (position, part) in parts {
            file.write_all_at(&part, HEADER_BYTES + position)?;
        }
        write_header(file, after)?;
        Ok(SpoolDone::Done)
    }

    fn read(&mut self, position: u64, length: u64) -> io::Result<SpoolDone> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file()?
            .read_exact_at(&mut bytes, HEADER_BYTES + position)?;
        Ok(SpoolDone::Read(bytes.into()))
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let made = while_nothing_spawns(|| {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(&self.path)
            });
            self.file = Some(made?);
        }
        self.file
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Checks that a file which grows to this length leaves to the journal what is its own.
fn check_room(file: &File, length: u64) -> io::Result<()> {
    let growth = length.saturating_sub(file.metadata()?.len());
    let Ok(disk) = rustix::fs::fstatvfs(file) else {
        return Ok(()); // the write itself will tell
    };
    let size = disk.f_blocks.saturating_mul(disk.f_frsize);
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    // A file system without a size does not count.
    if growth > 0 && size > 0 && free < disk_reserve_bytes(size).saturating_add(growth) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

fn write_header(file: &File, header: &SpoolHeader) -> io::Result<()> {
    let body = postcard::to_stdvec(header).map_err(io::Error::other)?;
    let mut page = [0; 256];
    let length = u8::try_from(body.len()).map_err(io::Error::other)?;
    let head = MAGIC.len() + 5;
    page[..MAGIC.len()].copy_from_slice(MAGIC);
    page[MAGIC.len()..head - 1].copy_from_slice(&crc32fast::hash(&body).to_be_bytes());
    page[head - 1] = length;
    page[head..head + body.len()].copy_from_slice(&body);
    file.write_all_at(&page, 0)
}

fn reason_of(error: &io::Error) -> GapReason {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => GapReason::DiskFull,
        _ => GapReason::DiskFailed,
    }
}
