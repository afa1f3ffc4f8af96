//! One stream of one run as memory holds it: what waits for the disk, what was written lately, and
//! a map of what lies on the disk. Pure: the driver moves bytes as this says.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use moltis_proto::run::GapReason;

use super::{HEAD, OutputRead};

/// Pieces shorter than this are put together, so that many small writes of a command do not cost
/// a piece each.
const SMALL: usize = 4 * 1024;

/// Pieces that stay in memory after they were written, however short: gaps have no bytes at all.
pub(super) const RECENT_PIECES_MAX: usize = 1024;

/// Memory that a gap counts for while it waits for the disk; more than it takes.
const GAP_COST: usize = 1024;

/// Stretches of one stream on the disk, at most. An honest run has a few, and its segments are bounded
/// elsewhere; where more than that are gaps, those beside each other become one.
pub(super) const EXTENTS_MAX: usize = 8 * 1024;

/// Length to which small pieces are put together.
const JOINED: usize = 32 * 1024;

/// A stretch of a stream, or its absence.
#[derive(Debug, Clone)]
struct Piece {
    from: u64,
    to: u64,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Bytes(Bytes),
    Gap(GapReason),
}

/// A stretch on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) what: OnDisk,
}

/// What is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnDisk {
    /// One segment, named by where it begins.
    Segment,
    /// Nothing, for this reason.
    Gap(GapReason),
}

/// What the writer is to do next.
#[derive(Debug, Clone)]
pub(super) enum ToWrite {
    /// These bytes, which follow each other.
    Bytes { from: u64, pieces: Vec<Bytes> },
    /// Note this gap.
    Gap {
        from: u64,
        to: u64,
        reason: GapReason,
    },
}

/// Where a read goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Here it is.
    Now(OutputRead),
    /// In the segment that begins at `segment`, up to `to`.
    File { segment: u64, to: u64 },
}

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The first bytes, while there is no file.
    head: BytesMut,
    filed: bool,
    /// What waits for the disk, and what was written lately; in order, without holes.
    pieces: VecDeque<Piece>,
    pieces_bytes: usize,
    /// Small pieces that are still put together; they lie behind `pieces`.
    joining: BytesMut,
    end: u64,
    written: u64,
    /// Of what waits for the disk, what are gaps: however long they are, they hold little memory.
    gaps_waiting: u64,
    /// How many those are.
    gaps: usize,
    /// Bytes that may be acknowledged.
    stored: u64,
    extents: Vec<Extent>,
    total: Option<u64>,
    /// Its output was deleted to make room.
    freed: bool,
}

impl Memory {
    /// Begins with what lies on the disk.
    pub(super) fn with_extents(extents: Vec<Extent>) -> Self {
        let end = extents.last().map_or(0, |last| last.to);
        Self {
            filed: !extents.is_empty(),
            end,
            written: end,
            stored: end,
            extents,
            ..Self::default()
        }
    }

    /// Begins with a whole short stream.
    pub(super) fn with_head(head: &[u8]) -> Self {
        let length = head.len() as u64;
        Self {
            head: head.into(),
            end: length,
            written: length,
            stored: length,
            ..Self::default()
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    pub(super) fn is_filed(&self) -> bool {
        self.filed
    }

    pub(super) fn is_finished(&self) -> bool {
        self.total.is_some()
    }

    /// Returns how far the disk has the stream; 0 where there is no file.
    pub(super) fn on_disk(&self) -> u64 {
        if self.filed { self.written } else { 0 }
    }

    /// Returns the bytes in memory that wait for the disk, with something for each gap.
    pub(super) fn waiting(&self) -> usize {
        if self.filed {
            let waiting = self.end - self.written - self.gaps_waiting;
            let waiting = usize::try_from(waiting).unwrap_or(usize::MAX);
            waiting.saturating_add(self.gaps * GAP_COST)
        } else {
            0
        }
    }

    /// Returns the whole stream where memory alone holds it.
    pub(super) fn head(&self) -> Bytes {
        Bytes::copy_from_slice(&self.head)
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Takes the next bytes. They go at `end`.
    pub(super) fn append(&mut self, bytes: Bytes) {
        let length = bytes.len() as u64;
        if !self.filed && self.end + length <= HEAD {
            self.head.extend_from_slice(&bytes);
            self.end += length;
            self.stored = self.end;
            return;
        }
        self.file_head();
        if bytes.len() < SMALL {
            self.joining.extend_from_slice(&bytes);
            self.end += length;
            if self.joining.len() >= JOINED {
                self.join();
            }
            return;
        }
        self.join();
        self.push(self.end, What::Bytes(bytes), length);
        self.end += length;
    }

    /// Takes a gap, which begins at `end`.
    pub(super) fn gap(&mut self, to: u64, reason: GapReason) {
        self.file_head();
        self.join();
        self.push(self.end, What::Gap(reason), to - self.end);
        self.gaps_waiting += to - self.end;
        self.gaps += 1;
        self.end = to;
    }

    /// Nothing comes behind `total`. What is missing up to there is a gap.
    pub(super) fn finish(&mut self, total: u64) {
        self.total = Some(total.max(self.end));
    }

    /// What is missing was deleted to make room, and so is all that lies in files.
    pub(super) fn free(&mut self) {
        self.freed = true;
        for extent in &mut self.extents {
            if extent.what == OnDisk::Segment {
                extent.what = OnDisk::Gap(GapReason::Limit);
            }
        }
        join_gaps(&mut self.extents);
    }

    /// Gives the first bytes to the disk: the stream is too long for memory alone, or has a gap.
    fn file_head(&mut self) {
        if self.filed {
            return;
        }
        self.filed = true;
        self.written = 0;
        let head = self.head.split().freeze();
        if !head.is_empty() {
            let length = head.len() as u64;
            self.push(0, What::Bytes(head), length);
        }
        self.head = BytesMut::new();
    }

    fn join(&mut self) {
        if self.joining.is_empty() {
            return;
        }
        let joined = self.joining.split().freeze();
        let length = joined.len() as u64;
        self.push(self.end - length, What::Bytes(joined), length);
    }

    fn push(&mut self, from: u64, what: What, length: u64) {
        if let What::Bytes(bytes) = &what {
            self.pieces_bytes += bytes.len();
        }
        self.pieces.push_back(Piece {
            from,
            to: from + length,
            what,
        });
    }

    /// Returns what the disk is to get next, at most `bytes_max` and one piece more.
    pub(super) fn next_to_write(&mut self, bytes_max: usize, pieces_max: usize) -> Option<ToWrite> {
        self.join();
        let first = self
            .pieces
            .partition_point(|piece| piece.to <= self.written);
        let mut run = self.pieces.range(first..);
        let next = run.next()?;
        let from = self.written;
        match &next.what {
            What::Gap(reason) => Some(ToWrite::Gap {
                from,
                to: next.to,
                reason: *reason,
            }),
            What::Bytes(bytes) => {
                // A write that stopped half-way left the rest of its piece.
                let skip = usize::try_from(from - next.from).unwrap_or(bytes.len());
                let mut pieces = vec![bytes.slice(skip..)];
                let mut length = bytes.len() - skip;
                for piece in run.take(pieces_max) {
                    let What::Bytes(bytes) = &piece.what else {
                        break;
                    };
                    if length + bytes.len() > bytes_max {
                        break;
                    }
                    length += bytes.len();
                    pieces.push(bytes.clone());
                }
                Some(ToWrite::Bytes { from, pieces })
            }
        }
    }

    /// The disk has got `to - written` more bytes of the segment that begins at `segment`.
    pub(super) fn wrote(&mut self, segment: u64, to: u64) {
        match self.extents.last_mut() {
            Some(last) if last.what == OnDisk::Segment && last.from == segment => last.to = to,
            _ => self.extents.push(Extent {
                from: segment,
                to,
                what: OnDisk::Segment,
            }),
        }
        self.advance(to);
    }

    /// The disk knows of this gap.
    pub(super) fn noted(&mut self, from: u64, to: u64, reason: GapReason) {
        match self.extents.last_mut() {
            Some(last) if last.what == OnDisk::Gap(reason) => last.to = to,
            _ => self.extents.push(Extent {
                from,
                to,
                what: OnDisk::Gap(reason),
            }),
        }
        if self.extents.len() > EXTENTS_MAX {
            self.join_all_gaps();
        }
        self.gaps_waiting -= to - from;
        self.gaps -= 1;
        self.advance(to);
    }

    fn advance(&mut self, to: u64) {
        self.written = to;
        self.stored = self.stored.max(to);
    }

    /// Lets go of what was written, but for the newest `keep` bytes.
    pub(super) fn trim(&mut self, keep: usize) {
        while let Some(first) = self.pieces.front() {
            let is_little = self.pieces_bytes <= keep && self.pieces.len() <= RECENT_PIECES_MAX;
            if first.to > self.written || is_little {
                return;
            }
            if let What::Bytes(bytes) = &first.what {
                self.pieces_bytes -= bytes.len();
            }
            self.pieces.pop_front();
        }
    }

    /// Returns how many segments there are.
    pub(super) fn segments(&self) -> usize {
        let extents = self.extents.iter();
        extents
            .filter(|extent| extent.what == OnDisk::Segment)
            .count()
    }

    /// Returns the segment to give up when there is too much: the oldest but the first, and never
    /// the one that is being written.
    pub(super) fn segment_to_drop(&self) -> Option<Extent> {
        let mut segments = self
            .extents
            .iter()
            .filter(|extent| extent.what == OnDisk::Segment);
        segments.next()?;
        let candidate = segments.next()?;
        segments.next().map(|_| *candidate)
    }

    /// The segment is gone, for there were too many: what lay between the gaps around it was short,
    /// and all of them are one now.
    pub(super) fn swallowed(&mut self, segment: u64) {
        let Some(at) = self.extents.iter().position(|e| e.from == segment) else {
            return;
        };
        let around = at.saturating_sub(1)..self.extents.len().min(at + 2);
        for extent in &mut self.extents[around] {
            if matches!(extent.what, OnDisk::Gap(_)) {
                extent.what = OnDisk::Gap(GapReason::Limit);
            }
        }
        self.dropped(segment);
    }

    /// The segment is gone: a gap takes its place, one with its neighbours of the same reason.
    pub(super) fn dropped(&mut self, segment: u64) {
        for extent in &mut self.extents {
            if extent.from == segment && extent.what == OnDisk::Segment {
                extent.what = OnDisk::Gap(GapReason::Limit);
            }
        }
        join_gaps(&mut self.extents);
    }

    /// Makes one of all gaps that lie beside each other, whatever their reasons.
    fn join_all_gaps(&mut self) {
        let is_gap = |extent: &Extent| matches!(extent.what, OnDisk::Gap(_));
        self.extents.dedup_by(|next, before| {
            let joins = is_gap(next) && is_gap(before);
            if joins {
                before.to = next.to;
                if before.what != next.what {
                    before.what = OnDisk::Gap(GapReason::Limit);
                }
            }
            joins
        });
    }

    /// Finds what lies at `offset`.
    pub(super) fn find(&self, offset: u64, max: usize) -> Found {
        if offset >= self.end {
            return Found::Now(self.beyond(offset));
        }
        if !self.filed {
            return Found::Now(part(&self.head, 0, offset, max));
        }
        let joining_from = self.end - self.joining.len() as u64;
        if offset >= joining_from {
            return Found::Now(part(&self.joining, joining_from, offset, max));
        }
        if self
            .pieces
            .front()
            .is_some_and(|first| first.from <= offset)
        {
            let at = self.pieces.partition_point(|piece| piece.to <= offset);
            let piece = &self.pieces[at];
            return Found::Now(match &piece.what {
                What::Gap(reason) => OutputRead::Gap {
                    from: piece.from,
                    to: piece.to,
                    reason: *reason,
                },
                What::Bytes(bytes) => shared_part(bytes, piece.from, offset, max),
            });
        }
        let at = self.extents.partition_point(|extent| extent.to <= offset);
        match self.extents.get(at) {
            Some(extent) => match extent.what {
                OnDisk::Segment => Found::File {
                    segment: extent.from,
                    to: extent.to.min(offset.saturating_add(max as u64)),
                },
                OnDisk::Gap(reason) => Found::Now(OutputRead::Gap {
                    from: extent.from,
                    to: extent.to,
                    reason,
                }),
            },
            None => Found::Now(OutputRead::Wait),
        }
    }

    /// Returns the offset up to which every byte from `offset` on is there: that of the next gap,
    /// else the end so far.
    pub(super) fn whole_until(&self, offset: u64) -> u64 {
        let on_disk = self.extents.iter().filter_map(|extent| match extent.what {
            OnDisk::Gap(_) => Some((extent.from, extent.to)),
            OnDisk::Segment => None,
        });
        let in_memory = self.pieces.iter().filter_map(|piece| match piece.what {
            What::Gap(_) => Some((piece.from, piece.to)),
            What::Bytes(_) => None,
        });
        let gaps = on_disk.chain(in_memory);
        let next = gaps
            .filter(|(_, to)| *to > offset)
            .map(|(from, _)| from)
            .min();
        next.unwrap_or(self.end).max(offset)
    }

    fn beyond(&self, offset: u64) -> OutputRead {
        match self.total {
            None => OutputRead::Wait,
            Some(total) if offset < total => OutputRead::Gap {
                from: self.end,
                to: total,
                reason: if self.freed {
                    GapReason::Limit
                } else {
                    GapReason::PowerCut
                },
            },
            Some(_) => OutputRead::End,
        }
    }
}

/// Makes one gap of those that lie beside each other for the same reason.
pub(super) fn join_gaps(extents: &mut Vec<Extent>) {
    extents.dedup_by(|next, before| {
        let same = matches!(next.what, OnDisk::Gap(_)) && next.what == before.what;
        if same {
            before.to = next.to;
        }
        same
    });
}

fn part(bytes: &[u8], from: u64, offset: u64, max: usize) -> OutputRead {
    let range = within(bytes.len(), from, offset, max);
    OutputRead::Bytes(Bytes::copy_from_slice(&bytes[range]))
}

fn shared_part(bytes: &Bytes, from: u64, offset: u64, max: usize) -> OutputRead {
    OutputRead::Bytes(bytes.slice(within(bytes.len(), from, offset, max)))
}

/// Returns which of `length` bytes from `from` on to hand out. Both ends lie within the length.
fn within(length: usize, from: u64, offset: u64, max: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset - from).unwrap_or(length).min(length);
    start..length.min(start.saturating_add(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has the disk know of so many gaps, each of one byte and behind the one before.
    fn gaps(count: u64, reason: impl Fn(u64) -> GapReason) -> Memory {
        let mut memory = Memory::default();
        for from in 0..count {
            memory.gap(from + 1, reason(from));
            memory.noted(from, from + 1, reason(from));
            memory.trim(0);
        }
        memory
    }

    #[test]
    fn gaps_without_end_take_no_memory_without_end() {
        let count = 10 * EXTENTS_MAX as u64;
        let memory = gaps(count, |_| GapReason::Freed);
        assert_eq!(memory.extents.len(), 1);
        let memory = gaps(count, |from| {
            if from % 2 == 0 {
                GapReason::Freed
            } else {
                GapReason::DiskFull
            }
        });
        assert!(memory.extents.len() <= EXTENTS_MAX);
        let mut from = 0;
        for extent in &memory.extents {
            assert_eq!(extent.from, from, "nothing is left out");
            from = extent.to;
        }
        assert_eq!(from, count);
    }

    const BIG: usize = 60 * 1024;

    fn bytes(length: usize, fill: u8) -> Bytes {
        vec![fill; length].into()
    }

    fn filed() -> Memory {
        let mut memory = Memory::default();
        memory.append(bytes(BIG, 1));
        memory.append(bytes(BIG, 2));
        memory
    }

    fn read(memory: &Memory, offset: u64) -> (usize, u8) {
        match memory.find(offset, usize::MAX) {
            Found::Now(OutputRead::Bytes(bytes)) => (bytes.len(), bytes[0]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_short_stream_stays_in_memory_and_is_stored_at_once() {
        let mut memory = Memory::default();
        memory.append(bytes(HEAD_BYTES, 1));
        assert_eq!(
            (memory.end(), memory.stored(), memory.is_filed()),
            (HEAD, HEAD, false)
        );
        assert!(memory.next_to_write(usize::MAX, 9).is_none());
        assert_eq!(memory.head().len(), HEAD_BYTES);
        memory.append(bytes(1, 2));
        assert!(memory.is_filed());
        assert_eq!((memory.end(), memory.stored()), (HEAD + 1, HEAD));
    }

    const HEAD_BYTES: usize = moltis_proto::limits::HEAD_BYTES_MAX;

    #[test]
    fn a_long_stream_is_stored_as_it_is_written() {
        let mut memory = filed();
        let Some(ToWrite::Bytes { from: 0, pieces }) = memory.next_to_write(usize::MAX, 9) else {
            panic!("there is something to write");
        };
        assert_eq!(pieces.len(), 2);
        let half = BIG as u64 + 10;
        memory.wrote(0, half);
        assert_eq!(memory.stored(), half);
        let Some(ToWrite::Bytes { from, pieces }) = memory.next_to_write(usize::MAX, 9) else {
            panic!("the rest of the piece is left");
        };
        assert_eq!((from, pieces[0].len()), (half, BIG - 10));
        memory.wrote(0, 2 * BIG as u64);
        assert!(memory.next_to_write(usize::MAX, 9).is_none());
        assert_eq!(memory.extents().len(), 1);
    }

    #[test]
    fn what_waits_or_was_written_lately_is_read_from_memory() {
        let mut memory = filed();
        assert_eq!(read(&memory, 0), (BIG, 1));
        assert_eq!(read(&memory, BIG as u64 + 5), (BIG - 5, 2));
        memory.wrote(0, 2 * BIG as u64);
        memory.trim(BIG);
        assert_eq!(
            memory.find(7, 100),
            Found::File {
                segment: 0,
                to: 107
            }
        );
        assert_eq!(read(&memory, BIG as u64), (BIG, 2));
    }

    #[test]
    fn what_is_not_written_is_never_let_go() {
        let mut memory = filed();
        memory.trim(0);
        assert_eq!(read(&memory, 0), (BIG, 1));
    }

    #[test]
    fn small_pieces_are_put_together() {
        let mut memory = filed();
        for fill in 0..100 {
            memory.append(bytes(1, fill));
        }
        let at = 2 * BIG as u64;
        assert_eq!(read(&memory, at + 7), (93, 7));
        memory.wrote(0, at);
        let Some(ToWrite::Bytes { pieces, .. }) = memory.next_to_write(usize::MAX, 9) else {
            panic!("there is something to write");
        };
        assert_eq!((pieces.len(), pieces[0].len()), (1, 100));
    }

    #[test]
    fn a_gap_is_read_from_memory_and_from_the_map() {
        let mut memory = Memory::default();
        memory.append(bytes(10, 1));
        memory.gap(50, GapReason::Freed);
        memory.append(bytes(10, 2));
        let gap = Found::Now(OutputRead::Gap {
            from: 10,
            to: 50,
            reason: GapReason::Freed,
        });
        assert_eq!(memory.find(30, 9), gap);
        memory.wrote(0, 10);
        let Some(ToWrite::Gap {
            from: 10,
            to: 50,
            reason,
        }) = memory.next_to_write(9, 9)
        else {
            panic!("the gap is to be noted");
        };
        memory.noted(10, 50, reason);
        memory.wrote(50, 60);
        memory.trim(0);
        assert_eq!(memory.find(30, 9), gap);
        assert_eq!(
            memory.find(55, 9),
            Found::File {
                segment: 50,
                to: 60
            }
        );
        assert_eq!(memory.stored(), 60);
    }

    #[test]
    fn a_reader_waits_at_the_end_until_it_is_the_end() {
        let mut memory = Memory::default();
        memory.append(bytes(10, 1));
        assert_eq!(memory.find(10, 9), Found::Now(OutputRead::Wait));
        memory.finish(10);
        assert_eq!(memory.find(10, 9), Found::Now(OutputRead::End));
        assert_eq!(memory.find(1000, 9), Found::Now(OutputRead::End));
    }

    #[test]
    fn what_the_totals_name_and_nothing_holds_is_a_gap() {
        let mut memory = Memory::with_head(b"0123456789");
        memory.finish(15);
        assert_eq!(
            memory.find(12, 9),
            Found::Now(OutputRead::Gap {
                from: 10,
                to: 15,
                reason: GapReason::PowerCut
            })
        );
        assert_eq!(memory.find(15, 9), Found::Now(OutputRead::End));
    }

    #[test]
    fn the_middle_is_given_up_first() {
        let segment = |from| Extent {
            from,
            to: from + 10,
            what: OnDisk::Segment,
        };
        let mut memory = Memory::with_extents((0..5).map(|n| segment(n * 10)).collect());
        assert_eq!(memory.segment_to_drop(), Some(segment(10)));
        memory.dropped(10);
        assert_eq!(memory.segment_to_drop(), Some(segment(20)));
        memory.dropped(20);
        assert_eq!(memory.segment_to_drop(), Some(segment(30)));
        memory.dropped(30);
        assert_eq!(
            memory.segment_to_drop(),
            None,
            "the first and the newest stay"
        );
        assert_eq!(
            memory.find(15, 9),
            Found::Now(OutputRead::Gap {
                from: 10,
                to: 40,
                reason: GapReason::Limit
            })
        );
    }
}
