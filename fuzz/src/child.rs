//! A command that writes, as far as its output is concerned: an outbox, the files behind it, and the
//! certainty about each byte that only its author has.

use std::time::Instant;

use bytes::Bytes;
use moltis_proto::run::outbox::{
    Outbox, OutboxLimits, Recovered, SpoolDone, SpoolHeader, SpoolOp, Transmit,
};
use moltis_proto::run::{Ending, GapReason, Outcome, Stream, Totals};

use crate::Input;

/// Small enough that few steps fill all of it.
pub const LIMITS: OutboxLimits = OutboxLimits {
    memory_bytes: 400,
    spool_bytes: 2_000,
    spool_head_bytes: 300,
    kept_below_ack_bytes: 64,
    spool_after: std::time::Duration::from_millis(250),
};

/// The most that one write brings.
pub const WRITE_MAX: u64 = 255;

/// A spool file in memory.
#[derive(Debug, Default, Clone)]
pub struct File {
    header: Option<SpoolHeader>,
    bytes: Vec<u8>,
}

/// Where a keeper dies while it writes.
#[derive(Debug, Clone, Copy)]
pub struct Death {
    /// Bytes that still reach the file.
    pub bytes_left: usize,
}

impl File {
    /// Does what an outbox asks, as far as a death lets it; `None` when it came.
    fn perform(&mut self, op: SpoolOp, death: Option<Death>) -> Option<SpoolDone> {
        match op {
            SpoolOp::Write {
                before,
                parts,
                after,
            } => {
                self.header = before.or(self.header);
                assert!(self.header.is_some_and(|header| header.is_sound()));
                let mut left = death.map_or(usize::MAX, |death| death.bytes_left);
                for (position, part) in parts {
                    let from = index(position);
                    let length = part.len().min(left);
                    left -= length;
                    if self.bytes.len() < from + length {
                        self.bytes.resize(from + length, 0);
                    }
                    self.bytes[from..from + length].copy_from_slice(&part[..length]);
                }
                assert!(self.bytes.len() as u64 <= LIMITS.spool_bytes);
                if death.is_some() {
                    return None;
                }
                assert!(after.is_sound());
                self.header = Some(after);
                Some(SpoolDone::Done)
            }
            SpoolOp::Read { position, length } => {
                let from = index(position);
                let bytes = self.bytes[from..from + index(length)].to_vec();
                Some(SpoolDone::Read(bytes.into()))
            }
            SpoolOp::Clear => {
                *self = Self::default();
                Some(SpoolDone::Done)
            }
        }
    }

    /// Returns the stretches of the stream that it has: its beginning, and its ring.
    fn stretches(&self) -> Vec<(u64, u64)> {
        let header = self.header.iter();
        let both = header.flat_map(|header| {
            let head_to = header.base + header.head_bytes;
            [
                (header.base, head_to.min(header.to)),
                (header.from.max(head_to), header.to),
            ]
        });
        both.filter(|(from, to)| from < to).collect()
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("the file is small")
}

/// Returns the byte that a child writes at an offset.
pub fn byte(stream: Stream, offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    mixed.to_le_bytes()[0] ^ if stream == Stream::Stdout { 0 } else { 1 }
}

/// One run on its node.
#[derive(Debug)]
pub struct Child {
    /// What sends.
    pub outbox: Outbox,
    /// What it wrote of each stream.
    pub written: [u64; 2],
    /// Stretches that a dead keeper had left, which have to come.
    pub spooled: [Vec<(u64, u64)>; 2],
    /// It was over, or its keeper has died.
    pub is_over: bool,
    /// Some disk has failed.
    pub disk_failed: bool,
    /// Some keeper has died.
    pub keeper_died: bool,
    /// All spools of its keeper together were once as large as they may be.
    pub was_crowded: bool,
    files: [File; 2],
}

impl Child {
    /// A child that has written nothing.
    pub fn new() -> Self {
        Self {
            outbox: Outbox::new(LIMITS),
            written: [0; 2],
            spooled: Default::default(),
            is_over: false,
            disk_failed: false,
            keeper_died: false,
            was_crowded: false,
            files: Default::default(),
        }
    }

    /// Writes as much as its keeper reads.
    pub fn write(&mut self, input: &mut Input<'_>, now: Instant) {
        let stream = Stream::BOTH[input.below(2)];
        let wanted = u64::from(input.byte());
        if self.is_over {
            return;
        }
        let Some(may) = self.outbox.may_read(stream) else {
            return;
        };
        let from = self.written[stream.index()];
        let to = from + wanted.min(may);
        self.written[stream.index()] = to;
        let bytes: Vec<u8> = (from..to).map(|at| byte(stream, at)).collect();
        self.outbox.handle_output(stream, Bytes::from(bytes), now);
    }

    /// Lets the disk do what waits for it, or fail to.
    pub fn use_disk(&mut self, fails: bool, now: Instant) -> bool {
        let mut worked = false;
        for stream in Stream::BOTH {
            let Some(op) = self.outbox.poll_spool(stream) else {
                continue;
            };
            worked = true;
            let result = if fails {
                self.disk_failed = true;
                Err(GapReason::DiskFull)
            } else {
                let done = self.files[stream.index()].perform(op, None);
                Ok(done.expect("nobody dies"))
            };
            self.outbox.handle_spool(stream, result, now);
        }
        worked
    }

    /// All spools of its keeper together have as much as they may, or have room again.
    pub fn let_spools_grow(&mut self, may_grow: bool) {
        self.outbox.let_spools_grow(may_grow);
        self.was_crowded |= !may_grow;
    }

    /// Ends the run.
    pub fn finish(&mut self) {
        if !self.is_over {
            self.outbox.finish(ending(Outcome::Exited));
            self.is_over = true;
        }
    }

    /// The keeper dies in the middle of what it was writing; the next one takes over what is left.
    pub fn lose_keeper(&mut self, death: Death, knows_the_end: bool) {
        for stream in Stream::BOTH {
            if let Some(op) = self.outbox.poll_spool(stream) {
                self.files[stream.index()].perform(op, Some(death));
            }
        }
        let streams = [0, 1].map(|n| Recovered {
            header: self.files[n].header,
            total: knows_the_end.then_some(self.written[n]),
        });
        self.spooled = self.files.each_ref().map(File::stretches);
        self.outbox = Outbox::recovered(LIMITS, streams, ending(Outcome::Lost));
        self.is_over = true;
        self.keeper_died = true;
    }

    /// Checks what the outbox says of the streams, whoever listens.
    pub fn check_transmit(&self, transmit: &Transmit, chunk_bytes_max: usize) {
        match transmit {
            Transmit::Output {
                stream,
                offset,
                bytes,
            } => {
                assert!((1..=chunk_bytes_max).contains(&bytes.len()));
                let end = self.written[stream.index()];
                assert!(
                    offset + bytes.len() as u64 <= end,
                    "bytes that nobody wrote"
                );
                for (at, found) in (*offset..).zip(bytes) {
                    assert_eq!(*found, byte(*stream, at), "{stream:?} at {at}");
                }
            }
            Transmit::Gap {
                stream,
                from,
                to,
                reason,
            } => {
                assert!(from < to);
                match reason {
                    GapReason::DiskFull | GapReason::DiskFailed => assert!(self.disk_failed),
                    GapReason::KeeperDied => assert!(self.keeper_died),
                    GapReason::Limit => {
                        let beginning = LIMITS.spool_head_bytes;
                        assert!(
                            self.was_crowded || *from >= beginning,
                            "{from}..{to} is the beginning"
                        );
                    }
                    GapReason::Freed => {}
                    GapReason::PowerCut => panic!("no machine has lost its power"),
                }
                // A disk that does not give back what it has takes it with it.
                if matches!(reason, GapReason::KeeperDied | GapReason::Limit) {
                    let mut spooled = self.spooled[stream.index()].iter();
                    let missed = spooled.find(|has| *from < has.1 && has.0 < *to);
                    assert_eq!(missed, None, "{from}..{to} is a gap, and the spool has it");
                }
            }
            Transmit::Ended { .. } => {}
        }
    }

    /// Checks that memory is bounded, whatever anybody does.
    pub fn check_memory(&self) {
        let each = LIMITS.memory_bytes + LIMITS.kept_below_ack_bytes + 2 * WRITE_MAX;
        let found = self.outbox.memory_bytes();
        assert!(found <= 2 * each, "{found} bytes in memory");
    }

    /// Returns everything that it wrote.
    pub fn totals(&self) -> Totals {
        Totals {
            stdout: self.written[0],
            stderr: self.written[1],
        }
    }
}

impl Default for Child {
    fn default() -> Self {
        Self::new()
    }
}

fn ending(outcome: Outcome) -> Ending {
    Ending {
        outcome,
        reason: None,
        status: None,
        detail: String::new(),
        duration_ms: 0,
        descendants_may_survive: false,
    }
}
