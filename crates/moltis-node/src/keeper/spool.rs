//! The spool file of one stream: the driver of [`SpoolOp`], and what a dead keeper left of it.
//!
//! A page with a checked header, a table of checksums ([`sums`]), then the bytes where the outbox
//! says. The file is made at the first write and gone when it is cleared. Nothing of it is ever synced:
//! as long as its machine runs its bytes are right, whoever dies, and nobody asks for a checksum. When
//! the machine has been started anew they are asked for block by block, as the bytes are read.

pub(super) mod sums;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use moltis_identity::files;
use moltis_proto::RunId;
use moltis_proto::run::outbox::{SpoolDone, SpoolHeader, SpoolOp};
use moltis_proto::run::{GapReason, Stream};

use self::sums::{Block, SUM_BYTES, Sums, TABLE_BYTES, Verdict};
use super::disk::Disk;
use super::process::while_nothing_spawns;

/// The header's room: a page, so that the bytes behind it begin on one.
pub(super) const HEADER_BYTES: u64 = 4096;
/// Bytes of it that are read and written.
pub(super) const PAGE_BYTES: usize = 256;
/// The first bytes of every spool.
const MAGIC: &[u8; 8] = b"moltis 2";
/// Those of a spool of a keeper that knew of no checksums: its bytes follow the header.
const MAGIC_BARE: &[u8; 8] = b"moltis s";
/// Where the bytes of output begin.
pub(super) const BYTES_AT: u64 = HEADER_BYTES + TABLE_BYTES;

/// The spool of one stream.
#[derive(Debug)]
pub(super) struct Spool {
    disk: Disk,
    path: PathBuf,
    file: Option<File>,
    /// The checksums of what is written here.
    sums: Sums,
    /// What stood in a dead keeper's file when it was opened.
    found: Option<Page>,
    /// What is not proven is not told.
    is_doubted: bool,
}

/// What the page says that a spool begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    /// What the file holds.
    pub(super) header: SpoolHeader,
    /// The checksum of the block that grows; `None` where the file has no checksums.
    pub(super) growing: Option<u32>,
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
            sums: Sums::default(),
            found: None,
            is_doubted: false,
        }
    }

    /// Returns another handle of the same spool, which opens the file for itself. For one that fails
    /// in the middle of its work: there is nothing to write behind that.
    pub(super) fn other_handle(&self) -> Self {
        Self {
            disk: self.disk.clone(),
            path: self.path.clone(),
            file: None,
            sums: Sums::default(),
            found: self.found,
            is_doubted: self.is_doubted,
        }
    }

    /// From now on tells only what its checksums prove, for its machine may have lost its power. What
    /// a keeper wrote that knew of none is told as it stands.
    pub(super) fn doubt(&mut self) {
        self.is_doubted = true;
    }

    /// Does what the outbox asks. Blocks on the disk.
    pub(super) fn perform(&mut self, op: SpoolOp) -> Result<SpoolDone, GapReason> {
        let done = match op {
            SpoolOp::Write {
                before,
                parts,
                after,
            } => self.write(before, parts, after),
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
        // The next file is our own.
        (self.sums, self.found, self.is_doubted) = (Sums::default(), None, false);
        let (disk, path) = (&self.disk, &self.path);
        // It may never have been made.
        disk.step("spool.delete", path, || fs::remove_file(path))
            .ok();
    }

    /// Returns the header that a dead keeper left; `None` where there is no sound one.
    pub(super) fn header(&mut self) -> Option<SpoolHeader> {
        let mut page = [0; PAGE_BYTES];
        // It is closed again: a dead keeper may have left as many as we may open.
        let read = files::open(&self.path, File::options().read(true))
            .and_then(|file| file.read_exact_at(&mut page, 0));
        match read {
            Ok(()) => self.found = read_page(&page),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), error = %error, "a dead keeper's spool cannot be read: what it holds is told as a gap");
            }
        }
        self.found.map(|page| page.header)
    }

    fn write(
        &mut self,
        before: Option<SpoolHeader>,
        parts: Vec<(u64, Bytes)>,
        after: SpoolHeader,
    ) -> io::Result<SpoolDone> {
        let mut sums = std::mem::take(&mut self.sums);
        let (disk, path, file) = self.opened()?;
        let ends = parts
            .iter()
            .map(|(position, part)| BYTES_AT + position + part.len() as u64);
        disk.check_room(file, ends.max().unwrap_or_default())?;
        if let Some(header) = before {
            let growing = Some(sums.growing());
            let page = page_of(&Page { header, growing })?;
            disk.step("spool.before", path, || file.write_all_at(&page, 0))?;
        }
        let rows = sums.take(&after, &parts);
        for (position, part) in parts {
            let to = BYTES_AT + position;
            disk.step("spool.write", path, || file.write_all_at(&part, to))?;
        }
        for row in rows {
            let to = sum_at(row.index, row.sums.len() as u64)?;
            disk.step("spool.sums", path, || file.write_all_at(&row.sums, to))?;
        }
        let growing = Some(sums.growing());
        let page = page_of(&Page {
            header: after,
            growing,
        })?;
        disk.step("spool.after", path, || file.write_all_at(&page, 0))?;
        self.sums = sums;
        Ok(SpoolDone::Done)
    }

    fn read(&mut self, position: u64, length: u64) -> io::Result<SpoolDone> {
        let found = self.found;
        let is_doubted = self.is_doubted;
        let (disk, path, file) = self.opened()?;
        disk.step("spool.read", path, || match found {
            Some(Page {
                header,
                growing: Some(growing),
            }) if is_doubted => read_proven(file, &header, growing, (position, length)),
            found => {
                let is_bare = found.is_some_and(|page| page.growing.is_none());
                let bytes_at = if is_bare { HEADER_BYTES } else { BYTES_AT };
                let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
                file.read_exact_at(&mut bytes, bytes_at + position)?;
                Ok(SpoolDone::Read(bytes.into()))
            }
        })
    }

    /// Returns the file, opened, with its disk and its path.
    fn opened(&mut self) -> io::Result<(&Disk, &Path, &File)> {
        let Self {
            disk, path, file, ..
        } = self;
        if file.is_none() {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.mode(0o600);
            let made = disk.step("spool.make", path, || {
                while_nothing_spawns(|| files::open(path, &mut options))
            });
            *file = Some(made?);
        }
        let file = file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok((disk, path, file))
    }
}

/// Reads the first of these bytes that are all whole, or says that the first of them are not.
fn read_proven(
    file: &File,
    header: &SpoolHeader,
    growing: u32,
    (position, length): (u64, u64),
) -> io::Result<SpoolDone> {
    let to = position.saturating_add(length);
    let blocks = blocks_between(header, position, to);
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let whole = last.position + last.length(header) - first.position;
    let bytes = read_there(file, BYTES_AT + first.position, whole)?;
    let rows_bytes = SUM_BYTES * blocks.len() as u64;
    let rows = read_there(file, sum_at(first.index, rows_bytes)?, rows_bytes)?;
    let verdict_of = |n: usize, block: &Block| {
        let from = index(block.position - first.position);
        let bytes = bytes.get(from..from + index(block.length(header)));
        let sum = if block.is_growing(header) {
            Some(growing)
        } else {
            let row = rows.chunks_exact(index(SUM_BYTES)).nth(n);
            row.and_then(|row| row.try_into().ok().map(u32::from_be_bytes))
        };
        block.judge(header, bytes, sum)
    };
    let verdict = verdict_of(0, first);
    let mut others = blocks.iter().enumerate().skip(1);
    let other = others.find(|(n, block)| verdict_of(*n, block) != verdict);
    let to = other.map_or(to, |(_, block)| block.position.min(to));
    Ok(match verdict {
        Verdict::Whole => {
            let (from, to) = (position - first.position, to - first.position);
            SpoolDone::Read(Bytes::from(bytes).slice(index(from)..index(to)))
        }
        Verdict::Overwritten => SpoolDone::Gone {
            length: to - position,
            reason: GapReason::Limit,
        },
        Verdict::Spoiled => SpoolDone::Gone {
            length: to - position,
            reason: GapReason::PowerCut,
        },
    })
}

/// Returns the blocks that these bytes lie in; none where some of them lie in none.
fn blocks_between(header: &SpoolHeader, position: u64, to: u64) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut at = position;
    while at < to {
        let Some(block) = Block::at(header, at) else {
            return Vec::new();
        };
        at = block.position + block.length(header);
        blocks.push(block);
    }
    blocks
}

/// Reads as many of these bytes as the file has.
fn read_there(file: &File, from: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; index(length)];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], from + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// What is read at once fits memory.
fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Returns where in the file these checksums stand.
fn sum_at(index: u64, length: u64) -> io::Result<u64> {
    let at = index.saturating_mul(SUM_BYTES);
    if at.saturating_add(length) > TABLE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(HEADER_BYTES + at)
}

/// Returns the first bytes of a spool with checksums.
pub(super) fn page_of(page: &Page) -> io::Result<[u8; PAGE_BYTES]> {
    let mut body = postcard::to_stdvec(&page.header).map_err(io::Error::other)?;
    let magic = match page.growing {
        None => MAGIC_BARE,
        Some(growing) => {
            body.extend(growing.to_be_bytes());
            MAGIC
        }
    };
    let mut bytes = [0; PAGE_BYTES];
    let length = u8::try_from(body.len()).map_err(io::Error::other)?;
    let head = MAGIC.len() + 5;
    bytes[..MAGIC.len()].copy_from_slice(magic);
    bytes[MAGIC.len()..head - 1].copy_from_slice(&crc32fast::hash(&body).to_be_bytes());
    bytes[head - 1] = length;
    bytes[head..head + body.len()].copy_from_slice(&body);
    Ok(bytes)
}

/// Reads the first bytes of a spool; `None` where they are none, or not as they were written.
pub(super) fn read_page(bytes: &[u8; PAGE_BYTES]) -> Option<Page> {
    let (magic, rest) = bytes.split_first_chunk()?;
    let (crc, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first()?;
    let body = rest.get(..usize::from(*length))?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return None;
    }
    let (header, behind): (SpoolHeader, _) = postcard::take_from_bytes(body).ok()?;
    let growing = match magic {
        MAGIC_BARE => None,
        MAGIC => Some(u32::from_be_bytes(behind.try_into().ok()?)),
        _ => return None,
    };
    let page = Page { header, growing };
    header.is_sound().then_some(page)
}

fn reason_of(error: &io::Error) -> GapReason {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => GapReason::DiskFull,
        _ => GapReason::DiskFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A spool that another keeper finds, with five thousand bytes.
    fn spool(growing: Option<u32>, bytes_at: u64) -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(
            &Disk::default(),
            dir.path(),
            RunId::from_bytes([1; 16]),
            Stream::Stdout,
        );
        let header = SpoolHeader {
            base: 0,
            head_bytes: 8_192,
            ring_bytes: 8_192,
            from: 8_192,
            to: 5_000,
        };
        let mut file = page_of(&Page { header, growing }).unwrap().to_vec();
        file.resize(index(bytes_at), 0);
        file.extend([7; 5_000]);
        fs::write(&spool.path, file).unwrap();
        assert_eq!(spool.header(), Some(header));
        (dir, spool)
    }

    const READ: SpoolOp = SpoolOp::Read {
        position: 100,
        length: 4_900,
    };

    #[test]
    fn a_spool_of_a_keeper_that_knew_of_no_checksums_is_told_as_it_stands() {
        let (_dir, mut spool) = spool(None, HEADER_BYTES);
        let whole = Ok(SpoolDone::Read(vec![7; 4_900].into()));
        assert_eq!(spool.perform(READ), whole);
        spool.doubt();
        assert_eq!(spool.perform(READ), whole);
    }

    #[test]
    fn what_is_not_proven_is_told_while_the_machine_is_up_and_not_when_it_was_started_anew() {
        let (_dir, mut spool) = spool(Some(0), BYTES_AT);
        let whole = Ok(SpoolDone::Read(vec![7; 4_900].into()));
        assert_eq!(spool.perform(READ), whole);
        spool.doubt();
        let gone = Ok(SpoolDone::Gone {
            length: 4_900,
            reason: GapReason::PowerCut,
        });
        assert_eq!(spool.perform(READ), gone);
    }

    #[test]
    fn whoever_has_read_what_a_spool_says_of_itself_holds_no_descriptor_of_it() {
        let (_dir, mut spool) = spool(Some(0), BYTES_AT);
        assert!(spool.file.is_none());
        assert!(spool.perform(READ).is_ok());
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_no_power_cut() {
        let (dir, mut spool) = spool(Some(0), BYTES_AT);
        spool.doubt();
        spool.file = Some(File::open(dir.path()).unwrap()); // a directory cannot be read
        assert_eq!(spool.perform(READ), Err(GapReason::DiskFailed));
    }
}
