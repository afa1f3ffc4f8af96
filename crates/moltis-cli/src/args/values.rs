//! Parsers of single values: durations, addresses, `key=value`. Each says what it expected.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use moltis_proto::limits;

/// The longest timeout that a person can mean, in seconds: a year.
pub(crate) const TIMEOUT_SECONDS_MAX: u64 = 365 * 24 * 60 * 60;

/// Parses what `--listen` takes.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an address and a port, as `127.0.0.1:9090`, `0.0.0.0:9090` or `[::1]:9090`"
            .to_owned()
    })
}

/// Parses a path, and makes it absolute: a service starts elsewhere.
pub(crate) fn path(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|_| "expected the path of a file".to_owned())
}

/// Parses the timeout of one run: whole seconds, from 1 to a year.
pub(crate) fn run_timeout(text: &str) -> Result<u64, String> {
    match seconds(text)? {
        0 => {
            Err("a run needs at least 1 second; leave --timeout out for the node's own".to_owned())
        }
        seconds => Ok(seconds),
    }
}

/// Parses the longest time of a node: whole seconds, 0 for no limit.
pub(crate) fn node_timeout(text: &str) -> Result<u64, String> {
    seconds(text)
}

fn seconds(text: &str) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return Err("expected whole seconds, as `300`".to_owned());
    }
    text.parse()
        .ok()
        .filter(|seconds| *seconds <= TIMEOUT_SECONDS_MAX)
        .ok_or_else(|| format!("at most {TIMEOUT_SECONDS_MAX} seconds (a year) are possible"))
}

/// Parses how many nodes run at a time: at least 1.
pub(crate) fn parallel(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| "expected how many nodes at a time, at least 1, as `10`".to_owned())
}

/// Parses how long the pairing window stays open: `1s` to `60m`.
pub(crate) fn window_time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time.is_zero() || time > limits::WINDOW_TIME_MAX {
        return Err("the window can be open for 1 second to 60 minutes".to_owned());
    }
    Ok(time)
}

/// Parses how long a token works: at least a minute.
pub(crate) fn token_time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time < Duration::from_mins(1) || time.as_secs() > 10 * TIMEOUT_SECONDS_MAX {
        return Err("a token can work for 1 minute to 10 years".to_owned());
    }
    Ok(time)
}

fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number and its unit, as `90s`, `10m`, `2h` or `30d`".to_owned();
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(expected)?;
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(expected)
}

/// Parses `key=value`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected `key=value`".to_owned()),
    }
}

/// Parses what names a run: its id, or the beginning of it. What a shell makes of an unset variable
/// names none.
pub(crate) fn run(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("expected the id of a run, or the beginning of it".to_owned());
    }
    Ok(text.to_owned())
}

/// A change of one label: `key=value` sets, `key-` takes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LabelChange {
    /// Set this label.
    Set(String, String),
    /// Take this label away.
    Remove(String),
}

/// Parses `key=value` or `key-`.
pub(crate) fn label_change(text: &str) -> Result<LabelChange, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok(LabelChange::Set(key.to_owned(), value.to_owned()))
        }
        None if text.len() > 1 && text.ends_with('-') => {
            Ok(LabelChange::Remove(text[..text.len() - 1].to_owned()))
        }
        _ => Err("expected `key=value` to set a label, or `key-` to take it away".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_open_for_a_second_to_an_hour() {
        assert_eq!(window_time("10m"), Ok(Duration::from_mins(10)));
        assert_eq!(window_time("60m"), Ok(Duration::from_hours(1)));
        assert_eq!(window_time("1s"), Ok(Duration::from_secs(1)));
        for wrong in [
            "0",
            "0m",
            "61m",
            "soon",
            "",
            "10",
            "-1m",
            "1.5h",
            "2h",
            "99999999999999999999s",
        ] {
            assert!(window_time(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn timeouts_are_whole_seconds_up_to_a_year() {
        assert_eq!(run_timeout("1"), Ok(1));
        assert_eq!(node_timeout("0"), Ok(0));
        for wrong in ["-1", "abc", "1000000000000", "0", "1.5", "+3", "", " 3"] {
            assert!(run_timeout(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_label_is_set_or_taken_away() {
        let set = |key: &str, value: &str| LabelChange::Set(key.into(), value.into());
        assert_eq!(label_change("gpu=true"), Ok(set("gpu", "true")));
        assert_eq!(label_change("a=b=c"), Ok(set("a", "b=c")));
        assert_eq!(label_change("gpu-"), Ok(LabelChange::Remove("gpu".into())));
        for wrong in ["", "gpu", "=x", "-"] {
            assert!(label_change(wrong).is_err(), "{wrong:?}");
        }
    }
}
