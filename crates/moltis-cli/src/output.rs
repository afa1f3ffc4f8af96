//! The only place that prints.
//!
//! Data goes to stdout, as text or, with `--json`, as one document; progress, questions and
//! messages go to stderr. What came from other machines is made visible where it meets a terminal
//! and left alone where it does not. The output of commands has its own way out: [`streams`].

pub(crate) mod streams;

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use moltis_gateway::api::doctor::{Finding, Level};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::{report, usage};
use crate::visible::inline;

/// Where and how this process prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
    stdin_is_terminal: bool,
}

/// Whoever read our stdout is gone. The process ends without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClosedPipe;

impl std::fmt::Display for ClosedPipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("whoever read the output has closed it")
    }
}

impl std::error::Error for ClosedPipe {}

impl Output {
    /// Looks at the descriptors of this process.
    pub(crate) fn of_process() -> Self {
        Self {
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
            stdin_is_terminal: std::io::stdin().is_terminal(),
        }
    }

    /// Returns whether a person looks at stdout.
    pub(crate) fn stdout_is_terminal(self) -> bool {
        self.stdout_is_terminal
    }

    /// Returns whether a person looks at stderr.
    pub(crate) fn stderr_is_terminal(self) -> bool {
        self.stderr_is_terminal
    }

    /// Returns whether stdout takes colours: a terminal that has them, and nobody said `NO_COLOR`.
    pub(crate) fn stdout_takes_colours(self) -> bool {
        let choice = anstream::AutoStream::choice(&std::io::stdout());
        self.stdout_is_terminal && choice != anstream::ColorChoice::Never
    }

    /// Returns whether stderr takes colours, as [`Output::stdout_takes_colours`].
    pub(crate) fn stderr_takes_colours(self) -> bool {
        let choice = anstream::AutoStream::choice(&std::io::stderr());
        self.stderr_is_terminal && choice != anstream::ColorChoice::Never
    }

    /// Returns whether a person types.
    pub(crate) fn stdin_is_terminal(self) -> bool {
        self.stdin_is_terminal
    }

    /// Prints lines of data.
    pub(crate) fn text(self, text: &str) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        let written = writeln!(out, "{}", self.lines_for_stdout(text)).and_then(|()| out.flush());
        stdout_result(written)
    }

    /// Prints one JSON document.
    pub(crate) fn json(self, value: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
        if self.stdout_is_terminal {
            text = escape_json(&text);
        }
        let mut out = std::io::stdout().lock();
        stdout_result(writeln!(out, "{text}").and_then(|()| out.flush()))
    }

    /// Prints a table with a heading.
    pub(crate) fn table(self, heading: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(heading.iter().copied());
        for row in rows {
            table.add_row(row.iter().map(|cell| inline(cell).into_owned()));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<_> = table
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        self.text(&lines.join("\n"))
    }

    /// Prints `name  value` lines; a value may hold several lines.
    pub(crate) fn fields(self, fields: &[(&str, String)]) -> anyhow::Result<()> {
        let width = fields.iter().map(|(name, _)| name.chars().count()).max();
        let width = width.unwrap_or(0) + 2;
        let mut text = String::new();
        for (name, value) in fields {
            let mut lines = value.lines();
            let first = lines.next().unwrap_or_default();
            text.push_str(format!("{name:width$}{}", inline(first)).trim_end());
            text.push('\n');
            for line in lines {
                writeln!(text, "{:width$}{}", "", inline(line))?;
            }
        }
        self.text(text.trim_end_matches('\n'))
    }

    /// Prints a line for each finding, and below it what to do.
    #[expect(
        clippy::unused_self,
        reason = "what may print is what has an `Output`; anstream looks for the terminal itself"
    )]
    pub(crate) fn findings(self, findings: &[Finding]) -> anyhow::Result<()> {
        let width = findings.iter().map(|found| found.check.len()).max();
        let width = width.unwrap_or(0) + 2;
        let mut text = String::new();
        for found in findings {
            let (level, check) = (found.level.as_str(), inline(&found.check));
            let colour = match found.level {
                Level::Ok => 32,
                Level::Warning => 33,
                Level::Error => 31,
            };
            let message = inline(&found.message);
            writeln!(
                text,
                "\x1b[1;{colour}m{level:9}\x1b[0m{check:width$}{message}"
            )?;
            if let Some(hint) = &found.hint {
                writeln!(text, "{:9}\x1b[1;36mhint:\x1b[0m {}", "", inline(hint))?;
            }
        }
        let mut out = anstream::stdout().lock();
        stdout_result(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
    }

    /// Says something beside the data.
    pub(crate) fn note(self, text: &str) {
        let shown = self.lines_for_stderr(text);
        writeln!(anstream::stderr(), "{shown}").ok(); // nobody reads stderr any more
    }

    /// Says something while the terminal is raw: a line there needs a carriage return.
    pub(crate) fn note_raw(self, text: &str) {
        let shown = self.lines_for_stderr(text).replace('\n', "\r\n");
        write!(anstream::stderr(), "\r\n{shown}\r\n").ok(); // nobody reads stderr any more
    }

    /// Warns.
    pub(crate) fn warn(self, text: &str) {
        let shown = self.lines_for_stderr(text);
        writeln!(anstream::stderr(), "\x1b[1;33mwarning:\x1b[0m {shown}").ok(); // as above
    }

    /// Says what to do next, beside the data.
    pub(crate) fn hint(self, text: &str) {
        let shown = self.lines_for_stderr(text);
        writeln!(anstream::stderr(), "\x1b[1;36mhint:\x1b[0m {shown}").ok(); // as above
    }

    /// Prints an error with its causes and hints, and returns what to end with.
    pub(crate) fn error(self, error: &anyhow::Error) -> Exit {
        if error.chain().any(<dyn std::error::Error>::is::<ClosedPipe>) {
            return Exit::CLOSED_PIPE;
        }
        let report = report(error);
        let text = report.messages.join(": ");
        let mut err = anstream::stderr().lock();
        let shown = self.lines_for_stderr(&text);
        writeln!(err, "\x1b[1;31merror:\x1b[0m {shown}").ok(); // nobody reads stderr any more
        for hint in &report.hints {
            let shown = self.lines_for_stderr(hint);
            writeln!(err, "\x1b[1;36mhint:\x1b[0m {shown}").ok(); // as above
        }
        report.exit
    }

    /// Asks a yes/no question on the terminal; no is the default.
    ///
    /// # Errors
    /// There is no terminal: names the flag that answers instead.
    pub(crate) fn confirm(self, question: &str, flag: &str) -> anyhow::Result<bool> {
        if !self.stdin_is_terminal || !self.stderr_is_terminal {
            return Err(usage(format!(
                "`{question}` needs an answer, and there is no terminal"
            ))
            .hint(format!("pass {flag} to say yes"))
            .into());
        }
        let mut err = std::io::stderr().lock();
        write!(err, "{} [y/N] ", self.lines_for_stderr(question)).context("cannot ask")?;
        err.flush().context("cannot ask")?;
        let mut answer = String::new();
        std::io::stdin()
            .read_line(&mut answer)
            .context("cannot read the answer")?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
    }

    fn lines_for_stdout(self, text: &str) -> String {
        lines(text, self.stdout_is_terminal)
    }

    fn lines_for_stderr(self, text: &str) -> String {
        lines(text, self.stderr_is_terminal)
    }
}

fn lines(text: &str, visible: bool) -> String {
    if !visible {
        return text.to_owned();
    }
    let mut machine = crate::visible::Visible::default();
    let mut shown = String::with_capacity(text.len());
    machine.feed(text.as_bytes(), &mut shown);
    machine.finish(&mut shown);
    shown
}

fn stdout_result(written: std::io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(ClosedPipe.into()),
        other => other.context("cannot write to stdout"),
    }
}

/// Writes what would deceive a reader as JSON's own escapes; the document stays the same.
fn escape_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && moltis_proto::name::is_deceptive(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(escaped, "\\u{unit:04x}").expect("a string takes everything");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_on_a_terminal_is_the_same_document() {
        let value = serde_json::json!({ "name": "a\u{202e}b\u{e0041}c\u{9b}\u{1b}" });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let escaped = escape_json(&text);
        assert!(!escaped.contains(['\u{202e}', '\u{e0041}', '\u{9b}']));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&escaped).unwrap(),
            value
        );
    }
}
