//! Cargo tools of other people, built by cargo into `target/tools`, each in the version named here.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::{process, say, workspace};

/// How long the build of a tool may take: two minutes on two cores, and slow machines exist.
const INSTALL: Duration = Duration::from_mins(25);

/// How long a tool may take to say its version.
const ASK: Duration = Duration::from_mins(1);

/// A tool, by its name at crates.io. Another version may read its files differently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

impl Tool {
    /// Returns where the tool is, and builds it first where it is not.
    ///
    /// # Errors
    ///
    /// When it cannot be built.
    pub(crate) fn installed(self) -> anyhow::Result<PathBuf> {
        let Self { name, version } = self;
        let tools = workspace::target().join("tools");
        let program = tools.join("bin").join(name);
        let is_there = program.is_file()
            && process::stdout_of(Command::new(&program).arg("--version"), ASK)
                .is_ok_and(|said| said.trim().ends_with(version));
        if is_there {
            return Ok(program);
        }
        say::line(&format!(
            "building {name} {version} into target/tools, once; about two minutes"
        ));
        let build = tools.join("build");
        let mut install = workspace::cargo();
        install.env("CARGO_TARGET_DIR", &build);
        install.args(["install", "--quiet", "--locked", "--profile", "dev"]);
        install.args([name, "--version", version, "--root"]);
        install.arg(&tools);
        process::run(&mut install, INSTALL).context("it cannot be built")?;
        fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))?;
        Ok(program)
    }
}
