//! `node.state`: what `moltis node status` reads, and the lock that keeps a second node process off
//! one home.
//!
//! The file is written in place, because the lock lies on it: a new file would have none.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moltis_identity::files;
use serde::{Deserialize, Serialize};

/// Bytes of the file, at the most.
const STATE_BYTES_MAX: usize = 16 * 1024;

/// Bytes of the last error's words, at the most.
const ERROR_BYTES_MAX: usize = 2048;

/// A reader of the state holds the lock for a moment; a starting node waits that long for it.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Why the state cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another node process works on this home.
    #[error("a node runs on this home already{}", .pid.map_or_else(String::new, |pid| format!(", as process {pid}")))]
    Running {
        /// Its process id, where it said so.
        pid: Option<u32>,
    },
    /// The file system said no.
    #[error("`{}` cannot be {verb}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What we were doing.
        verb: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What a node process says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its process id.
    pub pid: u32,
    /// The gateway that it dials.
    pub gateway_url: String,
    /// Since when it is connected, in seconds since 1970; absent while it is not.
    pub connected_since: Option<u64>,
    /// Why there is no connection, in words; absent while there is one.
    pub last_error: Option<String>,
    /// A person on the gateway has to decide; the connection code that both sides show.
    pub waiting_with_code: Option<String>,
}

/// The right to be the node of one home: held by one process at a time, let go when dropped.
#[derive(Debug)]
pub struct NodeState {
    file: File,
    path: PathBuf,
    report: Report,
}

impl NodeState {
    /// Takes the home's lock by its file `node.state`, mode 0600. Blocks for a fifth of a second
    /// at most.
    ///
    /// # Errors
    /// [`StateError::Running`] when another process holds it.
    pub fn lock(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        let io = |verb, source| StateError::Io {
            path: path.clone(),
            verb,
            source,
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file =
            files::open(&path, options.mode(0o600)).map_err(|source| io("opened", source))?;
        for attempt in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(io("locked", source)),
                Err(TryLockError::WouldBlock) if attempt == LOCK_ATTEMPTS => {
                    let pid = read_report(&file).map(|report| report.pid);
                    return Err(StateError::Running { pid });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            }
        }
        let mut state = Self {
            file,
            path,
            report: Report {
                pid: std::process::id(),
                ..Report::default()
            },
        };
        // The lock is what counts. A node that has no room for its report can still be reached,
        // and what frees some can be run.
        if let Err(error) = state.write() {
            tracing::warn!(%error, "the node's state cannot be written");
        }
        Ok(state)
    }

    /// Says that the node is connected.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn connected(&mut self, url: &str, now: SystemTime) -> Result<(), StateError> {
        self.update(|report| {
            url.clone_into(&mut report.gateway_url);
            report.connected_since = Some(seconds(now));
            report.last_error = None;
            report.waiting_with_code = None;
        })
    }

    /// Says that the node is not connected, and why.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn disconnected(&mut self, url: &str, error: &str) -> Result<(), StateError> {
        self.update(|report| {
            url.clone_into(&mut report.gateway_url);
            report.connected_since = None;
            report.waiting_with_code = None;
            report.last_error = Some(cut(error));
        })
    }

    /// Says that a person has to decide.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn waiting(&mut self, url: &str, code: &str) -> Result<(), StateError> {
        self.update(|report| {
            url.clone_into(&mut report.gateway_url);
            report.connected_since = None;
            report.waiting_with_code = Some(code.to_owned());
            report.last_error = None;
        })
    }

    fn update(&mut self, change: impl FnOnce(&mut Report)) -> Result<(), StateError> {
        let mut report = self.report.clone();
        change(&mut report);
        if report == self.report {
            return Ok(());
        }
        self.report = report;
        self.write()
    }

    fn write(&mut self) -> Result<(), StateError> {
        let written = serde_json::to_vec(&self.report)
            .map_err(io::Error::from)
            .and_then(|bytes| {
                self.file.write_all_at(&bytes, 0)?;
                self.file.set_len(bytes.len() as u64)
            });
        written.map_err(|source| StateError::Io {
            path: self.path.clone(),
            verb: "written",
            source,
        })
    }
}

impl Drop for NodeState {
    fn drop(&mut self) {
        self.file.set_len(0).ok(); // A stale report would be worse than none.
    }
}

/// Reads what the node of this home says of itself; `None` when none runs.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read_state(path: &Path) -> Result<Option<Report>, StateError> {
    let io = |source| StateError::Io {
        path: path.to_owned(),
        verb: "read",
        source,
    };
    let file = match files::open(path, File::options().read(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io(source)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None), // Nobody holds it; a report in it is from a process that was killed.
        Err(TryLockError::WouldBlock) => Ok(Some(read_report(&file).unwrap_or_default())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

fn read_report(file: &File) -> Option<Report> {
    // The file is written in place: a reader in the very moment may see half of it.
    (0..3).find_map(|_| {
        let mut bytes = vec![0; STATE_BYTES_MAX];
        let len = file.read_at(&mut bytes, 0).ok()?;
        bytes.truncate(len);
        serde_json::from_slice(&bytes).ok()
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn cut(words: &str) -> String {
    let mut end = words.len().min(ERROR_BYTES_MAX);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    words[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_no_file_in_its_place_is_named_and_not_waited_for() {
        use std::error::Error as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.state");
        let check = |what: &str| {
            let expected = format!("it is {what}, expected a regular file: move it away");
            for error in [
                read_state(&path).unwrap_err(),
                NodeState::lock(&path).unwrap_err(),
            ] {
                assert_eq!(error.source().unwrap().to_string(), expected);
            }
        };
        std::fs::create_dir(&path).unwrap();
        check("a directory");
        std::fs::remove_dir(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        check("a FIFO");
    }

    #[test]
    fn one_node_holds_a_home_and_a_reader_sees_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.state");
        assert_eq!(read_state(&path).unwrap(), None);
        let mut state = NodeState::lock(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        state
            .disconnected("ws://h:1/ws", &"é".repeat(4000))
            .unwrap();
        let report = read_state(&path).unwrap().unwrap();
        assert_eq!(report.pid, std::process::id());
        assert!(report.last_error.unwrap().len() <= ERROR_BYTES_MAX);
        let now = UNIX_EPOCH + Duration::from_hours(500_000);
        state.connected("ws://h:1/ws", now).unwrap();
        let report = read_state(&path).unwrap().unwrap();
        assert_eq!(report.connected_since, Some(1_800_000_000));
        assert_eq!(report.last_error, None);
        drop(state);
        assert_eq!(read_state(&path).unwrap(), None);
    }

    #[test]
    fn a_second_node_on_one_home_is_refused_by_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.state");
        let first = NodeState::lock(&path).unwrap();
        match NodeState::lock(&path) {
            Err(StateError::Running { pid }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        NodeState::lock(&path).unwrap();
    }

    #[test]
    fn a_report_of_a_killed_process_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.state");
        std::fs::write(&path, r#"{"pid":1,"gateway_url":"ws://h:1/ws"}"#).unwrap();
        assert_eq!(read_state(&path).unwrap(), None);
    }

    #[test]
    fn a_home_that_cannot_be_written_is_told() {
        let missing = Path::new("/nonexistent/moltis/node.state");
        let error = NodeState::lock(missing).unwrap_err();
        assert!(matches!(error, StateError::Io { verb: "opened", .. }));
    }
}
