//! Moving commits from the `-wal` file into the database, beside the writer.
//!
//! The writer never checkpoints: that would put two syncs into somebody's transaction. A task with
//! a connection of its own does it every few hundred commits, and a second after the last one.
//! Only when the `-wal` file has grown far beyond that does the writer wait for a checkpoint, so
//! that the file stays bounded under a load without pauses.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::{Notify, mpsc, oneshot};

use super::connection::Connection;
use crate::system::System;

/// Commits between two checkpoints: about 500 × 16 KiB are 8 MiB of pages.
const COMMITS_MAX: u32 = 500;

/// A checkpoint comes this long after the first commit without one.
const IDLE: Duration = Duration::from_secs(1);

/// Bytes of the `-wal` file from which the writer waits for a checkpoint.
const WAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long a checkpoint waits for readers of old pages, and the writer with it: a copy of the database
/// reads for as long as it takes.
const BUSY: Duration = Duration::from_millis(100);

/// The writer's end.
#[derive(Debug)]
pub(super) struct Checkpoints {
    wal: Arc<File>,
    shared: Arc<Shared>,
    wait: mpsc::Sender<oneshot::Sender<()>>,
    /// Resolves when the task has closed its connection.
    gone: oneshot::Receiver<()>,
}

#[derive(Debug, Default)]
struct Shared {
    commits: AtomicU32,
    many: Notify,
    some: Notify,
}

impl Checkpoints {
    /// Starts the task. It ends when this value is closed or dropped.
    pub(super) async fn start(
        options: SqliteConnectOptions,
        path: PathBuf,
        wal: Arc<File>,
        system: &System,
    ) -> Result<Self, sqlx::Error> {
        let connection = options.busy_timeout(BUSY).connect().await?;
        let connection = Connection::new(connection, system.clone());
        let shared = Arc::new(Shared::default());
        let (wait, waiting) = mpsc::channel(1);
        let (going, gone) = oneshot::channel();
        let (shared_with, steps) = (Arc::clone(&shared), system.clone());
        system.spawn(async move {
            run(connection, &path, &steps, &shared_with, waiting).await;
            going.send(()).ok(); // nobody waits: the store was dropped, not closed
        });
        Ok(Self {
            wal,
            shared,
            wait,
            gone,
        })
    }

    /// Counts the commits of a transaction; waits where the `-wal` file is too long.
    pub(super) async fn after_commit(&self) {
        let commits = self.shared.commits.fetch_add(1, Ordering::Relaxed) + 1;
        if commits == 1 {
            self.shared.some.notify_one();
        }
        if commits.is_multiple_of(COMMITS_MAX) {
            self.shared.many.notify_one();
            let length = self.wal.metadata().map_or(0, |metadata| metadata.len());
            if length > WAL_BYTES_MAX {
                self.wait().await;
            }
        }
    }

    async fn wait(&self) {
        let (told, done) = oneshot::channel();
        if self.wait.send(told).await.is_ok() {
            done.await.ok(); // the task has ended: the store is closing
        }
    }

    /// Moves what is left into the database, and ends the task and its connection.
    pub(super) async fn close(self) {
        self.wait().await;
        let Self { wait, gone, .. } = self;
        drop(wait); // this ends it
        gone.await.ok(); // has ended already
    }
}

async fn run(
    mut connection: Connection,
    path: &Path,
    system: &System,
    shared: &Shared,
    mut waiting: mpsc::Receiver<oneshot::Sender<()>>,
) {
    loop {
        let told = tokio::select! {
            biased;
            told = waiting.recv() => match told {
                Some(told) => Some(told),
                None => break,
            },
            () = shared.many.notified() => None,
            () = idle(shared) => None,
        };
        shared.commits.store(0, Ordering::Relaxed);
        // TRUNCATE waits for readers of old pages; without somebody waiting nothing is forced.
        let text = if told.is_some() {
            "PRAGMA wal_checkpoint(RESTART)"
        } else {
            "PRAGMA wal_checkpoint(PASSIVE)"
        };
        let answer = sqlx::query(text).execute(&mut connection);
        let checkpoint = system.step_of_sqlite("store.checkpoint", path, sqlx::Error::Io, answer);
        if let Err(error) = checkpoint.await {
            tracing::warn!(%error, "a checkpoint of the database failed; the next one tries again");
        }
        if let Some(told) = told {
            told.send(()).ok(); // the writer has gone
        }
    }
    connection.close().await.ok(); // the writer's connection closes the database
}

/// Waits for a commit, and then for more of them to come.
async fn idle(shared: &Shared) {
    shared.some.notified().await;
    tokio::time::sleep(IDLE).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{operator, run as row, store};

    #[tokio::test]
    async fn who_reads_for_long_holds_up_no_writer() {
        let store = store().await;
        let options = SqliteConnectOptions::new().filename(store.dir.path().join("gateway.db"));
        let mut reader = options.connect().await.unwrap();
        sqlx::query("BEGIN").execute(&mut reader).await.unwrap();
        let read = sqlx::query("SELECT count(*) FROM runs");
        read.fetch_one(&mut reader).await.unwrap();
        store.create_run(row(1), &operator()).await.unwrap();
        // It waits for a checkpoint that cannot be had, and not for ten seconds.
        let closed = tokio::time::timeout(Duration::from_secs(5), store.close());
        closed.await.expect("the writer waits for a reader");
        drop(reader);
    }
}
