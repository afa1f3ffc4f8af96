//! What managing a service can fail with.

use std::io;
use std::path::PathBuf;

/// Why a service cannot be installed, looked at or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// This user has no service manager that answers: a container, a system without systemd, or a
    /// shell of another user without a session of its own.
    #[error("no service manager of this user answers: {said}")]
    NoManager {
        /// What was said instead of an answer.
        said: String,
    },
    /// The owner of the machine forbade this service to start.
    #[error("the service `{unit}` is masked: the service manager will not start it")]
    Masked {
        /// The unit.
        unit: String,
    },
    /// The manager does not read the directory in which the file would lie.
    #[error("the service manager does not read `{}`; it reads {found}", .path.display())]
    NotRead {
        /// The directory.
        path: PathBuf,
        /// Where it looks.
        found: String,
    },
    /// The manager could not start it.
    #[error("the service `{unit}` does not start: {said}")]
    NotStarted {
        /// The unit.
        unit: String,
        /// What the manager said.
        said: String,
    },
    /// Somebody else installs or removes a service at this moment.
    #[error("another process installs or removes a service of this user right now")]
    Busy,
    /// A value cannot stand in the file.
    #[error("{what} {problem}")]
    Value {
        /// Which value.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read, written or removed.
    #[error("`{}` cannot be {verb}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What we were doing.
        verb: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A tool of the system failed.
    #[error("`{command}` failed: {said}")]
    Tool {
        /// The command line.
        command: String,
        /// What it said, and how it ended.
        said: String,
    },
}
