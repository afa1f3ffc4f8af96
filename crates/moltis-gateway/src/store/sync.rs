//! From *written* to *synced*: one `fdatasync` of the `-wal` file for all who wait.
//!
//! A thread of its own holds a descriptor of the `-wal` file (which carries no locks, so closing it
//! drops none) and syncs when somebody asks. What a sync covers is counted before it begins. A
//! failed sync is final: the kernel may have dropped the pages that it could not write, so no later
//! success proves anything. From then on the store is read-only.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::StoreError;
use crate::metrics::Seconds;
use crate::system::System;
use crate::worker::{Line, Next, Queue, Turn, Worker};

/// How long something that nobody waits for may stay unsynced. Runs that end one after the other
/// share a sync.
const SOON: Duration = Duration::from_millis(200);

/// Stands for one committed transaction, which is *written*: it survives the death of any process.
/// [`Store::synced`](super::Store::synced) waits until it survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Written(pub(super) u64);

impl Written {
    /// Stands for no write: nothing to wait for.
    pub const NOTHING: Self = Self(0);
}

/// Asks the thread for syncs, and hears of them.
#[derive(Debug)]
pub(super) struct Syncer {
    /// Transactions committed so far, and one that stands for what lay in the file before.
    written: Arc<AtomicU64>,
    worker: Worker<Asked>,
    done: watch::Receiver<Done>,
}

/// How far a sync is asked for.
#[derive(Debug, Default)]
struct Asked {
    up_to: u64,
    /// Nobody is left to ask, or a sync has failed.
    closed: bool,
}

#[derive(Debug, Clone)]
struct Done {
    up_to: u64,
    failed: Option<Arc<str>>,
}

/// How the `-wal` file comes onto the disk.
#[derive(Debug)]
pub(super) struct WalSync<F> {
    /// Called whenever something shall be on the disk.
    pub(super) sync: F,
    pub(super) path: PathBuf,
    pub(super) system: System,
    /// Hears how long it took.
    pub(super) time: Seconds,
}

struct Syncing<F> {
    wal: WalSync<F>,
    written: Arc<AtomicU64>,
    told: watch::Sender<Done>,
}

impl Syncer {
    /// Starts the thread.
    pub(super) fn start<F>(wal: WalSync<F>) -> io::Result<Self>
    where
        F: FnMut() -> io::Result<()> + Send + 'static,
    {
        let written = Arc::new(AtomicU64::new(1));
        let (told, done) = watch::channel(Done {
            up_to: 0,
            failed: None,
        });
        let system = wal.system.clone();
        let syncing = Syncing {
            wal,
            written: Arc::clone(&written),
            told,
        };
        Ok(Self {
            written,
            worker: Worker::start(&system, "moltis-sync", Asked::default(), syncing)?,
            done,
        })
    }

    /// Counts one more commit.
    pub(super) fn commit(&self) -> Written {
        Written(self.written.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Stands for all that is committed so far.
    pub(super) fn so_far(&self) -> Written {
        Written(self.written.load(Ordering::SeqCst))
    }

    /// Returns why nothing may be written any more.
    pub(super) fn failure(&self) -> Option<StoreError> {
        let failed = self.done.borrow().failed.clone()?;
        Some(StoreError::ReadOnly {
            reason: failed.as_ref().to_owned(),
        })
    }

    /// As [`synced`](Self::synced), but for somebody whom nobody waits for: asks for a sync only
    /// after a while, or when `hurry` is cancelled, unless one that others asked for covers it.
    pub(super) async fn synced_soon(
        &self,
        ticket: Written,
        hurry: &CancellationToken,
    ) -> Result<(), StoreError> {
        let mut done = self.done.clone();
        let by_others = done.wait_for(|done| done.up_to >= ticket.0 || done.failed.is_some());
        tokio::select! {
            biased;
            _ = by_others => {}
            () = hurry.cancelled() => {}
            () = tokio::time::sleep(SOON) => {}
        }
        self.synced(ticket).await
    }

    pub(super) async fn synced(&self, ticket: Written) -> Result<(), StoreError> {
        let mut done = self.done.clone();
        if done.borrow().up_to < ticket.0 {
            self.ask_for(ticket.0);
        }
        let done = done
            .wait_for(|done| done.up_to >= ticket.0 || done.failed.is_some())
            .await
            .map_err(|_| StoreError::Closed)?;
        match &done.failed {
            Some(reason) => Err(StoreError::ReadOnly {
                reason: reason.as_ref().to_owned(),
            }),
            None => Ok(()),
        }
    }

    fn ask_for(&self, up_to: u64) {
        let mut asked = self.worker.queue();
        asked.up_to = asked.up_to.max(up_to);
        drop(asked);
        self.worker.ring();
    }
}

impl Queue for Asked {
    type Work = ();

    fn next(&mut self, _now: Instant) -> Next<()> {
        match self.up_to {
            _ if self.closed => Next::End,
            0 => Next::Wait,
            _ => Next::Do(()),
        }
    }

    fn close(&mut self) {
        self.closed = true;
    }
}

impl<F> Turn<Asked> for Syncing<F>
where
    F: FnMut() -> io::Result<()> + Send + 'static,
{
    async fn turn(&mut self, line: &Line<Asked>, (): ()) {
        let up_to = self.written.load(Ordering::SeqCst);
        let since = Instant::now();
        let WalSync {
            sync, path, system, ..
        } = &mut self.wal;
        let synced = system.slow_sync("store.sync", path, sync).await;
        self.wal.time.note(since.elapsed());
        let failed = synced.err().map(|error| Arc::from(error.to_string()));
        let is_final = failed.is_some();
        self.told.send_replace(Done { up_to, failed });
        let mut asked = line.queue();
        if is_final {
            asked.close();
        } else if asked.up_to <= up_to {
            asked.up_to = 0; // what was asked for is done
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future as _, poll_fn};
    use std::sync::mpsc;
    use std::task::Poll;

    use super::*;
    use crate::metrics::Scale;

    fn start(sync: impl FnMut() -> io::Result<()> + Send + 'static) -> io::Result<Syncer> {
        Syncer::start(WalSync {
            sync,
            path: PathBuf::new(),
            system: System::default(),
            time: Seconds::new(Scale::Disk),
        })
    }

    #[tokio::test]
    async fn one_sync_serves_all_who_wait() {
        let (entered, in_sync) = mpsc::channel();
        let (let_go, gate) = mpsc::channel();
        let syncer = Arc::new(
            start(move || {
                entered.send(()).ok(); // the test has seen enough
                gate.recv().map_err(io::Error::other)
            })
            .unwrap(),
        );
        let first = syncer.commit();
        let mut waiting = Box::pin(syncer.synced(first));
        let now = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx))).await;
        assert!(now.is_pending());
        tokio::task::spawn_blocking(move || in_sync.recv().map(|()| in_sync))
            .await
            .unwrap()
            .unwrap();
        // These come while the first sync is under way: it may not have covered them.
        let later: Vec<_> = (0..10).map(|_| syncer.commit()).collect();
        let all = later.iter().map(|ticket| syncer.synced(*ticket));
        let all = futures_util::future::join_all(all);
        let_go.send(()).unwrap();
        let_go.send(()).unwrap();
        waiting.await.unwrap();
        assert!(all.await.iter().all(Result::is_ok));
        // A third sync would find the gate closed and fail.
        drop(let_go);
        syncer.synced(later[9]).await.unwrap();
        assert!(syncer.failure().is_none());
    }

    #[tokio::test]
    async fn a_failed_sync_is_final() {
        let mut calls = 0;
        let syncer = start(move || {
            calls += 1;
            if calls == 1 {
                Err(io::Error::other("the disk is gone"))
            } else {
                Ok(())
            }
        })
        .unwrap();
        let ticket = syncer.commit();
        for _ in 0..2 {
            let error = syncer.synced(ticket).await.unwrap_err();
            assert!(error.to_string().contains("the disk is gone"), "{error}");
        }
        assert!(matches!(
            syncer.failure(),
            Some(StoreError::ReadOnly { .. })
        ));
    }

    #[tokio::test]
    async fn what_an_earlier_process_has_written_is_synced_by_who_asks_for_all() {
        let syncer = start(|| Err(io::Error::other("the disk is gone"))).unwrap();
        let error = syncer.synced(syncer.so_far()).await.unwrap_err();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
    }

    #[tokio::test]
    async fn nothing_written_needs_no_sync() {
        let syncer = start(|| Err(io::Error::other("must not be called"))).unwrap();
        syncer.synced(Written::NOTHING).await.unwrap();
    }
}
