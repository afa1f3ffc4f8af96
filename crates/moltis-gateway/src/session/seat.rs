//! What the rest of the gateway holds of a connected peer: a node's session, or the keeper of this
//! machine.
//!
//! A [`Seat`] is a handle. The task behind it owns the socket and everything that changes; others
//! put a [`Command`] into its mailbox, ask it to close, and read what it last noted.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use jiff::{SignedDuration, Timestamp};
use moltis_proto::code::CloseCode;
use moltis_proto::handshake::Epoch;
use moltis_proto::{BootId, Codec, InstanceId, JournalId, RunId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::exec::live::LiveRun;
use crate::store::{NodeRecord, Target};

/// Commands that wait for one peer, at most. One more waits at the mailbox.
pub(crate) const MAILBOX_MAX: usize = 64;

/// Stands for a clock that was not told: no two clocks are so far apart.
const CLOCK_UNKNOWN: i64 = i64::MIN;

/// Something to do on a connection.
#[derive(Debug)]
pub(crate) enum Command {
    /// Send this run's `Start`.
    Start(Arc<LiveRun>),
    /// Look at what is wished for this run: cancel, size, signals, stdin.
    Look(Arc<LiveRun>),
    /// Take up a run that the node listed and nobody knew.
    Adopt(Arc<LiveRun>),
    /// The node may delete this run.
    Forget(RunId),
}

/// A peer is ready for runs: it has said what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// The boot of its machine.
    pub(crate) boot_id: BootId,
    /// The journal that new runs go into.
    pub(crate) journal_id: JournalId,
}

/// Who sits there.
#[derive(Debug, Clone)]
pub(crate) struct Sitter {
    pub(crate) target: Target,
    pub(crate) epoch: Epoch,
    pub(crate) instance_id: InstanceId,
    pub(crate) codec: Codec,
    /// The node as it was when it was accepted; `None` for the keeper of this machine. What it says
    /// of itself is what stands there, as long as the connection lives.
    pub(crate) record: Option<Arc<NodeRecord>>,
    pub(crate) remote: Option<IpAddr>,
    pub(crate) since: Timestamp,
}

/// The handle of one connected peer.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) sitter: Sitter,
    mailbox: mpsc::Sender<Command>,
    close_code: OnceLock<CloseCode>,
    closing: CancellationToken,
    gone: CancellationToken,
    ready: watch::Sender<Option<Ready>>,
    /// Runs that the peer listed, and that were not under way here.
    unknown: Mutex<HashSet<RunId>>,
    heard_ms: AtomicI64,
    /// See [`Seat::clock_ahead`]; [`CLOCK_UNKNOWN`] before anything was told.
    clock_ahead_ms: AtomicI64,
}

/// The peer is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl Seat {
    /// Returns a handle, and the mailbox for the task behind it.
    pub(crate) fn new(sitter: Sitter) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (mailbox, commands) = mpsc::channel(MAILBOX_MAX);
        let heard_ms = AtomicI64::new(sitter.since.as_millisecond());
        let seat = Self {
            sitter,
            mailbox,
            close_code: OnceLock::new(),
            closing: CancellationToken::new(),
            gone: CancellationToken::new(),
            ready: watch::Sender::new(None),
            unknown: Mutex::default(),
            heard_ms,
            clock_ahead_ms: AtomicI64::new(CLOCK_UNKNOWN),
        };
        (Arc::new(seat), commands)
    }

    /// Puts a command into the mailbox; waits while it is full.
    pub(crate) async fn send(&self, command: Command) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(Gone),
            sent = self.mailbox.send(command) => sent.map_err(|_| Gone),
        }
    }

    /// Returns how many commands wait in the mailbox.
    #[cfg(feature = "metrics")]
    pub(crate) fn waiting(&self) -> usize {
        self.mailbox.max_capacity() - self.mailbox.capacity()
    }

    /// Asks the task to say this code and end. The first code counts.
    pub(crate) fn close(&self, code: CloseCode) {
        self.close_code.get_or_init(|| code);
        self.closing.cancel();
    }

    /// Waits until somebody wants this connection closed.
    pub(crate) async fn closing(&self) -> CloseCode {
        self.closing.cancelled().await;
        // `close` sets the code before it cancels.
        self.close_code
            .get()
            .copied()
            .unwrap_or(CloseCode::Superseded)
    }

    /// The task behind the seat has ended: nothing of it will happen any more.
    pub(crate) fn leave(&self) {
        self.closing.cancel();
        self.ready.send_replace(None);
        self.gone.cancel();
    }

    /// Waits until the task behind the seat has ended.
    pub(crate) async fn left(&self) {
        self.gone.cancelled().await;
    }

    /// Notes what the peer lists and is not under way here: what is stored of it is its output.
    pub(crate) fn set_unknown(&self, runs: HashSet<RunId>) {
        *self.unknown() = runs;
    }

    /// Returns whether the peer has listed a run that was not under way here, and has not been told to
    /// forget it.
    pub(crate) fn has_listed(&self, run_id: RunId) -> bool {
        self.unknown().contains(&run_id)
    }

    /// Notes that the peer is told to forget a run.
    pub(crate) fn note_forgotten(&self, run_id: RunId) {
        self.unknown().remove(&run_id);
    }

    fn unknown(&self) -> MutexGuard<'_, HashSet<RunId>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the peer takes runs.
    pub(crate) fn set_ready(&self, ready: Option<Ready>) {
        self.ready.send_replace(ready);
    }

    /// Returns what the peer said when it became ready; `None` while it is not.
    pub(crate) fn ready(&self) -> Option<Ready> {
        *self.ready.borrow()
    }

    /// Waits until the peer is ready or gone.
    pub(crate) async fn wait_ready(&self) -> Result<Ready, Gone> {
        let mut ready = self.ready.subscribe();
        let wait = async {
            let ready = ready.wait_for(Option::is_some).await.map_err(|_| Gone)?;
            (*ready).ok_or(Gone)
        };
        tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(Gone),
            ready = wait => ready,
        }
    }

    /// Notes that a frame has arrived.
    pub(crate) fn heard(&self, at: Timestamp) {
        self.heard_ms.store(at.as_millisecond(), Ordering::Relaxed);
    }

    /// Returns when the last frame arrived.
    pub(crate) fn heard_at(&self) -> Timestamp {
        Timestamp::from_millisecond(self.heard_ms.load(Ordering::Relaxed))
            .unwrap_or(self.sitter.since)
    }

    /// Notes by how many milliseconds the peer's clock was ahead of ours when it told it.
    pub(crate) fn note_clock(&self, ahead_ms: i64) {
        self.clock_ahead_ms.store(ahead_ms, Ordering::Relaxed);
    }

    /// Returns by how much the peer's clock was ahead of ours, less the time that its word was on
    /// the way; `None` before it has told it.
    pub(crate) fn clock_ahead(&self) -> Option<SignedDuration> {
        match self.clock_ahead_ms.load(Ordering::Relaxed) {
            CLOCK_UNKNOWN => None,
            ahead_ms => Some(SignedDuration::from_millis(ahead_ms)),
        }
    }

    /// Returns whether the connection is still wanted.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }
}
