//! What the target `stdin` in `fuzz/` reaches: the queue of what askers have given. Compiled for it,
//! which `cfg(fuzzing)` says, and for tests.

use bytes::Bytes;

use super::stdin::{StdinError, StdinQueue, StdinSent};

/// Stdin of one run, and how far one connection has sent it.
#[derive(Debug)]
pub struct Stdin {
    queue: StdinQueue,
    sent: StdinSent,
}

/// One piece for the node.
#[derive(Debug)]
pub struct Chunk {
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
    /// Nothing follows.
    pub eof: bool,
}

impl Stdin {
    /// That of a run that has taken nothing.
    pub fn new(room: u64) -> Self {
        Self {
            queue: StdinQueue::new(room),
            sent: StdinSent::default(),
        }
    }

    /// That of a run that an earlier process began.
    pub fn taken_up(room: u64) -> Self {
        Self {
            queue: StdinQueue::taken_up(room),
            sent: StdinSent::default(),
        }
    }

    /// Gives bytes. Returns the offset behind what was taken; `None` while that is not known.
    ///
    /// # Errors
    /// With the offset that is next, where bytes are missing.
    pub fn offer(
        &mut self,
        offset: u64,
        bytes: Bytes,
        eof: bool,
    ) -> Result<Option<u64>, Option<u64>> {
        self.queue
            .offer(offset, bytes, eof)
            .map_err(|error| match error {
                StdinError::Hole { expected, .. } => Some(expected),
                StdinError::NotOpen | StdinError::NotPlaced | StdinError::Closed => None,
            })
    }

    /// Returns the next piece.
    pub fn next(&mut self, chunk_max: usize, window: u64) -> Option<Chunk> {
        let chunk = self.queue.next(&mut self.sent, chunk_max, window)?;
        Some(Chunk {
            offset: chunk.offset,
            bytes: chunk.bytes,
            eof: chunk.eof,
        })
    }

    /// The node has taken so much. Returns whether that can be.
    pub fn acked(&mut self, offset: u64, closed: bool) -> bool {
        self.queue.handle_ack(offset, closed).is_ok()
    }

    /// The node is back and has taken so much.
    pub fn resume(&mut self, offset: u64) {
        self.sent = self.queue.handle_resume(offset);
    }

    /// Returns the offset behind what was given.
    pub fn end(&self) -> Option<u64> {
        self.queue.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_sent_and_acknowledged() {
        let mut stdin = Stdin::new(10);
        assert_eq!(
            stdin.offer(0, Bytes::from_static(b"abc"), true),
            Ok(Some(3))
        );
        assert_eq!(
            stdin.offer(9, Bytes::from_static(b"d"), false),
            Err(Some(3))
        );
        let chunk = stdin.next(10, 10).unwrap();
        assert_eq!(
            (chunk.offset, &*chunk.bytes, chunk.eof),
            (0, &b"abc"[..], true)
        );
        assert!(!stdin.acked(4, false));
        assert!(stdin.acked(3, false));
        stdin.resume(3);
        assert_eq!(stdin.end(), Some(3));
        assert_eq!(Stdin::taken_up(10).end(), None);
    }
}
