//! From a directory to an open database, or to words that say what is wrong with it.
//!
//! Nobody but SQLite opens the database file once SQLite has it open: closing a second descriptor
//! would drop its POSIX locks. The look at the first bytes comes before.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use moltis_identity::files;
use rustix::fs::FlockOperation;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Row as _, SqlSafeStr as _, SqliteConnection};

use super::StoreError;
use crate::system::System;

/// Name of the database in its directory.
pub(crate) const FILE: &str = "gateway.db";

/// Name of the file whose lock keeps a second gateway out.
const LOCK: &str = "gateway.lock";

/// `MOLT`: marks a database as ours.
const APPLICATION_ID: i64 = 0x4d4f_4c54;

/// Longest wait for a lock of SQLite. Only checkpoints and backups hold one beside the writer.
const BUSY: Duration = Duration::from_secs(10);

/// Bytes to which the `-wal` file is cut back when it starts anew.
const WAL_BYTES_KEPT: &str = "16777216";

/// A database up to this size is checked whole when it is opened: 64 MiB take about 60 ms. A larger
/// one is checked by `doctor`.
const CHECKED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// All migrations, oldest first. Only ever appended to.
const MIGRATIONS: &[(&str, &str)] = &[
    ("initial", include_str!("../../migrations/0001_initial.sql")),
    ("fleets", include_str!("../../migrations/0002_fleets.sql")),
    ("lived", include_str!("../../migrations/0003_lived.sql")),
    ("asked", include_str!("../../migrations/0004_asked.sql")),
];

/// The files of a store, made and locked.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) path: PathBuf,
    dir: PathBuf,
    /// Held for its lock.
    pub(super) lock: File,
}

impl Files {
    /// Makes directory and files with their modes, and takes the lock.
    pub(super) fn prepare(dir: &Path) -> Result<Self, StoreError> {
        make_dir(dir)?;
        let lock = open_private(&dir.join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                StoreError::InUse {
                    dir: dir.to_owned(),
                }
            } else {
                StoreError::file("lock", &dir.join(LOCK), error.into())
            }
        })?;
        let path = dir.join(FILE);
        let mut file = open_private(&path)?;
        check_first_bytes(&path, &mut file)?;
        for suffix in ["-wal", "-shm"] {
            let beside = beside(&path, suffix);
            // SQLite would wait for a FIFO.
            files::check(&beside).map_err(|error| StoreError::file("open", &beside, error))?;
            match std::fs::set_permissions(&beside, Permissions::from_mode(0o600)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::file("set the mode of", &beside, error));
                }
                _ => {}
            }
        }
        Ok(Self {
            path,
            dir: dir.to_owned(),
            lock,
        })
    }

    /// Returns the options of the writer's connection. SQLite gives `-wal` and `-shm` the mode of
    /// the database file, which exists already.
    pub(super) fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(BUSY)
            .pragma("wal_autocheckpoint", "0")
            .pragma("journal_size_limit", WAL_BYTES_KEPT)
            .thread_name(|id| format!("moltis-db-{id}"))
            .disable_statement_logging()
    }

    /// Opens the `-wal` file for syncs, and puts its name on the disk.
    pub(super) fn wal(&self, system: &System) -> Result<File, StoreError> {
        let path = beside(&self.path, "-wal");
        let wal = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| StoreError::file("open", &path, error))?;
        let sync = || File::open(&self.dir)?.sync_all();
        system
            .sync("store.sync_dir", &self.dir, sync)
            .map_err(|error| StoreError::file("sync", &self.dir, error))?;
        Ok(wal)
    }
}

/// Checks that the open database is ours, sound and not newer, and brings it up to date.
pub(super) async fn migrate(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<(), StoreError> {
    check_owner(connection, path).await?;
    check_version(connection, path).await?;
    if std::fs::metadata(path).is_ok_and(|file| file.len() <= CHECKED_BYTES_MAX) {
        check_whole(connection, path).await?;
    }
    migrator()
        // `run` over a borrowed connection makes a future that no task may own.
        .run_direct(None, connection, false)
        .await
        .map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error)
            | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => {
                StoreError::from_sqlx("bring the database up to date", path, error)
            }
            sqlx::migrate::MigrateError::VersionMismatch(version) => StoreError::Corrupt {
                path: path.to_owned(),
                detail: format!("migration {version} in it is not the one of this version"),
            },
            error => StoreError::Database {
                doing: "bring the database up to date",
                source: std::sync::Arc::new(error),
            },
        })
}

/// Reads every page and index; says what is wrong first.
pub(super) async fn check_whole(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<(), StoreError> {
    let found: String = sqlx::query("PRAGMA quick_check(1)")
        .fetch_one(connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|error| StoreError::from_sqlx("check the database", path, error))?;
    if found == "ok" {
        return Ok(());
    }
    Err(StoreError::Corrupt {
        path: path.to_owned(),
        detail: found.replace('\n', "; "),
    })
}

fn migrator() -> Migrator {
    let migrations = (1..).zip(MIGRATIONS).map(|(version, (name, text))| {
        Migration::new(
            version,
            (*name).into(),
            MigrationType::Simple,
            text.into_sql_str(),
            false,
        )
    });
    Migrator::with_migrations(migrations.collect())
}

/// Checks that the database is ours, or nobody's yet. A gateway that was killed while it made one
/// leaves the table of its migrations, and the mark comes with the first of them.
pub(super) async fn check_owner(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<(), StoreError> {
    let ask = async {
        let row = sqlx::query(
            "SELECT (SELECT application_id FROM pragma_application_id()), count(*) FROM sqlite_schema
             WHERE tbl_name <> '_sqlx_migrations'",
        )
        .fetch_one(connection)
        .await?;
        Ok((row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?))
    };
    let (found, tables) = ask
        .await
        .map_err(|error| StoreError::from_sqlx("read the database", path, error))?;
    if found == APPLICATION_ID || tables == 0 {
        return Ok(());
    }
    Err(StoreError::Foreign {
        path: path.to_owned(),
        found,
    })
}

pub(super) async fn check_version(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<(), StoreError> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let ask = async {
        let row = sqlx::query(
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'",
        )
        .fetch_one(&mut *connection)
        .await?;
        if row.try_get::<i64, _>(0)? == 0 {
            return Ok(0);
        }
        sqlx::query("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
            .fetch_one(connection)
            .await?
            .try_get(0)
    };
    let found: i64 = ask
        .await
        .map_err(|error| StoreError::from_sqlx("read the database's version", path, error))?;
    if found > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    files::make_dir(dir, 0o700).map_err(|error| StoreError::file("make", dir, error))?;
    let mode = std::fs::metadata(dir)
        .map_err(|error| StoreError::file("look at", dir, error))?
        .permissions()
        .mode();
    if mode.trailing_zeros() >= 6 {
        return Ok(());
    }
    std::fs::set_permissions(dir, Permissions::from_mode(0o700))
        .map_err(|error| StoreError::file("set the mode of", dir, error))
}

/// Opens or makes a file that only its owner can read.
fn open_private(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = files::open_here(path, options.mode(0o600))
        .map_err(|error| StoreError::file("open", path, error))?;
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(|error| StoreError::file("set the mode of", path, error))?;
    Ok(file)
}

/// Sixteen bytes begin every SQLite database (sqlite.org/fileformat2.html, 1.3). An empty file is a
/// new one.
fn check_first_bytes(path: &Path, file: &mut File) -> Result<(), StoreError> {
    let mut first = Vec::with_capacity(16);
    file.take(16)
        .read_to_end(&mut first)
        .map_err(|error| StoreError::file("read", path, error))?;
    if first.is_empty() || first == b"SQLite format 3\0" {
        return Ok(());
    }
    Err(StoreError::NotADatabase {
        path: path.to_owned(),
        found: format!("`{}`", first.escape_ascii()),
    })
}

/// Returns the path of a file that SQLite keeps beside a database.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
