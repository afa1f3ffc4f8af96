//! What a death leaves of files: all of them where a process was killed; where the power was cut,
//! what was synced and any part of the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Edge;
use crate::simulate::dice::Dice;

/// Bytes of the header of a `-wal` file (sqlite.org/fileformat2.html, 4.1).
const WAL_HEADER_BYTES: usize = 32;

/// What is known to be on the disk of a gateway, by the steps that it took. Paths are below its
/// directory, for that is another one in each life.
#[derive(Debug, Default)]
pub(in super::super) struct Synced {
    root: PathBuf,
    /// The generation of the `-wal` file that was synced, and how long it was.
    wal: Option<(Vec<u8>, u64)>,
    lengths: BTreeMap<PathBuf, u64>,
    names: BTreeSet<PathBuf>,
    /// What a sync that has begun will cover.
    begun: Option<(PathBuf, u64, Vec<u8>)>,
    /// Runs whose output was written and not synced since, and those that a sync is at work on.
    written: BTreeSet<String>,
    syncing: BTreeSet<String>,
}

impl Synced {
    /// The gateway lives in this directory from now on.
    pub(in super::super) fn move_to(&mut self, root: &Path) {
        root.clone_into(&mut self.root);
        self.begun = None;
    }

    /// Returns the runs of whose output a power cut takes some now.
    pub(in super::super) fn take_unsynced(&mut self) -> BTreeSet<String> {
        let mut runs = std::mem::take(&mut self.written);
        runs.append(&mut self.syncing);
        runs
    }

    /// All that there is now is on the disk.
    pub(in super::super) fn all(&mut self) {
        let root = self.root.clone();
        self.wal = Some(wal_of(&root.join(WAL)));
        for file in files_below(&root).unwrap_or_default() {
            let length = fs::metadata(root.join(&file)).map_or(0, |it| it.len());
            self.lengths.insert(file.clone(), length);
            self.names.insert(file);
        }
    }

    pub(super) fn note(&mut self, what: &'static str, path: &Path, edge: Edge) {
        self.note_run(what, path, edge);
        let wal = self.root.join(WAL);
        match (what, edge) {
            ("store.sync", Edge::Before) => {
                let (generation, length) = wal_of(&wal);
                self.begun = Some((wal, length, generation));
            }
            ("store.sync", Edge::After) => {
                self.wal = self.begun.take().map(|(_, length, salts)| (salts, length));
            }
            ("store.open" | "store.checkpoint" | "store.close", Edge::After) => {
                self.wal = Some(wal_of(&wal));
            }
            ("store.sync_dir" | "output.sync_dir", Edge::After) => {
                let entries = fs::read_dir(path).into_iter().flatten().flatten();
                let names = entries.filter_map(|entry| self.below(&entry.path()));
                self.names.extend(names.collect::<Vec<_>>());
            }
            ("output.sync" | "output.sync_gaps" | "output.sync_synced", Edge::Before) => {
                let length = fs::metadata(path).map_or(0, |it| it.len());
                self.begun = Some((path.to_owned(), length, Vec::new()));
            }
            ("output.sync" | "output.sync_gaps" | "output.sync_synced", Edge::After) => {
                if let Some((path, length, _)) = self.begun.take()
                    && let Some(file) = self.below(&path)
                {
                    self.lengths.insert(file, length);
                }
            }
            _ => {}
        }
    }

    fn note_run(&mut self, what: &'static str, path: &Path, edge: Edge) {
        let run = || Some(path.parent()?.file_name()?.to_str()?.to_owned());
        match (what, edge) {
            ("output.write" | "output.gap", Edge::After) => self.written.extend(run()),
            ("output.sync", Edge::Before) => {
                let begun = run().and_then(|run| self.written.take(&run));
                self.syncing.extend(begun);
            }
            ("output.sync_synced", Edge::After) => {
                run().map(|run| self.syncing.remove(&run));
            }
            _ => {}
        }
    }

    fn below(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }
}

const WAL: &str = "gateway.db-wal";

/// Returns the salts of a `-wal` file, which name its generation, and its length. It is asked for
/// at each sync, so the rest of the file is not read.
fn wal_of(path: &Path) -> (Vec<u8>, u64) {
    let Ok(file) = File::open(path) else {
        return (Vec::new(), 0);
    };
    let mut salts = vec![0; 8];
    if file.read_exact_at(&mut salts, 16).is_err() {
        salts.clear();
    }
    (salts, file.metadata().map_or(0, |it| it.len()))
}

/// Bytes of a file that are copied at once: few enough to stay in a processor's cache.
const PIECE_BYTES: usize = 64 * 1024;

/// Copies a gateway's directory as a killed process leaves it. Files of output get another name there
/// and stay the same: every write to them is a step, and the dead take none.
///
/// # Errors
/// What the system says.
pub(in super::super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let mut piece = vec![0; PIECE_BYTES];
    for file in files_below(from)? {
        let path = to.join(&file);
        if file.starts_with("outputs") {
            with_dirs(&path, || fs::hard_link(from.join(&file), &path))?;
            continue;
        }
        let mut read = File::open(from.join(&file))?;
        let mut written = make(&path)?;
        loop {
            let bytes = read.read(&mut piece)?;
            if bytes == 0 {
                break;
            }
            written.write_all(&piece[..bytes])?;
        }
    }
    Ok(())
}

/// Copies a gateway's directory as a power cut leaves it.
///
/// # Errors
/// What the system says.
pub(in super::super) fn copy_after_power_cut(
    from: &Path,
    to: &Path,
    synced: &Synced,
    dice: &mut Dice,
) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for file in files_below(from)? {
        let mut bytes = fs::read(from.join(&file))?;
        if file == Path::new(WAL) {
            let (generation, length) = synced.wal.clone().unwrap_or_default();
            let is_same = bytes.get(16..24).unwrap_or_default() == generation;
            let kept = if is_same { length } else { 0 };
            spoil(&mut bytes, kept, dice);
            // A header that is not whole begins no generation.
            if bytes.len() < WAL_HEADER_BYTES {
                bytes.clear();
            }
        } else if file.starts_with("outputs") {
            let is_named = synced.names.contains(&file)
                && file
                    .parent()
                    .is_none_or(|dir| dir == Path::new("outputs") || synced.names.contains(dir));
            if !is_named && dice.percent(50) {
                continue;
            }
            let kept = synced.lengths.get(&file).copied().unwrap_or(0);
            spoil(&mut bytes, kept, dice);
        }
        make(&to.join(&file))?.write_all(&bytes)?;
    }
    Ok(())
}

/// Has a power cut befall files that nobody ever synced.
///
/// # Errors
/// What the system says.
pub(in super::super) fn spoil_all(dir: &Path, dice: &mut Dice) -> io::Result<()> {
    for file in files_below(dir)? {
        let path = dir.join(file);
        if dice.percent(20) {
            fs::remove_file(path)?;
            continue;
        }
        let mut bytes = fs::read(&path)?;
        spoil(&mut bytes, 0, dice);
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// Leaves of bytes those that are kept, and of the rest any part: none, all, or a beginning, whose
/// end may be torn.
fn spoil(bytes: &mut Vec<u8>, kept: u64, dice: &mut Dice) {
    let kept = usize::try_from(kept).unwrap_or(usize::MAX).min(bytes.len());
    let rest = (bytes.len() - kept) as u64;
    if rest == 0 {
        return;
    }
    let part = 1 + dice.below(rest);
    let more = *dice.weighted(&[(2, 0), (2, rest), (3, part)]);
    bytes.truncate(kept + usize::try_from(more).unwrap_or(usize::MAX));
    if more > 0 && dice.percent(30) {
        let at = kept + usize::try_from(dice.below(more)).unwrap_or_default();
        let bit = dice.below(8);
        bytes[at] ^= 1 << bit;
    }
}

/// Returns the files below a directory, by their paths in it.
fn files_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                dirs.push(path);
            } else if !path.to_string_lossy().ends_with("-shm") {
                files.push(path);
            }
        }
    }
    // Dice are thrown for each in turn.
    files.sort_by(|a, b| b.cmp(a));
    Ok(files)
}

/// Makes a file, and the directories that it is in.
fn make(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    with_dirs(path, || options.open(path))
}

/// Makes something, and the directories that it is in where they are missing.
fn with_dirs<T>(path: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            make()
        }
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_is_kept_and_of_the_rest_a_beginning() {
        let whole: Vec<u8> = (0..200).collect();
        let mut lengths = BTreeSet::new();
        for seed in 0..500 {
            let mut bytes = whole.clone();
            spoil(&mut bytes, 50, &mut Dice::new(seed, "test"));
            assert_eq!(bytes[..50], whole[..50]);
            let wrong = bytes.iter().zip(&whole).filter(|(a, b)| a != b).count();
            assert!(wrong <= 1, "one bit at the most");
            lengths.insert(bytes.len());
        }
        assert!(lengths.contains(&50) && lengths.contains(&200) && lengths.len() > 50);
    }
}
