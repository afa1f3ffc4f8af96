//! The files of a run's output: their names, what a look at them tells, and how they go.
//!
//! | name | what |
//! |---|---|
//! | `out-<offset>`, `err-<offset>` | a segment: the stream's bytes from this offset on, hexadecimal |
//! | `gaps` | a line for each gap: `out 65536 131072 freed` |
//! | `synced` | the boot in which both streams were last synced, and how far |
//! | `stdin` | what the command is given and its node has not taken yet: see [`stdin`](super::stdin) |
//!
//! What an earlier run with the same id has left may wait beside it: see [`super::aside`].
//!
//! A segment is only ever appended to, so after a crash of processes its length says how much there
//! is. After a power cut a file may be shorter than it was, or end in zeros: what lies behind
//! `synced` of another boot is cut off.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use moltis_identity::files::{open_here, read_here};
use moltis_proto::limits::disk_reserve_bytes;
use moltis_proto::run::{GapReason, Stream};
use moltis_proto::{BootId, RunId};
use sha2::{Digest as _, Sha256};

use super::memory::{Extent, OnDisk, join_gaps};
use super::{OutputError, aside, stream_name};
use crate::session::chain;
use crate::system::System;

/// Name of the file with the gaps.
pub(super) const GAPS: &str = "gaps";

/// Name of the file with how far both streams were synced.
pub(super) const SYNCED: &str = "synced";

/// Name of the file with the stdin that came with the request.
pub(super) const STDIN: &str = "stdin";

/// Makes a directory that only its owner can enter.
pub(super) fn make_dir(system: &System, dir: &Path) -> Result<(), OutputError> {
    let make = || moltis_identity::files::make_dir(dir, 0o700);
    system
        .step("output.make_dir", dir, make)
        .map_err(|error| OutputError::file("make", dir, error))
}

/// Returns how many bytes of output the disk below `dir` takes, at least one; what output leaves to
/// the store is not counted.
pub(super) fn room(system: &System, dir: &Path) -> io::Result<u64> {
    if let Some(room) = system.room(dir) {
        return match room {
            0 => Err(io::ErrorKind::StorageFull.into()),
            room => Ok(room),
        };
    }
    let Ok(disk) = rustix::fs::statvfs(dir) else {
        return Ok(u64::MAX); // the write itself will tell
    };
    let size = disk.f_blocks.saturating_mul(disk.f_frsize);
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if size == 0 {
        return Ok(u64::MAX); // a file system that does not count
    }
    match free.saturating_sub(disk_reserve_bytes(size)) {
        0 => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("{free} bytes are free, and output leaves those to the store"),
        )),
        room => Ok(room),
    }
}

/// Opens a file for appending, making it with mode 0600.
pub(super) fn append_to(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    open_here(path, options.append(true).create(true).mode(0o600))
}

/// Returns whether a file ends in the middle of a line: its writer died there, or its disk was full.
pub(super) fn is_torn(path: &Path) -> io::Result<bool> {
    let file = match open_here(path, File::options().read(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let Some(last) = file.metadata()?.len().checked_sub(1) else {
        return Ok(false);
    };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte != *b"\n")
}

/// Returns the path of a segment.
pub(super) fn segment(dir: &Path, stream: Stream, from: u64) -> PathBuf {
    dir.join(format!("{}-{from:016x}", stream_name(stream)))
}

/// Returns the bytes of all segments, and of all kept stdin, below `dir`. Those of a run that cannot be looked at are not
/// counted.
pub(super) fn bytes_below(dir: &Path) -> Result<u64, OutputError> {
    let mut bytes = 0;
    for run in entries(dir)? {
        if !run.is_dir() {
            continue;
        }
        match bytes_in(&run) {
            Ok(found) => bytes += found,
            Err(error) => tracing::error!(error = %chain(&error), "output of a run is not counted"),
        }
    }
    Ok(bytes)
}

fn bytes_in(run: &Path) -> Result<u64, OutputError> {
    let segments: Result<u64, _> = segments_in(run)?.iter().map(|path| length(path)).sum();
    Ok(segments? + stdin_bytes(run).unwrap_or(0))
}

/// Returns how long the kept stdin of a run is; `None` where there is none.
pub(super) fn stdin_bytes(run: &Path) -> Option<u64> {
    let file = std::fs::metadata(run.join(STDIN)).ok()?;
    Some(file.len())
}

fn segments_in(run: &Path) -> Result<Vec<PathBuf>, OutputError> {
    let mut paths = entries(run)?;
    paths.retain(|path| parse_segment(path).is_some());
    Ok(paths)
}

/// Returns the ids of all runs that have a directory.
pub(super) fn runs_below(dir: &Path) -> Result<Vec<RunId>, OutputError> {
    let ids = entries(dir)?
        .into_iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    Ok(ids.collect())
}

/// Returns the ids of all runs of which an earlier one's output was set aside.
pub(super) fn asides_below(dir: &Path) -> Result<Vec<RunId>, OutputError> {
    let entries = entries(dir)?;
    Ok(entries
        .iter()
        .filter_map(|path| aside::run_of(path))
        .collect())
}

/// Deletes a run's files; returns how many bytes that frees.
pub(super) fn remove(system: &System, run: &Path) -> Result<u64, OutputError> {
    if !run.exists() {
        return Ok(0);
    }
    let bytes = bytes_in(run)?;
    for segment in segments_in(run)? {
        system
            .step("output.remove", &segment, || std::fs::remove_file(&segment))
            .map_err(|error| OutputError::file("delete", &segment, error))?;
    }
    system
        .step("output.remove", run, || std::fs::remove_dir_all(run))
        .map_err(|error| OutputError::file("delete", run, error))?;
    Ok(bytes)
}

/// What lies on the disk of a run, indexed by [`Stream::index`].
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) extents: [Vec<Extent>; 2],
    /// How far a sync is known to have come.
    pub(super) synced: [u64; 2],
    /// Bytes that were cut off.
    pub(super) freed: u64,
}

/// Returns what lies on the disk of a run, after cutting off what a power cut may have spoiled.
/// What is left after the cut is written down for this boot before anything is appended to it: a
/// crash of this process loses nothing that comes behind.
pub(super) fn recover(
    system: &System,
    run: &Path,
    boot_id: Option<BootId>,
) -> Result<Recovered, OutputError> {
    expect_no_link(run)?;
    if !run.exists() {
        return Ok(Recovered::default());
    }
    let (kept, synced) = match (boot_id, synced(run)?) {
        // Same boot: whatever write(2) has taken is there.
        (Some(now), Some((then, synced))) if now == then => (None, synced),
        (Some(now), Some((_, kept))) => (Some((now, kept)), kept),
        // The record is made before the first segment: the power cut took it, and more with it.
        (Some(now), None) => (Some((now, [0; 2])), [0; 2]),
        (None, _) => (None, [0; 2]),
    };
    let (extents, freed) = cut(system, run, kept.map_or([u64::MAX; 2], |(_, kept)| kept))?;
    if let Some((boot_id, _)) = kept {
        let path = run.join(SYNCED);
        let ends = extents
            .each_ref()
            .map(|extents| extents.last().map_or(0, |last| last.to));
        write_synced(system, &path, boot_id, ends)
            .and_then(|file| system.sync("output.sync_synced", &path, || file.sync_data()))
            .map_err(|error| OutputError::file("write", &path, error))?;
    }
    Ok(Recovered {
        extents,
        synced,
        freed,
    })
}

/// Cuts off what lies behind `kept`, and returns what is left, and how many bytes are not.
fn cut(
    system: &System,
    run: &Path,
    kept: [u64; 2],
) -> Result<([Vec<Extent>; 2], u64), OutputError> {
    let mut freed = 0;
    let gaps = kept_gaps(system, run, kept)?;
    let mut segments: [BTreeMap<u64, u64>; 2] = Default::default();
    for path in entries(run)? {
        let Some((stream, from)) = parse_segment(&path) else {
            continue;
        };
        let kept = kept[stream.index()];
        let mut bytes = length(&path)?;
        if from >= kept {
            freed += bytes;
            system
                .step("output.delete", &path, || std::fs::remove_file(&path))
                .map_err(|error| OutputError::file("delete", &path, error))?;
            continue;
        }
        if from + bytes > kept {
            freed += from + bytes - kept;
            bytes = kept - from;
            let cut = || open_here(&path, File::options().write(true))?.set_len(bytes);
            system
                .step("output.cut", &path, cut)
                .map_err(|error| OutputError::file("cut", &path, error))?;
        }
        segments[stream.index()].insert(from, bytes);
    }
    let left = Stream::BOTH.map(|stream| {
        let at = stream.index();
        let gaps = gaps.iter().filter(|gap| gap.0 == stream);
        extents(&segments[at], gaps.map(|gap| (gap.1, gap.2, gap.3)))
    });
    Ok((left, freed))
}

/// Puts segments and gaps in order. A hole that nothing explains was made by a power cut.
fn extents(
    segments: &BTreeMap<u64, u64>,
    gaps: impl Iterator<Item = (u64, u64, GapReason)>,
) -> Vec<Extent> {
    let segments = segments.iter().filter(|(_, length)| **length > 0);
    let segments = segments.map(|(from, length)| Extent {
        from: *from,
        to: from + length,
        what: OnDisk::Segment,
    });
    let gaps = gaps.map(|(from, to, reason)| Extent {
        from,
        to,
        what: OnDisk::Gap(reason),
    });
    let mut all: Vec<_> = segments.chain(gaps).collect();
    // A segment that was to be given up and is still there comes before the gap that names it.
    all.sort_by_key(|extent| (extent.from, extent.what != OnDisk::Segment));
    let mut whole: Vec<Extent> = Vec::with_capacity(all.len());
    for extent in all {
        let end = whole.last().map_or(0, |last| last.to);
        if extent.to <= end {
            continue;
        }
        if extent.from > end {
            whole.push(Extent {
                from: end,
                to: extent.from,
                what: OnDisk::Gap(GapReason::PowerCut),
            });
        }
        match extent.what {
            // Bytes cannot begin anywhere else than where their file says.
            OnDisk::Segment if extent.from < end => {}
            _ => whole.push(Extent {
                from: extent.from.max(end),
                ..extent
            }),
        }
    }
    // Each segment that was given up has a line of its own.
    join_gaps(&mut whole);
    whole
}

fn parse_segment(path: &Path) -> Option<(Stream, u64)> {
    let (name, from) = path.file_name()?.to_str()?.split_once('-')?;
    let stream = parse_stream(name)?;
    Some((stream, u64::from_str_radix(from, 16).ok()?))
}

fn parse_stream(name: &str) -> Option<Stream> {
    Stream::BOTH
        .into_iter()
        .find(|stream| stream_name(*stream) == name)
}

/// Writes a gap as a line.
pub(super) fn gap_line(stream: Stream, from: u64, to: u64, reason: GapReason) -> String {
    let word = serde_json::to_string(&reason).expect("a variant without data is a word");
    format!(
        "{} {from} {to} {}\n",
        stream_name(stream),
        word.trim_matches('"')
    )
}

type Gap = (Stream, u64, u64, GapReason);

/// Returns the gaps that begin below `kept`, and leaves no others in the file: what comes behind
/// the cut is told again, and perhaps with other words.
fn kept_gaps(system: &System, run: &Path, kept: [u64; 2]) -> Result<Vec<Gap>, OutputError> {
    let mut gaps = gaps(run)?;
    let all = gaps.len();
    gaps.retain(|gap| gap.1 < kept[gap.0.index()]);
    if gaps.len() < all {
        let lines = gaps.iter().map(|gap| gap_line(gap.0, gap.1, gap.2, gap.3));
        replace_gaps(system, run, &lines.collect::<String>())?;
    }
    Ok(gaps)
}

/// Puts these lines in the place of all that stand in the file with the gaps. Returns the new file.
pub(super) fn replace_gaps(system: &System, run: &Path, lines: &str) -> Result<File, OutputError> {
    let (path, new) = (run.join(GAPS), run.join("gaps.new"));
    std::fs::remove_file(&new).ok(); // left by a crash in this place, or not there
    let replace = || {
        let file = system.step("output.new_gaps", &new, || {
            let mut file = append_to(&new)?;
            io::Write::write_all(&mut file, lines.as_bytes())?;
            Ok(file)
        })?;
        system.sync("output.sync_gaps", &new, || file.sync_data())?;
        system.step("output.replace_gaps", &path, || {
            std::fs::rename(&new, &path)
        })?;
        Ok(file)
    };
    replace().map_err(|error| OutputError::file("write", &path, error))
}

/// Reads the gaps. A last line without its end was being written when the process died: what it
/// would have said is told again by the node. A line that a power cut has spoiled says nothing, and
/// what it stood for is a hole that nothing explains.
fn gaps(run: &Path) -> Result<Vec<Gap>, OutputError> {
    let path = run.join(GAPS);
    let bytes = match read_here(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(OutputError::file("read", &path, error)),
    };
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let lines = lines.filter(|line| line.ends_with(b"\n"));
    let lines = lines.filter_map(|line| std::str::from_utf8(line).ok());
    Ok(lines.filter_map(parse_gap).collect())
}

fn parse_gap(line: &str) -> Option<Gap> {
    let mut words = line.split_ascii_whitespace();
    let stream = parse_stream(words.next()?)?;
    let from = words.next()?.parse().ok()?;
    let to = words.next()?.parse().ok()?;
    let reason = serde_json::from_value(words.next()?.into()).ok()?;
    (from < to && words.next().is_none()).then_some((stream, from, to, reason))
}

/// Returns the contents of `synced`.
pub(super) fn synced_record(boot_id: BootId, synced: [u64; 2]) -> [u8; 48] {
    let mut record = [0; 48];
    record[..16].copy_from_slice(boot_id.as_bytes());
    record[16..24].copy_from_slice(&synced[0].to_be_bytes());
    record[24..32].copy_from_slice(&synced[1].to_be_bytes());
    let check = Sha256::digest(&record[..32]);
    record[32..].copy_from_slice(&check[..16]);
    record
}

/// Writes `synced` anew. Whoever needs it on the disk syncs what is returned.
pub(super) fn write_synced(
    system: &System,
    path: &Path,
    boot_id: BootId,
    synced: [u64; 2],
) -> io::Result<File> {
    system.step("output.synced", path, || {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let file = open_here(path, options.mode(0o600))?;
        file.write_all_at(&synced_record(boot_id, synced), 0)?;
        Ok(file)
    })
}

/// Reads `synced`; `None` where it is missing or torn.
fn synced(run: &Path) -> Result<Option<(BootId, [u64; 2])>, OutputError> {
    let path = run.join(SYNCED);
    let record = match read_here(&path) {
        Ok(record) => record,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OutputError::file("read", &path, error)),
    };
    Ok(parse_synced(&record))
}

fn parse_synced(record: &[u8]) -> Option<(BootId, [u64; 2])> {
    let (boot_id, rest) = record.split_first_chunk::<16>()?;
    let (stdout, rest) = rest.split_first_chunk::<8>()?;
    let (stderr, _) = rest.split_first_chunk::<8>()?;
    let boot_id = BootId::from_bytes(*boot_id);
    let synced = [u64::from_be_bytes(*stdout), u64::from_be_bytes(*stderr)];
    (synced_record(boot_id, synced) == record).then_some((boot_id, synced))
}

/// A directory of ours is no link: what is written and deleted there would be somebody else's.
fn expect_no_link(run: &Path) -> Result<(), OutputError> {
    if !run.is_symlink() {
        return Ok(());
    }
    let words = "it is a link, expected a directory: move it away";
    let error = io::Error::new(io::ErrorKind::InvalidInput, words);
    Err(OutputError::file("open", run, error))
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, OutputError> {
    std::fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(|error| OutputError::file("read", dir, error))
}

fn length(path: &Path) -> Result<u64, OutputError> {
    std::fs::metadata(path)
        .map(|metadata| metadata.len())
        .map_err(|error| OutputError::file("look at", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(all: &[(u64, u64)]) -> BTreeMap<u64, u64> {
        all.iter().copied().collect()
    }

    #[test]
    fn a_line_that_a_power_cut_has_spoiled_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = gap_line(Stream::Stdout, 0, 5, GapReason::Limit).into_bytes();
        bytes.extend_from_slice(b"stdout 5 \xb9 limit\n");
        bytes.extend(gap_line(Stream::Stderr, 0, 9, GapReason::Freed).into_bytes());
        std::fs::write(dir.path().join(GAPS), bytes).unwrap();
        let found = gaps(dir.path()).unwrap();
        assert_eq!(
            found,
            [
                (Stream::Stdout, 0, 5, GapReason::Limit),
                (Stream::Stderr, 0, 9, GapReason::Freed)
            ]
        );
    }

    /// Were anything of it opened for waiting, the test would hang.
    #[test]
    fn nothing_but_a_file_of_ours_is_read_or_written_and_nobody_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "of somebody else").unwrap();
        let recovered = |run: &Path| {
            let boot_id = BootId::from_bytes([1; 16]);
            recover(&System::default(), run, Some(boot_id)).map(|_| ())
        };
        let told = |run: &Path| chain(&recovered(run).unwrap_err());
        for name in [GAPS, SYNCED] {
            let run = dir.path().join(name);
            std::fs::create_dir(&run).unwrap();
            let made = std::process::Command::new("mkfifo")
                .arg(run.join(name))
                .status();
            assert!(made.unwrap().success());
            let words = told(&run);
            assert!(words.contains(name) && words.contains("FIFO"), "{words}");
            std::fs::remove_file(run.join(name)).unwrap();
            std::os::unix::fs::symlink(&elsewhere, run.join(name)).unwrap();
            let words = told(&run);
            assert!(words.contains("link"), "{words}");
            append_to(&run.join(name)).unwrap_err();
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join(GAPS), &link).unwrap();
        assert!(told(&link).contains("link"));
        assert_eq!(
            std::fs::read_to_string(&elsewhere).unwrap(),
            "of somebody else"
        );
    }

    #[test]
    fn gaps_beside_each_other_are_one_gap() {
        let segments = BTreeMap::from([(0, 10), (40, 10)]);
        let gap = |from| (from, from + 10, GapReason::Limit);
        let found = extents(&segments, [gap(10), gap(20), gap(30)].into_iter());
        let found: Vec<_> = found.iter().map(|e| (e.from, e.to, e.what)).collect();
        assert_eq!(
            found,
            [
                (0, 10, OnDisk::Segment),
                (10, 40, OnDisk::Gap(GapReason::Limit)),
                (40, 50, OnDisk::Segment)
            ]
        );
    }

    #[test]
    fn holes_that_nothing_explains_are_gaps_of_a_power_cut() {
        let found = extents(
            &segments(&[(0, 10), (30, 10), (60, 5)]),
            [(40, 60, GapReason::Freed)].into_iter(),
        );
        let whats: Vec<_> = found.iter().map(|e| (e.from, e.to, e.what)).collect();
        assert_eq!(
            whats,
            [
                (0, 10, OnDisk::Segment),
                (10, 30, OnDisk::Gap(GapReason::PowerCut)),
                (30, 40, OnDisk::Segment),
                (40, 60, OnDisk::Gap(GapReason::Freed)),
                (60, 65, OnDisk::Segment),
            ]
        );
    }

    #[test]
    fn a_gap_line_survives_and_a_torn_one_is_nothing() {
        let line = gap_line(Stream::Stderr, 5, 9, GapReason::DiskFull);
        assert_eq!(line, "err 5 9 disk_full\n");
        assert_eq!(
            parse_gap(&line),
            Some((Stream::Stderr, 5, 9, GapReason::DiskFull))
        );
        for bad in [
            "",
            "err",
            "err 9 5 limit",
            "err 5 9 why",
            "nul 5 9 limit",
            "err 5 9 limit x",
        ] {
            assert_eq!(parse_gap(bad), None, "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(GAPS), "out 1 2 limit\nout 3 4 limi").unwrap();
        assert_eq!(
            gaps(dir.path()).unwrap(),
            [(Stream::Stdout, 1, 2, GapReason::Limit)]
        );
    }

    #[test]
    fn a_torn_record_of_a_sync_is_none() {
        let boot_id = BootId::from_bytes([3; 16]);
        let record = synced_record(boot_id, [5, 6]);
        assert_eq!(parse_synced(&record), Some((boot_id, [5, 6])));
        for length in 0..record.len() {
            assert_eq!(parse_synced(&record[..length]), None);
        }
        for at in 0..record.len() {
            let mut flipped = record;
            flipped[at] ^= 1;
            assert_eq!(parse_synced(&flipped), None);
        }
    }
}
