//! What an asker has given for a command's stdin and the node has not taken yet. Pure.
//!
//! Offsets make it possible to go on after any cut: between asker and gateway, between gateway and
//! node. The queue never holds more than a window, except for bytes that came whole with the
//! request and are bounded there.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

/// Why bytes for stdin are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StdinError {
    /// The command has no stdin of ours.
    #[error("the stdin of this run is empty: start it with an open stdin")]
    NotOpen,
    /// Bytes are missing before these.
    #[error("the next byte of stdin is {expected}, but the bytes begin at {found}")]
    Hole {
        /// The next offset.
        expected: u64,
        /// The offset found.
        found: u64,
    },
    /// The gateway has begun anew, and the node has not been back since to say how far the command
    /// has read.
    #[error("where the stdin of this run goes on is not known before its node is back")]
    NotPlaced,
    /// The end of stdin was given already, or the command has closed its end.
    #[error("the stdin of this run is closed")]
    Closed,
}

/// What a node says of stdin that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StdinLie;

/// One piece for the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StdinChunk {
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
    pub(crate) eof: bool,
}

/// How far one connection has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StdinSent {
    offset: u64,
    eof: bool,
}

impl StdinSent {
    /// Begins where the node says that its child's pipe is.
    pub(crate) fn from(offset: u64) -> Self {
        Self { offset, eof: false }
    }
}

/// Stdin of one run.
#[derive(Debug)]
pub(crate) struct StdinQueue {
    /// Offset of the first byte that is kept: what the node has taken.
    base: u64,
    /// Offset behind the last byte that is kept.
    end: u64,
    kept: VecDeque<Bytes>,
    eof: bool,
    closed: bool,
    /// It is known where the command's stdin is: from the start, or since the node said so.
    placed: bool,
    /// Offset behind the last byte that any connection has sent, as far as is known: a node keeps what
    /// an earlier one brought, and its child goes on reading.
    sent_high: u64,
    room: u64,
}

impl StdinQueue {
    /// Returns the empty queue of a run that has taken nothing; it keeps at most `room` bytes.
    pub(crate) fn new(room: u64) -> Self {
        Self {
            base: 0,
            end: 0,
            kept: VecDeque::new(),
            eof: false,
            closed: false,
            placed: true,
            sent_high: 0,
            room,
        }
    }

    /// Returns the queue of a run that an earlier process began: how far its command has read is
    /// known when the node is back.
    pub(crate) fn taken_up(room: u64) -> Self {
        Self {
            placed: false,
            ..Self::new(room)
        }
    }

    /// Takes all of stdin at once; what is known of it is skipped. Returns false where its end is
    /// known.
    pub(crate) fn fill(&mut self, mut bytes: Bytes) -> bool {
        if self.closed || self.eof {
            return false;
        }
        let known = usize::try_from(self.end).unwrap_or(usize::MAX);
        bytes.advance(known.min(bytes.len()));
        if !bytes.is_empty() {
            self.end += bytes.len() as u64;
            self.kept.push_back(bytes);
        }
        self.eof = true;
        true
    }

    /// Takes what there is room for, and returns the offset behind it; `None` while it is not known
    /// where the command's stdin is. `eof` holds only when all was taken.
    pub(crate) fn offer(
        &mut self,
        offset: u64,
        mut bytes: Bytes,
        eof: bool,
    ) -> Result<Option<u64>, StdinError> {
        if self.closed {
            return Err(StdinError::Closed);
        }
        if !self.placed {
            return Ok(None);
        }
        if offset > self.end {
            return Err(StdinError::Hole {
                expected: self.end,
                found: offset,
            });
        }
        let known = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
        let fresh = bytes.len().saturating_sub(known);
        if self.eof && fresh > 0 {
            return Err(StdinError::Closed);
        }
        bytes.advance(bytes.len() - fresh);
        let room = self.room.saturating_sub(self.end - self.base);
        let taken = usize::try_from(room).unwrap_or(usize::MAX).min(fresh);
        bytes.truncate(taken);
        if !bytes.is_empty() {
            self.end += taken as u64;
            self.kept.push_back(bytes);
        }
        if eof && taken == fresh {
            self.eof = true;
        }
        Ok(Some(self.end))
    }

    /// Returns the offset behind what was taken so far; `None` while it is not known where the
    /// command's stdin is.
    pub(crate) fn end(&self) -> Option<u64> {
        self.placed.then_some(self.end)
    }

    /// Returns whether the node has all there ever will be, the end with it: it goes with the last
    /// bytes.
    pub(crate) fn is_delivered(&self) -> bool {
        self.closed || self.eof && self.base == self.end && self.end > 0
    }

    /// Nothing more is taken: the run is over.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.kept = VecDeque::new();
    }

    /// Returns the next piece for a connection that has sent so far, at most `chunk_max` bytes and
    /// never more than `window` beyond what the node has taken.
    pub(crate) fn next(
        &mut self,
        sent: &mut StdinSent,
        chunk_max: usize,
        window: u64,
    ) -> Option<StdinChunk> {
        if self.closed || sent.eof {
            return None;
        }
        let from = sent.offset.max(self.base);
        let left = self.base.saturating_add(window).saturating_sub(from);
        let max = usize::try_from(left).unwrap_or(usize::MAX).min(chunk_max);
        let bytes = self.slice(from, max);
        let end = from + bytes.len() as u64;
        let eof = self.eof && end == self.end;
        if bytes.is_empty() && !eof {
            return None;
        }
        *sent = StdinSent { offset: end, eof };
        self.sent_high = self.sent_high.max(end);
        Some(StdinChunk {
            offset: from,
            bytes,
            eof,
        })
    }

    /// The node has taken everything below `offset`.
    pub(crate) fn handle_ack(&mut self, offset: u64, closed: bool) -> Result<(), StdinLie> {
        if offset > self.sent_high {
            return Err(StdinLie);
        }
        self.drop_below(offset);
        // A gateway of before may have sent what this one was never given.
        self.end = self.end.max(self.base);
        if closed {
            self.close();
        }
        Ok(())
    }

    /// A node that is back says how much its child's pipe has taken. What a gateway of before had
    /// accepted and not sent died with it.
    pub(crate) fn handle_resume(&mut self, offset: u64) -> StdinSent {
        let sent_high = if self.placed {
            offset
        } else {
            offset.saturating_add(self.room) // by a process of before
        };
        self.sent_high = self.sent_high.max(sent_high);
        self.placed = true;
        if offset > self.end {
            (self.base, self.end) = (offset, offset);
            self.kept.clear();
        }
        self.drop_below(offset);
        StdinSent::from(self.base)
    }

    fn drop_below(&mut self, offset: u64) {
        while self.base < offset {
            let Some(first) = self.kept.front_mut() else {
                self.base = offset;
                return;
            };
            let below = usize::try_from(offset - self.base).unwrap_or(usize::MAX);
            let step = below.min(first.len());
            first.advance(step);
            self.base += step as u64;
            if first.is_empty() {
                self.kept.pop_front();
            }
        }
    }

    /// Returns at most `max` bytes from `from` on, as far as one piece goes.
    fn slice(&self, from: u64, max: usize) -> Bytes {
        let mut at = self.base;
        for piece in &self.kept {
            let end = at + piece.len() as u64;
            if from < end {
                let skip = usize::try_from(from - at).unwrap_or(usize::MAX);
                return piece.slice(skip..piece.len().min(skip.saturating_add(max)));
            }
            at = end;
        }
        Bytes::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> StdinQueue {
        StdinQueue::new(10)
    }

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_node_that_is_at_the_end_of_all_numbers_gets_nothing() {
        let mut queue = queue();
        let mut sent = queue.handle_resume(u64::MAX);
        assert_eq!(queue.next(&mut sent, 10, 10), None);
    }

    fn next(queue: &mut StdinQueue, sent: &mut StdinSent) -> Option<(u64, String, bool)> {
        let chunk = queue.next(sent, 4, 8)?;
        let text = String::from_utf8(chunk.bytes.to_vec()).unwrap();
        Some((chunk.offset, text, chunk.eof))
    }

    #[test]
    fn bytes_go_out_in_pieces_and_wait_at_the_window() {
        let mut queue = queue();
        let mut sent = StdinSent::default();
        assert_eq!(queue.offer(0, bytes("abcdefghijklm"), false), Ok(Some(10)));
        assert_eq!(next(&mut queue, &mut sent), Some((0, "abcd".into(), false)));
        assert_eq!(next(&mut queue, &mut sent), Some((4, "efgh".into(), false)));
        assert_eq!(next(&mut queue, &mut sent), None);
        queue.handle_ack(3, false).unwrap();
        assert_eq!(next(&mut queue, &mut sent), Some((8, "ij".into(), false)));
        assert_eq!(queue.offer(10, bytes("klm"), true), Ok(Some(13)));
        queue.handle_ack(10, false).unwrap();
        assert_eq!(next(&mut queue, &mut sent), Some((10, "klm".into(), true)));
        assert_eq!(next(&mut queue, &mut sent), None);
    }

    #[test]
    fn the_same_bytes_again_are_known() {
        let mut queue = queue();
        assert_eq!(queue.offer(0, bytes("abc"), false), Ok(Some(3)));
        assert_eq!(queue.offer(0, bytes("abc"), false), Ok(Some(3)));
        assert_eq!(queue.offer(1, bytes("bcd"), true), Ok(Some(4)));
        assert_eq!(queue.offer(1, bytes("bcd"), true), Ok(Some(4)));
        assert_eq!(
            queue.offer(6, bytes("x"), false),
            Err(StdinError::Hole {
                expected: 4,
                found: 6
            })
        );
        assert_eq!(queue.offer(4, bytes("x"), false), Err(StdinError::Closed));
    }

    #[test]
    fn an_end_without_bytes_is_sent_once() {
        let (mut queue, mut sent) = (queue(), StdinSent::default());
        assert_eq!(next(&mut queue, &mut sent), None);
        queue.offer(0, Bytes::new(), true).unwrap();
        assert_eq!(next(&mut queue, &mut sent), Some((0, String::new(), true)));
        assert_eq!(next(&mut queue, &mut sent), None);
    }

    #[test]
    fn an_end_that_did_not_fit_is_not_taken() {
        let mut queue = queue();
        assert_eq!(queue.offer(0, bytes("abcdefghijklm"), true), Ok(Some(10)));
        assert!(!queue.eof);
    }

    #[test]
    fn a_new_connection_goes_on_where_the_child_is() {
        let (mut queue, mut sent) = (queue(), StdinSent::default());
        queue.offer(0, bytes("abcdefgh"), true).unwrap();
        next(&mut queue, &mut sent).unwrap();
        next(&mut queue, &mut sent).unwrap();
        let mut again = queue.handle_resume(3);
        assert_eq!(
            next(&mut queue, &mut again),
            Some((3, "defg".into(), false))
        );
        assert_eq!(next(&mut queue, &mut again), Some((7, "h".into(), true)));
    }

    #[test]
    fn a_new_gateway_goes_on_where_the_child_is() {
        let mut queue = StdinQueue::taken_up(10);
        assert_eq!(queue.offer(110, bytes("x"), false), Ok(None));
        assert_eq!(queue.end(), None);
        let mut sent = queue.handle_resume(100);
        assert_eq!(
            queue.offer(110, bytes("x"), false),
            Err(StdinError::Hole {
                expected: 100,
                found: 110
            })
        );
        assert_eq!(queue.offer(100, bytes("x"), false), Ok(Some(101)));
        assert_eq!(next(&mut queue, &mut sent), Some((100, "x".into(), false)));
    }

    #[test]
    fn stdin_that_came_whole_goes_on_in_a_new_gateway() {
        for resumed_first in [true, false] {
            let mut queue = StdinQueue::taken_up(10);
            let mut sent = StdinSent::default();
            if resumed_first {
                sent = queue.handle_resume(3);
            }
            queue.fill(bytes("abcdefgh"));
            if !resumed_first {
                sent = queue.handle_resume(3);
            }
            queue.fill(bytes("abcdefgh"));
            assert_eq!(next(&mut queue, &mut sent), Some((3, "defg".into(), false)));
            assert_eq!(next(&mut queue, &mut sent), Some((7, "h".into(), true)));
            assert_eq!(next(&mut queue, &mut sent), None);
        }
    }

    #[test]
    fn it_is_delivered_when_the_node_has_the_last_byte() {
        let (mut queue, mut sent) = (queue(), StdinSent::default());
        queue.fill(bytes("abcdef"));
        while next(&mut queue, &mut sent).is_some() {}
        for (offset, delivered) in [(0, false), (5, false), (6, true)] {
            queue.handle_ack(offset, false).unwrap();
            assert_eq!(queue.is_delivered(), delivered, "{offset}");
        }
        let mut taken_up = StdinQueue::taken_up(10);
        taken_up.handle_resume(6);
        assert!(!taken_up.is_delivered(), "nobody has said where it ends");
        taken_up.close();
        assert!(taken_up.is_delivered());
    }

    #[test]
    fn a_run_that_ends_before_its_node_is_back_takes_nothing() {
        let mut queue = StdinQueue::taken_up(10);
        queue.close();
        assert_eq!(queue.offer(0, bytes("x"), false), Err(StdinError::Closed));
    }

    #[test]
    fn a_child_goes_on_with_what_an_earlier_connection_brought() {
        let (mut queue, mut sent) = (queue(), StdinSent::default());
        queue.offer(0, bytes("abcdefgh"), true).unwrap();
        next(&mut queue, &mut sent).unwrap();
        let mut again = queue.handle_resume(1);
        assert_eq!(queue.handle_ack(5, false), Err(StdinLie));
        assert_eq!(queue.handle_ack(4, false), Ok(()));
        assert_eq!(next(&mut queue, &mut again), Some((4, "efgh".into(), true)));
    }

    #[test]
    fn a_child_goes_on_with_what_a_gateway_of_before_had_sent() {
        let mut queue = StdinQueue::taken_up(10);
        let mut sent = queue.handle_resume(100);
        assert_eq!(queue.handle_ack(111, false), Err(StdinLie));
        assert_eq!(queue.handle_ack(105, false), Ok(()));
        assert_eq!(queue.end(), Some(105));
        assert_eq!(queue.offer(100, bytes("abcdefg"), false), Ok(Some(107)));
        assert_eq!(next(&mut queue, &mut sent), Some((105, "fg".into(), false)));
    }

    #[test]
    fn a_node_cannot_have_taken_what_was_never_sent() {
        let (mut queue, mut sent) = (queue(), StdinSent::default());
        queue.offer(0, bytes("abc"), false).unwrap();
        assert_eq!(queue.handle_ack(1, false), Err(StdinLie));
        next(&mut queue, &mut sent).unwrap();
        assert_eq!(queue.handle_ack(3, true), Ok(()));
        assert_eq!(queue.offer(3, bytes("d"), false), Err(StdinError::Closed));
    }
}
