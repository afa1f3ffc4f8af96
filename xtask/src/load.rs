//! `cargo xtask load [--nodes 10000] [--short] [--write]`: ten thousand nodes on one gateway.
//!
//! Everything is real but the machines: a release build of the gateway, and a fleet of protocol
//! clients in one process (`moltis-sim load`), over several loopback addresses. Measured are the
//! memory of an idle node, all coming back after a restart, commands on a thousand nodes, the list,
//! and a run beside a crowd of strangers. Each figure is printed beside its target; `--write` puts
//! them into `docs/figures.md`. It reads `/proc`, so it runs on Linux.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Resource, getrlimit};
use serde_json::Value;

use self::gateway::{Ending, Gateway};
use self::sim::{Counts, Sim};
use crate::bench::lanes::{Runner, Times};
use crate::bench::ours::Api;
use crate::bench::report::{Report, Target, number};
use crate::http::Client;
use crate::{bench, process, say, stage, stop};

mod gateway;
mod sim;

/// How long all nodes may take to be connected.
const ALL_BACK: Duration = Duration::from_mins(3);

/// Descriptors that a process needs beside its nodes: strangers, files, streams.
const BESIDE: u64 = 5000;

/// What the play of a keeper does with it: nothing, and well.
const COMMAND: &str = "exit 0";

/// How much is measured.
struct Size {
    nodes: u32,
    /// The time after which a connection is idle: a ping of the gateway gives back what a busy time
    /// has grown, and a sample has come.
    quiet: Duration,
    lists: usize,
    rounds: usize,
    /// One turn of runs, calm or beside strangers.
    turn: Duration,
    fan_out: u32,
}

const FULL: Size = Size {
    nodes: 10_000,
    quiet: Duration::from_mins(1),
    lists: 50,
    rounds: 6,
    turn: Duration::from_secs(4),
    fan_out: 1000,
};

const SHORT: Size = Size {
    nodes: 2000,
    quiet: Duration::from_secs(35),
    lists: 10,
    rounds: 2,
    turn: Duration::from_secs(2),
    fan_out: 200,
};

/// `cargo xtask load`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    let (size, write) = read(words)?;
    if !cfg!(target_os = "linux") {
        bail!("a load run reads /proc, so it runs on Linux");
    }
    let needed = u64::from(size.nodes) + BESIDE;
    if let Some(most) = getrlimit(Resource::Nofile).maximum
        && most < needed
    {
        bail!(
            "{} nodes need {needed} descriptors in one process, and the hard limit here is {most} \
             (`ulimit -Hn`): raise it, or ask for fewer with `--nodes`",
            size.nodes
        );
    }
    say::line("Building the release: about five minutes on two cores the first time.");
    let moltis = stage::build("release")?;
    let mut report = Report::default();
    bench::describe_machine(&mut report)?;
    let mut hall = Hall::open(&moltis, size, &mut report)?;
    hall.measure(&mut report)?;
    let missed = report.conclude();
    if missed > 0 {
        say::line(&format!("\n{missed} missed"));
    }
    if write {
        let nodes = hall.size.nodes;
        report.write_load(&format!(
            "## {nodes} nodes on one gateway\n\nWritten by `cargo xtask load --write`. The nodes are \
             real protocol clients in one process on the same machine, so the gateway had about half \
             of it; its own processor time does not depend on that.\n\n"
        ))?;
    }
    Ok(())
}

/// Reads the words of the command line: how much to measure, and whether to write it down.
fn read(words: &[String]) -> anyhow::Result<(Size, bool)> {
    let has = |flag: &str| words.iter().any(|word| word == flag);
    let mut size = if has("--short") { SHORT } else { FULL };
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match &**word {
            "--short" | "--write" => {}
            "--nodes" => {
                let nodes = rest.next().context("`--nodes` needs a number")?;
                size.nodes = nodes
                    .parse()
                    .with_context(|| format!("`--nodes {nodes}`"))?;
                size.fan_out = size.fan_out.min(size.nodes);
            }
            other => {
                bail!("`cargo xtask load` takes `--nodes <n>`, `--short`, `--write`, not `{other}`")
            }
        }
    }
    if size.nodes == 0 {
        bail!("`--nodes` is at least 1");
    }
    Ok((size, has("--write")))
}

/// A gateway and its fleet.
struct Hall {
    fleet: Sim,
    gateway: Gateway,
    sim: PathBuf,
    size: Size,
    /// What a gateway that knows nobody has in memory, in MiB.
    empty: f64,
}

impl Hall {
    fn open(moltis: &Path, size: Size, report: &mut Report) -> anyhow::Result<Self> {
        let sim = fs::canonicalize(moltis.with_file_name("moltis-sim"))?;
        let nobody = Gateway::start(moltis, |_| Ok(()))?;
        thread::sleep(Duration::from_secs(2)); // what the start needed is freed by then, or never
        let empty = nobody.resident()?;
        drop(nobody);
        let gateway = Gateway::start(moltis, |home| sim::seed(&sim, home, size.nodes))?;
        let started_in = gateway.started_in().as_secs_f64() * 1e3;
        report.verdict(
            "start with that many known nodes",
            started_in,
            "ms",
            Target::None,
        );
        let fleet = Sim::nodes(&sim, gateway.address(), size.nodes)?;
        Ok(Self {
            fleet,
            gateway,
            sim,
            size,
            empty,
        })
    }

    fn measure(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let mut rows = vec![self.all_connected("the first time", None)?];
        self.idle(report)?;
        self.lists(report)?;
        self.fan_out(report)?;
        self.beside_strangers(report)?;
        for (name, ending) in [
            ("after SIGKILL", Ending::Killed),
            ("after SIGTERM", Ending::Asked),
        ] {
            rows.push(self.all_connected(name, Some(ending))?);
        }
        for row in &rows {
            report.verdict(
                &format!("gateway CPU until all are connected, {}", row.name),
                row.processor_seconds,
                "s",
                Target::AtMost(5.0),
            );
        }
        let failed: u64 = rows.iter().map(|row| row.failed).sum();
        report.verdict(
            "attempts that failed in all of them",
            count(failed),
            "",
            Target::AtMost(0.0),
        );
        let head = [
            "",
            "all back, s",
            "gateway CPU, s",
            "dials",
            "told to come later",
            "failed",
        ];
        let rows = rows.iter().map(Back::cells).collect();
        report.table("all nodes connect", &head, rows);
        Ok(())
    }

    /// Waits until all nodes are connected: for the first time, or again after a restart.
    fn all_connected(&mut self, name: &str, ending: Option<Ending>) -> anyhow::Result<Back> {
        let nodes = u64::from(self.size.nodes);
        let before = match ending {
            Some(_) => self.fleet.counts()?,
            None => Counts::default(),
        };
        let mut ended_in = Duration::ZERO;
        if let Some(ending) = ending {
            ended_in = self.gateway.restart(ending)?;
        }
        let since = Instant::now();
        let wanted = before.of("accepted") + nodes;
        let after = self
            .fleet
            .wait("all nodes are connected", ALL_BACK, |now| {
                now.of("accepted") >= wanted && now.of("connected") == nodes
            })?;
        let more = |name: &str| after.of(name) - before.of(name);
        Ok(Back {
            name: name.to_owned(),
            seconds: (ended_in + since.elapsed()).as_secs_f64(),
            processor_seconds: self.gateway.processor_seconds()?,
            dialed: more("dialed"),
            told_later: more("told_later"),
            failed: more("broken") + more("refused") + more("closed"),
        })
    }

    /// Memory of idle nodes, and what their samples and heartbeats cost.
    fn idle(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let before = self.fleet.counts()?;
        let (since, used) = (Instant::now(), self.gateway.processor_seconds()?);
        while since.elapsed() < self.size.quiet && !stop::asked() {
            thread::sleep(process::TICK);
        }
        let used = self.gateway.processor_seconds()? - used;
        let seconds = since.elapsed().as_secs_f64();
        let after = self.fleet.counts()?;
        let nodes = f64::from(self.size.nodes);
        let kib = (self.gateway.resident()? - self.empty) * 1024.0 / nodes;
        report.verdict(
            "memory for an idle node with its state, in the gateway",
            kib,
            "KiB",
            Target::AtMost(12.0),
        );
        report.verdict(
            "gateway that knows nobody, resident",
            self.empty,
            "MiB",
            Target::None,
        );
        let samples = count(after.of("samples") - before.of("samples")) / seconds;
        report.verdict("samples of telemetry a second", samples, "", Target::None);
        let percent = 100.0 * used / seconds;
        report.verdict(
            "gateway CPU for samples and heartbeats",
            percent,
            "%",
            Target::None,
        );
        let own = self.fleet.resident()? * 1024.0 / nodes;
        report.verdict(
            "memory for a node in the fleet itself",
            own,
            "KiB",
            Target::None,
        );
        Ok(())
    }

    /// The list: a page over the API, and all of it on the command line.
    fn lists(&self, report: &mut Report) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.gateway.home().join("gateway.sock"))?;
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..self.size.lists {
            let since = Instant::now();
            bytes = bench::drain(client.stream("GET", "/api/v1/nodes", "")?)?;
            times.push(since.elapsed());
        }
        let times = Times::new(times);
        let since = Instant::now();
        let mut list = self.gateway.moltis(&["node", "list", "--json"]);
        let text = process::stdout_of(&mut list, stage::STEP)?;
        let cli = since.elapsed();
        let listed: Vec<Value> = serde_json::from_str(&text).context("`node list --json`")?;
        let online = listed.iter().filter(|node| node["state"] == "online");
        if online.count() != usize::try_from(self.size.nodes)? {
            bail!("`node list` does not show all nodes online");
        }
        for percent in [50, 99] {
            let what = format!("a page of `GET nodes`, p{percent}");
            report.verdict(&what, times.percentile(percent), "ms", Target::None);
        }
        report.verdict(
            "a page of `GET nodes`, size",
            bench::mega(bytes),
            "MB",
            Target::None,
        );
        let cli = cli.as_secs_f64() * 1e3;
        report.verdict("`moltis node list --json` of all", cli, "ms", Target::None);
        Ok(())
    }

    /// One command on many nodes, 32 at a time.
    fn fan_out(&self, report: &mut Report) -> anyhow::Result<()> {
        let api = Api::new(&self.gateway.home());
        let next = Mutex::new(0..self.size.fan_out);
        let (since, used) = (Instant::now(), self.gateway.processor_seconds()?);
        let done: anyhow::Result<()> = thread::scope(|scope| {
            let work = || -> anyhow::Result<()> {
                loop {
                    let number = next.lock().expect("nobody panics with it").next();
                    let Some(number) = number else { return Ok(()) };
                    api.runner(&name(number), COMMAND)?()?;
                }
            };
            let workers: Vec<_> = (0..32).map(|_| scope.spawn(work)).collect();
            let mut ended = workers.into_iter().map(thread::ScopedJoinHandle::join);
            ended.try_for_each(|ended| ended.expect("a worker does not panic"))
        });
        done?;
        let seconds = since.elapsed().as_secs_f64();
        let used = self.gateway.processor_seconds()? - used;
        let nodes = self.size.fan_out;
        let what = format!("one command on {nodes} nodes, 32 at a time");
        report.verdict(&what, seconds * 1e3, "ms", Target::None);
        let each = used * 1e3 / f64::from(nodes);
        report.verdict(
            "gateway CPU for each of these runs",
            each,
            "ms",
            Target::None,
        );
        Ok(())
    }

    /// Runs on an honest node, calm and beside strangers in turn.
    fn beside_strangers(&mut self, report: &mut Report) -> anyhow::Result<()> {
        let api = Api::new(&self.gateway.home());
        let mut runner = api.runner(&name(0), COMMAND)?;
        let lost = self.fleet.counts()?.of("lost");
        let mut times = [Vec::new(), Vec::new()];
        let mut crowd = Counts::default();
        for _ in 0..self.size.rounds {
            times[0].append(&mut runs(&mut runner, self.size.turn)?);
            let mut strangers = Sim::strangers(&self.sim, self.gateway.address())?;
            strangers.wait("strangers have come", stage::STEP, |now| {
                now.of("strangers") > 1000 && now.of("refused") > 100
            })?;
            times[1].append(&mut runs(&mut runner, self.size.turn)?);
            crowd = strangers.counts()?;
        }
        let lost = self.fleet.counts()?.of("lost") - lost;
        let [calm, beside] = times.map(Times::new);
        let row = |name: &str, times: &Times| {
            let figures = [50, 90, 99].map(|percent| number(times.percentile(percent)));
            let cells = [name.to_owned()].into_iter().chain(figures);
            cells.chain([times.count().to_string()]).collect()
        };
        report.table(
            "a run on an honest node, ms",
            &["", "p50", "p90", "p99", "runs"],
            vec![row("calm", &calm), row("beside strangers", &beside)],
        );
        report.note(format!(
            "strangers in the last round: {} connections held, {} dialled, {} refused by verdict, {} told to come later",
            crowd.of("strangers"), crowd.of("dialed"), crowd.of("refused"), crowd.of("told_later"),
        ));
        report.verdict(
            "p99 of a run beside strangers / calm",
            beside.percentile(99) / calm.percentile(99),
            "×",
            Target::AtMost(2.0),
        );
        report.verdict(
            "honest nodes that strangers cost their connection",
            count(lost),
            "",
            Target::AtMost(0.0),
        );
        Ok(())
    }
}

/// How all nodes came to be connected.
struct Back {
    name: String,
    seconds: f64,
    processor_seconds: f64,
    dialed: u64,
    told_later: u64,
    failed: u64,
}

impl Back {
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            number(self.seconds),
            number(self.processor_seconds),
            self.dialed.to_string(),
            self.told_later.to_string(),
            self.failed.to_string(),
        ]
    }
}

/// Runs one command after the other for so long, and returns how long each took.
fn runs(runner: &mut Runner, window: Duration) -> anyhow::Result<Vec<Duration>> {
    let begun = Instant::now();
    let mut times = Vec::new();
    while begun.elapsed() < window {
        if stop::asked() {
            bail!("stopped");
        }
        let since = Instant::now();
        runner()?;
        times.push(since.elapsed());
    }
    Ok(times)
}

/// Returns the name of a node of the fleet.
fn name(number: u32) -> String {
    format!("sim-{number:05}")
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts here stay far below 2^52"
)]
fn count(of: u64) -> f64 {
    of as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_command_line_is_read_and_what_it_does_not_know_is_named() {
        let (size, write) = read(&words("--nodes 300 --short --write")).unwrap();
        assert_eq!((size.nodes, size.fan_out, write), (300, 200, true));
        let (size, write) = read(&[]).unwrap();
        assert_eq!((size.nodes, write), (10_000, false));
        for wrong in ["--nodes", "--nodes many", "--nodes 0", "--fast"] {
            assert!(read(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
