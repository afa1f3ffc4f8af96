//! Processes that are nobody's children by design: keepers, found by the folder that they name on
//! their command line.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::TICK;
#[cfg(not(target_os = "linux"))]
use super::{GRACE, stdout_of};

/// Returns the ids of all processes that run `program` and have `word` in an argument.
pub(crate) fn running(program: &Path, word: &Path) -> Vec<u32> {
    let word = word.to_string_lossy();
    let program = program.to_string_lossy();
    command_lines()
        .into_iter()
        .filter(|(_, line)| line.starts_with(&*program) && line.contains(&*word))
        .map(|(pid, _)| pid)
        .collect()
}

/// Returns id and command line, its words joined by spaces, of every process we may look at.
#[cfg(target_os = "linux")]
fn command_lines() -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<String> = bytes
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        Some((pid, words.join(" ")))
    })
    .collect()
}

/// Returns id and command line of every process, as `ps` shows them.
#[cfg(not(target_os = "linux"))]
fn command_lines() -> Vec<(u32, String)> {
    let mut ps = Command::new("ps");
    ps.args(["-axww", "-o", "pid=,command="]);
    let listed = stdout_of(&mut ps, GRACE).unwrap_or_default();
    let split = |line: &str| {
        let (pid, command) = line.trim_start().split_once(' ')?;
        Some((pid.parse().ok()?, command.to_owned()))
    };
    listed.lines().filter_map(split).collect()
}

/// Ends processes that are not our children: SIGTERM, and SIGKILL for those still there after two
/// seconds.
pub(crate) fn end_strangers(pids: &[u32]) {
    let pids: Vec<Pid> = pids
        .iter()
        .filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?))
        .collect();
    for pid in &pids {
        kill_process(*pid, Signal::TERM).ok(); // it may have ended just now
    }
    let is_there = |pid: &Pid| test_kill_process(*pid).is_ok();
    let since = Instant::now();
    while pids.iter().any(is_there) && since.elapsed() < Duration::from_secs(2) {
        thread::sleep(TICK);
    }
    for pid in pids.iter().filter(|pid| is_there(pid)) {
        kill_process(*pid, Signal::KILL).ok(); // it may have ended just now
    }
}
