//! Where the bytes of one stream lie in its spool file.
//!
//! The file begins at the offset `base`. Its first part is straight and keeps the beginning; the
//! rest is a ring that keeps the newest bytes. What the ring has overwritten, between the two, is
//! the gap.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::SpoolOp;

/// What must be known to read a spool file: kept at its head by whoever writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpoolHeader {
    /// Offset in the stream of the file's first byte.
    pub base: u64,
    /// Bytes of the straight part.
    pub head_bytes: u64,
    /// Bytes of the ring behind it.
    pub ring_bytes: u64,
    /// Offset of the oldest byte in the ring.
    pub from: u64,
    /// Offset behind the newest byte.
    pub to: u64,
}

/// What the file has at an offset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// So many bytes from this position on, without a break.
    At { position: u64, length: u64 },
    /// Nothing before this offset: the ring has overwritten it.
    Gone { to: u64 },
    /// The end.
    End,
}

/// What a write does to the file, step by step. A keeper may die between any two of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) before: Option<SpoolHeader>,
    pub(super) parts: Vec<(u64, Bytes)>,
    pub(super) after: SpoolHeader,
}

impl SpoolHeader {
    pub(super) fn new(base: u64, head_bytes: u64, ring_bytes: u64) -> Self {
        Self {
            base,
            head_bytes,
            ring_bytes,
            from: base + head_bytes,
            to: base,
        }
    }

    /// Returns whether the figures can belong to a spool: whoever reads one from a file asks.
    pub fn is_sound(&self) -> bool {
        let head_to = self.base.checked_add(self.head_bytes);
        let Some(head_to) = head_to.filter(|_| self.ring_bytes > 0) else {
            return false;
        };
        self.from >= head_to
            && self.to >= self.base
            && self.to.saturating_sub(self.from) <= self.ring_bytes
            && (self.from == head_to || self.from <= self.to)
    }

    fn head_to(&self) -> u64 {
        self.base + self.head_bytes
    }

    /// Returns the offset of the newest byte that was written to this position; `None` where there is
    /// none.
    pub fn offset_at(&self, position: u64) -> Option<u64> {
        if position < self.head_bytes {
            let offset = self.base.checked_add(position)?;
            return (offset < self.to).then_some(offset);
        }
        let turn = position - self.head_bytes;
        let newest = self.to.checked_sub(self.head_to())?.checked_sub(1)?;
        if turn >= self.ring_bytes {
            return None;
        }
        let at = newest % self.ring_bytes;
        let behind = if turn <= at {
            at - turn
        } else {
            self.ring_bytes - (turn - at)
        };
        Some(self.head_to() + newest.checked_sub(behind)?)
    }

    /// Makes the file keep about the length that it has: what follows goes round in the ring as far
    /// as that is filled, or in `ring_bytes_min`. Nothing moves, so a ring that has gone round
    /// already stays as it is.
    pub(super) fn stop_growing(&mut self, ring_bytes_min: u64) {
        let (head_to, to) = (self.head_to(), self.to);
        if to < head_to {
            self.head_bytes = to - self.base;
            self.from = to;
            self.ring_bytes = self.ring_bytes.min(ring_bytes_min);
        } else if self.from == head_to && to - head_to < self.ring_bytes {
            let filled = to - head_to;
            self.ring_bytes = self.ring_bytes.min(filled.max(ring_bytes_min));
        }
    }

    /// Returns the bytes of output that the file is long.
    pub(super) fn length(&self) -> u64 {
        let straight = self.head_to().min(self.to) - self.base;
        // Bytes that the ring has overwritten are still its length.
        let ring = self.to.saturating_sub(self.head_to());
        straight + ring.min(self.ring_bytes)
    }

    /// Returns how many bytes may follow before one at or above `needed` is overwritten.
    pub(super) fn room(&self, needed: u64) -> u64 {
        let oldest = self.from.max(needed).max(self.head_to());
        let in_ring = self.to.saturating_sub(oldest);
        let straight = self.head_to().saturating_sub(self.to);
        straight + self.ring_bytes.saturating_sub(in_ring)
    }

    pub(super) fn at(&self, offset: u64) -> Lies {
        let head_to = self.head_to();
        if offset >= self.to {
            Lies::End
        } else if offset < head_to {
            Lies::At {
                position: offset - self.base,
                length: head_to.min(self.to) - offset,
            }
        } else if offset < self.from {
            Lies::Gone {
                to: self.from.min(self.to),
            }
        } else {
            let turn = (offset - head_to) % self.ring_bytes;
            Lies::At {
                position: self.head_bytes + turn,
                length: (self.ring_bytes - turn).min(self.to - offset),
            }
        }
    }

    /// Appends these bytes, overwriting the oldest of the ring where it is full.
    pub(super) fn append(&mut self, pieces: Vec<Bytes>) -> Written {
        let old = *self;
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let to = self.to + length;
        self.from = self.from.max(to.saturating_sub(self.ring_bytes));
        let before = if old.to == old.base {
            Some(old)
        } else if self.from != old.from && old.to > old.head_to() {
            // What is about to be overwritten stops being readable before it is.
            Some(Self {
                from: self.from.min(old.to),
                ..old
            })
        } else {
            None
        };
        let mut offset = self.to;
        self.to = to;
        let mut parts = Vec::with_capacity(pieces.len());
        for mut piece in pieces {
            while !piece.is_empty() {
                let (position, length) = match self.at(offset) {
                    Lies::At { position, length } => (Some(position), length),
                    Lies::Gone { to } => (None, to - offset),
                    Lies::End => break,
                };
                let length = usize::try_from(length).map_or(piece.len(), |l| l.min(piece.len()));
                let part = piece.split_to(length);
                offset += length as u64;
                if let Some(position) = position {
                    parts.push((position, part));
                }
            }
        }
        Written {
            before,
            parts,
            after: *self,
        }
    }
}

impl From<Written> for SpoolOp {
    fn from(written: Written) -> Self {
        Self::Write {
            before: written.before,
            parts: written.parts,
            after: written.after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes 1-byte-numbered bytes in steps and reads everything back after each.
    #[test]
    fn the_beginning_and_the_newest_bytes_are_read_back_as_they_were() {
        for step in [1usize, 3, 7, 16, 25] {
            let (base, head, ring) = (5u64, 10u64, 16u64);
            let mut file = [0u8; 26];
            let mut header = SpoolHeader::new(base, head, ring);
            let mut written = base;
            while written < 120 {
                let piece: Vec<u8> = (written..written + step as u64)
                    .map(|offset| offset.to_le_bytes()[0])
                    .collect();
                written += step as u64;
                let steps = header.append(vec![piece.into()]);
                assert!(steps.before.is_none_or(|before| before.is_sound()));
                assert!(steps.after.is_sound());
                for (position, part) in steps.parts {
                    let position = usize::try_from(position).unwrap();
                    file[position..position + part.len()].copy_from_slice(&part);
                }
                assert_eq!(header.to, written);
                let mut offset = base;
                let mut gone = 0;
                loop {
                    match header.at(offset) {
                        Lies::At { position, length } => {
                            for n in 0..length {
                                assert_eq!(header.offset_at(position + n), Some(offset + n));
                                let byte = file[usize::try_from(position + n).unwrap()];
                                assert_eq!(byte, (offset + n).to_le_bytes()[0]);
                            }
                            offset += length;
                        }
                        Lies::Gone { to } => {
                            gone += to - offset;
                            offset = to;
                        }
                        Lies::End => break,
                    }
                }
                let expected = (written - base).saturating_sub(head + ring);
                assert_eq!(gone, expected, "step {step}, written {written}");
            }
        }
    }

    #[test]
    fn a_file_that_stops_growing_keeps_what_it_has_and_then_the_newest() {
        // Within the straight part, at its end, within the ring, and where the ring has gone round.
        for (grown, head, ring) in [
            (6, 6, 4),
            (10, 10, 4),
            (13, 10, 4),
            (19, 10, 9),
            (40, 10, 16),
        ] {
            let mut file = [0u8; 26];
            let mut header = SpoolHeader::new(0, 10, 16);
            let mut write = |header: &mut SpoolHeader, from: u64, to: u64| {
                let bytes: Vec<u8> = (from..to).map(|offset| offset.to_le_bytes()[0]).collect();
                let written = header.append(vec![bytes.into()]);
                for (position, part) in written.parts {
                    let position = usize::try_from(position).unwrap();
                    file[position..position + part.len()].copy_from_slice(&part);
                }
                file
            };
            write(&mut header, 0, grown);
            header.stop_growing(4);
            assert!(header.is_sound(), "{header:?}");
            assert_eq!((header.head_bytes, header.ring_bytes), (head, ring));
            let file = write(&mut header, grown, 50);
            assert_eq!(header.length(), head + ring);
            for offset in (0..head).chain(50 - ring..50) {
                let Lies::At { position, .. } = header.at(offset) else {
                    panic!("{offset} is gone of {header:?}");
                };
                let byte = file[usize::try_from(position).unwrap()];
                assert_eq!(byte, offset.to_le_bytes()[0]);
            }
            assert_eq!(header.at(head), Lies::Gone { to: 50 - ring });
        }
    }

    #[test]
    fn room_is_what_overwrites_nothing_that_is_needed() {
        let mut header = SpoolHeader::new(0, 10, 16);
        assert_eq!(header.room(0), 26);
        header.append(vec![vec![0; 20].into()]);
        assert_eq!(header.room(0), 6);
        assert_eq!(header.room(15), 11);
        assert_eq!(header.room(20), 16);
    }

    #[test]
    fn figures_from_a_broken_file_are_told() {
        let sound = SpoolHeader::new(7, 10, 16);
        assert!(sound.is_sound());
        for broken in [
            SpoolHeader {
                ring_bytes: 0,
                ..sound
            },
            SpoolHeader {
                base: u64::MAX,
                ..sound
            },
            SpoolHeader { to: 3, ..sound },
            SpoolHeader { from: 2, ..sound },
            SpoolHeader { to: 1_000, ..sound },
            SpoolHeader {
                from: 900,
                to: 800,
                ..sound
            },
        ] {
            assert!(!broken.is_sound(), "{broken:?}");
        }
    }
}
