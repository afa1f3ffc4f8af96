//! One run's output: one writer, any number of readers.

mod covered;
mod room;

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use moltis_identity::files::open_here;
use moltis_proto::run::{GapReason, Stream, Totals};
use moltis_proto::{BootId, RunId};
use tokio::sync::{Notify, watch};

use super::disk::Disk;
use super::memory::{Extent, Found, Memory, OnDisk, ToWrite};
use super::sync::Syncing;
use super::writer::{Wait, Writing};
use super::{
    EndedOutput, Inner, LiveCount, OutputError, OutputLimits, OutputRead, OutputTrouble, Progress,
    Space, files, stdin,
};
use crate::metrics::OutputCounts;
use crate::session::chain;
use crate::store::Heads;
use crate::system::System;

/// Unwritten bytes of one run, at the most: four windows of both streams together. What lies beyond
/// was never allowed to be sent.
const WAITING_MAX: usize = 8 * moltis_proto::limits::RUN_WINDOW_BYTES as usize;

/// Bytes that one turn of the writing thread takes of one stream, so that many runs share it.
const TURN_BYTES: usize = 4 * 1024 * 1024;

/// Pieces that one turn takes.
const TURN_PIECES: usize = 512;

/// Output of one run. All methods but `read` and `synced` return at once.
pub struct RunOutput {
    pub(super) system: System,
    run_id: RunId,
    dir: PathBuf,
    boot_id: Option<BootId>,
    limits: OutputLimits,
    memory: Mutex<[Memory; 2]>,
    pub(super) disk: Mutex<Disk>,
    disk_bytes: AtomicU64,
    /// How long the stdin is that is kept for the command: see [`stdin`](super::stdin).
    pub(super) stdin_bytes: AtomicU64,
    progress: watch::Sender<Progress>,
    /// Rung when the writing thread has stored something.
    stored_bell: Mutex<Option<Arc<Notify>>>,
    /// In the writing thread's queue.
    scheduled: AtomicBool,
    /// The segment that was read last, for readers that lag.
    reading: Mutex<Option<(PathBuf, Arc<File>)>>,
    writing: Arc<Writing>,
    pub(super) syncing: Arc<Syncing>,
    pub(super) space: Arc<Space>,
    live: LiveCount,
    counts: OutputCounts,
}

impl RunOutput {
    pub(super) fn recover(outputs: &Inner, run_id: RunId) -> Result<Self, OutputError> {
        let dir = outputs.dir.join(run_id.to_string());
        let files::Recovered {
            extents, synced, ..
        } = outputs.recovered(run_id)?;
        let mut disk = outputs.disk(dir);
        for stream in Stream::BOTH {
            let (extents, synced) = (&extents[stream.index()], synced[stream.index()]);
            let segments = extents.iter().filter(|e| e.what == OnDisk::Segment);
            // The process before may have died between write(2) and the sync.
            for unsynced in segments.filter(|segment| segment.to > synced) {
                disk.take_over(stream, unsynced.from)?;
            }
            let last = extents.last();
            if let Some(last) = last.filter(|last| last.what == OnDisk::Segment) {
                disk.go_on(stream, last.from, last.to)?;
            }
        }
        Ok(Self::new(outputs, run_id, disk, extents))
    }

    pub(super) fn of_ended(
        outputs: &Inner,
        run_id: RunId,
        ended: &EndedOutput,
    ) -> Result<Self, OutputError> {
        let dir = outputs.dir.join(run_id.to_string());
        // Of output that was deleted to make room nothing is shown, whatever a death in the middle of
        // it has left: what is missing between would look like the work of a power cut.
        let extents = if ended.freed {
            Default::default()
        } else {
            outputs.recovered(run_id)?.extents
        };
        let disk = outputs.disk(dir);
        let run = Self::new(outputs, run_id, disk, extents);
        {
            let heads = [&ended.heads.stdout, &ended.heads.stderr];
            let mut memory = run.memory();
            for (stream, head) in Stream::BOTH.into_iter().zip(heads) {
                let memory = &mut memory[stream.index()];
                if !head.is_empty() {
                    *memory = Memory::with_head(head);
                }
                if ended.freed {
                    memory.free();
                }
                memory.finish(ended.totals.of(stream));
            }
        }
        run.tell();
        Ok(run)
    }

    fn new(outputs: &Inner, run_id: RunId, disk: Disk, extents: [Vec<Extent>; 2]) -> Self {
        let bytes = extents
            .iter()
            .flatten()
            .filter(|e| e.what == OnDisk::Segment);
        let dir = outputs.dir.join(run_id.to_string());
        let stdin_bytes = files::stdin_bytes(&dir).unwrap_or(stdin::NONE);
        let run = Self {
            system: outputs.system.clone(),
            run_id,
            dir,
            boot_id: outputs.boot_id,
            limits: outputs.limits,
            disk: Mutex::new(disk),
            disk_bytes: AtomicU64::new(bytes.map(|extent| extent.to - extent.from).sum()),
            stdin_bytes: AtomicU64::new(stdin_bytes),
            memory: Mutex::new(extents.map(Memory::with_extents)),
            progress: watch::Sender::new(Progress::default()),
            stored_bell: Mutex::new(None),
            scheduled: AtomicBool::new(false),
            reading: Mutex::new(None),
            writing: Arc::clone(&outputs.writing),
            syncing: Arc::clone(&outputs.syncing),
            space: Arc::clone(&outputs.space),
            live: outputs.count.one_more(),
            counts: outputs.counts.clone(),
        };
        run.tell();
        run
    }

    /// Returns whether more may come, or something is still to be written or synced.
    pub(crate) fn is_at_work(&self) -> bool {
        let progress = *self.progress.borrow();
        !progress.finished || progress.stored != progress.end || self.has_unsynced()
    }

    /// Returns whether its files hold something that no sync has covered.
    pub(super) fn has_unsynced(&self) -> bool {
        lock(&self.disk).has_unsynced()
    }

    /// Returns where its files lie.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the bytes of this run on the disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        let stdin = self.stdin_bytes.load(Ordering::Relaxed);
        let stdin = if stdin == stdin::NONE { 0 } else { stdin };
        self.disk_bytes.load(Ordering::Relaxed) + stdin
    }

    /// Returns whose output this is.
    pub fn run_id(&self) -> RunId {
        self.run_id
    }

    /// Takes the next bytes of a stream. They are written by a thread; nothing waits here.
    ///
    /// # Errors
    /// Where `offset` is not where the stream ends, or more waits for the disk than any window
    /// allows.
    pub fn append(
        self: &Arc<Self>,
        stream: Stream,
        offset: u64,
        bytes: Bytes,
    ) -> Result<(), OutputError> {
        let filed = {
            let mut memory = self.memory();
            self.check_room(&memory)?;
            let memory = &mut memory[stream.index()];
            self.expect(memory.end(), offset)?;
            self.counts.received.add(bytes.len() as u64);
            let stored = memory.stored();
            memory.append(bytes);
            self.counts.stored.add(memory.stored() - stored);
            memory.is_filed()
        };
        self.changed(filed);
        Ok(())
    }

    /// Marks that the bytes from `from` up to `to` are gone.
    ///
    /// # Errors
    /// Where `from` is not where the stream ends, or more waits for the disk than any window allows.
    pub fn gap(
        self: &Arc<Self>,
        stream: Stream,
        from: u64,
        to: u64,
        reason: GapReason,
    ) -> Result<(), OutputError> {
        {
            let mut memory = self.memory();
            self.check_room(&memory)?;
            let memory = &mut memory[stream.index()];
            self.expect(memory.end(), from)?;
            if to <= from {
                return Ok(());
            }
            memory.gap(to, reason);
        }
        self.changed(true);
        Ok(())
    }

    /// Looks at whether a stream may have more wait for the disk.
    fn check_room(&self, memory: &[Memory; 2]) -> Result<(), OutputError> {
        let waiting = memory[0].waiting() + memory[1].waiting();
        if waiting > WAITING_MAX {
            return Err(OutputError::Overrun {
                run_id: self.run_id,
                bytes: waiting,
            });
        }
        Ok(())
    }

    /// Says that nothing more comes. What `totals` name and was never brought reads as a gap.
    pub fn finish(&self, totals: Totals) {
        {
            let mut memory = self.memory();
            for stream in Stream::BOTH {
                memory[stream.index()].finish(totals.of(stream));
            }
        }
        self.tell();
    }

    /// Its files are deleted, as it is over.
    pub(super) fn free(&self) {
        for memory in &mut *self.memory() {
            memory.free();
        }
    }

    /// Begins anew with what lies on the disk. Nothing may have come before.
    pub(super) fn take_over(&self, extents: [Vec<Extent>; 2]) {
        let segments = extents.iter().flatten();
        let segments = segments.filter(|extent| extent.what == OnDisk::Segment);
        let bytes = segments.map(|extent| extent.to - extent.from).sum();
        self.disk_bytes.store(bytes, Ordering::Relaxed);
        *self.memory() = extents.map(Memory::with_extents);
        self.tell();
    }

    /// Returns where a stream ends so far.
    pub fn end(&self, stream: Stream) -> u64 {
        self.memory()[stream.index()].end()
    }

    /// Returns where both streams end so far.
    pub fn totals(&self) -> Totals {
        let memory = self.memory();
        Totals {
            stdout: memory[0].end(),
            stderr: memory[1].end(),
        }
    }

    /// Returns the offset up to which every byte of a stream from `offset` on is there: that of the
    /// next gap, else the end so far.
    pub fn whole_until(&self, stream: Stream, offset: u64) -> u64 {
        self.memory()[stream.index()].whole_until(offset)
    }

    /// Returns the offset up to which a stream may be acknowledged.
    pub fn stored(&self, stream: Stream) -> u64 {
        self.memory()[stream.index()].stored()
    }

    /// Returns what of both streams goes into the run's row: each that made no file.
    pub fn heads(&self) -> Heads {
        let memory = self.memory();
        let [stdout, stderr] = &*memory;
        let head = |memory: &Memory| {
            if memory.is_filed() {
                Bytes::new()
            } else {
                memory.head()
            }
        };
        Heads {
            stdout: head(stdout),
            stderr: head(stderr),
        }
    }

    /// Tells how far both streams have come, whenever that changes.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Returns why bytes that came are not stored; `None` while nothing stands in their way.
    pub fn waits_for(&self) -> Option<OutputTrouble> {
        let is_stored = |memory: &Memory| memory.stored() == memory.end();
        if self.memory().iter().all(is_stored) {
            return None;
        }
        self.writing.trouble().borrow().clone()
    }

    /// Has this bell rung whenever the writing thread has stored something, instead of the one
    /// before: a session has one for all of its runs.
    pub fn wake(&self, bell: Arc<Notify>) {
        *lock(&self.stored_bell) = Some(bell);
    }

    /// Waits until everything brought so far may be acknowledged.
    pub async fn written(&self) {
        let end = Stream::BOTH.map(|stream| self.end(stream));
        self.subscribe()
            .wait_for(|now| now.stored[0] >= end[0] && now.stored[1] >= end[1])
            .await
            .ok(); // `self` holds the sender
    }

    /// Waits until everything brought so far survives a power cut, as far as it lies in files. What
    /// is in memory alone goes into the run's row.
    ///
    /// # Errors
    /// Where the disk failed to keep it: the run must not be forgotten then.
    pub async fn synced(self: &Arc<Self>) -> Result<(), OutputError> {
        self.written().await;
        if !self.is_filed() {
            return Ok(());
        }
        self.syncing.sync(Arc::clone(self)).await
    }

    /// Returns at most `max` bytes of a stream from `offset` on, or what stands there instead.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub async fn read(
        &self,
        stream: Stream,
        offset: u64,
        max: usize,
    ) -> Result<OutputRead, OutputError> {
        let found = self.memory()[stream.index()].find(offset, max.max(1));
        let (segment, to) = match found {
            Found::Now(read) => return Ok(read),
            Found::File { segment, to } => (segment, to),
        };
        let path = files::segment(&self.dir, stream, segment);
        match self.read_file(path, offset - segment, to - offset).await {
            // Given up or deleted in this moment: now the map says so.
            Err(OutputError::File { source, verb, path })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                let memory = &self.memory()[stream.index()];
                match memory.find(offset, max.max(1)) {
                    Found::Now(read) => Ok(read),
                    // Deleted before anybody knew of this reader. Whoever asks again finds out why.
                    Found::File { .. } if memory.is_finished() => {
                        Err(OutputError::File { source, verb, path })
                    }
                    Found::File { to, .. } => Ok(OutputRead::Gap {
                        from: offset,
                        to,
                        reason: GapReason::DiskFailed,
                    }),
                }
            }
            Ok(bytes) if bytes.is_empty() => Ok(OutputRead::Gap {
                from: offset,
                to,
                reason: GapReason::DiskFailed,
            }),
            read => read.map(OutputRead::Bytes),
        }
    }

    /// Returns what stands at `offset`, waiting for it where the stream has not come so far.
    ///
    /// # Errors
    /// Where a file cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn read_or_wait(
        &self,
        stream: Stream,
        offset: u64,
        max: usize,
    ) -> Result<OutputRead, OutputError> {
        let mut progress = self.subscribe();
        loop {
            match self.read(stream, offset, max).await? {
                OutputRead::Wait => {
                    progress.changed().await.ok(); // `self` holds the sender
                }
                read => return Ok(read),
            }
        }
    }

    async fn read_file(&self, path: PathBuf, at: u64, length: u64) -> Result<Bytes, OutputError> {
        let cached = lock(&self.reading)
            .as_ref()
            .filter(|(reading, _)| *reading == path)
            .map(|(_, file)| Arc::clone(file));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let read = self.system.blocking(move || {
            let read = || {
                let file = match cached {
                    Some(file) => file,
                    None => Arc::new(open_here(&path, File::options().read(true))?),
                };
                let mut bytes = BytesMut::zeroed(length);
                let mut filled = 0;
                while filled < length {
                    match file.read_at(&mut bytes[filled..], at + filled as u64)? {
                        0 => break,
                        read => filled += read,
                    }
                }
                bytes.truncate(filled);
                Ok((bytes.freeze(), file))
            };
            match read() {
                Ok((bytes, file)) => Ok((bytes, path, file)),
                Err(error) => Err(OutputError::file("read", &path, error)),
            }
        });
        let (bytes, path, file) = read.await.map_err(|error| {
            OutputError::file("read", &self.dir, std::io::Error::other(error))
        })??;
        *lock(&self.reading) = Some((path, file));
        Ok(bytes)
    }

    fn expect(&self, expected: u64, found: u64) -> Result<(), OutputError> {
        if expected == found {
            return Ok(());
        }
        Err(OutputError::OutOfOrder {
            run_id: self.run_id,
            expected,
            found,
        })
    }

    fn changed(self: &Arc<Self>, filed: bool) {
        self.tell();
        if filed && self.schedule() {
            self.writing.schedule(Arc::clone(self));
        }
    }

    /// Tells how far both streams are. Looked at and told as one: the task that brings output and the
    /// thread that writes it tell at once, and whoever looked first must not be heard last.
    fn tell(&self) {
        self.progress.send_if_modified(|told| {
            let memory = self.memory();
            let now = Progress {
                end: [memory[0].end(), memory[1].end()],
                stored: [memory[0].stored(), memory[1].stored()],
                finished: memory[0].is_finished(),
            };
            let before = std::mem::replace(told, now);
            before != now
        });
    }

    /// Marks that this run is in the writing thread's queue; false where it was.
    pub(super) fn schedule(&self) -> bool {
        !self.scheduled.swap(true, Ordering::AcqRel)
    }

    /// One turn of the writing thread. Returns whether there is more to do.
    pub(super) fn write_some(self: &Arc<Self>) -> Result<Wait, OutputError> {
        self.scheduled.store(false, Ordering::Release);
        let mut wait = Wait::Idle;
        let (mut bytes, mut failed) = (0, None);
        for stream in Stream::BOTH {
            let next = self.memory()[stream.index()].next_to_write(TURN_BYTES, TURN_PIECES);
            let Some(next) = next else { continue };
            match self.write(stream, next) {
                Ok(wrote) => {
                    wait = Wait::More;
                    bytes += wrote;
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        // What one stream has got is told although the other one failed.
        if wait == Wait::More {
            self.give_up_some();
            self.syncing.note(self, bytes);
            self.tell();
            if let Some(bell) = &*lock(&self.stored_bell) {
                bell.notify_one();
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(wait),
        }
    }

    /// Returns how many bytes were written.
    fn write(&self, stream: Stream, next: ToWrite) -> Result<u64, OutputError> {
        let at = stream.index();
        match next {
            ToWrite::Gap { from, to, reason } => {
                lock(&self.disk).note_gap(stream, from, to, reason)?;
                {
                    let memory = &mut self.memory()[at];
                    memory.noted(from, to, reason);
                    memory.trim(self.limits.recent_bytes.min(self.live.share()));
                }
                if let Err(error) = self.shorten_notes() {
                    tracing::warn!(run.id = %self.run_id, error = %chain(&error), "the notes of gaps cannot be made short");
                }
                Ok(0)
            }
            ToWrite::Bytes { from, pieces } => {
                let wrote = lock(&self.disk).write(stream, from, pieces)?;
                let length = wrote.to - from;
                self.disk_bytes.fetch_add(length, Ordering::Relaxed);
                self.space.more(length);
                let recent = self.limits.recent_bytes.min(self.live.share());
                let mut memory = self.memory();
                let stored = memory[at].stored();
                memory[at].wrote(wrote.segment, wrote.to);
                self.counts.stored.add(memory[at].stored() - stored);
                memory[at].trim(recent);
                Ok(length)
            }
        }
    }

    /// Returns whether some of it lies in files, or will; else all of it goes into the run's row.
    pub(super) fn is_filed(&self) -> bool {
        self.memory().iter().any(Memory::is_filed)
    }

    fn memory(&self) -> MutexGuard<'_, [Memory; 2]> {
        lock(&self.memory)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for RunOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOutput")
            .field("run_id", &self.run_id)
            .field("progress", &*self.progress.borrow())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::{Outputs, memory};
    use super::room::SEGMENTS_MAX;
    use super::*;

    const KIB: usize = 1024;

    fn limits() -> OutputLimits {
        OutputLimits {
            run_bytes_max: 640 * KIB as u64,
            total_bytes_max: 1024 * KIB as u64,
            segment_bytes: 128 * KIB as u64,
            recent_bytes: 64 * KIB,
        }
    }

    fn boot(number: u8) -> BootId {
        BootId::from_bytes([number; 16])
    }

    fn id(number: u8) -> RunId {
        RunId::from_bytes([number; 16])
    }

    /// The byte that belongs at an offset.
    fn byte(offset: u64) -> u8 {
        (offset % 251) as u8
    }

    fn bytes(from: u64, length: usize) -> Bytes {
        (from..from + length as u64).map(byte).collect()
    }

    fn append(run: &Arc<RunOutput>, stream: Stream, length: usize) {
        let end = run.end(stream);
        run.append(stream, end, bytes(end, length)).unwrap();
    }

    /// Reads a whole stream: where bytes begin and end, and the gaps between.
    async fn read_all(run: &RunOutput, stream: Stream) -> Vec<(u64, u64, Option<GapReason>)> {
        let mut found: Vec<(u64, u64, Option<GapReason>)> = Vec::new();
        let mut offset = 0;
        loop {
            let (to, reason) = match run.read(stream, offset, 50_000).await.unwrap() {
                OutputRead::Bytes(read) => {
                    assert_eq!(read, bytes(offset, read.len()), "at {offset}");
                    (offset + read.len() as u64, None)
                }
                OutputRead::Gap { to, reason, .. } => (to, Some(reason)),
                OutputRead::Wait | OutputRead::End => return found,
            };
            match found.last_mut() {
                Some(last) if last.2 == reason => last.1 = to,
                _ => found.push((offset, to, reason)),
            }
            offset = to;
        }
    }

    /// Ends a run, and waits until nothing of it is to be done.
    async fn finish(run: &Arc<RunOutput>) {
        run.finish(run.totals());
        run.synced().await.unwrap();
        let at_rest = async {
            while run.is_at_work() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), at_rest)
            .await
            .expect("output stays at work");
    }

    #[tokio::test]
    async fn a_short_run_makes_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        append(&run, Stream::Stdout, 64 * KIB);
        append(&run, Stream::Stderr, 10);
        assert_eq!(run.stored(Stream::Stdout), 64 * KIB as u64);
        run.synced().await.unwrap();
        run.finish(Totals {
            stdout: 64 * KIB as u64,
            stderr: 10,
        });
        let heads = run.heads();
        assert_eq!((heads.stdout.len(), heads.stderr.len()), (64 * KIB, 10));
        assert_eq!(outputs.stored_runs().unwrap(), []);
        let totals = Totals {
            stdout: 64 * KIB as u64,
            stderr: 10,
        };
        drop(run);
        let ended = EndedOutput {
            totals,
            heads,
            freed: false,
        };
        let ended = outputs.ended(id(1), &ended).await.unwrap();
        let whole = (0, 64 * KIB as u64, None);
        assert_eq!(read_all(&ended, Stream::Stdout).await, [whole]);
        assert_eq!(
            ended.read(Stream::Stderr, 10, 9).await.unwrap(),
            OutputRead::End
        );
    }

    #[tokio::test]
    async fn how_far_it_is_never_goes_back_whoever_tells_it() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        append(&run, Stream::Stdout, 60 * KIB);
        let end = run.end(Stream::Stdout) + 100_000;
        let progress = run.subscribe();
        std::thread::scope(|scope| {
            // The thread that writes tells of it meanwhile.
            scope.spawn(|| {
                while run.end(Stream::Stdout) < end {
                    append(&run, Stream::Stdout, 1);
                }
            });
            let mut last = Progress::default();
            while last.end[0] < end {
                let now = *progress.borrow();
                assert!(
                    now.end >= last.end && now.stored >= last.stored,
                    "{last:?}, then {now:?}"
                );
                last = now;
            }
        });
    }

    #[tokio::test]
    async fn a_long_run_lies_in_segments_that_only_the_owner_reads() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        for _ in 0..8 {
            append(&run, Stream::Stdout, 60 * KIB);
            append(&run, Stream::Stderr, 100);
            run.written().await;
        }
        assert_eq!(
            read_all(&run, Stream::Stdout).await,
            [(0, 480 * KIB as u64, None)]
        );
        let files = std::fs::read_dir(dir.path().join("outputs").join(id(1).to_string())).unwrap();
        let mut segments = 0;
        for file in files {
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            segments += usize::from(file.file_name().to_str().unwrap().starts_with("out-"));
        }
        assert!(segments > 2);
        let heads = run.heads();
        assert_eq!((heads.stdout.len(), heads.stderr.len()), (0, 800));
        assert_eq!(outputs.bytes(), 480 * KIB as u64);
        finish(&run).await;
        outputs.remove(id(1)).unwrap();
        assert_eq!(
            (outputs.bytes(), outputs.stored_runs().unwrap()),
            (0, vec![])
        );
    }

    #[tokio::test]
    async fn bytes_out_of_order_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        append(&run, Stream::Stdout, 10);
        for wrong in [0, 9, 11] {
            let refused = run.append(Stream::Stdout, wrong, bytes(0, 1));
            assert!(matches!(
                refused,
                Err(OutputError::OutOfOrder { expected: 10, .. })
            ));
            let refused = run.gap(Stream::Stdout, wrong, 100, GapReason::Freed);
            assert!(matches!(
                refused,
                Err(OutputError::OutOfOrder { expected: 10, .. })
            ));
        }
    }

    #[tokio::test]
    async fn the_death_of_the_process_loses_nothing_that_was_stored_in_files() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        append(&run, Stream::Stdout, 60 * KIB);
        append(&run, Stream::Stdout, 60 * KIB);
        let end = run.end(Stream::Stdout);
        run.gap(Stream::Stdout, end, end + 1000, GapReason::Limit)
            .unwrap();
        append(&run, Stream::Stdout, 7 * KIB);
        append(&run, Stream::Stderr, 5);
        run.written().await;
        let stored = run.stored(Stream::Stdout);
        let whole = read_all(&run, Stream::Stdout).await;
        // Another process, as far as files can tell: nothing was synced, closed or told.
        let reborn = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = reborn.run(id(1)).unwrap();
        assert_eq!(run.stored(Stream::Stdout), stored);
        assert_eq!(
            run.stored(Stream::Stderr),
            0,
            "memory is gone, and the node still has it"
        );
        assert_eq!(read_all(&run, Stream::Stdout).await, whole);
        append(&run, Stream::Stdout, 7 * KIB);
        run.written().await;
        assert_eq!(
            read_all(&run, Stream::Stdout).await.last().unwrap().1,
            stored + 7168
        );
    }

    #[tokio::test]
    async fn what_a_power_cut_may_have_spoiled_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        for _ in 0..4 {
            append(&run, Stream::Stdout, 60 * KIB);
        }
        run.synced().await.unwrap();
        let synced = run.stored(Stream::Stdout);
        // Later bytes reached the file's length, but not its content.
        let below = dir.path().join("outputs").join(id(1).to_string());
        let last = files::segment(&below, Stream::Stdout, 180 * KIB as u64);
        assert!(last.exists());
        let mut file = files::append_to(&last).unwrap();
        std::io::Write::write_all(&mut file, &[0; 5000]).unwrap();
        std::fs::write(files::segment(&below, Stream::Stdout, 999_999), [0; 10]).unwrap();
        let reborn = Outputs::open(dir.path(), Some(boot(2)), limits()).unwrap();
        let run = reborn.run(id(1)).unwrap();
        assert_eq!(run.stored(Stream::Stdout), synced);
        assert_eq!(read_all(&run, Stream::Stdout).await, [(0, synced, None)]);
        assert_eq!(reborn.bytes(), synced, "what was cut off takes no room");
        // What an ended run's row names beyond that is a gap, never silence.
        drop(run);
        let totals = Totals {
            stdout: synced + 77,
            stderr: 0,
        };
        let ended = EndedOutput {
            totals,
            ..EndedOutput::default()
        };
        let ended = reborn.ended(id(1), &ended).await.unwrap();
        assert_eq!(
            read_all(&ended, Stream::Stdout).await,
            [
                (0, synced, None),
                (synced, synced + 77, Some(GapReason::PowerCut))
            ]
        );
    }

    #[tokio::test]
    async fn many_who_read_one_run_behind_a_power_cut_at_once_all_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        append(&run, Stream::Stdout, 100 * KIB);
        run.synced().await.unwrap();
        let stdout = run.stored(Stream::Stdout);
        // What has to be deleted first, and by one of them.
        let below = dir.path().join("outputs").join(id(1).to_string());
        for number in 1..5_000 {
            let from = stdout + number;
            std::fs::write(files::segment(&below, Stream::Stdout, from), [0; 10]).unwrap();
        }
        let reborn = Outputs::open(dir.path(), Some(boot(2)), limits()).unwrap();
        let ended = EndedOutput {
            totals: Totals { stdout, stderr: 0 },
            ..EndedOutput::default()
        };
        let readers = (0..16).map(|_| reborn.ended(id(1), &ended));
        for read in futures_util::future::join_all(readers).await {
            let run = read.expect("another reader was in its way");
            assert_eq!(read_all(&run, Stream::Stdout).await, [(0, stdout, None)]);
        }
        assert!(reborn.is_whole(id(1), &ended).await.unwrap());
    }

    #[tokio::test]
    async fn a_crash_after_a_power_cut_loses_nothing_that_came_between() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        append(&run, Stream::Stdout, 60 * KIB);
        append(&run, Stream::Stdout, 60 * KIB);
        run.synced().await.unwrap();
        let synced = run.stored(Stream::Stdout);
        // A gap behind it reached the disk, and its sync did not.
        let below = dir.path().join("outputs").join(id(1).to_string());
        let line = files::gap_line(Stream::Stdout, synced + 10, 2 * synced, GapReason::Freed);
        std::fs::write(below.join(files::GAPS), line).unwrap();
        let again = Outputs::open(dir.path(), Some(boot(2)), limits()).unwrap();
        let run = again.run(id(1)).unwrap();
        let record = std::fs::read(below.join(files::SYNCED)).unwrap();
        assert_eq!(record, files::synced_record(boot(2), [synced, 0]));
        append(&run, Stream::Stdout, 30 * KIB);
        run.synced().await.unwrap();
        let stored = run.stored(Stream::Stdout);
        assert_eq!(stored, synced + 30 * KIB as u64);
        finish(&run).await;
        // As it was before that sync: the process died in between.
        std::fs::write(below.join(files::SYNCED), record).unwrap();
        let reborn = Outputs::open(dir.path(), Some(boot(2)), limits()).unwrap();
        let run = reborn.run(id(1)).unwrap();
        assert_eq!(run.stored(Stream::Stdout), stored);
        assert_eq!(read_all(&run, Stream::Stdout).await, [(0, stored, None)]);
    }

    #[tokio::test]
    async fn what_an_earlier_process_left_unsynced_is_synced_though_nobody_asks_and_nothing_comes()
    {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        append(&run, Stream::Stdout, 60 * KIB);
        append(&run, Stream::Stdout, 60 * KIB);
        run.synced().await.unwrap();
        let stdout = run.stored(Stream::Stdout);
        // As it was before its first sync: the process died in between.
        let record = dir.path().join("outputs").join(id(1).to_string());
        let record = record.join(files::SYNCED);
        files::write_synced(&System::default(), &record, boot(1), [0; 2]).unwrap();
        let reborn = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = reborn.run(id(1)).unwrap();
        let synced = async {
            while run.has_unsynced() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), synced)
            .await
            .expect("nobody syncs it");
        let whole = files::synced_record(boot(1), [stdout, 0]);
        assert_eq!(std::fs::read(&record).unwrap(), whole);
    }

    #[tokio::test]
    async fn what_an_earlier_process_left_unsynced_is_synced_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        for _ in 0..5 {
            append(&run, Stream::Stdout, 60 * KIB);
            run.written().await;
        }
        finish(&run).await;
        // As it was before its first sync: the process died in between.
        let below = dir.path().join("outputs").join(id(1).to_string());
        files::write_synced(
            &System::default(),
            &below.join(files::SYNCED),
            boot(1),
            [0; 2],
        )
        .unwrap();
        let reborn = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        reborn.synced(id(1)).await.unwrap();
        let record = std::fs::read(below.join(files::SYNCED)).unwrap();
        assert_eq!(record, files::synced_record(boot(1), [300 * KIB as u64, 0]));
        // Where that cannot be, the run must not be forgotten.
        std::fs::remove_dir_all(&below).unwrap();
        std::fs::write(&below, "").unwrap();
        reborn.synced(id(1)).await.unwrap_err();
    }

    /// Lets nothing be written to the place where a run's syncs are noted, before it has any.
    fn block_syncs(dir: &Path, number: u8) -> PathBuf {
        let synced = dir.join("outputs").join(id(number).to_string());
        let synced = synced.join(files::SYNCED);
        std::fs::create_dir_all(&synced).unwrap();
        synced
    }

    fn fill(run: &Arc<RunOutput>) {
        for _ in 0..3 {
            append(run, Stream::Stdout, 60 * KIB);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_synced_for_a_moment_is_synced_later_and_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let (run, other) = (outputs.run(id(1)).unwrap(), outputs.run(id(2)).unwrap());
        let blocked = block_syncs(dir.path(), 1);
        fill(&run);
        fill(&other);
        let mut trouble = outputs.sync_trouble();
        let watch = async {
            let told = trouble.wait_for(Option::is_some).await.unwrap().clone();
            assert!(told.is_some_and(|told| !told.is_final));
            other.synced().await.unwrap();
            assert!(run.is_at_work());
            std::fs::remove_dir(&blocked).unwrap();
        };
        let (synced, ()) = tokio::join!(run.synced(), watch);
        synced.unwrap();
        let record = std::fs::read(&blocked).unwrap();
        assert_eq!(record, files::synced_record(boot(1), [180 * KIB as u64, 0]));
        outputs
            .sync_trouble()
            .wait_for(Option::is_none)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_run_that_was_let_go_meanwhile_is_no_failed_sync() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        fill(&run);
        run.written().await;
        std::fs::remove_dir_all(run.dir()).unwrap();
        run.synced().await.unwrap();
        assert_eq!(*outputs.sync_trouble().borrow(), None);
        let other = outputs.run(id(2)).unwrap();
        fill(&other);
        other.synced().await.unwrap();
    }

    #[tokio::test]
    async fn a_sync_that_failed_is_final_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let (run, other) = (outputs.run(id(1)).unwrap(), outputs.run(id(2)).unwrap());
        fill(&run);
        // What cannot be synced at all (EINVAL).
        let null = Arc::new(File::open("/dev/null").unwrap());
        lock(&run.disk).note_made(run.dir().join("null"), &null);
        run.synced().await.unwrap_err();
        fill(&other);
        let error = other.synced().await.unwrap_err();
        assert!(matches!(error, OutputError::SyncFailed { .. }), "{error}");
        let told = outputs.sync_trouble().borrow().clone();
        assert!(told.is_some_and(|told| told.is_final));
    }

    #[tokio::test]
    async fn what_is_being_synced_for_its_node_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        fill(&run);
        finish(&run).await;
        let reborn = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let at_sync = reborn.to_sync(id(1)).await.unwrap();
        reborn.remove(id(1)).unwrap();
        assert!(reborn.has_files(id(1)));
        at_sync.synced().await.unwrap();
        drop(at_sync);
        reborn.remove(id(1)).unwrap();
        assert!(!reborn.has_files(id(1)), "it is at rest again");
    }

    #[tokio::test]
    async fn behind_a_close_all_is_synced_and_nothing_touches_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        fill(&run);
        outputs.close().await;
        let record = std::fs::read(run.dir().join(files::SYNCED)).unwrap();
        assert_eq!(record, files::synced_record(boot(1), [180 * KIB as u64, 0]));
        append(&run, Stream::Stdout, 60 * KIB);
        outputs.close().await;
        assert_eq!(outputs.bytes(), 180 * KIB as u64);
        assert_eq!(run.stored(Stream::Stdout), 180 * KIB as u64);
    }

    #[tokio::test]
    async fn what_a_full_disk_does_not_take_is_given_up_at_a_close() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        std::fs::write(run.dir(), "").unwrap();
        fill(&run);
        let mut trouble = outputs.trouble();
        trouble.wait_for(Option::is_some).await.unwrap();
        outputs.close().await;
        // There is room again, and the next process takes it.
        std::fs::remove_file(run.dir()).unwrap();
        let reborn = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let again = reborn.run(id(1)).unwrap();
        fill(&again);
        again.synced().await.unwrap();
        assert_eq!(
            read_all(&again, Stream::Stdout).await,
            [(0, 180 * KIB as u64, None)]
        );
        assert_eq!(Arc::strong_count(&run), 1, "a queue holds it");
    }

    #[tokio::test]
    async fn who_reads_what_is_deleted_meanwhile_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let end = 540 * KIB as u64;
        let run = outputs.run(id(1)).unwrap();
        for _ in 0..9 {
            append(&run, Stream::Stdout, 60 * KIB);
            run.written().await;
        }
        finish(&run).await;
        let ended = EndedOutput {
            totals: run.totals(),
            heads: Heads::default(),
            freed: false,
        };
        // One of them holds what wrote it, and the others came later.
        let held = outputs.ended(id(1), &ended).await.unwrap();
        assert!(Arc::ptr_eq(&held, &run));
        let reborn = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let mut readers = Vec::new();
        for _ in 0..2 {
            readers.push(reborn.ended(id(1), &ended).await.unwrap());
        }
        let first = readers[0].read(Stream::Stdout, 0, 10).await.unwrap();
        assert_eq!(first, OutputRead::Bytes(bytes(0, 10)));
        let unknown = RunOutput::of_ended(&reborn.0, id(1), &ended).unwrap();
        reborn.remove(id(1)).unwrap();
        for reader in &readers {
            let read = read_all(reader, Stream::Stdout).await;
            assert_eq!(read, [(0, end, Some(GapReason::Limit))]);
        }
        let error = unknown.read(Stream::Stdout, 0, 10).await.unwrap_err();
        assert!(matches!(error, OutputError::File { .. }), "{error:?}");
        outputs.remove(id(1)).unwrap();
        let read = read_all(&held, Stream::Stdout).await;
        assert_eq!(read[0].2, Some(GapReason::Limit), "{read:?}");
        assert!(
            read.iter()
                .all(|part| part.2 != Some(GapReason::DiskFailed))
        );
    }

    #[tokio::test]
    async fn past_the_limit_the_beginning_and_the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        for _ in 0..50 {
            append(&run, Stream::Stdout, 60 * KIB);
            run.written().await;
        }
        run.synced().await.unwrap();
        let found = read_all(&run, Stream::Stdout).await;
        let end = 50 * 60 * KIB as u64;
        let [
            (0, first, None),
            (gap, to, Some(GapReason::Limit)),
            (from, last, None),
        ] = found[..]
        else {
            panic!("{found:?}");
        };
        assert!(first >= 128 * KIB as u64 && first == gap && to == from && last == end);
        assert!(outputs.bytes() <= limits().run_bytes_max + limits().segment_bytes);
        let reborn = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        assert_eq!(
            read_all(&reborn.run(id(1)).unwrap(), Stream::Stdout).await,
            found
        );
        assert_eq!(reborn.bytes(), outputs.bytes());
    }

    #[tokio::test]
    async fn a_run_that_is_all_gaps_makes_no_more_files_than_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        for round in 0..10_000 {
            append(&run, Stream::Stdout, 1);
            let end = run.end(Stream::Stdout);
            run.gap(Stream::Stdout, end, end + 1, GapReason::DiskFull)
                .unwrap();
            if round % 500 == 0 {
                run.written().await;
            }
        }
        append(&run, Stream::Stdout, 1);
        run.synced().await.unwrap();
        let end = run.end(Stream::Stdout);
        assert_eq!((end, run.stored(Stream::Stdout)), (20_001, 20_001));
        let below = dir.path().join("outputs").join(id(1).to_string());
        let files = std::fs::read_dir(&below).unwrap().count();
        assert!(files <= SEGMENTS_MAX + 3, "{files}");
        let gaps = std::fs::read_to_string(below.join(files::GAPS)).unwrap();
        assert!(gaps.lines().count() <= 10_000, "{}", gaps.lines().count());
        // What was given up is marked, what is newest is there, and another process reads the same.
        let found = read_all(&run, Stream::Stdout).await;
        let most = 2 * SEGMENTS_MAX + memory::RECENT_PIECES_MAX + 2;
        assert!(found.len() <= most, "{}", found.len());
        assert_eq!(found[0], (0, 1, None));
        assert_eq!(found[1].2, Some(GapReason::Limit));
        assert_eq!(found.last(), Some(&(end - 1, end, None)));
        assert!(found.windows(2).all(|pair| pair[0].1 == pair[1].0));
        let reborn = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = reborn.run(id(1)).unwrap();
        assert_eq!(run.stored(Stream::Stdout), end);
        let again = read_all(&run, Stream::Stdout).await;
        let bytes = |found: &[(u64, u64, Option<GapReason>)]| {
            let bytes = found.iter().filter(|part| part.2.is_none());
            bytes.copied().collect::<Vec<_>>()
        };
        assert_eq!(bytes(&again), bytes(&found));
    }

    #[tokio::test]
    async fn past_the_total_limit_it_is_told_and_each_run_keeps_less() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let mut over = outputs.over_limit();
        for number in 0..4 {
            let run = outputs.run(id(number)).unwrap();
            for _ in 0..9 {
                append(&run, Stream::Stdout, 60 * KIB);
                run.written().await;
            }
            finish(&run).await;
        }
        assert!(*over.borrow_and_update());
        let run = outputs.run(id(9)).unwrap();
        for _ in 0..20 {
            append(&run, Stream::Stdout, 60 * KIB);
            run.written().await;
        }
        let found = read_all(&run, Stream::Stdout).await;
        assert_eq!(found[1].2, Some(GapReason::Limit));
        drop(run);
        for number in [0, 1, 2, 3] {
            outputs.remove(id(number)).unwrap();
        }
        assert!(!*over.borrow_and_update());
    }

    #[tokio::test]
    async fn a_reader_that_lags_gets_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), OutputLimits::default()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        let mut offset = 0;
        for round in 0..40 {
            append(&run, Stream::Stdout, 60 * KIB);
            run.written().await;
            if round % 10 == 0 {
                offset = read_up_to_now(&run, offset).await;
            }
        }
        run.finish(Totals {
            stdout: run.end(Stream::Stdout),
            stderr: 0,
        });
        assert_eq!(read_up_to_now(&run, offset).await, run.end(Stream::Stdout));
    }

    async fn read_up_to_now(run: &RunOutput, mut offset: u64) -> u64 {
        loop {
            match run.read(Stream::Stdout, offset, 30_000).await.unwrap() {
                OutputRead::Bytes(read) => {
                    assert_eq!(read, bytes(offset, read.len()));
                    offset += read.len() as u64;
                }
                OutputRead::Gap { .. } => panic!("there is no gap"),
                OutputRead::Wait | OutputRead::End => return offset,
            }
        }
    }

    #[tokio::test]
    async fn a_reader_at_the_end_is_woken_by_bytes_and_by_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        let read = run.read_or_wait(Stream::Stdout, 0, 99);
        let (read, ()) = tokio::join!(read, async { append(&run, Stream::Stdout, 5) });
        assert_eq!(read.unwrap(), OutputRead::Bytes(bytes(0, 5)));
        let read = run.read_or_wait(Stream::Stdout, 5, 99);
        let finish = async {
            run.finish(Totals {
                stdout: 5,
                stderr: 0,
            });
        };
        let (read, ()) = tokio::join!(read, finish);
        assert_eq!(read.unwrap(), OutputRead::End);
    }

    #[tokio::test]
    async fn what_no_window_allows_is_refused_and_nothing_is_acknowledged_unwritten() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        // A plain file where the run's directory belongs: nothing can be written, as on a full disk.
        let below = dir.path().join("outputs").join(id(1).to_string());
        std::fs::write(&below, "").unwrap();
        let chunk = 60 * KIB;
        let mut refused = None;
        for _ in 0..1000 {
            let end = run.end(Stream::Stdout);
            if let Err(error) = run.append(Stream::Stdout, end, bytes(end, chunk)) {
                refused = Some(error);
                break;
            }
        }
        assert!(
            matches!(refused, Some(OutputError::Overrun { .. })),
            "{refused:?}"
        );
        let mut trouble = outputs.trouble();
        trouble.wait_for(Option::is_some).await.unwrap();
        assert!(run.stored(Stream::Stdout) <= 64 * KIB as u64);
        // The trouble passes: everything is there, in order, once.
        std::fs::remove_file(&below).unwrap();
        run.written().await;
        trouble.wait_for(Option::is_none).await.unwrap();
        run.synced().await.unwrap();
        assert_eq!(run.stored(Stream::Stdout), run.end(Stream::Stdout));
    }

    #[tokio::test]
    async fn gaps_that_wait_for_the_disk_have_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        let below = dir.path().join("outputs").join(id(1).to_string());
        std::fs::write(&below, "").unwrap();
        let gap = |at| run.gap(Stream::Stdout, at, at + 1, GapReason::Freed);
        let bound = (0..WAITING_MAX as u64).find_map(|at| gap(at).err());
        assert!(
            matches!(bound, Some(OutputError::Overrun { .. })),
            "{bound:?}"
        );
        std::fs::remove_file(&below).unwrap();
        run.written().await;
        gap(run.end(Stream::Stdout)).unwrap();
    }

    #[tokio::test]
    async fn a_gap_that_waits_for_the_disk_is_no_memory_however_long_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        let below = dir.path().join("outputs").join(id(1).to_string());
        std::fs::write(&below, "").unwrap();
        let gap = 3 * WAITING_MAX as u64;
        run.gap(Stream::Stdout, 0, gap, GapReason::Freed).unwrap();
        append(&run, Stream::Stdout, 60 * KIB);
        append(&run, Stream::Stdout, 60 * KIB);
        std::fs::remove_file(&below).unwrap();
        run.written().await;
        // It is counted once.
        append(&run, Stream::Stdout, 60 * KIB);
        run.written().await;
        let end = run.end(Stream::Stdout);
        assert_eq!(
            read_all(&run, Stream::Stdout).await,
            [(0, gap, Some(GapReason::Freed)), (gap, end, None)]
        );
    }

    #[tokio::test]
    async fn what_one_stream_has_got_is_told_although_the_other_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        let below = dir.path().join("outputs").join(id(1).to_string());
        std::fs::create_dir_all(files::segment(&below, Stream::Stderr, 0)).unwrap();
        // The thread that writes has no turn: it is taken here.
        run.schedule();
        let bell = Arc::new(Notify::new());
        run.wake(Arc::clone(&bell));
        for stream in Stream::BOTH {
            append(&run, stream, 60 * KIB);
            append(&run, stream, 60 * KIB);
        }
        run.write_some().unwrap_err();
        let told = *run.subscribe().borrow();
        assert_eq!(told.stored, [120, 60].map(|kib| kib * KIB as u64));
        bell.notified().await;
    }

    #[tokio::test]
    async fn a_gap_behind_a_line_that_was_torn_has_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("outputs").join(id(1).to_string());
        std::fs::create_dir_all(&below).unwrap();
        let torn = "out 0 9 disk_fu";
        std::fs::write(below.join(files::GAPS), torn).unwrap();
        let outputs = Outputs::open(dir.path(), None, limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        run.gap(Stream::Stdout, 0, 9, GapReason::DiskFull).unwrap();
        run.written().await;
        run.gap(Stream::Stdout, 9, 12, GapReason::Freed).unwrap();
        run.written().await;
        drop(run);
        let reborn = Outputs::open(dir.path(), None, limits()).unwrap();
        assert_eq!(
            read_all(&reborn.run(id(1)).unwrap(), Stream::Stdout).await,
            [
                (0, 9, Some(GapReason::DiskFull)),
                (9, 12, Some(GapReason::Freed))
            ]
        );
    }

    #[tokio::test]
    async fn a_death_in_the_middle_of_making_room_was_no_power_cut() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let run = outputs.run(id(1)).unwrap();
        for _ in 0..8 {
            append(&run, Stream::Stdout, 60 * KIB);
            run.written().await;
        }
        finish(&run).await;
        let totals = run.totals();
        drop(run);
        // Some of its files are gone, others are not.
        let files = dir.path().join("outputs").join(id(1).to_string());
        std::fs::remove_file(files::segment(&files, Stream::Stdout, 0)).unwrap();
        let freed = EndedOutput {
            totals,
            freed: true,
            ..EndedOutput::default()
        };
        let run = outputs.ended(id(1), &freed).await.unwrap();
        assert_eq!(
            read_all(&run, Stream::Stdout).await,
            [(0, totals.stdout, Some(GapReason::Limit))]
        );
    }

    #[tokio::test]
    async fn output_that_was_deleted_to_make_room_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let freed = EndedOutput {
            totals: Totals {
                stdout: 99,
                stderr: 0,
            },
            freed: true,
            ..EndedOutput::default()
        };
        let run = outputs.ended(id(1), &freed).await.unwrap();
        let gap = (0, 99, Some(GapReason::Limit));
        assert_eq!(read_all(&run, Stream::Stdout).await, [gap]);
        assert_eq!(read_all(&run, Stream::Stderr).await, []);
    }

    #[tokio::test]
    async fn two_who_ask_for_one_run_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path(), Some(boot(1)), limits()).unwrap();
        let one = outputs.run(id(1)).unwrap();
        assert!(Arc::ptr_eq(&one, &outputs.run(id(1)).unwrap()));
    }
}
