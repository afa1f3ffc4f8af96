//! What commands wrote: numbered bytes of two streams a run, in files and in memory, never in SQLite.
//!
//! A stream's first 64 KiB stay in memory and go into the run's row with its ending, so a short run
//! makes no file. What is longer lies in append-only segments of 64 MiB below `outputs/<run>/`. One
//! thread writes them, another one syncs them; no task of the runtime waits for a write or a sync.
//! Taking a run up looks at its directory: a `stat` where there is none, a few files else.
//!
//! An offset is *stored* when it may be acknowledged to the node: in the first 64 KiB in memory, or
//! given to write(2). Nothing stored is lost by the death of processes: the node keeps the 64 KiB
//! below what it was told until the run is forgotten. After a power cut what had not been synced is
//! cut off, and asked for again or marked as a gap. A gap is marked, always, with its reason.
//!
//! Readers never slow the writer: one that keeps up is served from memory, one that lags reads the
//! files. Which run is whose, and when to acknowledge, is known by the session.

mod aside;
mod disk;
mod ended;
mod files;
mod memory;
mod run;
mod stdin;
mod sync;
mod writer;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use moltis_proto::limits::HEAD_BYTES_MAX;
use moltis_proto::run::{GapReason, Stream, Totals};
use moltis_proto::{BootId, RunId};
use tokio::sync::watch;

use self::ended::Readers;
pub use self::run::RunOutput;
pub use self::sync::SyncTrouble;
use self::sync::Syncing;
use self::writer::Writing;
use crate::metrics::OutputCounts;
use crate::store::{BootMoment, Heads};
use crate::system::System;

/// How much output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputLimits {
    /// Bytes on disk of one run. Past it the first segment of each stream and the newest ones are
    /// kept; what lies between becomes a gap.
    pub run_bytes_max: u64,
    /// Bytes on disk of all runs. Past it ended runs give up their output, oldest first, and a
    /// run that is not over keeps no more than its first and its newest segment.
    pub total_bytes_max: u64,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Bytes of a stream that stay in memory after they were written, for readers that keep up.
    /// Many runs share 16 MiB.
    pub recent_bytes: usize,
}

impl Default for OutputLimits {
    fn default() -> Self {
        Self {
            run_bytes_max: 1024 * 1024 * 1024,
            total_bytes_max: 20 * 1024 * 1024 * 1024,
            segment_bytes: 64 * 1024 * 1024,
            recent_bytes: 1024 * 1024,
        }
    }
}

/// What a read finds at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputRead {
    /// These bytes, at least one.
    Bytes(Bytes),
    /// Nothing up to `to`: those bytes are gone.
    Gap {
        /// Where the gap begins: at the offset or before it.
        from: u64,
        /// The first offset behind the gap.
        to: u64,
        /// Why.
        reason: GapReason,
    },
    /// Nothing yet.
    Wait,
    /// The stream ends here.
    End,
}

/// What the row of an ended run says of its output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndedOutput {
    /// How much the run wrote.
    pub totals: Totals,
    /// The streams that made no file.
    pub heads: Heads,
    /// Its output was deleted to make room.
    pub freed: bool,
}

/// How far both streams of a run have come; indexed by [`Stream::index`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received, gaps included.
    pub end: [u64; 2],
    /// Bytes that may be acknowledged, gaps included.
    pub stored: [u64; 2],
    /// Nothing more will come.
    pub finished: bool,
}

/// Why output was not taken, or is not there.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// Bytes that do not continue the stream. The inbox sorts that out before.
    #[error("output of run {run_id} goes on at offset {expected}, not {found}")]
    OutOfOrder {
        /// The run.
        run_id: RunId,
        /// Where the stream ends.
        expected: u64,
        /// What was brought.
        found: u64,
    },
    /// More unwritten bytes than any window allows.
    #[error("run {run_id} has {bytes} bytes of output waiting for the disk: more than any window")]
    Overrun {
        /// The run.
        run_id: RunId,
        /// Bytes that wait.
        bytes: usize,
    },
    /// A file could not be made, read or synced.
    #[error("cannot {verb} `{}`", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A sync failed: what the disk holds is not known any more, and no run is forgotten.
    #[error(
        "output cannot be kept since the disk failed ({reason}): check the disk, then restart the gateway"
    )]
    SyncFailed {
        /// What the disk said.
        reason: String,
    },
}

/// What stands in the way of writing output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputTrouble {
    /// The file that could not be written.
    pub path: PathBuf,
    /// Whether the disk is full; it failed otherwise.
    pub disk_full: bool,
    /// What the system said.
    pub detail: String,
}

impl fmt::Display for OutputTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        if self.disk_full {
            return write!(
                f,
                "output waits, for the disk that holds `{path}` is full: free some space"
            );
        }
        write!(
            f,
            "output waits, for `{path}` cannot be written: {}",
            self.detail
        )
    }
}

/// All output that the gateway holds. Cloning shares it.
#[derive(Clone)]
pub struct Outputs(Arc<Inner>);

pub(super) struct Inner {
    system: System,
    dir: PathBuf,
    limits: OutputLimits,
    boot_id: Option<BootId>,
    live: Mutex<HashMap<RunId, Weak<RunOutput>>>,
    /// Runs of which output of an earlier one was set aside.
    asides: Mutex<HashSet<RunId>>,
    /// Output of runs that are over, in the hands of who reads it.
    readers: Readers,
    /// Each for the files of some runs: held by who cuts off what a power cut may have spoiled, or
    /// deletes them.
    files: [Mutex<()>; FILES_LOCKS],
    writing: Arc<Writing>,
    syncing: Arc<Syncing>,
    space: Arc<Space>,
    count: LiveCount,
    counts: OutputCounts,
}

/// Counts the runs in memory, so that they share what is kept of written bytes.
#[derive(Debug, Default)]
pub(super) struct LiveCount(Arc<AtomicUsize>);

/// Locks for the files of all runs, so that the sync of one holds up few others.
const FILES_LOCKS: usize = 16;

/// Bytes of written output in memory, of all runs together and for each stream.
const RECENT_BYTES_MAX: usize = 16 * 1024 * 1024;

impl LiveCount {
    fn one_more(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }

    /// Returns the bytes that each stream may keep.
    fn share(&self) -> usize {
        RECENT_BYTES_MAX / self.0.load(Ordering::Relaxed).max(1)
    }
}

impl Drop for LiveCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes on disk of all runs.
#[derive(Debug)]
pub(super) struct Space {
    used: AtomicU64,
    max: u64,
    over: watch::Sender<bool>,
}

impl Outputs {
    /// Opens `outputs/` in `dir`, making it where it is missing, and starts the threads that write
    /// and sync. `boot_id` names the running boot of this machine: it tells a power cut from a
    /// crash. Where it is not known, a power cut may leave zeros unmarked.
    ///
    /// # Errors
    /// Where the directory cannot be made or read.
    pub fn open(
        dir: &Path,
        boot_id: Option<BootId>,
        limits: OutputLimits,
    ) -> Result<Self, OutputError> {
        Self::open_on(&System::default(), dir, boot_id, limits)
    }

    /// Opens it on this machine.
    pub(crate) fn open_on(
        system: &System,
        dir: &Path,
        boot_id: Option<BootId>,
        limits: OutputLimits,
    ) -> Result<Self, OutputError> {
        let dir = dir.join("outputs");
        files::make_dir(system, &dir)?;
        let space = Arc::new(Space {
            used: AtomicU64::new(files::bytes_below(&dir)?),
            max: limits.total_bytes_max,
            over: watch::Sender::new(false),
        });
        space.look();
        let asides = files::asides_below(&dir)?.into_iter().collect();
        let syncing = Syncing::start(&dir, system)?;
        let writing = Writing::start(&dir, system)?;
        Ok(Self(Arc::new(Inner {
            system: system.clone(),
            dir,
            limits,
            boot_id,
            live: Mutex::default(),
            asides: Mutex::new(asides),
            readers: Readers::default(),
            files: Default::default(),
            writing,
            syncing,
            space,
            count: LiveCount::default().one_more(),
            counts: OutputCounts::default(),
        })))
    }

    /// Returns the running boot of this machine, where it is known.
    pub(crate) fn boot_id(&self) -> Option<BootId> {
        self.0.boot_id
    }

    /// Returns the output of a run that is not over: the one in memory, else what its files hold.
    ///
    /// # Errors
    /// Where its files cannot be read.
    pub fn run(&self, run_id: RunId) -> Result<Arc<RunOutput>, OutputError> {
        let mut live = self.live();
        if let Some(run) = live.get(&run_id).and_then(Weak::upgrade) {
            return Ok(run);
        }
        let run = Arc::new(RunOutput::recover(&self.0, run_id)?);
        // Its node may have freed what an earlier process had written, and bring nothing more.
        if run.has_unsynced() {
            self.0.syncing.note(&run, 0);
        }
        live.retain(|_, run| run.strong_count() > 0);
        live.insert(run_id, Arc::downgrade(&run));
        Ok(run)
    }

    /// Does what looks at files and may sync some of them.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, OutputError> + Send + 'static,
    ) -> Result<T, OutputError> {
        let inner = Arc::clone(&self.0);
        let done = self.0.system.blocking(move || work(&inner)).await;
        done.map_err(|error| OutputError::file("read", &self.0.dir, std::io::Error::other(error)))?
    }

    /// Waits until what the files of an ended run hold survives a power cut, whichever process
    /// wrote them.
    ///
    /// # Errors
    /// Where they cannot be read, or the disk failed to keep them: the run must not be forgotten
    /// then.
    pub async fn synced(&self, run_id: RunId) -> Result<(), OutputError> {
        self.to_sync(run_id).await?.synced().await
    }

    /// Returns the output of a run, held as one that is at work, so that nobody deletes its files.
    async fn to_sync(&self, run_id: RunId) -> Result<Arc<RunOutput>, OutputError> {
        if let Some(run) = self.held(run_id) {
            return Ok(run);
        }
        let found = self.aside(move |inner: &Inner| RunOutput::recover(inner, run_id));
        let found = Arc::new(found.await?);
        let mut live = self.live();
        let held = live.get(&run_id).and_then(Weak::upgrade);
        Ok(held.unwrap_or_else(|| {
            live.insert(run_id, Arc::downgrade(&found));
            found
        }))
    }

    /// Returns this moment of the running boot; `None` where that has no name.
    pub(crate) fn moment_of_boot(&self) -> Option<BootMoment> {
        let boot_id = self.0.boot_id?;
        let boottime = self.0.system.boottime();
        Some(BootMoment { boot_id, boottime })
    }

    /// Returns whether more of a run's output may come, or is still to be written or synced.
    pub fn is_at_work(&self, run_id: RunId) -> bool {
        self.held(run_id).is_some_and(|run| run.is_at_work())
    }

    /// Returns whether a run has files. Looks at the disk: not for a task of the runtime.
    pub fn has_files(&self, run_id: RunId) -> bool {
        self.0.dir.join(run_id.to_string()).exists()
    }

    /// Returns the bytes on disk of runs that are not at work: what can be let go now.
    pub fn bytes_at_rest(&self) -> u64 {
        let live = self.live();
        let held = live.values().filter_map(Weak::upgrade);
        let at_work = held.filter(|run| run.is_at_work());
        let at_work: u64 = at_work.map(|run| run.disk_bytes()).sum();
        self.bytes().saturating_sub(at_work)
    }

    fn held(&self, run_id: RunId) -> Option<Arc<RunOutput>> {
        self.live().get(&run_id).and_then(Weak::upgrade)
    }

    /// Returns the ids of all runs that have files, or of which some were set aside. A run without a
    /// row among them is left over from a crash.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn stored_runs(&self) -> Result<Vec<RunId>, OutputError> {
        let mut runs = files::runs_below(&self.0.dir)?;
        let asides = self.asides().into_iter();
        let others: Vec<_> = asides.filter(|aside| !runs.contains(aside)).collect();
        runs.extend(others);
        Ok(runs)
    }

    /// Returns what its files lie on.
    pub(crate) fn system(&self) -> &System {
        &self.0.system
    }

    /// Returns the bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.0.space.used.load(Ordering::Relaxed)
    }

    /// Returns what is counted of output.
    #[cfg(feature = "metrics")]
    pub(crate) fn counts(&self) -> &OutputCounts {
        &self.0.counts
    }

    /// Returns the bytes of all runs that came and are not stored yet, gaps included.
    #[cfg(feature = "metrics")]
    pub(crate) fn bytes_waiting(&self) -> u64 {
        let live: Vec<_> = self.live().values().filter_map(Weak::upgrade).collect();
        let waiting = live.iter().map(|run| {
            let progress = *run.subscribe().borrow();
            let of = |at: usize| progress.end[at].saturating_sub(progress.stored[at]);
            of(0) + of(1)
        });
        waiting.sum()
    }

    /// Returns how many runs wait for the thread that writes.
    #[cfg(feature = "metrics")]
    pub(crate) fn runs_to_write(&self) -> usize {
        self.0.writing.waiting()
    }

    /// Tells when the bytes on disk pass the total limit, and when they are below it again.
    pub fn over_limit(&self) -> watch::Receiver<bool> {
        self.0.space.over.subscribe()
    }

    /// Tells what stands in the way of writing; `None` while nothing does. Output waits meanwhile,
    /// unacknowledged, and writing is tried again each second.
    pub fn trouble(&self) -> watch::Receiver<Option<OutputTrouble>> {
        self.0.writing.trouble()
    }

    /// Tells what stands in the way of syncing; `None` while nothing does.
    pub fn sync_trouble(&self) -> watch::Receiver<Option<SyncTrouble>> {
        self.0.syncing.trouble()
    }

    /// Writes what came and syncs it, once more where that cannot be done, and ends both threads:
    /// nothing of this process touches a file of a run any more.
    pub(crate) async fn close(&self) {
        self.0.writing.close().await;
        self.0.syncing.close().await;
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Weak<RunOutput>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Space {
    fn more(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.look();
    }

    fn less(&self, bytes: u64) {
        // What could not be counted may go all the same.
        let less = |used: u64| Some(used.saturating_sub(bytes));
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .ok(); // it always has a new value
        self.look();
    }

    fn is_over(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.max
    }

    fn look(&self) {
        self.over.send_if_modified(|told| {
            let over = self.is_over();
            std::mem::replace(told, over) != over
        });
    }
}

impl Inner {
    /// Returns what lies on the disk of a run. Of two who ask the second finds what the first has left.
    fn recovered(&self, run_id: RunId) -> Result<files::Recovered, OutputError> {
        let _alone = self.files_of(run_id);
        let dir = self.dir.join(run_id.to_string());
        let found = files::recover(&self.system, &dir, self.boot_id)?;
        if found.freed > 0 {
            self.space.less(found.freed);
        }
        Ok(found)
    }

    fn asides(&self) -> std::sync::MutexGuard<'_, HashSet<RunId>> {
        self.asides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files_of(&self, run_id: RunId) -> std::sync::MutexGuard<'_, ()> {
        let lock = &self.files[usize::from(run_id.as_bytes()[0]) % FILES_LOCKS];
        lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the files of one run, none of them open.
    fn disk(&self, run: PathBuf) -> disk::Disk {
        let Self {
            system,
            boot_id,
            limits,
            ..
        } = self;
        disk::Disk::new(system.clone(), run, *boot_id, limits.segment_bytes)
    }
}

impl OutputError {
    fn file(verb: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::File {
            verb,
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }
}

impl fmt::Debug for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outputs")
            .field("dir", &self.0.dir)
            .finish_non_exhaustive()
    }
}

/// Bytes of a stream that stay in memory before there is a file.
const HEAD: u64 = HEAD_BYTES_MAX as u64;

/// Names of the streams in file names.
fn stream_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "out",
        Stream::Stderr => "err",
    }
}
