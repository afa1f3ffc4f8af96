//! What Linux knows about processes: descriptors for them, who descends from whom, and orphans.
//!
//! A child that calls setsid(2) leaves its process group, and one whose parent has ended is nobody's
//! child any more. Both stay ours: the keeper is their subreaper, so orphans become its children,
//! and every run carries a mark that all its descendants inherit.

use std::fs;
use std::path::Path;

use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getpgid, getpid, getrlimit,
    pidfd_open, pidfd_send_signal, set_child_subreaper, setrlimit, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How often marked processes are looked for: a killed one may take a moment, and may have started
/// another just before.
const ROUNDS_MAX: usize = 100;

/// Where the kernel tells of processes.
const PROC: &str = "/proc";

/// The mark of one run: a soft `RLIMIT_RTTIME` that no process can reach (73,000 years of real-time
/// computing at the least). Limits are inherited across fork(2), exec(2) and setsid(2), and
/// /proc tells them; an environment variable would do the same, but children are promised an
/// environment with nothing of ours in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::keeper) struct Mark(u64);

impl Mark {
    /// Makes a mark of a number that nobody else has; `None` where the machine cannot carry one.
    pub(in crate::keeper) fn new(number: u64) -> Option<Self> {
        let free = getrlimit(Resource::Rttime).maximum.is_none();
        (free && cfg!(target_pointer_width = "64")).then_some(Self(number >> 2 | 1 << 61))
    }
}

/// Runs `spawn` so that what it spawns carries the mark.
pub(in crate::keeper) fn spawn_marked<T>(mark: Option<Mark>, spawn: impl FnOnce() -> T) -> T {
    let Some(Mark(number)) = mark else {
        return spawn();
    };
    let found = getrlimit(Resource::Rttime);
    let marked = Rlimit {
        current: Some(number),
        maximum: found.maximum,
    };
    setrlimit(Resource::Rttime, marked).ok();
    let spawned = spawn();
    setrlimit(Resource::Rttime, found).ok();
    spawned
}

/// Waits for the end of one child, without reaping it.
#[derive(Debug)]
pub(in crate::keeper) struct Exit {
    pid: Pid,
    /// Absent before Linux 5.3, and where a sandbox does not let us.
    fd: Option<AsyncFd<std::os::fd::OwnedFd>>,
}

impl Exit {
    /// Watches a child that was not reaped.
    pub(in crate::keeper) fn of(pid: Pid) -> Self {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that lie about their descriptor: this one owns it"
        )]
        let watch = |fd| AsyncFd::with_interest(fd, Interest::READABLE).ok();
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok().and_then(watch);
        Self { pid, fd }
    }

    /// Returns when the child has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(in crate::keeper) async fn ended(&self) {
        if let Some(fd) = &self.fd
            && fd.readable().await.is_ok()
        {
            return;
        }
        super::ended_by_looking(self.pid).await;
    }
}

/// Makes orphans of our children ours. Returns whether the system does so.
pub(in crate::keeper) fn adopt_orphans() -> bool {
    set_child_subreaper(Some(getpid())).is_ok()
}

/// Returns every living process of a run that is not in the group of its leader, and whether the
/// search saw all there are.
///
/// Those that descend from the leader are found while it lives; those whose parents have ended are
/// among our own children (`adopted`) and known by their mark. `leader` is absent once it is reaped.
pub(in crate::keeper) fn escaped(
    leader: Option<Pid>,
    mark: Option<Mark>,
    adopted: Option<&[Pid]>,
) -> (Vec<Pid>, bool) {
    let mut found = Vec::new();
    let mut roots: Vec<_> = leader.into_iter().collect();
    let sees_all = mark.is_some() && adopted.is_some();
    for orphan in adopted.unwrap_or_default() {
        if mark.is_some() && mark_of(*orphan) == mark && !is_zombie(*orphan) {
            found.push(*orphan);
            roots.push(*orphan);
        }
    }
    while let Some(root) = roots.pop() {
        for child in children_of(root) {
            if !found.contains(&child) {
                roots.push(child);
                found.push(child);
            }
        }
    }
    // The group is signalled as a whole; a second SIGTERM means "at once" to many programs.
    found.retain(|pid| {
        let is_in_group = leader.is_some() && getpgid(Some(*pid)).ok() == leader;
        !is_in_group && !is_zombie(*pid)
    });
    (found, sees_all)
}

/// Kills every process that carries one of these marks, and those that they start meanwhile.
/// Returns whether none is left.
///
/// Where a keeper lives that has a file of this name open, its journal, they are no leftovers but
/// the children of that one, and nobody is killed: what was taken over is a copy.
///
/// A process is held by its descriptor while its mark is read, so that the signal cannot reach
/// another one that has been given its number.
pub(in crate::keeper) fn end_marked(marks: &[Mark], journal: &str) -> bool {
    if marks.is_empty() {
        return true;
    }
    for _ in 0..ROUNDS_MAX {
        let Ok(entries) = fs::read_dir(PROC) else {
            return false;
        };
        let pids = entries
            .flatten()
            .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        let mut found = 0;
        for pid in pids {
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue; // it has ended
            };
            let is_ours = mark_of(pid).is_some_and(|mark| marks.contains(&mark));
            if is_ours && !is_zombie(pid) {
                if has_keeper(pid, marks, journal) {
                    return false;
                }
                found += 1;
                pidfd_send_signal(&process, Signal::KILL).ok(); // it has ended meanwhile
            }
        }
        if found == 0 {
            return true;
        }
    }
    false
}

/// Returns whether the first process above this one that has none of the marks is a keeper that
/// writes such a journal. One of a dead keeper is the child of whoever takes orphans.
fn has_keeper(pid: Pid, marks: &[Mark], journal: &str) -> bool {
    let mut above = parent_of(pid);
    while let Some(pid) = above
        && mark_of(pid).is_some_and(|mark| marks.contains(&mark))
    {
        above = parent_of(pid);
    }
    let Some(above) = above.filter(|above| *above != getpid()) else {
        return false;
    };
    let Ok(open) = fs::read_dir(format!("{PROC}/{above}/fd")) else {
        return false;
    };
    let mut files = open
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok());
    files.any(|file| file.file_name().is_some_and(|name| name == journal))
}

/// Returns the parent of a process.
fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read(format!("{PROC}/{pid}/stat")).ok()?;
    let parent = behind_name(&stat)?.split(' ').nth(1)?;
    Pid::from_raw(parent.parse().ok()?)
}

/// Reaps those of our children that are nobody's run (`is_ours` tells) and have ended. Returns the
/// ones that live on; `None` where the system does not tell who our children are.
pub(in crate::keeper) fn orphans(is_ours: impl Fn(Pid) -> bool) -> Option<Vec<Pid>> {
    let mut living = Vec::new();
    for pid in children_in(Path::new(PROC), getpid())? {
        if is_ours(pid) {
            continue;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if let Ok(None) = waitid(WaitId::Pid(pid), options) {
            living.push(pid);
        }
    }
    Some(living)
}

/// Returns the children of a process.
fn children_of(pid: Pid) -> Vec<Pid> {
    children_in(Path::new(PROC), pid).unwrap_or_default()
}

/// Returns the children of a process, as the kernel lists them for each of its threads. A kernel
/// may be built without these lists (`CONFIG_PROC_CHILDREN`): then every process is asked for its
/// parent. `None` where /proc does not tell.
fn children_in(proc: &Path, pid: Pid) -> Option<Vec<Pid>> {
    let Ok(threads) = fs::read_dir(proc.join(format!("{pid}/task"))) else {
        return proc.join("self").exists().then(Vec::new);
    };
    let mut children = Vec::new();
    for thread in threads.flatten() {
        let list = match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => list,
            // The thread has ended, or no thread has a list.
            Err(_) if !thread.path().exists() => continue,
            Err(_) => return children_by_parent(proc, pid),
        };
        let pids = list.split_ascii_whitespace().flat_map(str::parse);
        children.extend(pids.filter_map(Pid::from_raw));
    }
    Some(children)
}

/// As [`children_in`], from what each process says of its parent.
fn children_by_parent(proc: &Path, parent: Pid) -> Option<Vec<Pid>> {
    let is_child = |pid: &Pid| {
        let stat = fs::read(proc.join(format!("{pid}/stat"))).unwrap_or_default();
        let rest = behind_name(&stat).unwrap_or_default();
        let found = rest
            .split(' ')
            .nth(1)
            .and_then(|parent| parent.parse().ok());
        found == Some(parent.as_raw_pid())
    };
    let entries = fs::read_dir(proc).ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Some(pids.filter_map(Pid::from_raw).filter(is_child).collect())
}

/// Returns the mark that a process carries.
fn mark_of(pid: Pid) -> Option<Mark> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max realtime timeout"))?;
    line.split_ascii_whitespace().next()?.parse().ok().map(Mark)
}

/// Returns whether a process has ended and waits to be reaped, or is gone.
fn is_zombie(pid: Pid) -> bool {
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let state = behind_name(&stat).map(str::as_bytes);
    matches!(state, Some([b'Z' | b'X', ..]) | None)
}

/// Returns what stands behind the name in `pid (name) state parent …`: the name may hold anything,
/// parentheses and bytes that are no text too.
fn behind_name(stat: &[u8]) -> Option<&str> {
    let end = stat.windows(2).rposition(|pair| pair == b") ")?;
    std::str::from_utf8(&stat[end + 2..]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    /// A /proc of these processes: number, name, parent, and what the kernel lists as its children.
    fn proc(all: &[(i32, &str, i32, Option<&str>)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("self")).unwrap();
        for (number, name, parent, children) in all {
            let task = proc.path().join(format!("{number}/task/{number}"));
            fs::create_dir_all(&task).unwrap();
            let stat = format!("{number} ({name}) S {parent} {number} 0 -1\n");
            fs::write(proc.path().join(format!("{number}/stat")), stat).unwrap();
            if let Some(children) = children {
                fs::write(task.join("children"), children).unwrap();
            }
        }
        proc
    }

    fn children(proc: &tempfile::TempDir, number: i32) -> Option<Vec<i32>> {
        let mut found: Vec<_> = children_in(proc.path(), pid(number))?
            .into_iter()
            .map(Pid::as_raw_pid)
            .collect();
        found.sort_unstable();
        Some(found)
    }

    #[test]
    fn a_kernel_with_lists_of_children_is_believed() {
        let proc = proc(&[(7, "keeper", 1, Some("8 9 ")), (8, "sh", 7, Some(""))]);
        assert_eq!(children(&proc, 7), Some(vec![8, 9]));
        assert_eq!(children(&proc, 8), Some(vec![]));
    }

    #[test]
    fn without_those_lists_each_process_is_asked_for_its_parent() {
        let proc = proc(&[
            (1, "init", 0, None),
            (7, "keeper", 1, None),
            (8, "a) S 1 (b", 7, None),
            (9, "sh", 8, None),
            (10, "sleep", 7, None),
        ]);
        assert_eq!(children(&proc, 7), Some(vec![8, 10]));
        assert_eq!(children(&proc, 9), Some(vec![]));
        assert_eq!(children(&proc, 99), Some(vec![]), "it is gone");
    }

    #[test]
    fn where_no_process_is_told_of_nothing_is_known() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(children(&empty, 7), None);
    }

    #[test]
    fn both_ways_find_a_real_child() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let wanted = Pid::from_child(&child);
        let by_parent = children_by_parent(Path::new(PROC), getpid()).unwrap();
        let listed = children_of(getpid());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(by_parent.contains(&wanted), "{by_parent:?}");
        assert!(listed.contains(&wanted), "{listed:?}");
    }
}
