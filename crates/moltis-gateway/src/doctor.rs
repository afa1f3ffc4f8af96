//! What is wrong with a gateway, and what to type next.
//!
//! The checks are pure: a snapshot in, a finding out. A new one is a function in [`checks`] or a
//! file of its own, and a row in one of the two tables here; what it looks at is a field of
//! [`AtRest`] or [`Running`], which [`gather`] fills. A check mends nothing.
//!
//! What only the program around a gateway can see (does it answer, is it a service) is not here: the
//! command line adds it, in the same words.

mod checks;
mod files;
pub(crate) mod gather;
mod words;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

pub use crate::api::doctor::{Finding, Level};
use crate::http::tls::TlsStatus;
use crate::output::SyncTrouble;
use crate::store::{Inspected, StoreError};
use crate::system::System;
use files::Files;

/// How something stands: a [`Finding`] whose check is not named yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    level: Level,
    message: String,
    hint: Option<String>,
}

impl Diagnosis {
    /// It is as it should be.
    pub fn ok(message: impl Into<String>) -> Self {
        Self::new(Level::Ok, message)
    }

    /// It works, and somebody should look at it.
    pub fn warning(message: impl Into<String>) -> Self {
        Self::new(Level::Warning, message)
    }

    /// It does not work.
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Level::Error, message)
    }

    /// Returns one of this level.
    pub fn new(level: Level, message: impl Into<String>) -> Self {
        Self {
            level,
            message: message.into(),
            hint: None,
        }
    }

    /// Says what to type or to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the check.
    pub fn of(self, check: &str) -> Finding {
        Finding {
            check: check.to_owned(),
            level: self.level,
            message: self.message,
            hint: self.hint,
        }
    }
}

/// What can be seen in a home, also while no gateway runs on it.
#[derive(Debug)]
struct AtRest {
    files: Files,
    database: Database,
    /// The disks that the gateway writes to, each once.
    disks: Vec<Disk>,
    /// Why output cannot be written, in words.
    output_trouble: Option<String>,
    /// Why output cannot be synced.
    sync_trouble: Option<SyncTrouble>,
}

/// The database.
#[derive(Debug)]
struct Database {
    /// The file.
    path: PathBuf,
    /// What a look at the file found.
    inspected: Result<Inspected, StoreError>,
    /// Why the gateway that runs cannot write to it or read from it.
    trouble: Option<StoreError>,
}

/// A file system that is written to.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The directory on it.
    dir: PathBuf,
    /// Its room, or why that is not known.
    pub(crate) room: Result<Room, String>,
}

/// The room of a file system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Bytes that its user can still write.
    pub(crate) free_bytes: u64,
    /// Bytes in all.
    pub(crate) total_bytes: u64,
    /// Files that can still be made; `None` where there is no such limit.
    free_files: Option<u64>,
}

/// What is true of a gateway that runs.
#[derive(Debug)]
struct Running {
    now: Timestamp,
    settings: SettingsState,
    listening: Vec<SocketAddr>,
    /// Everything is served without TLS on every address.
    insecure_http: bool,
    /// HTTPS, where there is a certificate.
    tls: Option<TlsStatus>,
    /// When the pairing window closes; `None` while it is closed.
    pairing_closes_at: Option<Timestamp>,
    /// All that are not revoked.
    nodes: Vec<Node>,
    default_route: DefaultRoute,
}

/// The file that the gateway's settings came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SettingsState {
    /// There is none: the program around the gateway made them.
    Embedded,
    /// It is as it was read.
    AsRead(PathBuf),
    /// There was none, and is none.
    Missing(PathBuf),
    /// It was written, made or deleted since.
    Changed(PathBuf),
}

/// A node that may connect.
#[derive(Debug, Clone)]
struct Node {
    name: String,
    online: bool,
    last_seen: Option<Timestamp>,
    /// How far its clock is ahead of ours; `None` where that is not known.
    clock_ahead: Option<SignedDuration>,
    /// Several processes take over from each other with its key.
    is_cloned: bool,
}

/// Where a command goes that names no place.
#[derive(Debug, Clone, PartialEq, Eq)]
enum DefaultRoute {
    /// This machine, and there is a keeper for it.
    Local,
    /// This machine, and nothing runs commands on it.
    LocalWithoutKeeper,
    /// A node.
    Node { name: String, online: bool },
    /// Nowhere: the route, and why.
    Nowhere { route: String, why: String },
}

type Check<T> = (&'static str, fn(&T) -> Diagnosis);

/// What is looked at in a home.
const OF_HOME: &[Check<AtRest>] = &[
    ("file_modes", |seen| files::check(&seen.files)),
    ("database", |seen| checks::database(&seen.database)),
    ("disk", checks::disk),
];

/// What is looked at in a gateway that runs.
const OF_GATEWAY: &[Check<Running>] = &[
    ("config", |seen| checks::config(&seen.settings)),
    ("listen", checks::listen),
    ("pairing_window", checks::pairing_window),
    ("nodes", checks::nodes),
    ("clock", |seen| checks::clock(&seen.nodes)),
    ("exec_route", |seen| checks::exec_route(&seen.default_route)),
];

fn examine<T>(seen: &T, table: &[Check<T>]) -> Vec<Finding> {
    let findings = table.iter();
    findings.map(|(check, look)| look(seen).of(check)).collect()
}

/// Returns the names of the checks that need a gateway that runs.
pub fn checks_of_a_running_gateway() -> impl Iterator<Item = &'static str> {
    OF_GATEWAY.iter().map(|(check, _)| *check)
}

/// Looks at a home on which no gateway runs: `file_modes`, `database` and `disk`. Nothing is made in
/// it, but where a gateway left its database open: there SQLite makes files beside it.
pub async fn examine_home(dir: &Path) -> Vec<Finding> {
    examine(&gather::at_rest(&System::default(), dir).await, OF_HOME)
}
