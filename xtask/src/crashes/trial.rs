//! One short life of a gateway and a node, in which one of the programs is killed at one point.
//!
//! Whoever operates them here is patient: what is not answered is done again, what has died is
//! started again. In the end all that was acknowledged is there, and each command began once.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::points::{self, Point, Who};
use crate::chaos::site::Site;
use crate::process::{self, Background, TICK};
use crate::stage::home::Home;
use crate::stage::{NODE, STEP, in_home};
use crate::stop;

/// Lines of the command with much output: well above what is held in memory alone.
const LINES: u64 = 40_000;

/// The file to which each command appends a line when it starts.
const STARTS: &str = "starts";

/// What a trial does with one of the programs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Under<'a> {
    /// It is watched, to learn where it can be killed.
    Watch(Who),
    /// It is killed there, once.
    Kill(&'a Point),
}

impl Under<'_> {
    fn who(self) -> Who {
        match self {
            Self::Watch(who) => who,
            Self::Kill(point) => point.who,
        }
    }
}

/// What came of a trial.
#[derive(Debug)]
pub(super) struct Ended {
    /// The point was reached.
    pub(super) was_killed: bool,
    /// What strace wrote.
    pub(super) log: String,
    /// The home of the program that was watched.
    pub(super) home: String,
    /// What is not as it has to be.
    pub(super) complaints: Vec<String>,
}

/// The programs of one trial.
struct Trial<'a> {
    under: Under<'a>,
    home: Home,
    site: Site,
    address: Option<String>,
    gateway: Option<Program>,
    link: Option<Program>,
    keeper: Option<Program>,
    /// Who is traced has been started: what follows it is not.
    was_traced: bool,
    was_killed: bool,
    had_keeper: bool,
    /// The link may go by itself: it is not approved yet, or not any more.
    link_may_go: bool,
    until: Instant,
    /// What was answered last of a run that is not over.
    waits_for: Option<Value>,
}

/// A program, by itself or below strace.
struct Program {
    running: Background,
    is_traced: bool,
    /// Below strace it was seen to run.
    was_seen: bool,
}

impl Program {
    /// Returns an error when it has ended. strace goes on after it, where it follows what was started.
    fn check_alive(&mut self) -> anyhow::Result<()> {
        self.running.check_alive()?;
        if self.is_traced {
            let runs = !process::descendants(&[self.running.id()]).is_empty();
            if self.was_seen && !runs {
                bail!("it has ended below strace{}", self.running.said());
            }
            self.was_seen |= runs;
        }
        Ok(())
    }
}

/// Lives through one trial.
///
/// # Errors
///
/// When it does not come to its end.
pub(super) fn run(binary: &Path, under: Under<'_>) -> anyhow::Result<Ended> {
    let home = Home::make()?;
    let work = home.path().join("work");
    for name in ["much", "long"] {
        fs::create_dir_all(work.join(name))?;
    }
    let site = Site {
        binary: binary.to_owned(),
        home: home.gateway(),
        work,
    };
    let mut trial = Trial {
        under,
        home,
        site,
        address: None,
        gateway: None,
        link: None,
        keeper: None,
        was_traced: false,
        was_killed: false,
        had_keeper: false,
        link_may_go: true,
        until: Instant::now() + STEP * 2,
        waits_for: None,
    };
    let complaints = trial.live();
    let (log, home) = (trial.log(), trial.home_of(under.who()));
    let ended = complaints.map(|complaints| Ended {
        was_killed: trial.was_killed,
        log: fs::read_to_string(log).unwrap_or_default(),
        home: home.display().to_string(),
        complaints,
    });
    trial.end();
    ended
}

impl Trial<'_> {
    fn live(&mut self) -> anyhow::Result<Vec<String>> {
        self.keep_up()?;
        self.pair()?;
        self.link_may_go = false;
        let much = self.much()?;
        let long = self.cancelled()?;
        self.moltis(&[
            "token",
            "create",
            "--name",
            "kept",
            "--scope",
            "runs:read",
            "--json",
        ])?;
        self.link_may_go = true;
        self.moltis(&["node", "revoke", NODE])?;
        self.stop_gateway()?;
        self.keep_up()?;
        self.judge(&much, &long)
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("strace")
    }

    fn home_of(&self, who: Who) -> PathBuf {
        match who {
            Who::Gateway => self.home.gateway(),
            Who::Link | Who::Keeper => self.home.node(),
        }
    }

    /// Starts one of the programs, below strace where that is what the trial is for.
    fn start(&mut self, who: Who, words: &[&str]) -> anyhow::Result<Program> {
        let is_traced = self.under.who() == who && !self.was_traced;
        let home = self.home_of(who);
        let mut command;
        if is_traced {
            self.was_traced = true;
            command = Command::new("strace");
            command.args(["-f", "-qq", "-y", "-o"]).arg(self.log());
            match self.under {
                Under::Watch(_) => {
                    command.args(["-e", &format!("trace={}", points::calls())]);
                }
                Under::Kill(point) => {
                    command.args(["-e", &format!("trace={}", point.call)]);
                    command.args(["-e", &point.inject()]);
                    if let Some(path) = &point.path {
                        command.arg("-P").arg(home.join(path));
                    }
                }
            }
            command.arg("--").arg(&self.site.binary);
        } else {
            command = Command::new(&self.site.binary);
        }
        command.args(words);
        in_home(&mut command, &home);
        Ok(Program {
            running: Background::start(&mut command)?,
            is_traced,
            was_seen: false,
        })
    }

    /// Starts what is not there, as its service would.
    fn keep_up(&mut self) -> anyhow::Result<()> {
        if stop::asked() {
            bail!("stopped");
        }
        if Instant::now() > self.until {
            let waits_for = self.waits_for.take().unwrap_or_default();
            bail!("it took too long, with {waits_for}{}", self.said());
        }
        let link_may_go = self.link_may_go;
        let programs = [
            (&mut self.gateway, false),
            (&mut self.link, link_may_go),
            (&mut self.keeper, false),
        ];
        for (program, may_go) in programs {
            if let Some(one) = program
                && let Err(error) = one.check_alive()
            {
                if !one.is_traced && !may_go {
                    return Err(error);
                }
                self.was_killed |= one.is_traced;
                *program = None;
            }
        }
        if self.under.who() != Who::Gateway && !self.had_keeper {
            // Whoever finds a keeper starts none, and the link's calls are its own.
            self.had_keeper = true;
            let runs = self.home.node().join("runs");
            fs::create_dir_all(&runs)?;
            let dir = runs.display().to_string();
            self.keeper = Some(self.start(Who::Keeper, &["keeper", "--dir", &dir])?);
        }
        if self.gateway.is_none() {
            let listen = self.address.clone().unwrap_or("127.0.0.1:0".to_owned());
            let mut gateway = self.start(Who::Gateway, &["gateway", "--listen", &listen])?;
            let found = gateway.running.find(STEP, |line| {
                let address = line.text.strip_prefix("listening on http://")?;
                Some(address.trim().to_owned())
            });
            match found {
                Ok(address) => self.address = Some(address),
                Err(error) if !gateway.is_traced => return Err(error),
                Err(_) => {
                    self.was_killed = true;
                    return self.keep_up();
                }
            }
            self.gateway = Some(gateway);
        }
        Ok(())
    }

    fn said(&self) -> String {
        let programs = [&self.gateway, &self.link, &self.keeper];
        let said = programs.map(|one| one.as_ref().map(|one| one.running.said()));
        said.into_iter().flatten().collect()
    }

    /// Does something until it is done.
    fn until_done<T>(
        &mut self,
        mut act: impl FnMut(&mut Self) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        loop {
            self.keep_up()?;
            if let Some(done) = act(self)? {
                return Ok(done);
            }
            thread::sleep(TICK);
        }
    }

    /// Runs `moltis` until it succeeds, and returns what it prints.
    fn moltis(&mut self, words: &[&str]) -> anyhow::Result<String> {
        self.until_done(|trial| {
            let said = process::output(&mut trial.site.moltis(words), STEP)?;
            // It was done, and the answer was lost.
            let is_done = said.status.success() || said.stderr.contains("already");
            Ok(is_done.then_some(said.stdout))
        })
    }

    fn json(&mut self, words: &[&str]) -> anyhow::Result<Value> {
        let text = self.moltis(words)?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    fn node_state(&mut self) -> anyhow::Result<Option<String>> {
        let list = self.json(&["node", "list", "--all", "--json"])?;
        let nodes = list.as_array().context("no list")?;
        let ours = nodes.iter().find(|node| node["id"] == NODE);
        Ok(ours.and_then(|node| node["state"].as_str().map(str::to_owned)))
    }

    /// Joins the node, from an open window to the first connection that it remembers.
    fn pair(&mut self) -> anyhow::Result<()> {
        self.until_done(|trial| {
            let state = trial.node_state()?;
            if state.as_deref() == Some("online") && trial.is_pinned() {
                return Ok(Some(()));
            }
            if trial.link.is_none() {
                trial.moltis(&["node", "pairing", "enable"])?;
                let address = trial.address.clone().unwrap_or_default();
                let url = format!("ws://{address}/ws");
                let words = [
                    "node",
                    "add",
                    "--foreground",
                    "--name",
                    NODE,
                    "--node-id",
                    NODE,
                ];
                let words = [&words[..], &["--host", &url]].concat();
                trial.link = Some(trial.start(Who::Link, &words)?);
            }
            let pending = trial.json(&["node", "pending", "--json"])?;
            if let Some(id) = pending[0]["id"].as_str() {
                let approve = ["node", "approve", id, "--yes"];
                process::output(&mut trial.site.moltis(&approve), STEP)?;
            }
            Ok(None)
        })
    }

    /// Returns whether the node knows its gateway from now on.
    fn is_pinned(&self) -> bool {
        let text = fs::read_to_string(self.home.node().join("node.json"));
        let json: Option<Value> = text.ok().and_then(|text| serde_json::from_str(&text).ok());
        json.is_some_and(|node| node["gateway_key"].is_string())
    }

    /// Keeps the link up, which knows its gateway by now.
    fn keep_linked(&mut self) -> anyhow::Result<()> {
        if self.link.is_none() {
            self.link = Some(self.start(Who::Link, &["node", "run"])?);
        }
        Ok(())
    }

    /// Asks for a command under a key until it is over, and returns the run.
    fn keyed(&mut self, key: &str, line: &str, cancels: bool) -> anyhow::Result<Value> {
        let body = json!({
            "node": NODE,
            "command": format!("echo start >> {STARTS}; {line}"),
            "cwd": self.site.work.join(key),
        });
        let mut known = None;
        self.until_done(|trial| {
            trial.keep_linked()?;
            let Ok(mut client) = trial.site.connect() else {
                return Ok(None);
            };
            let run = match client.call_keyed("/api/v1/runs", key, &body) {
                Ok((200 | 201, run)) => run,
                Ok((409, problem)) if problem["code"] == "node_offline" => return Ok(None),
                Ok((429 | 503, _)) | Err(_) => return Ok(None),
                Ok((status, answer)) => bail!("{key} is answered with {status}: {answer}"),
            };
            let id = known.get_or_insert_with(|| run["id"].clone());
            if *id != run["id"] {
                bail!("{key} was run {id}, and is {run}");
            }
            if cancels && run["stdout_bytes"] != 0 {
                let path = format!(
                    "/api/v1/runs/{}/cancel",
                    run["id"].as_str().unwrap_or_default()
                );
                client.call("POST", &path, &json!({})).ok(); // asked again, where it was cut
            }
            trial.waits_for = Some(run.clone());
            Ok((run["state"] == "ended").then_some(run))
        })
    }

    fn much(&mut self) -> anyhow::Result<Value> {
        self.keyed("much", &format!("seq -f 'o%09.0f' 1 {LINES}"), false)
    }

    fn cancelled(&mut self) -> anyhow::Result<Value> {
        self.keyed("long", "echo up; exec sleep 90", true)
    }

    /// Ends the gateway in good order, below strace too.
    fn stop_gateway(&mut self) -> anyhow::Result<()> {
        self.keep_up()?;
        let Some(mut gateway) = self.gateway.take() else {
            return Ok(());
        };
        let pid = gateway.running.id();
        let below = process::descendants(&[pid]);
        let pids = if gateway.is_traced { below } else { vec![pid] };
        for pid in pids {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            pid.map(|pid| kill_process(pid, Signal::TERM));
        }
        let status = gateway.running.wait(STEP)?;
        self.was_killed |= gateway.is_traced && !status.success();
        Ok(())
    }

    /// Looks at what is left, as a gateway that was started anew tells it.
    fn judge(&mut self, much: &Value, long: &Value) -> anyhow::Result<Vec<String>> {
        let mut complaints = Vec::new();
        let runs = self.site.runs()?;
        if runs.len() != 2 {
            complaints.push(format!("two runs were asked for, and there are {runs:?}"));
        }
        let mut printed = String::new();
        for number in 1..=LINES {
            writeln!(printed, "o{number:09}")?;
        }
        let known = [
            ("much", much, "exited", printed),
            ("long", long, "cancelled", "up\n".to_owned()),
        ];
        for (key, told, outcome, printed) in known {
            let id = told["id"].as_str().context("no id")?;
            let run = self.site.run(id, self.until)?;
            let starts = self.site.starts(key, STARTS);
            let kept = self.site.kept(&run, "stdout")?;
            if self.was_forgotten(&run) {
                if starts != 1 {
                    complaints.push(format!("{key} began {starts} times, and is {run}"));
                }
                continue;
            }
            if run["outcome"] != told["outcome"] || run["exit_code"] != told["exit_code"] {
                complaints.push(format!("{key} was told to be {told}, and is {run}"));
            }
            complaints.extend(kept.differs_from(printed.as_bytes()));
            let outcomes = (&run["outcome"], &run["outcome_reason"]);
            let keeper_died = self.was_killed && self.under.who() == Who::Keeper;
            let is_right = if *outcomes.0 == outcome {
                let is_whole = kept.bytes() == printed.len() as u64 || key == "long";
                starts == 1 && (keeper_died || (is_whole && kept.gaps.is_empty()))
            } else if *outcomes.0 == "failed_to_start" && *outcomes.1 == "not_started" {
                starts == 0 && self.was_killed
            } else {
                let is_lost = *outcomes.0 == "lost";
                let reasons = ["keeper_died", "journal_wiped"];
                let is_reason = reasons.iter().any(|reason| *outcomes.1 == **reason);
                starts <= 1 && keeper_died && is_lost && is_reason
            };
            if !is_right {
                let (bytes, gaps) = (kept.bytes(), &kept.gaps);
                complaints.push(format!(
                    "{key} began {starts} times, has {bytes} bytes and the gaps {gaps:?}: {run}"
                ));
            }
        }
        let state = self.node_state()?;
        if state.as_deref() != Some("revoked") {
            complaints.push(format!("the node was revoked, and is {state:?}"));
        }
        let tokens = self.moltis(&["token", "list", "--json"])?;
        if tokens.matches("\"kept\"").count() != 1 {
            complaints.push(format!("one token was made, and there are {tokens}"));
        }
        complaints.extend(self.site.errors_of_the_doctor()?);
        Ok(complaints)
    }

    /// Returns whether a run's ending was told and not written when its gateway was killed, and its
    /// node, which would have brought it again, is revoked (ADR 9).
    fn was_forgotten(&self, run: &Value) -> bool {
        let gateway_died = self.was_killed && self.under.who() == Who::Gateway;
        gateway_died && run["outcome"] == "lost" && run["outcome_reason"] == "node_revoked"
    }

    /// Ends everything.
    fn end(&mut self) {
        let mut pids = process::running(&self.site.binary, self.home.path());
        pids.extend(process::descendants(&pids.clone()));
        for program in [&mut self.link, &mut self.gateway, &mut self.keeper] {
            if let Some(one) = program.take() {
                pids.extend(process::descendants(&[one.running.id()]));
                drop(one);
            }
        }
        process::end_strangers(&pids);
        self.home.remove().ok(); // a last file may still be written; the folder is under target/
    }
}
