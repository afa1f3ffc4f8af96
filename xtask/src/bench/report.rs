//! The figures beside their targets, as lines for a terminal and as `docs/figures.md`.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context as _;

use crate::say::{self, Ink};
use crate::workspace::ROOT;

/// What people wrote below this line of `docs/figures.md` stays when the figures are written again.
const BY_HAND: &str = "<!-- below this line the bench writes nothing -->";

/// Between these two lines, below the bench's own, stands what a load run found out.
const LOAD_FROM: &str = "<!-- from here on `cargo xtask load --write` writes -->";
const LOAD_TO: &str = "<!-- up to here -->";

/// A bound that a figure must keep.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Nobody set one: the figure is there to be known.
    None,
}

impl Target {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(bound) => Some(value <= bound),
            Self::AtLeast(bound) => Some(value >= bound),
            Self::None => None,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::None => "–".to_owned(),
        }
    }
}

/// A figure with its target.
#[derive(Debug)]
struct Verdict {
    what: String,
    value: f64,
    unit: &'static str,
    target: Target,
}

/// A table of what was measured.
#[derive(Debug)]
struct Table {
    title: String,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// Everything that one run of the bench found out.
#[derive(Debug, Default)]
pub(crate) struct Report {
    machine: Vec<String>,
    tables: Vec<Table>,
    verdicts: Vec<Verdict>,
}

impl Report {
    /// Adds a line about the machine and its state.
    pub(crate) fn note(&mut self, line: String) {
        say::line(&say::inked(Ink::Dim, &line));
        self.machine.push(line);
    }

    /// Prints a table and keeps it.
    pub(crate) fn table(&mut self, title: &str, head: &[&'static str], rows: Vec<Vec<String>>) {
        let table = Table {
            title: title.to_owned(),
            head: head.to_vec(),
            rows,
        };
        say::heading(title);
        for line in table.aligned() {
            say::line(&line);
        }
        self.tables.push(table);
    }

    /// Keeps a figure and its target for the end.
    pub(crate) fn verdict(&mut self, what: &str, value: f64, unit: &'static str, target: Target) {
        self.verdicts.push(Verdict {
            what: what.to_owned(),
            value,
            unit,
            target,
        });
    }

    /// Prints every figure beside its target; returns how many targets were missed.
    pub(crate) fn conclude(&self) -> usize {
        say::heading("beside the targets");
        let mut missed = 0;
        for verdict in &self.verdicts {
            let (ink, word) = match verdict.target.is_met(verdict.value) {
                Some(true) => (Ink::Good, "met"),
                Some(false) => (Ink::Warn, "MISSED"),
                None => (Ink::Dim, ""),
            };
            missed += usize::from(word == "MISSED");
            say::line(&format!(
                "  {:<58}{:>9} {:<6}{:>9}  {}",
                verdict.what,
                number(verdict.value),
                verdict.unit,
                verdict.target.shown(),
                say::inked(ink, word)
            ));
        }
        missed
    }

    /// Writes `docs/figures.md`, and keeps what people added at its end.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let file = ROOT.join("docs/figures.md");
        let old = fs::read_to_string(&file).unwrap_or_default();
        let by_hand = old.split_once(BY_HAND).map_or("\n", |(_, rest)| rest);
        let text = format!("{}{BY_HAND}{by_hand}", self.markdown());
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// Writes the section of a load run into `docs/figures.md`, and leaves everything else there.
    ///
    /// # Errors
    ///
    /// When it cannot be read or written.
    pub(crate) fn write_load(&self, opening: &str) -> anyhow::Result<()> {
        let file = ROOT.join("docs/figures.md");
        let old =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let mut section = String::from(opening);
        self.lines(&mut section, "###");
        fs::write(&file, with_load(&old, &section))
            .with_context(|| format!("writing {}", file.display()))
    }

    fn markdown(&self) -> String {
        let mut text = String::from(
            "# Figures\n\nWritten by `cargo xtask bench --write`. Absolute figures belong to the machine; the ratios were\n\
             taken in turns within one run, so they hold elsewhere.\n\n",
        );
        self.lines(&mut text, "##");
        text
    }

    /// Adds the machine, the figures and the tables, each under such a heading.
    fn lines(&self, text: &mut String, heading: &str) {
        for line in &self.machine {
            writeln!(text, "- {line}").ok(); // a String takes everything
        }
        writeln!(
            text,
            "\n{heading} Beside the targets\n\n| figure | measured | target | |\n|---|---|---|---|"
        )
        .ok(); // as above
        for verdict in &self.verdicts {
            let word = match verdict.target.is_met(verdict.value) {
                Some(true) => "met",
                Some(false) => "**missed**",
                None => "",
            };
            let (value, target) = (number(verdict.value), verdict.target.shown());
            let row = format!(
                "| {} | {value} {} | {target} | {word} |\n",
                verdict.what, verdict.unit
            );
            text.push_str(&row);
        }
        for table in &self.tables {
            writeln!(
                text,
                "\n{heading} {}\n\n| {} |",
                table.title,
                table.head.join(" | ")
            )
            .ok(); // as above
            writeln!(text, "|{}", "---|".repeat(table.head.len())).ok(); // as above
            for row in &table.rows {
                writeln!(text, "| {} |", row.join(" | ")).ok(); // as above
            }
        }
        text.push('\n');
    }
}

/// Puts the section of a load run in place of the one before, or at the end where there was none.
fn with_load(old: &str, section: &str) -> String {
    let section = format!("{LOAD_FROM}\n\n{section}{LOAD_TO}");
    let around = old
        .split_once(LOAD_FROM)
        .and_then(|(before, rest)| Some((before, rest.split_once(LOAD_TO)?.1)));
    match around {
        Some((before, behind)) => format!("{before}{section}{behind}"),
        None => format!("{}\n\n{section}\n", old.trim_end()),
    }
}

impl Table {
    /// Returns the rows with their columns under one another; the first to the left, others right.
    fn aligned(&self) -> Vec<String> {
        let head: Vec<String> = self.head.iter().map(|word| (*word).to_owned()).collect();
        let rows = || std::iter::once(&head).chain(&self.rows);
        let width = |column: usize| {
            let widths = rows().filter_map(|row| Some(row.get(column)?.chars().count()));
            widths.max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..head.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if index == 0 {
                    write!(line, "  {cell:<width$}").ok(); // a String takes everything
                } else {
                    write!(line, "  {cell:>width$}").ok(); // a String takes everything
                }
            }
            line
        };
        rows().map(line).collect()
    }
}

/// Returns a figure with as many digits as it deserves.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_run_writes_its_own_section_and_nothing_else() {
        let bench = format!("# Figures\n\nthe bench's\n\n{BY_HAND}\n\nby hand\n");
        let once = with_load(&bench, "first\n\n");
        assert!(once.starts_with(bench.trim_end()), "{once}");
        let behind = format!("{once}\nmore by hand\n");
        let twice = with_load(&behind, "second\n\n");
        assert_eq!(twice, behind.replace("first", "second"));
    }

    #[test]
    fn a_bound_is_kept_from_its_side() {
        assert_eq!(Target::AtMost(0.6).is_met(0.6), Some(true));
        assert_eq!(Target::AtLeast(2.0).is_met(1.99), Some(false));
        assert_eq!(Target::None.is_met(1.0), None);
        assert_eq!(Target::AtMost(0.6).is_met(f64::NAN), Some(false));
    }

    #[test]
    fn the_page_shows_figures_beside_targets() {
        let mut report = Report::default();
        report.verdict(
            "exec p50: API / OpenSSH mux",
            0.456,
            "×",
            Target::AtMost(0.6),
        );
        report.verdict("size", 123.4, "MB", Target::AtMost(25.0));
        let text = report.markdown();
        assert!(
            text.contains("| exec p50: API / OpenSSH mux | 0.46 × | ≤ 0.6 | met |"),
            "{text}"
        );
        assert!(
            text.contains("| size | 123 MB | ≤ 25 | **missed** |"),
            "{text}"
        );
    }

    #[test]
    fn columns_stand_under_one_another() {
        let rows = vec![vec!["long name".to_owned(), "1.00".to_owned()]];
        let table = Table {
            title: String::new(),
            head: vec!["way", "p50"],
            rows,
        };
        assert_eq!(table.aligned(), ["  way         p50", "  long name  1.00"]);
    }
}
