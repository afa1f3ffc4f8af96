//! What the parts of a run cost alone: its row in the store, and its keeper. Both have programs of
//! their own, which print lines `figure: <what> = <milliseconds>`.

use anyhow::{Context as _, bail};

use super::report::{Report, Target};
use crate::process;
use crate::stage::BUILD;
use crate::workspace;

/// The programs, as cargo starts them.
const PROGRAMS: [&[&str]; 2] = [
    &[
        "bench",
        "--locked",
        "--workspace",
        "--bench",
        "store",
        "--",
        "rows",
    ],
    &[
        "test",
        "--locked",
        "--release",
        "--workspace",
        "--test",
        "keeper",
        "--",
        "--ignored",
        "--nocapture",
        "a_run_beside_a_bare_spawn",
    ],
];

/// Builds and runs the programs.
pub(super) fn figures(report: &mut Report) -> anyhow::Result<()> {
    for words in PROGRAMS {
        let mut cargo = workspace::cargo();
        let printed = process::stdout_of(cargo.args(words), BUILD)?;
        let figures = parse(&printed)?;
        if figures.is_empty() {
            bail!("`{}` printed no figure", process::shown(&cargo));
        }
        for (what, value) in figures {
            report.verdict(&what, value, "ms", Target::None);
        }
    }
    Ok(())
}

fn parse(printed: &str) -> anyhow::Result<Vec<(String, f64)>> {
    let lines = printed
        .lines()
        .filter_map(|line| line.split_once("figure: "));
    let figures = lines.map(|(_, figure)| {
        let parts = figure.rsplit_once(" = ");
        let (what, value) = parts.with_context(|| format!("`{figure}` has no value"))?;
        let value = value.trim().parse();
        anyhow::Ok((
            what.to_owned(),
            value.with_context(|| format!("`{figure}` is no figure"))?,
        ))
    });
    figures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_between_other_words() {
        let printed = "running 1 test\nfigure: the row, p50 = 0.087\ntest x ... figure: b = 1\nok";
        let expected = [("the row, p50".to_owned(), 0.087), ("b".to_owned(), 1.0)];
        assert_eq!(parse(printed).unwrap(), expected);
        assert!(parse("figure: nothing").is_err());
        assert!(parse("figure: x = many").is_err());
    }
}
