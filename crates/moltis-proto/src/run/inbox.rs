//! The gateway's side of a run's output: what arrives is checked against what may arrive, and
//! credit goes back when bytes are stored.
//!
//! One [`Inbox`] watches both streams of one run on one connection. It holds no bytes: the driver
//! stores what the inbox calls fresh, tells it how far storing has come, and sends the
//! acknowledgements that it asks for. Offsets are the truth: bytes that are known already are
//! skipped, a hole is an error unless the node marks it, and nothing may lie beyond the window.
//!
//! Who acknowledges too late starves the sender, who does it for each frame pays for each frame:
//! an acknowledgement is due when a quarter of the window waits for it, 20 ms after the first byte
//! that does, or at once when the sender can send no further chunk.

use std::collections::VecDeque;
use std::time::Instant;

use crate::limits::ACK_DELAY;
use crate::message::Windows;
use crate::run::{Stream, Totals};

/// Gaps of one stream that may wait for an acknowledgement. Honest nodes make a handful.
const GAPS_UNACKED_MAX: usize = 1024;

/// Gaps of one run on one connection.
const GAPS_MAX: u32 = 64 * 1024;

/// What a frame that brings nothing new costs beside its bytes, so that empty-handed frames end.
const DUPLICATE_COST: u64 = 64;

/// How a node broke the rules of output. Each closes its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError {
    /// Bytes are missing that no gap has marked.
    #[error("{stream:?} goes on at {found}, but the byte at {expected} is next")]
    Hole {
        /// Which of the two.
        stream: Stream,
        /// The offset that would have been next.
        expected: u64,
        /// The offset found.
        found: u64,
    },
    /// More than may be under way without an acknowledgement.
    #[error("{found} bytes of output are under way, but the window is {window}")]
    BeyondWindow {
        /// Bytes under way.
        found: u64,
        /// The window.
        window: u64,
    },
    /// A chunk without bytes, or with more than one may have.
    #[error("a chunk of {found} bytes: expected 1 to {max}")]
    Chunk {
        /// Its length.
        found: usize,
        /// The longest.
        max: usize,
    },
    /// A gap that ends where it begins, before it, or covers bytes that are here already.
    #[error("a gap from {from} to {to} of {stream:?}, of which {received} bytes are here")]
    Gap {
        /// Which of the two.
        stream: Stream,
        /// Where the gap begins.
        from: u64,
        /// Where it ends.
        to: u64,
        /// What is here.
        received: u64,
    },
    /// Bytes that lie below the offset that was asked for.
    #[error("{stream:?} at {found}, but it was resumed at {floor}")]
    BelowResume {
        /// Which of the two.
        stream: Stream,
        /// The offset found.
        found: u64,
        /// The offset asked for.
        floor: u64,
    },
    /// Too much that is known already, or too many gaps.
    #[error("the same output, or gaps of it, again and again")]
    Flood,
    /// The totals of an ending contradict the output.
    #[error("the ending counts {found} bytes of {stream:?}, but {received} are here")]
    Totals {
        /// Which of the two.
        stream: Stream,
        /// What the ending says.
        found: u64,
        /// What is here.
        received: u64,
    },
    /// Output behind the ending, or a second ending.
    #[error("the run has ended already")]
    AfterEnd,
    /// An offset past 2^53 − 1, which JSON could not carry.
    #[error("the offset {found} is out of range")]
    Range {
        /// The offset.
        found: u64,
    },
}

/// What a chunk brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// All behind the first `skip` bytes is new and belongs into the store.
    From {
        /// Bytes of the chunk that are known already.
        skip: usize,
    },
    /// Nothing: every byte is known.
    Nothing,
}

/// Offsets for an `Ack`: everything below them is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckOffsets {
    /// Of stdout.
    pub stdout: u64,
    /// Of stderr.
    pub stderr: u64,
}

/// Both streams of one run, as they arrive on one connection.
#[derive(Debug)]
pub struct Inbox {
    window: u64,
    chunk_bytes_max: usize,
    halves: [Half; 2],
    /// When the first byte arrived that is not acknowledged.
    waiting_since: Option<Instant>,
    duplicates: u64,
    gaps: u32,
    ended: bool,
}

#[derive(Debug, Default)]
struct Half {
    /// Where this connection took the stream up.
    floor: u64,
    /// The next offset.
    received: u64,
    /// What the store has.
    stored: u64,
    /// What the node was told.
    acked: u64,
    /// Marked holes above `acked`: they take no room in the window.
    holes: VecDeque<(u64, u64)>,
    hole_bytes: u64,
}

/// The largest integer that every JSON reader keeps exact.
const OFFSET_MAX: u64 = (1 << 53) - 1;

impl Inbox {
    /// Begins where the run was started (both zero) or resumed on this connection.
    pub fn new(windows: &Windows, stdout: u64, stderr: u64) -> Self {
        let half = |offset| Half {
            floor: offset,
            received: offset,
            stored: offset,
            acked: offset,
            ..Half::default()
        };
        Self {
            window: windows.run_bytes.into(),
            chunk_bytes_max: windows.chunk_bytes_max as usize,
            halves: [half(stdout), half(stderr)],
            waiting_since: None,
            duplicates: 0,
            gaps: 0,
            ended: false,
        }
    }

    /// A chunk has arrived. Returns which of its bytes are new.
    ///
    /// # Errors
    /// Every rule that the chunk breaks; nothing of it may then be stored.
    pub fn handle_output(
        &mut self,
        stream: Stream,
        offset: u64,
        len: usize,
        now: Instant,
    ) -> Result<Fresh, InboxError> {
        self.refuse_after_end()?;
        if len == 0 || len > self.chunk_bytes_max {
            return Err(InboxError::Chunk {
                found: len,
                max: self.chunk_bytes_max,
            });
        }
        let end = in_range(offset.saturating_add(len as u64))?;
        let half = &self.halves[stream.index()];
        half.refuse_below_floor(stream, offset)?;
        if offset > half.received {
            return Err(InboxError::Hole {
                stream,
                expected: half.received,
                found: offset,
            });
        }
        if end <= half.received {
            self.count_duplicate(len)?;
            return Ok(Fresh::Nothing);
        }
        let skip = half.received - offset;
        let found = self.in_flight() + (end - half.received);
        if found > self.window {
            return Err(InboxError::BeyondWindow {
                found,
                window: self.window,
            });
        }
        self.halves[stream.index()].received = end;
        self.waiting_since.get_or_insert(now);
        // `skip` is below `len`, a usize.
        let skip = usize::try_from(skip).unwrap_or(len);
        Ok(Fresh::From { skip })
    }

    /// The node marks a hole.
    ///
    /// # Errors
    /// Every rule that the gap breaks.
    pub fn handle_gap(
        &mut self,
        stream: Stream,
        from: u64,
        to: u64,
        now: Instant,
    ) -> Result<Fresh, InboxError> {
        self.refuse_after_end()?;
        in_range(to)?;
        self.gaps += 1;
        let half = &mut self.halves[stream.index()];
        half.refuse_below_floor(stream, from)?;
        if from > half.received {
            return Err(InboxError::Hole {
                stream,
                expected: half.received,
                found: from,
            });
        }
        if to <= from || (from < half.received && to > half.received) {
            return Err(InboxError::Gap {
                stream,
                from,
                to,
                received: half.received,
            });
        }
        if to <= half.received {
            self.count_duplicate(0)?;
            return Ok(Fresh::Nothing);
        }
        half.received = to;
        half.hole_bytes += to - from;
        match half.holes.back_mut() {
            Some((_, end)) if *end == from => *end = to,
            _ => half.holes.push_back((from, to)),
        }
        if half.holes.len() > GAPS_UNACKED_MAX || self.gaps > GAPS_MAX {
            return Err(InboxError::Flood);
        }
        self.waiting_since.get_or_insert(now);
        Ok(Fresh::From { skip: 0 })
    }

    /// The run is over. A lost run may count fewer bytes than are here: whoever counts has not
    /// seen all of it.
    ///
    /// # Errors
    /// [`InboxError::Totals`] and [`InboxError::AfterEnd`].
    pub fn handle_ended(&mut self, totals: &Totals, lost: bool) -> Result<(), InboxError> {
        self.refuse_after_end()?;
        for stream in Stream::BOTH {
            let (found, received) = (totals.of(stream), self.received(stream));
            if found > received || (found < received && !lost) {
                return Err(InboxError::Totals {
                    stream,
                    found,
                    received,
                });
            }
        }
        self.ended = true;
        Ok(())
    }

    /// The store has everything below `offset`, so it may be acknowledged.
    pub fn handle_stored(&mut self, stream: Stream, offset: u64) {
        let half = &mut self.halves[stream.index()];
        half.stored = half.stored.max(offset.min(half.received));
    }

    /// Returns the acknowledgement that is due, and takes it as sent.
    pub fn poll_ack(&mut self, now: Instant) -> Option<AckOffsets> {
        let due = self.storable() >= self.window / 4
            || self.sender_is_blocked()
            || self.poll_timeout().is_some_and(|deadline| now >= deadline);
        if due { self.take_ack(now) } else { None }
    }

    /// Returns the acknowledgement of all that is stored, due or not: for a connection whose own
    /// window runs short.
    pub fn take_ack(&mut self, now: Instant) -> Option<AckOffsets> {
        if self.halves.iter().all(|half| half.stored == half.acked) {
            return None;
        }
        self.halves.iter_mut().for_each(Half::acknowledge_stored);
        // What is received but not stored yet starts to wait anew.
        let rest = self.halves.iter().any(|half| half.received != half.acked);
        self.waiting_since = rest.then_some(now);
        Some(AckOffsets {
            stdout: self.halves[0].acked,
            stderr: self.halves[1].acked,
        })
    }

    /// Returns when [`poll_ack`](Self::poll_ack) is worth asking again without any other cause.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting_since.map(|since| since + ACK_DELAY)
    }

    /// Returns the bytes that the node may believe to be under way: received, not acknowledged.
    pub fn in_flight(&self) -> u64 {
        self.halves.iter().map(Half::in_flight).sum()
    }

    /// Returns whether the sender can send no further full chunk before it hears from us.
    pub fn sender_is_blocked(&self) -> bool {
        self.in_flight() + self.chunk_bytes_max as u64 > self.window
    }

    /// Returns the next offset of a stream.
    pub fn received(&self, stream: Stream) -> u64 {
        self.halves[stream.index()].received
    }

    /// Returns whether the ending has arrived.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Bytes stored, not acknowledged; marked holes count, for they too are news to the node.
    fn storable(&self) -> u64 {
        self.halves
            .iter()
            .map(|half| half.stored - half.acked)
            .sum()
    }

    fn refuse_after_end(&self) -> Result<(), InboxError> {
        if self.ended {
            return Err(InboxError::AfterEnd);
        }
        Ok(())
    }

    fn count_duplicate(&mut self, len: usize) -> Result<(), InboxError> {
        self.duplicates += len as u64 + DUPLICATE_COST;
        if self.duplicates > self.window * 2 {
            return Err(InboxError::Flood);
        }
        Ok(())
    }
}

impl Half {
    fn in_flight(&self) -> u64 {
        self.received - self.acked - self.hole_bytes
    }

    fn acknowledge_stored(&mut self) {
        self.acked = self.stored;
        while let Some((from, to)) = self.holes.front_mut() {
            if *to <= self.acked {
                self.hole_bytes -= *to - *from;
                self.holes.pop_front();
            } else {
                // Storing stops at chunk borders, but a store is free to stop inside a hole.
                let inside = self.acked.saturating_sub(*from);
                self.hole_bytes -= inside;
                *from += inside;
                break;
            }
        }
    }

    fn refuse_below_floor(&self, stream: Stream, found: u64) -> Result<(), InboxError> {
        if found < self.floor {
            return Err(InboxError::BelowResume {
                stream,
                found,
                floor: self.floor,
            });
        }
        Ok(())
    }
}

fn in_range(offset: u64) -> Result<u64, InboxError> {
    if offset > OFFSET_MAX {
        return Err(InboxError::Range { found: offset });
    }
    Ok(offset)
}

#[cfg(test)]
mod tests;
