//! Who is at the door and who failed how often: counts and buckets, pure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::AdmissionConfig;

/// Sources remembered at once. Past it those that owe nothing are dropped, then the new ones share
/// one entry: a flood from many addresses cannot fill the memory.
const SOURCES_MAX: usize = 16 * 1024;

/// First and longest wait of a source that has used up its tokens.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_mins(1);

/// Time between two who are told to come back because there was no room: a handshake takes half of
/// a millisecond of one core.
const TURN: Duration = Duration::from_micros(500);

/// The longest wait of somebody for whom there was no room: strangers who hold it cannot keep others
/// away for longer.
const TURN_MAX: Duration = Duration::from_secs(8);

/// Where a connection comes from: an IPv4 address, or the /64 of an IPv6 address, which one
/// customer holds whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = u128::from(v6) & !u128::from(u64::MAX);
                Self(IpAddr::V6(Ipv6Addr::from(network)))
            }
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }

    /// Stands for all that there is no room to tell apart.
    const OTHERS: Self = Self(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
}

#[derive(Debug)]
pub(super) struct Ledger {
    strangers_max: usize,
    per_source_max: usize,
    per_second: f64,
    burst: f64,
    strangers: usize,
    sources: HashMap<Source, Account>,
    /// When the next one for whom there is no room shall come back.
    next_turn: Option<Instant>,
}

#[derive(Debug)]
struct Account {
    strangers: usize,
    tokens: f64,
    counted_at: Instant,
    /// Times in a row that it was sent away for its failures.
    sent_away: u32,
    closed_until: Option<Instant>,
}

impl Ledger {
    pub(super) fn new(config: &AdmissionConfig) -> Self {
        Self {
            strangers_max: config.strangers_max,
            per_source_max: config.strangers_per_source_max,
            per_second: config.failures_per_second,
            burst: config.failures_burst,
            strangers: 0,
            sources: HashMap::new(),
            next_turn: None,
        }
    }

    pub(super) fn strangers(&self) -> usize {
        self.strangers
    }

    /// Lets one in and returns the account that it stands on, or how long it should stay away.
    pub(super) fn admit(&mut self, source: Source, now: Instant) -> Result<Source, Duration> {
        if self.strangers >= self.strangers_max {
            return Err(self.turn(now));
        }
        let per_source_max = self.per_source_max;
        let source = self.entry_for(source, now);
        let account = self.account(source, now);
        if account.strangers >= per_source_max {
            return Err(self.turn(now));
        }
        if let Some(until) = account.closed_until
            && until > now
        {
            return Err(until - now);
        }
        if account.tokens < 1.0 {
            let wait = (WAIT_MIN * 2_u32.saturating_pow(account.sent_away)).min(WAIT_MAX);
            account.sent_away = (account.sent_away + 1).min(16);
            account.closed_until = Some(now + wait);
            // Who kept away as told is given one try.
            account.tokens = account.tokens.max(1.0);
            return Err(wait);
        }
        account.strangers += 1;
        self.strangers += 1;
        Ok(source)
    }

    /// Returns how long the next one for whom there is no room shall stay away: many who come at once,
    /// as after a restart, come back one after the other.
    fn turn(&mut self, now: Instant) -> Duration {
        let first = now + WAIT_MIN;
        let turn = self.next_turn.map_or(first, |next| next.max(first));
        let wait = (turn - now).min(TURN_MAX);
        self.next_turn = Some(now + wait + TURN);
        wait
    }

    /// One has left, or is a stranger no more.
    pub(super) fn leave(&mut self, source: Source, failed: bool, now: Instant) {
        self.strangers = self.strangers.saturating_sub(1);
        let burst = self.burst;
        let account = self.account(source, now);
        account.strangers = account.strangers.saturating_sub(1);
        if failed {
            account.tokens -= 1.0;
        } else if account.tokens >= burst {
            account.sent_away = 0;
        }
    }

    fn account(&mut self, source: Source, now: Instant) -> &mut Account {
        let (per_second, burst) = (self.per_second, self.burst);
        let account = self.sources.entry(source).or_insert_with(|| Account {
            strangers: 0,
            tokens: burst,
            counted_at: now,
            sent_away: 0,
            closed_until: None,
        });
        account.refill(per_second, burst, now);
        account
    }

    fn entry_for(&mut self, source: Source, now: Instant) -> Source {
        if self.sources.len() < SOURCES_MAX || self.sources.contains_key(&source) {
            return source;
        }
        let (per_second, burst) = (self.per_second, self.burst);
        self.sources.retain(|_, account| {
            account.refill(per_second, burst, now);
            account.strangers > 0 || account.tokens < burst
        });
        if self.sources.len() < SOURCES_MAX {
            source
        } else {
            Source::OTHERS
        }
    }
}

impl Account {
    fn refill(&mut self, per_second: f64, burst: f64, now: Instant) {
        // While it is sent away nothing grows, or a long wait would end early.
        let from = self
            .closed_until
            .map_or(self.counted_at, |until| until.max(self.counted_at));
        let passed = now.saturating_duration_since(from);
        self.counted_at = self.counted_at.max(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * per_second).min(burst);
        if self.tokens >= burst {
            self.sent_away = 0;
            self.closed_until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn source(last: u8) -> Source {
        Source::of(IpAddr::from([192, 0, 2, last]))
    }

    fn ledger() -> Ledger {
        Ledger::new(&AdmissionConfig {
            strangers_max: 4,
            strangers_per_source_max: 2,
            failures_per_second: 1.0,
            failures_burst: 3.0,
            ..AdmissionConfig::default()
        })
    }

    #[test]
    fn strangers_are_bounded_for_each_source_and_in_all() {
        let (mut ledger, now) = (ledger(), start());
        for last in [1, 1, 2, 2] {
            assert_eq!(ledger.admit(source(last), now), Ok(source(last)));
        }
        assert!(ledger.admit(source(1), now).is_err());
        assert!(ledger.admit(source(3), now).is_err());
        ledger.leave(source(2), false, now);
        assert!(ledger.admit(source(1), now).is_err());
        assert!(ledger.admit(source(3), now).is_ok());
    }

    #[test]
    fn the_wait_grows_while_a_source_goes_on_failing() {
        let (mut ledger, mut now) = (ledger(), start());
        let mut waits = Vec::new();
        while waits.len() < 8 {
            match ledger.admit(source(1), now) {
                Ok(account) => ledger.leave(account, true, now),
                Err(wait) => {
                    waits.push(wait.as_secs());
                    // It comes back before it may, and is told the rest.
                    assert!(ledger.admit(source(1), now + wait / 2).is_err());
                    now += wait;
                }
            }
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(ledger.admit(source(2), now).is_ok());
    }

    #[test]
    fn a_full_bucket_forgets_the_past() {
        let (mut ledger, now) = (ledger(), start());
        for _ in 0..3 {
            ledger.admit(source(1), now).unwrap();
            ledger.leave(source(1), true, now);
        }
        assert!(ledger.admit(source(1), now).is_err());
        let later = now + Duration::from_mins(1);
        assert!(ledger.admit(source(1), later).is_ok());
        assert_eq!(ledger.sources[&source(1)].sent_away, 0);
    }

    #[test]
    fn one_customer_of_ipv6_is_one_source_and_a_mapped_address_is_ipv4() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), source(1));
    }

    #[test]
    fn many_addresses_do_not_fill_the_memory() {
        let now = start();
        let mut ledger = Ledger::new(&AdmissionConfig {
            strangers_max: usize::MAX,
            ..AdmissionConfig::default()
        });
        for at in 0..u32::try_from(SOURCES_MAX).unwrap() + 1000 {
            let source = Source::of(IpAddr::from(at.to_be_bytes()));
            if let Ok(account) = ledger.admit(source, now) {
                ledger.leave(account, true, now);
            }
        }
        assert!(ledger.sources.len() <= SOURCES_MAX + 1);
    }
}
