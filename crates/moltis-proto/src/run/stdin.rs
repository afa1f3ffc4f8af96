//! The node's end of a run's stdin: bytes in order, each once, within a window.
//!
//! A child that never reads fills its window and stops nobody else. The keeper writes
//! [`StdinReceiver::poll_write`] into the child's pipe and says what the pipe took; what was taken
//! is acknowledged, so a gateway that comes back goes on at the right byte.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

/// A sender broke the order of stdin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StdinError {
    /// Bytes are missing before these.
    #[error("stdin goes on at {found}, but {expected} comes next")]
    Hole {
        /// Offset of the first byte of the message.
        found: u64,
        /// Offset that comes next.
        expected: u64,
    },
    /// More is under way than the window allows.
    #[error("stdin up to {found} is beyond the window, which ends at {max}")]
    BeyondWindow {
        /// Offset behind the last byte of the message.
        found: u64,
        /// Offset where the window ends.
        max: u64,
    },
    /// Bytes follow the end.
    #[error("stdin goes on at {found} after its end")]
    AfterEnd {
        /// Offset of the first byte of the message.
        found: u64,
    },
}

/// What to do with the child's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StdinWrite {
    /// Write these, or some of them.
    Bytes(Bytes),
    /// Everything is written: close it.
    Close,
}

/// What to tell the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StdinState {
    /// Bytes that the child's pipe has taken.
    pub offset: u64,
    /// No more is taken.
    pub closed: bool,
}

/// The receiving end of a run's stdin.
#[derive(Debug)]
pub struct StdinReceiver {
    window_bytes: u64,
    /// Offset behind the last byte received.
    received: u64,
    /// Offset behind the last byte that the child's pipe took.
    taken: u64,
    waiting: VecDeque<Bytes>,
    ended: bool,
    closed: bool,
    told: StdinState,
}

impl StdinReceiver {
    /// A stdin that is open.
    pub fn open(window_bytes: u32) -> Self {
        Self {
            window_bytes: u64::from(window_bytes),
            received: 0,
            taken: 0,
            waiting: VecDeque::new(),
            ended: false,
            closed: false,
            told: StdinState {
                offset: 0,
                closed: false,
            },
        }
    }

    /// A stdin that takes nothing: whoever sends is told so once.
    pub fn closed() -> Self {
        let mut closed = Self::open(0);
        closed.closed = true;
        closed.told.closed = true;
        closed
    }

    /// Another connection, with this window. It knows what was taken; that the end is closed it is
    /// told again, where it could ever have been open.
    pub fn set_window(&mut self, window_bytes: u32) {
        if self.window_bytes > 0 {
            self.window_bytes = u64::from(window_bytes).max(1);
            self.told = StdinState {
                offset: self.taken,
                closed: false,
            };
        }
    }

    /// Bytes from the sender. What is there already is skipped; nothing is kept of a message that
    /// is refused.
    ///
    /// # Errors
    /// [`StdinError`].
    pub fn handle_stdin(
        &mut self,
        offset: u64,
        mut bytes: Bytes,
        eof: bool,
    ) -> Result<(), StdinError> {
        if self.closed {
            // The sender could not know yet, or knows and is told again.
            self.told.closed = false;
            return Ok(());
        }
        let to = offset.saturating_add(bytes.len() as u64);
        if offset > self.received {
            return Err(StdinError::Hole {
                found: offset,
                expected: self.received,
            });
        }
        if self.ended && to > self.received {
            return Err(StdinError::AfterEnd { found: offset });
        }
        let max = self.taken.saturating_add(self.window_bytes);
        if to > max && to > self.received {
            return Err(StdinError::BeyondWindow { found: to, max });
        }
        if let Some(new) = to.checked_sub(self.received).filter(|new| *new > 0) {
            let known = bytes.len() - usize::try_from(new).unwrap_or(bytes.len());
            bytes.advance(known);
            self.received = to;
            self.waiting.push_back(bytes);
        }
        self.ended |= eof && to == self.received;
        Ok(())
    }

    /// Returns what to write into the child's end next; `None` when there is nothing.
    pub fn poll_write(&self) -> Option<StdinWrite> {
        if self.closed {
            return None;
        }
        match self.waiting.front() {
            Some(bytes) => Some(StdinWrite::Bytes(bytes.clone())),
            None => self.ended.then_some(StdinWrite::Close),
        }
    }

    /// The child's pipe took so many bytes of what [`StdinReceiver::poll_write`] returned.
    pub fn handle_taken(&mut self, bytes: usize) {
        let Some(front) = self.waiting.front_mut() else {
            return;
        };
        let bytes = bytes.min(front.len());
        front.advance(bytes);
        self.taken += bytes as u64;
        if front.is_empty() {
            self.waiting.pop_front();
        }
    }

    /// The child's end is closed: by us after everything, or by the child.
    pub fn handle_closed(&mut self) {
        self.closed = true;
        self.waiting.clear();
    }

    /// Returns what to tell the sender, once: when a quarter of the window was taken, when nothing
    /// waits any more, or when the end is closed.
    pub fn poll_ack(&mut self) -> Option<StdinState> {
        let now = StdinState {
            offset: self.taken,
            closed: self.closed,
        };
        let progress = now.offset - self.told.offset;
        let worth_it = now.closed != self.told.closed
            || progress >= (self.window_bytes / 4).max(1)
            || (progress > 0 && self.waiting.is_empty());
        if !worth_it {
            return None;
        }
        self.told = now;
        Some(now)
    }

    /// Returns the bytes that the child's pipe has taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver() -> StdinReceiver {
        StdinReceiver::open(8)
    }

    fn text(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    /// Lets the child read everything that waits.
    fn read_all(receiver: &mut StdinReceiver) -> Vec<u8> {
        let mut read = Vec::new();
        while let Some(StdinWrite::Bytes(bytes)) = receiver.poll_write() {
            let some = bytes.len().min(3);
            read.extend_from_slice(&bytes[..some]);
            receiver.handle_taken(some);
        }
        read
    }

    #[test]
    fn bytes_that_come_twice_are_written_once() {
        let mut receiver = receiver();
        receiver.handle_stdin(0, text("abcd"), false).unwrap();
        receiver.handle_stdin(2, text("cdef"), false).unwrap();
        receiver.handle_stdin(0, text("ab"), false).unwrap();
        assert_eq!(read_all(&mut receiver), b"abcdef");
        assert_eq!(receiver.poll_ack().map(|ack| ack.offset), Some(6));
        assert_eq!(receiver.poll_ack(), None);
    }

    #[test]
    fn a_hole_is_refused_and_changes_nothing() {
        let mut receiver = receiver();
        receiver.handle_stdin(0, text("ab"), false).unwrap();
        let expected = StdinError::Hole {
            found: 3,
            expected: 2,
        };
        assert_eq!(receiver.handle_stdin(3, text("d"), true), Err(expected));
        receiver.handle_stdin(2, text("cd"), true).unwrap();
        assert_eq!(read_all(&mut receiver), b"abcd");
        assert_eq!(receiver.poll_write(), Some(StdinWrite::Close));
    }

    #[test]
    fn a_child_that_does_not_read_stops_the_sender_at_the_window() {
        let mut receiver = receiver();
        receiver.handle_stdin(0, text("abcdefgh"), false).unwrap();
        assert!(matches!(
            receiver.handle_stdin(8, text("i"), false),
            Err(StdinError::BeyondWindow { found: 9, max: 8 })
        ));
        receiver.handle_taken(2);
        assert_eq!(receiver.poll_ack().map(|ack| ack.offset), Some(2));
        receiver.handle_stdin(8, text("ij"), false).unwrap();
    }

    #[test]
    fn nothing_follows_the_end_but_the_end_itself() {
        let mut receiver = receiver();
        receiver.handle_stdin(0, text("ab"), true).unwrap();
        receiver.handle_stdin(0, text("ab"), true).unwrap();
        assert!(receiver.handle_stdin(2, text("c"), false).is_err());
        assert_eq!(read_all(&mut receiver), b"ab");
        receiver.handle_closed();
        assert_eq!(
            receiver.poll_ack(),
            Some(StdinState {
                offset: 2,
                closed: true
            })
        );
    }

    #[test]
    fn another_connection_is_told_that_the_end_is_closed() {
        let mut receiver = receiver();
        receiver.handle_stdin(0, text("ab"), true).unwrap();
        receiver.handle_taken(2);
        receiver.handle_closed();
        assert!(receiver.poll_ack().is_some());
        receiver.set_window(8);
        assert_eq!(receiver.poll_ack().map(|ack| ack.closed), Some(true));
        let mut never_open = StdinReceiver::closed();
        never_open.set_window(8);
        assert_eq!(never_open.poll_ack(), None);
    }

    #[test]
    fn a_sender_to_a_closed_end_is_told_each_time() {
        let mut receiver = StdinReceiver::closed();
        assert_eq!(receiver.poll_ack(), None);
        for _ in 0..2 {
            receiver.handle_stdin(0, text("ab"), false).unwrap();
            assert_eq!(receiver.poll_ack().map(|ack| ack.closed), Some(true));
            assert_eq!(receiver.poll_ack(), None);
        }
    }
}
