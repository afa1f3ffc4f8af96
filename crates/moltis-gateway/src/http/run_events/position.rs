//! The id of an event of a run: how far both outputs have come.

use std::fmt;
use std::str::FromStr;

/// `4096-17`, and `4096-17-ended` behind the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// The offsets behind the last bytes of stdout and stderr.
    pub(super) offsets: [u64; 2],
    /// The end was told.
    pub(super) ended: bool,
}

/// A text is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoPosition;

const ENDED: &str = "-ended";

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [stdout, stderr] = self.offsets;
        let ended = if self.ended { ENDED } else { "" };
        write!(f, "{stdout}-{stderr}{ended}")
    }
}

impl FromStr for Position {
    type Err = NoPosition;

    /// Reads a position as it was written, and no other way to write the same.
    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let (offsets, ended) = match text.strip_suffix(ENDED) {
            Some(offsets) => (offsets, true),
            None => (text, false),
        };
        let (stdout, stderr) = offsets.split_once('-').ok_or(NoPosition)?;
        let offset = |text: &str| text.parse().map_err(|_| NoPosition);
        let position = Self {
            offsets: [offset(stdout)?, offset(stderr)?],
            ended,
        };
        if position.to_string() == text {
            Ok(position)
        } else {
            Err(NoPosition)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written() {
        for offsets in [[0, 0], [4096, 17], [u64::MAX, 1]] {
            for ended in [false, true] {
                let position = Position { offsets, ended };
                assert_eq!(position.to_string().parse(), Ok(position));
            }
        }
    }

    #[test]
    fn nonsense_is_no_position() {
        for text in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "1--1",
            "01-1",
            "+1-1",
            "1-1-1",
            "1-1-ended-ended",
            "1-1-Ended",
            "ended",
            "18446744073709551616-0",
            "4f2a91c3-17",
        ] {
            assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text:?}");
        }
    }
}
