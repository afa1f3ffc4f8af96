//! What of stdin is on its way to a node, and how much of it may be. Pure.
//!
//! A road swallows more than it carries: its buffers take hundreds of kilobytes, and a cancel or the
//! start of another command then waits behind all of them. So no more stdin is sent than the road
//! carries in some seconds. What has arrived is told by the pongs of pings that go between: an
//! acknowledgement says what the command has read, and it may read when it likes. Only a road that was
//! held back is measured; before that little is sent, and twice as much with each answer.
//!
//! A pong has a way back, on which it waits behind seconds of the node's own output: what is not
//! answered is not all on its way. So two things are measured. The rate is what has come between two
//! pongs, over the time between them or between their pings, whichever is longer: a way back that is the
//! same for both does not count, and one that becomes shorter makes no road faster than it was used. The
//! way back is what a ping takes that goes when nothing else is on its way: where it is long, nothing is
//! sent from time to time until that is so. As much more may be without an answer as the road carries in
//! that time; and so that it does not lie on the road all at once, it is sent at the road's own pace.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long the last byte may be on its way: a cancel behind it acts within five seconds, with the
/// kernel's and the network's part of them.
const ON_ITS_WAY: Duration = Duration::from_millis(2_500);

/// So much may be, however slow the road.
const FLOOR_BYTES: u64 = 16 * 1024;

/// How long arrivals are counted before a rate is believed.
const MEASURED_OVER: Duration = Duration::from_millis(500);

/// The best of the rates of this time and two ways back counts: one answer that is late makes no road
/// slow.
const BEST_OF: Duration = Duration::from_secs(2);

/// A way back up to this is as good as none; one that seems shorter by this has become shorter.
const SHORT: Duration = Duration::from_millis(500);

/// A longer way back is not believed: a node has five seconds of its output on it, and a frame, which
/// is two more where a second carries 8 KiB.
const WAY_BACK_MAX: Duration = Duration::from_secs(8);

/// How long a way back that is not short is believed, while the answers say that something waits on the
/// road: were it shorter meanwhile, that much more would. Also how seldom one is measured that seems to
/// have become longer.
const WAY_BACK_HOLDS: Duration = Duration::from_secs(10);

/// How long it is while nothing seems to wait.
const WAY_BACK_HOLDS_EMPTY: Duration = Duration::from_secs(30);

/// An answer that is later than it should be by this tells of something else: nothing should be on the
/// road, or no more than may be.
const LATE: Duration = Duration::from_secs(1);

/// Below this many bytes a second a road is slow.
const SLOW_RATE: u64 = 1_000_000;

/// Bytes of one frame on a slow road.
const SLOW_CHUNK_BYTES: usize = 4 * 1024;

/// What is sent is paced by the rate as it was measured and a quarter, so that a faster road is found; by
/// twice of it while the answers say that nothing waits on the road.
const FASTER_PERCENT: u64 = 125;
const MUCH_FASTER_PERCENT: u64 = 200;

/// The shortest time for which who is paced waits.
const PACED_BY: Duration = Duration::from_millis(20);

/// Bytes of a frame whose ping is to tell of the way back, and of nothing else.
const ALONE_CHUNK_BYTES: usize = 512;

/// Time between two pings: a node's pongs are not for free.
const PROBE_EVERY: Duration = Duration::from_millis(200);

/// Pings that may wait for their pongs.
const ASKED_MAX: usize = 8;

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
    /// The pings that wait for their pongs, in their order.
    asked: VecDeque<Asked>,
    /// From where the next rate is measured, while the road is held back now and again.
    from: Option<Mark>,
    /// It is held back at this moment.
    is_held: bool,
    /// Bytes a second that were measured, and when: each is less than the one before it, and newer.
    rates: VecDeque<(Instant, u64)>,
    /// How much may be on its way while no rate is known.
    first: u64,
    way_back: WayBack,
    pace: Pace,
}

/// A ping that waits for its pong.
#[derive(Debug)]
struct Asked {
    /// Where it lies on the road.
    at: u64,
    sent: Instant,
    /// From where a rate is measured by it.
    from: Option<Mark>,
    /// Nothing else was on its way, and so it tells of the way back.
    is_alone: bool,
}

/// A place on the road, and when it was passed.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: u64,
    sent: Instant,
    answered: Instant,
}

/// How long an answer is on its way.
#[derive(Debug, Default)]
struct WayBack {
    /// What a ping took that was alone, or one since that took less.
    took: Duration,
    measured: Option<Instant>,
    /// It is to be measured, as soon as nothing is on its way.
    is_wanted: bool,
    /// A small frame was sent for it, and its ping is next.
    is_begun: bool,
}

/// What is still on its way where the road is no slower than it was measured.
#[derive(Debug, Default)]
struct Pace {
    bytes: u64,
    counted: Option<Instant>,
    /// When the next frame may be sent.
    until: Option<Instant>,
    /// The newest answer says that something waits on the road.
    is_full: bool,
}

impl Upload {
    pub(super) fn new() -> Self {
        Self {
            sent: 0,
            arrived: 0,
            arrived_at: None,
            probed: 0,
            probe_at: None,
            asked: VecDeque::new(),
            from: None,
            is_held: false,
            rates: VecDeque::new(),
            first: FLOOR_BYTES,
            way_back: WayBack {
                is_wanted: true,
                ..WayBack::default()
            },
            pace: Pace::default(),
        }
    }

    /// Returns how many bytes the next frame may have, `chunk_max` at the most; `None` while there is
    /// enough on its way.
    pub(super) fn next_chunk(&mut self, chunk_max: usize, now: Instant) -> Option<usize> {
        if self.way_back.is_begun {
            return None;
        }
        let is_slow = self.rate().is_none_or(|rate| rate < SLOW_RATE);
        let chunk = if is_slow {
            chunk_max.min(SLOW_CHUNK_BYTES)
        } else {
            chunk_max
        };
        let on_its_way = self.on_its_way();
        if self.way_back.is_wanted && on_its_way == 0 {
            self.is_held = false;
            return Some(chunk.min(ALONE_CHUNK_BYTES));
        }
        // The first one is taken as it comes.
        let empties = self.way_back.is_wanted && self.way_back.measured.is_some();
        self.is_held =
            empties || on_its_way + chunk as u64 > self.bound() || self.is_paced(chunk as u64, now);
        if !self.is_held {
            return Some(chunk);
        }
        let holds = if self.pace.is_full {
            WAY_BACK_HOLDS
        } else {
            WAY_BACK_HOLDS_EMPTY
        };
        let is_doubted = self.way_back() > SHORT && self.is_way_back_older(holds, now);
        self.way_back.is_wanted |= is_doubted;
        // Behind a way back that is being measured its answer is the mark.
        let is_measured = self.asked.iter().any(|asked| asked.is_alone);
        if self.from.is_none() && (!is_measured || self.rates.is_empty()) {
            self.from = Some(Mark {
                at: self.arrived,
                sent: now,
                answered: now,
            });
        }
        None
    }

    /// So much was sent.
    pub(super) fn handle_sent(&mut self, bytes: usize, now: Instant) {
        if bytes == 0 {
            return; // the end alone
        }
        let is_idle = |at: Instant| now.saturating_duration_since(at) > IDLE;
        if self.on_its_way() == 0 {
            self.way_back.is_begun = self.way_back.is_wanted;
            if self.way_back.is_wanted || self.arrived_at.is_some_and(is_idle) {
                self.from = None;
            }
        }
        self.sent += bytes as u64;
        self.leak(now);
        self.pace.bytes += bytes as u64;
    }

    /// Returns the number of a ping that has to go behind what was sent so far.
    pub(super) fn poll_probe(&mut self, now: Instant) -> Option<u64> {
        let is_alone = self.way_back.is_begun;
        // Each answer to one that waits doubles what an unknown road is given: these are few.
        let waits = self.asked.iter().any(|asked| !asked.is_alone);
        let is_free = self.rates.is_empty() && self.is_held && !waits;
        let is_early = !is_free && self.probe_at.is_some_and(|at| now < at);
        if !is_alone && (is_early || !self.wants_probe()) {
            return None;
        }
        if is_alone {
            self.way_back.is_begun = false;
            self.way_back.is_wanted = false;
        }
        self.asked.push_back(Asked {
            at: self.sent,
            sent: now,
            from: self.from,
            is_alone,
        });
        self.probed = self.sent;
        self.probe_at = Some(now + PROBE_EVERY);
        Some(PROBE | (self.sent & (PROBE - 1)))
    }

    /// Returns when to ask for a ping, or to go on.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let probe = self.probe_at.filter(|_| self.wants_probe());
        [probe, self.pace.until].into_iter().flatten().min()
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) has come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.probe_at = self.probe_at.filter(|at| now < *at);
        self.pace.until = self.pace.until.filter(|at| now < *at);
    }

    /// A pong has come: all that was sent before its ping has arrived. A node need not answer each of
    /// several pings that wait, but the newest: where that was another one, ours is asked anew.
    pub(super) fn handle_pong(&mut self, number: u64, now: Instant) {
        if number & PROBE == 0 {
            let mut asked = self.asked.drain(..);
            self.way_back.is_wanted |= asked.any(|asked| asked.is_alone);
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
        self.probed = self.probed.max(arrived);
        while let Some(asked) = self.asked.pop_front_if(|asked| asked.at <= arrived) {
            if asked.is_alone {
                self.handle_alone(&asked, now);
            } else if asked.at == arrived {
                self.handle_answer(&asked, bytes, now);
            }
        }
    }

    /// The ping that was alone was answered. Where a newer one was answered for both, it would have been at
    /// the same time.
    fn handle_alone(&mut self, asked: &Asked, now: Instant) {
        self.way_back.took = now.saturating_duration_since(asked.sent);
        self.way_back.measured = Some(now);
        self.pace.is_full = false;
        if self.is_held && self.from.is_none() {
            self.from = Some(Mark {
                at: asked.at,
                sent: asked.sent,
                answered: now,
            });
        }
    }

    /// The newest of the pings was answered, which tells of so many bytes that they have arrived.
    fn handle_answer(&mut self, asked: &Asked, bytes: u64, now: Instant) {
        let took = now.saturating_duration_since(asked.sent);
        let way_back = self.way_back();
        if took < way_back {
            self.way_back.took = took;
        }
        let is_shorter = took + SHORT < way_back;
        let is_longer =
            took > way_back + ON_ITS_WAY + LATE && self.is_way_back_older(WAY_BACK_HOLDS, now);
        self.way_back.is_wanted |= is_shorter || is_longer;
        self.pace.is_full = took > way_back + LATE;
        // What was never held back says nothing about the road.
        let Some(from) = asked.from else {
            return;
        };
        self.first = self.first.saturating_add(bytes);
        let sent_in = asked.sent.saturating_duration_since(from.sent);
        let answered_in = now.saturating_duration_since(from.answered);
        let time = sent_in.max(answered_in);
        if time < MEASURED_OVER || asked.at <= from.at {
            return;
        }
        let rate = u128::from(asked.at - from.at) * 1000 / time.as_millis();
        self.measured(u64::try_from(rate).unwrap_or(u64::MAX), now);
        self.from = self.is_held.then_some(Mark {
            at: asked.at,
            sent: asked.sent,
            answered: now,
        });
    }

    fn measured(&mut self, rate: u64, now: Instant) {
        let holds = BEST_OF + self.way_back() * 2;
        let is_old = |at: Instant| now.saturating_duration_since(at) > holds;
        while self.rates.pop_front_if(|(at, _)| is_old(*at)).is_some() {}
        while self.rates.pop_back_if(|(_, less)| *less <= rate).is_some() {}
        self.rates.push_back((now, rate));
    }

    /// A few at a time: while the road is measured, and often enough that it never stands still.
    fn wants_probe(&self) -> bool {
        let fresh = self.sent - self.probed;
        let is_much = !self.rates.is_empty() && fresh >= self.bound() / 4;
        let is_asked = is_much || self.from.is_some() || self.way_back.is_wanted && self.is_held;
        fresh > 0 && self.asked.len() < ASKED_MAX && is_asked
    }

    /// Returns whether enough is on the road, were it no faster than it was measured. Where the way back
    /// is short, what is not answered says as much.
    fn is_paced(&mut self, chunk: u64, now: Instant) -> bool {
        self.leak(now);
        self.pace.until = None;
        let Some(rate) = self.rate().filter(|_| self.way_back() > SHORT) else {
            return false;
        };
        let most = carried(rate, ON_ITS_WAY).max(FLOOR_BYTES);
        let over = (self.pace.bytes + chunk).saturating_sub(most);
        if over > 0 {
            let millis = over.saturating_mul(1000) / self.pace_of(rate).max(1);
            self.pace.until = Some(now + Duration::from_millis(millis).clamp(PACED_BY, LATE));
        }
        over > 0
    }

    fn leak(&mut self, now: Instant) {
        let since = self.pace.counted.replace(now);
        let time = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let gone = self
            .rate()
            .map_or(0, |rate| carried(self.pace_of(rate), time));
        if gone == 0 {
            self.pace.counted = since.or(Some(now)); // no time is lost in many short ones
        }
        let left = self.pace.bytes.saturating_sub(gone);
        self.pace.bytes = left.min(self.on_its_way());
    }

    fn pace_of(&self, rate: u64) -> u64 {
        let percent = if self.pace.is_full {
            FASTER_PERCENT
        } else {
            MUCH_FASTER_PERCENT
        };
        rate.saturating_mul(percent) / 100
    }

    fn bound(&self) -> u64 {
        let Some(rate) = self.rate() else {
            return self.first;
        };
        carried(rate, ON_ITS_WAY + self.way_back()).max(FLOOR_BYTES)
    }

    fn rate(&self) -> Option<u64> {
        self.rates.front().map(|(_, rate)| *rate)
    }

    /// How long an answer is on its way where nothing waits before its ping.
    fn way_back(&self) -> Duration {
        self.way_back.took.min(WAY_BACK_MAX)
    }

    fn is_way_back_older(&self, holds: Duration, now: Instant) -> bool {
        let is_older = |at| now.saturating_duration_since(at) > holds;
        self.way_back.measured.is_none_or(is_older)
    }

    fn on_its_way(&self) -> u64 {
        self.sent - self.arrived
    }
}

/// Returns how many bytes are carried in this time, at so many a second.
fn carried(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_millis() / 1000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
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
        /// How much longer the way back is, by the time.
        back: fn(Duration) -> Duration,
        /// The node answers no sooner again, and then the newest only.
        answers_every: Duration,
        answers_at: Instant,
        waiting: Option<u64>,
        began: Instant,
        /// The longest time that a byte had before it.
        longest: Duration,
    }

    impl Road {
        #[expect(clippy::disallowed_methods, reason = "an origin to count from")]
        fn new(rate: u64, delay: Duration) -> Self {
            let now = Instant::now();
            Self {
                upload: Upload::new(),
                now,
                rate,
                delay,
                given: u64::MAX,
                window: u64::MAX,
                sent: 0,
                carried: 0,
                pings: VecDeque::new(),
                pongs: VecDeque::new(),
                pinged: 0,
                back: |_| Duration::ZERO,
                answers_every: Duration::ZERO,
                answers_at: now,
                waiting: None,
                began: now,
                longest: Duration::ZERO,
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
                let waits = self.sent - self.carried;
                most = most.max(waits);
                let waits = Duration::from_millis(waits * 1000 / self.rate);
                self.longest = self.longest.max(waits);
                self.now += TICK;
                self.carried = (self.carried + self.rate / 1000).min(self.sent);
                let carried = self.carried;
                while let Some((_, number)) = self.pings.pop_front_if(|(end, _)| *end <= carried) {
                    self.waiting = Some(number);
                    if self.answers_every.is_zero() {
                        self.answer();
                    }
                }
                if self.now >= self.answers_at {
                    self.answer();
                    self.answers_at = self.now + self.answers_every;
                }
            }
            most
        }

        fn answer(&mut self) {
            if let Some(number) = self.waiting.take() {
                let at = self.now + self.delay + (self.back)(self.now - self.began);
                let at = self.pongs.back().map_or(at, |(before, _)| at.max(*before));
                self.pongs.push_back((at, number));
            }
        }

        /// Returns how many bytes are carried in this time.
        fn carries(&mut self, time: Duration) -> u64 {
            let before = self.carried;
            self.longest = Duration::ZERO;
            self.go_on(time);
            self.carried - before
        }
    }

    #[test]
    fn a_node_that_answers_only_the_newest_ping_is_asked_anew() {
        let mut upload = Upload::new();
        let now = Road::new(1, TICK).now;
        // The first frame is asked for alone, and what is behind it for itself.
        for _ in 0..2 {
            while let Some(bytes) = upload.next_chunk(CHUNK, now) {
                upload.handle_sent(bytes, now);
            }
            upload.poll_probe(now).unwrap();
        }
        let later = now + PROBE_EVERY;
        upload.handle_timeout(later);
        assert_eq!(upload.poll_probe(later), None, "they are on their way");
        // A heartbeat came behind it, and was the newest.
        upload.handle_pong(7, later);
        assert_eq!(upload.next_chunk(CHUNK, later), None);
        let probe = upload.poll_probe(later).unwrap();
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
        assert!(road.upload.rate().is_none_or(|rate| rate > SLOW_RATE / 2));
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
    fn an_end_without_bytes_is_not_asked_for() {
        let mut upload = Upload::new();
        let now = Road::new(1, TICK).now;
        assert!(upload.next_chunk(CHUNK, now).is_some());
        upload.handle_sent(0, now);
        assert_eq!(upload.poll_probe(now), None);
        assert!(upload.next_chunk(CHUNK, now).is_some());
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

    const LONG: Duration = Duration::from_secs(5);

    /// A way back that is longer by half a second each second, and then shorter again.
    fn rises_and_falls(at: Duration) -> Duration {
        let at = u64::try_from(at.as_millis()).unwrap() % 20_000;
        Duration::from_millis(at.min(20_000 - at) / 2)
    }

    #[test]
    fn a_long_way_back_makes_no_road_slow() {
        for (rate, least) in [(8_000, 2_500), (100_000, 40_000), (10_000_000, 400_000)] {
            for every in [0, 400] {
                let mut road = Road::new(rate, LONG);
                road.answers_every = Duration::from_millis(every);
                road.carries(Duration::from_mins(2));
                assert!(road.longest < LONG, "{rate}: {:?}", road.longest);
                let carried = road.carries(Duration::from_mins(1)) / 60;
                assert!(carried > least, "{rate}: {carried} bytes a second");
                assert!(road.longest < LONG, "{rate}: {:?}", road.longest);
                assert!(road.pinged < 5 * 180, "{} pings", road.pinged);
            }
        }
    }

    #[test]
    fn a_way_back_that_becomes_long_or_short_is_noticed() {
        for (rate, every) in [(8_000, 0), (8_000, 400), (100_000, 400), (10_000_000, 0)] {
            let mut road = Road::new(rate, Duration::ZERO);
            road.answers_every = Duration::from_millis(every);
            road.back = |at| {
                if at.as_secs() / 60 == 1 {
                    LONG
                } else {
                    Duration::ZERO
                }
            };
            let minute = Duration::from_mins(1);
            road.carries(minute);
            let long = road.carries(minute) / 60;
            assert!(long > rate / 4, "{rate}: {long} bytes a second");
            assert!(road.longest < LONG, "{rate}: {:?}", road.longest);
            road.carries(Duration::from_secs(20));
            assert!(road.longest < LONG, "{rate}: {:?}", road.longest);
            let short = road.carries(minute) / 60;
            assert!(short > rate * 8 / 10, "{rate}: {short} bytes a second");
        }
    }

    #[test]
    fn a_way_back_that_changes_all_the_time_makes_no_road_slow() {
        for (rate, least) in [(8_000, 2_500), (100_000, 25_000), (10_000_000, 2_500_000)] {
            for every in [0, 400] {
                let mut road = Road::new(rate, Duration::from_millis(20));
                road.answers_every = Duration::from_millis(every);
                road.back = rises_and_falls;
                road.carries(Duration::from_secs(20));
                let carried = road.carries(Duration::from_mins(2)) / 120;
                assert!(carried > least, "{rate}: {carried} bytes a second");
                assert!(
                    road.longest < Duration::from_secs(7),
                    "{rate}: {:?}",
                    road.longest
                );
            }
        }
    }

    #[test]
    fn a_road_that_becomes_slower_is_noticed() {
        for delay in [20, 5_000] {
            let mut road = Road::new(1_000_000, Duration::from_millis(delay));
            road.carries(Duration::from_mins(3));
            road.rate = 100_000;
            road.carries(Duration::from_mins(2));
            let carried = road.carries(Duration::from_secs(30)) / 30;
            assert!(carried > 50_000, "{delay}: {carried} bytes a second");
            assert!(road.longest < LONG, "{delay}: {:?}", road.longest);
        }
    }
}
