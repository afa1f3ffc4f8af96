//! The outbox against a naive model: whatever a child, a disk and a client do, the client gets
//! each byte of each stream once, in order, or a marked gap that has a right to be there.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use moltis_proto::message::Windows;
use moltis_proto::run::outbox::{Outbox, OutboxLimits, Recovered, SpoolHeader, Transmit};
use moltis_proto::run::{Ending, GapReason, Outcome, Stream, Totals};
use proptest::prelude::*;

#[path = "outbox/file.rs"]
mod file;

use file::File;

const LIMITS: OutboxLimits = OutboxLimits {
    memory_bytes: 400,
    spool_bytes: 2_000,
    spool_head_bytes: 300,
    kept_below_ack_bytes: 64,
    spool_after: Duration::from_millis(250),
};

const WINDOWS: Windows = Windows {
    run_bytes: 200,
    connection_bytes: 1_000,
    stdin_bytes: 100,
    chunk_bytes_max: 50,
};

/// The most that one read of the driver brings.
const READ: u64 = 120;

#[derive(Debug, Clone, Copy)]
enum Step {
    Write(Stream, u64),
    Send(usize),
    Ack(u8),
    Spool { fails: bool },
    Wait(u64),
    Detach,
    Resume { back: u64 },
    Spill,
    Grow(bool),
    GrowMemory(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    let step = prop_oneof![
        8 => (stream, 1..READ).prop_map(|(stream, bytes)| Step::Write(stream, bytes)),
        6 => (1..8usize).prop_map(Step::Send),
        4 => any::<u8>().prop_map(Step::Ack),
        8 => prop::bool::weighted(0.03).prop_map(|fails| Step::Spool { fails }),
        2 => (1..300u64).prop_map(Step::Wait),
        1 => Just(Step::Detach),
        1 => (0..200u64).prop_map(|back| Step::Resume { back }),
        1 => Just(Step::Spill),
        1 => any::<bool>().prop_map(Step::Grow),
        1 => any::<bool>().prop_map(Step::GrowMemory),
    ];
    prop::collection::vec(step, 1..400)
}

/// The byte that a child writes at an offset.
fn byte(stream: Stream, offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    mixed.to_le_bytes()[0] ^ u8::try_from(stream.index()).unwrap()
}

fn text(stream: Stream, from: u64, length: u64) -> Bytes {
    (from..from + length)
        .map(|at| byte(stream, at))
        .collect::<Vec<_>>()
        .into()
}

/// What a client has got of one stream.
#[derive(Debug, Default, Clone)]
struct Got {
    next: u64,
    acked: u64,
    gaps: Vec<(u64, u64, GapReason)>,
}

#[derive(Debug)]
struct World {
    outbox: Outbox,
    files: [File; 2],
    got: [Got; 2],
    written: [u64; 2],
    now: Instant,
    under_way: u64,
    ended: Option<Totals>,
    ever_detached: bool,
    ever_failed: bool,
    /// The spools were not let grow.
    ever_short: bool,
    /// The highest offset that was ever acknowledged, or resumed from.
    acked_high: [u64; 2],
}

impl World {
    fn new() -> Self {
        let now = start();
        let mut outbox = Outbox::new(LIMITS);
        outbox.follow(&WINDOWS, now);
        Self {
            outbox,
            files: Default::default(),
            got: Default::default(),
            written: [0; 2],
            now,
            under_way: 0,
            ended: None,
            ever_detached: false,
            ever_failed: false,
            ever_short: false,
            acked_high: [0; 2],
        }
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::Write(stream, bytes) => self.write(stream, bytes),
            Step::Send(frames) => {
                for _ in 0..frames {
                    self.send();
                }
            }
            Step::Ack(share) => self.ack(share),
            Step::Spool { fails } => self.spool(fails),
            Step::Wait(millis) => {
                self.now += Duration::from_millis(millis);
                if self.outbox.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.outbox.handle_timeout(self.now);
                }
            }
            Step::Detach => {
                self.under_way -= self.outbox.handle_detached(self.now);
                self.ever_detached = true;
            }
            Step::Resume { back } => self.resume(back),
            Step::Spill => self.outbox.spill(self.now),
            Step::Grow(may_grow) => {
                self.outbox.let_spools_grow(may_grow);
                self.ever_short |= !may_grow;
            }
            Step::GrowMemory(may_grow) => self.outbox.let_memory_grow(may_grow),
        }
        self.check();
    }

    fn write(&mut self, stream: Stream, wanted: u64) {
        let Some(may) = self.outbox.may_read(stream) else {
            return;
        };
        let written = &mut self.written[stream.index()];
        let bytes = text(stream, *written, wanted.min(may));
        *written += bytes.len() as u64;
        self.outbox.handle_output(stream, bytes, self.now);
    }

    fn send(&mut self) -> bool {
        match self.outbox.poll_transmit(1_000, self.now) {
            Some(Transmit::Output {
                stream,
                offset,
                bytes,
            }) => {
                let got = &mut self.got[stream.index()];
                assert_eq!(offset, got.next);
                assert!(!bytes.is_empty() && bytes.len() <= 50);
                assert_eq!(bytes, text(stream, offset, bytes.len() as u64));
                got.next += bytes.len() as u64;
                self.under_way += bytes.len() as u64;
            }
            Some(Transmit::Gap {
                stream,
                from,
                to,
                reason,
            }) => {
                let got = &mut self.got[stream.index()];
                assert_eq!(from, got.next);
                assert!(to > from);
                got.gaps.push((from, to, reason));
                got.next = to;
            }
            Some(Transmit::Ended { totals, .. }) => {
                assert_eq!(self.ended.replace(totals), None);
                for stream in Stream::BOTH {
                    assert_eq!(self.got[stream.index()].next, totals.of(stream));
                }
            }
            None => return false,
        }
        true
    }

    /// Acknowledges a share of what has come, in 255ths.
    fn ack(&mut self, share: u8) {
        if !self.outbox.is_followed() {
            return;
        }
        let [stdout, stderr] = self.got.each_mut().map(|got| {
            let part = (got.next - got.acked) * u64::from(share) / 255;
            got.acked += part;
            got.acked
        });
        self.note_acked(stdout, stderr);
        let freed = self.outbox.handle_ack(Totals { stdout, stderr }, self.now);
        self.under_way -= freed.unwrap();
    }

    fn note_acked(&mut self, stdout: u64, stderr: u64) {
        for (high, acked) in self.acked_high.iter_mut().zip([stdout, stderr]) {
            *high = acked.max(*high);
        }
    }

    fn spool(&mut self, fails: bool) {
        for stream in Stream::BOTH {
            if let Some(op) = self.outbox.poll_spool(stream) {
                let result = if fails {
                    self.ever_failed = true;
                    Err(GapReason::DiskFull)
                } else {
                    Ok(self.files[stream.index()].perform(op))
                };
                self.outbox.handle_spool(stream, result, self.now);
            }
        }
    }

    /// The client comes back with what it has, or a little less.
    fn resume(&mut self, back: u64) {
        for got in &mut self.got {
            got.next = got.next.max(got.acked).saturating_sub(back.min(got.next));
            got.acked = got.next;
        }
        let [stdout, stderr] = self.got.each_ref().map(|got| got.next);
        self.note_acked(stdout, stderr);
        let totals = Totals { stdout, stderr };
        let freed = self.outbox.handle_resume(&WINDOWS, totals, self.now);
        self.under_way -= freed.unwrap();
        assert_eq!(self.under_way, 0);
        self.ended = None;
    }

    fn check(&self) {
        assert!(self.under_way <= u64::from(WINDOWS.run_bytes));
        let each = LIMITS.memory_bytes + LIMITS.kept_below_ack_bytes + 2 * READ;
        assert!(
            self.outbox.memory_bytes() <= 2 * each,
            "{} bytes in memory",
            self.outbox.memory_bytes()
        );
        for stream in Stream::BOTH {
            for (from, to, reason) in &self.got[stream.index()].gaps {
                match reason {
                    GapReason::Limit => {
                        assert!(self.ever_detached);
                        assert!(
                            self.ever_short || *from >= LIMITS.spool_head_bytes,
                            "{from}..{to} is the beginning"
                        );
                    }
                    GapReason::DiskFull | GapReason::DiskFailed => assert!(self.ever_failed),
                    GapReason::Freed => assert!(
                        *to <= self.acked_high[stream.index()],
                        "{from}..{to} was never acknowledged"
                    ),
                    other => panic!("a gap for {other:?}"),
                }
            }
        }
    }

    /// Ends the run and lets a patient client take everything.
    fn finish(&mut self) {
        self.outbox.finish(ending());
        self.resume(0);
        for _ in 0..100_000 {
            if self.ended.is_some() {
                break;
            }
            let sent = self.send();
            self.spool(false);
            if !sent {
                self.ack(255);
            }
            self.check();
        }
        let totals = self.ended.expect("the ending comes");
        for stream in Stream::BOTH {
            assert_eq!(totals.of(stream), self.written[stream.index()]);
        }
    }
}

fn ending() -> Ending {
    Ending {
        outcome: Outcome::Exited,
        reason: None,
        status: None,
        detail: String::new(),
        duration_ms: 0,
        descendants_may_survive: false,
    }
}

/// The stretches that a spool has: its beginning, and its ring.
fn lies_in(header: &SpoolHeader) -> [(u64, u64); 2] {
    let head_to = header.base + header.head_bytes;
    [
        (header.base, head_to.min(header.to)),
        (header.from.max(head_to), header.to),
    ]
}

#[expect(
    clippy::disallowed_methods,
    reason = "where the simulated clock begins"
)]
fn start() -> Instant {
    Instant::now()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_byte_comes_once_in_order_or_is_a_marked_gap(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.perform(step);
        }
        world.finish();
    }

    #[test]
    fn a_client_that_stays_and_a_disk_that_works_leave_no_gap(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Detach | Step::Resume { .. } | Step::Spill => {}
                Step::Spool { .. } => world.perform(Step::Spool { fails: false }),
                step => world.perform(step),
            }
        }
        world.finish();
        prop_assert!(world.got.iter().all(|got| got.gaps.is_empty()));
    }

    /// The keeper dies at any point; the spool is all that is left.
    #[test]
    fn what_a_dead_keeper_had_spooled_is_delivered(steps in steps(), knows_the_end: bool) {
        let mut world = World::new();
        for step in steps {
            world.perform(step);
        }
        let streams = [0, 1].map(|n| Recovered {
            header: world.files[n].header,
            total: knows_the_end.then_some(world.written[n]),
        });
        let mut heir = World {
            outbox: Outbox::recovered(LIMITS, streams, ending()),
            files: world.files.clone(),
            got: world.got.clone(),
            ..World::new()
        };
        heir.got.iter_mut().for_each(|got| got.gaps.clear());
        let before = heir.got.clone();
        heir.resume(0);
        for _ in 0..100_000 {
            if heir.ended.is_some() {
                break;
            }
            if !heir.send() {
                heir.ack(255);
            }
            heir.spool(false);
        }
        let totals = heir.ended.expect("the ending comes");
        for stream in Stream::BOTH {
            let n = stream.index();
            let spooled = world.files[n].header.map_or(0, |header| header.to);
            let known = if knows_the_end { world.written[n] } else { spooled };
            prop_assert_eq!(totals.of(stream), known.max(before[n].next));
            for (from, to) in world.files[n].header.iter().flat_map(lies_in) {
                let missed = heir.got[n].gaps.iter().find(|gap| gap.0 < to && from < gap.1);
                prop_assert_eq!(missed, None, "the spool has {}..{}", from, to);
            }
        }
    }
}

#[test]
fn lies_about_offsets_are_refused_and_change_nothing() {
    let mut world = World::new();
    world.write(Stream::Stdout, 100);
    assert!(world.send());
    let lie = Totals {
        stdout: 51,
        stderr: 0,
    };
    assert!(world.outbox.handle_ack(lie, world.now).is_err());
    let lie = Totals {
        stdout: 50,
        stderr: 1,
    };
    assert!(world.outbox.handle_ack(lie, world.now).is_err());
    let lie = Totals {
        stdout: 101,
        stderr: 0,
    };
    assert!(
        world
            .outbox
            .handle_resume(&WINDOWS, lie, world.now)
            .is_err()
    );
    world.finish();
}

#[test]
fn sixty_four_kib_below_the_acknowledged_offset_come_again_and_no_more() {
    let mut world = World::new();
    for _ in 0..5 {
        world.write(Stream::Stdout, 50);
        assert!(world.send());
        world.ack(255);
    }
    world.resume(64);
    assert_eq!(world.got[0].next, 250 - 64);
    assert!(world.send());
    assert!(world.got[0].gaps.is_empty());
    world.resume(250);
    assert!(world.send());
    assert_eq!(world.got[0].gaps, [(0, 250 - 64, GapReason::Freed)]);
    world.finish();
}

#[test]
fn a_followed_child_waits_for_250_ms_and_then_goes_on_into_the_spool() {
    let mut world = World::new();
    while world.outbox.may_read(Stream::Stdout).is_some() {
        world.write(Stream::Stdout, READ);
    }
    world.perform(Step::Wait(249));
    assert_eq!(world.outbox.may_read(Stream::Stdout), None);
    world.perform(Step::Wait(1));
    world.perform(Step::Spool { fails: false });
    while world.outbox.may_read(Stream::Stdout).is_some() {
        world.write(Stream::Stdout, READ);
        world.perform(Step::Spool { fails: false });
    }
    assert!(world.written[0] > LIMITS.spool_bytes - READ);
    world.finish();
    assert!(world.got[0].gaps.is_empty());
}

#[test]
fn a_child_that_nobody_follows_never_waits_and_loses_its_middle() {
    let mut world = World::new();
    world.perform(Step::Detach);
    for _ in 0..400 {
        world.perform(Step::Write(Stream::Stderr, READ - 1));
        world.perform(Step::Spool { fails: false });
    }
    let written = world.written[1];
    assert!(written > 20_000);
    world.finish();
    let ring = LIMITS.spool_bytes - LIMITS.spool_head_bytes;
    assert_eq!(
        world.got[1].gaps,
        [(LIMITS.spool_head_bytes, written - ring, GapReason::Limit)]
    );
}

#[test]
fn a_full_disk_makes_a_followed_child_wait_and_marks_the_loss_of_one_that_nobody_follows() {
    let mut world = World::new();
    for round in 0..20 {
        world.perform(Step::Write(Stream::Stdout, READ));
        world.perform(Step::Wait(300));
        world.perform(Step::Spool { fails: true });
        assert!(
            world.written[0] <= LIMITS.memory_bytes + READ,
            "round {round}"
        );
    }
    world.perform(Step::Detach);
    for _ in 0..20 {
        world.perform(Step::Write(Stream::Stdout, READ));
        world.perform(Step::Spool { fails: true });
    }
    assert!(world.written[0] > 1_000);
    world.finish();
    let [(_, to, reason)] = world.got[0].gaps[..] else {
        panic!("one gap expected: {:?}", world.got[0].gaps);
    };
    assert_eq!((to, reason), (world.written[0], GapReason::DiskFull));
}

#[test]
fn a_gap_that_the_client_has_acknowledged_does_not_keep_the_stream_out_of_its_spool() {
    let mut world = World::new();
    world.perform(Step::Detach);
    for _ in 0..20 {
        world.perform(Step::Write(Stream::Stdout, READ - 1));
        world.perform(Step::Spool { fails: true });
    }
    // The disk works again, and the client hears of the gap.
    world.resume(0);
    while world.send() || world.got[0].acked < world.written[0] {
        world.ack(255);
        world.perform(Step::Spool { fails: false });
    }
    assert_eq!(world.got[0].gaps.len(), 1);
    world.perform(Step::Detach);
    let before = world.written[0];
    while world.written[0] < before + LIMITS.spool_bytes - 2 * READ {
        world.perform(Step::Write(Stream::Stdout, READ - 1));
        world.perform(Step::Spool { fails: false });
    }
    world.finish();
    assert_eq!(world.got[0].gaps.len(), 1, "{:?}", world.got[0].gaps);
}

#[test]
fn spools_that_may_not_grow_keep_the_beginning_and_the_newest_in_what_they_have() {
    let mut world = World::new();
    world.perform(Step::Detach);
    let write = |world: &mut World, until: u64| {
        while world.written[0] < until {
            world.perform(Step::Write(Stream::Stdout, READ));
            world.perform(Step::Spool { fails: false });
        }
        world.outbox.spool_bytes()
    };
    let before = write(&mut world, 1_000);
    world.perform(Step::Grow(false));
    let after = write(&mut world, 10_000);
    assert!(after <= before + LIMITS.kept_below_ack_bytes);
    world.finish();
    let ring = after - LIMITS.spool_head_bytes;
    assert_eq!(
        world.got[0].gaps,
        [(
            LIMITS.spool_head_bytes,
            world.written[0] - ring,
            GapReason::Limit
        )]
    );
    assert_eq!(world.got[1].gaps, []);
}

#[test]
fn what_is_not_spooled_stays_out_of_spools_that_may_not_grow() {
    let mut world = World::new();
    world.perform(Step::Grow(false));
    world.perform(Step::Detach);
    while world.written[0] < 3_000 {
        world.perform(Step::Write(Stream::Stdout, READ));
        world.perform(Step::Spool { fails: false });
    }
    assert_eq!(world.outbox.spool_bytes(), 0);
    world.finish();
    let [(from, to, reason)] = world.got[0].gaps[..] else {
        panic!("one gap, not {:?}", world.got[0].gaps);
    };
    assert!(from >= LIMITS.memory_bytes - READ && to == world.written[0]);
    assert_eq!(reason, GapReason::Limit);
}
