//! What of stdin is on its way to a node, and how much of it may be. Pure.
//!
//! A road swallows more than it carries: its buffers take hundreds of kilobytes, and a cancel or the
//! start of another command then waits behind all of them. So no more stdin is sent than the road
//! carries in some seconds. What has arrived is told by the pongs of pings that go between: an
//! acknowledgement says what the command has read, and it may read when it likes. Only a road that was
//! held back is measured; before that little is sent, and twice as much with each answer.

use std::time::{Duration, Instant};

/// How long the last byte may be on its way: a cancel behind it acts within five seconds, with the
/// kernel's and the network's part of them.
const ON_ITS_WAY: Duration = Duration::from_millis(2_500);

/// So much may be, however slow the road.
const FLOOR_BYTES: u64 = 16 * 1024;

/// How long arrivals are counted before a rate is believed.
const MEASURED_OVER: Duration = Duration::from_millis(500);

/// Below this many bytes a second a road is slow.
const SLOW_RATE: u64 = 1_000_000;

/// Bytes of one frame on a slow road.
const SLOW_CHUNK_BYTES: usize = 4 * 1024;

/// Time between two pings: a node's pongs are not for free.
const PROBE_EVERY: Duration = Duration::from_millis(200);

/// A pause with nothing on its way, and the road was not held back any more.
const IDLE: Duration = Duration::from_millis(20);

/// Marks the number of a ping that asks how far stdin has come. Together they stay below 2^53, so that
/// they are exact in any JSON.
const PROBE: u64 = 1 << 52;

/// Stdin of all runs of one connection.
#[derive(Debug)]
pub(super) struct Upload {
    /// All bytes that were ever sent on this connection: the end of the road.
    sent: u64,
    /// How far on the road the bytes have come of which is known that they have arrived.
    arrived: u64,
    arrived_at: Option<Instant>,
    /// How far the newest ping asks.
    probed: u64,
    /// When the next ping may be sent.
    probe_at: Option<Instant>,
    /// Since when the road is held back now and again, and how far the bytes had come then.
    full: Option<(Instant, u64)>,
    /// It is held back at this moment.
    is_held: bool,
    /// Bytes a second.
    rate: Option<u64>,
    /// How much may be on its way while no rate is known.
    first: u64,
}

impl Upload {
    pub(super) fn new() -> Self {
        Self {
            sent: 0,
            arrived: 0,
            arrived_at: None,
            probed: 0,
            probe_at: None,
            full: None,
            is_held: false,
            rate: None,
            first: FLOOR_BYTES,
        }
    }

    /// Returns how many bytes the next frame may have, `chunk_max` at the most; `None` while there is
    /// enough on its way.
    pub(super) fn next_chunk(&mut self, chunk_max: usize, now: Instant) -> Option<usize> {
        let is_slow = self.rate.is_none_or(|rate| rate < SLOW_RATE);
        let chunk = if is_slow {
            chunk_max.min(SLOW_CHUNK_BYTES)
        } else {
            chunk_max
        };
        self.is_held = self.on_its_way() + chunk as u64 > self.bound();
        if self.is_held {
            self.full.get_or_insert((now, self.arrived));
            return None;
        }
        Some(chunk)
    }

    /// So much was sent.
    pub(super) fn handle_sent(&mut self, bytes: usize, now: Instant) {
        let is_idle = |at: Instant| now.saturating_duration_since(at) > IDLE;
        if self.on_its_way() == 0 && self.arrived_at.is_some_and(is_idle) {
            self.full = None;
        }
        self.sent += bytes as u64;
    }

    /// Returns the number of a ping that has to go behind what was sent so far.
    pub(super) fn poll_probe(&mut self, now: Instant) -> Option<u64> {
        // Each answer to one that waits doubles what an unknown road is given: these are few.
        let is_free = self.rate.is_none() && self.is_held;
        let is_early = !is_free && self.probe_at.is_some_and(|at| now < at);
        if !self.wants_probe() || is_early {
            return None;
        }
        self.probed = self.sent;
        self.probe_at = Some(now + PROBE_EVERY);
        Some(PROBE | (self.sent & (PROBE - 1)))
    }

    /// Returns when to ask for a ping.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.probe_at.filter(|_| self.wants_probe())
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) has come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.probe_at = self.probe_at.filter(|at| now < *at);
    }

    /// A pong has come: all that was sent before its ping has arrived. A node need not answer each of
    /// several pings that wait, but the newest: where that was another one, ours is asked anew.
    pub(super) fn handle_pong(&mut self, number: u64, now: Instant) {
        if number & PROBE == 0 {
            self.probed = self.arrived;
            return;
        }
        let arrived = (number & (PROBE - 1)).min(self.sent);
        if arrived <= self.arrived {
            return;
        }
        let bytes = arrived - self.arrived;
        self.arrived = arrived;
        self.arrived_at = Some(now);
        // What was never held back says nothing about the road.
        let Some((since, from)) = self.full else {
            return;
        };
        self.first = self.first.saturating_add(bytes);
        let took = now.saturating_duration_since(since);
        if took >= MEASURED_OVER {
            let rate = u128::from(arrived - from) * 1000 / took.as_millis();
            self.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX));
            self.full = None;
        }
    }

    /// One ping at a time: while the road is measured, and often enough that it never stands still.
    fn wants_probe(&self) -> bool {
        let is_out = self.probed > self.arrived;
        let fresh = self.sent - self.probed;
        let is_much = self.rate.is_some() && fresh >= self.bound() / 4;
        !is_out && fresh > 0 && (is_much || self.full.is_some())
    }

    fn bound(&self) -> u64 {
        let Some(rate) = self.rate else {
            return self.first;
        };
        let millis = u128::from(rate) * ON_ITS_WAY.as_millis() / 1000;
        u64::try_from(millis).unwrap_or(u64::MAX).max(FLOOR_BYTES)
    }

    fn on_its_way(&self) -> u64 {
        self.sent - self.arrived
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const CHUNK: usize = 60 * 1024;
    const TICK: Duration = Duration::from_millis(1);

    /// A road that takes everything at once, carries so much a second, and answers a while later.
    struct Road {
        upload: Upload,
        now: Instant,
        rate: u64,
        delay: Duration,
        /// What the sender may send in all, and beyond what has arrived.
        given: u64,
        window: u64,
        sent: u64,
        carried: u64,
        pings: VecDeque<(u64, u64)>,
        pongs: VecDeque<(Instant, u64)>,
        pinged: usize,
    }

    impl Road {
        #[expect(clippy::disallowed_methods, reason = "an origin to count from")]
        fn new(rate: u64, delay: Duration) -> Self {
            Self {
                upload: Upload::new(),
                now: Instant::now(),
                rate,
                delay,
                given: u64::MAX,
                window: u64::MAX,
                sent: 0,
                carried: 0,
                pings: VecDeque::new(),
                pongs: VecDeque::new(),
                pinged: 0,
            }
        }

        /// Goes on for so long; returns the most bytes that were on the road.
        fn go_on(&mut self, time: Duration) -> u64 {
            let (end, mut most) = (self.now + time, 0);
            while self.now < end {
                let (now, upload) = (self.now, &mut self.upload);
                while let Some((_, number)) = self.pongs.pop_front_if(|(at, _)| *at <= now) {
                    upload.handle_pong(number, now);
                }
                while self.sent < self.given
                    && let Some(chunk) = upload.next_chunk(CHUNK, now)
                {
                    let bytes = (self.given - self.sent).min(chunk as u64);
                    upload.handle_sent(usize::try_from(bytes).unwrap(), now);
                    self.sent += bytes;
                    if self.sent - self.carried > self.window.min(self.rate * 10) {
                        break; // the child reads no faster, or a road this wide is not filled
                    }
                }
                if let Some(number) = upload.poll_probe(now) {
                    self.pinged += 1;
                    self.pings.push_back((self.sent, number));
                }
                most = most.max(self.sent - self.carried);
                self.now += TICK;
                self.carried = (self.carried + self.rate / 1000).min(self.sent);
                let (carried, at) = (self.carried, self.now + self.delay);
                while let Some((_, number)) = self.pings.pop_front_if(|(end, _)| *end <= carried) {
                    self.pongs.push_back((at, number));
                }
            }
            most
        }
    }

    #[test]
    fn a_node_that_answers_only_the_newest_ping_is_asked_anew() {
        let mut upload = Upload::new();
        let now = Road::new(1, TICK).now;
        while let Some(bytes) = upload.next_chunk(CHUNK, now) {
            upload.handle_sent(bytes, now);
        }
        let probe = upload.poll_probe(now).unwrap();
        let later = now + PROBE_EVERY;
        upload.handle_timeout(later);
        assert_eq!(upload.poll_probe(later), None, "one is on its way");
        // A heartbeat came behind it, and was the newest.
        upload.handle_pong(7, later);
        assert_eq!(upload.poll_probe(later), Some(probe));
        upload.handle_pong(probe, later);
        assert!(upload.next_chunk(CHUNK, later).is_some());
    }

    #[test]
    fn what_is_on_a_slow_road_is_some_seconds_of_it_and_it_never_stands_still() {
        for rate in [8_000, 64_000, 500_000] {
            let mut road = Road::new(rate, Duration::from_millis(100));
            road.go_on(Duration::from_secs(10));
            let before = road.carried;
            let most = road.go_on(Duration::from_secs(20));
            assert!(most <= rate * 3, "{rate}: {most} bytes are on the road");
            let carried = road.carried - before;
            assert!(carried >= rate * 19, "{rate}: {carried} bytes were carried");
            assert!(road.pinged < 5 * 30 + 20, "{} pings", road.pinged);
        }
    }

    #[test]
    fn little_is_sent_before_anything_is_known_of_the_road() {
        let mut road = Road::new(1_000, Duration::ZERO);
        assert!(road.go_on(Duration::from_secs(5)) <= FLOOR_BYTES);
    }

    #[test]
    fn a_fast_road_is_full_within_a_second() {
        for delay in [0, 20, 100] {
            let mut road = Road::new(100_000_000, Duration::from_millis(delay));
            road.go_on(Duration::from_secs(2));
            let before = road.carried;
            road.go_on(Duration::from_secs(1));
            let carried = road.carried - before;
            assert!(carried > 90_000_000, "{delay} ms: {carried} bytes");
            assert!(road.pinged < 40, "{delay} ms: {} pings", road.pinged);
        }
    }

    #[test]
    fn a_fast_road_with_a_window_before_it_is_known_soon_and_asked_seldom() {
        for delay in [0, 1, 20] {
            let mut road = Road::new(100_000_000, Duration::from_millis(delay));
            road.window = 256 * 1024;
            road.go_on(Duration::from_secs(2));
            assert_eq!(road.upload.next_chunk(CHUNK, road.now), Some(CHUNK));
            road.go_on(Duration::from_secs(8));
            assert!(road.carried > 900_000_000, "{} bytes", road.carried);
            // A node may send sixty at once, and ten a second.
            assert!(road.pinged < 60, "{delay} ms: {} pings", road.pinged);
        }
    }

    #[test]
    fn who_writes_little_or_pauses_makes_no_road_slow() {
        let mut road = Road::new(10_000_000, Duration::from_millis(5));
        road.given = 0;
        for round in 0..1000 {
            road.given += if round % 100 == 99 { 200_000 } else { 10 };
            road.go_on(Duration::from_millis(600));
        }
        assert!(road.upload.rate.is_none_or(|rate| rate > SLOW_RATE / 2));
        assert_eq!(road.carried, road.given);
        // And a thousand short words are few pings.
        assert!(road.pinged < 150, "{} pings", road.pinged);
    }

    #[test]
    fn a_road_that_becomes_faster_is_used() {
        let mut road = Road::new(20_000, Duration::from_millis(20));
        road.go_on(Duration::from_mins(1));
        road.rate = 4_000_000;
        road.go_on(Duration::from_secs(10));
        let before = road.carried;
        road.go_on(Duration::from_secs(10));
        assert!(road.carried - before > 38_000_000);
    }

    #[test]
    fn a_pong_that_lies_gives_no_more_than_was_sent() {
        let mut road = Road::new(1_000, Duration::ZERO);
        road.go_on(TICK);
        for number in [7, PROBE, u64::MAX] {
            road.upload.handle_pong(number, road.now);
        }
        assert_eq!(road.upload.on_its_way(), 0);
    }
}
