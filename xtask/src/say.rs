//! The only place that prints.
//!
//! Data and progress go to stdout, complaints to stderr. Colours only on a terminal and never under
//! `NO_COLOR`. A closed pipe is not our business: what cannot be printed is dropped.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

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

/// Prints a line to stdout.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).ok(); // the reader has left
}

/// Prints a heading with an empty line before it.
pub(crate) fn heading(text: &str) {
    line(&format!("\n{}", inked(Ink::Bold, text)));
}

/// Prints a line to stderr.
pub(crate) fn problem(text: &str) {
    writeln!(io::stderr().lock(), "{} {text}", inked(Ink::Bad, "error:")).ok(); // the reader has left
}

/// Prints a failure and its causes to stderr.
pub(crate) fn failure(error: &anyhow::Error) {
    problem(&error.to_string());
    for cause in error.chain().skip(1) {
        writeln!(io::stderr().lock(), "  because: {cause}").ok(); // the reader has left
    }
}
