//! From *written* to *synced*: one `fdatasync` of the `-wal` file for all who wait.
//!
//! A thread of its own holds a descriptor of the `-wal` file (which carries no locks, so closing it
//! drops none) and syncs when somebody asks. What a sync covers is counted before it begins. A
//! failed sync is final: the kernel may have dropped the pages that it could not write, so no later
//! success proves anything. From then on the store is read-only.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::StoreError;
use crate::metrics::Seconds;

/// How long something that nobody waits for may stay unsynced. Runs that end one after the other
/// share a sync.
const SOON: Duration = Duration::from_millis(200);

/// Stands for one committed transaction, which is *written*: it survives the death of any process.
/// [`Store::synced`](super::Store::synced) waits until it survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Written(pub(super) u64);

impl Written {
    /// Stands for what was there before: nothing to wait for.
    pub const NOTHING: Self = Self(0);
}

/// Asks the thread for syncs, and hears of them.
#[derive(Debug)]
pub(super) struct Syncer {
    shared: Arc<Shared>,
    done: watch::Receiver<Done>,
}

#[derive(Debug)]
struct Shared {
    /// Transactions committed so far.
    written: AtomicU64,
    asked: Mutex<Asked>,
    ask: Condvar,
}

#[derive(Debug)]
struct Asked {
    up_to: u64,
    closed: bool,
}

#[derive(Debug, Clone)]
struct Done {
    up_to: u64,
    failed: Option<Arc<str>>,
}

impl Syncer {
    /// Starts the thread. `sync` is called whenever something shall be on the disk, and `sync_time`
    /// hears how long it took.
    pub(super) fn start(
        mut sync: impl FnMut() -> io::Result<()> + Send + 'static,
        sync_time: Seconds,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            written: AtomicU64::new(0),
            asked: Mutex::new(Asked {
                up_to: 0,
                closed: false,
            }),
            ask: Condvar::new(),
        });
        let (told, done) = watch::channel(Done {
            up_to: 0,
            failed: None,
        });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("moltis-sync".to_owned())
            .spawn(move || {
                while thread.wait() {
                    let up_to = thread.written.load(Ordering::SeqCst);
                    let since = Instant::now();
                    let failed = sync().err().map(|error| Arc::from(error.to_string()));
                    sync_time.note(since.elapsed());
                    let stop = failed.is_some();
                    told.send_replace(Done { up_to, failed });
                    if stop {
                        return;
                    }
                    thread.settle(up_to);
                }
            })?;
        Ok(Self { shared, done })
    }

    /// Counts one more commit.
    pub(super) fn commit(&self) -> Written {
        Written(self.shared.written.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Stands for all that is committed so far.
    pub(super) fn so_far(&self) -> Written {
        Written(self.shared.written.load(Ordering::SeqCst))
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
            self.shared.ask_for(ticket.0);
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
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.asked().closed = true;
        self.shared.ask.notify_one();
    }
}

impl Shared {
    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_for(&self, up_to: u64) {
        let mut asked = self.asked();
        asked.up_to = asked.up_to.max(up_to);
        self.ask.notify_one();
    }

    /// Waits until a sync is asked for; false when nobody is left to ask.
    fn wait(&self) -> bool {
        let asked = self
            .ask
            .wait_while(self.asked(), |asked| asked.up_to == 0 && !asked.closed)
            .unwrap_or_else(PoisonError::into_inner);
        !asked.closed
    }

    /// Forgets what was asked for and is done.
    fn settle(&self, up_to: u64) {
        let mut asked = self.asked();
        if asked.up_to <= up_to {
            asked.up_to = 0;
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
        Syncer::start(sync, Seconds::new(Scale::Disk))
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
    async fn nothing_written_needs_no_sync() {
        let syncer = start(|| Err(io::Error::other("must not be called"))).unwrap();
        syncer.synced(Written::NOTHING).await.unwrap();
    }
}
