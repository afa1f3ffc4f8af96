//! Worlds in which gateway and nodes meet every trouble: `moltis-sim` plays them; here it is built
//! and started.
//!
//! `cargo xtask simulate` plays as many as one likes, or one of them in words; `cargo xtask test`
//! plays [`SHORT`] of them, `cargo xtask nightly` [`LONG`]. With `--break` the product is built with
//! one deliberate defect, which has to be found: see [`sabotage`].

mod sabotage;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::test::Untested;
use crate::{process, workspace};

/// The profile that the program is built with, and its directory in `target`.
const PROFILE: &str = "sim";

/// How long a build may take.
const BUILD: Duration = Duration::from_mins(30);

/// Worlds of each change, all of which have to be played. Ten thousand are due when those behind the
/// first seven thousand are known.
const SHORT: u64 = 3_400;
/// How long they may take: at a fifth of a second each, two processors need six minutes.
const SHORT_TIME: Duration = Duration::from_mins(45);

/// Worlds of each night, if there is time.
const LONG: u64 = 1_000_000;
/// None begins behind this.
const LONG_TIME: Duration = Duration::from_hours(16);

/// What somebody's own worlds may take.
const OWN_TIME: Duration = Duration::from_hours(24 * 7);

/// `cargo xtask simulate [--seeds N] [--from N] [--seed N] [--break NAME]`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    match words {
        [flag, name] if flag == "--break" => sabotage::find(name),
        [flag] if flag == "--break" => sabotage::list(),
        _ => {
            build()?;
            process::run(program().args(words), OWN_TIME)
        }
    }
}

/// A part of `cargo xtask test`.
pub(crate) fn check() -> anyhow::Result<Vec<Untested>> {
    play(SHORT, None, SHORT_TIME)
}

/// A part of `cargo xtask nightly`: many worlds, and every defect.
pub(crate) fn check_long() -> anyhow::Result<Vec<Untested>> {
    let untested = play(LONG, Some(LONG_TIME), LONG_TIME + Duration::from_mins(10))?;
    sabotage::find_all()?;
    Ok(untested)
}

fn play(seeds: u64, within: Option<Duration>, limit: Duration) -> anyhow::Result<Vec<Untested>> {
    if !cfg!(target_os = "linux") {
        let why = "they need Linux, whose way to random numbers they know";
        return Ok(vec![Untested::new("simulated worlds", why)]);
    }
    build()?;
    let mut program = program();
    program.args(["--seeds", &seeds.to_string(), "--every-boundary"]);
    if let Some(within) = within {
        program.args(["--within", &within.as_secs().to_string()]);
    }
    let since = Instant::now();
    process::run(&mut program, limit)?;
    if within.is_some_and(|within| since.elapsed() >= within) {
        let why = format!("there was no time for all {seeds}; what was played is told above");
        return Ok(vec![Untested::new("simulated worlds", &why)]);
    }
    Ok(Vec::new())
}

/// Returns the program that plays.
fn program() -> Command {
    program_of(&workspace::target().join(PROFILE))
}

fn program_of(dir: &Path) -> Command {
    let mut program = Command::new(dir.join("moltis-sim"));
    program.arg("simulate");
    program
}

fn build() -> anyhow::Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--locked", "--quiet"]);
    cargo.args(["--package", "moltis-sim", "--bin", "moltis-sim"]);
    cargo.args(["--features", "simulate"]);
    cargo.args(["--profile", PROFILE]);
    process::run(&mut cargo, BUILD)
}
