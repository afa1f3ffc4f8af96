//! A gateway and a node of our own, really running: what the quickstart shows and the bench measures.
//!
//! Both run in a throwaway home, the node behind a [`Relay`] that can cut its connection. Dropping the
//! stage ends every process of it, keepers and their commands included, and removes the home.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::process::{self, Background, TICK};
use crate::stage::home::Home;
use crate::stage::relay::Relay;
use crate::{stop, workspace};

pub(crate) mod home;
pub(crate) mod relay;

/// How long a step that normally takes milliseconds may take on a busy machine.
pub(crate) const STEP: Duration = Duration::from_mins(1);

/// How long cargo may build, with nothing built yet.
pub(crate) const BUILD: Duration = Duration::from_hours(1);

/// The name under which the node joins, and its id.
pub(crate) const NODE: &str = "quickstart";

/// A gateway and a node.
#[derive(Debug)]
pub(crate) struct Stage {
    // In the order in which they are dropped: the node, its way, the gateway; keepers and the folder
    // go in `Drop`, after which the fields find nothing more to do.
    node: Option<Background>,
    pub(crate) relay: Relay,
    gateway: Background,
    address: String,
    home: Home,
    binary: PathBuf,
    started_in: Duration,
}

/// A machine that runs commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// That of the node.
    Node,
    /// The gateway's own.
    Local,
}

impl Machine {
    /// Returns what a command is sent to by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Node => NODE,
            Self::Local => "local",
        }
    }
}

/// What a node that wants to join has shown on its own screen.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The connection code.
    pub(crate) code: String,
    /// The fingerprint of the node's key.
    pub(crate) fingerprint: String,
}

impl Stage {
    /// Starts a gateway in a new home and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(crate) fn open(binary: &Path) -> anyhow::Result<Self> {
        Self::open_with(binary, "")
    }

    /// As [`open`](Self::open), with this `moltis.toml`.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(crate) fn open_with(binary: &Path, config: &str) -> anyhow::Result<Self> {
        let home = Home::make()?;
        fs::write(home.gateway().join("moltis.toml"), config).context("writing moltis.toml")?;
        let mut command = Command::new(binary);
        command.args(["gateway", "--listen", "127.0.0.1:0"]);
        in_home(&mut command, &home.gateway());
        let since = Instant::now();
        let mut gateway = Background::start(&mut command)?;
        let address = gateway.find(STEP, |line| {
            Some(
                line.text
                    .strip_prefix("listening on http://")?
                    .trim()
                    .to_owned(),
            )
        })?;
        let started_in = since.elapsed();
        let relay = Relay::to(address.parse().with_context(|| format!("`{address}`"))?)?;
        Ok(Self {
            node: None,
            relay,
            gateway,
            address,
            home,
            binary: binary.to_path_buf(),
            started_in,
        })
    }

    /// Starts a gateway several times in one home and returns how long each took to answer.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub(crate) fn time_starts(
        binary: &Path,
        times: usize,
        is_answering: impl Fn(&Path) -> bool,
    ) -> anyhow::Result<Vec<Duration>> {
        let home = Home::make()?;
        let mut starts = Vec::new();
        for _ in 0..times {
            let mut command = Command::new(binary);
            command.args(["gateway", "--listen", "127.0.0.1:0"]);
            in_home(&mut command, &home.gateway());
            let since = Instant::now();
            let mut gateway = Background::start(&mut command)?;
            while !is_answering(&home.gateway()) {
                gateway.check_alive()?;
                if since.elapsed() > STEP || stop::asked() {
                    bail!("the gateway does not answer{}", gateway.said());
                }
                thread::sleep(Duration::from_micros(200));
            }
            starts.push(since.elapsed());
        }
        Ok(starts)
    }

    /// Kills the gateway, and nobody who was started by it.
    ///
    /// # Errors
    ///
    /// When it cannot be reaped.
    pub(crate) fn kill_gateway(&mut self) -> anyhow::Result<()> {
        self.gateway.kill()
    }

    /// Starts a gateway in the place of one that was killed, and waits for nothing.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(crate) fn start_gateway(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(["gateway", "--listen", &self.address]);
        in_home(&mut command, &self.home.gateway());
        self.gateway = Background::start(&mut command)?;
        Ok(())
    }

    /// Kills the node's link, and nobody who was started by it.
    ///
    /// # Errors
    ///
    /// When it cannot be reaped.
    pub(crate) fn kill_node(&mut self) -> anyhow::Result<()> {
        self.node.as_mut().map_or(Ok(()), Background::kill)
    }

    /// Starts the link of a node that has joined, as its service does, and waits for nothing.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(crate) fn start_node(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(["node", "run"]);
        in_home(&mut command, &self.home.node());
        self.node = Some(Background::start(&mut command)?);
        Ok(())
    }

    /// Returns the process ids of the keepers of the node, or of the gateway's own machine.
    pub(crate) fn keepers_of(&self, machine: Machine) -> Vec<u32> {
        let runs = match machine {
            Machine::Node => self.home.node().join("runs"),
            Machine::Local => self.home.gateway().join("local"),
        };
        process::running(&self.binary, &runs)
    }

    /// Starts a node that wants to join, and waits for its connection code.
    ///
    /// # Errors
    ///
    /// When it does not get as far as that.
    pub(crate) fn ask_to_join(&mut self) -> anyhow::Result<Shown> {
        let url = format!("ws://{}/ws", self.relay.address());
        let mut command = Command::new(&self.binary);
        command.args([
            "node",
            "add",
            "--foreground",
            "--name",
            NODE,
            "--node-id",
            NODE,
            "--host",
            &url,
        ]);
        in_home(&mut command, &self.home.node());
        let mut node = Background::start(&mut command)?;
        let mut fingerprint = String::new();
        let code = node.find(STEP, |line| {
            if let Some(words) = line.text.trim().strip_prefix("This node's key") {
                words.trim().clone_into(&mut fingerprint);
            }
            let words = line.text.trim().strip_prefix("Connection code")?;
            words.split_whitespace().next().map(str::to_owned)
        })?;
        self.node = Some(node);
        Ok(Shown { code, fingerprint })
    }

    /// Waits until the gateway lists the node as online, and returns its entry.
    ///
    /// # Errors
    ///
    /// When the node is not online, or `is_enough` says no, for too long.
    pub(crate) fn node_when(&self, is_enough: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let since = Instant::now();
        loop {
            let list = self.json(&["node", "list", "--json"])?;
            let found =
                list.as_array().into_iter().flatten().find(|node| {
                    node["name"] == NODE && node["state"] == "online" && is_enough(node)
                });
            if let Some(node) = found {
                return Ok(node.clone());
            }
            if stop::asked() {
                bail!("stopped");
            }
            if since.elapsed() > STEP {
                let said = self.node.as_ref().map(Background::said).unwrap_or_default();
                bail!("node `{NODE}` is not as expected in {list}{said}");
            }
            thread::sleep(TICK);
        }
    }

    /// Returns `moltis` with these words, as the gateway's administrator.
    pub(crate) fn moltis(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(words);
        in_home(&mut command, &self.home.gateway());
        command
    }

    /// Runs `moltis` as the gateway's administrator and returns what it prints.
    ///
    /// # Errors
    ///
    /// When it fails, with what it says.
    pub(crate) fn text(&self, words: &[&str]) -> anyhow::Result<String> {
        process::stdout_of(&mut self.moltis(words), STEP)
    }

    /// Runs `moltis` as the owner of the node's machine and returns what it prints.
    ///
    /// # Errors
    ///
    /// When it fails, with what it says.
    pub(crate) fn on_the_node(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(words);
        in_home(&mut command, &self.home.node());
        process::stdout_of(&mut command, STEP)
    }

    /// As [`Self::text`], read as JSON.
    ///
    /// # Errors
    ///
    /// When it fails, or prints something else.
    pub(crate) fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let text = self.text(words)?;
        serde_json::from_str(&text)
            .with_context(|| format!("`moltis {}` printed no JSON: {text}", words.join(" ")))
    }

    /// Enables pairing, lets a node ask, and approves it without a person.
    ///
    /// # Errors
    ///
    /// When a step fails, or the two codes differ.
    pub(crate) fn join(&mut self) -> anyhow::Result<()> {
        self.text(&["node", "pairing", "enable"])?;
        let shown = self.ask_to_join()?;
        let request = self.request()?;
        if request["connection_code"] != *shown.code {
            bail!("the node shows code {}, the gateway {request}", shown.code);
        }
        self.approve(&request)?;
        self.node_when(|_| true)?;
        Ok(())
    }

    /// Returns the one pending request, as the gateway shows it.
    ///
    /// # Errors
    ///
    /// When there is none, or more than one.
    pub(crate) fn request(&self) -> anyhow::Result<Value> {
        let mut pending = self.json(&["node", "pending", "--json"])?;
        match pending.as_array_mut() {
            Some(requests) if requests.len() == 1 => Ok(requests.remove(0)),
            _ => bail!("expected one pending request, found {pending}"),
        }
    }

    /// Approves a request.
    ///
    /// # Errors
    ///
    /// When the gateway does not.
    pub(crate) fn approve(&self, request: &Value) -> anyhow::Result<()> {
        let id = request["id"]
            .as_str()
            .with_context(|| format!("no id in {request}"))?;
        self.text(&["node", "approve", id, "--yes"])?;
        Ok(())
    }

    /// Returns where the gateway listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Returns the gateway's process id.
    pub(crate) fn gateway_id(&self) -> u32 {
        self.gateway.id()
    }

    /// Returns the node's process id, once it has asked to join.
    pub(crate) fn node_id(&self) -> Option<u32> {
        self.node.as_ref().map(Background::id)
    }

    /// Returns the process ids of the keepers.
    pub(crate) fn keepers(&self) -> Vec<u32> {
        let (gateway, node) = (self.gateway.id(), self.node_id());
        let mut pids = process::running(&self.binary, self.home.path());
        pids.retain(|pid| *pid != gateway && Some(*pid) != node);
        pids
    }

    /// Returns the folder that goes with the stage.
    pub(crate) fn folder(&self) -> &Path {
        self.home.path()
    }

    /// Returns the gateway's `MOLTIS_HOME`.
    pub(crate) fn gateway_home(&self) -> PathBuf {
        self.home.gateway()
    }

    /// Returns how long the gateway took from its start to the line that it listens.
    pub(crate) fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Returns an error when the gateway or the node has ended by itself.
    ///
    /// # Errors
    ///
    /// With what it said last.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        self.check_gateway_alive()?;
        self.node.as_mut().map_or(Ok(()), Background::check_alive)
    }

    /// As [`check_alive`](Self::check_alive), where the node may have been sent away.
    ///
    /// # Errors
    ///
    /// With what the gateway said last.
    pub(crate) fn check_gateway_alive(&mut self) -> anyhow::Result<()> {
        self.gateway.check_alive()
    }

    /// Ends everything and removes the home.
    ///
    /// # Errors
    ///
    /// When something is left.
    pub(crate) fn close(mut self) -> anyhow::Result<()> {
        self.end();
        let left = process::running(&self.binary, self.home.path());
        if !left.is_empty() {
            bail!("processes {left:?} are still there");
        }
        self.home.remove()
    }

    fn end(&mut self) {
        if let Some(node) = &mut self.node {
            node.end();
        }
        self.gateway.end();
        let keepers = process::running(&self.binary, self.home.path());
        let commands = process::descendants(&keepers);
        process::end_strangers(&keepers);
        process::end_strangers(&commands);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end();
    }
}

/// Points a program at a home, and at no gateway that the person may have elsewhere.
///
/// The person's own home is replaced as well: whatever a command or a program that is asked for its
/// version leaves there goes with the stage.
pub(crate) fn in_home(command: &mut Command, home: &Path) {
    for name in [
        "MOLTIS_GATEWAY",
        "MOLTIS_GATEWAY_URL",
        "MOLTIS_API_TOKEN",
        "MOLTIS_LOG",
    ] {
        command.env_remove(name);
    }
    command.env("MOLTIS_HOME", home).env("NO_COLOR", "1");
    command.env("HOME", home.with_file_name(home::PERSON));
}

/// Builds Moltis and returns where the program is.
///
/// # Errors
///
/// When it does not build.
pub(crate) fn build(profile: &str) -> anyhow::Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--locked", "--workspace"]);
    if profile == "release" {
        cargo.arg("--release");
    }
    process::run(&mut cargo, BUILD)?;
    // The keeper is known by this path, and the system tells it without symbolic links.
    let binary = workspace::binary(profile);
    fs::canonicalize(&binary).with_context(|| format!("looking for {}", binary.display()))
}
