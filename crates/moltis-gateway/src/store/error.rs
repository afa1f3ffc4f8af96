//! What the store can fail with, and how the errors of SQLite become that.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the store did not do something. Cloned to all who waited for one transaction.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or directory could not be made or opened.
    #[error("cannot {verb} `{}`", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another gateway holds this directory.
    #[error(
        "another gateway uses `{}`: stop it, or give this one a MOLTIS_HOME of its own",
        dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The file is no SQLite database.
    #[error(
        "`{}` is not a database: it begins with {found}; move it away and start again, or restore a backup",
        path.display()
    )]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// Its first bytes, escaped.
        found: String,
    },
    /// The file is somebody else's database.
    #[error(
        "`{}` is the database of another program (application id {found:#x}): move it away and start again",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The application id in its header.
        found: i64,
    },
    /// A newer Moltis wrote the database.
    #[error(
        "`{}` was written by a newer Moltis (schema {found}, this one knows {known}): install that version again, or restore the backup from before the upgrade",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema found.
        found: i64,
        /// The newest schema known here.
        known: i64,
    },
    /// The database is damaged.
    #[error(
        "the database `{}` is damaged ({detail}): stop the gateway, keep a copy of the file with its `-wal`, and restore a backup",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the check found first.
        detail: String,
    },
    /// The disk is full. Nothing was changed; the same may succeed later.
    #[error("the disk that holds `{}` is full: free some space and try again", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// The store takes no writes any more, until the gateway is started anew.
    #[error(
        "the store is read-only since the disk failed to keep what was written ({reason}): check the disk, then restart the gateway"
    )]
    ReadOnly {
        /// What the disk said.
        reason: String,
    },
    /// A row holds what no version of Moltis writes.
    #[error("column `{column}` of a row in `{table}` holds what it never should: {detail}")]
    BadRow {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What was found.
        detail: String,
    },
    /// Two things that must differ do not: a rule that callers look at first was broken.
    #[error("cannot {doing}: the same is there already ({constraint})")]
    Unique {
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        constraint: String,
    },
    /// The database failed.
    #[error("cannot {doing}")]
    Database {
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The store was closed.
    #[error("the store is closed: the gateway is shutting down")]
    Closed,
}

impl StoreError {
    /// Returns whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }

    /// Returns whether it tells something of the disk, and not of what was to be written.
    pub(super) fn is_of_the_disk(&self) -> bool {
        matches!(
            self,
            Self::DiskFull { .. }
                | Self::ReadOnly { .. }
                | Self::Corrupt { .. }
                | Self::Database { .. }
        )
    }

    pub(crate) fn file(verb: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            verb,
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }

    /// Names an error of SQLite by what the caller can do about it.
    pub(super) fn from_sqlx(doing: &'static str, path: &Path, error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => Self::Closed,
                sqlx::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
                    Self::DiskFull {
                        path: path.to_owned(),
                    }
                }
                error => Self::Database {
                    doing,
                    source: Arc::new(error),
                },
            };
        };
        if database.is_unique_violation() {
            return Self::Unique {
                doing,
                constraint: database.message().to_owned(),
            };
        }
        // The low byte of a result code is its class (sqlite.org/rescode.html).
        let class = database
            .code()
            .and_then(|code| code.parse::<u32>().ok())
            .unwrap_or_default()
            & 0xff;
        match class {
            11 => Self::Corrupt {
                path: path.to_owned(),
                detail: database.message().to_owned(),
            },
            13 => Self::DiskFull {
                path: path.to_owned(),
            },
            26 => Self::NotADatabase {
                path: path.to_owned(),
                found: "something else".to_owned(),
            },
            _ => Self::Database {
                doing,
                source: Arc::new(error),
            },
        }
    }
}
