//! The only place that prints.
//!
//! Data and progress go to stdout, complaints to stderr. Colours only on a terminal and never under
//! `NO_COLOR`. A closed pipe is not our business: what cannot be printed is dropped. The last lines
//! are remembered, for who reads a log from its end.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::tail::Tail;

/// A colour, or rather what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// A heading.
    Bold,
    /// Something that may be skipped by the eye.
    Dim,
    /// Something went well.
    Good,
    /// Something needs a look.
    Warn,
    /// Something failed.
    Bad,
}

static COLOURS: LazyLock<bool> =
    LazyLock::new(|| io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none());

/// Returns `text` in that ink, or `text` alone where colours are not wanted.
pub(crate) fn inked(ink: Ink, text: &str) -> String {
    if !*COLOURS {
        return text.to_owned();
    }
    let code = match ink {
        Ink::Bold => "1",
        Ink::Dim => "2",
        Ink::Good => "32",
        Ink::Warn => "33",
        Ink::Bad => "31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

static HEARD: Mutex<Tail> = Mutex::new(Tail::new());

fn heard() -> MutexGuard<'static, Tail> {
    // Whoever panicked in there has pushed a line or not: both are lines.
    HEARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the last lines that were printed since this was asked last, our own and those of the
/// programs that [`pass_on`] was told of.
pub(crate) fn last_lines() -> Vec<String> {
    heard().take()
}

/// Returns whether a person sees both outputs as they come: the programs that we start may have them
/// then, with their colours and their progress.
pub(crate) fn is_watched() -> bool {
    io::stdout().is_terminal() && io::stderr().is_terminal()
}

/// Prints what another program printed to stdout, as it is: a line with its end, or a piece of one.
pub(crate) fn pass_on(bytes: &[u8]) {
    heard().push(&String::from_utf8_lossy(bytes));
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).ok(); // the reader has left
}

/// Prints a line to stdout.
pub(crate) fn line(text: &str) {
    pass_on(format!("{text}\n").as_bytes());
}

/// Prints a heading with an empty line before it.
pub(crate) fn heading(text: &str) {
    line(&format!("\n{}", inked(Ink::Bold, text)));
}

/// Prints a line to stderr.
pub(crate) fn problem(text: &str) {
    complaint(&format!("{} {text}", inked(Ink::Bad, "error:")));
}

/// Prints a failure and its causes to stderr.
pub(crate) fn failure(error: &anyhow::Error) {
    problem(&error.to_string());
    for cause in error.chain().skip(1) {
        complaint(&format!("  because: {cause}"));
    }
}

fn complaint(text: &str) {
    heard().push(text);
    writeln!(io::stderr().lock(), "{text}").ok(); // the reader has left
}
