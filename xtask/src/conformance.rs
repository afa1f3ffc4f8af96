//! Does a node speak the protocol? `moltis-sim` plays a gateway to it; here it is built and started.
//!
//! `cargo xtask conformance -- <command>` asks that of anybody's node, `cargo xtask test` of every
//! node in this repository.

mod spoiled;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{iter, thread};

use anyhow::bail;

use crate::test::Untested;
use crate::tools::Venv;
use crate::workspace::ROOT;
use crate::{process, say, workspace};

/// How long a build may take.
const BUILD: Duration = Duration::from_mins(20);

/// How long the table of one node may take: a minute where it passes, and each row that it fails may
/// wait its patience.
const TABLE: Duration = Duration::from_mins(30);

/// Where the node in Python is.
const PYTHON_NODE: &str = "examples/python-node";

/// A Python with the packages of that node and of its tests.
const PYTHON: Venv = Venv {
    name: "python-node",
    requirements: &[
        "examples/python-node/requirements.txt",
        "examples/python-node/requirements-dev.txt",
    ],
};

/// What the tests of that node are called here.
const OWN_TESTS: &str = "the tests of the node in Python";

/// `cargo xtask conformance [flags] -- <command>`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    build(&["--bin", "moltis-sim"])?;
    process::run(program().args(words), TABLE)
}

/// A part of `cargo xtask test`: ours, the Rust page and the node in Python, side by side, as one
/// row of each waits for 45 seconds, and beside them the tests of the node in Python; then the nodes
/// that must not pass.
pub(crate) fn check() -> anyhow::Result<Vec<Untested>> {
    build(&["--bins", "--examples"])?;
    let debug = workspace::target().join("debug");
    let ours = words(debug.join("moltis"), &["node", "add", "--foreground"]);
    let page = words(debug.join("examples/own_node"), &["{url}", "{state_dir}"]);
    let mut nodes = vec![("moltis", ours), ("the Rust page", page)];
    let mut untested = Vec::new();
    let python = match PYTHON.program("python") {
        Ok(python) => Some(python),
        Err(error) => {
            untested.push(Untested::new("the node in Python", &format!("{error:#}")));
            None
        }
    };
    if let Some(python) = &python {
        nodes.push(("the node in Python", python_words(python)));
    }
    let (tables, own_tests) = thread::scope(|scope| {
        let judged = nodes.iter().map(|(_, words)| scope.spawn(|| judge(words)));
        let judged: Vec<_> = judged.collect();
        let own_tests = python.as_deref().map(own_tests);
        let tables = judged.into_iter().map(thread::ScopedJoinHandle::join);
        (tables.collect::<Vec<_>>(), own_tests)
    });
    let mut failed = Vec::new();
    for ((name, _), table) in nodes.iter().zip(tables) {
        let table =
            table.unwrap_or_else(|_| bail!("the thread that waited for it has panicked"))?;
        if !tell(name, &table) {
            failed.push(*name);
        }
    }
    if let Some(own_tests) = own_tests
        && !tell(OWN_TESTS, &own_tests?)
    {
        failed.push(OWN_TESTS);
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "))
    }
    untested.extend(spoiled::check(python.as_deref())?);
    Ok(untested)
}

fn words(program: PathBuf, rest: &[&str]) -> Vec<OsString> {
    let rest = rest.iter().map(OsString::from);
    iter::once(program.into_os_string()).chain(rest).collect()
}

/// Returns the words that start the node in Python.
fn python_words(python: &Path) -> Vec<OsString> {
    let rest = [
        "-m",
        "moltis_node",
        "--host",
        "{url}",
        "--state",
        "{state_dir}",
    ];
    words(python.to_owned(), &rest)
}

/// Prints what came of something, and returns whether that was good.
fn tell(name: &str, came: &process::Output) -> bool {
    say::line(&format!("{name}:"));
    say::line(came.stdout.trim_end());
    if !came.status.success() {
        say::problem(came.stderr.trim_end());
    }
    came.status.success()
}

/// Runs the tests that the node in Python brings along, against our binary.
fn own_tests(python: &Path) -> anyhow::Result<process::Output> {
    let mut pytest = Command::new(python);
    pytest.args(["-m", "pytest", "--quiet"]);
    pytest.current_dir(ROOT.join(PYTHON_NODE));
    pytest.env("MOLTIS_BIN", workspace::binary("debug"));
    process::output(&mut pytest, TABLE)
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
