//! Everything the gateway knows, in SQLite, behind one writer and a few readers.
//!
//! A write answers with [`Written`]: committed, and safe from the death of any process. Who needs
//! it safe from a power cut awaits [`Store::synced`] (`docs/protocol.md`, 9). A write
//! whose future is dropped is still done.
//!
//! Each family of rows has its file below, with one function and one test for each statement; time
//! and ids come in as arguments. Output of commands is not here but in [`crate::output`]. What to
//! do is decided elsewhere: by [`crate::pairing`], by the session and the dispatcher.

mod audit;
mod backup;
mod checkpoint;
mod connection;
mod error;
mod fleets;
mod inspect;
mod lived;
mod nodes;
mod open;
pub(crate) mod pairings;
mod row;
mod runs;
mod settings;
mod sync;
mod telemetry;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
mod writer;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sqlx::ConnectOptions as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::audit::Verdict as AuditVerdict;
pub use self::backup::{BackupError, backup};
use self::checkpoint::Checkpoints;
use self::connection::{Connection, Readers};
pub use self::error::StoreError;
pub use self::fleets::{FleetCreation, FleetMember, FleetRecord, LeftOut, LeftOutBecause};
pub(crate) use self::inspect::{Inspected, inspect};
pub(crate) use self::lived::Lived;
pub use self::nodes::{Claims, NodeRecord, Sighting};
pub(crate) use self::open::FILE;
use self::open::Files;
pub use self::pairings::{Answer, KeyMismatch, PairingRequest};
pub use self::runs::{
    BootMoment, Ended, Heads, NewRun, RunCreation, RunFilter, RunKey, RunPage, RunRecord, RunStage,
    Started, Target,
};
pub use self::sync::Written;
use self::sync::{Syncer, WalSync};
pub use self::tokens::{NewTokenRecord, TokenCreation, TokenHash, TokenRecord};
use self::writer::{BoxFuture, Commit, Done, Fold, Folded, Job, Tx, Waiting, Writer};
use crate::audit::Head;
use crate::metrics::StoreTimes;
use crate::system::System;

/// The wait before a store that took no write is tried again by who asks whether it is ready.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A handle on the gateway's database. Cloning shares it; the database closes with
/// [`Store::close`], or with the last handle.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    system: System,
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    /// Small writes that nobody waits for.
    later: mpsc::Sender<Waiting>,
    #[cfg(feature = "metrics")]
    times: StoreTimes,
    readers: Readers,
    syncer: Arc<Syncer>,
    /// Why the last write failed, and when; `None` after one that did not.
    trouble: Mutex<Option<(StoreError, Instant)>>,
    /// Counts tokens that were revoked.
    revocations: watch::Sender<u64>,
    /// Locked until the store is closed.
    lock: File,
}

impl Store {
    /// Opens the database in `dir`, making what is missing: the directory with mode 0700, its files
    /// with 0600.
    ///
    /// # Errors
    /// Where another gateway holds the directory, the file is no database, is another program's,
    /// is damaged, or was written by a newer Moltis.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_on(&System::default(), dir).await
    }

    /// Opens it on this machine.
    pub(crate) async fn open_on(system: &System, dir: &Path) -> Result<Self, StoreError> {
        let open = Self::open_with(system, dir, |wal| move || wal.sync_data());
        system.sqlite(open).await
    }

    /// Opens it with another way to sync the `-wal` file.
    pub(crate) async fn open_with<S, F>(
        system: &System,
        dir: &Path,
        sync: S,
    ) -> Result<Self, StoreError>
    where
        S: FnOnce(Arc<File>) -> F,
        F: FnMut() -> io::Result<()> + Send + 'static,
    {
        let files = Files::prepare(dir)?;
        let path = files.path.clone();
        let fail = |doing| {
            let path = path.clone();
            move |error| StoreError::from_sqlx(doing, &path, error)
        };
        let options = files.options();
        let mut connection = options
            .clone()
            .connect()
            .await
            .map_err(fail("open the database"))?;
        let (head, wal) = match begin(&mut connection, &files, system).await {
            Ok(begun) => begun,
            Err(error) => {
                // Before the lock goes: SQLite's thread would still be at work on the files.
                sqlx::Connection::close(connection).await.ok(); // why it is of no use is known
                return Err(error);
            }
        };
        let (wal, wal_path) = (Arc::new(wal), open::beside(&path, "-wal"));
        let times = StoreTimes::default();
        let sync = WalSync {
            sync: sync(Arc::clone(&wal)),
            path: wal_path.clone(),
            system: system.clone(),
            time: times.sync.clone(),
        };
        let syncer = Syncer::start(sync)
            .map_err(|error| StoreError::file("start the thread that syncs", &path, error))?;
        let checkpoints = Checkpoints::start(options.clone(), path.clone(), wal, system)
            .await
            .map_err(fail("open the database for checkpoints"))?;
        let options = options.read_only(true).create_if_missing(false);
        let readers = Readers::open(options, system.clone())
            .await
            .map_err(fail("open the database for reading"))?;
        let syncer = Arc::new(syncer);
        let (jobs, waiting) = mpsc::channel(writer::QUEUE_MAX);
        let (later, waiting_later) = mpsc::channel(writer::QUEUE_MAX);
        let writer = Writer {
            connection: Connection::new(connection, system.clone()),
            head,
            path: path.clone(),
            wal: wal_path,
            system: system.clone(),
            syncer: Arc::clone(&syncer),
            checkpoints,
            commit_time: times.commit.clone(),
        };
        system.spawn(writer.run(waiting, waiting_later));
        Ok(Self(Arc::new(Inner {
            system: system.clone(),
            path,
            jobs,
            later,
            #[cfg(feature = "metrics")]
            times,
            readers,
            syncer,
            trouble: Mutex::default(),
            revocations: watch::Sender::new(0),
            lock: files.lock,
        })))
    }

    /// Waits until what `ticket` stands for, and all before it, survives a power cut.
    ///
    /// # Errors
    /// Where the disk failed to keep it. The store is then read-only.
    ///
    /// # Cancel safety
    /// Dropping it lets go of the waiting only.
    pub async fn synced(&self, ticket: Written) -> Result<(), StoreError> {
        self.0.syncer.synced(ticket).await
    }

    /// As [`Store::synced`], for what nobody waits for: it shares a sync that somebody else asks for
    /// soon, and asks for one itself a little later, or at once when `hurry` is cancelled.
    ///
    /// # Errors
    /// As [`Store::synced`].
    pub(crate) async fn synced_soon(
        &self,
        ticket: Written,
        hurry: &CancellationToken,
    ) -> Result<(), StoreError> {
        self.0.syncer.synced_soon(ticket, hurry).await
    }

    /// Waits until all that is written by now survives a power cut.
    ///
    /// # Errors
    /// As [`Store::synced`].
    pub async fn synced_so_far(&self) -> Result<(), StoreError> {
        self.synced(self.0.syncer.so_far()).await
    }

    /// Returns why the store takes no writes any more; `None` while it does.
    pub fn failure(&self) -> Option<StoreError> {
        self.0.syncer.failure()
    }

    /// Does what waits, moves all commits into the database file, and closes it. Later writes fail
    /// with [`StoreError::Closed`]. From then on another store may be opened in the directory,
    /// whoever still holds a handle of this one.
    pub async fn close(&self) {
        self.0.readers.close().await;
        let (told, done) = oneshot::channel();
        if self.0.jobs.send(Job::Close(told)).await.is_ok() {
            done.await.ok(); // the writer has ended already
        }
        flock(&self.0.lock, FlockOperation::Unlock).ok(); // it goes with the last handle then
    }

    /// Returns whether a row can be written and read, as far as the last write tells. Where that
    /// failed a second ago or earlier, another one is tried.
    ///
    /// # Errors
    /// What stands in the way: a full disk, a read-only store.
    pub async fn ready(&self) -> Result<(), StoreError> {
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let trouble = self.trouble().clone();
        if let Some((error, since)) = trouble {
            if since.elapsed() < TRY_AGAIN {
                return Err(error);
            }
            self.transact(|tx| Box::pin(settings::touch(tx))).await?;
        }
        self.reader().await.map(drop)
    }

    /// Returns what is measured of it.
    #[cfg(feature = "metrics")]
    pub(crate) fn times(&self) -> &StoreTimes {
        &self.0.times
    }

    /// Returns how many writes wait, and how many of those that nobody waits for.
    #[cfg(feature = "metrics")]
    pub(crate) fn queued(&self) -> (usize, usize) {
        let Inner { jobs, later, .. } = &*self.0;
        (
            jobs.max_capacity() - jobs.capacity(),
            later.max_capacity() - later.capacity(),
        )
    }

    fn trouble(&self) -> MutexGuard<'_, Option<(StoreError, Instant)>> {
        self.0
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a write tells of the disk. What it tells of its rows is the caller's.
    fn note_write<T>(&self, written: Result<T, StoreError>) -> Result<T, StoreError> {
        match &written {
            Ok(_) => *self.trouble() = None,
            Err(error) if error.is_of_the_disk() => {
                *self.trouble() = Some((error.clone(), Instant::now()));
            }
            Err(_) => {}
        }
        written
    }

    async fn reader(&self) -> Result<Connection, StoreError> {
        let reader = self.0.readers.lend().await;
        reader.map_err(|error| self.failed("read from the database", error))
    }

    fn failed(&self, doing: &'static str, error: sqlx::Error) -> StoreError {
        StoreError::from_sqlx(doing, &self.0.path, error)
    }

    /// Does one small write.
    async fn fold(&self, fold: Fold) -> Result<Folded, StoreError> {
        let (told, done) = oneshot::channel();
        self.send(Job::Fold(Box::new(fold), told)).await?;
        self.note_write(done.await.map_err(|_| StoreError::Closed)?)
    }

    /// Does one small write that others may overtake: within some milliseconds.
    async fn fold_later(&self, fold: Fold) -> Result<Folded, StoreError> {
        let (told, done) = oneshot::channel();
        let sent = self.0.later.send((Box::new(fold), told)).await;
        sent.map_err(|_| StoreError::Closed)?;
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Does `work` in a transaction of its own. An error undoes it.
    async fn transact<T, W>(&self, work: W) -> Result<(T, Written), StoreError>
    where
        T: Send + 'static,
        W: for<'t, 'c> FnOnce(&'t mut Tx<'c>) -> BoxFuture<'t, Result<T, StoreError>>
            + Send
            + 'static,
    {
        let (told, done) = oneshot::channel();
        let deed: writer::Deed = Box::new(move |tx| {
            Box::pin(async move {
                let worked = match tx {
                    Ok(tx) => work(tx).await,
                    Err(error) => Err(error),
                };
                match worked {
                    Ok(value) => Done {
                        commit: Commit::Yes,
                        tell: Box::new(move |written| {
                            told.send(written.map(|written| (value, written))).ok(); // has gone
                        }),
                    },
                    Err(error) => Done {
                        commit: Commit::No(error),
                        tell: Box::new(move |result| {
                            told.send(result.and(Err(StoreError::Closed))).ok(); // has gone
                        }),
                    },
                }
            })
        });
        self.send(Job::Deed(deed)).await?;
        self.note_write(done.await.map_err(|_| StoreError::Closed)?)
    }

    async fn send(&self, job: Job) -> Result<(), StoreError> {
        self.0.jobs.send(job).await.map_err(|_| StoreError::Closed)
    }
}

/// Checks an open database, brings it up to date, and counts the opening. Returns the end of its
/// audit log, and its `-wal` file.
async fn begin(
    connection: &mut sqlx::SqliteConnection,
    files: &Files,
    system: &System,
) -> Result<(Head, File), StoreError> {
    let path = &files.path;
    let fail = |doing| move |error| StoreError::from_sqlx(doing, path, error);
    let migrate = open::migrate(connection, path);
    let failed = |error| fail("bring the database up to date")(sqlx::Error::Io(error));
    system
        .step_of_sqlite("store.migrate", path, failed, migrate)
        .await?;
    let wal_path = open::beside(path, "-wal");
    let count = settings::count_opening(connection);
    system
        .step_of_sqlite("store.open", &wal_path, sqlx::Error::Io, count)
        .await
        .map_err(fail("write to the database"))?;
    let head = audit::head(connection, path).await?;
    Ok((head, files.wal(system)?))
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use sqlx::Connection as _;

    use super::testing::{self, at, ending, entry, node, operator, run, store};
    use super::*;
    use crate::audit::Action;

    async fn open(dir: &Path) -> Result<Store, StoreError> {
        Store::open(dir).await
    }

    async fn refused(dir: &Path) -> StoreError {
        match open(dir).await {
            Ok(_) => panic!("it must be refused"),
            Err(error) => error,
        }
    }

    /// Does something to the database as another program would.
    async fn meddle(dir: &Path, sql: &'static str) {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join(FILE));
        let mut connection = options.create_if_missing(true).connect().await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Copies the files as they are at this moment: what a kill -9 leaves.
    fn copy(from: &Path) -> tempfile::TempDir {
        let to = tempfile::tempdir().unwrap();
        for name in ["gateway.db", "gateway.db-wal"] {
            std::fs::copy(from.join(name), to.path().join(name)).unwrap();
        }
        to
    }

    async fn count(store: &Store) -> usize {
        store
            .list_runs(&RunFilter::default(), 500)
            .await
            .unwrap()
            .items
            .len()
    }

    #[tokio::test]
    async fn files_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o755)).unwrap();
        let store = open(&home).await.unwrap();
        let written = store.note(entry(Action::PairingOpen)).await.unwrap();
        store.synced(written).await.unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&home), 0o700);
        for name in [
            "gateway.db",
            "gateway.db-wal",
            "gateway.db-shm",
            "gateway.lock",
        ] {
            assert_eq!(mode(&home.join(name)), 0o600, "{name}");
        }
    }

    #[tokio::test]
    async fn a_second_gateway_on_one_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).await.unwrap();
        let error = refused(dir.path()).await;
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        assert!(
            error.to_string().contains("another gateway uses"),
            "{error}"
        );
        first.close().await;
        open(dir.path()).await.unwrap();
        assert!(matches!(first.ready().await, Err(StoreError::Closed)));
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        for content in ["hello, I am a letter", "x", "SQLite format 2\0 and more"] {
            std::fs::write(&path, content).unwrap();
            let error = refused(dir.path()).await;
            assert!(matches!(error, StoreError::NotADatabase { .. }), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        std::fs::write(&path, "").unwrap();
        open(dir.path()).await.unwrap();
    }

    #[tokio::test]
    async fn another_programs_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        meddle(
            dir.path(),
            "PRAGMA application_id = 7; CREATE TABLE cats (name TEXT)",
        )
        .await;
        let error = refused(dir.path()).await;
        assert!(
            matches!(error, StoreError::Foreign { found: 7, .. }),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_database_whose_gateway_was_killed_while_it_made_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let first =
            "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL,
            installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL,
            checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)";
        meddle(dir.path(), first).await;
        let store = open(dir.path()).await.unwrap();
        store.create_run(run(1), &operator()).await.unwrap();
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).await.unwrap().close().await;
        let newer = "INSERT INTO _sqlx_migrations VALUES (99, 'later', 0, 1, x'00', 0)";
        meddle(dir.path(), newer).await;
        let error = refused(dir.path()).await;
        assert!(
            matches!(error, StoreError::Newer { found: 99, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("newer Moltis"), "{error}");
    }

    #[tokio::test]
    async fn a_database_that_is_refused_is_closed_by_then() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).await.unwrap().close().await;
        let newer = "INSERT INTO _sqlx_migrations VALUES (99, 'later', 0, 1, x'00', 0)";
        meddle(dir.path(), newer).await;
        refused(dir.path()).await;
        // SQLite deletes it when it closes the last connection.
        assert!(!dir.path().join("gateway.db-wal").exists());
    }

    #[tokio::test]
    async fn a_migration_that_was_edited_later_is_told() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).await.unwrap().close().await;
        meddle(dir.path(), "UPDATE _sqlx_migrations SET checksum = x'00'").await;
        let error = refused(dir.path()).await;
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_database_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await.unwrap();
        for number in 0..100 {
            store.create_run(run(number), &operator()).await.unwrap();
        }
        store.close().await;
        drop(store);
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for (from, to) in [
            (4096, whole.len()),
            (100, 4096),
            (whole.len() - 20_000, whole.len()),
        ] {
            let mut bytes = whole.clone();
            bytes[from..to].fill(0x5a);
            std::fs::write(&path, bytes).unwrap();
            let error = refused(dir.path()).await;
            assert!(
                matches!(error, StoreError::Corrupt { .. }),
                "{from}: {error:?}"
            );
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = refused(dir.path()).await;
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn what_was_written_survives_the_death_of_the_process() {
        let store = store().await;
        for number in 0..20 {
            store.create_run(run(number), &operator()).await.unwrap();
        }
        let dead = copy(store.dir.path());
        store.create_run(run(99), &operator()).await.unwrap();
        let reborn = open(dead.path()).await.unwrap();
        assert_eq!(count(&reborn).await, 20);
        let verdict = reborn.verify_audit().await.unwrap();
        assert_eq!((verdict.entries, verdict.first_bad), (20, None));
        // The chain goes on where it was.
        reborn.create_run(run(50), &operator()).await.unwrap();
        assert_eq!(reborn.verify_audit().await.unwrap().first_bad, None);
    }

    #[tokio::test]
    async fn a_torn_log_gives_whole_transactions_only() {
        let store = store().await;
        let mut lengths = Vec::new();
        let wal = store.dir.path().join("gateway.db-wal");
        for number in 0..10 {
            store.create_run(run(number), &operator()).await.unwrap();
            lengths.push(std::fs::metadata(&wal).unwrap().len());
        }
        for (whole, length) in lengths.iter().enumerate().skip(1) {
            for cut in [1, 24, 2000, 4100] {
                let dead = copy(store.dir.path());
                let file = File::options()
                    .write(true)
                    .open(dead.path().join("gateway.db-wal"));
                file.unwrap().set_len(length - cut).unwrap();
                let reborn = open(dead.path()).await.unwrap();
                assert_eq!(count(&reborn).await, whole, "{length} - {cut}");
                let verdict = reborn.verify_audit().await.unwrap();
                assert_eq!((verdict.entries, verdict.first_bad), (whole as u64, None));
            }
        }
    }

    #[tokio::test]
    async fn a_run_and_its_audit_line_come_and_go_together() {
        let store = store().await;
        // A batch in which one fold fails: the others stand, and the chain has no hole.
        let by = operator();
        let bad = NewRun {
            stage: RunStage::Ended,
            ..run(3)
        };
        let all = [run(1), run(2), bad, run(4)].map(|run| store.create_run(run, &by));
        let all = futures_util::future::join_all(all).await;
        let stand: Vec<_> = all.iter().map(Result::is_ok).collect();
        assert_eq!(stand, [true, true, false, true]);
        assert_eq!(count(&store).await, 3);
        let verdict = store.verify_audit().await.unwrap();
        assert_eq!((verdict.entries, verdict.first_bad), (3, None));
    }

    #[tokio::test]
    async fn after_a_close_everything_is_in_one_file_and_nothing_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await.unwrap();
        store.create_run(run(1), &operator()).await.unwrap();
        store.close().await;
        store.close().await;
        let late = store.create_run(run(2), &operator()).await;
        assert!(matches!(late, Err(StoreError::Closed)), "{late:?}");
        let late = store.run(run(1).id).await;
        assert!(matches!(late, Err(StoreError::Closed)), "{late:?}");
        assert!(!dir.path().join("gateway.db-wal").exists());
        drop(store);
        assert_eq!(count(&open(dir.path()).await.unwrap()).await, 1);
    }

    #[tokio::test]
    async fn a_write_whose_caller_goes_away_is_done() {
        let store = store().await;
        let by = operator();
        {
            let mut create = Box::pin(store.create_run(run(1), &by));
            std::future::poll_fn(|cx| {
                drop(create.as_mut().poll(cx));
                std::task::Poll::Ready(())
            })
            .await;
        }
        store.create_run(run(2), &by).await.unwrap();
        assert_eq!(count(&store).await, 2);
    }

    #[tokio::test]
    async fn readers_see_a_write_as_soon_as_it_is_told() {
        let store = store().await;
        for number in 0..50 {
            store.create_run(run(number), &operator()).await.unwrap();
            assert!(store.run(run(number).id).await.unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn everything_survives_checkpoints_under_load() {
        let store = store().await;
        let by = operator();
        let mut latest = Written::NOTHING;
        for round in 0..40 {
            let starts = (0..50u8).map(|n| {
                let mut new = run(n);
                let mut id = [round; 16];
                id[1] = n;
                new.id = moltis_proto::RunId::from_bytes(id);
                store.create_run(new, &by)
            });
            for creation in futures_util::future::join_all(starts).await {
                let RunCreation::Created(written) = creation.unwrap() else {
                    panic!("each is new");
                };
                assert!(written >= latest);
                latest = written;
            }
        }
        store.synced(latest).await.unwrap();
        let inspected = inspect(store.dir.path(), Duration::from_mins(1)).await;
        assert_eq!(inspected.unwrap(), Inspected::Whole);
        store.ready().await.unwrap();
        assert_eq!(store.verify_audit().await.unwrap().entries, 2000);
    }

    #[tokio::test]
    async fn every_kind_of_edit_in_the_log_is_found() {
        for (edit, first_bad) in [
            ("UPDATE audit SET detail = '{}' WHERE seq = 3", 3),
            ("UPDATE audit SET actor = 'nobody' WHERE seq = 1", 1),
            ("DELETE FROM audit WHERE seq = 4", 4),
            (
                "UPDATE audit SET seq = 100 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 5; \
              UPDATE audit SET seq = 5 WHERE seq = 100",
                2,
            ),
            ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 5", 5),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path()).await.unwrap();
            for number in 0..6 {
                store.create_run(run(number), &operator()).await.unwrap();
            }
            store.close().await;
            drop(store);
            meddle(dir.path(), edit).await;
            let verdict = open(dir.path())
                .await
                .unwrap()
                .verify_audit()
                .await
                .unwrap();
            assert_eq!(verdict.first_bad, Some(first_bad), "{edit}");
        }
    }

    #[tokio::test]
    async fn a_row_that_nobody_wrote_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await.unwrap();
        pairings::tests::pin(&store, node(1)).await;
        store.create_run(run(1), &operator()).await.unwrap();
        store.close().await;
        drop(store);
        meddle(
            dir.path(),
            "UPDATE nodes SET name = char(10); UPDATE runs SET place = 'moon'",
        )
        .await;
        let store = open(dir.path()).await.unwrap();
        let error = store.nodes().await.unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::BadRow {
                    table: "nodes",
                    column: "name",
                    ..
                }
            ),
            "{error}"
        );
        let error = store.run(run(1).id).await.unwrap_err();
        assert!(
            error.to_string().contains("`place` of a row in `runs`"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_full_disk_is_told_and_passes() {
        let store = store().await;
        testing::fill(&store).await;
        let mut error = None;
        for number in 0..100 {
            if let Err(full) = store.create_run(run(number), &operator()).await {
                error = Some(full);
                break;
            }
        }
        let error = error.unwrap();
        assert!(
            matches!(error, StoreError::DiskFull { .. }) && error.is_retryable(),
            "{error:?}"
        );
        assert!(matches!(
            store.ready().await,
            Err(StoreError::DiskFull { .. })
        ));
        testing::unfill(&store).await;
        store.ready().await.unwrap();
        let before = count(&store).await;
        store.create_run(run(200), &operator()).await.unwrap();
        assert_eq!(count(&store).await, before + 1);
        assert_eq!(store.verify_audit().await.unwrap().first_bad, None);
    }

    #[tokio::test]
    async fn a_failed_sync_ends_all_writing_and_no_reading() {
        let dir = tempfile::tempdir().unwrap();
        let system = System::default();
        let fails = |_| || Err(io::Error::other("the disk is gone"));
        let store = Store::open_with(&system, dir.path(), fails);
        let store = store.await.unwrap();
        let Ok(RunCreation::Created(written)) = store.create_run(run(1), &operator()).await else {
            panic!("nothing was synced yet");
        };
        assert!(store.failure().is_none());
        let error = store.synced(written).await.unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
        let fold = store.create_run(run(2), &operator()).await.unwrap_err();
        let deed = store.note(entry(Action::PairingOpen)).await.unwrap_err();
        for error in [fold, deed, store.ready().await.unwrap_err()] {
            assert!(error.to_string().contains("the disk is gone"), "{error}");
        }
        assert_eq!(count(&store).await, 1);
        store.close().await;
    }

    #[tokio::test]
    async fn an_unwritable_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plain");
        std::fs::write(&file, "").unwrap();
        let error = refused(&file.join("home")).await;
        assert!(error.to_string().contains("plain/home"), "{error}");
    }

    /// A task of the gateway, as far as types go.
    fn task<F: Future + Send + 'static>(future: F) -> F {
        future
    }

    #[tokio::test]
    async fn opening_and_writing_may_be_done_in_a_task() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let store = task(async move { Store::open(&home).await }).await.unwrap();
        let created = task(async move { store.create_run(run(1), &operator()).await });
        assert!(matches!(created.await.unwrap(), RunCreation::Created(_)));
    }

    #[tokio::test]
    async fn times_come_from_the_caller_and_may_jump() {
        let store = store().await;
        for (number, seconds) in [(1, 0), (2, -1_000_000_000), (3, 4_000_000_000)] {
            let new = NewRun {
                created_at: at(seconds),
                ..run(number)
            };
            store.create_run(new, &operator()).await.unwrap();
            let end = Ended {
                ending: ending(),
                totals: moltis_proto::run::Totals::default(),
                heads: Heads::default(),
                started: None,
                at: at(seconds - 5),
            };
            store.end_run(run(number).id, end).await.unwrap();
            let found = store.run(run(number).id).await.unwrap().unwrap();
            assert_eq!(
                (found.created_at, found.ended_at),
                (at(seconds), Some(at(seconds - 5)))
            );
        }
        assert_eq!(store.verify_audit().await.unwrap().first_bad, None);
    }
}
