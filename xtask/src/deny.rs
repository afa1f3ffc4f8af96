//! Licences, bans, sources and advisories, by cargo-deny.
//!
//! The floors stand in `deny.toml` a second
//! time, as `wrappers`; that they bite is proved on a small workspace that breaks them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::test::Untested;
use crate::tools::Tool;
use crate::workspace::{self, ROOT};
use crate::{process, say};

const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
};

/// How long one check may take, the download of the advisory database included.
const CHECK: Duration = Duration::from_mins(5);

/// `cargo xtask deny`.
pub(crate) fn run(_words: &[String]) -> anyhow::Result<()> {
    let untested = check()?;
    for one in &untested {
        say::line(&one.to_string());
    }
    if untested.iter().all(Untested::is_excused) {
        return Ok(());
    }
    bail!("nothing was checked")
}

/// Checks everything that can be checked and returns what could not.
///
/// # Errors
///
/// When cargo-deny finds something.
pub(crate) fn check() -> anyhow::Result<Vec<Untested>> {
    let deny = match CARGO_DENY.installed() {
        Ok(deny) => deny,
        Err(error) => return Ok(vec![Untested::new("cargo-deny", &format!("{error:#}"))]),
    };
    let mut command = Command::new(&deny);
    command.current_dir(&*ROOT);
    command.args(["--all-features", "check", "--hide-inclusion-graph"]);
    // Duplicates are for the person who chooses dependencies; they are many and none is ours.
    command.args(["--allow", "duplicate", "bans", "licenses", "sources"]);
    process::run(&mut command, CHECK)?;
    the_floors_bite(&deny)?;
    advisories(&deny)
}

/// Checks the advisories where their database can be fetched.
fn advisories(deny: &Path) -> anyhow::Result<Vec<Untested>> {
    let mut command = Command::new(deny);
    command.current_dir(&*ROOT);
    command.args([
        "--all-features",
        "check",
        "--hide-inclusion-graph",
        "advisories",
    ]);
    let output = process::output(&mut command, CHECK)?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let fetching = "failed to fetch advisory database";
    if let Some(why) = output.stderr.lines().find(|line| line.contains(fetching)) {
        let host = why
            .split("://")
            .nth(1)
            .and_then(|rest| rest.split('/').next());
        let host = host.unwrap_or("its host");
        return Ok(vec![Untested::new(
            "cargo-deny's advisories",
            &format!("their database cannot be fetched from {host}"),
        )]);
    }
    bail!("cargo-deny advisories: {}", output.stderr.trim())
}

/// Proves that `deny.toml` refuses a gateway that imports a node, and nothing but that: the same two
/// crates without the import pass.
fn the_floors_bite(deny: &Path) -> anyhow::Result<()> {
    let check = |import: &str| -> anyhow::Result<process::Output> {
        let dir = tempfile::tempdir_in(workspace::target()).context("a folder under target/")?;
        let write = |path: &str, text: &str| -> anyhow::Result<()> {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(dir.path()))?;
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write(
            "Cargo.toml",
            "[workspace]\nresolver = \"3\"\nmembers = [\"gateway\", \"node\"]\n",
        )?;
        for (name, imports) in [("gateway", import), ("node", "")] {
            let package = format!(
                "[package]\nname = \"moltis-{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
                 license = \"MIT\"\n[dependencies]\n{imports}\n"
            );
            write(&format!("{name}/Cargo.toml"), &package)?;
            write(&format!("{name}/src/lib.rs"), "")?;
        }
        let mut command = Command::new(deny);
        command.current_dir(dir.path());
        command.arg("--config").arg(ROOT.join("deny.toml"));
        command.args(["check", "--hide-inclusion-graph", "bans"]);
        process::output(&mut command, CHECK)
    };
    let broken = check("moltis-node = { path = \"../node\", version = \"0.1.0\" }")?;
    let banned = "crate 'moltis-node = 0.1.0' is explicitly banned";
    if broken.status.success() || !broken.stderr.contains(banned) {
        bail!("`deny.toml` lets moltis-gateway import moltis-node: its `wrappers` hold nothing");
    }
    let clean = check("")?;
    if !clean.status.success() {
        bail!(
            "the proof of the floors is broken, two strangers are refused: {}",
            clean.stderr.trim()
        );
    }
    Ok(())
}
