//! Figures and lists in the words of a finding.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};

/// Names that are listed before the rest is only counted.
const NAMED_MAX: usize = 5;

/// Returns a size: `1.4 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut whole = bytes;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while whole >= 1024 * 1024
        && let Some(larger) = units.next()
    {
        whole /= 1024;
        unit = Some(larger);
    }
    let (whole, tenths) = (whole / 1024, whole % 1024 * 10 / 1024);
    format!("{whole}.{tenths} {}", unit.unwrap_or(&""))
}

/// Returns a length of time by its two largest units: `9m 30s`.
pub(super) fn span(time: SignedDuration) -> String {
    let seconds = time.unsigned_abs().as_secs();
    let (days, hours) = (seconds / 86_400, seconds % 86_400 / 3600);
    let (minutes, rest) = (seconds % 3600 / 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => format!("{minutes} min {rest} s"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Returns how long ago a moment was.
pub(super) fn ago(then: Timestamp, now: Timestamp) -> String {
    let passed = now.duration_since(then);
    if passed.as_secs() <= 0 {
        return "just now".to_owned();
    }
    format!("{} ago", span(passed))
}

/// Joins the first of them, and counts the others.
pub(super) fn list(all: impl ExactSizeIterator<Item = String>) -> String {
    let more = all.len().saturating_sub(NAMED_MAX);
    let mut named: Vec<_> = all.take(NAMED_MAX).collect();
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    named.join(", ")
}

/// Returns a path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_told_by_their_largest_units() {
        for (bytes, expected) in [
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (16_700_000_000, "15.5 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
        for (seconds, expected) in [
            (0, "0 s"),
            (-59, "59 s"),
            (570, "9 min 30 s"),
            (7260, "2 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(SignedDuration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_long_list_is_counted_and_a_path_survives_the_shell() {
        let names = |count: usize| list((0..count).map(|n| n.to_string()));
        assert_eq!(names(5), "0, 1, 2, 3, 4");
        assert_eq!(names(7), "0, 1, 2, 3, 4, and 2 more");
        assert_eq!(quoted(Path::new("/a/.m/x")), "/a/.m/x");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
