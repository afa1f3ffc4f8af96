//! A stretch of one stream in memory: bytes, and the gaps between them, in order of offsets.
//!
//! Big pieces are shared with whoever reads or sends them. Small ones are copied together first,
//! so that a command that writes a byte at a time costs a byte at a time.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::run::GapReason;

/// Pieces below this are copied together.
const SMALL_BYTES: usize = 4 * 1024;
/// So many copied bytes become one piece.
const SEAL_BYTES: usize = 16 * 1024;

/// What lies at an offset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Bytes(Bytes),
    Gap { to: u64, reason: GapReason },
}

/// The stretch `from..to` of a stream.
#[derive(Debug)]
pub(super) struct Held {
    from: u64,
    to: u64,
    bytes: u64,
    gaps: usize,
    pieces: VecDeque<Piece>,
    /// The newest bytes, behind all pieces.
    tail: BytesMut,
}

#[derive(Debug)]
struct Piece {
    from: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Bytes(Bytes),
    Gap { to: u64, reason: GapReason },
}

impl Piece {
    fn to(&self) -> u64 {
        match &self.kind {
            Kind::Bytes(bytes) => self.from + bytes.len() as u64,
            Kind::Gap { to, .. } => *to,
        }
    }
}

impl Held {
    pub(super) fn new(from: u64) -> Self {
        Self {
            from,
            to: from,
            bytes: 0,
            gaps: 0,
            pieces: VecDeque::new(),
            tail: BytesMut::new(),
        }
    }

    pub(super) fn from(&self) -> u64 {
        self.from
    }

    pub(super) fn to(&self) -> u64 {
        self.to
    }

    /// Returns the bytes held; gaps weigh nothing.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn has_gap(&self) -> bool {
        self.gaps > 0
    }

    /// Returns the end of the last gap, and its reason.
    pub(super) fn last_gap(&self) -> Option<(u64, GapReason)> {
        if self.gaps == 0 {
            return None;
        }
        self.pieces.iter().rev().find_map(|piece| match piece.kind {
            Kind::Gap { to, reason } => Some((to, reason)),
            Kind::Bytes(_) => None,
        })
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        let length = bytes.len() as u64;
        if bytes.len() < SMALL_BYTES {
            self.tail.extend_from_slice(&bytes);
            self.to += length;
            if self.tail.len() >= SEAL_BYTES {
                self.seal();
            }
        } else {
            self.seal();
            self.pieces.push_back(Piece {
                from: self.to,
                kind: Kind::Bytes(bytes),
            });
            self.to += length;
        }
        self.bytes += length;
    }

    /// Marks everything from the end up to `to` as gone.
    pub(super) fn push_gap(&mut self, to: u64, reason: GapReason) {
        self.seal();
        if let Some(Piece {
            kind:
                Kind::Gap {
                    to: gap_to,
                    reason: same,
                },
            ..
        }) = self.pieces.back_mut()
            && *same == reason
        {
            *gap_to = to;
        } else {
            self.pieces.push_back(Piece {
                from: self.to,
                kind: Kind::Gap { to, reason },
            });
            self.gaps += 1;
        }
        self.to = to;
    }

    /// Returns what lies at `offset`, at most `max` bytes of it; `None` at the end.
    pub(super) fn get(&self, offset: u64, max: usize) -> Option<Found> {
        if offset >= self.tail_from() {
            let rest = self.tail.get(index(offset - self.tail_from())..)?;
            let rest = &rest[..rest.len().min(max)];
            return (!rest.is_empty()).then(|| Found::Bytes(Bytes::copy_from_slice(rest)));
        }
        let piece = self.pieces.get(self.piece_at(offset))?;
        match &piece.kind {
            Kind::Bytes(bytes) => {
                let start = index(offset.checked_sub(piece.from)?);
                let end = bytes.len().min(start.saturating_add(max));
                (start < end).then(|| Found::Bytes(bytes.slice(start..end)))
            }
            Kind::Gap { to, reason } => Some(Found::Gap {
                to: *to,
                reason: *reason,
            }),
        }
    }

    /// Returns how many bytes of `from..to` are bytes and not gaps.
    pub(super) fn bytes_between(&self, from: u64, to: u64) -> u64 {
        let (from, to) = (from.max(self.from), to.min(self.to));
        if from >= to {
            return 0;
        }
        if self.gaps == 0 {
            return to - from;
        }
        let gone: u64 = self
            .pieces
            .range(self.piece_at(from)..)
            .take_while(|piece| piece.from < to)
            .filter(|piece| matches!(piece.kind, Kind::Gap { .. }))
            .map(|piece| piece.to().min(to) - piece.from.max(from))
            .sum();
        to - from - gone
    }

    /// Lets go of everything below `offset`.
    pub(super) fn release_below(&mut self, offset: u64) {
        let offset = offset.min(self.to);
        while let Some(piece) = self.pieces.front_mut() {
            if piece.from >= offset {
                break;
            }
            let whole = piece.to() <= offset;
            match &mut piece.kind {
                Kind::Bytes(bytes) => {
                    let gone = bytes.len().min(index(offset - piece.from));
                    self.bytes -= gone as u64;
                    bytes.advance(gone);
                }
                Kind::Gap { .. } if whole => self.gaps -= 1,
                Kind::Gap { .. } => {}
            }
            if !whole {
                piece.from = offset;
                break;
            }
            self.pieces.pop_front();
        }
        if let Some(gone) = offset.checked_sub(self.tail_from()) {
            self.tail.advance(index(gone));
            self.bytes -= gone;
        }
        self.from = self.from.max(offset);
    }

    /// Lets go of everything, to begin anew at `offset`.
    pub(super) fn clear_to(&mut self, offset: u64) {
        *self = Self::new(offset);
    }

    /// Returns the bytes in order, shared. Only for a stretch without gaps.
    pub(super) fn share(&mut self) -> Vec<Bytes> {
        self.seal();
        self.pieces
            .iter()
            .filter_map(|piece| match &piece.kind {
                Kind::Bytes(bytes) => Some(bytes.clone()),
                Kind::Gap { .. } => None,
            })
            .collect()
    }

    fn tail_from(&self) -> u64 {
        self.to - self.tail.len() as u64
    }

    fn piece_at(&self, offset: u64) -> usize {
        self.pieces.partition_point(|piece| piece.to() <= offset)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let from = self.tail_from();
            let bytes = std::mem::take(&mut self.tail).freeze();
            self.pieces.push_back(Piece {
                from,
                kind: Kind::Bytes(bytes),
            });
        }
    }
}

/// A distance within what is held fits memory, and so a `usize`.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize) -> Bytes {
        Bytes::from((0..length).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>())
    }

    #[test]
    fn single_bytes_are_kept_together_and_big_pieces_are_shared() {
        let mut held = Held::new(10);
        for byte in 0..100u8 {
            held.push(Bytes::copy_from_slice(&[byte]));
        }
        let big = bytes(SMALL_BYTES);
        held.push(big.clone());
        assert_eq!(held.pieces.len(), 2);
        let Some(Found::Bytes(found)) = held.get(110, usize::MAX) else {
            panic!("bytes expected");
        };
        assert_eq!(found.as_ptr(), big.as_ptr());
        assert_eq!(held.bytes(), 100 + SMALL_BYTES as u64);
    }

    #[test]
    fn what_is_released_is_gone_and_the_rest_keeps_its_offsets() {
        let mut held = Held::new(0);
        held.push(bytes(5_000));
        held.push_gap(6_000, GapReason::Limit);
        held.push_gap(7_000, GapReason::Limit);
        held.push(bytes(10));
        assert_eq!(held.bytes_between(4_999, 7_003), 4);
        held.release_below(6_500);
        assert_eq!(
            held.get(6_500, 1),
            Some(Found::Gap {
                to: 7_000,
                reason: GapReason::Limit
            })
        );
        held.release_below(7_004);
        assert!(!held.has_gap());
        assert_eq!(held.bytes(), 6);
        assert_eq!(
            held.get(7_004, 3),
            Some(Found::Bytes(bytes(10).slice(4..7)))
        );
        assert_eq!(held.get(7_010, 3), None);
        held.release_below(9_000);
        assert_eq!((held.from(), held.to(), held.bytes()), (7_010, 7_010, 0));
    }
}
