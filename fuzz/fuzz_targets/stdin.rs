//! One run's stdin from who asked for it to the child: the gateway's queue and the node's receiver, the
//! link between them, cuts, and deaths of the gateway. The child reads each byte once and in its order,
//! and the end behind the last one. A node that lies is told so, or gets nothing.
#![no_main]

use std::collections::VecDeque;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_fuzz::child::byte;
use moltis_gateway::exec::fuzzing::{Chunk, Stdin};
use moltis_proto::run::Stream;
use moltis_proto::run::stdin::{StdinReceiver, StdinState, StdinWrite};

/// What the gateway keeps, and what may be under way.
const WINDOW: u32 = 100;
const CHUNK: usize = 40;

struct World {
    queue: Stdin,
    receiver: StdinReceiver,
    connected: bool,
    down: VecDeque<Chunk>,
    up: VecDeque<StdinState>,
    /// Where the asker goes on, and where its text ends once it has said so.
    given: u64,
    offered: u64,
    total: Option<u64>,
    /// What the child has read, and whether it has seen the end or closed its own.
    read: u64,
    at_end: bool,
    closed_early: bool,
}

fn text(from: u64, length: u64) -> Bytes {
    (from..from + length)
        .map(|at| byte(Stream::Stdout, at))
        .collect::<Vec<_>>()
        .into()
}

impl World {
    fn new() -> Self {
        Self {
            queue: Stdin::new(WINDOW.into()),
            receiver: StdinReceiver::open(WINDOW),
            connected: true,
            down: VecDeque::new(),
            up: VecDeque::new(),
            given: 0,
            offered: 0,
            total: None,
            read: 0,
            at_end: false,
            closed_early: false,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(10) {
            0..3 => {
                let (back, length) = (u64::from(input.byte() % 16), u64::from(input.byte()));
                self.offer(back, length, input.below(8) == 7);
            }
            3 => {
                self.send();
            }
            4 => {
                self.arrive();
            }
            5 => {
                self.child_reads(usize::from(input.byte()));
            }
            6 => self.acknowledge(),
            7 => self.connect(),
            8 if input.below(4) == 3 => self.lose_gateway(),
            9 if input.below(8) == 7 => {
                self.receiver.handle_closed();
                self.closed_early = !self.at_end;
            }
            _ => {}
        }
    }

    /// The asker gives some more, or once more what it has given.
    fn offer(&mut self, back: u64, length: u64, eof: bool) -> bool {
        let from = self.given.saturating_sub(back);
        let to = self.total.unwrap_or(from + length).min(from + length);
        let eof = if self.total.is_some() {
            self.total == Some(to)
        } else {
            eof && to >= self.offered // nobody ends before what was given
        };
        match self
            .queue
            .offer(from, text(from, to.saturating_sub(from)), eof)
        {
            Ok(Some(end)) => {
                self.offered = self.offered.max(to);
                assert!(end <= self.offered, "more is taken than was given");
                if eof && end >= to {
                    self.total = Some(to.max(end));
                }
                let news = end != self.given;
                self.given = end;
                news
            }
            Ok(None) => false,
            // The end was given, or the child has closed; or a gateway of before had taken more.
            Err(expected) => {
                if let Some(expected) = expected {
                    self.given = expected;
                }
                false
            }
        }
    }

    fn send(&mut self) -> Option<()> {
        if !self.connected {
            return None;
        }
        let chunk = self.queue.next(CHUNK, WINDOW.into())?;
        assert!(chunk.bytes.len() <= CHUNK);
        assert_eq!(chunk.bytes, text(chunk.offset, chunk.bytes.len() as u64));
        self.down.push_back(chunk);
        Some(())
    }

    fn arrive(&mut self) -> Option<()> {
        let chunk = self.down.pop_front()?;
        let taken = self
            .receiver
            .handle_stdin(chunk.offset, chunk.bytes, chunk.eof);
        taken.expect("an honest gateway keeps order and window");
        Some(())
    }

    fn child_reads(&mut self, most: usize) -> Option<()> {
        match self.receiver.poll_write()? {
            StdinWrite::Bytes(bytes) => {
                let taken = bytes.len().min(most);
                assert_eq!(bytes[..taken], text(self.read, taken as u64));
                self.receiver.handle_taken(taken);
                self.read += taken as u64;
            }
            StdinWrite::Close => {
                assert_eq!(Some(self.read), self.total, "an end that is none");
                self.receiver.handle_closed();
                self.at_end = true;
            }
        }
        Some(())
    }

    fn acknowledge(&mut self) {
        if self.connected {
            self.up.extend(self.receiver.poll_ack());
        }
        if let Some(told) = self.up.pop_front() {
            let believed = self.queue.acked(told.offset, told.closed);
            assert!(believed, "an honest node is called a liar");
        }
    }

    fn connect(&mut self) {
        (self.down, self.up) = (VecDeque::new(), VecDeque::new());
        self.queue.resume(self.receiver.taken());
        self.receiver.set_window(WINDOW);
        self.connected = true;
    }

    /// What it had taken and not sent dies with it.
    fn lose_gateway(&mut self) {
        (self.down, self.up) = (VecDeque::new(), VecDeque::new());
        self.queue = Stdin::taken_up(WINDOW.into());
        self.connected = false;
    }

    /// Everything works from here on, and everybody goes on to the end.
    fn settle(&mut self) {
        self.connect();
        let total = *self.total.get_or_insert(self.offered);
        for _ in 0..10_000 {
            if self.at_end || self.closed_early {
                break;
            }
            self.offer(0, 64, true);
            self.send();
            self.arrive();
            self.child_reads(64);
            self.acknowledge();
        }
        assert!(self.closed_early || (self.at_end && self.read == total));
    }
}

/// A node says of stdin what it likes: nothing is given that was not asked for, and nothing fails.
fn lie(input: &mut Input<'_>) {
    let mut queue = Stdin::new(WINDOW.into());
    let mut offered = 0;
    while !input.is_empty() {
        match input.below(4) {
            0 => {
                let length = u64::from(input.byte());
                // No asker can name an offset near the end of all numbers.
                if offered < 1 << 53
                    && let Ok(Some(end)) = queue.offer(offered, text(offered, length), false)
                {
                    offered = end;
                }
            }
            1 => {
                let chunk = queue.next(CHUNK, WINDOW.into());
                if let Some(chunk) = chunk {
                    assert!(chunk.offset + chunk.bytes.len() as u64 <= offered);
                }
            }
            2 => {
                queue.acked(input.number(), input.below(16) == 15);
            }
            _ => {
                queue.resume(input.number());
                offered = queue.end().expect("the node has placed it");
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    if input.byte() == 255 {
        return lie(&mut input);
    }
    let mut world = World::new();
    let mut steps = 0;
    while !input.is_empty() && steps < 512 {
        steps += 1;
        world.step(&mut input);
    }
    world.settle();
});
