//! One run: its child from the spawn to the ending, between the pure machines and the system.
//!
//! The outbox and the stdin receiver decide; this hands them what the child does and starts what
//! they ask for. How a child is brought to its end stands in [`super::ending`].

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::AbortHandle;
use moltis_proto::key::Digest;
use moltis_proto::message::Windows;
use moltis_proto::run::outbox::{Outbox, SpoolDone};
use moltis_proto::run::stdin::{StdinReceiver, StdinWrite};
use moltis_proto::run::{Ending, GapReason, RunState, RunSummary, Stream, TtySize};
use moltis_proto::{JournalId, RunId};
use tokio::sync::Notify;

use super::ending::Life;
use super::ops::Ops;
use super::pipes::{Sink, Source, Terminal};
use super::spawn::{Plan, Spawned};
use super::spool::Spool;

/// A run that is not forgotten.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: RunId,
    pub(super) digest: Digest,
    pub(super) journal: JournalId,
    pub(super) outbox: Outbox,
    pub(super) stdin: StdinReceiver,
    /// The child, while it lives or its output is awaited.
    pub(super) life: Option<Box<Life>>,
    /// Absent while the disk has it.
    spools: [Option<Spool>; 2],
    spooled: bool,
    lanes: [Lane; 2],
    sink: SinkState,
    terminal: Option<Terminal>,
    /// When the keeper has noted to come back.
    pub(super) timer: Option<Instant>,
    /// Waits to be settled.
    pub(super) is_dirty: bool,
    /// What the keeper has counted of its memory.
    pub(super) memory_bytes: u64,
    /// And of its spools.
    pub(super) spools_bytes: u64,
}

/// Our end of one output.
#[derive(Debug)]
struct Lane {
    state: LaneState,
    /// The child has ended, and only so many bytes are still its own.
    left: Option<u64>,
    /// Rung while the source is read and wanted back.
    called_back: Arc<Notify>,
}

#[derive(Debug)]
enum LaneState {
    Idle(Source),
    Reading,
    Closed,
}

#[derive(Debug)]
enum SinkState {
    Idle(Sink),
    Writing(AbortHandle),
    Closed,
}

impl Run {
    /// A run whose child was just spawned.
    pub(super) fn started(
        (id, digest, journal): (RunId, Digest, JournalId),
        (plan, spawned): (&Plan, Spawned),
        (outbox, stdin): (Outbox, StdinReceiver),
        spools: [Spool; 2],
        (ops, now): (&mut Ops, Instant),
    ) -> Self {
        ops.wait_for_exit(id, spawned.child.exit());
        let lane = |source: Option<Source>| Lane {
            state: source.map_or(LaneState::Closed, LaneState::Idle),
            left: None,
            called_back: Arc::default(),
        };
        let is_terminal = spawned.terminal.is_some();
        Self {
            id,
            digest,
            journal,
            outbox,
            stdin,
            life: Some(Box::new(Life::new(spawned.child, is_terminal, plan, now))),
            spools: spools.map(Some),
            spooled: false,
            lanes: [lane(Some(spawned.stdout)), lane(spawned.stderr)],
            sink: spawned.stdin.map_or(SinkState::Closed, SinkState::Idle),
            terminal: spawned.terminal,
            timer: None,
            is_dirty: false,
            memory_bytes: 0,
            spools_bytes: 0,
        }
    }

    /// A run that is over: it never started, or its keeper died.
    pub(super) fn over(
        (id, digest, journal): (RunId, Digest, JournalId),
        outbox: Outbox,
        spools: [Spool; 2],
    ) -> Self {
        let closed = || Lane {
            state: LaneState::Closed,
            left: None,
            called_back: Arc::default(),
        };
        Self {
            id,
            digest,
            journal,
            outbox,
            stdin: StdinReceiver::closed(),
            life: None,
            spools: spools.map(Some),
            spooled: true,
            lanes: [closed(), closed()],
            sink: SinkState::Closed,
            terminal: None,
            timer: None,
            is_dirty: false,
            memory_bytes: 0,
            spools_bytes: 0,
        }
    }

    pub(super) fn summary(&self) -> RunSummary {
        RunSummary {
            run_id: self.id,
            digest: self.digest,
            journal_id: self.journal,
            state: match &self.life {
                Some(life) => RunState::Running { pid: life.pid() },
                None => RunState::Ended,
            },
            totals: self.outbox.totals(),
            stdin: self.stdin.taken(),
        }
    }

    pub(super) fn take_windows(&mut self, windows: &Windows) {
        self.stdin.set_window(windows.stdin_bytes);
    }

    pub(super) fn resize(&self, size: TtySize) {
        if let Some(terminal) = &self.terminal {
            terminal.resize(size);
        }
    }

    /// Starts whatever the machines ask for. `may_read` is false while the keeper as a whole holds
    /// too much in memory and this run has its share.
    pub(super) fn settle(&mut self, may_read: bool, ops: &mut Ops) {
        for stream in Stream::BOTH {
            if may_read {
                self.read_on(stream, ops);
            }
            let spool = &mut self.spools[stream.index()];
            if spool.is_some()
                && let Some(op) = self.outbox.poll_spool(stream)
                && let Some(spool) = spool.take()
            {
                self.spooled = true;
                ops.spool(self.id, stream, spool, op);
            }
        }
        self.write_on(ops);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let life = self.life.as_ref().and_then(|life| life.poll_timeout());
        [self.outbox.poll_timeout(), life]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn handle_read(
        &mut self,
        stream: Stream,
        source: Source,
        read: Option<io::Result<Bytes>>,
        now: Instant,
    ) {
        let lane = &mut self.lanes[stream.index()];
        match read {
            None => {
                lane.state = LaneState::Idle(source);
                self.expect_no_more(stream);
            }
            Some(Ok(bytes)) if !bytes.is_empty() => {
                let is_done = lane.left.as_mut().is_some_and(|left| {
                    *left = left.saturating_sub(bytes.len() as u64);
                    *left == 0 || source.waiting_bytes_max() == 0
                });
                lane.state = LaneState::Idle(source);
                self.outbox.handle_output(stream, bytes, now);
                if is_done {
                    self.close_lane(stream);
                }
            }
            // A descriptor that fails is as good as closed.
            Some(Ok(_) | Err(_)) => self.close_lane(stream),
        }
    }

    pub(super) fn handle_wrote(&mut self, sink: Sink, written: &io::Result<usize>) {
        if let Ok(bytes) = written {
            self.stdin.handle_taken(*bytes);
            self.sink = SinkState::Idle(sink);
        } else {
            // The child has closed its end.
            self.close_sink();
        }
    }

    pub(super) fn close_sink(&mut self) {
        if let SinkState::Writing(handle) = &self.sink {
            handle.abort();
        }
        self.sink = SinkState::Closed;
        self.stdin.handle_closed();
    }

    pub(super) fn handle_spooled(
        &mut self,
        stream: Stream,
        spool: Spool,
        done: Result<SpoolDone, GapReason>,
        now: Instant,
    ) {
        self.spools[stream.index()] = Some(spool);
        self.outbox.handle_spool(stream, done, now);
    }

    /// Whoever outlives the child and holds its outputs open has had its time: what waits in them is
    /// the last that is read.
    pub(super) fn stop_waiting_for_output(&mut self) {
        for stream in Stream::BOTH {
            let lane = &mut self.lanes[stream.index()];
            match lane.state {
                LaneState::Closed => {}
                // There may be something by now that the read has not come to.
                LaneState::Reading => lane.called_back.notify_one(),
                LaneState::Idle(_) => self.expect_no_more(stream),
            }
        }
    }

    /// What waits in an output that nobody reads is the last that is taken of it.
    fn expect_no_more(&mut self, stream: Stream) {
        let lane = &mut self.lanes[stream.index()];
        let LaneState::Idle(source) = &lane.state else {
            return;
        };
        // It may be that only we have not read to its end.
        if source.is_held_open()
            && let Some(life) = &mut self.life
        {
            life.note_held_open();
        }
        match source.waiting_bytes_max() {
            0 => self.close_lane(stream),
            waiting => {
                lane.left.get_or_insert(waiting);
            }
        }
    }

    /// Returns whether nothing of the child's output can come any more.
    pub(super) fn is_output_complete(&self) -> bool {
        let mut lanes = self.lanes.iter();
        lanes.all(|lane| matches!(lane.state, LaneState::Closed))
    }

    /// The child is gone and its output complete.
    pub(super) fn finish(&mut self, ending: Ending) {
        self.close_sink();
        self.terminal = None;
        self.life = None;
        self.outbox.finish(ending);
    }

    /// Returns whether the disk is at work for this run.
    pub(super) fn is_spooling(&self) -> bool {
        self.spools.iter().any(Option::is_none)
    }

    /// Returns the spools to delete; one that the disk has comes back later.
    pub(super) fn into_spools(self) -> Vec<Spool> {
        let spools = self.spools.into_iter().flatten();
        spools.filter(|_| self.spooled).collect()
    }

    fn read_on(&mut self, stream: Stream, ops: &mut Ops) {
        let lane = &mut self.lanes[stream.index()];
        if !matches!(lane.state, LaneState::Idle(_)) {
            return;
        }
        let Some(max) = self.outbox.may_read(stream) else {
            return;
        };
        let max = max.min(lane.left.unwrap_or(max));
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let state = std::mem::replace(&mut lane.state, LaneState::Closed);
        if let LaneState::Idle(source) = state {
            lane.state = LaneState::Reading;
            let called_back = Arc::clone(&lane.called_back);
            ops.read(self.id, stream, source, max, called_back);
        }
    }

    fn write_on(&mut self, ops: &mut Ops) {
        if !matches!(self.sink, SinkState::Idle(_)) {
            return;
        }
        let Some(write) = self.stdin.poll_write() else {
            return;
        };
        let state = std::mem::replace(&mut self.sink, SinkState::Closed);
        if let SinkState::Idle(sink) = state {
            self.sink = SinkState::Writing(match write {
                StdinWrite::Bytes(bytes) => ops.write(self.id, sink, bytes),
                StdinWrite::Close => ops.close(self.id, sink),
            });
        }
    }

    fn close_lane(&mut self, stream: Stream) {
        self.lanes[stream.index()].state = LaneState::Closed;
        self.outbox.handle_eof(stream);
    }
}
