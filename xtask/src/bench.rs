//! `cargo xtask bench [--write] [--short]`: ours, the floor and OpenSSH, measured in turn.
//!
//! Everything is real: a release build, a gateway and a node with their keepers, an OpenSSH server on
//! loopback. Each ratio is printed beside its target; `--write` puts all of it into `docs/figures.md`.
//! It reads `/proc`, so it runs on Linux.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};

use self::commands::NOTHING;
use self::lanes::median;
use self::ours::Api;
use self::report::{Report, Target};
use self::ssh::Ssh;
use crate::process;
use crate::say;
use crate::stage::{self, NODE, Stage};
use crate::stop;
use crate::workspace;

mod apart;
mod commands;
pub(crate) mod cost;
mod floods;
pub(crate) mod lanes;
mod mux;
pub(crate) mod ours;
pub(crate) mod report;
mod ssh;

/// OpenSSH's default, and its quickest where the processor has AES.
const CIPHERS: [&str; 2] = ["chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com"];

/// A line of the log is read by this very program, on the same cores: only warnings are written. And
/// stored floods are let go, so that the next one finds the memory that the last one had.
const CONFIG: &str = "[log]\nfilter = \"warn\"\n\n[runs]\nkeep_bytes = 2_147_483_648\n";

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
    cpu_runs: 200,
};

const SHORT: Size = Size {
    rounds: 5,
    window: Duration::from_millis(300),
    windows: 1,
    floods: 1,
    cpu_runs: 20,
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
    let mut stage = Stage::open_with(&binary, CONFIG)?;
    stage.join()?;
    let api = Api::new(&stage.gateway_home());
    api.runner(NODE, NOTHING)?()?; // the keeper is there from now on
    let pids = Pids::of(&stage)?;
    idle(&pids, report)?;

    let lanes = commands::lanes(&stage, &api, &ssh);
    commands::latencies(&lanes, size, report)?;
    commands::rates(&lanes, size, report)?;
    commands::processor(&api, &pids, size, report)?;
    let bytes = fs::metadata(&binary)?.len();
    report.verdict(
        "release binary, without the web UI",
        mega(bytes),
        "MB",
        Target::AtMost(25.0),
    );
    drop(lanes);
    stage.close()?;

    // What grows during a flood must not hide in what many runs have grown before.
    let mut fresh = Stage::open_with(&binary, CONFIG)?;
    fresh.join()?;
    floods::floods(&fresh, &ssh, size, report)?;
    fresh.close()?;
    apart::figures(report)
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

pub(crate) fn describe_machine(report: &mut Report) -> anyhow::Result<()> {
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

/// Runs a command over a master's socket and returns how many bytes it printed.
fn over_mux(socket: &Path, command: &str) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let code = mux::run(socket, command, |out| {
        bytes = drain(out)?;
        Ok(())
    })?;
    if code != 0 {
        bail!("`{command}` ended with {code} over the mux socket");
    }
    Ok(bytes)
}

/// Reads to the end and returns how many bytes there were. Every way is read like this, with the same
/// room.
pub(crate) fn drain(mut from: impl Read) -> io::Result<u64> {
    let mut room = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        match from.read(&mut room)? {
            0 => return Ok(bytes),
            read => bytes += read as u64,
        }
    }
}

/// Returns bytes as millions of bytes.
#[expect(clippy::cast_precision_loss, reason = "sizes here stay far below 2^52")]
pub(crate) fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
