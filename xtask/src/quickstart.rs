//! `cargo xtask quickstart [--once]`: the whole product in one minute, for real.
//!
//! It builds, starts a gateway and a node, pairs them, runs a command on the node while the
//! connection is cut in the middle, and shows what the node tells of itself. On a terminal it then
//! stays up until Ctrl+C. Whatever it made is gone when it ends; a failed step ends it with its name.

use std::io::{self, IsTerminal as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::process::{Background, TICK};
use crate::say::{self, Ink};
use crate::stage::{self, NODE, STEP, Stage};
use crate::{stop, workspace};

/// How many lines the command prints.
const LINES: usize = 12;

/// The line after which the connection is cut.
const CUT_AFTER: usize = 4;

/// For how long it is cut.
const CUT: Duration = Duration::from_secs(1);

/// `cargo xtask quickstart`.
pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    let once = match words {
        [] => !io::stdout().is_terminal(),
        [word] if word == "--once" => true,
        _ => bail!("`cargo xtask quickstart` takes `--once` or nothing"),
    };
    show(once)
}

fn show(once: bool) -> anyhow::Result<()> {
    let binary = step("build", || {
        if !workspace::binary("debug").exists() {
            say::line(
                "The first build takes about four minutes on two cores; later ones, seconds.",
            );
        }
        stage::build("debug")
    })?;
    let mut stage = step("start a gateway", || {
        let stage = Stage::open(&binary)?;
        say::line(&format!(
            "It listens on http://{}, ready after {} ms; all of it is in {}.",
            stage.address(),
            stage.started_in().as_millis(),
            stage.folder().display()
        ));
        Ok(stage)
    })?;
    step("pair a node", || pair(&mut stage))?;
    step("run a command on it and cut its connection", || {
        cut_in_the_middle(&stage)
    })?;
    step("ask what it is", || tell_of_the_node(&stage))?;
    if !once {
        step("stay up", || stay_up(&mut stage))?;
    }
    step("clean up", || {
        stage.close()?;
        say::line("No process and no file of it is left.");
        Ok(())
    })
}

/// Does a step under its heading; its name is the first line of its failure.
fn step<T>(name: &str, run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    say::heading(&format!("{}{}", name[..1].to_uppercase(), &name[1..]));
    run().with_context(|| format!("the step `{name}` failed"))
}

fn pair(stage: &mut Stage) -> anyhow::Result<()> {
    stage.text(&["node", "pairing", "enable"])?;
    let shown = stage.ask_to_join()?;
    let request = stage.request()?;
    let text = |field: &str| request[field].as_str().unwrap_or("(missing)").to_owned();
    let (code, fingerprint) = (text("connection_code"), text("fingerprint"));
    say::line(&format!("  {:<18}{:<18}", "on the node", "on the gateway"));
    let codes = format!("  {:<18}{code:<18}", shown.code);
    say::line(&say::inked(Ink::Bold, &codes));
    if shown.code != code || shown.fingerprint != fingerprint {
        bail!(
            "codes or keys differ: somebody sits between. Node: {} {}; gateway: {code} {fingerprint}",
            shown.code,
            shown.fingerprint
        );
    }
    say::line("The same code on both: nobody sits between, so the node is approved.");
    stage.approve(&request)?;
    stage.node_when(|_| true)?;
    say::line(&say::inked(
        Ink::Dim,
        &format!("{fingerprint} is pinned as `{NODE}`."),
    ));
    Ok(())
}

/// Runs a command that prints a line now and then, cuts the connection under it, and counts.
fn cut_in_the_middle(stage: &Stage) -> anyhow::Result<()> {
    let line = format!(
        "i=1; while [ $i -le {LINES} ]; do echo \"line $i of {LINES}\"; i=$((i+1)); sleep 0.3; done"
    );
    say::line(&say::inked(
        Ink::Dim,
        &format!("$ moltis node exec {NODE} --shell '{line}'"),
    ));
    let joined = stage.relay.joined();
    let mut exec = Background::start(&mut stage.moltis(&["node", "exec", NODE, "--shell", &line]))?;
    let mut arrived = 0;
    let mut cut_at = None;
    while let Some(line) = exec.next_line(STEP)? {
        if cut_at.is_some() && stage.relay.joined() > joined {
            cut_at = came_back(cut_at);
        }
        if line.is_stderr {
            say::line(&format!("  {}", say::inked(Ink::Dim, &line.text)));
            continue;
        }
        arrived += 1;
        if line.text != format!("line {arrived} of {LINES}") {
            bail!("expected line {arrived}, but `{}` arrived", line.text);
        }
        say::line(&format!("  {}", line.text));
        if arrived == CUT_AFTER {
            stage.relay.cut_for(CUT);
            cut_at = Some(Instant::now());
            say::line(&format!(
                "  {}",
                say::inked(Ink::Bad, "-- connection cut --")
            ));
        }
    }
    let status = exec.wait(STEP)?;
    if !status.success() {
        bail!("`moltis node exec` ended with {status}{}", exec.said());
    }
    if arrived != LINES {
        bail!("{arrived} of {LINES} lines arrived");
    }
    if stage.relay.joined() == joined {
        bail!("the node never came back, so nothing was proved");
    }
    let all = format!("All {LINES} lines arrived, in order, each of them once.");
    say::line(&say::inked(Ink::Good, &all));
    Ok(())
}

/// Says that the connection is back, once.
fn came_back(cut_at: Option<Instant>) -> Option<Instant> {
    let after = cut_at?.elapsed().as_secs_f64();
    let words = format!("-- connected again after {after:.1} s; the command went on meanwhile --");
    say::line(&format!("  {}", say::inked(Ink::Good, &words)));
    None
}

fn tell_of_the_node(stage: &Stage) -> anyhow::Result<()> {
    let node = stage.node_when(|node| !node["telemetry"].is_null())?;
    for line in description(&node) {
        say::line(&format!("  {line}"));
    }
    Ok(())
}

/// Returns the node's telemetry in a person's words.
fn description(node: &Value) -> Vec<String> {
    let (platform, telemetry) = (&node["platform"], &node["telemetry"]);
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let number = |field: &str| telemetry[field].as_f64().unwrap_or_default();
    let gib = |field: &str| number(field) / f64::from(1 << 30);
    let names = |field: &str, also: &str| {
        let items = telemetry[field].as_array().into_iter().flatten();
        let item = |item: &Value| {
            format!(
                "{} {}",
                word(&item["name"]),
                item[also].as_str().unwrap_or("")
            )
        };
        let items: Vec<_> = items.map(|one| item(one).trim().to_owned()).collect();
        if items.is_empty() {
            "none".to_owned()
        } else {
            items.join(", ")
        }
    };
    vec![
        format!(
            "system     {}, {}",
            word(&platform["version"]),
            word(&platform["arch"])
        ),
        format!(
            "CPU        {} logical, {:.0} % busy",
            number("cpu_count"),
            number("cpu_usage_percent")
        ),
        format!(
            "memory     {:.1} of {:.1} GiB available",
            gib("memory_available_bytes"),
            gib("memory_total_bytes")
        ),
        format!(
            "disk       {:.1} of {:.1} GiB available",
            gib("disk_available_bytes"),
            gib("disk_total_bytes")
        ),
        format!("runtimes   {}", names("runtimes", "version")),
        format!("providers  {}", names("providers", "kind")),
    ]
}

/// Says what to paste elsewhere, and waits for Ctrl+C.
fn stay_up(stage: &mut Stage) -> anyhow::Result<()> {
    let home = stage.gateway_home();
    let programs = workspace::target().join("debug");
    say::line("It stays up until Ctrl+C. Paste into another terminal:\n");
    say::line(&format!(
        "  export MOLTIS_HOME='{}' PATH='{}':\"$PATH\"",
        home.display(),
        programs.display()
    ));
    say::line("  moltis node list");
    say::line(&format!("  moltis node exec {NODE} -- uname -a"));
    say::line(&format!("  moltis node shell {NODE}"));
    while !stop::asked() {
        stage.check_alive()?;
        thread::sleep(TICK * 5);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn telemetry_reads_like_a_sentence() {
        let node = json!({
            "platform": { "version": "Debian 12", "arch": "x86_64" },
            "telemetry": {
                "cpu_count": 2, "cpu_usage_percent": 41.7,
                "memory_total_bytes": 8_u64 << 30, "memory_available_bytes": 6_u64 << 30,
                "disk_total_bytes": 100_u64 << 30, "disk_available_bytes": 50_u64 << 30,
                "runtimes": [{ "name": "Python", "version": "3.11.2" }],
                "providers": [],
            },
        });
        let lines = description(&node);
        assert_eq!(lines[0], "system     Debian 12, x86_64");
        assert_eq!(lines[1], "CPU        2 logical, 42 % busy");
        assert_eq!(lines[2], "memory     6.0 of 8.0 GiB available");
        assert_eq!(lines[4], "runtimes   Python 3.11.2");
        assert_eq!(lines[5], "providers  none");
    }

    #[test]
    fn a_failed_step_says_its_name() {
        let error = step("pair a node", || -> anyhow::Result<()> {
            bail!("no answer")
        });
        assert_eq!(
            error.unwrap_err().to_string(),
            "the step `pair a node` failed"
        );
    }
}
