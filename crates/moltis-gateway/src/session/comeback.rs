//! When nodes shall come back to a gateway that ends in good order. Pure.
//!
//! A node that comes too early finds nobody and backs off for longer than it had to wait; nodes
//! that come all at once keep each other waiting. So the more there are, the later the first comes,
//! and the longer is the time over which they are spread.

use std::time::Duration;

/// The shortest wait: a gateway is back within a second.
const FIRST: Duration = Duration::from_secs(1);

/// What each node adds to the shortest wait. To say goodbye to ten thousand, and to take down what
/// is known of them, takes a gateway some two seconds more.
const LATER_FOR_EACH: Duration = Duration::from_micros(200);

/// The part of the time over which nodes come back that belongs to each: a thousand a second, which
/// is a third of what one core takes.
const SPREAD_FOR_EACH: Duration = Duration::from_millis(1);

/// The longest wait, however many there are.
const LAST: Duration = Duration::from_mins(2);

/// Returns when one of so many nodes shall come back; `random` is any two bytes.
pub(super) fn back_in(nodes: usize, random: [u8; 2]) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let part = f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX);
    let spread = SPREAD_FOR_EACH.saturating_mul(nodes).min(LAST);
    let first = FIRST.saturating_add(LATER_FOR_EACH.saturating_mul(nodes));
    first.saturating_add(spread.mul_f64(part)).min(LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(nodes: usize) -> [u128; 2] {
        [[0, 0], [255, 255]].map(|random| back_in(nodes, random).as_millis())
    }

    #[test]
    fn a_few_come_back_at_once_and_many_over_a_while() {
        assert_eq!(span(1), [1000, 1001]);
        assert_eq!(span(10_000), [3000, 13_000]);
    }

    #[test]
    fn nobody_is_sent_away_for_longer_than_two_minutes() {
        assert_eq!(span(usize::MAX), [120_000, 120_000]);
    }
}
