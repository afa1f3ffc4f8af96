//! Does a node speak the protocol? `moltis-sim` plays a gateway to it; here it is built and started.
//!
//! `cargo xtask conformance -- <command>` asks that of anybody's node, `cargo xtask test` of every
//! node in this repository.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{iter, thread};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::test::Untested;
use crate::tools::Venv;
use crate::workspace::ROOT;
use crate::{needs, process, say, workspace};

/// How long a build may take.
const BUILD: Duration = Duration::from_mins(20);

/// How long the table of one node may take: a minute where it passes, and each row that it fails may
/// wait its patience.
const TABLE: Duration = Duration::from_mins(30);

/// Commands that spoil the Rust page, which stands for `$0`; the rows that they are judged by, and
/// those of them that have to fail. A table that cannot fail says nothing.
const SPOILED: &[(&str, &str, &[&str], &[&str])] = &[
    (
        "a node that forgets everything when it ends",
        r#"rm -rf "$2"/*; exec "$0" "$1" "$2""#,
        &["ping", "pin-mismatch", "killed-node"],
        &["pin-mismatch", "killed-node"],
    ),
    (
        "a node whose commands have no PATH",
        r#"PATH= exec "$0" "$1" "$2""#,
        &["run-shell", "run-env"],
        &["run-env"],
    ),
    (
        "a node whose clock is an hour ahead",
        r#"exec faketime -f +1h "$0" "$1" "$2""#,
        &["ping", "clock"],
        &["clock"],
    ),
    (
        "a node that ends with its first connection",
        r#"exec timeout 2 "$0" "$1" "$2""#,
        &["run-argv", "silence"],
        &["silence"],
    ),
    ("no node at all", "false", &["upgrade"], &["upgrade"]),
];

/// Where the node in Python is.
const PYTHON_NODE: &str = "examples/python-node";

/// A Python with the packages of that node.
const PYTHON: Venv = Venv {
    name: "python-node",
    requirements: "examples/python-node/requirements.txt",
};

/// `cargo xtask conformance [flags] -- <command>`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    build(&["--bin", "moltis-sim"])?;
    process::run(program().args(words), TABLE)
}

/// A part of `cargo xtask test`: ours, the Rust page and the node in Python, side by side, as one
/// row of each waits for 45 seconds.
pub(crate) fn check() -> anyhow::Result<Vec<Untested>> {
    build(&["--bins", "--examples"])?;
    let debug = workspace::target().join("debug");
    let ours = words(debug.join("moltis"), &["node", "add", "--foreground"]);
    let page = words(debug.join("examples/own_node"), &["{url}", "{state_dir}"]);
    let mut nodes = vec![("moltis", ours), ("the Rust page", page)];
    let mut untested = Vec::new();
    match PYTHON.program("python") {
        Ok(python) => {
            let module = [
                "-m",
                "moltis_node",
                "--host",
                "{url}",
                "--state",
                "{state_dir}",
            ];
            nodes.push(("the node in Python", words(python, &module)));
        }
        Err(error) => untested.push(Untested::new("the node in Python", &format!("{error:#}"))),
    }
    let tables = thread::scope(|scope| {
        let judged = nodes.iter().map(|(_, words)| scope.spawn(|| judge(words)));
        let judged: Vec<_> = judged.collect();
        let tables = judged.into_iter().map(thread::ScopedJoinHandle::join);
        tables.collect::<Vec<_>>()
    });
    let mut failed = Vec::new();
    for ((name, _), table) in nodes.iter().zip(tables) {
        say::line(&format!("{name}:"));
        let table =
            table.unwrap_or_else(|_| bail!("the thread that waited for it has panicked"))?;
        say::line(table.stdout.trim_end());
        if !table.status.success() {
            say::problem(table.stderr.trim_end());
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!("does not conform: {}", failed.join(", "))
    }
    for spoiled in SPOILED {
        if spoiled.1.contains("faketime") && needs::find("faketime").is_none() {
            untested.push(Untested::new(spoiled.0, "`faketime` is not installed"));
            continue;
        }
        fails(spoiled, &debug.join("examples/own_node"))?;
    }
    Ok(untested)
}

/// Makes sure that a spoiled node fails the rows that it has to fail, and no others.
fn fails(
    (name, line, rows, expected): &(&str, &str, &[&str], &[&str]),
    page: &Path,
) -> anyhow::Result<()> {
    let mut table = program();
    table.args(["--json", "--patience", "5"]);
    table.args(rows.iter().flat_map(|row| ["--only", row]));
    table.args(["--", "sh", "-c", line]).arg(page);
    let output = process::output(table.args(["{url}", "{state_dir}"]), TABLE)?;
    let said: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("{name}: {}", output.stderr.trim_end()))?;
    let rows = said["rows"].as_array().into_iter().flatten();
    let failed = rows.filter(|row| row["result"] == "FAILED");
    let failed: Vec<_> = failed.filter_map(|row| row["row"].as_str()).collect();
    if failed != *expected || output.status.code() != Some(1) {
        bail!("{name} has to fail {expected:?}, and fails {failed:?}: {said:#}");
    }
    say::line(&format!(
        "{name}: fails {}, as it has to",
        failed.join(" and ")
    ));
    Ok(())
}

fn words(program: PathBuf, rest: &[&str]) -> Vec<OsString> {
    let rest = rest.iter().map(OsString::from);
    iter::once(program.into_os_string()).chain(rest).collect()
}

fn judge(node: &[OsString]) -> anyhow::Result<process::Output> {
    let mut table = program();
    // Three tables at once: each with half of the rows at once that it would have alone.
    table.args(["--jobs", "4", "--"]).args(node);
    table.env("PYTHONPATH", ROOT.join(PYTHON_NODE));
    process::output(&mut table, TABLE)
}

fn build(what: &[&str]) -> anyhow::Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--locked", "--workspace", "--quiet"]);
    process::run(cargo.args(what), BUILD)
}

/// Returns the program that plays the gateway.
fn program() -> Command {
    let mut program = Command::new(workspace::target().join("debug/moltis-sim"));
    program.arg("conformance");
    program
}
