//! The log: `MOLTIS_LOG`, else the file's filter, else what suits the command.
//!
//! Lines go to stderr, and for a service into a file of their own, which is turned over by size.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::failure::{Failure, failure, usage};

/// Bytes of a log file; then it becomes `….1`, and so on.
const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;

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
/// `MOLTIS_LOG` is no filter, or the file cannot be opened.
pub(crate) fn install(
    environment: Option<&str>,
    file: Option<&str>,
    default: &str,
    format: LogFormat,
    target: Target,
) -> Result<(), Failure> {
    let filter = filter(environment, file.unwrap_or(default))?;
    let writer = match target {
        Target::Stderr => BoxMakeWriter::new(io::stderr),
        Target::File(path) => BoxMakeWriter::new(Rotating::open(path)?),
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
    installed.map_err(|error| failure(format!("cannot start the log: {error}")))
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

/// Returns the last error that a log holds behind `from`; `None` where there is none in the bytes
/// that are looked at.
pub(crate) fn last_error(path: &Path, from: u64, bytes_max: usize) -> Option<String> {
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(bytes_max as u64).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let (_, line) = text
        .lines()
        .rev()
        .find_map(|line| line.split_once(" ERROR "))?;
    // `module: message error="…"`: the reason, where the line has one.
    let reason = line.split_once("error=").map(|(_, reason)| reason);
    let quoted = reason.and_then(|reason| serde_json::from_str(reason).ok());
    Some(quoted.unwrap_or_else(|| reason.unwrap_or(line).to_owned()))
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
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
        if *length > 0 && *length + line.len() as u64 > FILE_BYTES_MAX {
            for age in (1..FILES).rev() {
                // A file that is not there yet is none to be moved.
                std::fs::rename(older(&self.path, age - 1), older(&self.path, age)).ok();
            }
            (*file, *length) = open(&self.path)?;
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
}
