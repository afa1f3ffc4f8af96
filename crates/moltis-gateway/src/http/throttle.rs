//! Failed tokens, counted by source: pure, time comes in.
//!
//! A token of 256 random bits is not guessed, so this keeps the log and the store quiet rather than
//! the door shut: who shows a good token always passes, also from a source whose guesses are
//! refused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

/// Failures that one source may have at once.
const BURST: u32 = 10;
/// Time that takes one of them back.
const REFILL: Duration = Duration::from_secs(3);
/// Sources that are remembered. When they are more, those that failed longest ago are forgotten.
const SOURCES_MAX: usize = 4096;

/// Sources with failed tokens, each with the moment at which it will have no failure left.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    sources: HashMap<IpAddr, Instant>,
}

impl Throttle {
    /// Counts a failure.
    ///
    /// # Errors
    /// The time after which this source should try again, when it had too many.
    pub(crate) fn fail(&mut self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        if self.sources.len() >= SOURCES_MAX {
            self.forget(now);
        }
        let gone_at = self.sources.entry(network(source)).or_insert(now);
        let next = (*gone_at).max(now) + REFILL;
        let full = now + REFILL * BURST;
        if next > full {
            return Err(next - full);
        }
        *gone_at = next;
        Ok(())
    }

    /// Forgets who has no failure left; when that is nobody, everybody.
    fn forget(&mut self, now: Instant) {
        self.sources.retain(|_, gone_at| *gone_at > now);
        if self.sources.len() >= SOURCES_MAX {
            self.sources.clear();
        }
    }
}

/// Takes the /64 of an IPv6 address, which one machine has to itself.
pub(super) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_goes_on_failing_is_told_when_to_come_back() {
        let mut throttle = Throttle::default();
        let (source, now) = ("192.0.2.1".parse().unwrap(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(throttle.fail(source, now), Ok(()));
        }
        assert_eq!(throttle.fail(source, now), Err(REFILL));
        assert_eq!(throttle.fail("192.0.2.2".parse().unwrap(), now), Ok(()));
        assert_eq!(throttle.fail(source, now + REFILL), Ok(()));
        assert!(throttle.fail(source, now + REFILL).is_err());
    }

    #[test]
    fn the_table_is_bounded_and_a_network_is_one_source() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..20_000_u32 {
            let _ = throttle.fail(IpAddr::V4(n.into()), now);
            assert!(throttle.sources.len() <= SOURCES_MAX);
        }
        let mut throttle = Throttle::default();
        for n in 0..20 {
            let _ = throttle.fail(format!("2001:db8::{n:x}").parse().unwrap(), now);
        }
        assert_eq!(throttle.sources.len(), 1);
    }
}
