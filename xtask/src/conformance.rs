//! Does a node speak the protocol? `moltis-sim` plays a gateway to it; here it is built and started.
//!
//! `cargo xtask conformance -- <command>` asks that of anybody's node, `cargo xtask test` of every
//! node in this repository.

use std::process::Command;
use std::time::Duration;

use anyhow::bail;

use crate::say;
use crate::test::Untested;
use crate::{process, workspace};

/// How long a build may take.
const BUILD: Duration = Duration::from_mins(20);

/// How long the table of one node may take: a minute where it passes, and each row that it fails may
/// wait its patience.
const TABLE: Duration = Duration::from_mins(30);

/// The nodes of this repository: a name, and the command below `target/debug`.
const OURS: &[(&str, &[&str])] = &[
    ("moltis", &["moltis", "node", "add", "--foreground"]),
    (
        "the Rust page",
        &["examples/own_node", "{url}", "{state_dir}"],
    ),
];

/// `cargo xtask conformance [flags] -- <command>`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    build(&["--bin", "moltis-sim"])?;
    process::run(program().args(words), TABLE)
}

/// A part of `cargo xtask test`.
pub(crate) fn check() -> anyhow::Result<Vec<Untested>> {
    build(&["--bins", "--examples"])?;
    let mut failed = Vec::new();
    for (name, words) in OURS {
        let node = workspace::target().join("debug").join(words[0]);
        say::line(&format!("{name}:"));
        let mut table = program();
        table.arg("--").arg(node).args(&words[1..]);
        if let Err(error) = process::run(&mut table, TABLE) {
            say::failure(&error);
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return Ok(Vec::new());
    }
    bail!("does not conform: {}", failed.join(", "))
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
