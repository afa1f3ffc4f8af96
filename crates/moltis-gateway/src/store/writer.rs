//! The one task that writes.
//!
//! Writes come through a bounded queue and are done in order. Small ones are [`Fold`]s: one text
//! that holds the whole transaction, its audit row included, so that it crosses to SQLite's thread
//! once (ADR 8). What waits at the same time becomes one transaction. A deed is a closure over an
//! open transaction, for what has to look before it writes; it has a transaction of its own.
//!
//! Folds that nobody waits for come through a queue of their own: they let others go first, and
//! gather meanwhile ([`Later`]).
//!
//! The writer alone knows the end of the audit chain. It moves on only with a commit.

use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Row as _, Sqlite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::checkpoint::Checkpoints;
use super::connection::Connection;
use super::sync::{Syncer, Written};
use super::{StoreError, audit as audit_rows};
use crate::audit::{Entry, Head};
use crate::metrics::Seconds;
use crate::system::System;

/// Writes that wait, at most. One more waits at the door.
pub(super) const QUEUE_MAX: usize = 1024;

/// Folds that become one transaction, at most: 16 × about 30 µs, and few enough texts of equal folds
/// that SQLite keeps them prepared.
pub(super) const BATCH_MAX: usize = 16;

/// How long a fold that nobody waits for gathers company.
const GATHER: Duration = Duration::from_millis(5);

/// How long the writer polls for SQLite's answer before it sleeps. To wake SQLite's thread and to
/// do a fold takes some 50 to 150 µs; to be woken from sleep would cost as much as the fold again.
const HOT: Duration = Duration::from_micros(300);

/// A value of a statement.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// The text of a fold, alone and as part of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoldText {
    pub(super) alone: &'static str,
    pub(super) within: &'static str,
}

/// Makes the texts of a fold. The first statement ends with `RETURNING ?`, whose value the writer
/// binds: a row that comes back says that this fold changed something. The audit row follows only
/// then.
macro_rules! fold_text {
    ($first:literal) => {
        $crate::store::writer::FoldText {
            alone: concat!("BEGIN IMMEDIATE;", $first, " RETURNING ?;COMMIT"),
            within: concat!($first, " RETURNING ?;"),
        }
    };
    ($first:literal, audited) => {
        fold_text!($first, audited, "")
    };
    ($first:literal, audited, $then:literal) => {
        $crate::store::writer::FoldText {
            alone: concat!(
                "BEGIN IMMEDIATE;",
                $first,
                " RETURNING ?;",
                "INSERT INTO audit (seq, at, actor, source, action, subject, detail, hash) \
                 SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE changes() > 0;",
                $then,
                "COMMIT"
            ),
            within: concat!(
                $first,
                " RETURNING ?;",
                "INSERT INTO audit (seq, at, actor, source, action, subject, detail, hash) \
                 SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE changes() > 0;",
                $then
            ),
        }
    };
}
pub(super) use fold_text;

/// One small write.
#[derive(Debug, Clone)]
pub(super) struct Fold {
    pub(super) doing: &'static str,
    pub(super) text: FoldText,
    /// Of the first statement.
    pub(super) values: Vec<Value>,
    pub(super) audit: Option<Entry>,
    /// Of the statements behind the audit row.
    pub(super) then: Vec<Value>,
}

/// What became of a fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Folded {
    /// It changed something, in this transaction.
    Changed(Written),
    /// Its condition did not hold.
    Unchanged,
}

impl Folded {
    /// Returns the ticket of a change.
    pub(super) fn written(self) -> Option<Written> {
        match self {
            Self::Changed(written) => Some(written),
            Self::Unchanged => None,
        }
    }

    /// Returns the ticket of a write that has no condition.
    pub(super) fn expect_changed(self) -> Written {
        self.written()
            .expect("an INSERT without a condition fails or inserts")
    }
}

/// An open transaction, in which a deed reads and writes.
#[derive(Debug)]
pub(super) struct Tx<'c> {
    pub(super) connection: &'c mut Connection,
    head: &'c mut Head,
    path: &'c PathBuf,
}

impl Tx<'_> {
    /// Appends to the audit log.
    pub(super) async fn audit(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let (line, after) = self.head.next(entry);
        audit_rows::append(self.connection, &line, &after)
            .await
            .map_err(|error| self.failed("append to the audit log", error))?;
        *self.head = after;
        Ok(())
    }

    /// Names an error of this transaction.
    pub(super) fn failed(&self, doing: &'static str, error: sqlx::Error) -> StoreError {
        StoreError::from_sqlx(doing, self.path, error)
    }
}

pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a deed leaves: whether to commit, and whom to tell how that went.
pub(super) struct Done {
    pub(super) commit: Commit,
    pub(super) tell: Box<dyn FnOnce(Result<Written, StoreError>) + Send>,
}

/// Whether a deed stands.
pub(super) enum Commit {
    Yes,
    No(StoreError),
}

/// A deed gets its transaction, or the reason why there is none.
pub(super) type Deed =
    Box<dyn for<'t, 'c> FnOnce(Result<&'t mut Tx<'c>, StoreError>) -> BoxFuture<'t, Done> + Send>;

/// What waits in the queue.
pub(super) enum Job {
    Fold(Box<Fold>, oneshot::Sender<Result<Folded, StoreError>>),
    Deed(Deed),
    Close(oneshot::Sender<()>),
}

pub(super) type Waiting = (Box<Fold>, oneshot::Sender<Result<Folded, StoreError>>);

/// How the writer waits for SQLite.
#[derive(Debug, Clone, Copy)]
enum Wait {
    /// Polling for a little while, and letting other tasks run in between: somebody is in a hurry.
    Awake,
    /// Until it is woken.
    Asleep,
}

/// A batch could not be done as one transaction. Each fold, done alone, says why.
struct NotTogether;

impl From<sqlx::Error> for NotTogether {
    fn from(_: sqlx::Error) -> Self {
        Self
    }
}

/// The writer's own.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) head: Head,
    pub(super) path: PathBuf,
    /// Of the `-wal` file.
    pub(super) wal: PathBuf,
    pub(super) system: System,
    pub(super) syncer: Arc<Syncer>,
    pub(super) checkpoints: Checkpoints,
    pub(super) commit_time: Seconds,
}

/// Folds that nobody waits for, until it is their turn.
#[derive(Default)]
struct Later {
    folds: Vec<Waiting>,
    since: Option<Instant>,
}

impl Later {
    fn push(&mut self, fold: Waiting) {
        self.folds.push(fold);
        self.since.get_or_insert_with(Instant::now);
    }

    /// Waits until it is their turn: they are many, or the first has waited for long enough.
    async fn due(&self) {
        match self.since {
            Some(_) if self.folds.len() >= BATCH_MAX => {}
            Some(since) => tokio::time::sleep_until(since + GATHER).await,
            None => std::future::pending().await,
        }
    }
}

impl Writer {
    /// Does what comes, until the store is closed or nobody holds it any more.
    pub(super) async fn run(
        mut self,
        mut jobs: mpsc::Receiver<Job>,
        mut queue: mpsc::Receiver<Waiting>,
    ) {
        let mut closed = None;
        let mut later = Later::default();
        loop {
            tokio::select! {
                biased;
                job = jobs.recv() => {
                    let Some(job) = job else {
                        break;
                    };
                    closed = self.work(job, &mut jobs).await.or(closed);
                }
                () = later.due() => {
                    self.folds(std::mem::take(&mut later).folds, Wait::Asleep).await;
                }
                Some(fold) = queue.recv() => later.push(fold),
            }
            self.checkpoints.after_commit().await;
        }
        queue.close();
        while let Some(fold) = queue.recv().await {
            later.push(fold);
        }
        self.folds(later.folds, Wait::Asleep).await;
        self.checkpoints.close().await;
        let close = self.connection.close();
        let closing =
            self.system
                .close_of_sqlite("store.close", &self.path, sqlx::Error::Io, close);
        if let Err(error) = closing.await {
            tracing::warn!(%error, "the database did not close cleanly; nothing is lost");
        }
        if let Some(told) = closed {
            told.send(()).ok(); // whoever closed the store has gone
        }
    }

    /// Does a job and what waits behind it, up to a point. Returns whom to tell of the end.
    async fn work(
        &mut self,
        job: Job,
        jobs: &mut mpsc::Receiver<Job>,
    ) -> Option<oneshot::Sender<()>> {
        let mut closed = None;
        let mut batch = Vec::new();
        let mut next = Some(job);
        while let Some(job) = next.take() {
            match job {
                Job::Fold(fold, told) => batch.push((fold, told)),
                Job::Deed(deed) => {
                    self.folds(std::mem::take(&mut batch), Wait::Awake).await;
                    self.deed(deed).await;
                }
                Job::Close(told) => {
                    closed = Some(told);
                    jobs.close();
                }
            }
            if batch.len() < BATCH_MAX {
                next = jobs.try_recv().ok();
            }
        }
        self.folds(batch, Wait::Awake).await;
        closed
    }

    async fn folds(&mut self, mut batch: Vec<Waiting>, wait: Wait) {
        if batch.is_empty() {
            return;
        }
        if let Some(error) = self.syncer.failure() {
            for (_, told) in batch {
                told.send(Err(error.clone())).ok(); // the asker has gone
            }
            return;
        }
        if batch.len() > 1 {
            let since = Instant::now();
            if self.together(&mut batch, wait).await.is_ok() {
                self.commit_time.note(since.elapsed());
                return;
            }
            // One of them failed; which one shows when each is done alone.
            self.roll_back().await;
        }
        for (fold, told) in batch {
            let since = Instant::now();
            let result = self.alone(*fold, wait).await;
            match &result {
                Ok(_) => self.commit_time.note(since.elapsed()),
                Err(_) => self.roll_back().await,
            }
            told.send(result).ok(); // the asker has gone
        }
    }

    async fn alone(&mut self, fold: Fold, wait: Wait) -> Result<Folded, StoreError> {
        let (doing, text) = (fold.doing, fold.text.alone);
        let (query, after) = bind(sqlx::query(text), fold, 0, self.head);
        let answer = wait.answer(query.fetch_all(&mut self.connection));
        let commit = self
            .system
            .step_of_sqlite("store.commit", &self.wal, sqlx::Error::Io, answer);
        let rows = commit
            .await
            .map_err(|error| StoreError::from_sqlx(doing, &self.path, error))?;
        if rows.is_empty() {
            return Ok(Folded::Unchanged);
        }
        self.head = after;
        Ok(Folded::Changed(self.syncer.commit()))
    }

    /// Does all folds in one transaction; on an error nothing was told and nothing is committed.
    ///
    /// The audit rows are hashed before it is known whether each fold changes something. Where one
    /// does not, the rows behind it would hang on a row that is not there, so that is an error too.
    async fn together(&mut self, batch: &mut Vec<Waiting>, wait: Wait) -> Result<(), NotTogether> {
        let length: usize = batch.iter().map(|(fold, _)| fold.text.within.len()).sum();
        let mut text = String::with_capacity(length + 32);
        text.push_str("BEGIN IMMEDIATE;");
        for (fold, _) in &*batch {
            text.push_str(fold.text.within);
        }
        let first = batch.first().map(|(fold, _)| fold.text.within);
        let are_equal = batch
            .iter()
            .all(|(fold, _)| Some(fold.text.within) == first);
        let mut query = sqlx::query(AssertSqlSafe(text)).persistent(are_equal);
        let mut head = self.head;
        for (number, (fold, _)) in (0..).zip(&*batch) {
            (query, head) = bind(query, fold.as_ref().clone(), number, head);
        }
        let rows = wait.answer(query.fetch_all(&mut self.connection)).await?;
        let mut changed = vec![false; batch.len()];
        for row in &rows {
            let number: i64 = row.try_get(0)?;
            let number = usize::try_from(number).map_err(|_| NotTogether)?;
            *changed.get_mut(number).ok_or(NotTogether)? = true;
        }
        let mut each = batch.iter().zip(&changed);
        if each.any(|((fold, _), changed)| fold.audit.is_some() && !changed) {
            return Err(NotTogether);
        }
        self.commit().await?;
        self.head = head;
        let written = self.syncer.commit();
        for ((_, told), changed) in batch.drain(..).zip(changed) {
            let folded = if changed {
                Folded::Changed(written)
            } else {
                Folded::Unchanged
            };
            told.send(Ok(folded)).ok(); // the asker has gone
        }
        Ok(())
    }

    async fn deed(&mut self, deed: Deed) {
        let (before, since) = (self.head, Instant::now());
        if let Err(error) = self.begin().await {
            let Done { tell, .. } = deed(Err(error.clone())).await;
            return tell(Err(error));
        }
        let mut tx = Tx {
            connection: &mut self.connection,
            head: &mut self.head,
            path: &self.path,
        };
        let Done { commit, tell } = deed(Ok(&mut tx)).await;
        let committed = match commit {
            Commit::Yes => self
                .commit()
                .await
                .map_err(|error| StoreError::from_sqlx("commit", &self.path, error)),
            Commit::No(error) => Err(error),
        };
        match committed {
            Ok(()) => {
                self.commit_time.note(since.elapsed());
                tell(Ok(self.syncer.commit()));
            }
            Err(error) => {
                self.head = before;
                self.roll_back().await;
                tell(Err(error));
            }
        }
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        if let Some(error) = self.syncer.failure() {
            return Err(error);
        }
        sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(|error| StoreError::from_sqlx("begin a transaction", &self.path, error))
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        let answer = sqlx::query("COMMIT").execute(&mut self.connection);
        self.system
            .step_of_sqlite("store.commit", &self.wal, sqlx::Error::Io, answer)
            .await
            .map(drop)
    }

    async fn roll_back(&mut self) {
        // Fails where SQLite has rolled back by itself, as it does on a full disk.
        sqlx::query("ROLLBACK")
            .execute(&mut self.connection)
            .await
            .ok();
    }
}

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// Binds a fold's values in the order of its text; returns the head behind its audit row.
fn bind(query: Query<'_>, fold: Fold, number: i64, head: Head) -> (Query<'_>, Head) {
    let query = fold.values.into_iter().fold(query, bind_value).bind(number);
    let (query, after) = match fold.audit {
        Some(entry) => {
            let (line, after) = head.next(&entry);
            (audit_rows::bind(query, line, &after), after)
        }
        None => (query, head),
    };
    (fold.then.into_iter().fold(query, bind_value), after)
}

fn bind_value(query: Query<'_>, value: Value) -> Query<'_> {
    match value {
        Value::Null => query.bind(None::<i64>),
        Value::Integer(number) => query.bind(number),
        Value::Text(text) => query.bind(text),
        Value::Blob(bytes) => query.bind(bytes),
    }
}

impl Wait {
    /// Waits for SQLite's answer.
    async fn answer<F: Future>(self, answer: F) -> F::Output {
        let mut answer = std::pin::pin!(answer);
        let since = Instant::now();
        while matches!(self, Self::Awake) && since.elapsed() < HOT {
            let now = poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await;
            if let Poll::Ready(output) = now {
                return output;
            }
            // SQLite's thread may wait for this very core.
            std::thread::yield_now();
            tokio::task::yield_now().await;
        }
        answer.await
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Integer(yes.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Blob(bytes)
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Self {
        Self::Blob(bytes.to_vec())
    }
}

impl From<Timestamp> for Value {
    fn from(at: Timestamp) -> Self {
        Self::Integer(at.as_millisecond())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
