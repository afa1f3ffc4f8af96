//! What proves the bytes of a spool: which of them have a checksum together, and what it is over.
//!
//! Pure. The straight part and the ring are each cut into blocks. The checksum of a block is over the
//! offset of its first byte in the stream and its bytes, so that one of an earlier turn of the ring
//! proves nothing. Each block that the writer has left has its checksum in a table; that of the block
//! that still grows stands in the page with the header, which says how long it is.

use bytes::Bytes;
use crc32fast::Hasher;
use moltis_proto::limits::SPOOL_BYTES_MAX;
use moltis_proto::run::outbox::SpoolHeader;

/// Bytes of a block: a page of memory, which is what a power cut takes or leaves.
pub(in crate::keeper) const BLOCK_BYTES: u64 = 4096;
/// Bytes of a checksum.
pub(super) const SUM_BYTES: u64 = 4;
/// Bytes of the table: 16,384 blocks of one stream.
pub(super) const TABLE_BYTES: u64 = SPOOL_BYTES_MAX / BLOCK_BYTES * SUM_BYTES;

/// Bytes of a spool that have one checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// Where its checksum stands in the table, counted in checksums.
    pub(super) index: u64,
    /// Position of its first byte.
    pub(super) position: u64,
    /// Offset of its first byte in the stream.
    offset: u64,
    /// Bytes that it has room for.
    room: u64,
}

/// Checksums that stand in a row in the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) index: u64,
    pub(super) sums: Vec<u8>,
}

/// What may be said of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is what was written.
    Whole,
    /// The ring has overwritten its beginning, and nothing proves the rest.
    Overwritten,
    /// It is not what was written.
    Spoiled,
}

/// The checksums of a spool that is being written.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// The block that the newest byte lies in; `None` where its beginning is not known.
    growing: Option<Growing>,
}

#[derive(Debug)]
struct Growing {
    block: Block,
    length: u64,
    hasher: Hasher,
}

impl Block {
    /// Returns the block that this position lies in, as the newest byte there was written; `None`
    /// where none was.
    pub(super) fn at(header: &SpoolHeader, position: u64) -> Option<Self> {
        let offset = header.offset_at(position)?;
        let (index, start, length) = if position < header.head_bytes {
            (0, 0, header.head_bytes)
        } else {
            let index = header.head_bytes.div_ceil(BLOCK_BYTES);
            (index, header.head_bytes, header.ring_bytes)
        };
        let within = (position - start) % BLOCK_BYTES;
        let first = position - start - within;
        Some(Self {
            index: index + first / BLOCK_BYTES,
            position: start + first,
            offset: offset - within,
            room: BLOCK_BYTES.min(length - first),
        })
    }

    /// Returns how many bytes of it this header speaks of.
    pub(super) fn length(&self, header: &SpoolHeader) -> u64 {
        self.room.min(header.to.saturating_sub(self.offset))
    }

    /// Returns whether its checksum stands with the header.
    pub(super) fn is_growing(&self, header: &SpoolHeader) -> bool {
        self.offset + self.length(header) == header.to
    }

    /// Looks at what the file has of it. What the file has not is `None`.
    pub(super) fn judge(
        &self,
        header: &SpoolHeader,
        bytes: Option<&[u8]>,
        sum: Option<u32>,
    ) -> Verdict {
        let is_straight = self.position < header.head_bytes;
        if !is_straight && self.offset < header.from {
            return Verdict::Overwritten;
        }
        let found = bytes.map(|bytes| {
            let mut hasher = self.hasher();
            hasher.update(bytes);
            hasher.finalize()
        });
        if found.is_some() && found == sum {
            Verdict::Whole
        } else {
            Verdict::Spoiled
        }
    }

    fn hasher(&self) -> Hasher {
        let mut hasher = Hasher::new();
        hasher.update(&self.offset.to_be_bytes());
        hasher
    }
}

impl Sums {
    /// Returns the checksum of the block that grows.
    pub(super) fn growing(&self) -> u32 {
        self.growing.as_ref().map_or(0, Growing::sum)
    }

    /// Takes the parts of a write behind which the file has this header. Returns the checksums of
    /// the blocks that are left by it.
    pub(super) fn take(&mut self, after: &SpoolHeader, parts: &[(u64, Bytes)]) -> Vec<Row> {
        let mut rows = Vec::new();
        for (position, part) in parts {
            let (mut position, mut rest) = (*position, &part[..]);
            while let Some(block) = Block::at(after, position).filter(|_| !rest.is_empty()) {
                let within = position - block.position;
                let room = usize::try_from(block.room - within).unwrap_or(usize::MAX);
                let (piece, more) = rest.split_at(room.min(rest.len()));
                self.add(block, within, piece, &mut rows);
                position += piece.len() as u64;
                rest = more;
            }
        }
        rows
    }

    fn add(&mut self, block: Block, within: u64, piece: &[u8], rows: &mut Vec<Row>) {
        let goes_on = self.growing.as_ref().is_some_and(|growing| {
            growing.block.index == block.index
                && growing.block.offset == block.offset
                && growing.length == within
        });
        if !goes_on {
            if let Some(left) = self.growing.take() {
                note(rows, left.block.index, left.sum());
            }
            self.growing = (within == 0).then(|| Growing {
                block,
                length: 0,
                hasher: block.hasher(),
            });
        }
        if let Some(growing) = &mut self.growing {
            growing.hasher.update(piece);
            growing.length += piece.len() as u64;
        }
    }
}

impl Growing {
    fn sum(&self) -> u32 {
        self.hasher.clone().finalize()
    }
}

fn note(rows: &mut Vec<Row>, index: u64, sum: u32) {
    let next = |row: &Row| row.index + row.sums.len() as u64 / SUM_BYTES;
    match rows.last_mut() {
        Some(row) if next(row) == index => row.sums.extend(sum.to_be_bytes()),
        _ => rows.push(Row {
            index,
            sums: sum.to_be_bytes().to_vec(),
        }),
    }
}
