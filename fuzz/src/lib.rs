//! How the targets read the fuzzer's bytes: as steps, numbers and pieces. What reads past the end
//! finds zeros, so that every input means something and a shorter one means less.

use std::time::Instant;

pub mod child;

/// The bytes of one input, read from the front.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Begins at the front.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes one byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    /// Takes one of `count` choices, at most 256.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    /// Takes a choice between two.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Takes two bytes.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Takes a number: small ones and those about the ends of the types are the likely ones.
    pub fn number(&mut self) -> u64 {
        let small = u64::from(self.byte());
        match self.byte() % 8 {
            0..4 => small,
            4 => u64::from(self.short()),
            5 => u64::from(u32::MAX) - 128 + small,
            6 => (1 << 53) - 128 + small,
            _ => u64::MAX - small,
        }
    }

    /// Takes a piece of at most `max` bytes, its length in two bytes before it.
    pub fn piece(&mut self, max: usize) -> &'a [u8] {
        let length = usize::from(self.short()).min(max).min(self.0.len());
        let (piece, rest) = self.0.split_at(length);
        self.0 = rest;
        piece
    }

    /// Takes a piece of text; bytes that are none end it.
    pub fn text(&mut self, max: usize) -> &'a str {
        let piece = self.piece(max);
        match std::str::from_utf8(piece) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&piece[..error.valid_up_to()]).unwrap_or_default(),
        }
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Returns when the clock of a target begins. Machines are told the time, and only its differences
/// count.
pub fn start() -> Instant {
    Instant::now()
}
