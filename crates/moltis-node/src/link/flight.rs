//! What of the output is on its way to the gateway, and how much of it may be. Pure.
//!
//! A road swallows more than it carries: its buffers take megabytes, and a pong or an ending then
//! waits behind all of them. So no more is sent than five seconds of what the road was seen to carry,
//! which the acknowledgements tell. While the bound holds, that is exactly its own rate; were the road
//! faster, acknowledgements would come sooner, and the bound would grow with them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use moltis_proto::RunId;
use moltis_proto::run::{Stream, Totals};

/// How long the last byte may be on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// So much may be, however slow the road: some frames.
const FLOOR_BYTES: u64 = 64 * 1024;

/// How long acknowledgements are counted before a rate is believed.
const MEASURED_OVER: Duration = Duration::from_millis(500);

/// Output that was sent and is not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// Of the runs that have any.
    runs: HashMap<RunId, [Lane; 2]>,
    bytes: u64,
    /// What is being measured, while something is on its way.
    measure: Option<Measure>,
    /// Bytes a second.
    rate: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Lane {
    sent_to: u64,
    bytes: u64,
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

impl Flight {
    /// Output was sent.
    pub(super) fn handle_output(
        &mut self,
        (run_id, stream): (RunId, Stream),
        (offset, length): (u64, u64),
        now: Instant,
    ) {
        let lane = &mut self.runs.entry(run_id).or_default()[stream.index()];
        lane.sent_to = offset.saturating_add(length);
        lane.bytes += length;
        self.bytes += length;
        self.measure.get_or_insert_with(|| Measure::new(now));
    }

    /// The gateway has everything below these offsets.
    pub(super) fn handle_ack(&mut self, run_id: RunId, offsets: Totals, now: Instant) {
        let Some(lanes) = self.runs.get_mut(&run_id) else {
            return;
        };
        let mut freed = 0;
        for stream in Stream::BOTH {
            let lane = &mut lanes[stream.index()];
            // What lies between may be a gap, which weighs nothing.
            let left = lane
                .sent_to
                .saturating_sub(offsets.of(stream))
                .min(lane.bytes);
            freed += lane.bytes - left;
            lane.bytes = left;
        }
        if lanes.iter().all(|lane| lane.bytes == 0) {
            self.runs.remove(&run_id);
        }
        self.bytes -= freed;
        // A rate is measured from one arrival to another: in between nothing can be said.
        if freed > 0 {
            self.count(freed, now);
        }
    }

    /// What was sent of this run is of no more interest to anybody: it begins anew, or is forgotten.
    pub(super) fn handle_gone(&mut self, run_id: RunId) {
        let lanes = self.runs.remove(&run_id).unwrap_or_default();
        self.bytes -= lanes.iter().map(|lane| lane.bytes).sum::<u64>();
        if self.bytes == 0 {
            self.measure = None;
        }
    }

    /// Returns whether no more output shall be sent for now.
    pub(super) fn is_full(&mut self) -> bool {
        let Some(rate) = self.rate else {
            return false;
        };
        let is_full = self.bytes >= (rate * ON_ITS_WAY.as_secs()).max(FLOOR_BYTES);
        if let Some(measure) = &mut self.measure {
            measure.was_full |= is_full;
        }
        is_full
    }

    fn count(&mut self, freed: u64, now: Instant) {
        let Some(measure) = &mut self.measure else {
            return;
        };
        measure.acked += freed;
        let took = now.saturating_duration_since(measure.since);
        // A command that prints little says nothing about the road.
        let is_enough = measure.was_full || measure.acked >= FLOOR_BYTES;
        if took >= MEASURED_OVER && is_enough {
            let rate = u128::from(measure.acked) * 1000 / took.as_millis();
            self.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX >> 3));
            self.measure = Some(Measure::new(now));
        }
        if self.bytes == 0 {
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
        road.flight.handle_output(RUN, (0, 100), road.now);
        // Behind a gap from 100 to 1,000.
        road.flight.handle_output(RUN, (1_000, 50), road.now);
        road.flight
            .handle_output((other, Stream::Stderr), (7, 10), road.now);
        let acked = |stdout| Totals { stdout, stderr: 0 };
        road.flight.handle_ack(RUN.0, acked(1_020), road.now);
        assert_eq!(road.flight.bytes, 30 + 10);
        road.flight.handle_ack(RUN.0, acked(1_050), road.now);
        road.flight.handle_gone(other);
        road.flight.handle_gone(other);
        assert_eq!(road.flight.bytes, 0);
        assert!(road.flight.runs.is_empty() && road.flight.measure.is_none());
    }
}
