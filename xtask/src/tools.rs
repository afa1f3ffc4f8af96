//! Tools of other people in `target/tools`, each in the version that is written down: built by cargo, or
//! fetched from `PyPI`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::workspace::ROOT;
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

/// Programs in Python that nothing else on this machine sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Venv {
    pub(crate) name: &'static str,
    /// The files that name its packages and their versions, from the root of the repository.
    pub(crate) requirements: &'static [&'static str],
}

impl Venv {
    /// Returns where one of its programs is, and fetches the packages first where they are not those
    /// of the files.
    ///
    /// # Errors
    ///
    /// When they cannot be fetched.
    pub(crate) fn program(self, program: &str) -> anyhow::Result<PathBuf> {
        let home = workspace::target().join("tools").join(self.name);
        let mut wanted = Vec::new();
        for file in self.requirements {
            let file = ROOT.join(file);
            let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            wanted.extend(text);
        }
        let has = home.join("requirements.txt");
        let program = home.join("bin").join(program);
        if program.is_file() && fs::read(&has).is_ok_and(|has| has == wanted) {
            return Ok(program);
        }
        say::line(&format!("fetching {} into target/tools, once", self.name));
        let mut venv = Command::new("python3");
        process::stdout_of(venv.args(["-m", "venv", "--clear"]).arg(&home), INSTALL)?;
        let mut pip = Command::new(home.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--no-input"]);
        pip.arg("--disable-pip-version-check");
        for file in self.requirements {
            pip.arg("--requirement").arg(ROOT.join(file));
        }
        process::stdout_of(&mut pip, INSTALL).context("its packages cannot be fetched")?;
        // Last, so that what was cut off begins anew.
        fs::write(&has, wanted).with_context(|| format!("writing {}", has.display()))?;
        Ok(program)
    }
}
