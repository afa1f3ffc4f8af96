//! What readers get of a run's output, and what they are told is gone.

use moltis_gateway::api::follow::{Gap, GapReason};
use moltis_gateway::api::runs::{RunResult, Stream as ApiStream};
use moltis_gateway::output::OutputLimits;
use moltis_proto::limits::HEAD_BYTES_MAX;

use super::excuses::{Excuses, Since};
use super::known::{Known, MEMORY_BYTES, at};
use super::{Checked, violation};
use crate::simulate::kernel::script::{Stream, Tag, bytes as right_bytes};

/// Bytes of an output as text that are compared: to tell any bytes as text takes its time.
const COMPARED_MAX: u64 = 64 * 1024;

/// What readers got of a stream.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Parts that do not overlap, each with the time when somebody first got it.
    parts: Vec<(u64, u64, Since)>,
    /// How far anybody came, and when.
    pub(super) high: Option<(u64, Since)>,
}

impl Reads {
    fn note(&mut self, from: u64, to: u64, now: Since) {
        if self.high.is_none_or(|(high, _)| to > high) {
            self.high = Some((to, now));
        }
        let mut new = vec![(from, to)];
        for (begin, end, _) in &self.parts {
            let left = |(from, to): (u64, u64)| {
                let before = (from, to.min(*begin));
                let behind = (from.max(*end), to);
                [before, behind]
            };
            new = new.into_iter().flat_map(left).collect();
            new.retain(|(from, to)| from < to);
        }
        match (self.parts.last_mut(), &new[..]) {
            // One reader in one go.
            (Some((_, end, since)), [(from, to)]) if *end == *from && since.time == now.time => {
                *end = *to;
            }
            _ => {
                let new = new.into_iter().map(|(from, to)| (from, to, now));
                self.parts.extend(new);
            }
        }
    }

    /// Returns the parts that lie in a range, with their times.
    fn within(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64, Since)> {
        let parts = self.parts.iter();
        parts
            .map(move |(begin, end, since)| (from.max(*begin), to.min(*end), *since))
            .filter(|(from, to, _)| from < to)
    }
}

/// How much a gateway keeps, and how much all of its runs have written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) limits: OutputLimits,
    pub(super) written: u64,
}

impl Room {
    /// Returns whether a stream may have lost this part because there was too much.
    fn is_too_small(&self, known: &Known, gap: Gap) -> bool {
        let is_over = self.written > self.limits.total_bytes_max;
        let run_bytes: u64 = known.written.iter().sum();
        // Of a run that has too much the beginning stays, and what it wrote last.
        is_over || (run_bytes > self.limits.run_bytes_max && gap.from > 0)
    }
}

impl Known {
    pub(super) fn read(
        &mut self,
        tag: Tag,
        (stream, offset): (Stream, u64),
        bytes: &[u8],
        excuses: &Excuses,
    ) -> Checked {
        let end = offset + bytes.len() as u64;
        let written = self.written[at(stream)];
        if end > written {
            return Err(violation!(
                "I4",
                "{tag} has written {written} bytes to {stream:?}, and {end} are read"
            ));
        }
        self.reads[at(stream)].note(offset, end, excuses.now());
        let right = right_bytes(tag, stream, offset, end);
        if bytes == right {
            return Ok(());
        }
        let pairs = (offset..).zip(bytes.iter().zip(&right));
        let wrong: Vec<_> = pairs.filter(|(_, (found, right))| found != right).collect();
        Err(violation!(
            "I4",
            "{} of {} bytes of {stream:?} of {tag} from {offset} on are wrong, the first is {:?}",
            wrong.len(),
            bytes.len(),
            wrong.first()
        ))
    }

    pub(super) fn missed(&self, tag: Tag, gap: Gap, room: Room, excuses: &Excuses) -> Checked {
        if !self.may_miss(gap, room, excuses) {
            return Err(violation!(
                "I5",
                "{tag} has lost what nothing excuses: {gap:?}"
            ));
        }
        let stream = usize::from(gap.stream == ApiStream::Stderr);
        for (from, to, since) in self.reads[stream].within(gap.from, gap.to) {
            if !may_be_gone(gap.reason, to, since, excuses) {
                return Err(violation!(
                    "I5",
                    "{tag} has lost {from}..{to}, which was read at {:?}: {gap:?}",
                    since.time
                ));
            }
        }
        Ok(())
    }

    /// Returns whether something has befallen the world that takes this from a run.
    fn may_miss(&self, gap: Gap, room: Room, excuses: &Excuses) -> bool {
        let (place, begun) = (self.place, self.begun());
        let length = gap.to - gap.from;
        let lost_files = excuses.lost_files(place, begun);
        let had_trouble = excuses.disk_had_trouble(place, begun);
        match gap.reason {
            GapReason::Limit => room.is_too_small(self, gap),
            GapReason::DiskFull => excuses.disk_was_full(place, begun),
            GapReason::DiskFailed => {
                excuses.disk_failed(place, begun) || excuses.store_failed(begun)
            }
            GapReason::KeeperDied => {
                let died = excuses.keeper_died(place, begun) || excuses.rebooted(place, begun);
                // One that leaves as its disk fails takes with it what it had in memory.
                let left = excuses.keeper_left(place, begun) && had_trouble;
                let is_in_memory = length <= MEMORY_BYTES || lost_files || had_trouble;
                // The next one does not know what the dead one had let go, as the gateway had it.
                let gateway_lost = self.was_taken_by_power || excuses.took_row(begun);
                (died || left) && (is_in_memory || gateway_lost)
            }
            GapReason::PowerCut => excuses.gateway_lost_power(begun) || lost_files,
            // The gateway asks again for what it had acknowledged.
            GapReason::Freed => {
                let gateway_lost = excuses.gateway_lost_power(begun) || excuses.restored(begun);
                let node_lost = excuses.keeper_died(place, begun) || excuses.rebooted(place, begun);
                gateway_lost || (excuses.gateway_died(begun) && node_lost)
            }
            _ => false,
        }
    }
}

/// Looks at the words that were made of an output.
pub(super) fn check_text(tag: Tag, result: &RunResult) -> Checked {
    if result.truncated {
        return Ok(());
    }
    let outputs = [
        (Stream::Out, result.stdout_bytes, &result.stdout),
        (Stream::Err, result.stderr_bytes, &result.stderr),
    ];
    for (stream, total, text) in outputs {
        let right = right_bytes(tag, stream, 0, total.min(COMPARED_MAX));
        if total <= COMPARED_MAX && *text != String::from_utf8_lossy(&right) {
            return Err(violation!(
                "I4",
                "{stream:?} of {tag} is not what it wrote, in the words of its result"
            ));
        }
    }
    Ok(())
}

/// Returns whether what a reader got by then may be gone for a later one. What lies in the gateway's
/// files stays there; its memory, and what was not synced, goes with it, and has to come again.
fn may_be_gone(reason: GapReason, to: u64, read: Since, excuses: &Excuses) -> bool {
    let was_in_memory = to <= HEAD_BYTES_MAX as u64;
    match reason {
        GapReason::Limit => true, // there was too much
        GapReason::PowerCut if excuses.gateway_lost_power(read) => true,
        _ => {
            (excuses.gateway_died(read) && was_in_memory)
                || excuses.death_took_output(read)
                || excuses.gateway_lost_power(read)
                || excuses.restored(read)
        }
    }
}
