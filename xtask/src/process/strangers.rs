//! Processes that are nobody's children by design: keepers, found by the folder that they name on
//! their command line.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::TICK;
#[cfg(not(target_os = "linux"))]
use super::{GRACE, stdout_of};

/// Another process, and not one that has ended and waits to be reaped.
struct Stranger {
    pid: u32,
    parent: u32,
    group: u32,
    /// The words of its command line, joined by spaces.
    line: String,
}

/// Returns the ids of all processes that run `program` and have `word` in an argument.
///
/// A child that has been forked and is not yet another program still has its parent's words; it is
/// the parent's business, as [`descendants`] shows it.
pub(crate) fn running(program: &Path, word: &Path) -> Vec<u32> {
    let word = word.to_string_lossy();
    let program = program.to_string_lossy();
    let is_meant = |stranger: &Stranger| {
        stranger.line.starts_with(&*program) && stranger.line.contains(&*word)
    };
    let mut found = strangers();
    found.retain(is_meant);
    let pids: Vec<_> = found.iter().map(|stranger| stranger.pid).collect();
    found.retain(|stranger| !pids.contains(&stranger.parent));
    found.into_iter().map(|stranger| stranger.pid).collect()
}

/// Returns whether anybody runs in a process group.
pub(super) fn group_runs(group: u32) -> bool {
    strangers().iter().any(|stranger| stranger.group == group)
}

/// Returns the ids of all processes below these, children first.
pub(crate) fn descendants(pids: &[u32]) -> Vec<u32> {
    let strangers = strangers();
    let mut below: Vec<u32> = Vec::new();
    let mut parents = pids.to_vec();
    while let Some(parent) = parents.pop() {
        for child in strangers
            .iter()
            .filter(|stranger| stranger.parent == parent)
        {
            below.push(child.pid);
            parents.push(child.pid);
        }
    }
    below
}

/// Returns every process that we may look at.
#[cfg(target_os = "linux")]
fn strangers() -> Vec<Stranger> {
    let entries = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = bytes
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .collect();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; after it come the state, the parent, the group.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        if fields.next()? == "Z" {
            return None;
        }
        Some(Stranger {
            pid,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            line: words.join(" "),
        })
    })
    .collect()
}

/// Returns every process, as `ps` shows them.
#[cfg(not(target_os = "linux"))]
fn strangers() -> Vec<Stranger> {
    let mut ps = std::process::Command::new("ps");
    ps.args(["-axww", "-o", "pid=,ppid=,pgid=,stat=,command="]);
    let listed = stdout_of(&mut ps, GRACE).unwrap_or_default();
    let read = |line: &str| {
        let (pid, rest) = line.trim_start().split_once(' ')?;
        let (parent, rest) = rest.trim_start().split_once(' ')?;
        let (group, rest) = rest.trim_start().split_once(' ')?;
        let (state, line) = rest.trim_start().split_once(' ')?;
        if state.starts_with('Z') {
            return None;
        }
        Some(Stranger {
            pid: pid.parse().ok()?,
            parent: parent.parse().ok()?,
            group: group.parse().ok()?,
            line: line.trim_start().to_owned(),
        })
    };
    listed.lines().filter_map(read).collect()
}

/// Returns whether this process runs.
#[cfg(test)]
pub(super) fn runs(pid: u32) -> bool {
    strangers().iter().any(|stranger| stranger.pid == pid)
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::{Background, GRACE};

    #[test]
    fn a_stranger_is_found_by_its_words_and_ended_with_its_children() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & echo $!; wait", "a-word-like-no-other"]);
        let mut shell = Background::start(&mut command).unwrap();
        let child: u32 = shell.find(GRACE, |line| line.text.parse().ok()).unwrap();
        let found = running(Path::new("/bin/sh"), Path::new("a-word-like-no-other"));
        assert_eq!(found, [shell.id()]);
        assert_eq!(descendants(&found), [child]);
        end_strangers(&[child]);
        assert!(shell.wait(GRACE).is_ok(), "the shell waited for its child");
    }
    #[test]
    fn a_child_that_is_no_other_program_yet_is_not_taken_for_its_parent() {
        let mut command = Command::new("/bin/sh");
        // The inner parentheses fork a shell that never becomes anything else.
        let line = "(while :; do sleep 0.1; done) & echo $!; wait";
        command.args(["-c", line, "another-word-like-no-other"]);
        let mut shell = Background::start(&mut command).unwrap();
        let child: u32 = shell.find(GRACE, |line| line.text.parse().ok()).unwrap();
        let found = running(
            Path::new("/bin/sh"),
            Path::new("another-word-like-no-other"),
        );
        assert_eq!(found, [shell.id()]);
        assert!(descendants(&found).contains(&child));
    }
}
