//! The ledger: one integer for the protocol, and a line for what each number added.
//!
//! | ledger | added |
//! |---|---|
//! | 1 | runs, telemetry, pairing |
//! | 2 | the node's clock |
//!
//! A struct that has been on the wire never changes. What is new is a new variant at the end of an
//! enum, with the next number here, and is sent only when both sides speak that number.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger(pub u16);

impl Ledger {
    /// From here on a node says what its clock says.
    pub const CLOCK: Self = Self(2);
}

/// The ledger numbers that one side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerRange {
    /// The lowest number still spoken.
    pub min: Ledger,
    /// The highest number spoken.
    pub max: Ledger,
}

impl LedgerRange {
    /// What this build speaks.
    pub const CURRENT: Self = Self {
        min: Ledger(1),
        max: Ledger(2),
    };

    /// Returns the highest number that both ranges hold; `None` where they do not meet.
    pub fn agree(self, other: Self) -> Option<Ledger> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }

    /// Returns whether `ledger` lies in this range.
    pub fn contains(self, ledger: Ledger) -> bool {
        (self.min..=self.max).contains(&ledger)
    }
}

impl fmt::Display for LedgerRange {
    /// `3`, or `2 to 5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min.0)
        } else {
            write!(f, "{} to {}", self.min.0, self.max.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ranges_agree_on_the_highest_common_number() {
        let range = |min, max| LedgerRange {
            min: Ledger(min),
            max: Ledger(max),
        };
        assert_eq!(range(1, 3).agree(range(2, 5)), Some(Ledger(3)));
        assert_eq!(range(2, 5).agree(range(1, 3)), Some(Ledger(3)));
        assert_eq!(range(1, 1).agree(range(1, 9)), Some(Ledger(1)));
        assert_eq!(range(1, 2).agree(range(3, 4)), None);
    }
}
