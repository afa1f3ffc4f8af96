//! A gateway that is started, killed and started again, always at one address and in one home.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::cost;
use crate::process::Background;
use crate::stage::home::Home;
use crate::stage::{STEP, in_home};

/// A line of the log for each node that comes is read by this very program: only warnings are written.
const CONFIG: &str = "[log]\nfilter = \"warn\"\n";

/// A gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    running: Background,
    binary: PathBuf,
    home: Home,
    address: String,
    started_in: Duration,
}

/// How a gateway ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// SIGKILL: as by a power cut of its own.
    Killed,
    /// SIGTERM: in good order.
    Asked,
}

impl Gateway {
    /// Makes a home, lets `prepare` put something into it, and starts a gateway there.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(super) fn start(
        binary: &Path,
        prepare: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let home = Home::make()?;
        fs::write(home.gateway().join("moltis.toml"), CONFIG).context("writing moltis.toml")?;
        prepare(&home.gateway())?;
        let since = Instant::now();
        let (running, address) = run(binary, &home, "127.0.0.1:0")?;
        Ok(Self {
            started_in: since.elapsed(),
            running,
            binary: binary.to_owned(),
            home,
            address,
        })
    }

    /// Ends it and starts it again. Returns how long the ending took.
    ///
    /// # Errors
    ///
    /// When it does not end, or does not start.
    pub(super) fn restart(&mut self, ending: Ending) -> anyhow::Result<Duration> {
        let signal = match ending {
            Ending::Killed => Signal::KILL,
            Ending::Asked => Signal::TERM,
        };
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let since = Instant::now();
        kill_process(pid.context("a process id")?, signal).context("ending the gateway")?;
        self.running.wait(STEP)?;
        let took = since.elapsed();
        (self.running, _) = run(&self.binary, &self.home, &self.address)?;
        Ok(took)
    }

    /// Returns where it listens.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Returns how long it took from its first start to the line that it listens.
    pub(super) fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Returns its folder.
    pub(super) fn home(&self) -> PathBuf {
        self.home.gateway()
    }

    /// Returns its process id.
    pub(super) fn id(&self) -> u32 {
        self.running.id()
    }

    /// Returns how much of it is in memory, in MiB.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub(super) fn resident(&self) -> anyhow::Result<f64> {
        cost::resident(&[self.id()]).with_context(|| self.running.said())
    }

    /// Returns the seconds of processor time that it has used since its start.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub(super) fn processor_seconds(&self) -> anyhow::Result<f64> {
        let ms = cost::processor_ms(self.id()).with_context(|| self.running.said())?;
        Ok(ms / 1e3)
    }

    /// Returns `moltis` with these words, as its administrator.
    pub(super) fn moltis(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(words);
        in_home(&mut command, &self.home.gateway());
        command
    }
}

fn run(binary: &Path, home: &Home, listen: &str) -> anyhow::Result<(Background, String)> {
    let mut command = Command::new(binary);
    command.args(["gateway", "--listen", listen]);
    in_home(&mut command, &home.gateway());
    let mut running = Background::start(&mut command)?;
    let address = running.find(STEP, |line| {
        let address = line.text.strip_prefix("listening on http://")?;
        Some(address.trim().to_owned())
    })?;
    Ok((running, address))
}
