//! Numbers as people read them: sizes, ages, durations, short ids.

use std::time::Duration;

use jiff::Timestamp;

/// Returns a size: `1.4 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut power = 0;
    let mut whole = bytes;
    while whole >= 1024 * 1024 && power < UNITS.len() - 1 {
        whole /= 1024;
        power += 1;
    }
    let tenths = whole * 10 / 1024;
    if tenths < 100 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[power])
    } else {
        format!("{} {}", tenths / 10, UNITS[power])
    }
}

/// Returns a length of time by its largest unit: `3 min`.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", (seconds + 30) / 60),
        7200..=172_799 => format!("{} h", (seconds + 1800) / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Returns how long ago a moment was: `3 min ago`.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let passed = now.duration_since(then);
    match Duration::try_from(passed) {
        Ok(passed) if passed.as_secs() > 0 => format!("{} ago", span(passed)),
        _ => "now".to_owned(),
    }
}

/// Returns how long it is until a moment: `3 min`, `0 s` when it has passed.
pub(crate) fn until(then: Timestamp, now: Timestamp) -> String {
    let left = Duration::try_from(then.duration_since(now)).unwrap_or_default();
    if left.as_secs() == 0 {
        "0 s".to_owned()
    } else {
        span(left)
    }
}

/// Returns the first eight characters of an id, which name it nearly always.
pub(crate) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits_at_least() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 * 1024, "10 KiB"),
            (16_700_000_000, "15 GiB"),
            (u64::MAX, "16383 PiB"),
        ] {
            assert_eq!(size(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn times_are_told_by_their_largest_unit() {
        for (ms, expected) in [
            (12, "12 ms"),
            (59_000, "59 s"),
            (600_000, "10 min"),
            (86_400_000, "24 h"),
            (864_000_000, "10 days"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), expected);
        }
        let then: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let now: Timestamp = "2026-01-02T03:07:05Z".parse().unwrap();
        assert_eq!(ago(then, now), "3 min ago");
        assert_eq!(ago(now, then), "now");
        assert_eq!(until(now, then), "3 min");
        assert_eq!(until(then, now), "0 s");
    }
}
