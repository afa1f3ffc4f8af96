//! The id of an event: which process gave it, and its number there.

use std::fmt;
use std::str::FromStr;

/// `4f2a91c3-17`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventId {
    /// Random for each process of the gateway, so that no two of them give the same id.
    pub(super) incarnation: u32,
    /// Counts what has happened in that process, from 1.
    pub(super) number: u64,
}

/// A text is the id of no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoId;

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.incarnation, self.number)
    }
}

impl FromStr for EventId {
    type Err = NoId;

    /// Reads an id as it was written, and no other way to write the same.
    fn from_str(text: &str) -> Result<Self, NoId> {
        let (incarnation, number) = text.split_once('-').ok_or(NoId)?;
        let id = Self {
            incarnation: u32::from_str_radix(incarnation, 16).map_err(|_| NoId)?,
            number: number.parse().map_err(|_| NoId)?,
        };
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(NoId)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        for (incarnation, number) in [(0, 0), (0x4f2a_91c3, 17), (u32::MAX, u64::MAX)] {
            let id = EventId {
                incarnation,
                number,
            };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn nonsense_is_no_id() {
        for text in [
            "",
            "-",
            "17",
            "4f2a91c3",
            "4f2a91c3-",
            "4f2a91c3--1",
            "4f2a91c3-017",
            "4f2a91c3-+17",
            "4F2A91C3-17",
            "+f2a91c3-17",
            "04f2a91c3-17",
            "4f2a91c3-18446744073709551616",
            "4f2a91c3-1-2",
            " 4f2a91c3-17",
            "\u{661}f2a91c3-17",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(NoId), "{text:?}");
        }
    }
}
