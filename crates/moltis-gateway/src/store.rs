//! Everything the gateway knows, in SQLite, behind one writer and a few readers.
//!
//! A write answers with [`Written`]: committed, and safe from the death of any process. Who needs
//! it safe from a power cut awaits [`Store::synced`] (see `docs/protocol.md`, Durability). A write
//! whose future is dropped is still done.
//!
//! Each family of rows has its file below, with one function and one test for each statement; time
//! and ids come in as arguments. Output of commands is not here but in [`crate::output`]. What to
//! do is decided elsewhere: by [`crate::pairing`], by the session and the dispatcher.

mod audit;
mod checkpoint;
mod error;
mod nodes;
mod open;
mod pairings;
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
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};
use tokio::sync::{mpsc, oneshot};

pub use self::audit::Verdict as AuditVerdict;
use self::checkpoint::Checkpoints;
pub use self::error::StoreError;
pub use self::nodes::{Claims, NodeRecord, Sighting};
use self::open::Files;
pub use self::pairings::{Answer, KeyMismatch, PairingRequest};
pub use self::runs::{
    Ended, Heads, NewRun, RunCreation, RunFilter, RunKey, RunPage, RunRecord, RunStage, Started,
    Target,
};
use self::sync::Syncer;
pub use self::sync::Written;
pub use self::tokens::{NewTokenRecord, TokenCreation, TokenHash, TokenRecord};
use self::writer::{BoxFuture, Commit, Done, Fold, Folded, Job, Tx, Writer};

/// Connections that read.
const READERS_MAX: u32 = 4;

/// A handle on the gateway's database. Cloning shares it; the database closes with
/// [`Store::close`], or with the last handle.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    readers: SqlitePool,
    syncer: Arc<Syncer>,
    /// Held for its lock.
    _lock: File,
}

impl Store {
    /// Opens the database in `dir`, making what is missing: the directory with mode 0700, its files
    /// with 0600.
    ///
    /// # Errors
    /// Where another gateway holds the directory, the file is no database, is another program's,
    /// is damaged, or was written by a newer Moltis.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
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
        open::migrate(&mut connection, &path).await?;
        settings::count_opening(&mut connection)
            .await
            .map_err(fail("write to the database"))?;
        let head = audit::head(&mut connection, &path).await?;
        let wal = Arc::new(files.wal()?);
        let syncing = Arc::clone(&wal);
        let syncer = Syncer::start(move || syncing.sync_data())
            .map_err(|error| StoreError::file("start the thread that syncs", &path, error))?;
        let checkpoints = Checkpoints::start(&options, wal)
            .await
            .map_err(fail("open the database for checkpoints"))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(fail("open the database for reading"))?;
        let syncer = Arc::new(syncer);
        let (jobs, waiting) = mpsc::channel(writer::QUEUE_MAX);
        let writer = Writer {
            connection,
            head,
            path: path.clone(),
            syncer: Arc::clone(&syncer),
            checkpoints,
        };
        spawn(writer.run(waiting));
        Ok(Self(Arc::new(Inner {
            path,
            jobs,
            readers,
            syncer,
            _lock: files.lock,
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
    /// with [`StoreError::Closed`].
    pub async fn close(&self) {
        self.0.readers.close().await;
        let (told, done) = oneshot::channel();
        if self.0.jobs.send(Job::Close(told)).await.is_ok() {
            done.await.ok(); // the writer has ended already
        }
    }

    /// Reads every page and index of the database.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] with what was found first.
    pub async fn check(&self) -> Result<(), StoreError> {
        let mut reader = self.reader().await?;
        open::check_whole(&mut reader, &self.0.path).await
    }

    /// Returns whether a row can be written and read.
    ///
    /// # Errors
    /// What stands in the way: a full disk, a read-only store.
    pub async fn ready(&self) -> Result<(), StoreError> {
        match self.failure() {
            Some(error) => Err(error),
            None => self.reader().await.map(drop),
        }
    }

    async fn reader(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>, StoreError> {
        let reader = self.0.readers.acquire().await;
        reader.map_err(|error| self.failed("read from the database", error))
    }

    fn failed(&self, doing: &'static str, error: sqlx::Error) -> StoreError {
        StoreError::from_sqlx(doing, &self.0.path, error)
    }

    /// Does one small write.
    async fn fold(&self, fold: Fold) -> Result<Folded, StoreError> {
        let (told, done) = oneshot::channel();
        self.send(Job::Fold(Box::new(fold), told)).await?;
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
        done.await.map_err(|_| StoreError::Closed)?
    }

    async fn send(&self, job: Job) -> Result<(), StoreError> {
        self.0.jobs.send(job).await.map_err(|_| StoreError::Closed)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

/// Starts a task that ends by itself: when the last handle of the store is dropped.
#[expect(
    clippy::disallowed_methods,
    reason = "a store is opened before there is anything to own its tasks; they end with it"
)]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(task));
}
