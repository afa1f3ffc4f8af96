//! `cargo xtask bench [--write] [--short]`: ours, the floor and OpenSSH, measured in turn.
//!
//! Everything is real: a release build, a gateway and a node with their keepers, an OpenSSH server on
//! loopback. Each ratio is printed beside its target; `--write` puts all of it into `docs/figures.md`.
//! It reads `/proc`, so it runs on Linux.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use self::cost::Watch;
use self::lanes::{Lane, Runner, Times, median};
use self::ours::Api;
use self::report::{Report, Target, number};
use self::ssh::Ssh;
use crate::process;
use crate::say;
use crate::stage::{self, NODE, Stage};
use crate::stop;
use crate::workspace;

mod cost;
mod http;
mod lanes;
mod mux;
mod ours;
mod report;
mod ssh;

/// What runs when nothing should: the shell and an end.
const NOTHING: &str = "true";

/// One GiB.
const GIB: u64 = 1 << 30;

/// OpenSSH's default, and its quickest where the processor has AES.
const CIPHERS: [&str; 2] = ["chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com"];

/// How much is measured.
struct Size {
    rounds: usize,
    window: Duration,
    windows: usize,
    floods: usize,
    cpu_runs: u32,
}

const FULL: Size = Size {
    rounds: 60,
    window: Duration::from_millis(1500),
    windows: 3,
    floods: 3,
    cpu_runs: 2000,
};

const SHORT: Size = Size {
    rounds: 5,
    window: Duration::from_millis(300),
    windows: 1,
    floods: 1,
    cpu_runs: 200,
};

/// `cargo xtask bench`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    if let Some(word) = words
        .iter()
        .find(|word| !matches!(&***word, "--write" | "--short"))
    {
        bail!("`cargo xtask bench` takes `--write` and `--short`, not `{word}`");
    }
    if !cfg!(target_os = "linux") {
        bail!("the bench reads /proc, so it runs on Linux");
    }
    let has = |flag: &str| words.iter().any(|word| word == flag);
    let size = if has("--short") { SHORT } else { FULL };
    if cfg!(debug_assertions) {
        return as_release(words);
    }
    stop::listen()?;
    let mut report = Report::default();
    measure(&size, &mut report)?;
    let missed = report.conclude();
    if missed > 0 {
        say::line(&format!(
            "\n{missed} missed; docs/figures.md says by how much, and why"
        ));
    }
    if has("--write") {
        report.write()?;
    }
    Ok(())
}

/// Builds the release, this program with it, and goes on as that: what measures must not be slower
/// than what it measures.
fn as_release(words: &[String]) -> anyhow::Result<()> {
    say::line("Building the release: about five minutes on two cores the first time.");
    stage::build("release")?;
    let mut itself = Command::new(workspace::target().join("release/xtask"));
    Err(itself.arg("bench").args(words).exec()).context("starting the bench as a release build")
}

fn measure(size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let binary = fs::canonicalize(workspace::binary("release"))?;
    describe_machine(report)?;
    let ssh = Ssh::start(&CIPHERS)?;
    if let Some(doubt) = ssh.doubt() {
        report.note(format!("not quite fair: {doubt}"));
    }

    starts(&binary, size, report)?;
    let mut stage = Stage::open(&binary)?;
    stage.join()?;
    let api = Api::new(&stage.gateway_home());
    api.runner(NODE, NOTHING)?()?; // the keeper is there from now on
    let pids = Pids::of(&stage)?;
    idle(&pids, report)?;

    let lanes = lanes(&stage, &api, &ssh);
    latencies(&lanes, size, report)?;
    rates(&lanes, size, report)?;
    processor(&api, &pids, size, report)?;
    floods(&stage, &api, &ssh, &pids, size, report)?;
    let bytes = fs::metadata(&binary)?.len();
    report.verdict(
        "release binary, without the web UI",
        mega(bytes),
        "MB",
        Target::AtMost(25.0),
    );
    drop(lanes);
    stage.close()
}

/// The processes that a run on the node goes through.
struct Pids {
    gateway: u32,
    link: u32,
    keeper: u32,
}

impl Pids {
    fn of(stage: &Stage) -> anyhow::Result<Self> {
        let (gateway, link) = (stage.gateway_id(), stage.node_id().context("no node")?);
        let keepers = stage.keepers();
        let [keeper] = keepers[..] else {
            bail!("expected one keeper, found {keepers:?}");
        };
        Ok(Self {
            gateway,
            link,
            keeper,
        })
    }

    fn all(&self) -> [u32; 3] {
        [self.gateway, self.link, self.keeper]
    }
}

fn describe_machine(report: &mut Report) -> anyhow::Result<()> {
    let word = |program: &str, words: &[&str]| {
        process::output(Command::new(program).args(words), stage::STEP).map(|output| {
            format!("{}{}", output.stdout, output.stderr)
                .trim()
                .to_owned()
        })
    };
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, model)| model.trim());
    let cores = thread::available_parallelism()?;
    report.note(format!("{cores} × {model}, {}", word("uname", &["-sr"])?));
    report.note(word("ssh", &["-V"])?);
    report.note(word("date", &["-u", "+%Y-%m-%d"])?);
    Ok(())
}

/// From the start of the process to the first answer, in a new home and in one that was used.
fn starts(binary: &Path, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let times = Stage::time_starts(binary, size.floods + 2, |home| Api::new(home).is_ready())?;
    let ms: Vec<_> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    let (new, used) = (ms[0], median(ms[1..].to_vec()));
    report.verdict(
        "gateway start to first answer, new home",
        new,
        "ms",
        Target::AtMost(150.0),
    );
    report.verdict(
        "gateway start to first answer, used home",
        used,
        "ms",
        Target::AtMost(150.0),
    );
    Ok(())
}

fn idle(pids: &Pids, report: &mut Report) -> anyhow::Result<()> {
    thread::sleep(Duration::from_secs(2)); // what was needed to join is freed by now, or never
    let mut verdict = |what: &str, pid: u32, target| {
        let size = cost::resident(&[pid])?;
        report.verdict(what, size, "MiB", target);
        anyhow::Ok(())
    };
    verdict(
        "gateway, idle, resident",
        pids.gateway,
        Target::AtMost(25.0),
    )?;
    verdict(
        "node (link), idle, resident",
        pids.link,
        Target::AtMost(10.0),
    )?;
    verdict("keeper, idle, resident", pids.keeper, Target::None)
}

// The lanes, by their place in the list.
const SPAWN: usize = 0;
const API_LOCAL: usize = 1;
const API_NODE: usize = 2;
const EXEC: usize = 3;
const MUX: usize = 4;
const SSH: usize = 5;

fn lanes<'a>(stage: &'a Stage, api: &'a Api, ssh: &'a Ssh) -> Vec<Lane<'a>> {
    vec![
        Lane {
            name: "local spawn (`sh -c true`)",
            turn: 20,
            make: Box::new(|| {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", NOTHING]);
                Ok(program(shell))
            }),
        },
        Lane {
            name: "ours, API, local",
            turn: 20,
            make: Box::new(|| api.runner("local", NOTHING)),
        },
        Lane {
            name: "ours, API, node",
            turn: 20,
            make: Box::new(|| api.runner(NODE, NOTHING)),
        },
        Lane {
            name: "ours, `moltis node exec`",
            turn: 5,
            make: Box::new(|| {
                Ok(program(
                    stage.moltis(&["node", "exec", NODE, "--shell", NOTHING]),
                ))
            }),
        },
        Lane {
            name: "OpenSSH, mux socket",
            turn: 20,
            make: Box::new(|| {
                let socket = ssh.socket(CIPHERS[0]);
                Ok(Box::new(move || over_mux(&socket, NOTHING).map(drop)))
            }),
        },
        Lane {
            name: "OpenSSH, `ssh` on a master",
            turn: 5,
            make: Box::new(|| Ok(program(ssh.command(CIPHERS[0], NOTHING)))),
        },
    ]
}

/// Returns a runner that starts a program each time and collects what it prints.
fn program(mut command: Command) -> Runner {
    command.stdin(Stdio::null());
    Box::new(move || {
        let output = command.output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "`{}` ended with {}: {}",
                process::shown(&command),
                output.status,
                said.trim()
            );
        }
        Ok(())
    })
}

/// Runs a command over a master's socket and returns how many bytes it printed.
fn over_mux(socket: &Path, command: &str) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let code = mux::run(socket, command, |mut out| {
        bytes = io::copy(&mut out, &mut io::sink())?;
        Ok(())
    })?;
    if code != 0 {
        bail!("`{command}` ended with {code} over the mux socket");
    }
    Ok(bytes)
}

/// One command at a time: p50 and p99 of every lane.
fn latencies(lanes: &[Lane<'_>], size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let times = lanes::one_at_a_time(lanes, size.rounds)?;
    let row = |(lane, times): (&Lane<'_>, &Times)| {
        let shown = [50, 90, 99].map(|percent| number(times.percentile(percent)));
        [
            vec![lane.name.to_owned()],
            shown.to_vec(),
            vec![times.count().to_string()],
        ]
        .concat()
    };
    report.table(
        "one command at a time, ms",
        &["way", "p50", "p90", "p99", "runs"],
        lanes.iter().zip(&times).map(row).collect(),
    );
    let ratio = |one: usize, other: usize, percent| {
        times[one].percentile(percent) / times[other].percentile(percent)
    };
    let mut verdict = |what: &str, one, other, percent, bound| {
        report.verdict(what, ratio(one, other, percent), "×", Target::AtMost(bound));
    };
    verdict("exec p50: API / OpenSSH mux socket", API_NODE, MUX, 50, 0.6);
    verdict(
        "exec p50: API / local spawn (goal)",
        API_NODE,
        SPAWN,
        50,
        1.5,
    );
    verdict(
        "exec p50: `node exec` / `ssh` on a master",
        EXEC,
        SSH,
        50,
        1.0,
    );
    verdict("exec p99: API / local spawn", API_NODE, SPAWN, 99, 2.0);
    let apart = |one: usize, other: usize| times[one].percentile(50) - times[other].percentile(50);
    report.verdict(
        "keeper, row and API: local run less spawn, p50",
        apart(API_LOCAL, SPAWN),
        "ms",
        Target::None,
    );
    report.verdict(
        "link, channel and network: node run less local run, p50",
        apart(API_NODE, API_LOCAL),
        "ms",
        Target::None,
    );
    Ok(())
}

/// Many commands at a time: runs a second.
fn rates(lanes: &[Lane<'_>], size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let measured = [SPAWN, API_LOCAL, API_NODE, MUX];
    let crowds = [1, 8, 32];
    let mut rates = vec![vec![Vec::new(); crowds.len()]; measured.len()];
    for _ in 0..size.windows {
        for (column, crowd) in crowds.iter().enumerate() {
            for (row, lane) in measured.iter().enumerate() {
                rates[row][column].push(lanes::rate(&lanes[*lane], *crowd, size.window)?);
            }
        }
    }
    let rates: Vec<Vec<f64>> = rates
        .into_iter()
        .map(|row| row.into_iter().map(median).collect())
        .collect();
    let row = |(lane, rates): (&usize, &Vec<f64>)| {
        let mut row = vec![lanes[*lane].name.to_owned()];
        row.extend(rates.iter().map(|rate| number(*rate)));
        row
    };
    report.table(
        "runs a second",
        &["way", "1 at a time", "8", "32"],
        measured.iter().zip(&rates).map(row).collect(),
    );
    let (ours, theirs) = (rates[2][2], rates[3][2]);
    report.verdict(
        "runs a second, 32 at a time: API / OpenSSH mux socket",
        ours / theirs,
        "×",
        Target::AtLeast(2.0),
    );
    Ok(())
}

/// Processor time of gateway, link and keeper for one run, over that of a bare spawn.
fn processor(api: &Api, pids: &Pids, size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let of_all = || {
        pids.all()
            .into_iter()
            .map(cost::processor_ms)
            .sum::<anyhow::Result<f64>>()
    };
    let of_us = || cost::processor_ms(std::process::id());
    let per_run = |mut runner: Runner, cost: &dyn Fn() -> anyhow::Result<f64>| {
        let before = cost()?;
        for _ in 0..size.cpu_runs {
            runner()?;
        }
        anyhow::Ok((cost()? - before) / f64::from(size.cpu_runs))
    };
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", NOTHING]);
    let spawn = per_run(program(shell), &of_us)?;
    let ours = per_run(api.runner(NODE, NOTHING)?, &of_all)?;
    report.verdict(
        "CPU for a spawn, in whoever spawns",
        spawn,
        "ms",
        Target::None,
    );
    report.verdict(
        "CPU for a run, gateway + link + keeper",
        ours,
        "ms",
        Target::None,
    );
    report.verdict(
        "CPU for a run, over the spawn",
        ours - spawn,
        "ms",
        Target::AtMost(1.5),
    );
    Ok(())
}

/// A way to have a GiB printed: its name, and what does it and returns how many bytes came.
type Way<'a> = (&'static str, Box<dyn Fn() -> anyhow::Result<u64> + 'a>);

/// One GiB of stdout to the caller, each way in turn.
fn floods(
    stage: &Stage,
    api: &Api,
    ssh: &Ssh,
    pids: &Pids,
    size: &Size,
    report: &mut Report,
) -> anyhow::Result<()> {
    let command = format!("head -c {GIB} /dev/zero");
    let sockets = CIPHERS.map(|cipher| ssh.socket(cipher));
    let by_exec = || {
        let mut exec = stage.moltis(&["node", "exec", NODE, "--shell", &command]);
        let mut child = exec.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut out = child.stdout.take().context("a pipe was asked for")?;
        let bytes = io::copy(&mut out, &mut io::sink())?;
        if !child.wait()?.success() {
            bail!("`{}` failed", process::shown(&exec));
        }
        Ok(bytes)
    };
    let ways: [Way<'_>; 4] = [
        (
            "ours, API, followed",
            Box::new(|| api.follow(NODE, &command)),
        ),
        ("ours, `moltis node exec`", Box::new(by_exec)),
        (
            "OpenSSH, chacha20-poly1305",
            Box::new(|| over_mux(&sockets[0], &command)),
        ),
        (
            "OpenSSH, aes128-gcm",
            Box::new(|| over_mux(&sockets[1], &command)),
        ),
    ];
    let watch = Watch::start(&pids.all());
    let mut speeds = vec![Vec::new(); ways.len()];
    for _ in 0..size.floods {
        for ((name, way), speeds) in ways.iter().zip(&mut speeds) {
            let since = Instant::now();
            let bytes = way()?;
            if bytes != GIB {
                bail!("{name}: {bytes} bytes of {GIB} arrived");
            }
            speeds.push(mega(GIB) / since.elapsed().as_secs_f64());
            if stop::asked() {
                bail!("stopped");
            }
        }
    }
    let growth = watch.growth();
    let best = |speeds: &Vec<f64>| speeds.iter().copied().fold(0.0, f64::max);
    let row = |((name, _), speeds): (&Way<'_>, &Vec<f64>)| {
        vec![
            (*name).to_owned(),
            number(median(speeds.clone())),
            number(best(speeds)),
        ]
    };
    report.table(
        "1 GiB of stdout, MB/s",
        &["way", "median", "best"],
        ways.iter().zip(&speeds).map(row).collect(),
    );
    let [api, exec, chacha, aes] = [0, 1, 2, 3].map(|way: usize| median(speeds[way].clone()));
    report.verdict(
        "1 GiB: API / OpenSSH chacha20",
        api / chacha,
        "×",
        Target::AtLeast(1.0),
    );
    report.verdict(
        "1 GiB: API / OpenSSH aes128-gcm",
        api / aes,
        "×",
        Target::None,
    );
    report.verdict(
        "1 GiB: `node exec` / OpenSSH chacha20",
        exec / chacha,
        "×",
        Target::AtLeast(1.0),
    );
    report.verdict(
        "1 GiB: API (goal, with AES)",
        api,
        "MB/s",
        Target::AtLeast(1000.0),
    );
    for (name, growth) in ["gateway", "link", "keeper"].iter().zip(growth) {
        let what = format!("growth of the {name} during 1 GiB");
        report.verdict(&what, growth, "MiB", Target::AtMost(32.0));
    }
    Ok(())
}

/// Returns bytes as millions of bytes.
#[expect(clippy::cast_precision_loss, reason = "sizes here stay far below 2^52")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
