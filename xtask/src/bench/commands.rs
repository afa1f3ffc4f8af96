//! One command at a time and many at once: ours, a bare spawn and OpenSSH, and what a run costs.

use std::process::Command;
use std::process::Stdio;

use anyhow::bail;

use super::lanes::{self, Lane, Runner, Times, median};
use super::ours::Api;
use super::report::{Report, Target, number};
use super::ssh::Ssh;
use super::{CIPHERS, Pids, Size, cost, over_mux};
use crate::process;
use crate::stage::{NODE, Stage};

/// What runs when nothing should: the shell and an end.
pub(super) const NOTHING: &str = "true";

/// Turns in which spawns and runs are measured for what they cost.
const PROCESSOR_TURNS: u32 = 10;

// The lanes, by their place in the list.
const SPAWN: usize = 0;
const API_LOCAL: usize = 1;
const API_NODE: usize = 2;
const EXEC: usize = 3;
const MUX: usize = 4;
const SSH: usize = 5;

pub(super) fn lanes<'a>(stage: &'a Stage, api: &'a Api, ssh: &'a Ssh) -> Vec<Lane<'a>> {
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

/// One command at a time: p50 and p99 of every lane.
pub(super) fn latencies(
    lanes: &[Lane<'_>],
    size: &Size,
    report: &mut Report,
) -> anyhow::Result<()> {
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
pub(super) fn rates(lanes: &[Lane<'_>], size: &Size, report: &mut Report) -> anyhow::Result<()> {
    let measured = [SPAWN, API_LOCAL, API_NODE, EXEC, MUX, SSH];
    let crowds = [1, 8, 32];
    let mut rates = vec![vec![Vec::new(); crowds.len()]; measured.len()];
    for round in 0..size.windows {
        for (column, crowd) in crowds.iter().enumerate() {
            for row in (0..measured.len()).map(|row| (row + round) % measured.len()) {
                let rate = lanes::rate(&lanes[measured[row]], *crowd, size.window)?;
                rates[row][column].push(rate);
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
    let (ours, theirs) = (rates[2][2], rates[4][2]);
    report.verdict(
        "runs a second, 32 at a time: API / OpenSSH mux socket",
        ours / theirs,
        "×",
        Target::AtLeast(2.0),
    );
    Ok(())
}

/// Processor time of gateway, link and keeper for one run, over that of a bare spawn.
pub(super) fn processor(
    api: &Api,
    pids: &Pids,
    size: &Size,
    report: &mut Report,
) -> anyhow::Result<()> {
    let of_all = || {
        pids.all()
            .into_iter()
            .map(cost::processor_ms)
            .sum::<anyhow::Result<f64>>()
    };
    let of_us = || cost::processor_ms(std::process::id());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", NOTHING]);
    let mut spawns = program(shell);
    let mut runs = api.runner(NODE, NOTHING)?;
    let (mut spawn, mut ours) = (0.0, 0.0);
    for _ in 0..PROCESSOR_TURNS {
        spawn += spent(&mut spawns, size.cpu_runs, &of_us)?;
        ours += spent(&mut runs, size.cpu_runs, &of_all)?;
    }
    let per_run = f64::from(PROCESSOR_TURNS * size.cpu_runs);
    let (spawn, ours) = (spawn / per_run, ours / per_run);
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

/// Runs so many times and returns what that cost.
fn spent(
    runner: &mut Runner,
    times: u32,
    cost: &dyn Fn() -> anyhow::Result<f64>,
) -> anyhow::Result<f64> {
    let before = cost()?;
    for _ in 0..times {
        runner()?;
    }
    Ok(cost()? - before)
}
