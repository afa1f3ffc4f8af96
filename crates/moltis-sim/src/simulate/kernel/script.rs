//! What a simulated child does: a few words in the place of a shell's.
//!
//! `tag 7; out 100; wait 50; in 10; exit 3` writes a hundred bytes, waits for 50 ms, reads ten of
//! stdin and exits with 3. The bytes of each stream follow from the tag and their offset, so that
//! whoever holds some of them can say whether they are right.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use crate::simulate::dice::Dice;

/// Which request a child belongs to. Each request of the world has its own.
pub(in super::super) type Tag = u32;

/// A stream of a child, as its bytes are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in super::super) enum Stream {
    /// What it writes first of all.
    Out,
    /// What it writes beside.
    Err,
    /// What it reads.
    In,
}

/// One thing that a child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Act {
    /// Writes so many bytes.
    Write(Stream, u64),
    /// Reads so many bytes of stdin, or up to its end.
    Read(u64),
    /// Waits for so many milliseconds.
    Wait(u64),
    /// Takes no notice of SIGTERM from now on.
    Deafen,
    /// Leaves somebody in its group who holds its outputs for so many milliseconds.
    Fork(u64),
    /// Leaves somebody outside of its group, for so many milliseconds.
    Escape(u64),
}

/// How a child comes to its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Finish {
    /// With a code.
    Exit(u8),
    /// By a signal of its own.
    Signal(u8),
}

/// All that a child does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Script {
    pub(in super::super) tag: Tag,
    pub(in super::super) acts: Vec<Act>,
    pub(in super::super) finish: Finish,
    /// All that it reads comes with the request itself, not later.
    pub(in super::super) is_fed: bool,
    /// Words that say nothing, of so many letters.
    pub(in super::super) pad: usize,
}

impl Script {
    /// Returns the same without its padding, for people.
    pub(in super::super) fn brief(&self) -> Self {
        Self {
            pad: 0,
            ..self.clone()
        }
    }

    /// Returns the tag of a script, which its words begin with. Most of them need not be read: there
    /// may be very many.
    pub(in super::super) fn tag_of(text: &str) -> Option<Tag> {
        let (tag, _) = text.strip_prefix("tag ")?.split_once("; ")?;
        tag.parse().ok()
    }

    /// Returns how many bytes of stdin it reads.
    pub(in super::super) fn reads(&self) -> u64 {
        let bytes = self.acts.iter().map(|act| match act {
            Act::Read(bytes) => *bytes,
            _ => 0,
        });
        bytes.sum()
    }
}

/// Bytes that are repeated in every stream, each of which begins elsewhere in them. A prime, so that
/// no length that anybody cuts streams by leads to the same place.
const PATTERN_BYTES: usize = 65_521;

/// How many of them are any bytes. The others are text, as most of what commands write: to tell
/// any bytes as text, which whoever waits for a run is told, takes many times as long.
const ANY_BYTES: usize = PATTERN_BYTES / 8;

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dice = Dice::new(0, "pattern");
    let words = std::iter::repeat_with(|| dice.roll().to_le_bytes());
    let mut bytes: Vec<u8> = words.take(PATTERN_BYTES.div_ceil(8)).flatten().collect();
    bytes.truncate(PATTERN_BYTES);
    for byte in &mut bytes[ANY_BYTES..] {
        *byte = b' ' + *byte % 95;
    }
    bytes
});

/// Returns some bytes of a stream.
pub(in super::super) fn bytes(tag: Tag, stream: Stream, from: u64, to: u64) -> Vec<u8> {
    let begins = u64::from(tag) * 7919 + stream as u64 * 21_001;
    let length =
        |bytes: u64| usize::try_from(bytes).expect("a world runs where addresses are long");
    let mut at = length((begins + from) % PATTERN_BYTES as u64);
    let mut left = length(to - from);
    let mut bytes = Vec::with_capacity(left);
    while left > 0 {
        let part = left.min(PATTERN.len() - at);
        bytes.extend_from_slice(&PATTERN[at..at + part]);
        (at, left) = (0, left - part);
    }
    bytes
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tag {}; ", self.tag)?;
        if self.pad > 0 {
            write!(f, "pad {}; ", "x".repeat(self.pad))?;
        }
        if self.is_fed {
            write!(f, "fed; ")?;
        }
        for act in &self.acts {
            match act {
                Act::Write(Stream::Err, bytes) => write!(f, "err {bytes}; ")?,
                Act::Write(_, bytes) => write!(f, "out {bytes}; ")?,
                Act::Read(bytes) => write!(f, "in {bytes}; ")?,
                Act::Wait(ms) => write!(f, "wait {ms}; ")?,
                Act::Deafen => write!(f, "deaf; ")?,
                Act::Fork(ms) => write!(f, "fork {ms}; ")?,
                Act::Escape(ms) => write!(f, "escape {ms}; ")?,
            }
        }
        match self.finish {
            Finish::Exit(code) => write!(f, "exit {code}"),
            Finish::Signal(signal) => write!(f, "die {signal}"),
        }
    }
}

/// The words are none of a script.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no word of a script")]
pub(in super::super) struct NoScript(String);

impl FromStr for Script {
    type Err = NoScript;

    fn from_str(text: &str) -> Result<Self, NoScript> {
        let mut script = Self {
            tag: 0,
            acts: Vec::new(),
            finish: Finish::Exit(0),
            is_fed: false,
            pad: 0,
        };
        for word in text.split("; ") {
            if let Some(padding) = word.strip_prefix("pad ") {
                script.pad = padding.len();
                continue;
            }
            let wrong = || NoScript(word.to_owned());
            let (verb, number) = word.split_once(' ').unwrap_or((word, "0"));
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let small = || u8::try_from(number).map_err(|_| wrong());
            let act = match verb {
                "out" => Act::Write(Stream::Out, number),
                "err" => Act::Write(Stream::Err, number),
                "in" => Act::Read(number),
                "wait" => Act::Wait(number),
                "deaf" => Act::Deafen,
                "fork" => Act::Fork(number),
                "escape" => Act::Escape(number),
                "tag" => {
                    script.tag = number.try_into().map_err(|_| wrong())?;
                    continue;
                }
                "fed" => {
                    script.is_fed = true;
                    continue;
                }
                "exit" => {
                    script.finish = Finish::Exit(small()?);
                    continue;
                }
                "die" => {
                    script.finish = Finish::Signal(small()?);
                    continue;
                }
                _ => return Err(wrong()),
            };
            script.acts.push(act);
        }
        Ok(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_as_it_is_written() {
        let text =
            "tag 7; pad xxx; fed; out 100; wait 50; err 3; in 10; deaf; fork 9; escape 8; exit 3";
        let script: Script = text.parse().unwrap();
        assert_eq!(script.to_string(), text);
        assert_eq!(Script::tag_of(text), Some(script.tag));
        assert_eq!(script.reads(), 10);
        assert_eq!(
            "tag 1; die 9".parse::<Script>().unwrap().finish,
            Finish::Signal(9)
        );
        assert_eq!("rm".parse::<Script>(), Err(NoScript("rm".to_owned())));
    }

    #[test]
    fn no_two_streams_are_alike() {
        let of = |tag, stream, from| bytes(tag, stream, from, from + 32);
        let all = [
            of(1, Stream::Out, 0),
            of(1, Stream::Err, 0),
            of(2, Stream::Out, 0),
            of(1, Stream::Out, 1),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one));
        }
    }
}
