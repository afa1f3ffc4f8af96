//! A node that says whatever it likes, in both codecs, to the machines of a gateway: the inbox of each
//! run, and the heartbeat. It may be refused; it never gets a byte stored twice or out of order, an
//! acknowledgement of what is not stored, or room beyond its window.
#![no_main]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_proto::handshake::SessionLimits;
use moltis_proto::liveness::{Liveness, Moment};
use moltis_proto::message::Windows;
use moltis_proto::run::inbox::{Fresh, Inbox};
use moltis_proto::run::{Outcome, Stream};
use moltis_proto::{Codec, FromKeeper, RunId, ToGateway};

/// Runs that one story may have.
const RUNS_MAX: usize = 4;

const WINDOWS: Windows = Windows {
    run_bytes: 400,
    connection_bytes: 1_000,
    stdin_bytes: 100,
    chunk_bytes_max: 100,
};

struct Run {
    inbox: Inbox,
    /// What came of each stream, gaps included, and how far the store is with it.
    came: [u64; 2],
    stored: [u64; 2],
    told: [u64; 2],
    gaps: [u64; 2],
    ended: bool,
}

impl Run {
    fn new(stored: [u64; 2]) -> Self {
        Self {
            inbox: Inbox::new(&WINDOWS, stored[0], stored[1]),
            came: stored,
            stored,
            told: stored,
            gaps: [0; 2],
            ended: false,
        }
    }

    /// Takes a message about this run. `None` when it broke a rule.
    fn hear(&mut self, message: &FromKeeper, now: Instant) -> Option<()> {
        match message {
            FromKeeper::Output {
                stream,
                offset,
                bytes,
                ..
            } => {
                let length = bytes.0.len();
                let fresh = self
                    .inbox
                    .handle_output(*stream, *offset, length, now)
                    .ok()?;
                assert!(!self.ended && (1..=100).contains(&length));
                let came = &mut self.came[stream.index()];
                match fresh {
                    Fresh::From { skip } => {
                        assert!(skip < length);
                        assert_eq!(offset + skip as u64, *came, "a hole, or a byte twice");
                        *came = offset + length as u64;
                    }
                    Fresh::Nothing => assert!(offset + length as u64 <= *came),
                }
            }
            FromKeeper::Gap {
                stream, from, to, ..
            } => {
                let fresh = self.inbox.handle_gap(*stream, *from, *to, now).ok()?;
                assert!(!self.ended && from < to);
                let came = &mut self.came[stream.index()];
                match fresh {
                    Fresh::From { skip } => {
                        assert_eq!((skip, *from), (0, *came), "a gap over what is here");
                        *came = *to;
                        self.gaps[stream.index()] += to - from;
                    }
                    Fresh::Nothing => assert!(to <= came),
                }
            }
            FromKeeper::Ended { ending, totals, .. } => {
                let lost = ending.outcome == Outcome::Lost;
                self.inbox.handle_ended(totals, lost).ok()?;
                assert!(!self.ended, "two endings");
                for stream in Stream::BOTH {
                    let (total, came) = (totals.of(stream), self.came[stream.index()]);
                    assert!(
                        total == came || (lost && total < came),
                        "a hole before the ending"
                    );
                }
                self.ended = true;
            }
            FromKeeper::Runs { .. }
            | FromKeeper::Started { .. }
            | FromKeeper::State { .. }
            | FromKeeper::Refused { .. }
            | FromKeeper::StdinAck { .. } => {}
        }
        Some(())
    }

    /// The store moves on by a part of what came.
    fn store(&mut self, input: &mut Input<'_>) {
        let stream = Stream::BOTH[input.below(2)];
        let n = stream.index();
        let part = (self.came[n] - self.stored[n]).min(input.number());
        self.stored[n] += part;
        // The store speaks of what it has, also where that is more than this connection brought.
        self.inbox.handle_stored(stream, self.stored[n]);
    }

    fn acknowledge(&mut self, due_only: bool, now: Instant) {
        let ack = if due_only {
            self.inbox.poll_ack(now)
        } else {
            self.inbox.take_ack(now)
        };
        let Some(ack) = ack else { return };
        let ack = [ack.stdout, ack.stderr];
        assert_ne!(ack, self.told, "an acknowledgement without news");
        for n in 0..2 {
            assert!(
                ack[n] <= self.stored[n],
                "what is not stored is acknowledged"
            );
            assert!(ack[n] >= self.told[n], "an acknowledgement goes back");
        }
        self.told = ack;
    }

    fn check(&self) {
        for stream in Stream::BOTH {
            let n = stream.index();
            assert_eq!(self.inbox.received(stream), self.came[n]);
            assert!(self.came[n] < 1 << 53);
        }
        let in_flight = self.inbox.in_flight();
        assert!(in_flight <= u64::from(WINDOWS.run_bytes));
        // Bytes that came and are not acknowledged, less the holes among them.
        let most: u64 = (0..2).map(|n| self.came[n] - self.told[n]).sum();
        let least = most.saturating_sub(self.gaps.iter().sum());
        assert!((least..=most).contains(&in_flight));
        assert_eq!(self.inbox.is_ended(), self.ended);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let codec = if input.flag() {
        Codec::Json
    } else {
        Codec::Postcard
    };
    let mut now = Moment {
        monotonic: moltis_fuzz::start(),
        boottime: Duration::ZERO,
    };
    let mut liveness = Liveness::new(&SessionLimits::STANDARD, now);
    let mut runs: BTreeMap<RunId, Run> = BTreeMap::new();
    while !input.is_empty() {
        match input.below(8) {
            0..4 => {
                let Ok(message) = codec.decode::<ToGateway>(input.piece(4096)) else {
                    continue;
                };
                if liveness.handle_frame(now).is_err() {
                    liveness = Liveness::new(&SessionLimits::STANDARD, now);
                    continue;
                }
                let ToGateway::Run(message) = message else {
                    continue;
                };
                let Some(run_id) = message.run_id() else {
                    continue;
                };
                if !runs.contains_key(&run_id) && runs.len() >= RUNS_MAX {
                    continue;
                }
                let run = runs.entry(run_id).or_insert_with(|| Run::new([0; 2]));
                if run.hear(&message, now.monotonic).is_none() {
                    // The connection is closed; the next one goes on where the store is.
                    *run = Run::new(run.stored);
                }
            }
            4 => {
                let millis = Duration::from_millis(u64::from(input.short()));
                now.monotonic += millis;
                now.boottime += millis * (1 + u32::from(input.below(8) == 7));
                if liveness.handle_timeout(now).is_ok() {
                    assert!(liveness.poll_timeout() > now.monotonic, "it would spin");
                }
            }
            which => {
                let nth = input.below(RUNS_MAX);
                let Some(run) = runs.values_mut().nth(nth) else {
                    continue;
                };
                match which {
                    5 => run.store(&mut input),
                    6 => run.acknowledge(true, now.monotonic),
                    _ => run.acknowledge(false, now.monotonic),
                }
            }
        }
        runs.values().for_each(Run::check);
    }
});
