//! Bytes that nobody meant, fed to whatever reads bytes: the targets in `fuzz/`, by cargo-fuzz.
//!
//! `cargo xtask test` gives each target a moment with a fixed seed, so that it passes or fails the
//! same way everywhere; `cargo xtask nightly` gives it longer, with another seed every night.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::test::Untested;
use crate::tools::Tool;
use crate::workspace::{self, ROOT};
use crate::{process, say};

const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
};

/// How long the build of all targets may take: they are built with the sanitizer, apart from all else.
const BUILD: Duration = Duration::from_mins(30);

/// How much longer than asked for a target may take until it has ended.
const SLACK: Duration = Duration::from_mins(2);

/// How each target is fuzzed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fuzzing {
    pub(crate) time: Duration,
    /// `None` draws one.
    pub(crate) seed: Option<u32>,
}

impl Fuzzing {
    /// What `cargo xtask test` does.
    pub(crate) const SHORT: Self = Self {
        time: Duration::from_secs(10),
        seed: Some(1),
    };

    /// What `cargo xtask nightly` does.
    pub(crate) const LONG: Self = Self {
        time: Duration::from_mins(10),
        seed: None,
    };

    /// Builds all targets once and fuzzes each.
    ///
    /// # Errors
    ///
    /// When a target finds something; the message names it and the bytes that did it.
    pub(crate) fn run(self) -> anyhow::Result<Vec<Untested>> {
        let program = match CARGO_FUZZ.installed() {
            Ok(program) => program,
            Err(error) => return Ok(vec![Untested::new("fuzzing", &format!("{error:#}"))]),
        };
        let listed = process::stdout_of(cargo_fuzz(&program).arg("list"), SLACK)?;
        let targets: Vec<_> = listed.lines().map(str::trim).collect();
        if targets.is_empty() {
            bail!("`fuzz/` has no targets");
        }
        process::run(cargo_fuzz(&program).arg("build"), BUILD)?;
        for target in targets {
            self.one(&program, target)?;
        }
        Ok(Vec::new())
    }

    fn one(self, program: &Path, target: &str) -> anyhow::Result<()> {
        // What was found interesting stays for the next time, outside of the repository.
        let corpus = workspace::target().join("fuzz-corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("making {}", corpus.display()))?;
        let mut run = cargo_fuzz(program);
        run.args(["run", target]);
        // A corpus that grew on this machine would make a fixed seed mean something else.
        if self.seed.is_none() {
            run.arg(&corpus);
        }
        let begun_with = ROOT.join("fuzz/corpus").join(target);
        if begun_with.is_dir() {
            run.arg(begun_with);
        }
        run.arg("--");
        run.arg(format!("-max_total_time={}", self.time.as_secs()));
        run.args(self.seed.map(|seed| format!("-seed={seed}")));
        let output = process::output(&mut run, self.time + SLACK)?;
        if output.status.success() {
            let last = output.stderr.lines().rfind(|line| line.starts_with("Done"));
            say::line(&format!("  {target:<20} {}", last.unwrap_or("done")));
            return Ok(());
        }
        let tail: Vec<_> = output.stderr.lines().rev().take(30).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        bail!("fuzzing `{target}` found something:\n{}", tail.join("\n"))
    }
}

/// Returns cargo-fuzz for the targets of this repository, with the compiler that everything else is
/// built with: the sanitizer's flags are hidden in a stable one, not missing.
fn cargo_fuzz(program: &Path) -> Command {
    let mut cargo = workspace::cargo();
    let mut command = Command::new(program);
    command.current_dir(&*ROOT);
    for (name, value) in cargo.env("RUSTC_BOOTSTRAP", "1").get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}
