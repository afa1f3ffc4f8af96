//! The journal of a keeper: which runs it took, which have ended and how, which are forgotten.
//!
//! `k<id>.journal` is locked by the keeper that writes it, so whoever gets the lock knows that its
//! keeper is dead. A record is appended by one write(2) and never synced: it has to survive the
//! keeper, not the machine; another boot ends every run anyway. Each record is a length, a CRC-32
//! and a postcard body; what follows the last good one is the end of a keeper that died writing.

mod damage;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use moltis_identity::files;
use moltis_proto::key::Digest;
use moltis_proto::node::USED_MAX;
use moltis_proto::run::{Ending, RunSpec, Totals};
use moltis_proto::{BootId, JournalId, RunId};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::disk::Disk;

/// The first bytes of every journal.
const MAGIC: &[u8] = b"moltis keeper journal 1\n";
/// Bytes of a record's length and checksum.
const HEAD_BYTES: usize = 8;
/// Bytes of a record's body at the most: a spec fills a frame, and some more.
const BODY_BYTES_MAX: usize = 128 * 1024;
/// A journal above this, most of it about forgotten runs, is written anew; where that fails, again
/// when it has grown by a quarter of this.
const COMPACT_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes of a [`Record::Forgotten`] with its head.
const FORGOTTEN_BYTES: usize = HEAD_BYTES + 1 + size_of::<RunId>();

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the keeper's journal `{}` cannot be {verb}", path.display())]
pub struct JournalError {
    path: PathBuf,
    verb: &'static str,
    #[source]
    source: io::Error,
}

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record<'a> {
    /// The first record: whose journal this is.
    Opened {
        journal_id: JournalId,
        boot_id: BootId,
        version: Cow<'a, str>,
    },
    /// A run was taken. Written before its child is spawned.
    Accepted {
        run_id: RunId,
        digest: Digest,
        spec: Cow<'a, RunSpec>,
    },
    /// Its child exists.
    Started { run_id: RunId, pid: u32 },
    /// It is over.
    Ended {
        run_id: RunId,
        ending: Cow<'a, Ending>,
        totals: Totals,
    },
    /// The gateway has all of it.
    Forgotten { run_id: RunId },
}

impl Record<'_> {
    fn run_id(&self) -> Option<RunId> {
        match self {
            Self::Opened { .. } => None,
            Self::Accepted { run_id, .. }
            | Self::Started { run_id, .. }
            | Self::Ended { run_id, .. }
            | Self::Forgotten { run_id } => Some(*run_id),
        }
    }
}

/// A run as a journal tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) digest: Digest,
    pub(super) pid: Option<u32>,
    pub(super) ended: Option<(Ending, Totals)>,
}

/// What stands in the journal of a dead keeper.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) journal: Journal,
    pub(super) boot_id: BootId,
    /// The runs that are not forgotten.
    pub(super) runs: HashMap<RunId, Past>,
    /// The newest of those that are, the oldest first.
    pub(super) forgotten: Vec<RunId>,
    /// More runs may have stood in it.
    pub(super) is_spoiled: bool,
}

/// Whose a file is that looks like a journal.
#[derive(Debug)]
pub(super) enum Taken {
    /// Its keeper is dead, and it is ours now.
    Over(Box<Found>),
    /// Its keeper lives.
    Lives,
    /// Nobody's: it is gone, or it has no beginning, as its keeper died or its machine went down before
    /// that was on the disk. No run can be found by it, or it is about to be begun.
    Nothing,
    /// Its keeper is dead, and what it wrote cannot be read: a copy of it is kept.
    Spoiled,
}

/// What the bytes of a journal say, as far as they are good. Pure.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) id: JournalId,
    pub(super) boot_id: BootId,
    /// The runs that are not forgotten.
    pub(super) runs: HashMap<RunId, Past>,
    pub(super) index: Index,
    /// Bytes of the record that opens it, with all before it.
    opening_bytes: usize,
    /// Bytes up to the end of the last good record.
    pub(super) length: usize,
}

/// Which records matter, and where they lie.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Where the records of the runs lie that are not forgotten.
    live: HashMap<RunId, Vec<(u64, usize)>>,
    /// The newest runs that are forgotten, the oldest first: no other may have their ids.
    pub(super) forgotten: VecDeque<RunId>,
}

/// A journal that this process has locked.
#[derive(Debug)]
pub(super) struct Journal {
    id: JournalId,
    disk: Disk,
    path: PathBuf,
    file: File,
    length: u64,
    index: Index,
    /// The record that opens it, whole.
    opening: Vec<u8>,
    /// It is written anew when it is longer than this.
    compact_above: u64,
}

impl Journal {
    /// Makes a new journal in `dir` and locks it.
    pub(super) fn create(
        disk: &Disk,
        dir: &Path,
        id: JournalId,
        boot_id: BootId,
        version: &str,
    ) -> Result<Self, JournalError> {
        let path = path_of(dir, id);
        let opening =
            opening(id, boot_id, version).map_err(|source| wrong(&path, "written", source))?;
        let file = write_new(disk, ["journal.make", "journal.open"], &path, &opening)?;
        Ok(Self {
            id,
            disk: disk.clone(),
            path,
            file,
            length: opening.len() as u64,
            index: Index::default(),
            opening,
            compact_above: COMPACT_BYTES,
        })
    }

    /// Takes over the journal of a dead keeper.
    pub(super) fn take_over(disk: &Disk, path: &Path) -> Result<Taken, JournalError> {
        let opened = match files::open(path, OpenOptions::new().read(true).write(true)) {
            // Its keeper has just left.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Taken::Nothing),
            opened => opened,
        };
        let mut file = opened.map_err(|source| wrong(path, "opened", source))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Taken::Lives),
            Err(error) => return Err(wrong(path, "locked", error.into())),
        }
        if !is_at(&file, path).map_err(|source| wrong(path, "looked at", source))? {
            // Its keeper has just written it anew: what we hold is what it has let go.
            return Ok(Taken::Lives);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|source| wrong(path, "read", source))?;
        let Some(told) = Told::read(&bytes) else {
            if !damage::is_no_beginning(&bytes) {
                return Ok(Taken::Nothing);
            }
            damage::keep(path, &bytes, 0);
            delete_nothing(disk, path);
            return Ok(Taken::Spoiled);
        };
        let is_spoiled = damage::is_spoiled(&bytes[told.length..]);
        if is_spoiled {
            damage::keep(path, &bytes, told.length);
        }
        let found = Found {
            forgotten: told.index.forgotten.iter().copied().collect(),
            journal: Self {
                id: told.id,
                disk: disk.clone(),
                path: path.to_owned(),
                file,
                length: told.length as u64,
                index: told.index,
                opening: bytes[..told.opening_bytes].to_vec(),
                compact_above: COMPACT_BYTES,
            },
            boot_id: told.boot_id,
            runs: told.runs,
            is_spoiled,
        };
        // What is behind the last good record would hide what we append.
        let (file, length) = (&found.journal.file, found.journal.length);
        disk.step("journal.cut", path, || file.set_len(length))
            .map_err(|source| wrong(path, "cut to its last good record", source))?;
        Ok(Taken::Over(Box::new(found)))
    }

    pub(super) fn id(&self) -> JournalId {
        self.id
    }

    /// Has what is written from now on go to this file.
    #[cfg(test)]
    pub(super) fn write_to(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether no run stands in it that is not forgotten.
    pub(super) fn is_empty(&self) -> bool {
        self.index.live.is_empty()
    }

    /// Returns whether no run stands in it at all.
    pub(super) fn is_blank(&self) -> bool {
        self.index.live.is_empty() && self.index.forgotten.is_empty()
    }

    /// Appends one record with one write(2). What a failed write left behind is cut off again.
    pub(super) fn append(&mut self, record: &Record<'_>) -> Result<(), JournalError> {
        self.append_all(std::slice::from_ref(record))
    }

    /// Remembers what the journal of a dead keeper has forgotten.
    pub(super) fn adopt_forgotten(&mut self, of: &Self) -> Result<(), JournalError> {
        let ids = of.index.forgotten.iter();
        let records: Vec<_> = ids
            .map(|run_id| Record::Forgotten { run_id: *run_id })
            .collect();
        self.append_all(&records)
    }

    /// Appends these records with one write(2): after a crash the first so many of them are there.
    fn append_all(&mut self, records: &[Record<'_>]) -> Result<(), JournalError> {
        let (mut bytes, mut ends) = (Vec::with_capacity(256), Vec::with_capacity(records.len()));
        for record in records {
            encode_into(record, &mut bytes)
                .map_err(|source| wrong(&self.path, "written", source))?;
            ends.push(bytes.len());
        }
        let Self {
            disk, path, file, ..
        } = &*self;
        let written = disk.step("journal.append", path, || {
            file.write_all_at(&bytes, self.length)
        });
        if let Err(source) = written {
            // The next append overwrites it anyway.
            let undone = disk.step("journal.undo", path, || file.set_len(self.length));
            undone.ok();
            return Err(wrong(path, "written", source));
        }
        let mut start = 0;
        for (record, end) in records.iter().zip(ends) {
            self.index
                .note(record, self.length + start as u64, end - start);
            start = end;
        }
        self.length += bytes.len() as u64;
        if self.length > self.compact_above && self.length > 2 * self.live_bytes() {
            // The record stands, whatever becomes of this.
            if let Err(error) = self.compact() {
                self.clear_draft();
                self.compact_above = self.length + COMPACT_BYTES / 4;
                tracing::warn!(error = %error, "the journal grows until there is room to write it anew");
            }
        }
        Ok(())
    }

    /// Deletes the file: nothing in it is needed any more.
    pub(super) fn delete(&self) {
        if self.draft().exists() {
            self.clear_draft();
        }
        let (disk, path) = (&self.disk, &self.path);
        // A journal without runs is harmless.
        disk.step("journal.delete", path, || fs::remove_file(path))
            .ok();
    }

    fn live_bytes(&self) -> u64 {
        let records = self.index.live.values().flatten();
        let live: u64 = records.map(|(_, length)| *length as u64).sum();
        live + (self.opening.len() + self.index.forgotten.len() * FORGOTTEN_BYTES) as u64
    }

    /// Where it is written anew.
    fn draft(&self) -> PathBuf {
        self.path.with_extension("journal-new")
    }

    /// Takes away a draft that was not finished, here or by a keeper that died at it.
    fn clear_draft(&self) {
        let (disk, draft) = (&self.disk, self.draft());
        // There may be none; what stays is in the way of the next attempt only.
        disk.step("journal.clear", &draft, || fs::remove_file(&draft))
            .ok();
    }

    /// Writes the records that still matter into a new file and puts it in the place of this one.
    fn compact(&mut self) -> Result<(), JournalError> {
        let failed = |source| wrong(&self.path, "written anew", source);
        let mut bytes = self.opening.clone();
        for run_id in &self.index.forgotten {
            let record = Record::Forgotten { run_id: *run_id };
            encode_into(&record, &mut bytes).map_err(failed)?;
        }
        let mut live = HashMap::with_capacity(self.index.live.len());
        for (run_id, records) in &self.index.live {
            let mut moved = Vec::with_capacity(records.len());
            for (position, length) in records {
                let start = bytes.len();
                bytes.resize(start + length, 0);
                self.file
                    .read_exact_at(&mut bytes[start..], *position)
                    .map_err(failed)?;
                moved.push((start as u64, *length));
            }
            live.insert(*run_id, moved);
        }
        self.clear_draft();
        let new = self.draft();
        let (disk, path) = (&self.disk, &self.path);
        let file = write_new(disk, ["journal.draft", "journal.rewrite"], &new, &bytes)?;
        disk.step("journal.rename", path, || fs::rename(&new, path))
            .map_err(failed)?;
        self.file = file;
        self.length = bytes.len() as u64;
        self.index.live = live;
        self.compact_above = COMPACT_BYTES;
        Ok(())
    }
}

impl Index {
    fn note(&mut self, record: &Record<'_>, position: u64, length: usize) {
        let Some(run_id) = record.run_id() else {
            return;
        };
        if matches!(record, Record::Forgotten { .. }) {
            self.live.remove(&run_id);
            self.forgotten.push_back(run_id);
            if self.forgotten.len() > USED_MAX {
                self.forgotten.pop_front();
            }
        } else {
            self.live
                .entry(run_id)
                .or_default()
                .push((position, length));
        }
    }
}

impl Told {
    /// Reads record after record, as far as they are good; `None` when it is no journal.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        bytes.strip_prefix(MAGIC)?;
        let (opened, opening_bytes) = decode(bytes, MAGIC.len())?;
        let Record::Opened {
            journal_id: id,
            boot_id,
            ..
        } = opened
        else {
            return None;
        };
        let mut told = Self {
            id,
            boot_id,
            runs: HashMap::new(),
            index: Index::default(),
            opening_bytes,
            length: opening_bytes,
        };
        while let Some((record, to)) = decode(bytes, told.length) {
            let position = told.length;
            told.index.note(&record, position as u64, to - position);
            told.take(record);
            told.length = to;
        }
        Some(told)
    }

    fn take(&mut self, record: Record<'_>) {
        match record {
            Record::Opened { .. } => {}
            Record::Accepted { run_id, digest, .. } => {
                let past = Past {
                    digest,
                    pid: None,
                    ended: None,
                };
                self.runs.insert(run_id, past);
            }
            Record::Started { run_id, pid } => {
                if let Some(past) = self.runs.get_mut(&run_id) {
                    past.pid = Some(pid);
                }
            }
            Record::Ended {
                run_id,
                ending,
                totals,
            } => {
                if let Some(past) = self.runs.get_mut(&run_id) {
                    past.ended = Some((ending.into_owned(), totals));
                }
            }
            Record::Forgotten { run_id } => {
                self.runs.remove(&run_id);
            }
        }
    }
}

/// Takes away a file without a beginning. Only where no keeper can be about to write it.
pub(super) fn delete_nothing(disk: &Disk, path: &Path) {
    // It may be gone already; what stays is harmless.
    disk.step("journal.delete", path, || fs::remove_file(path))
        .ok();
}

/// Returns the forgotten runs that a journal tells of, the oldest first, whoever writes it.
pub(super) fn forgotten_in(path: &Path) -> Vec<RunId> {
    let mut bytes = Vec::new();
    let read = files::open(path, File::options().read(true))
        .and_then(|mut file| file.read_to_end(&mut bytes));
    let told = read.ok().and_then(|_| Told::read(&bytes));
    told.map_or_else(Vec::new, |told| told.index.forgotten.into())
}

/// Returns the journals in `dir`, whoever writes them.
pub(super) fn all(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "journal")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Returns what a journal says about its keeper, without taking it over; `None` when it is none.
pub(super) fn version_of(path: &Path) -> Option<String> {
    let mut bytes = vec![0; 1024];
    let file = files::open(path, File::options().read(true)).ok()?;
    let length = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(length);
    bytes.strip_prefix(MAGIC)?;
    match decode(&bytes, MAGIC.len())?.0 {
        Record::Opened { version, .. } => Some(version.into_owned()),
        _ => None,
    }
}

/// Returns whether this open file is what stands at `path`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((held.dev(), held.ino()) == (found.dev(), found.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn path_of(dir: &Path, id: JournalId) -> PathBuf {
    dir.join(format!("k{id}.journal"))
}

/// Makes a file of our own, locks it, and gives it its first bytes.
fn write_new(
    disk: &Disk,
    [make, write]: [&'static str; 2],
    path: &Path,
    bytes: &[u8],
) -> Result<File, JournalError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let made = disk.step(make, path, || options.open(path));
    let mut file = made.map_err(|source| wrong(path, "made", source))?;
    // A living keeper that looks for dead ones may have it for a moment, and finds nothing in it.
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| wrong(path, "locked", error.into()))?;
    disk.step(write, path, || file.write_all(bytes))
        .map_err(|source| wrong(path, "written", source))?;
    Ok(file)
}

/// Returns what every journal begins with.
pub(super) fn opening(id: JournalId, boot_id: BootId, version: &str) -> io::Result<Vec<u8>> {
    let mut opening = MAGIC.to_vec();
    let record = Record::Opened {
        journal_id: id,
        boot_id,
        version: Cow::Borrowed(version),
    };
    encode_into(&record, &mut opening)?;
    Ok(opening)
}

pub(super) fn encode_into(record: &Record<'_>, out: &mut Vec<u8>) -> io::Result<()> {
    let body = postcard::to_stdvec(record).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// Returns how long the body says to be of the record that begins here.
fn length_of(record: &[u8]) -> Option<usize> {
    Some(u32::from_be_bytes(*record.first_chunk()?) as usize)
}

/// Returns its checksum.
fn crc_of(record: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*record.get(4..)?.first_chunk()?))
}

/// Reads the record at `position`; `None` when there is no good one.
fn decode(bytes: &[u8], position: usize) -> Option<(Record<'static>, usize)> {
    let rest = bytes.get(position..)?;
    let (length, crc) = (length_of(rest)?, crc_of(rest)?);
    let body = rest.get(HEAD_BYTES..HEAD_BYTES.checked_add(length)?)?;
    if length > BODY_BYTES_MAX || crc32fast::hash(body) != crc {
        return None;
    }
    let (record, rest) = postcard::take_from_bytes(body).ok()?;
    rest.is_empty()
        .then_some((record, position + HEAD_BYTES + length))
}

fn wrong(path: &Path, verb: &'static str, source: io::Error) -> JournalError {
    JournalError {
        path: path.to_owned(),
        verb,
        source,
    }
}

#[cfg(test)]
mod tests {
    use moltis_proto::run::{Command, Outcome, StdinMode};

    use super::*;

    fn id(number: u32) -> RunId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        RunId::from_bytes(bytes)
    }

    fn spec() -> RunSpec {
        RunSpec {
            command: Command::Shell("x".repeat(1_000)),
            cwd: None,
            env: std::collections::BTreeMap::new(),
            timeout_ms: None,
            grace_ms: 0,
            stdin: StdinMode::Empty,
            tty: None,
        }
    }

    fn ending() -> Ending {
        Ending {
            outcome: Outcome::Exited,
            reason: None,
            status: None,
            detail: String::new(),
            duration_ms: 7,
            descendants_may_survive: false,
        }
    }

    fn journal(dir: &Path) -> Journal {
        let boot_id = BootId::from_bytes([2; 16]);
        let id = JournalId::from_bytes([1; 16]);
        Journal::create(&Disk::default(), dir, id, boot_id, "1.2.3").unwrap()
    }

    fn take_over(path: &Path) -> Option<Found> {
        match Journal::take_over(&Disk::default(), path).unwrap() {
            Taken::Over(found) => Some(*found),
            Taken::Lives | Taken::Nothing | Taken::Spoiled => None,
        }
    }

    fn accept(journal: &mut Journal, number: u32) {
        let record = Record::Accepted {
            run_id: id(number),
            digest: Digest::from_bytes([9; 32]),
            spec: Cow::Owned(spec()),
        };
        journal.append(&record).unwrap();
    }

    #[test]
    fn a_living_keepers_journal_is_not_taken_over_but_tells_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path());
        assert!(take_over(&journal.path).is_none());
        assert_eq!(version_of(&journal.path).as_deref(), Some("1.2.3"));
        let path = journal.path.clone();
        drop(journal);
        assert!(take_over(&path).is_some());
    }

    #[test]
    fn a_journal_stays_small_and_keeps_what_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(dir.path());
        accept(&mut journal, 1);
        accept(&mut journal, 2);
        for number in 3..20_000 {
            accept(&mut journal, number);
            let run_id = id(number);
            journal.append(&Record::Forgotten { run_id }).unwrap();
        }
        journal
            .append(&Record::Ended {
                run_id: id(2),
                ending: Cow::Owned(ending()),
                totals: Totals::default(),
            })
            .unwrap();
        let path = journal.path.clone();
        assert!(fs::metadata(&path).unwrap().len() <= COMPACT_BYTES + 4_096);
        assert!(take_over(&path).is_none());
        drop(journal);
        let found = take_over(&path).unwrap();
        assert_eq!(found.runs.len(), 2);
        assert_eq!(found.runs[&id(1)].ended, None);
        assert_eq!(
            found.runs[&id(2)].ended,
            Some((ending(), Totals::default()))
        );
    }

    #[test]
    fn a_journal_that_cannot_be_written_anew_takes_records_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(dir.path());
        // Somebody else's directory has the draft's name.
        fs::create_dir_all(journal.draft().join("not empty")).unwrap();
        let mut number = 0;
        while journal.length < COMPACT_BYTES + COMPACT_BYTES / 2 {
            number += 1;
            accept(&mut journal, number);
            let run_id = id(number);
            journal.append(&Record::Forgotten { run_id }).unwrap();
        }
        accept(&mut journal, 0);
        fs::remove_dir_all(journal.draft()).unwrap();
        while journal.length > COMPACT_BYTES {
            number += 1;
            accept(&mut journal, number);
            let run_id = id(number);
            journal.append(&Record::Forgotten { run_id }).unwrap();
            assert!(journal.length < 2 * COMPACT_BYTES, "it is tried again");
        }
        let path = journal.path.clone();
        drop(journal);
        let found = take_over(&path).unwrap();
        assert_eq!(found.runs.keys().collect::<Vec<_>>(), [&id(0)]);
    }

    #[test]
    fn a_journal_goes_with_the_draft_of_a_keeper_that_died_writing_it_anew() {
        let dir = tempfile::tempdir().unwrap();
        let dead = journal(dir.path());
        fs::write(dead.draft(), "half").unwrap();
        let path = dead.path.clone();
        drop(dead);
        take_over(&path).unwrap().journal.delete();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn forgotten_ids_are_found_again_the_newest_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(dir.path());
        let count = u32::try_from(USED_MAX).unwrap() + 10;
        for number in 0..count {
            let run_id = id(number);
            journal.append(&Record::Forgotten { run_id }).unwrap();
        }
        journal.compact().unwrap();
        let bytes = journal.opening.len() + USED_MAX * FORGOTTEN_BYTES;
        assert_eq!(journal.length, bytes as u64);
        let path = journal.path.clone();
        drop(journal);
        let found = take_over(&path).unwrap();
        assert_eq!(found.forgotten.len(), USED_MAX);
        assert_eq!(found.forgotten[0], id(10));
        assert_eq!(found.forgotten.last(), Some(&id(count - 1)));
    }

    #[test]
    fn a_journal_that_was_just_written_anew_is_not_dead() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(dir.path());
        accept(&mut journal, 1);
        let opened = File::open(&journal.path).unwrap();
        assert!(is_at(&opened, &journal.path).unwrap());
        journal.compact().unwrap();
        assert!(!is_at(&opened, &journal.path).unwrap());
        let path = journal.path.clone();
        journal.delete();
        assert!(!is_at(&opened, &path).unwrap());
        assert!(take_over(&path).is_none());
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_leaves_the_records_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(dir.path());
        let opening = journal.opening.len();
        for number in 0..4 {
            let started = Record::Started {
                run_id: id(number),
                pid: number,
            };
            journal.append(&started).unwrap();
        }
        let path = journal.path.clone();
        drop(journal);
        let good = fs::read(&path).unwrap();
        let record = (good.len() - opening) / 4;
        for at in 0..good.len() {
            let expected = at.checked_sub(opening).map(|behind| behind / record);
            let mut flipped = good.clone();
            flipped[at] ^= 0x10;
            for bytes in [&good[..at], &flipped[..]] {
                fs::write(&path, bytes).unwrap();
                let found = take_over(&path);
                let kept = found.map(|found| found.journal.index.live.len());
                assert_eq!(kept, expected, "at {at} of {}", bytes.len());
            }
        }
    }
}
