//! The outbox of one run: both of its outputs on the node, numbered, until the gateway has them.
//!
//! A pure machine. The keeper that drives it hands it what the child wrote and what the gateway
//! said, asks whether it may read on ([`Outbox::may_read`]), what to send
//! ([`Outbox::poll_transmit`]), what to do with the spool files ([`Outbox::poll_spool`]) and when to
//! come back ([`Outbox::poll_timeout`]). It keeps the order of each stream, marks every byte that is
//! gone as a [`Transmit::Gap`], and lets the ending pass only behind all output.
//!
//! While a client follows and acknowledges, a full memory makes the child wait, as a full pipe
//! does, and nothing is ever dropped. When nobody follows, or the client has made no progress for
//! [`OutboxLimits::spool_after`], output goes on into the spool; when that is full too, a followed
//! child waits, and for one that nobody follows the middle is dropped. How much all runs of a node
//! have in memory and in their spools is its keeper's to count ([`Outbox::memory_bytes`],
//! [`Outbox::spool_bytes`], [`Outbox::let_memory_grow`], [`Outbox::let_spools_grow`]).
//!
//! What it is not: the share of a connection among runs, which is [`super::turn`].

mod held;
mod lane;
mod ring;

use std::time::{Duration, Instant};

use bytes::Bytes;

use self::lane::{Lane, Next};
use crate::message::Windows;
use crate::run::turn::Offer;
use crate::run::{Ending, GapReason, Stream, Totals};
use crate::{FromKeeper, Payload, RunId, limits};

pub use self::ring::SpoolHeader;

/// How much of each stream an outbox keeps, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes in the spool: none, or more than `memory_bytes` and `kept_below_ack_bytes` together.
    pub spool_bytes: u64,
    /// Bytes of the spool's beginning that outlive a full spool.
    pub spool_head_bytes: u64,
    /// Bytes below the acknowledged offset that stay until the run is forgotten.
    pub kept_below_ack_bytes: u64,
    /// How long a client that follows may make no progress until memory gives way to the spool.
    pub spool_after: Duration,
}

impl OutboxLimits {
    /// All in memory: a stream that nobody takes waits when there are so many bytes of it, and while
    /// nobody follows it goes on and leaves a gap, [`GapReason::Limit`].
    pub fn in_memory(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            spool_bytes: 0,
            spool_head_bytes: 0,
            ..Self::default()
        }
    }
}

impl Default for OutboxLimits {
    /// The figures of [`crate::limits`].
    fn default() -> Self {
        Self {
            memory_bytes: limits::OUTBOX_MEMORY_BYTES,
            spool_bytes: limits::SPOOL_BYTES_MAX,
            spool_head_bytes: limits::SPOOL_HEAD_BYTES,
            kept_below_ack_bytes: limits::KEPT_BELOW_ACK_BYTES,
            spool_after: limits::SPOOL_AFTER,
        }
    }
}

/// A client said what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// It acknowledges what was never sent.
    #[error("{stream:?} is acknowledged up to {found}, but only {sent} bytes were ever sent")]
    AckBeyondSent {
        /// The stream.
        stream: Stream,
        /// The acknowledged offset.
        found: u64,
        /// The highest offset that was sent.
        sent: u64,
    },
    /// It resumes behind the end.
    #[error("{stream:?} is resumed at {found}, but ends at {end}")]
    ResumeBeyondEnd {
        /// The stream.
        stream: Stream,
        /// The offset to resume at.
        found: u64,
        /// Everything the command wrote.
        end: u64,
    },
}

/// The next message of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// Bytes, never none.
    Output {
        /// Which stream.
        stream: Stream,
        /// Offset of the first.
        offset: u64,
        /// The bytes, shared with the outbox.
        bytes: Bytes,
    },
    /// Bytes that are gone.
    Gap {
        /// Which stream.
        stream: Stream,
        /// Offset of the first.
        from: u64,
        /// Offset behind the last.
        to: u64,
        /// Why.
        reason: GapReason,
    },
    /// The run is over, and everything above has been sent.
    Ended {
        /// How.
        ending: Ending,
        /// How much it wrote.
        totals: Totals,
    },
}

impl Transmit {
    /// Returns it as the message that it is on the wire.
    pub fn into_message(self, run_id: RunId) -> FromKeeper {
        match self {
            Self::Output {
                stream,
                offset,
                bytes,
            } => FromKeeper::Output {
                run_id,
                stream,
                offset,
                bytes: Payload(bytes),
            },
            Self::Gap {
                stream,
                from,
                to,
                reason,
            } => FromKeeper::Gap {
                run_id,
                stream,
                from,
                to,
                reason,
            },
            Self::Ended { ending, totals } => FromKeeper::Ended {
                run_id,
                ending: Box::new(ending),
                totals,
            },
        }
    }
}

/// What the driver shall do with the spool file of one stream: one thing at a time, answered by
/// [`Outbox::handle_spool`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolOp {
    /// Write the header `before` where there is one, then each part at its position, then the
    /// header `after`. In this order a keeper that dies in between leaves a file that is true.
    Write {
        /// What the file holds while it is written.
        before: Option<SpoolHeader>,
        /// Positions behind the header, and bytes.
        parts: Vec<(u64, Bytes)>,
        /// What it holds then.
        after: SpoolHeader,
    },
    /// Read `length` bytes; where only some of them can be believed, as many of the first as are of
    /// one kind.
    Read {
        /// Position behind the header.
        position: u64,
        /// Bytes.
        length: u64,
    },
    /// Empty the file.
    Clear,
}

/// What the driver did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolDone {
    /// A write, or a clearing.
    Done,
    /// The bytes that were read: all that were wanted, or the first of them.
    Read(Bytes),
    /// The first bytes that were wanted are not there, or not what was written.
    Gone {
        /// So many, at least one.
        length: u64,
        /// Why.
        reason: GapReason,
    },
}

/// What is left of a stream whose keeper died.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The head of its spool file, where there is a sound one.
    pub header: Option<SpoolHeader>,
    /// Everything it wrote, where the journal has it.
    pub total: Option<u64>,
}

/// Both outputs of one run, and its ending.
#[derive(Debug)]
pub struct Outbox {
    lanes: [Lane; 2],
    window_bytes: u64,
    chunk_bytes_max: usize,
    following: bool,
    ending: Option<Ending>,
    ending_sent: bool,
    /// The stream that was served last: the other one comes first.
    last: Stream,
}

impl Outbox {
    /// The outbox of a run that begins now, followed by nobody.
    pub fn new(limits: OutboxLimits) -> Self {
        Self {
            lanes: [Lane::new(limits), Lane::new(limits)],
            window_bytes: 0,
            chunk_bytes_max: 0,
            following: false,
            ending: None,
            ending_sent: false,
            last: Stream::Stderr,
        }
    }

    /// The outbox of a run whose keeper died: `streams` in the order of [`Stream::BOTH`]. What
    /// neither the spools nor the gateway have is a gap.
    pub fn recovered(limits: OutboxLimits, streams: [Recovered; 2], ending: Ending) -> Self {
        Self {
            lanes: streams.map(|stream| Lane::recovered(limits, stream.header, stream.total)),
            ending: Some(ending),
            ..Self::new(limits)
        }
    }

    // What the child does.

    /// The child wrote these bytes.
    pub fn handle_output(&mut self, stream: Stream, bytes: Bytes, now: Instant) {
        self.lanes[stream.index()].push(bytes, now);
    }

    /// The child, and everybody else who could, has closed this stream.
    pub fn handle_eof(&mut self, stream: Stream) {
        self.lanes[stream.index()].eof();
    }

    /// The run is over; nothing is written any more.
    pub fn finish(&mut self, ending: Ending) {
        for lane in &mut self.lanes {
            lane.eof();
        }
        self.ending = Some(ending);
    }

    /// Returns how the run has ended; `None` while it has not.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Returns how many bytes the driver may read from this stream of the child now; `None` means
    /// that the child has to wait.
    pub fn may_read(&self, stream: Stream) -> Option<u64> {
        self.lanes[stream.index()].may_read()
    }

    // What the client does.

    /// The client on whose request the run starts follows it from the first byte.
    pub fn follow(&mut self, windows: &Windows, now: Instant) {
        self.take_windows(windows);
        for lane in &mut self.lanes {
            lane.follow(0, now);
        }
    }

    /// Sends from these offsets on, whatever was sent before. Returns the bytes that are no longer
    /// under way.
    ///
    /// # Errors
    /// [`OutboxError::ResumeBeyondEnd`]; nothing has changed then.
    pub fn handle_resume(
        &mut self,
        windows: &Windows,
        offsets: Totals,
        now: Instant,
    ) -> Result<u64, OutboxError> {
        for stream in Stream::BOTH {
            let (lane, found) = (&self.lanes[stream.index()], offsets.of(stream));
            if !lane.has_reached(found) {
                return Err(OutboxError::ResumeBeyondEnd {
                    stream,
                    found,
                    end: lane.end(),
                });
            }
        }
        let freed = self.under_way();
        self.take_windows(windows);
        for stream in Stream::BOTH {
            self.lanes[stream.index()].follow(offsets.of(stream), now);
        }
        Ok(freed)
    }

    /// Everything below these offsets is stored. Returns the bytes that are no longer under way.
    ///
    /// # Errors
    /// [`OutboxError::AckBeyondSent`]; nothing has changed then.
    pub fn handle_ack(&mut self, offsets: Totals, now: Instant) -> Result<u64, OutboxError> {
        for stream in Stream::BOTH {
            let (lane, found) = (&self.lanes[stream.index()], offsets.of(stream));
            if found > lane.sent_high {
                return Err(OutboxError::AckBeyondSent {
                    stream,
                    found,
                    sent: lane.sent_high,
                });
            }
        }
        let before = self.under_way();
        for stream in Stream::BOTH {
            self.lanes[stream.index()].ack(offsets.of(stream), now);
        }
        Ok(before.saturating_sub(self.under_way()))
    }

    /// The client is gone. Returns the bytes that are no longer under way.
    pub fn handle_detached(&mut self, now: Instant) -> u64 {
        let freed = self.under_way();
        self.following = false;
        for lane in &mut self.lanes {
            lane.detach(now);
        }
        freed
    }

    // What to do now.

    /// Returns the next message, with at most `credit` bytes of output; `None` when there is
    /// nothing to send, or no room for it in the window of the run or in `credit`.
    pub fn poll_transmit(&mut self, credit: usize, now: Instant) -> Option<Transmit> {
        if !self.following {
            return None;
        }
        let window = usize::try_from(self.window_left()).unwrap_or(usize::MAX);
        let max = credit.min(window).min(self.chunk_bytes_max);
        for stream in [other(self.last), self.last] {
            if let Some(next) = self.lanes[stream.index()].transmit(max, now) {
                self.last = stream;
                return Some(match next {
                    Next::Output { offset, bytes } => Transmit::Output {
                        stream,
                        offset,
                        bytes,
                    },
                    Next::Gap { from, to, reason } => Transmit::Gap {
                        stream,
                        from,
                        to,
                        reason,
                    },
                });
            }
        }
        self.poll_ending()
    }

    /// Returns the next message as an offer for [`Turn::poll`](super::turn::Turn::poll).
    pub fn offer(&mut self, credit: usize, now: Instant) -> Offer<Transmit> {
        match self.poll_transmit(credit, now) {
            Some(frame) => Offer::Frame {
                bytes: match &frame {
                    Transmit::Output { bytes, .. } => bytes.len(),
                    Transmit::Gap { .. } | Transmit::Ended { .. } => 0,
                },
                frame,
                more: self.has_transmit(),
            },
            None if self.wants_credit() => Offer::WantsCredit,
            None => Offer::Nothing,
        }
    }

    /// Returns whether only `credit` keeps a message back: with more of it there would be one.
    pub fn wants_credit(&self) -> bool {
        self.following && self.window_left() > 0 && self.lanes.iter().any(Lane::has_more)
    }

    /// Returns whether [`Outbox::poll_transmit`] has a message for anybody with credit.
    pub fn has_transmit(&self) -> bool {
        self.wants_credit() || self.lanes.iter().any(Lane::next_is_gap) || self.ending_is_due()
    }

    /// Returns what to do with the spool file of this stream.
    pub fn poll_spool(&mut self, stream: Stream) -> Option<SpoolOp> {
        self.lanes[stream.index()].poll_spool()
    }

    /// Says whether the spools may grow, which they may until somebody says no. Where not, what is
    /// spooled goes on in the room that it has, in which the newest bytes stay, and what is not
    /// spooled stays out of it.
    pub fn let_spools_grow(&mut self, may_grow: bool) {
        for lane in &mut self.lanes {
            lane.may_grow = may_grow;
        }
    }

    /// Says whether memory may have more than a little while nobody follows, which it may until somebody
    /// says no. What it has already stays; what does not fit goes to the spool, or is dropped.
    pub fn let_memory_grow(&mut self, may_grow: bool) {
        for lane in &mut self.lanes {
            lane.is_short = !may_grow;
        }
    }

    /// The driver did what [`Outbox::poll_spool`] asked, or the disk did not let it.
    pub fn handle_spool(
        &mut self,
        stream: Stream,
        result: Result<SpoolDone, GapReason>,
        now: Instant,
    ) {
        self.lanes[stream.index()].handle_spool(result, now);
    }

    /// Returns when to call [`Outbox::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::poll_timeout).min()
    }

    /// The time of [`Outbox::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        for lane in &mut self.lanes {
            lane.handle_timeout(now);
        }
    }

    /// Moves what nobody follows out of memory, into the spools.
    pub fn spill(&mut self, now: Instant) {
        for lane in &mut self.lanes {
            lane.spill(now);
        }
    }

    // What stands.

    /// Returns how much the command wrote so far.
    pub fn totals(&self) -> Totals {
        let [stdout, stderr] = &self.lanes;
        Totals {
            stdout: stdout.end(),
            stderr: stderr.end(),
        }
    }

    /// Returns the bytes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.lanes.iter().map(Lane::memory_bytes).sum()
    }

    /// Returns the bytes of output in the spool files, as far as they are written or will be next.
    pub fn spool_bytes(&self) -> u64 {
        self.lanes.iter().map(Lane::spool_bytes).sum()
    }

    /// Returns whether a client follows the run on its connection.
    pub fn is_followed(&self) -> bool {
        self.following
    }

    /// Returns whether a client that follows has yet to be sent something, or to acknowledge it.
    pub fn awaits_client(&self) -> bool {
        let is_sent = self.lanes.iter().all(Lane::is_all_sent);
        self.following && (!is_sent || self.under_way() > 0 || self.ending_is_due())
    }

    /// Returns whether both streams are at their end.
    pub fn is_at_eof(&self) -> bool {
        self.lanes.iter().all(Lane::is_at_eof)
    }

    fn take_windows(&mut self, windows: &Windows) {
        self.window_bytes = u64::from(windows.run_bytes);
        self.chunk_bytes_max = windows.chunk_bytes_max as usize;
        self.following = true;
        self.ending_sent = false;
    }

    fn under_way(&self) -> u64 {
        self.lanes.iter().map(Lane::under_way).sum()
    }

    fn window_left(&self) -> u64 {
        self.window_bytes.saturating_sub(self.under_way())
    }

    fn ending_is_due(&self) -> bool {
        self.ending.is_some() && !self.ending_sent && self.lanes.iter().all(Lane::is_all_sent)
    }

    fn poll_ending(&mut self) -> Option<Transmit> {
        if !self.ending_is_due() {
            return None;
        }
        let ending = self.ending.clone()?;
        self.ending_sent = true;
        Some(Transmit::Ended {
            ending,
            totals: self.totals(),
        })
    }
}

fn other(stream: Stream) -> Stream {
    match stream {
        Stream::Stdout => Stream::Stderr,
        Stream::Stderr => Stream::Stdout,
    }
}
