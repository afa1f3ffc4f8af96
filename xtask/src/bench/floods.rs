//! One GiB of stdout from a child on the node to whoever asked, beside OpenSSH, and what it costs in
//! memory.
//!
//! Ours is stored as it passes, OpenSSH's is not. On a virtual machine a page of memory that was never
//! used costs its first user many times what the writing does, so as much memory as the stored
//! output takes is used once before the clock starts.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, bail};

use super::cost::Peak;
use super::lanes::median;
use super::ours::Api;
use super::report::{Report, Target, number};
use super::ssh::Ssh;
use super::{CIPHERS, NOTHING, Pids, Size, drain, mega, over_mux};
use crate::stage::{NODE, Stage};
use crate::{process, stop};

/// One GiB.
const GIB: u64 = 1 << 30;

/// A way to have a GiB printed: its name, and what does it and returns how many bytes came.
type Way<'a> = (&'static str, Box<dyn Fn() -> anyhow::Result<u64> + 'a>);

/// One GiB of stdout to the caller, each way in turn, through a gateway and a node that did nothing
/// before.
pub(super) fn floods(
    stage: &Stage,
    ssh: &Ssh,
    size: &Size,
    report: &mut Report,
) -> anyhow::Result<()> {
    let api = Api::new(&stage.gateway_home());
    api.runner(NODE, NOTHING)?()?; // the keeper is there from now on
    let pids = Pids::of(stage)?;
    let command = format!("head -c {GIB} /dev/zero");
    let sockets = CIPHERS.map(|cipher| ssh.socket(cipher));
    let by_program = |mut program: std::process::Command| {
        let mut child = program
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let bytes = drain(child.stdout.take().context("a pipe was asked for")?)?;
        if !child.wait()?.success() {
            bail!("`{}` failed", process::shown(&program));
        }
        Ok(bytes)
    };
    let ways: [Way<'_>; 5] = [
        (
            "ours, API, followed",
            Box::new(|| api.follow(NODE, &command)),
        ),
        (
            "ours, `moltis node exec`",
            Box::new(|| by_program(stage.moltis(&["node", "exec", NODE, "--shell", &command]))),
        ),
        (
            "OpenSSH, chacha20-poly1305",
            Box::new(|| over_mux(&sockets[0], &command)),
        ),
        (
            "OpenSSH, aes128-gcm",
            Box::new(|| over_mux(&sockets[1], &command)),
        ),
        (
            "OpenSSH, `ssh` on a master, chacha20",
            Box::new(|| by_program(ssh.command(CIPHERS[0], &command))),
        ),
    ];
    touch_memory(2 * GIB * size.floods as u64)?;
    let peak = Peak::over(&pids.all())?;
    let mut speeds = vec![Vec::new(); ways.len()];
    for round in 0..size.floods {
        for index in (0..ways.len()).map(|index| (index + round) % ways.len()) {
            let (name, way) = &ways[index];
            let since = Instant::now();
            let bytes = way()?;
            if bytes != GIB {
                bail!("{name}: {bytes} bytes of {GIB} arrived");
            }
            speeds[index].push(mega(GIB) / since.elapsed().as_secs_f64());
            if stop::asked() {
                bail!("stopped");
            }
        }
    }
    let growth = peak.growth()?;
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
    let [api, exec, chacha, aes, ssh] =
        [0, 1, 2, 3, 4].map(|way: usize| median(speeds[way].clone()));
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
        "1 GiB: `node exec` / `ssh` on a master, chacha20",
        exec / ssh,
        "×",
        Target::None,
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

/// Uses so much memory once, or half of what is free where that is less.
fn touch_memory(bytes: u64) -> anyhow::Result<()> {
    let info = fs::read_to_string("/proc/meminfo").context("reading how much memory is free")?;
    let free = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .context("/proc/meminfo does not say what is available")?;
    let bytes = usize::try_from(bytes.min(free * 1024 / 2))?;
    std::hint::black_box(vec![1u8; bytes]);
    Ok(())
}
