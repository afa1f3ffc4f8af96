//! A node's outbox and a gateway's inbox on a simulated link: seeded, slow, and cut at every step.
//!
//! Whatever happens in between, the gateway's store has each byte of both streams once, in order,
//! and then the ending.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use moltis_proto::message::Windows;
use moltis_proto::run::inbox::{Fresh, Inbox};
use moltis_proto::run::outbox::{Outbox, OutboxLimits, SpoolDone, SpoolOp, Transmit};
use moltis_proto::run::turn::{Offer, Turn};
use moltis_proto::run::{Ending, Outcome, Stream, Totals};

const CHUNK: u32 = 60;

/// Four chunks: the least that is allowed.
const WINDOWS: Windows = Windows {
    run_bytes: 4 * CHUNK,
    connection_bytes: 5 * CHUNK,
    stdin_bytes: 100,
    chunk_bytes_max: CHUNK,
};

const LIMITS: OutboxLimits = OutboxLimits {
    memory_bytes: 500,
    spool_bytes: 100_000,
    spool_head_bytes: 300,
    kept_below_ack_bytes: 64,
    spool_after: Duration::from_millis(250),
};

/// What the gateway says.
#[derive(Debug, Clone, Copy)]
enum Down {
    Resume(Totals),
    Ack(Totals),
}

/// A link: frames in order, each way, or nothing.
#[derive(Debug, Default)]
struct Link {
    up: VecDeque<Transmit>,
    down: VecDeque<Down>,
}

/// One run from its child to the store.
struct Pair {
    random: Random,
    now: Instant,
    outbox: Outbox,
    turn: Turn<u8>,
    files: [Vec<u8>; 2],
    written: [u64; 2],
    to_write: u64,
    finished: bool,
    link: Option<Link>,
    inbox: Inbox,
    store: [Vec<u8>; 2],
    /// What the gateway has ever said to have.
    said: [u64; 2],
    ended: Option<Totals>,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let now = start();
        let mut outbox = Outbox::new(LIMITS);
        outbox.follow(&WINDOWS, now);
        Self {
            random: Random(seed * 2 + 1),
            now,
            outbox,
            turn: Turn::new(WINDOWS.connection_bytes),
            files: Default::default(),
            written: [0; 2],
            to_write: 3_000,
            finished: false,
            link: Some(Link::default()),
            inbox: Inbox::new(&WINDOWS, 0, 0),
            store: Default::default(),
            said: [0; 2],
            ended: None,
        }
    }

    /// Something happens. Returns whether anything could.
    fn step(&mut self) -> bool {
        let first = self.random.below(7);
        (0..7).any(|n| match (first + n) % 7 {
            0 => self.child_writes(),
            1 => self.node_sends(),
            2 => self.link_brings_up(),
            3 => self.link_brings_down(),
            4 => self.gateway_acknowledges(),
            5 => self.disk_works(),
            _ => self.gateway_reconnects(),
        })
    }

    fn child_writes(&mut self) -> bool {
        let written: u64 = self.written.iter().sum();
        if written >= self.to_write {
            if !self.finished {
                self.finished = true;
                self.outbox.finish(ending());
                self.turn.add(0);
                return true;
            }
            return false;
        }
        let stream = Stream::BOTH[self.random.below(2)];
        let Some(may) = self.outbox.may_read(stream) else {
            return false;
        };
        let length = (1 + self.random.below(150) as u64).min(may);
        let from = &mut self.written[stream.index()];
        let bytes: Bytes = (*from..*from + length).map(byte).collect::<Vec<_>>().into();
        *from += length;
        self.outbox.handle_output(stream, bytes, self.now);
        self.turn.add(0);
        true
    }

    fn node_sends(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        // A socket takes only so much.
        if link.up.len() >= 6 {
            return false;
        }
        let (outbox, now) = (&mut self.outbox, self.now);
        let frame = self
            .turn
            .poll(|_, credit| match outbox.poll_transmit(credit, now) {
                Some(frame) => Offer::Frame {
                    bytes: match &frame {
                        Transmit::Output { bytes, .. } => bytes.len(),
                        _ => 0,
                    },
                    more: outbox.has_transmit(),
                    frame,
                },
                None if outbox.wants_credit() => Offer::WantsCredit,
                None => Offer::Nothing,
            });
        link.up.extend(frame.clone());
        frame.is_some()
    }

    fn link_brings_up(&mut self) -> bool {
        let Some(frame) = self.link.as_mut().and_then(|link| link.up.pop_front()) else {
            return false;
        };
        match frame {
            Transmit::Output {
                stream,
                offset,
                bytes,
            } => {
                let fresh = self
                    .inbox
                    .handle_output(stream, offset, bytes.len(), self.now);
                if let Fresh::From { skip } = fresh.unwrap() {
                    let store = &mut self.store[stream.index()];
                    store.extend_from_slice(&bytes[skip..]);
                    self.inbox.handle_stored(stream, store.len() as u64);
                }
            }
            Transmit::Gap { .. } => unreachable!("nothing is ever lost here: {frame:?}"),
            Transmit::Ended { totals, .. } => {
                self.inbox.handle_ended(&totals, false).unwrap();
                self.ended = Some(totals);
            }
        }
        true
    }

    fn gateway_acknowledges(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        let Some(ack) = self.inbox.poll_ack(self.now) else {
            return false;
        };
        self.said = [self.said[0].max(ack.stdout), self.said[1].max(ack.stderr)];
        link.down.push_back(Down::Ack(Totals {
            stdout: ack.stdout,
            stderr: ack.stderr,
        }));
        true
    }

    fn link_brings_down(&mut self) -> bool {
        let Some(frame) = self.link.as_mut().and_then(|link| link.down.pop_front()) else {
            return false;
        };
        let freed = match frame {
            Down::Resume(from) => self.outbox.handle_resume(&WINDOWS, from, self.now),
            Down::Ack(to) => self.outbox.handle_ack(to, self.now),
        };
        self.turn.handle_freed(freed.unwrap());
        self.turn.add(0);
        true
    }

    fn disk_works(&mut self) -> bool {
        let stream = Stream::BOTH[self.random.below(2)];
        let Some(op) = self.outbox.poll_spool(stream) else {
            return false;
        };
        let file = &mut self.files[stream.index()];
        let done = match op {
            SpoolOp::Write { parts, .. } => {
                for (position, part) in parts {
                    let from = usize::try_from(position).unwrap();
                    file.resize(file.len().max(from + part.len()), 0);
                    file[from..from + part.len()].copy_from_slice(&part);
                }
                SpoolDone::Done
            }
            SpoolOp::Read { position, length } => {
                let from = usize::try_from(position).unwrap();
                let to = from + usize::try_from(length).unwrap();
                SpoolDone::Read(file[from..to].to_vec().into())
            }
            SpoolOp::Clear => {
                file.clear();
                SpoolDone::Done
            }
        };
        self.outbox.handle_spool(stream, Ok(done), self.now);
        self.turn.add(0);
        true
    }

    /// Everything on the way is gone. The gateway may even have died, and lost up to 64 bytes of
    /// what it said to have.
    fn cut(&mut self, gateway_dies: bool) {
        self.link = None;
        self.outbox.handle_detached(self.now);
        self.turn = Turn::new(WINDOWS.connection_bytes);
        self.ended = None;
        if gateway_dies {
            for (store, said) in self.store.iter_mut().zip(self.said) {
                let kept = said.saturating_sub(self.random.below(65) as u64);
                store.truncate(usize::try_from(kept).unwrap());
            }
        }
    }

    fn gateway_reconnects(&mut self) -> bool {
        if self.link.is_some() || self.random.below(3) > 0 {
            return false;
        }
        let [stdout, stderr] = self.store.each_ref().map(|store| store.len() as u64);
        self.inbox = Inbox::new(&WINDOWS, stdout, stderr);
        self.said = [self.said[0].max(stdout), self.said[1].max(stderr)];
        let down = VecDeque::from([Down::Resume(Totals { stdout, stderr })]);
        self.link = Some(Link {
            up: VecDeque::new(),
            down,
        });
        true
    }

    /// Time passes when nothing else can happen.
    fn wait(&mut self) {
        self.now += Duration::from_millis(20);
        if self.outbox.poll_timeout().is_some_and(|at| at <= self.now) {
            self.outbox.handle_timeout(self.now);
        }
    }

    /// Runs to the end and checks what is stored. Returns the steps that it took.
    fn finish(&mut self, mut cut_before: impl FnMut(usize, &mut Self)) -> usize {
        for step in 0..100_000 {
            cut_before(step, self);
            if !self.step() {
                self.wait();
            }
            assert!(self.inbox.in_flight() <= u64::from(WINDOWS.run_bytes));
            if let (Some(totals), true) = (self.ended, self.finished) {
                for stream in Stream::BOTH {
                    let n = stream.index();
                    assert_eq!(totals.of(stream), self.written[n]);
                    let expected: Vec<u8> = (0..self.written[n]).map(byte).collect();
                    assert!(
                        self.store[n] == expected,
                        "{stream:?} is not what was written"
                    );
                }
                return step;
            }
        }
        panic!("the run does not end: {:?}", self.outbox);
    }
}

fn byte(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).to_le_bytes()[0]
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

/// The generator `SplitMix64`: the same seed, the same story.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "where the simulated clock begins"
)]
fn start() -> Instant {
    Instant::now()
}

#[test]
fn output_arrives_whole_once_and_in_order_on_a_calm_link() {
    for seed in 0..200 {
        Pair::new(seed).finish(|_, _| {});
    }
}

#[test]
fn a_cut_at_any_step_loses_nothing_and_doubles_nothing() {
    for seed in 0..8 {
        let steps = Pair::new(seed).finish(|_, _| {});
        for at in 0..=steps {
            Pair::new(seed).finish(|step, pair| {
                if step == at {
                    pair.cut(at % 2 == 0);
                }
            });
        }
    }
}

#[test]
fn a_link_that_breaks_again_and_again_brings_everything_in_the_end() {
    for seed in 0..300 {
        let mut breaks = Random(seed);
        Pair::new(seed).finish(|_, pair| {
            if breaks.below(40) == 0 {
                let dies = breaks.below(4) == 0;
                pair.cut(dies);
            }
        });
    }
}

#[test]
#[ignore = "minutes: `cargo xtask nightly` runs it"]
fn ten_thousand_more_stories_end_as_well() {
    for seed in 1000..11_000 {
        let mut breaks = Random(seed);
        let often = 10 + breaks.below(200);
        Pair::new(seed).finish(|_, pair| {
            if breaks.below(often) == 0 {
                let dies = breaks.below(4) == 0;
                pair.cut(dies);
            }
        });
    }
}

/// The gateway acknowledges only when its inbox says so, and no time ever passes that could help.
#[test]
fn four_chunks_of_window_and_the_laziest_gateway_do_not_deadlock() {
    for seed in 0..200 {
        let mut pair = Pair::new(seed);
        pair.to_write = 10_000;
        let began = pair.now;
        pair.finish(|_, _| {});
        assert_eq!(pair.now, began, "seed {seed} needed the clock");
    }
}
