//! The log: `MOLTIS_LOG`, else the file's filter, else what suits the command.
//!
//! Lines go to stderr, and for a service into a file of their own, which is turned over by size.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use moltis_identity::files;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::failure::{Failure, failure, report, usage};

/// Bytes of a log file; then it becomes `….1`, and so on.
const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// Bytes that go into a full file before a new one is tried again that could not be made.
const GO_ON_BYTES: u64 = 1024 * 1024;

/// Files of one log: the one that is written to, and older ones.
const FILES: u32 = 5;

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where lines go.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// The terminal, or whatever stderr is.
    Stderr,
    /// This file.
    File(PathBuf),
}

/// Installs the subscriber of this process.
///
/// # Errors
/// `MOLTIS_LOG` is no filter.
pub(crate) fn install(
    environment: Option<&str>,
    file: Option<&str>,
    default: &str,
    format: LogFormat,
    target: Target,
) -> Result<(), Failure> {
    let filter = filter(environment, file.unwrap_or(default))?;
    let mut unopened = None;
    let writer = match target {
        Target::Stderr => BoxMakeWriter::new(io::stderr),
        Target::File(path) => match Rotating::open(path) {
            Ok(file) => BoxMakeWriter::new(file),
            // A service works without its file: stderr is the journal.
            Err(failure) => {
                unopened = Some(failure);
                BoxMakeWriter::new(io::stderr)
            }
        },
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // It would complain on stderr of a line that stderr did not take, and end the task that
        // wrote it with a panic: a gateway goes on where nobody reads its log.
        .log_internal_errors(false)
        .with_ansi(false);
    let installed = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    installed.map_err(|error| failure(format!("cannot start the log: {error}")))?;
    if let Some(failure) = unopened {
        let error = report(&failure.into()).line();
        tracing::error!(error, "the log goes to stderr");
    }
    Ok(())
}

/// Returns whether a text is a filter.
pub(crate) fn is_filter(text: &str) -> bool {
    EnvFilter::builder().parse(text).is_ok()
}

fn filter(environment: Option<&str>, otherwise: &str) -> Result<EnvFilter, Failure> {
    match environment {
        None => EnvFilter::builder().parse(otherwise),
        Some(text) => EnvFilter::builder().parse(text),
    }
    .map_err(|error| {
        usage(format!("MOLTIS_LOG is no filter: {error}"))
            .hint("as `info`, `debug` or `moltis_gateway=debug,info`")
    })
}

/// A file that is turned over by size.
#[derive(Debug)]
struct Rotating {
    path: PathBuf,
    open: Mutex<(File, u64)>,
}

impl Rotating {
    fn open(path: PathBuf) -> Result<Self, Failure> {
        let open = open(&path).map_err(|error| {
            failure(format!("cannot open the log `{}`", path.display())).because(error)
        })?;
        Ok(Self {
            path,
            open: Mutex::new(open),
        })
    }
}

/// Returns whether a path still leads to an open file.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let here = file.metadata().map(identity);
    let there = std::fs::symlink_metadata(path).map(identity);
    matches!((here, there), (Ok(here), Ok(there)) if here == there)
}

/// Returns the file of a log of this age: 0 is the one that is written to.
pub(crate) fn older(path: &Path, age: u32) -> PathBuf {
    if age == 0 {
        return path.to_owned();
    }
    let mut older = path.to_owned().into_os_string();
    older.push(format!(".{age}"));
    older.into()
}

/// Returns the files of a log, the newest first.
pub(crate) fn files(path: &Path) -> impl Iterator<Item = PathBuf> {
    (0..FILES).map(|age| older(path, age))
}

/// Returns the last error that a log holds behind `from`; `None` where there is none in the last
/// bytes, which are all that is looked at.
pub(crate) fn last_error(path: &Path, from: u64, bytes_max: u64) -> Option<String> {
    let mut file = files::open(path, File::options().read(true)).ok()?;
    let length = file.metadata().ok()?.len();
    let from = from.max(length.saturating_sub(bytes_max));
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().find_map(error_of)
}

/// Returns the reason that a line of a log gives, in either format; `None` where it tells no error.
fn error_of(line: &str) -> Option<String> {
    if let Ok(line) = serde_json::from_str::<serde_json::Value>(line) {
        let fields = line.get("fields").filter(|_| line["level"] == "ERROR")?;
        let reason = fields.get("error").or_else(|| fields.get("message"));
        return reason?.as_str().map(str::to_owned);
    }
    let (_, told) = line.split_once(" ERROR ")?;
    let Some((_, reason)) = told.split_once("error=") else {
        return Some(told.to_owned());
    };
    Some(serde_json::from_str(reason).unwrap_or_else(|_| reason.to_owned()))
}

/// Writes why a service does not work that has not got as far as its log.
pub(crate) fn last_words(path: &Path, words: &str) {
    let Ok(log) = Rotating::open(path.to_owned()) else {
        return; // stderr has it too
    };
    let line = format!("{} ERROR moltis: error={words:?}\n", jiff::Timestamp::now());
    (&log).write_all(line.as_bytes()).ok(); // as above
}

/// Opens a log for somebody who appends to it and does not look how long it is; a full one is turned
/// over first.
pub(crate) fn open_to_append(path: &Path) -> io::Result<File> {
    let (file, length) = open(path)?;
    if length < FILE_BYTES_MAX {
        return Ok(file);
    }
    turn_over(path);
    Ok(open(path)?.0)
}

/// Makes each file of a log one older.
fn turn_over(path: &Path) {
    for age in (1..FILES).rev() {
        // A file that is not there yet is none to be moved.
        std::fs::rename(older(path, age - 1), older(path, age)).ok();
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut options = File::options();
    let file = files::open_here(path, options.append(true).create(true).mode(0o600))?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

impl<'a> MakeWriter<'a> for Rotating {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut guard = self
            .open
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let (file, length) = &mut *guard;
        if !is_at(file, &self.path) {
            // Somebody has moved or deleted it. What cannot be made anew goes where it went.
            if let Ok(new) = open(&self.path) {
                (*file, *length) = new;
            }
        }
        if *length > 0 && *length + line.len() as u64 > FILE_BYTES_MAX {
            turn_over(&self.path);
            match open(&self.path) {
                Ok(new) => (*file, *length) = new,
                // Without a descriptor for a new file the old one goes on for a while.
                Err(_) => *length = FILE_BYTES_MAX - GO_ON_BYTES,
            }
        }
        file.write_all(line)?;
        *length += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_turned_over_and_five_files_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        let log = Rotating::open(path.clone()).unwrap();
        for megabyte in 0..64 {
            let line = vec![b'0' + megabyte; 1024 * 1024];
            (&log).write_all(&line).unwrap();
        }
        let first_byte = |path: PathBuf| std::fs::read(path).unwrap()[0] - b'0';
        let firsts: Vec<_> = files(&path).map(first_byte).collect();
        assert_eq!(firsts, [60, 50, 40, 30, 20]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5);
        let old = std::fs::metadata(older(&path, 4)).unwrap();
        assert_eq!(old.len(), FILE_BYTES_MAX);
    }

    #[test]
    fn no_log_is_written_into_what_a_link_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("keeper.log"), dir.path().join("other"));
        std::fs::write(&other, "somebody else's").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        let error = open_to_append(&path).unwrap_err().to_string();
        assert_eq!(
            error,
            "it is a symbolic link, expected a regular file: move it away"
        );
    }

    #[test]
    fn a_log_that_others_append_to_is_turned_over_when_it_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.log");
        for round in 1..=8 {
            let mut file = open_to_append(&path).unwrap();
            file.write_all(&vec![b'0' + round; 6 * 1024 * 1024])
                .unwrap();
        }
        let lengths: Vec<_> = files(&path)
            .take(4)
            .map(|path| std::fs::metadata(path).unwrap().len())
            .collect();
        let full = 12 * 1024 * 1024;
        assert_eq!(lengths, [full; 4]);
        open_to_append(&path).unwrap();
        assert_eq!(std::fs::read(older(&path, 1)).unwrap()[0], b'7');
    }

    #[test]
    fn the_reason_of_an_end_is_found_in_either_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.log");
        let check = |text: &str, expected: Option<&str>| {
            std::fs::write(&path, text).unwrap();
            assert_eq!(last_error(&path, 0, 1000).as_deref(), expected, "{text}");
        };
        check("2026-01-01T00:00:00Z  INFO moltis: fine\n", None);
        check(
            "2026-01-01T00:00:00Z ERROR moltis::commands::gateway: the gateway ends error=\"a \\\"b\\\"\"\n2026 INFO x: y\n",
            Some("a \"b\""),
        );
        check(
            "{\"level\":\"ERROR\",\"fields\":{\"message\":\"m\",\"error\":\"e\"}}\n{\"level\":\"INFO\"}\n",
            Some("e"),
        );
        std::fs::remove_file(&path).unwrap();
        last_words(&path, "no \"home\"");
        assert_eq!(last_error(&path, 0, 1000).as_deref(), Some("no \"home\""));
        let far = format!("2026 ERROR m: old error=\"old\"\n{}\n", "x".repeat(2000));
        check(&far, None);
    }

    #[test]
    fn a_log_that_somebody_took_away_is_made_anew_or_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.log");
        let log = Rotating::open(path.clone()).unwrap();
        (&log).write_all(b"one\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        (&log).write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
        // A directory in its place: no new file can be made, the old one takes the lines, and where
        // it is full the directory is turned over as a log would be.
        let moved = dir.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        std::fs::create_dir(&path).unwrap();
        let line = vec![b'x'; 1024 * 1024];
        for _ in 0..12 {
            (&log).write_all(&line).unwrap();
        }
        assert!(older(&path, 1).is_dir());
        let bytes = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert_eq!(bytes(&moved) + bytes(&path), 12 * 1024 * 1024 + 4);
    }
}
