//! How much a peer may send before it is trusted. Both drivers ask before they decode.

use super::HandshakeError;
use crate::limits::{HANDSHAKE_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};

/// Counts the bytes of all frames of one peer before the verdict.
///
/// A node that waits for a person hears `Pending` again and again, from a gateway that has proven
/// its key: it begins a new allowance with each.
#[derive(Debug)]
pub struct Allowance {
    left: usize,
}

impl Allowance {
    /// Returns a full allowance.
    pub const fn new() -> Self {
        Self {
            left: HANDSHAKE_BYTES_MAX,
        }
    }

    /// Takes a frame of this length out of it, before the frame is looked at.
    ///
    /// # Errors
    /// [`HandshakeError::TooLong`] for one long frame, [`HandshakeError::TooMuch`] for many short
    /// ones. The connection is then closed without an answer.
    pub fn take(&mut self, frame_bytes: usize) -> Result<(), HandshakeError> {
        if frame_bytes > HANDSHAKE_FRAME_BYTES_MAX {
            self.left = 0;
            return Err(HandshakeError::TooLong { found: frame_bytes });
        }
        let Some(left) = self.left.checked_sub(frame_bytes) else {
            self.left = 0;
            return Err(HandshakeError::TooMuch);
        };
        self.left = left;
        Ok(())
    }
}

impl Default for Allowance {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_frame_and_too_many_short_ones_are_refused() {
        assert!(matches!(
            Allowance::new().take(4097),
            Err(HandshakeError::TooLong { found: 4097 })
        ));
        let mut allowance = Allowance::new();
        for _ in 0..4 {
            allowance.take(4096).unwrap();
        }
        assert!(matches!(allowance.take(1), Err(HandshakeError::TooMuch)));
    }
}
