//! What came of the rows, for a person and for a program.

use std::io::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::Verdict;
use super::rows::{Need, Row};
use super::stage::Stage;
use super::trouble::{Played, Trouble, shortened};

/// Lines of what a node printed that are shown beside a failure.
const LAST_WORDS: usize = 6;

/// What came of one row.
#[derive(Debug)]
pub(super) enum Outcome {
    Passed,
    NotOffered(String),
    Failed {
        expected: String,
        came: String,
        story: Vec<String>,
        last_words: Vec<String>,
    },
    /// This program could not do its part.
    Unplayed(String),
}

impl Outcome {
    pub(super) fn of(played: Played, stage: &Stage) -> Self {
        match played {
            Ok(()) => Self::Passed,
            Err(Trouble::NotOffered(why)) => Self::NotOffered(why),
            Err(Trouble::Stage(error)) => Self::Unplayed(format!("{error:#}")),
            Err(Trouble::Failed { expected, came }) => Self::Failed {
                expected,
                came,
                story: stage.story.lines(),
                last_words: last_words(&stage.printed()),
            },
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::NotOffered(_) => "not offered",
            Self::Failed { .. } => "FAILED",
            Self::Unplayed(_) => "NOT PLAYED",
        }
    }
}

fn last_words(printed: &str) -> Vec<String> {
    let lines: Vec<&str> = printed.lines().collect();
    let from = lines.len().saturating_sub(LAST_WORDS);
    lines[from..].iter().map(|line| shortened(line)).collect()
}

/// One row and what came of it.
#[derive(Debug)]
pub(super) struct Result {
    row: &'static Row,
    took: Duration,
    outcome: Outcome,
}

impl Result {
    pub(super) fn new(row: &'static Row, took: Duration, outcome: Outcome) -> Self {
        Self { row, took, outcome }
    }

    /// Returns whether a node with this result cannot conform: what a node must not lack it may
    /// not leave out either.
    fn fails(&self) -> bool {
        match self.outcome {
            Outcome::Passed => false,
            Outcome::NotOffered(_) => self.row.need == Need::Must,
            // What a node offers has to be right, also where it need not offer it.
            Outcome::Failed { .. } | Outcome::Unplayed(_) => true,
        }
    }

    fn print(&self, out: &mut impl io::Write) -> io::Result<()> {
        let row = self.row;
        writeln!(
            out,
            "{:<11} {:<4}  {:<18} {:>5.1} s  {}",
            self.outcome.word(),
            row.need.word(),
            row.name,
            self.took.as_secs_f64(),
            row.about
        )?;
        match &self.outcome {
            Outcome::Passed => Ok(()),
            Outcome::NotOffered(why) | Outcome::Unplayed(why) => beside(out, "why", &[why]),
            Outcome::Failed {
                expected,
                came,
                story,
                last_words,
            } => {
                beside(out, "section", &[row.section])?;
                beside(out, "expected", &[expected])?;
                beside(out, "came", &[came])?;
                beside(out, "before it", story)?;
                beside(out, "printed", last_words)
            }
        }
    }
}

/// Prints lines under a row, with a word in front of the first.
fn beside(
    out: &mut impl io::Write,
    word: &str,
    lines: &[impl std::fmt::Display],
) -> io::Result<()> {
    for (number, line) in lines.iter().enumerate() {
        let word = if number == 0 { word } else { "" };
        writeln!(out, "{:17} {word:<9}  {line}", "")?;
    }
    Ok(())
}

/// The whole table.
#[derive(Debug)]
pub(super) struct Report {
    command: Vec<String>,
    results: Vec<Result>,
}

/// The table for programs.
#[derive(Debug, Serialize)]
struct Document<'a> {
    command: &'a [String],
    conforms: bool,
    rows: Vec<Line<'a>>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    row: &'a str,
    need: &'a str,
    section: &'a str,
    about: &'a str,
    result: &'a str,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    came: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    story: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    printed: &'a [String],
}

impl Report {
    pub(super) fn new(command: Vec<String>, results: Vec<Result>) -> Self {
        Self { command, results }
    }

    pub(super) fn verdict(&self) -> Verdict {
        if self.results.iter().any(Result::fails) {
            Verdict::Fails
        } else {
            Verdict::Conforms
        }
    }

    /// Returns a row that this machine did not let be played.
    pub(super) fn unplayed(&self) -> Option<&'static str> {
        let is_unplayed = |result: &&Result| matches!(result.outcome, Outcome::Unplayed(_));
        self.results
            .iter()
            .find(is_unplayed)
            .map(|result| result.row.name)
    }

    /// Prints the table, or the document.
    pub(super) fn print(&self, as_json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if as_json {
            serde_json::to_writer_pretty(&mut out, &self.document())?;
            return writeln!(out);
        }
        for result in &self.results {
            result.print(&mut out)?;
        }
        let count = |word: &str| {
            let is_so = |result: &&Result| result.outcome.word() == word;
            self.results.iter().filter(is_so).count()
        };
        let failed = self.results.iter().filter(|result| result.fails()).count();
        writeln!(
            out,
            "\n{} rows: {} passed, {} not offered, {failed} failed",
            self.results.len(),
            count("passed"),
            count("not offered"),
        )?;
        match self.verdict() {
            Verdict::Conforms => writeln!(out, "the node conforms"),
            Verdict::Fails => writeln!(out, "the node does not conform: see docs/protocol.md"),
        }
    }

    fn document(&self) -> Document<'_> {
        Document {
            command: &self.command,
            conforms: self.verdict() == Verdict::Conforms,
            rows: self.results.iter().map(Line::of).collect(),
        }
    }
}

impl<'a> Line<'a> {
    fn of(result: &'a Result) -> Self {
        let mut line = Self {
            row: result.row.name,
            need: result.row.need.word(),
            section: result.row.section,
            about: result.row.about,
            result: result.outcome.word(),
            duration_ms: result.took.as_millis().try_into().unwrap_or(u64::MAX),
            why: None,
            expected: None,
            came: None,
            story: &[],
            printed: &[],
        };
        match &result.outcome {
            Outcome::Passed => {}
            Outcome::NotOffered(why) | Outcome::Unplayed(why) => line.why = Some(why),
            Outcome::Failed {
                expected,
                came,
                story,
                last_words,
            } => {
                line.expected = Some(expected);
                line.came = Some(came);
                line.story = story;
                line.printed = last_words;
            }
        }
        line
    }
}

/// Prints the rows themselves.
pub(super) fn list(rows: &[&'static Row]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for row in rows {
        writeln!(
            out,
            "{:<4}  {:<18} {:<30} {}",
            row.need.word(),
            row.name,
            row.section,
            row.about
        )?;
    }
    Ok(())
}
