//! `moltis-sim load` in the background: a fleet of nodes, or a crowd of strangers, and its counts.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::process::{self, Background, TICK};
use crate::stop;

/// How long seeding may take.
const SEED: Duration = Duration::from_mins(5);

/// What `moltis-sim` told last.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(Value);

impl Counts {
    /// Returns a count; 0 before the first line.
    pub(super) fn of(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or(0)
    }
}

/// A program that tells its counts.
#[derive(Debug)]
pub(super) struct Sim {
    program: Background,
    counts: Counts,
}

/// Writes nodes into a store.
///
/// # Errors
///
/// When that fails.
pub(super) fn seed(binary: &Path, home: &Path, nodes: u32) -> anyhow::Result<()> {
    let mut command = Command::new(binary);
    command.args(["load", "seed", "--nodes", &nodes.to_string(), "--home"]);
    command.arg(home);
    process::stdout_of(&mut command, SEED).map(drop)
}

impl Sim {
    /// Starts the fleet that was seeded.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(super) fn nodes(binary: &Path, gateway: &str, nodes: u32) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        command.args(["load", "nodes", "--gateway", gateway]);
        command.args(["--nodes", &nodes.to_string()]);
        Self::start(&mut command)
    }

    /// Starts a crowd of strangers.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(super) fn strangers(binary: &Path, gateway: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        command.args(["load", "strangers", "--gateway", gateway]);
        Self::start(&mut command)
    }

    fn start(command: &mut Command) -> anyhow::Result<Self> {
        Ok(Self {
            program: Background::start(command)?,
            counts: Counts::default(),
        })
    }

    /// Returns the newest counts.
    ///
    /// # Errors
    ///
    /// When the program has ended.
    pub(super) fn counts(&mut self) -> anyhow::Result<Counts> {
        let newest = self.program.newest(|line| {
            let told = || serde_json::from_str(&line.text).ok();
            (!line.is_stderr).then(told).flatten()
        });
        if let Some(counts) = newest {
            self.counts = Counts(counts);
        }
        self.program.check_alive()?;
        Ok(self.counts.clone())
    }

    /// Waits until the counts are so, and returns them.
    ///
    /// # Errors
    ///
    /// When that takes longer than `limit`, the program ends, or somebody asked us to stop.
    pub(super) fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        is_so: impl Fn(&Counts) -> bool,
    ) -> anyhow::Result<Counts> {
        let since = Instant::now();
        loop {
            let counts = self.counts()?;
            if is_so(&counts) {
                return Ok(counts);
            }
            if stop::asked() {
                bail!("stopped");
            }
            if since.elapsed() > limit {
                let said = self.program.said();
                bail!("{what}: not within {limit:?}, but {}{said}", counts.0);
            }
            thread::sleep(TICK);
        }
    }

    /// Returns how much of it is in memory, in MiB.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub(super) fn resident(&self) -> anyhow::Result<f64> {
        crate::bench::cost::resident(&[self.program.id()]).context("the fleet")
    }
}
