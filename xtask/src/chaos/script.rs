//! The commands of a storm, and what each of them is known to print. Pure.

use std::fmt::Write as _;

use crate::dice::Dice;

/// How a command ends where nobody is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Exited(i64),
    Cancelled,
    TimedOut,
}

impl End {
    /// Returns its outcome in the API's word.
    pub(super) fn outcome(self) -> &'static str {
        match self {
            Self::Exited(_) => "exited",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }
}

/// The kinds of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A line to each output.
    Short,
    /// A line to each output, again and again, for a second or two.
    Long,
    /// A megabyte and more to both outputs at once.
    Much,
    /// Prints what it reads.
    Stdin,
    /// Sleeps until it is cancelled.
    Cancelled,
    /// Sleeps beyond its time.
    TimedOut,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::Short,
        Self::Long,
        Self::Much,
        Self::Stdin,
        Self::Cancelled,
        Self::TimedOut,
    ];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
            Self::Much => "much output",
            Self::Stdin => "with stdin",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed out",
        }
    }
}

/// A command.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) kind: Kind,
    /// For `/bin/sh`, in a directory of its own.
    pub(super) line: String,
    pub(super) stdin: Option<String>,
    pub(super) timeout_seconds: u64,
    /// All of stdout and of stderr, if it ends by itself.
    pub(super) prints: [Vec<u8>; 2],
    pub(super) end: End,
}

/// The file to which each command appends a line when it starts.
pub(super) const STARTS: &str = "starts";

/// The time of a command that nobody cancels: none of them needs it.
const ENOUGH_SECONDS: u64 = 120;

impl Script {
    /// Makes a command of this kind; `word` is printed by some of them, and by no other run.
    pub(super) fn new(kind: Kind, word: &str, dice: &mut Dice) -> Self {
        let mut timeout_seconds = ENOUGH_SECONDS;
        let mut stdin = None;
        let mut end = End::Exited(0);
        let (line, prints) = match kind {
            Kind::Short => {
                let code = dice.below(100);
                end = End::Exited(i64::try_from(code).unwrap_or_default());
                let line = format!("echo out {word}; echo err {word} >&2; exit {code}");
                (line, [format!("out {word}\n"), format!("err {word}\n")])
            }
            Kind::Long => {
                let turns = dice.within(5, 30);
                let line = format!(
                    "i=0; while [ $i -lt {turns} ]; do echo out $i {word}; echo err $i {word} >&2; \
                     i=$((i+1)); sleep 0.1; done"
                );
                let lines = |name: &str| {
                    (0..turns).fold(String::new(), |mut text, turn| {
                        writeln!(text, "{name} {turn} {word}").ok(); // a String takes everything
                        text
                    })
                };
                (line, [lines("out"), lines("err")])
            }
            Kind::Much => {
                let numbers = dice.within(60_000, 200_000);
                let line = format!(
                    "seq -f 'e%09.0f' 1 {numbers} >&2 & seq -f 'o%09.0f' 1 {numbers}; wait"
                );
                (line, ['o', 'e'].map(|letter| counted(letter, numbers)))
            }
            Kind::Stdin => {
                let text = counted('i', dice.within(1, 50_000));
                stdin = Some(text.clone());
                let line = format!("cat; echo err {word} >&2");
                (line, [text, format!("err {word}\n")])
            }
            Kind::Cancelled | Kind::TimedOut => {
                end = End::Cancelled;
                if kind == Kind::TimedOut {
                    (end, timeout_seconds) = (End::TimedOut, 1);
                }
                let line = format!("echo out {word}; sleep 90");
                (line, [format!("out {word}\n"), String::new()])
            }
        };
        Self {
            kind,
            line: format!("echo start >> {STARTS}; {line}"),
            stdin,
            timeout_seconds,
            prints: prints.map(String::into_bytes),
            end,
        }
    }
}

/// Returns so many lines of ten bytes and their end, each with its number.
fn counted(letter: char, numbers: u64) -> String {
    (1..=numbers).fold(String::new(), |mut text, number| {
        writeln!(text, "{letter}{number:09}").ok(); // a String takes everything
        text
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn each_command_prints_what_it_is_known_to_print() {
        let mut dice = Dice::new(5);
        for kind in [Kind::Short, Kind::Long, Kind::Much, Kind::Stdin] {
            let script = Script::new(kind, "word", &mut dice);
            let dir = tempfile::tempdir().unwrap();
            let mut shell = Command::new("/bin/sh")
                .args(["-c", &script.line])
                .current_dir(dir.path())
                .stdin(Stdio::piped())
                .stdout(fs::File::create(dir.path().join("out")).unwrap())
                .stderr(fs::File::create(dir.path().join("err")).unwrap())
                .spawn()
                .unwrap();
            let mut stdin = shell.stdin.take().unwrap();
            let text = script.stdin.clone().unwrap_or_default();
            stdin.write_all(text.as_bytes()).unwrap();
            drop(stdin);
            let code = shell.wait().unwrap().code().map(i64::from);
            assert_eq!(code.map(End::Exited), Some(script.end), "{kind:?}");
            for (name, wanted) in ["out", "err"].iter().zip(&script.prints) {
                let printed = fs::read(dir.path().join(name)).unwrap();
                assert!(printed == *wanted, "{kind:?} printed something else");
            }
            let starts = fs::read_to_string(dir.path().join(STARTS)).unwrap();
            assert_eq!(starts, "start\n");
        }
    }
}
