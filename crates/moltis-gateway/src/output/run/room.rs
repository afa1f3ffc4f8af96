//! What of a run is given up when it takes too much of the disk: segments from the middle.

use std::sync::atomic::Ordering;

use moltis_proto::run::Stream;

use super::super::memory::{Extent, OnDisk};
use super::super::{OutputError, files};
use super::{RunOutput, lock};

/// Segments of one run, at most. A segment begins where the one before is full or behind a gap, so
/// an honest run has a few; one that is all gaps gives up the bytes between them.
pub(super) const SEGMENTS_MAX: usize = 1024;

impl RunOutput {
    /// Deletes segments from the middle while there is too much.
    pub(super) fn give_up_some(&self) {
        let kept = if self.space.is_over() {
            3 * self.limits.segment_bytes
        } else {
            self.limits.run_bytes_max
        };
        loop {
            let too_many = self.segments() > SEGMENTS_MAX;
            if self.disk_bytes.load(Ordering::Relaxed) <= kept && !too_many {
                return;
            }
            let Some((stream, extent)) = self.to_give_up(too_many) else {
                return;
            };
            let given_up = {
                let mut disk = lock(&self.disk);
                // First the mark, then the loss.
                disk.note_lost(stream, extent.from, extent.to)
                    .and_then(|()| disk.drop_segment(stream, extent.from))
            };
            match given_up {
                Ok(bytes) => {
                    let memory = &mut self.memory()[stream.index()];
                    if too_many {
                        memory.swallowed(extent.from);
                    } else {
                        memory.dropped(extent.from);
                    }
                    self.disk_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    self.space.less(bytes);
                }
                Err(error) => {
                    tracing::warn!(run.id = %self.run_id, %error, "cannot make room for output");
                    return;
                }
            }
        }
    }

    fn segments(&self) -> usize {
        let memory = self.memory();
        memory[0].segments() + memory[1].segments()
    }

    /// Writes the gaps anew where there are many lines of them: most have become one.
    pub(super) fn shorten_notes(&self) -> Result<(), OutputError> {
        if !lock(&self.disk).has_many_notes() {
            return Ok(());
        }
        let mut lines = String::new();
        for stream in Stream::BOTH {
            for extent in self.memory()[stream.index()].extents() {
                if let OnDisk::Gap(reason) = extent.what {
                    lines.push_str(&files::gap_line(stream, extent.from, extent.to, reason));
                }
            }
        }
        lock(&self.disk).replace_notes(&lines)
    }

    /// Returns the segment to delete next: of the stream that has more on the disk, or more of them
    /// where there are too many.
    fn to_give_up(&self, too_many: bool) -> Option<(Stream, Extent)> {
        let memory = self.memory();
        let weight = |stream: &Stream| -> u64 {
            let extents = memory[stream.index()].extents().iter();
            let segments = extents.filter(|extent| extent.what == OnDisk::Segment);
            if too_many {
                return segments.count() as u64;
            }
            segments.map(|extent| extent.to - extent.from).sum()
        };
        let mut streams = Stream::BOTH;
        streams.sort_by_key(|stream| std::cmp::Reverse(weight(stream)));
        streams.into_iter().find_map(|stream| {
            let extent = memory[stream.index()].segment_to_drop()?;
            Some((stream, extent))
        })
    }
}
