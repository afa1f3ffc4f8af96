//! Which bytes of a stream a request is for: `Range` (RFC 9110, 14) or `offset`. Pure.

/// The bytes that a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// From here on: an `offset`, which may be the end itself.
    From(u64),
    /// From the first to the last, both included; the last may lie behind the end.
    Range(u64, u64),
    /// So many at the end.
    Last(u64),
}

/// Reads a `Range` header. `None` for what a server may ignore: another unit, several ranges,
/// nonsense.
pub(crate) fn parse(header: &str) -> Option<Wanted> {
    let range = header.trim().strip_prefix("bytes=")?;
    let (first, last) = range.split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", "") => None,
        ("", count) => number(count).map(Wanted::Last),
        (first, "") => Some(Wanted::Range(number(first)?, u64::MAX)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Wanted::Range(first, last))
        }
    }
}

impl Wanted {
    /// Returns the offsets of the first byte and of the one behind the last, in a stream of which
    /// `stored` bytes are there; `None` when the range lies behind them.
    pub(crate) fn within(self, stored: u64) -> Option<(u64, u64)> {
        match self {
            Self::From(first) => (first <= stored).then_some((first, stored)),
            Self::Range(first, last) => {
                (first < stored).then(|| (first, stored.min(last.saturating_add(1))))
            }
            Self::Last(count) => {
                (count > 0 && stored > 0).then(|| (stored.saturating_sub(count), stored))
            }
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_says() {
        let cases = [
            ("bytes=0-", Some(Wanted::Range(0, u64::MAX))),
            ("bytes=10-19", Some(Wanted::Range(10, 19))),
            ("bytes=-5", Some(Wanted::Last(5))),
            ("bytes=5-5", Some(Wanted::Range(5, 5))),
            ("bytes=6-5", None),
            ("bytes=-", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
            ("bytes=+1-2", None),
            ("bytes=99999999999999999999-", None),
            ("", None),
        ];
        for (header, wanted) in cases {
            assert_eq!(parse(header), wanted, "{header:?}");
        }
    }

    #[test]
    fn a_range_behind_the_end_is_no_range() {
        let cases = [
            (Wanted::From(0), Some((0, 10))),
            (Wanted::From(10), Some((10, 10))),
            (Wanted::From(11), None),
            (Wanted::Range(2, 4), Some((2, 5))),
            (Wanted::Range(9, u64::MAX), Some((9, 10))),
            (Wanted::Range(10, 12), None),
            (Wanted::Last(3), Some((7, 10))),
            (Wanted::Last(30), Some((0, 10))),
            (Wanted::Last(0), None),
        ];
        for (wanted, within) in cases {
            assert_eq!(wanted.within(10), within, "{wanted:?}");
        }
    }
}
