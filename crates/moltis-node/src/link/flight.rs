//! What of the output is on its way to the gateway, and how much of it may be. Pure.
//!
//! A road swallows more than it carries: its buffers take megabytes, and a pong or an ending then
//! waits behind all of them. So no more is sent than five seconds of what the road was seen to carry,
//! which the acknowledgements tell. While the bound holds, that is exactly its own rate; were the road
//! faster, acknowledgements would come sooner, and the bound would grow with them. Before anything was
//! seen the bound is small, and grows by all that arrives: on a fast road it doubles with each answer.
//!
//! The road keeps its order. Where a byte has arrived, all that was sent before it has, whether its run
//! is acknowledged or waits for the gateway's disk.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use moltis_proto::RunId;
use moltis_proto::run::{Stream, Totals};

use super::pace::SLOW_RATE;

/// How long the last byte may be on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// So much may be, however slow the road: two frames.
const FLOOR_BYTES: u64 = 32 * 1024;

/// How long acknowledgements are counted before a rate is believed.
const MEASURED_OVER: Duration = Duration::from_millis(500);

/// Output of one stream that is followed as one piece, however many frames it was.
const PIECE_BYTES: u64 = 4 * 1024;

/// Output that was sent and has not arrived, as far as is known.
#[derive(Debug)]
pub(super) struct Flight {
    /// What is not acknowledged, of the runs that have any.
    runs: HashMap<RunId, [Lane; 2]>,
    /// All bytes that were ever sent on this connection: the end of the road.
    sent: u64,
    /// How far on the road the bytes have come of which is known that they have arrived.
    arrived: u64,
    /// What is being measured, while something is on its way.
    measure: Option<Measure>,
    /// Bytes a second.
    rate: Option<u64>,
    /// How much may be on its way while no rate is known.
    first: u64,
    /// More than the bound that was let go, for nothing has arrived for long.
    extra: u64,
}

/// What was sent of one stream and is not acknowledged, in its order.
type Lane = VecDeque<Piece>;

#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Where it begins in the stream.
    from: u64,
    /// Where it ends there: it has arrived when this is acknowledged.
    to: u64,
    /// Where it ends on the road.
    at: u64,
}

#[derive(Debug)]
struct Measure {
    since: Instant,
    acked: u64,
    was_full: bool,
}

impl Measure {
    fn new(since: Instant) -> Self {
        Self {
            since,
            acked: 0,
            was_full: false,
        }
    }
}

impl Default for Flight {
    fn default() -> Self {
        Self {
            runs: HashMap::new(),
            sent: 0,
            arrived: 0,
            measure: None,
            rate: None,
            first: FLOOR_BYTES,
            extra: 0,
        }
    }
}

impl Flight {
    /// Output was sent.
    pub(super) fn handle_output(
        &mut self,
        (run_id, stream): (RunId, Stream),
        (offset, length): (u64, u64),
        now: Instant,
    ) {
        self.sent += length;
        let (to, at) = (offset.saturating_add(length), self.sent);
        let lane = &mut self.runs.entry(run_id).or_default()[stream.index()];
        match lane.back_mut() {
            Some(last) if to.saturating_sub(last.from) <= PIECE_BYTES => {
                (last.to, last.at) = (to, at);
            }
            _ => lane.push_back(Piece {
                from: offset,
                to,
                at,
            }),
        }
        self.measure.get_or_insert_with(|| Measure::new(now));
    }

    /// The gateway has everything below these offsets.
    pub(super) fn handle_ack(&mut self, run_id: RunId, offsets: Totals, now: Instant) {
        let Some(lanes) = self.runs.get_mut(&run_id) else {
            return;
        };
        let mut arrived = self.arrived;
        for stream in Stream::BOTH {
            let acked = offsets.of(stream);
            while let Some(piece) = lanes[stream.index()].pop_front_if(|piece| piece.to <= acked) {
                arrived = arrived.max(piece.at);
            }
        }
        if lanes.iter().all(VecDeque::is_empty) {
            self.runs.remove(&run_id);
        }
        self.handle_arrived(arrived, now);
    }

    /// The run is forgotten, so all of it has arrived.
    pub(super) fn handle_forgotten(&mut self, run_id: RunId, now: Instant) {
        let lanes = self.runs.remove(&run_id).unwrap_or_default();
        let ends = lanes.iter().filter_map(VecDeque::back);
        let arrived = ends.map(|piece| piece.at).max().unwrap_or(0);
        self.handle_arrived(arrived.max(self.arrived), now);
    }

    /// The run is told anew from some offset on: what was sent of it before will not be acknowledged.
    pub(super) fn handle_resumed(&mut self, run_id: RunId) {
        self.runs.remove(&run_id);
        if self.runs.is_empty() {
            self.arrived = self.sent; // nothing is left by which it could be told
            self.measure = None;
        }
    }

    /// Returns whether no more output shall be sent for now.
    pub(super) fn is_full(&mut self) -> bool {
        let is_full = self.on_its_way() >= self.bound().saturating_add(self.extra);
        if let Some(measure) = &mut self.measure {
            measure.was_full |= is_full;
        }
        is_full
    }

    /// Returns whether frames should be short, for the road is slow or nothing is known of it.
    pub(super) fn is_slow(&self) -> bool {
        self.rate.is_none_or(|rate| rate < SLOW_RATE)
    }

    /// Nothing has arrived for long: a little more may go, by which may be told what has.
    pub(super) fn handle_hold_over(&mut self) {
        let allowed = self.on_its_way().saturating_add(FLOOR_BYTES);
        self.extra = allowed.saturating_sub(self.bound());
    }

    fn bound(&self) -> u64 {
        match self.rate {
            Some(rate) => (rate.saturating_mul(ON_ITS_WAY.as_secs())).max(FLOOR_BYTES),
            None => self.first,
        }
    }

    fn on_its_way(&self) -> u64 {
        self.sent - self.arrived
    }

    /// All that was sent up to here has arrived.
    fn handle_arrived(&mut self, arrived: u64, now: Instant) {
        let bytes = arrived - self.arrived;
        self.arrived = arrived;
        // A rate is measured from one arrival to another: in between nothing can be said.
        if bytes > 0 {
            self.extra = 0;
            // What was never held back says nothing about the road.
            if self
                .measure
                .as_ref()
                .is_some_and(|measure| measure.was_full)
            {
                self.first = self.first.saturating_add(bytes);
            }
            self.count(bytes, now);
        }
    }

    fn count(&mut self, arrived: u64, now: Instant) {
        let Some(measure) = &mut self.measure else {
            return;
        };
        measure.acked += arrived;
        let took = now.saturating_duration_since(measure.since);
        // A command that prints little says nothing about the road.
        let is_enough = measure.was_full || measure.acked >= 2 * FLOOR_BYTES;
        if took >= MEASURED_OVER && is_enough {
            let rate = u128::from(measure.acked) * 1000 / took.as_millis();
            self.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX >> 3));
            self.measure = Some(Measure::new(now));
        }
        if self.sent == self.arrived {
            self.measure = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const RUN: (RunId, Stream) = (RunId::from_bytes([1; 16]), Stream::Stdout);
    const CHUNK: u64 = 16 * 1024;
    const TICK: Duration = Duration::from_millis(10);

    /// A road that takes everything at once and carries so much.
    struct Road {
        flight: Flight,
        now: Instant,
        rate: u64,
        /// Frames on the road, by their ends, and bytes of the first that have arrived.
        frames: VecDeque<u64>,
        arrived: u64,
        sent: u64,
        acked: u64,
    }

    impl Road {
        #[expect(clippy::disallowed_methods, reason = "an origin to count from")]
        fn new() -> Self {
            Self {
                flight: Flight::default(),
                now: Instant::now(),
                rate: 0,
                frames: VecDeque::new(),
                arrived: 0,
                sent: 0,
                acked: 0,
            }
        }

        /// Sends whatever may be sent within the window, for so long.
        fn send(&mut self, window: u64, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                while self.sent - self.acked < window && !self.flight.is_full() {
                    self.flight.handle_output(RUN, (self.sent, CHUNK), self.now);
                    self.sent += CHUNK;
                    self.frames.push_back(self.sent);
                }
                self.now += TICK;
                self.arrived = (self.arrived + self.rate / 100).min(self.sent);
                let arrived = self.arrived;
                while let Some(end) = self.frames.pop_front_if(|end| *end <= arrived) {
                    self.acked = end;
                }
                let stdout = self.acked;
                self.flight
                    .handle_ack(RUN.0, Totals { stdout, stderr: 0 }, self.now);
            }
        }
    }

    #[test]
    fn what_is_on_a_slow_road_is_five_seconds_of_it_and_of_a_fast_one_the_window() {
        let window = 8 * 1024 * 1024;
        for rate in [10_000, 100_000, 400_000, 4_000_000, 40_000_000] {
            let mut road = Road::new();
            road.rate = rate;
            let first = Duration::from_secs(10 + window / rate);
            road.send(window, first);
            let on_its_way = road.sent - road.acked;
            let bound = (rate * 5).max(FLOOR_BYTES);
            assert!(
                on_its_way <= bound + bound / 10 + CHUNK,
                "{rate}: {on_its_way}"
            );
            let expected = bound.min(window) / 2;
            assert!(on_its_way >= expected, "{rate}: {on_its_way}");
        }
    }

    #[test]
    fn a_road_that_becomes_faster_is_used() {
        let window = 8 * 1024 * 1024;
        let mut road = Road::new();
        road.rate = 20_000;
        road.send(window, Duration::from_mins(10));
        road.rate = 4_000_000;
        road.send(window, Duration::from_secs(20));
        let before = road.acked;
        road.send(window, Duration::from_secs(10));
        assert!(road.acked - before > 35_000_000);
    }

    #[test]
    fn a_command_that_prints_little_is_no_slow_road() {
        let mut road = Road::new();
        road.rate = 10_000_000;
        for _ in 0..100 {
            let head = (road.sent, 100);
            road.flight.handle_output(RUN, head, road.now);
            road.sent += 100;
            road.now += Duration::from_millis(600);
            let totals = Totals {
                stdout: road.sent,
                stderr: 0,
            };
            road.flight.handle_ack(RUN.0, totals, road.now);
        }
        assert_eq!(road.flight.rate, None);
    }

    #[test]
    fn nothing_stays_of_runs_that_are_acknowledged_resumed_or_forgotten() {
        let mut road = Road::new();
        let other = RunId::from_bytes([2; 16]);
        road.flight.handle_output(RUN, (0, 5_000), road.now);
        // Behind a gap from 5,000 to 10,000.
        road.flight.handle_output(RUN, (10_000, 50), road.now);
        road.flight
            .handle_output((other, Stream::Stderr), (7, 10), road.now);
        let acked = |stdout| Totals { stdout, stderr: 0 };
        road.flight.handle_ack(RUN.0, acked(10_020), road.now);
        assert_eq!(road.flight.on_its_way(), 50 + 10);
        road.flight.handle_ack(RUN.0, acked(10_050), road.now);
        assert_eq!(road.flight.on_its_way(), 10);
        road.flight.handle_resumed(other);
        road.flight.handle_resumed(other);
        assert_eq!(road.flight.on_its_way(), 0);
        assert!(road.flight.runs.is_empty() && road.flight.measure.is_none());
        road.flight.handle_output(RUN, (10_050, 70), road.now);
        road.flight.handle_forgotten(RUN.0, road.now);
        assert_eq!(road.flight.on_its_way(), 0);
        assert!(road.flight.runs.is_empty() && road.flight.measure.is_none());
    }

    #[test]
    fn what_arrives_behind_output_that_the_gateway_does_not_store_shows_that_it_has_come() {
        let mut road = Road::new();
        let other = RunId::from_bytes([2; 16]);
        road.flight.handle_output(RUN, (0, FLOOR_BYTES), road.now);
        assert!(road.flight.is_full());
        // Nothing comes back: after a while a little may be tried.
        road.flight.handle_hold_over();
        assert!(!road.flight.is_full());
        road.flight
            .handle_output((other, Stream::Stdout), (0, 100), road.now);
        let (stdout, stderr) = (100, 0);
        road.flight
            .handle_ack(other, Totals { stdout, stderr }, road.now);
        assert_eq!(road.flight.on_its_way(), 0);
        assert!(!road.flight.is_full());
        // And never more than a little.
        road.flight
            .handle_output(RUN, (FLOOR_BYTES, 10 * FLOOR_BYTES), road.now);
        assert!(road.flight.is_full());
        for _ in 0..3 {
            road.flight.handle_hold_over();
        }
        road.flight
            .handle_output(RUN, (11 * FLOOR_BYTES, FLOOR_BYTES), road.now);
        assert!(road.flight.is_full());
    }

    #[test]
    fn an_unknown_road_is_given_little_and_a_fast_one_soon_all() {
        let window = 8 * 1024 * 1024;
        let mut road = Road::new();
        road.rate = 8_000;
        road.send(window, Duration::from_secs(1));
        let on_its_way = road.sent - road.acked;
        assert!(on_its_way <= FLOOR_BYTES + 2 * CHUNK, "{on_its_way}");
        let mut road = Road::new();
        road.rate = 100_000_000;
        road.send(window, Duration::from_millis(150));
        let on_its_way = road.flight.first;
        assert!(on_its_way > 4_000_000, "{on_its_way}");
    }

    #[test]
    fn many_short_frames_are_followed_as_few() {
        let mut road = Road::new();
        for offset in 0..100_000 {
            road.flight.handle_output(RUN, (offset, 1), road.now);
        }
        assert!(road.flight.runs[&RUN.0][0].len() < 50);
        let (stdout, stderr) = (100_000, 0);
        road.flight
            .handle_ack(RUN.0, Totals { stdout, stderr }, road.now);
        assert_eq!(road.flight.on_its_way(), 0);
    }
}
