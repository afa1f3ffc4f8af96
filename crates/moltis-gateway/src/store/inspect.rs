//! A look at a database from beside: whether it is ours and sound, for a bounded time.
//!
//! It has a connection of its own that only reads, so that a gateway that runs loses no reader to it
//! and one that does not run is not begun. Called by [`crate::doctor`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moltis_identity::files;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tokio::time::Instant;

use super::{StoreError, open};

/// SQLite asks whether to go on after so many pages: 1 MiB of them.
const PAGES_PER_QUESTION: i32 = 256;

/// How long somebody else's lock is waited for.
const BUSY: Duration = Duration::from_secs(2);

/// What a look at a database found, where it found nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inspected {
    /// There is none.
    Missing,
    /// Every page and index was read.
    Whole,
    /// The time was over before that; so many bytes it has.
    TooLong(u64),
}

/// Reads every page and index of the database in `dir`, for at most `time`. Where no gateway has it
/// open and none left it open, nothing is made beside it.
///
/// # Errors
/// [`StoreError`] with what was found first.
pub(crate) async fn inspect(dir: &Path, time: Duration) -> Result<Inspected, StoreError> {
    let path = dir.join(open::FILE);
    let bytes = match std::fs::metadata(&path) {
        Ok(file) => file.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Inspected::Missing),
        Err(error) => return Err(StoreError::file("look at", &path, error)),
    };
    let mut in_time = Ok(false);
    if is_closed(&path) {
        in_time = read(&path, Access::Closed, time).await;
    }
    // Somebody who opened it meanwhile may have written what looked like damage.
    if !is_closed(&path) {
        in_time = read(&path, Access::Open, time).await;
    }
    Ok(if in_time? {
        Inspected::Whole
    } else {
        Inspected::TooLong(bytes)
    })
}

/// Whether others may write meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Open,
    /// All commits are in the one file, which can be read where nothing may be written.
    Closed,
}

/// Returns whether nobody has the database open, and nobody who died left commits beside it.
pub(super) fn is_closed(path: &Path) -> bool {
    !open::beside(path, "-wal").exists()
}

/// Opens a database for reading alone.
pub(super) async fn reader(path: &Path, access: Access) -> Result<SqliteConnection, StoreError> {
    files::check(path).map_err(|error| StoreError::file("open", path, error))?;
    let connection = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .immutable(access == Access::Closed)
        .busy_timeout(BUSY)
        .disable_statement_logging()
        .connect()
        .await;
    connection.map_err(|error| StoreError::from_sqlx("open the database", path, error))
}

/// Returns whether the time was enough.
async fn read(path: &Path, access: Access, time: Duration) -> Result<bool, StoreError> {
    let mut connection = reader(path, access).await?;
    let in_time = read_all(&mut connection, path, time).await;
    connection.close().await.ok(); // it only read
    in_time
}

async fn read_all(
    connection: &mut SqliteConnection,
    path: &Path,
    time: Duration,
) -> Result<bool, StoreError> {
    open::check_owner(connection, path).await?;
    open::check_version(connection, path).await?;
    let late = Arc::new(AtomicBool::new(false));
    let (deadline, noted) = (Instant::now() + time, Arc::clone(&late));
    let go_on = move || {
        let in_time = Instant::now() < deadline;
        if !in_time {
            noted.store(true, Ordering::Relaxed);
        }
        in_time
    };
    connection
        .lock_handle()
        .await
        .map_err(|error| StoreError::from_sqlx("check the database", path, error))?
        .set_progress_handler(PAGES_PER_QUESTION, go_on);
    match open::check_whole(connection, path).await {
        Err(_) if late.load(Ordering::Relaxed) => Ok(false),
        checked => checked.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::store::Store;
    use crate::store::testing::entry;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn a_sound_database_is_read_whole_while_it_is_open_and_after() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(inspect(dir.path(), LONG).await.unwrap(), Inspected::Missing);
        let store = Store::open(dir.path()).await.unwrap();
        store
            .note(entry(crate::audit::Action::PairingOpen))
            .await
            .unwrap();
        assert_eq!(inspect(dir.path(), LONG).await.unwrap(), Inspected::Whole);
        store.close().await;
        assert_eq!(inspect(dir.path(), LONG).await.unwrap(), Inspected::Whole);
        let names = std::fs::read_dir(dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name());
        let names: std::collections::BTreeSet<_> = names.collect();
        let only = ["gateway.db", "gateway.lock"];
        assert!(names.iter().eq(only), "{names:?}");
    }

    #[tokio::test]
    async fn a_check_that_takes_too_long_is_ended_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        // More pages than are read between two looks at the clock.
        crate::store::testing::grow(&store).await;
        store.close().await;
        let inspected = inspect(dir.path(), Duration::ZERO).await.unwrap();
        let Inspected::TooLong(bytes) = inspected else {
            panic!("{inspected:?}");
        };
        assert!(bytes > 1024 * 1024, "{bytes}");
    }

    #[tokio::test]
    async fn a_damaged_page_is_found_in_a_database_that_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        crate::store::testing::grow(&store).await;
        store.close().await;
        drop(store);
        let store = Store::open(dir.path()).await.unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(dir.path().join(open::FILE))
            .unwrap();
        file.write_all_at(&[0xff; 4096], 20 * 4096).unwrap();
        for _ in ["open", "closed"] {
            let error = inspect(dir.path(), LONG).await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
            store.close().await;
        }
    }
}
