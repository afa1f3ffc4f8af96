//! One stream of a run's output: what of it is where, and what may happen next.
//!
//! In memory first. When the memory is full and the reader of the connection is gone or makes no
//! progress, the whole stretch goes to the spool file, new bytes behind it, and memory becomes a
//! window on the file; once everything fits memory again the file is emptied.

use std::time::Instant;

use bytes::Bytes;

use super::held::{Found, Held};
use super::ring::{Lies, SpoolHeader};
use super::{OutboxLimits, SpoolDone, SpoolOp};
use crate::run::GapReason;

/// Bytes read from a spool at once.
const READ_BYTES: u64 = 256 * 1024;
/// Room below this is no room: nobody reads three bytes.
const ROOM_BYTES_MIN: u64 = 16 * 1024;

/// What a lane sends next.
#[derive(Debug)]
pub(super) enum Next {
    Output {
        offset: u64,
        bytes: Bytes,
    },
    Gap {
        from: u64,
        to: u64,
        reason: GapReason,
    },
}

#[derive(Debug)]
pub(super) struct Lane {
    limits: OutboxLimits,
    /// First offset that is still held, in memory or in the spool.
    start: u64,
    /// Everything below is stored by the gateway.
    acked: u64,
    /// This connection's acknowledgements begin here.
    base: u64,
    /// Next offset to send.
    sent: u64,
    /// The highest offset ever sent: an acknowledgement above it is a lie.
    pub(super) sent_high: u64,
    /// Everything the command wrote so far.
    end: u64,
    /// The end is only what is known of it: the keeper that read the rest died.
    end_is_open: bool,
    /// Bytes sent on this connection and not acknowledged.
    under_way: u64,
    held: Held,
    /// Present while the stream lies in its file.
    spool: Option<Spool>,
    /// The spool failed; no other attempt before the reader has caught up.
    no_spool: Option<GapReason>,
    /// The disk has room for more of the spool than it takes now.
    pub(super) may_grow: bool,
    /// Memory takes little while nobody follows.
    pub(super) is_short: bool,
    /// What the driver shall do with the file next, and what it is doing.
    due: Option<(SpoolOp, Busy)>,
    busy: Option<Busy>,
    following: bool,
    stalled: bool,
    full_since: Option<Instant>,
    eof: bool,
}

#[derive(Debug)]
struct Spool {
    header: SpoolHeader,
    /// Bytes behind the file that wait for the write under way.
    backlog: Held,
    /// The file takes no more: what does not fit the backlog is gone.
    tail: Option<GapReason>,
}

#[derive(Debug)]
enum Busy {
    /// The whole stretch goes to the file; memory keeps it until it is there.
    Entering,
    /// More goes to the file; what a failure leaves behind stands here.
    Writing {
        fallback: SpoolHeader,
        pieces: Vec<Bytes>,
    },
    Reading {
        from: u64,
        length: u64,
    },
    Clearing,
}

impl Lane {
    pub(super) fn new(limits: OutboxLimits) -> Self {
        Self {
            limits,
            start: 0,
            acked: 0,
            base: 0,
            sent: 0,
            sent_high: 0,
            end: 0,
            end_is_open: false,
            under_way: 0,
            held: Held::new(0),
            spool: None,
            no_spool: None,
            may_grow: true,
            is_short: false,
            due: None,
            busy: None,
            following: false,
            stalled: false,
            full_since: None,
            eof: false,
        }
    }

    /// A stream whose keeper died: its spool, and its length where the journal has it.
    pub(super) fn recovered(
        limits: OutboxLimits,
        header: Option<SpoolHeader>,
        total: Option<u64>,
    ) -> Self {
        let header = header.unwrap_or_else(|| SpoolHeader::new(0, 0, 1));
        let end = header.to.max(total.unwrap_or(0));
        Self {
            start: header.base,
            acked: header.base,
            base: header.base,
            sent: header.base,
            sent_high: end,
            end,
            end_is_open: total.is_none(),
            held: Held::new(header.base),
            spool: Some(Spool {
                header,
                backlog: Held::new(header.to),
                tail: Some(GapReason::KeeperDied),
            }),
            eof: true,
            ..Self::new(limits)
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn under_way(&self) -> u64 {
        self.under_way
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let backlog = self.spool.as_ref().map_or(0, |spool| spool.backlog.bytes());
        self.held.bytes() + backlog
    }

    /// Returns the bytes of its spool file.
    pub(super) fn spool_bytes(&self) -> u64 {
        self.spool.as_ref().map_or(0, |spool| spool.header.length())
    }

    /// Returns whether this offset can be resumed from.
    pub(super) fn has_reached(&self, offset: u64) -> bool {
        offset <= self.end || self.end_is_open
    }

    /// Returns whether everything so far was sent on this connection.
    pub(super) fn is_all_sent(&self) -> bool {
        self.following && self.sent == self.end
    }

    pub(super) fn is_at_eof(&self) -> bool {
        self.eof
    }

    // What the child does.

    pub(super) fn push(&mut self, bytes: Bytes, now: Instant) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len() as u64;
        self.end += length;
        let drops = !self.following && self.room() == 0 && !self.can_spool();
        match &mut self.spool {
            None if drops => {
                // Where nothing failed, there is no room, or an earlier gap keeps it from its file.
                let before = self.held.last_gap().map(|(_, reason)| reason);
                let reason = self.no_spool.or(before).unwrap_or(GapReason::Limit);
                self.held.push_gap(self.end, reason);
            }
            None => self.held.push(bytes),
            Some(spool) if spool.tail.is_some() && !self.following => {}
            Some(spool) => spool.backlog.push(bytes),
        }
        self.settle(now);
    }

    pub(super) fn eof(&mut self) {
        self.eof = true;
    }

    /// Returns how many bytes the driver may read from the child now; `None` to let it wait.
    pub(super) fn may_read(&self) -> Option<u64> {
        if self.eof {
            return None;
        }
        let waits = self.following && !self.stalled;
        let Some(spool) = &self.spool else {
            return match self.room() {
                0 if self.following || self.can_spool() => None,
                0 => Some(READ_BYTES),
                room => Some(room),
            };
        };
        let writing = (!spool.backlog_is_empty() && spool.tail.is_none())
            || self.is_entering()
            || matches!(self.due, Some((SpoolOp::Write { .. }, _)))
            || matches!(self.busy, Some(Busy::Writing { .. }));
        if writing || waits || (self.following && spool.tail.is_some()) {
            return None;
        }
        if !self.following {
            return Some(READ_BYTES);
        }
        let room = spool.header.room(self.start);
        (room >= self.room_min()).then_some(room)
    }

    // What the client does.

    pub(super) fn follow(&mut self, from: u64, now: Instant) {
        if from > self.end {
            self.end = from;
        }
        self.acked = self.acked.max(from);
        self.base = from;
        self.sent = from;
        self.sent_high = self.sent_high.max(from);
        self.under_way = 0;
        self.following = true;
        self.no_spool = None;
        self.advance_start();
        if self.spool.is_some() && !self.is_entering() {
            self.held.clear_to(self.start);
        }
        self.mark_progress(now);
        self.settle(now);
    }

    pub(super) fn detach(&mut self, now: Instant) {
        self.following = false;
        self.stalled = false;
        self.full_since = None;
        self.under_way = 0;
        self.settle(now);
    }

    /// Takes an acknowledgement, at most `sent_high`.
    pub(super) fn ack(&mut self, offset: u64, now: Instant) {
        if offset <= self.base || !self.following {
            return;
        }
        let stored = self.held.bytes_between(self.base, offset.min(self.sent));
        self.under_way = self.under_way.saturating_sub(stored);
        self.base = offset;
        self.sent = self.sent.max(offset);
        self.acked = self.acked.max(offset);
        self.advance_start();
        self.mark_progress(now);
        self.settle(now);
    }

    // What to do now.

    /// Returns the next thing to send, at most `max` bytes; `None` when there is nothing, or
    /// nothing that fits.
    pub(super) fn transmit(&mut self, max: usize, now: Instant) -> Option<Next> {
        if !self.following {
            return None;
        }
        let from = self.sent;
        let next = if from < self.start {
            self.sent = self.start;
            self.base = self.start;
            Next::Gap {
                from,
                to: self.start,
                reason: GapReason::Freed,
            }
        } else {
            match self.held.get(from, max)? {
                Found::Bytes(bytes) => {
                    self.sent += bytes.len() as u64;
                    self.under_way += bytes.len() as u64;
                    Next::Output {
                        offset: from,
                        bytes,
                    }
                }
                Found::Gap { to, reason } => {
                    self.sent = to;
                    Next::Gap { from, to, reason }
                }
            }
        };
        self.sent_high = self.sent_high.max(self.sent);
        self.settle(now);
        Some(next)
    }

    /// Returns whether something waits to be sent, were there credit.
    pub(super) fn has_more(&self) -> bool {
        self.following && (self.sent < self.start || self.sent < self.held.to())
    }

    /// Returns whether the next thing to send needs no credit.
    pub(super) fn next_is_gap(&self) -> bool {
        self.following
            && (self.sent < self.start
                || matches!(self.held.get(self.sent, 1), Some(Found::Gap { .. })))
    }

    pub(super) fn poll_spool(&mut self) -> Option<SpoolOp> {
        if self.busy.is_some() {
            return None;
        }
        let (op, busy) = self.due.take()?;
        self.busy = Some(busy);
        Some(op)
    }

    pub(super) fn handle_spool(&mut self, result: Result<SpoolDone, GapReason>, now: Instant) {
        match (self.busy.take(), result) {
            (Some(Busy::Entering), Err(reason)) => self.stay(reason),
            (Some(Busy::Writing { fallback, pieces }), Err(reason)) => {
                if let Some(spool) = &mut self.spool {
                    spool.give_up(fallback, pieces, reason);
                }
            }
            (Some(Busy::Reading { from, length }), result) => {
                if self.following && self.held.to() == from {
                    match result {
                        Ok(SpoolDone::Read(bytes))
                            if !bytes.is_empty() && bytes.len() as u64 <= length =>
                        {
                            self.held.push(bytes);
                        }
                        Ok(SpoolDone::Gone { length: n, reason }) if n > 0 => {
                            self.held.push_gap(from + n.min(length), reason);
                        }
                        Ok(_) => self.held.push_gap(from + length, GapReason::DiskFailed),
                        Err(reason) => self.held.push_gap(from + length, reason),
                    }
                }
            }
            (Some(Busy::Entering | Busy::Writing { .. }), Ok(_))
            | (Some(Busy::Clearing) | None, _) => {}
        }
        self.settle(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waits = self.following && !self.stalled && !self.eof;
        waits
            .then_some(self.full_since?)
            .map(|since| since + self.limits.spool_after)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.stalled = true;
            self.settle(now);
        }
    }

    /// Puts the stream into its spool, so that it needs no memory while nobody follows.
    pub(super) fn spill(&mut self, now: Instant) {
        let idle = self.due.is_none() && self.busy.is_none() && self.spool.is_none();
        if idle && !self.following && self.held.bytes() > 0 && self.can_spool() {
            self.enter();
        }
        self.settle(now);
    }

    // Decisions.

    /// Decides what the state asks for, after whatever has happened.
    fn settle(&mut self, now: Instant) {
        self.note_fullness(now);
        while self.due.is_none() && self.busy.is_none() {
            let went_on = match &self.spool {
                None => self.settle_memory(),
                Some(_) => self.settle_spool(),
            };
            if !went_on {
                break;
            }
        }
        self.note_fullness(now);
    }

    fn settle_memory(&mut self) -> bool {
        let must = self.room() == 0 && (!self.following || self.stalled);
        if must && !self.eof && self.can_spool() {
            self.enter();
        }
        false
    }

    /// Returns whether it moved and there may be more to decide.
    fn settle_spool(&mut self) -> bool {
        let room = self.room();
        let Some(spool) = &mut self.spool else {
            return false;
        };
        if !spool.backlog_is_empty() && spool.tail.is_none() {
            let pieces = spool.backlog.share();
            if !self.may_grow {
                let mut short = spool.header;
                short.stop_growing(self.limits.kept_below_ack_bytes);
                // What a client that follows has yet to get is never overwritten.
                if !self.following || short.room(self.start) >= spool.backlog.bytes() {
                    spool.header = short;
                }
            }
            let old = spool.header;
            let written = spool.header.append(pieces.clone());
            spool.backlog.clear_to(spool.header.to);
            let fallback = SpoolHeader {
                from: written.after.from.min(old.to).max(old.from),
                ..old
            };
            self.due = Some((written.into(), Busy::Writing { fallback, pieces }));
            return false;
        }
        if !self.following {
            if self.held.bytes() > 0 || self.held.has_gap() {
                self.held.clear_to(self.start);
            }
            return false;
        }
        let at = self.held.to();
        if at == self.end && room == 0 {
            return false;
        }
        if at == self.end {
            self.spool = None;
            self.stalled = false;
            self.due = Some((SpoolOp::Clear, Busy::Clearing));
            return false;
        }
        match spool.header.at(at) {
            Lies::At { position, length } => {
                let length = length.min(READ_BYTES).min(room);
                if length > 0 {
                    let op = SpoolOp::Read { position, length };
                    self.due = Some((op, Busy::Reading { from: at, length }));
                }
                false
            }
            Lies::Gone { to } => {
                self.held.push_gap(to, GapReason::Limit);
                true
            }
            Lies::End => {
                let Some(reason) = spool.tail else {
                    return false;
                };
                for bytes in spool.backlog.share() {
                    self.held.push(bytes);
                }
                spool.backlog.clear_to(self.end);
                if self.held.to() < self.end {
                    self.held.push_gap(self.end, reason);
                }
                true
            }
        }
    }

    /// Moves everything held into the file, which has no room for gaps: what lies below one is let go.
    fn enter(&mut self) {
        if let Some((to, _)) = self.held.last_gap() {
            self.start = self.start.max(to);
            self.held.release_below(to);
        }
        let ring_bytes = self
            .limits
            .spool_bytes
            .saturating_sub(self.limits.spool_head_bytes)
            .max(1);
        let mut header =
            SpoolHeader::new(self.held.from(), self.limits.spool_head_bytes, ring_bytes);
        let written = header.append(self.held.share());
        self.spool = Some(Spool {
            header,
            backlog: Held::new(header.to),
            tail: None,
        });
        self.due = Some((written.into(), Busy::Entering));
    }

    /// The file could not be written at all: memory still has everything, and must do.
    fn stay(&mut self, reason: GapReason) {
        self.no_spool = Some(reason);
        if let Some(mut spool) = self.spool.take() {
            for bytes in spool.backlog.share() {
                if self.following {
                    self.held.push(bytes);
                }
            }
            if self.held.to() < self.end {
                self.held.push_gap(self.end, reason);
            }
        }
        self.due = Some((SpoolOp::Clear, Busy::Clearing));
    }

    fn is_entering(&self) -> bool {
        matches!(self.due, Some((_, Busy::Entering))) || matches!(self.busy, Some(Busy::Entering))
    }

    /// A gap that the client has heard of, and acknowledged, is in nobody's way.
    fn can_spool(&self) -> bool {
        let heard = if self.following {
            self.acked.min(self.base)
        } else {
            self.acked
        };
        let has_gap = self.held.last_gap().is_some_and(|(to, _)| to > heard);
        self.no_spool.is_none() && self.may_grow && !has_gap && self.limits.spool_bytes > 0
    }

    fn advance_start(&mut self) {
        let keep = self.acked.saturating_sub(self.limits.kept_below_ack_bytes);
        self.start = self.start.max(keep);
        if self.spool.is_some() && self.held.to() < self.start {
            self.held.clear_to(self.start);
        }
        self.held.release_below(self.start);
    }

    fn mark_progress(&mut self, now: Instant) {
        self.stalled = false;
        self.full_since = None;
        if self.held.bytes_between(self.base, self.held.to()) == 0 && self.spool.is_none() {
            self.no_spool = None;
        }
        self.note_fullness(now);
    }

    fn note_fullness(&mut self, now: Instant) {
        if self.spool.is_none() && self.room() > 0 {
            self.full_since = None;
        } else if self.full_since.is_none() && self.following {
            self.full_since = Some(now);
        }
    }

    /// Bytes that memory takes beside what it has; 0 when it is not worth reading.
    fn room(&self) -> u64 {
        let kept = self.acked.saturating_sub(self.held.from());
        let mut limit = self.limits.memory_bytes;
        if self.is_short && !self.following {
            limit = limit.min(self.limits.kept_below_ack_bytes);
        }
        limit += kept.min(self.held.bytes());
        let room = limit.saturating_sub(self.held.bytes());
        if room >= self.room_min() { room } else { 0 }
    }

    fn room_min(&self) -> u64 {
        ROOM_BYTES_MIN.min(self.limits.memory_bytes / 4).max(1)
    }
}

impl Spool {
    /// A write failed: the file stays as it was, and what was to be written stays in memory.
    fn give_up(&mut self, fallback: SpoolHeader, pieces: Vec<Bytes>, reason: GapReason) {
        let newer = self.backlog.share();
        self.header = fallback;
        self.backlog.clear_to(fallback.to);
        for bytes in pieces.into_iter().chain(newer) {
            self.backlog.push(bytes);
        }
        self.tail = Some(reason);
    }

    fn backlog_is_empty(&self) -> bool {
        self.backlog.bytes() == 0
    }
}
