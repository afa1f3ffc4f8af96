//! One GiB of stdout from a child on the node to whoever asked, beside OpenSSH, and what it costs in
//! memory.

use std::io;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, bail};

use super::cost::Watch;
use super::lanes::median;
use super::ours::Api;
use super::report::{Report, Target, number};
use super::ssh::Ssh;
use super::{CIPHERS, Pids, Size, mega, over_mux};
use crate::stage::{NODE, Stage};
use crate::{process, stop};

/// One GiB.
const GIB: u64 = 1 << 30;

/// A way to have a GiB printed: its name, and what does it and returns how many bytes came.
type Way<'a> = (&'static str, Box<dyn Fn() -> anyhow::Result<u64> + 'a>);

/// One GiB of stdout to the caller, each way in turn.
pub(super) fn floods(
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
