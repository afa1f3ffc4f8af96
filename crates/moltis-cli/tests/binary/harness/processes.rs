//! Processes of anybody's, known by the directory that their command line names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
#[cfg(not(target_os = "linux"))]
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

/// A process of anybody's, and not one that waits to be reaped.
struct Listed {
    pid: i32,
    parent: i32,
    line: Vec<u8>,
}

/// Returns the processes that have this path on their command line, with
/// all that descends from them.
pub(crate) fn processes_of(path: &Path) -> BTreeSet<i32> {
    let wanted = path.as_os_str().as_encoded_bytes();
    let names_it = |line: &[u8]| line.windows(wanted.len()).any(|window| window == wanted);
    let all = processes();
    let named = all.iter().filter(|process| names_it(&process.line));
    let mut found: BTreeSet<i32> = named.map(|process| process.pid).collect();
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|one| found.contains(&one.parent) && !found.contains(&one.pid))
            .map(|one| one.pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Returns the keepers whose sockets lie in this directory.
pub(crate) fn keepers_of(directory: &Path) -> Vec<Pid> {
    let words = [directory.as_os_str().as_encoded_bytes(), b"keeper"];
    let is_one = |process: &Listed| {
        let mut windows = words.iter().map(|word| {
            process
                .line
                .windows(word.len())
                .any(|window| &window == word)
        });
        windows.all(|is_there| is_there)
    };
    let found = processes().into_iter().filter(is_one);
    found.filter_map(|one| Pid::from_raw(one.pid)).collect()
}

#[cfg(target_os = "linux")]
fn processes() -> Vec<Listed> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let read = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit(") ").next()?.split(' ');
        if fields.next() == Some("Z") {
            return None;
        }
        Some(Listed {
            pid,
            parent: fields.next()?.parse().ok()?,
            line: fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
        })
    };
    pids.filter_map(read).collect()
}

#[cfg(not(target_os = "linux"))]
fn processes() -> Vec<Listed> {
    let mut ps = Command::new("ps");
    ps.args(["-axww", "-o", "pid=,ppid=,stat=,command="]);
    let listed = ps.output().unwrap().stdout;
    let read = |line: &str| {
        let (pid, rest) = line.trim_start().split_once(' ')?;
        let (parent, rest) = rest.trim_start().split_once(' ')?;
        let (state, line) = rest.trim_start().split_once(' ')?;
        if state.starts_with('Z') {
            return None;
        }
        Some(Listed {
            pid: pid.parse().ok()?,
            parent: parent.parse().ok()?,
            line: line.as_bytes().to_vec(),
        })
    };
    String::from_utf8_lossy(&listed)
        .lines()
        .filter_map(read)
        .collect()
}

pub(super) fn end_all_that_name(path: &Path) {
    for _ in 0..20 {
        let found = processes_of(path);
        if found.is_empty() {
            return;
        }
        for pid in found {
            if let Some(pid) = Pid::from_raw(pid) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
    }
}
