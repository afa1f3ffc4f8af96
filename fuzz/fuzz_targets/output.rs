//! One run's output from its child to the gateway's store: both machines, the link between them, the
//! disk, and deaths of the keeper, in whatever order the bytes say. Each byte comes once and in its
//! order, or as a gap that has a right to be there; what a dead keeper had spooled comes.
#![no_main]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_fuzz::child::{Child, Death, byte};
use moltis_proto::message::Windows;
use moltis_proto::run::inbox::{Fresh, Inbox};
use moltis_proto::run::outbox::Transmit;
use moltis_proto::run::turn::{Offer, Turn};
use moltis_proto::run::{GapReason, Stream, Totals};

/// A connection, and what is on its way.
struct Link {
    windows: Windows,
    turn: Turn<u8>,
    inbox: Inbox,
    up: VecDeque<Transmit>,
    down: VecDeque<Totals>,
}

struct World {
    now: Instant,
    child: Child,
    link: Option<Link>,
    /// What the store has of each stream, gaps included.
    stored: [u64; 2],
    ended: Option<Totals>,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let mut world = Self {
            now: moltis_fuzz::start(),
            child: Child::new(),
            link: None,
            stored: [0; 2],
            ended: None,
        };
        if input.flag() {
            let windows = windows(input);
            world.child.outbox.follow(&windows, world.now);
            world.connect(windows);
        }
        world
    }

    fn connect(&mut self, windows: Windows) {
        let [stdout, stderr] = self.stored;
        let mut turn = Turn::new(windows.connection_bytes);
        turn.add(0);
        self.link = Some(Link {
            windows,
            turn,
            inbox: Inbox::new(&windows, stdout, stderr),
            up: VecDeque::new(),
            down: VecDeque::new(),
        });
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..4 => {
                self.child.write(input, self.now);
                self.wake();
            }
            4 | 5 => {
                for _ in 0..=input.below(4) {
                    self.send();
                }
            }
            6 | 7 => {
                for _ in 0..=input.below(4) {
                    self.arrive();
                }
            }
            8 => self.acknowledge(input.flag()),
            9 => {
                self.hear();
            }
            10 => {
                self.child.use_disk(input.below(16) == 15, self.now);
                self.wake();
            }
            11 => self.wait(u64::from(input.byte()) * 2),
            12 => self.cut(),
            13 => self.reconnect(windows(input)),
            14 => self.child.outbox.spill(self.now),
            _ => match input.below(4) {
                0 => {
                    self.child.finish();
                    self.wake();
                }
                1 => {
                    self.cut();
                    let bytes_left = usize::from(input.short());
                    self.child.lose_keeper(Death { bytes_left }, input.flag());
                }
                _ => self.child.let_spools_grow(input.flag()),
            },
        }
        self.child.check_memory();
    }

    /// The run has news: it gets its turn.
    fn wake(&mut self) {
        if let Some(link) = &mut self.link {
            link.turn.add(0);
        }
    }

    fn send(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        let (outbox, now) = (&mut self.child.outbox, self.now);
        let frame = link.turn.poll(|_, credit| {
            let Some(frame) = outbox.poll_transmit(credit, now) else {
                return if outbox.wants_credit() {
                    Offer::WantsCredit
                } else {
                    Offer::Nothing
                };
            };
            let bytes = match &frame {
                Transmit::Output { bytes, .. } => bytes.len(),
                Transmit::Gap { .. } | Transmit::Ended { .. } => 0,
            };
            Offer::Frame {
                frame,
                bytes,
                more: outbox.has_transmit(),
            }
        });
        let Some(frame) = frame else {
            return false;
        };
        let chunk = link.windows.chunk_bytes_max as usize;
        link.up.push_back(frame.clone());
        self.child.check_transmit(&frame, chunk);
        true
    }

    /// A frame comes to the gateway: what an honest node says breaks no rule.
    fn arrive(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        match link.up.pop_front() {
            None => return false,
            Some(Transmit::Output {
                stream,
                offset,
                bytes,
            }) => {
                let came = link
                    .inbox
                    .handle_output(stream, offset, bytes.len(), self.now);
                let Fresh::From { skip } = came.expect("an honest node keeps the rules") else {
                    return true;
                };
                let stored = &mut self.stored[stream.index()];
                assert_eq!(*stored, offset + skip as u64, "a hole, or a byte twice");
                for (at, found) in (*stored..).zip(&bytes[skip..]) {
                    assert_eq!(*found, byte(stream, at));
                }
                *stored = offset + bytes.len() as u64;
            }
            Some(Transmit::Gap {
                stream,
                from,
                to,
                reason,
            }) => {
                let came = link.inbox.handle_gap(stream, from, to, self.now);
                if came.expect("an honest node keeps the rules") != Fresh::Nothing {
                    let stored = &mut self.stored[stream.index()];
                    assert_eq!(*stored, from, "a hole, or a gap over what is here");
                    assert_ne!(
                        reason,
                        GapReason::Freed,
                        "what nobody acknowledged was freed"
                    );
                    *stored = to;
                }
            }
            Some(Transmit::Ended { ending, totals }) => {
                let lost = ending.outcome == moltis_proto::run::Outcome::Lost;
                let came = link.inbox.handle_ended(&totals, lost);
                came.expect("an honest node keeps the rules");
                assert_eq!([totals.stdout, totals.stderr], self.stored);
                self.ended = Some(totals);
            }
        }
        assert!(link.inbox.in_flight() <= u64::from(link.windows.run_bytes));
        true
    }

    /// The store has moved on, all the way or half of it.
    fn acknowledge(&mut self, all: bool) {
        let Some(link) = &mut self.link else {
            return;
        };
        for stream in Stream::BOTH {
            let stored = self.stored[stream.index()];
            link.inbox
                .handle_stored(stream, if all { stored } else { stored / 2 });
        }
        let ack = if all {
            link.inbox.take_ack(self.now)
        } else {
            link.inbox.poll_ack(self.now)
        };
        link.down.extend(ack.map(|ack| Totals {
            stdout: ack.stdout,
            stderr: ack.stderr,
        }));
    }

    fn hear(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        let Some(offsets) = link.down.pop_front() else {
            return false;
        };
        let freed = self.child.outbox.handle_ack(offsets, self.now);
        link.turn
            .handle_freed(freed.expect("an honest gateway acknowledges what it got"));
        link.turn.add(0);
        true
    }

    fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        let due = self.child.outbox.poll_timeout();
        if due.is_some_and(|due| due <= self.now) {
            self.child.outbox.handle_timeout(self.now);
            let due = self.child.outbox.poll_timeout();
            assert!(due.is_none_or(|due| due > self.now), "it would spin");
        }
        self.wake();
    }

    fn cut(&mut self) {
        if self.link.take().is_some() {
            self.child.outbox.handle_detached(self.now);
        }
    }

    fn reconnect(&mut self, windows: Windows) {
        self.cut();
        let [stdout, stderr] = self.stored;
        let offsets = Totals { stdout, stderr };
        let resumed = self.child.outbox.handle_resume(&windows, offsets, self.now);
        resumed.expect("an honest gateway resumes where it is");
        self.connect(windows);
        self.ended = None;
    }

    /// Everything works from here on, and a patient gateway takes all of it.
    fn settle(&mut self) {
        self.child.finish();
        self.reconnect(Windows {
            run_bytes: 240,
            connection_bytes: 1_000,
            stdin_bytes: 100,
            chunk_bytes_max: 60,
        });
        for _ in 0..10_000 {
            if self.ended.is_some() {
                break;
            }
            let sent = self.send();
            let arrived = self.arrive();
            let worked = self.child.use_disk(false, self.now);
            if worked {
                self.wake();
            }
            if !sent && !arrived && !worked {
                self.acknowledge(true);
                assert!(
                    self.hear(),
                    "nobody has anything to do, and the ending has not come"
                );
            }
        }
        let ended = self.ended.expect("the ending comes");
        if !self.child.keeper_died {
            assert_eq!(ended, self.child.totals());
        }
    }
}

/// Windows that a gateway may have: a quarter of the run's is a chunk at least.
fn windows(input: &mut Input<'_>) -> Windows {
    let chunk_bytes_max = 1 + u32::from(input.byte() % 100);
    let run_bytes = chunk_bytes_max * (4 + u32::from(input.byte() % 8));
    Windows {
        run_bytes,
        connection_bytes: run_bytes + u32::from(input.byte()),
        stdin_bytes: 100,
        chunk_bytes_max,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    let mut steps = 0;
    while !input.is_empty() && steps < 512 {
        steps += 1;
        world.step(&mut input);
    }
    world.settle();
});
