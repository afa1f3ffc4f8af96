//! Who asks for commands while everything around is killed, and keeps what was told.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::script::{Kind, Script};
use super::site::{PAUSE, Site};
use crate::dice::Dice;
use crate::process::Group;
use crate::stage::Machine;
use crate::stop;

/// How long one command may take, with everything that is killed meanwhile.
const PATIENCE: Duration = Duration::from_mins(4);

/// How a command is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Under a key, asked for again and again until it is over.
    Keyed,
    /// Under a key, with an answer that waits for the end.
    Waited,
    /// Under a key, its frames followed across every cut.
    Followed,
    /// `moltis node exec`.
    Exec,
    /// Under a key, then `moltis runs attach`.
    Attach,
    /// Once, without a key.
    Once,
}

impl Way {
    pub(super) const ALL: [Self; 6] = [
        Self::Keyed,
        Self::Waited,
        Self::Followed,
        Self::Exec,
        Self::Attach,
        Self::Once,
    ];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Keyed => "keyed, asked for again",
            Self::Waited => "keyed, waited for",
            Self::Followed => "keyed, followed over HTTP",
            Self::Exec => "moltis node exec",
            Self::Attach => "moltis runs attach",
            Self::Once => "once, without a key",
        }
    }
}

/// What somebody asked for, and was told.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) key: String,
    pub(super) way: Way,
    pub(super) machine: Machine,
    pub(super) script: Script,
    pub(super) from: Instant,
    pub(super) to: Instant,
    /// Every id that was told for it.
    pub(super) ids: BTreeSet<String>,
    /// It was told that nothing was started.
    pub(super) refused: bool,
    /// How it ended, as was told.
    pub(super) told: Option<Value>,
    /// What came of both outputs, and the code, where the program or the frames brought them.
    pub(super) printed: Option<Printed>,
}

/// What a follower got.
#[derive(Debug)]
pub(super) struct Printed {
    /// A command line's code; `None` of frames.
    pub(super) code: Option<i32>,
    pub(super) outputs: [Vec<u8>; 2],
    /// It was told of bytes that are gone.
    pub(super) has_gap: bool,
}

/// Asks for one thing after the other until it is enough.
pub(super) fn ask_on(
    site: &Site,
    name: usize,
    mut dice: Dice,
    enough: &AtomicBool,
) -> anyhow::Result<Vec<Asked>> {
    let mut all = Vec::new();
    while !enough.load(Ordering::SeqCst) {
        let key = format!("c{name}-{}", all.len());
        let way = dice.pick(&Way::ALL);
        let mut kind = dice.pick(&Kind::ALL);
        // Whoever cancels has to know the id.
        if kind == Kind::Cancelled && way != Way::Keyed {
            kind = Kind::Long;
        }
        let machine = if dice.chance(70) {
            Machine::Node
        } else {
            Machine::Local
        };
        let script = Script::new(kind, &key, &mut dice);
        let asked = Asked {
            key,
            way,
            machine,
            script,
            from: Instant::now(),
            to: Instant::now(),
            ids: BTreeSet::new(),
            refused: false,
            told: None,
            printed: None,
        };
        let what = format!("{} ({}, {})", asked.key, way.word(), kind.word());
        all.push(Caller { site, asked }.ask(&mut dice).context(what)?);
    }
    Ok(all)
}

struct Caller<'a> {
    site: &'a Site,
    asked: Asked,
}

impl Caller<'_> {
    fn ask(mut self, dice: &mut Dice) -> anyhow::Result<Asked> {
        let folder = self.site.work.join(&self.asked.key);
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        match self.asked.way {
            Way::Keyed => self.keyed(dice)?,
            Way::Waited => self.waited()?,
            Way::Followed => {
                let id = self.start()?;
                self.follow(&id)?;
            }
            Way::Exec => self.exec()?,
            Way::Attach => {
                let id = self.start()?;
                let mut attach = self.site.moltis(&["runs", "attach", &id]);
                let printed = self.program(&mut attach)?;
                self.asked.printed = Some(printed);
                self.until_over(&id)?;
            }
            Way::Once => self.once()?,
        }
        self.asked.to = Instant::now();
        Ok(self.asked)
    }

    fn until(&self) -> Instant {
        self.asked.from + PATIENCE
    }

    fn gives_up(&self) -> bool {
        Instant::now() > self.until() || stop::asked()
    }

    fn body(&self) -> Value {
        let script = &self.asked.script;
        json!({
            "node": self.asked.machine.name(),
            "command": script.line,
            "cwd": self.site.work.join(&self.asked.key),
            "timeout_seconds": script.timeout_seconds,
            "stdin": script.stdin,
        })
    }

    /// Asks under the key until it is answered with something else than that the node is away.
    fn request(&mut self, path: &str) -> anyhow::Result<Value> {
        let (until, body) = (self.until(), self.body());
        let key = self.asked.key.clone();
        loop {
            let ask = |client: &mut crate::http::Client| client.call_keyed(path, &key, &body);
            match self.site.ask(until, ask)? {
                (200 | 201, answer) => return Ok(answer),
                (409, answer) if answer["code"] == "node_offline" && !self.gives_up() => {
                    thread::sleep(PAUSE);
                }
                (status, answer) => bail!("it is answered with {status}: {answer}"),
            }
        }
    }

    /// Starts it under the key and returns the id.
    fn start(&mut self) -> anyhow::Result<String> {
        let run = self.request("/api/v1/runs")?;
        let id = run["id"].as_str().context("no id")?.to_owned();
        self.asked.ids.insert(id.clone());
        Ok(id)
    }

    fn keyed(&mut self, dice: &mut Dice) -> anyhow::Result<()> {
        let id = self.start()?;
        if self.asked.script.kind == Kind::Cancelled {
            thread::sleep(Duration::from_millis(dice.below(800)));
            let (until, path) = (self.until(), format!("/api/v1/runs/{id}/cancel"));
            let cancel = |client: &mut crate::http::Client| client.call("POST", &path, &json!({}));
            let (status, answer) = self.site.ask(until, cancel)?;
            // It may have been lost before.
            if !matches!(status, 200..=202) && answer["code"] != "run_ended" {
                bail!("a cancel is answered with {status}: {answer}");
            }
        }
        let kind = self.asked.script.kind;
        loop {
            if kind != Kind::Stdin {
                self.start()?; // the same run; stdin goes on without
            }
            let run = self.site.run(&id, self.until())?;
            if self.is_over(run)? {
                return Ok(());
            }
            thread::sleep(PAUSE * 2);
        }
    }

    fn waited(&mut self) -> anyhow::Result<()> {
        let result = self.request("/api/v1/runs?wait=true")?;
        let id = result["run_id"].as_str().context("no run_id")?.to_owned();
        self.asked.ids.insert(id.clone());
        // An ending is told before it is written: a gateway that was killed hears it again.
        self.until_over(&id)?;
        let told = self.asked.told.as_ref().map(|run| run["outcome"].clone());
        if told.as_ref() != Some(&result["outcome"]) {
            bail!("{result} was told of a run that is {told:?}");
        }
        Ok(())
    }

    fn once(&mut self) -> anyhow::Result<()> {
        let body = self.body();
        let answer = self
            .site
            .connect()
            .and_then(|mut client| client.call("POST", "/api/v1/runs", &body));
        match answer {
            Ok((201, run)) => {
                let id = run["id"].as_str().context("no id")?.to_owned();
                self.asked.ids.insert(id.clone());
                self.until_over(&id)
            }
            Ok((409 | 429 | 503, _)) => {
                self.asked.refused = true;
                thread::sleep(PAUSE);
                Ok(())
            }
            Ok((status, answer)) => bail!("it is answered with {status}: {answer}"),
            // Nobody knows whether it runs.
            Err(_) => {
                thread::sleep(PAUSE);
                Ok(())
            }
        }
    }

    fn exec(&mut self) -> anyhow::Result<()> {
        let (cwd, script) = (
            self.site.work.join(&self.asked.key),
            self.asked.script.clone(),
        );
        let seconds = script.timeout_seconds.to_string();
        let mut command = self
            .site
            .moltis(&["node", "exec", self.asked.machine.name()]);
        command.arg("--cwd").arg(&cwd);
        command.args(["--timeout", &seconds, "--shell", &script.line]);
        if let Some(stdin) = &script.stdin {
            let file = cwd.join("in");
            fs::write(&file, stdin)?;
            command.arg("--stdin").stdin(File::open(file)?);
        } else {
            command.stdin(Stdio::null());
        }
        let printed = self.program(&mut command)?;
        self.asked.printed = Some(printed);
        Ok(())
    }

    /// Runs a command line of ours and takes what it prints.
    fn program(&self, command: &mut Command) -> anyhow::Result<Printed> {
        let files = ["out", "err"].map(|name| self.site.work.join(&self.asked.key).join(name));
        command.stdout(File::create(&files[0])?);
        command.stderr(File::create(&files[1])?);
        let left = self.until().saturating_duration_since(Instant::now());
        let status = Group::spawn(command)?.wait(left)?;
        let [stdout, stderr] = files.map(|file| fs::read(file).unwrap_or_default());
        Ok(Printed {
            code: status.code(),
            has_gap: String::from_utf8_lossy(&stderr).contains(" are gone"),
            outputs: [stdout, stderr],
        })
    }

    fn until_over(&mut self, id: &str) -> anyhow::Result<()> {
        loop {
            let run = self.site.run(id, self.until())?;
            if self.is_over(run)? {
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
    }

    fn is_over(&mut self, run: Value) -> anyhow::Result<bool> {
        if run["state"] == "ended" {
            self.asked.told = Some(run);
            return Ok(true);
        }
        if self.gives_up() {
            bail!("not over after {PATIENCE:?}: {run}");
        }
        Ok(false)
    }

    /// Follows both outputs to the end, going on behind each cut at the byte that was reached.
    fn follow(&mut self, id: &str) -> anyhow::Result<()> {
        let mut printed = Printed {
            code: None,
            outputs: [Vec::new(), Vec::new()],
            has_gap: false,
        };
        let mut at = [0; 2];
        while self.asked.told.is_none() {
            // What is cut off is gone on with.
            self.follow_once(id, &mut at, &mut printed).ok();
            if self.gives_up() {
                bail!("run {id} has no end after {PATIENCE:?}, read as far as {at:?}");
            }
            thread::sleep(PAUSE);
        }
        self.asked.printed = Some(printed);
        Ok(())
    }

    fn follow_once(
        &mut self,
        id: &str,
        at: &mut [u64; 2],
        printed: &mut Printed,
    ) -> anyhow::Result<()> {
        let mut client = self.site.connect()?;
        let path = format!("/api/v1/runs/{id}/follow?stdout={}&stderr={}", at[0], at[1]);
        let mut frames = client.stream("GET", &path, "")?;
        while !self.gives_up() {
            let mut header = [0; 13];
            frames.read_exact(&mut header)?;
            let [kind, header @ ..] = header;
            let (offset, length) = header.split_at(8);
            let offset = u64::from_be_bytes(offset.try_into()?);
            let length = u32::from_be_bytes(length.try_into()?);
            let mut bytes = vec![0; usize::try_from(length)?];
            frames.read_exact(&mut bytes)?;
            match kind {
                1 | 2 => {
                    let which = usize::from(kind - 1);
                    let seen = usize::try_from(at[which].saturating_sub(offset))?;
                    if offset > at[which] {
                        printed.has_gap = true;
                    }
                    let new = bytes.get(seen..).unwrap_or_default();
                    printed.outputs[which].extend_from_slice(new);
                    at[which] = at[which].max(offset + u64::from(length));
                }
                3 => {
                    let gap: Value = serde_json::from_slice(&bytes)?;
                    let which = usize::from(gap["stream"] == "stderr");
                    printed.has_gap = true;
                    at[which] = at[which].max(gap["to"].as_u64().context("a gap has an end")?);
                }
                4 => {
                    self.asked.told = Some(serde_json::from_slice(&bytes)?);
                    return Ok(());
                }
                _ => {}
            }
        }
        Ok(())
    }
}
