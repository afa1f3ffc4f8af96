//! Does a node speak the protocol? `moltis-sim` plays a gateway to it; here it is built and started.
//!
//! `cargo xtask conformance -- <command>` asks that of anybody's node, `cargo xtask test` of every
//! node in this repository.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::{fs, iter, thread};

use anyhow::{Context as _, bail};

use crate::test::Untested;
use crate::workspace::ROOT;
use crate::{process, say, workspace};

/// How long a build may take.
const BUILD: Duration = Duration::from_mins(20);

/// How long the table of one node may take: a minute where it passes, and each row that it fails may
/// wait its patience.
const TABLE: Duration = Duration::from_mins(30);

/// How long the packages of the node in Python may take to be fetched.
const FETCH: Duration = Duration::from_mins(5);

/// Where the node in Python is.
const PYTHON_NODE: &str = "examples/python-node";

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
    match python() {
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
    if failed.is_empty() {
        return Ok(untested);
    }
    bail!("does not conform: {}", failed.join(", "))
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

/// Returns a Python with the packages of the node, in the versions that its requirements pin. They
/// are fetched once into `target/tools`, and again when the requirements change.
fn python() -> anyhow::Result<PathBuf> {
    let wanted = ROOT.join(PYTHON_NODE).join("requirements.txt");
    let wanted = fs::read(&wanted).with_context(|| format!("reading {}", wanted.display()))?;
    let home = workspace::target().join("tools/python-node");
    let (python, has) = (home.join("bin/python"), home.join("requirements.txt"));
    if python.is_file() && fs::read(&has).is_ok_and(|has| has == wanted) {
        return Ok(python);
    }
    say::line("fetching the packages of the node in Python into target/tools, once");
    let mut venv = Command::new("python3");
    process::stdout_of(venv.args(["-m", "venv", "--clear"]).arg(&home), FETCH)?;
    let mut pip = Command::new(&python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    pip.arg("--requirement");
    pip.arg(ROOT.join(PYTHON_NODE).join("requirements.txt"));
    process::stdout_of(&mut pip, FETCH)?;
    fs::write(&has, wanted).with_context(|| format!("writing {}", has.display()))?;
    Ok(python)
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
