//! The product with one deliberate defect: worlds that find none of them would say nothing.
//!
//! A defect is a patch in `crates/moltis-sim/sabotage/`, whose first line says what it breaks. It is
//! applied to a copy of the repository, so that the product holds no word of it. A patch that does
//! not apply any more is an error: whoever changed those lines changes the patch too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{BUILD, PROFILE, program_of};
use crate::workspace::ROOT;
use crate::{process, say, workspace};

/// Where the patches are.
const PATCHES: &str = "crates/moltis-sim/sabotage";

/// Worlds that may be needed to find a defect.
const WORLDS: u64 = 5_000;

/// How long they may take.
const TIME: Duration = Duration::from_mins(20);

/// How long git may take.
const GIT: Duration = Duration::from_mins(1);

/// Prints the defects.
pub(super) fn list() -> anyhow::Result<()> {
    for name in names()? {
        say::line(&format!("  {name:<24} {}", about(&name)?));
    }
    Ok(())
}

/// Finds a defect, or every one.
pub(super) fn find(name: &str) -> anyhow::Result<()> {
    match name {
        "all" => find_all(),
        name if names()?.iter().any(|known| known == name) => find_one(name),
        _ => bail!("there is no defect `{name}`: `cargo xtask simulate --break` lists them"),
    }
}

/// Finds every defect.
pub(super) fn find_all() -> anyhow::Result<()> {
    let mut hidden = Vec::new();
    for name in names()? {
        if let Err(error) = find_one(&name) {
            say::failure(&error);
            hidden.push(name);
        }
    }
    if !hidden.is_empty() {
        bail!("not found: {}", hidden.join(", "));
    }
    Ok(())
}

fn find_one(name: &str) -> anyhow::Result<()> {
    say::heading(&format!("{name}: {}", about(name)?));
    let tree = copy()?;
    apply(name, &tree)?;
    let target = ground().join("target");
    let mut cargo = workspace::cargo();
    cargo.current_dir(&tree).env("CARGO_TARGET_DIR", &target);
    // A few lines are others from one defect to the next.
    cargo.env("CARGO_INCREMENTAL", "1");
    cargo.args(["build", "--locked", "--quiet", "--profile", PROFILE]);
    cargo.args(["--package", "moltis-sim", "--bin", "moltis-sim"]);
    cargo.args(["--features", "simulate"]);
    process::run(&mut cargo, BUILD)?;
    let mut worlds = program_of(&target.join(PROFILE));
    worlds.args(["--seeds", &WORLDS.to_string(), "--until-wrong"]);
    worlds.args(["--within", &TIME.as_secs().to_string()]);
    let played = process::output(&mut worlds, TIME + Duration::from_mins(5))?;
    let found = played.stdout.lines().find(|line| line.starts_with("seed "));
    match (played.status.code(), found) {
        (Some(1), Some(found)) => {
            say::line(found);
            Ok(())
        }
        (Some(0), _) => bail!("`{name}` is found by none of {WORLDS} worlds"),
        _ => bail!("`{name}` cannot be played: {}", played.stderr.trim_end()),
    }
}

fn names() -> anyhow::Result<Vec<String>> {
    let dir = ROOT.join(PATCHES);
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".patch").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn patch(name: &str) -> PathBuf {
    ROOT.join(PATCHES).join(format!("{name}.patch"))
}

/// Returns the first line of a patch.
fn about(name: &str) -> anyhow::Result<String> {
    let path = patch(name);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let first = text.lines().next().unwrap_or_default();
    if first.is_empty() || first.starts_with("diff ") || first.starts_with("--- ") {
        bail!("{} does not begin with words about it", path.display());
    }
    Ok(first.to_owned())
}

/// Where broken products are built.
fn ground() -> PathBuf {
    workspace::target().join("sabotage")
}

/// Brings the copy of the repository to the state of the repository. What is the same stays
/// untouched, so that little is built again.
fn copy() -> anyhow::Result<PathBuf> {
    let tree = ground().join("tree");
    let mut git = Command::new("git");
    git.current_dir(&*ROOT);
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let listed = process::stdout_of(&mut git, GIT)?;
    for file in listed.split_terminator('\0') {
        let (from, to) = (ROOT.join(file), tree.join(file));
        let Ok(wanted) = fs::read(&from) else {
            continue; // deleted, and git has not heard of it
        };
        if fs::read(&to).is_ok_and(|found| found == wanted) {
            continue;
        }
        let dir = to.parent().unwrap_or(&tree);
        let written = fs::create_dir_all(dir).and_then(|()| fs::write(&to, wanted));
        written.with_context(|| format!("writing {}", to.display()))?;
    }
    Ok(tree)
}

fn apply(name: &str, tree: &Path) -> anyhow::Result<()> {
    let mut git = Command::new("git");
    git.current_dir(tree);
    // The copy lies in the repository's own `target`: git is not to take it for a part of it.
    git.env("GIT_CEILING_DIRECTORIES", ground());
    git.arg("apply").arg(patch(name));
    let applied = process::stdout_of(&mut git, GIT);
    applied.with_context(|| format!("the defect `{name}` does not apply to the code any more"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defect_says_what_it_breaks_and_applies() {
        for name in names().unwrap() {
            about(&name).unwrap();
            let mut git = Command::new("git");
            git.current_dir(&*ROOT).args(["apply", "--check"]);
            process::stdout_of(git.arg(patch(&name)), GIT).unwrap();
        }
    }
}
