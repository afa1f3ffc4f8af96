//! Chance, out of a number: what a world and its plan draw from. Never the product, whose randomness
//! is [`entropy`](super::entropy)'s.

use std::time::Duration;

/// A source of chance. Two of the same number fall alike.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    /// Returns the dice of one purpose in the world of this number.
    pub(super) fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a (draft-eastlake-fnv), so that each purpose falls by itself.
        let mixed = purpose.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut dice = Self(seed ^ mixed);
        dice.roll();
        dice
    }

    /// Returns any number: `SplitMix64` (Steele, Lea, Flood, 2014).
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// Returns a number of a range that is not empty.
    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    /// Returns a time of some milliseconds.
    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.between(from, to))
    }

    /// Returns true in so many of a hundred cases.
    pub(super) fn percent(&mut self, cases: u64) -> bool {
        self.below(100) < cases
    }

    /// Returns one of several.
    pub(super) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let at = self.below(of.len() as u64);
        &of[usize::try_from(at).unwrap_or_default()]
    }

    /// Returns one of several, each as likely as its weight says.
    pub(super) fn weighted<'a, T>(&mut self, of: &'a [(u64, T)]) -> &'a T {
        let sum: u64 = of.iter().map(|(weight, _)| weight).sum();
        let mut at = self.below(sum);
        let chosen = of.iter().find(|(weight, _)| match at.checked_sub(*weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        &chosen
            .expect("the number is below the sum of the weights")
            .1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_and_each_purpose_falls_by_itself() {
        let first = |seed, purpose| Dice::new(seed, purpose).roll();
        assert_eq!(first(1, "net"), first(1, "net"));
        assert_ne!(first(1, "net"), first(2, "net"));
        assert_ne!(first(1, "net"), first(1, "plan"));
    }

    #[test]
    fn weights_are_kept() {
        let mut dice = Dice::new(1, "test");
        let mut seen = [0_u32; 3];
        for _ in 0..4000 {
            seen[*dice.weighted(&[(1, 0), (0, 1), (3, 2)])] += 1;
        }
        assert!(seen[1] == 0 && (800..1200).contains(&seen[0]), "{seen:?}");
    }
}
