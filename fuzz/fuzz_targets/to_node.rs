//! A gateway that says whatever it likes, in both codecs, to the machines of a node: outboxes, stdin,
//! the turns of the runs, the heartbeat. It may be refused; it never makes a node send what a child did
//! not write, keep more than its bounds, or skip a byte of stdin.
#![no_main]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_fuzz::child::Child;
use moltis_proto::handshake::{SessionLimits, Verdict};
use moltis_proto::limits::{self, STDIN_WINDOW_BYTES};
use moltis_proto::liveness::{Liveness, Moment};
use moltis_proto::message::Windows;
use moltis_proto::run::outbox::Transmit;
use moltis_proto::run::stdin::{StdinReceiver, StdinWrite};
use moltis_proto::run::turn::{Offer, Turn};
use moltis_proto::run::{StdinMode, Totals};
use moltis_proto::{Codec, RunId, ToKeeper, ToNode, env};

/// Runs that one story may have.
const RUNS_MAX: usize = 4;

struct Run {
    child: Child,
    stdin: StdinReceiver,
    /// Bytes of stdin that the child has read.
    read: u64,
}

struct Node {
    now: Moment,
    windows: Windows,
    turn: Turn<RunId>,
    liveness: Liveness,
    runs: BTreeMap<RunId, Run>,
}

impl Node {
    fn new(start: Instant) -> Self {
        let windows = Windows {
            run_bytes: 400,
            connection_bytes: 1_000,
            stdin_bytes: 100,
            chunk_bytes_max: 50,
        };
        let now = Moment {
            monotonic: start,
            boottime: Duration::ZERO,
        };
        Self {
            now,
            windows,
            turn: Turn::new(windows.connection_bytes),
            liveness: Liveness::new(&SessionLimits::STANDARD, now),
            runs: BTreeMap::new(),
        }
    }

    /// A new connection, with windows of the gateway's own choice.
    fn attach(&mut self, windows: Windows, limits: &SessionLimits) {
        for run in self.runs.values_mut() {
            run.child.outbox.handle_detached(self.now.monotonic);
        }
        self.windows = windows;
        self.turn = Turn::new(windows.connection_bytes);
        self.liveness = Liveness::new(limits, self.now);
    }

    /// A frame has come. `None` when a rule was broken: the driver would close.
    fn hear(&mut self, message: ToNode) -> Option<()> {
        self.liveness.handle_frame(self.now).ok()?;
        match message {
            ToNode::Run(message) => self.obey(message),
            ToNode::Close { .. } => None,
            ToNode::Sample | ToNode::Ping { .. } | ToNode::Pong { .. } | ToNode::Goodbye { .. } => {
                Some(())
            }
        }
    }

    fn obey(&mut self, message: ToKeeper) -> Option<()> {
        let now = self.now.monotonic;
        match message {
            ToKeeper::Attach { .. } => return None,
            ToKeeper::Start { run_id, spec, .. } => {
                if self.runs.len() >= RUNS_MAX || env::check(&spec.env, &[]).is_err() {
                    return Some(());
                }
                let windows = self.windows;
                let run = self.runs.entry(run_id).or_insert_with(|| {
                    let mut run = Run {
                        child: Child::new(),
                        stdin: match spec.stdin {
                            StdinMode::Open => StdinReceiver::open(STDIN_WINDOW_BYTES),
                            StdinMode::Empty => StdinReceiver::closed(),
                        },
                        read: 0,
                    };
                    run.stdin.set_window(windows.stdin_bytes);
                    run.child.outbox.follow(&windows, now);
                    run
                });
                assert_eq!(run.stdin.taken(), run.read);
                self.turn.add(run_id);
            }
            ToKeeper::Resume {
                run_id,
                stdout,
                stderr,
            } => {
                let Some(run) = self.runs.get_mut(&run_id) else {
                    return Some(());
                };
                let offsets = Totals { stdout, stderr };
                let resumed = run.child.outbox.handle_resume(&self.windows, offsets, now);
                let fits = stdout <= run.child.written[0] && stderr <= run.child.written[1];
                assert!(!fits || resumed.is_ok(), "an honest resume is refused");
                assert!(fits || run.child.keeper_died || resumed.is_err());
                self.turn.handle_freed(resumed.ok()?);
                run.stdin.set_window(self.windows.stdin_bytes);
                self.turn.add(run_id);
            }
            ToKeeper::Ack {
                run_id,
                stdout,
                stderr,
            } => {
                let Some(run) = self.runs.get_mut(&run_id) else {
                    return Some(());
                };
                let offsets = Totals { stdout, stderr };
                let freed = run.child.outbox.handle_ack(offsets, now);
                self.turn.handle_freed(freed.ok()?);
                self.turn.add(run_id);
            }
            ToKeeper::Stdin {
                run_id,
                offset,
                bytes,
                eof,
            } => {
                let Some(run) = self.runs.get_mut(&run_id) else {
                    return Some(());
                };
                run.stdin.handle_stdin(offset, bytes.0, eof).ok()?;
            }
            ToKeeper::Resize { .. } | ToKeeper::Signal { .. } => {}
            ToKeeper::Cancel { run_id, grace_ms } => {
                let grace = Duration::from_millis(grace_ms).min(limits::GRACE_MAX);
                assert!(grace <= limits::GRACE_MAX);
                if let Some(run) = self.runs.get_mut(&run_id) {
                    run.child.finish();
                    self.turn.add(run_id);
                }
            }
            ToKeeper::Forget { run_id } => {
                if let Some(mut run) = self.runs.remove(&run_id) {
                    let freed = run.child.outbox.handle_detached(now);
                    self.turn.handle_freed(freed);
                }
                self.turn.remove(run_id);
            }
            ToKeeper::Leave => return None,
        }
        Some(())
    }

    /// Something happens on the node itself.
    fn live(&mut self, input: &mut Input<'_>) {
        let now = self.now.monotonic;
        match input.below(8) {
            0 => {
                let millis = Duration::from_millis(u64::from(input.short()));
                self.now.monotonic += millis;
                self.now.boottime += millis;
                if input.below(8) == 7 {
                    self.now.boottime += millis * 64; // it slept
                }
                self.liveness.handle_timeout(self.now).ok();
                for run in self.runs.values_mut() {
                    let due = run.child.outbox.poll_timeout();
                    if due.is_some_and(|due| due <= self.now.monotonic) {
                        run.child.outbox.handle_timeout(self.now.monotonic);
                    }
                }
            }
            1 => self.send(),
            which => {
                let nth = input.below(RUNS_MAX);
                let Some((id, run)) = self.runs.iter_mut().nth(nth) else {
                    return;
                };
                match which {
                    2 | 3 => run.child.write(input, now),
                    4 => {
                        run.child.use_disk(input.below(16) == 15, now);
                    }
                    5 => run.read(usize::from(input.byte())),
                    6 => run.stdin.handle_closed(),
                    _ => {
                        let death = moltis_fuzz::child::Death {
                            bytes_left: usize::from(input.byte()),
                        };
                        if input.below(8) == 7 && !run.child.keeper_died {
                            run.child.lose_keeper(death, input.flag());
                        }
                    }
                }
                self.turn.add(*id);
            }
        }
    }

    /// Sends what may be sent.
    fn send(&mut self) {
        let (runs, now) = (&mut self.runs, self.now.monotonic);
        let chunk = self.windows.chunk_bytes_max as usize;
        for _ in 0..16 {
            let sent = self.turn.poll(|id, credit| {
                let Some(run) = runs.get_mut(&id) else {
                    return Offer::Nothing;
                };
                let outbox = &mut run.child.outbox;
                match outbox.poll_transmit(credit, now) {
                    Some(frame) => {
                        let bytes = match &frame {
                            Transmit::Output { bytes, .. } => bytes.len(),
                            Transmit::Gap { .. } | Transmit::Ended { .. } => 0,
                        };
                        assert!(bytes <= credit, "more than the connection has room for");
                        let more = outbox.has_transmit();
                        run.child.check_transmit(&frame, chunk);
                        Offer::Frame {
                            frame: (),
                            bytes,
                            more,
                        }
                    }
                    None if outbox.wants_credit() => Offer::WantsCredit,
                    None => Offer::Nothing,
                }
            });
            if sent.is_none() {
                break;
            }
        }
    }

    fn check(&mut self) {
        for run in self.runs.values_mut() {
            run.child.check_memory();
            if let Some(told) = run.stdin.poll_ack() {
                assert!(
                    told.offset <= run.read,
                    "stdin that nobody has read is acknowledged"
                );
            }
        }
    }
}

impl Run {
    /// The child reads: each byte of stdin is the one that belongs to its offset, if its sender says
    /// the same byte each time.
    fn read(&mut self, most: usize) {
        match self.stdin.poll_write() {
            Some(StdinWrite::Bytes(bytes)) => {
                assert!(!bytes.is_empty());
                let taken = bytes.len().min(most);
                self.stdin.handle_taken(taken);
                self.read += taken as u64;
                assert_eq!(self.stdin.taken(), self.read);
            }
            Some(StdinWrite::Close) => self.stdin.handle_closed(),
            None => {}
        }
    }
}

/// What a keeper asks of windows before it takes them.
fn are_sound(windows: &Windows) -> bool {
    let chunk = windows.chunk_bytes_max;
    (1..=limits::CHUNK_BYTES_MAX as u64).contains(&u64::from(chunk))
        && windows.run_bytes / 4 >= chunk
        && windows.connection_bytes >= windows.run_bytes
        && windows.stdin_bytes > 0
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let codec = if input.flag() {
        Codec::Json
    } else {
        Codec::Postcard
    };
    let mut node = Node::new(moltis_fuzz::start());
    while !input.is_empty() {
        match input.below(4) {
            0 => {
                let Ok(message) = codec.decode(input.piece(4096)) else {
                    continue;
                };
                if node.hear(message).is_none() {
                    let windows = node.windows;
                    node.attach(windows, &SessionLimits::STANDARD);
                }
            }
            1 => {
                let verdict = codec.decode(input.piece(4096));
                if let Ok(Verdict::Accepted {
                    windows, limits, ..
                }) = verdict
                    && are_sound(&windows)
                {
                    node.attach(windows, &limits);
                }
            }
            _ => node.live(&mut input),
        }
        node.check();
    }
});
