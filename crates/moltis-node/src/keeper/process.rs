//! Processes of this machine: signals to groups, waiting without reaping, and what a child inherits.
//!
//! What only Linux can do stands in `process/linux.rs`; `process/other.rs` has the same functions
//! and says what it cannot know.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use moltis_proto::run::ExitStatus;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit, kill_process,
    kill_process_group, setrlimit, test_kill_process_group,
};

#[cfg(target_os = "linux")]
pub(super) use self::linux::{
    Exit, Mark, adopt_orphans, end_marked, escaped, orphans, spawn_marked,
};
#[cfg(not(target_os = "linux"))]
pub(super) use self::other::{
    Exit, Mark, adopt_orphans, end_marked, escaped, orphans, spawn_marked,
};

/// How often an exit is looked for where the system cannot tell.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Sends a signal to a process group. One that is gone already is what we wanted.
pub(super) fn signal_group(leader: Pid, signal: Signal) {
    kill_process_group(leader, signal).ok();
}

/// Sends a signal to one process. One that is gone already is what we wanted.
pub(super) fn signal_one(pid: Pid, signal: Signal) {
    kill_process(pid, signal).ok();
}

/// Returns whether a process group has members. A leader that was not reaped is one.
pub(super) fn group_lives(leader: Pid) -> bool {
    test_kill_process_group(leader).is_ok()
}

/// Returns the signal of this number, where it is one with a name.
pub(super) fn signal_of(number: i32) -> Option<Signal> {
    Signal::from_named_raw(number)
}

/// Returns whether this child of ours has ended. It stays a zombie, so its number, which is its
/// group's, cannot be given to anybody else before we reap it.
pub(super) fn has_ended(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(rustix::process::waitid(WaitId::Pid(pid), options), Ok(None))
}

/// Returns what the kernel says about the end of a child of ours, which stays a zombie.
pub(super) fn status_of(pid: Pid) -> Option<ExitStatus> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = rustix::process::waitid(WaitId::Pid(pid), options).ok()??;
    let code = status.exit_status().map(ExitStatus::Code);
    code.or_else(|| status.terminating_signal().map(ExitStatus::Signal))
}

/// Waits until a child of ours has ended, by looking.
async fn ended_by_looking(pid: Pid) {
    while !has_ended(pid) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Descriptors that are kept free for a spawn: three of a terminal, the one of `/dev/null`, and the
/// pipe over which a failed exec(2) is told, with some to spare.
const SPARE_MAX: usize = 12;

/// Held while a child is spawned, and while another thread opens a file: what is opened during a
/// spawn has to fit below the child's limit.
static OPENING: Mutex<()> = Mutex::new(());

/// Opens something on a thread that is not the keeper's own.
pub(super) fn while_nothing_spawns<T>(open: impl FnOnce() -> T) -> T {
    let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner); // it guards no data
    open()
}

/// How many descriptors this process may open, and what a child of it shall inherit.
///
/// A limit belongs to a whole process and is inherited as it is at the fork, so ours is lowered
/// around each spawn. It bounds the numbers of new descriptors, not how many there are: the lowest
/// numbers are kept taken, and let go for the spawn.
#[derive(Debug)]
pub(super) struct Descriptors {
    ours: Rlimit,
    childs: Rlimit,
    spare: Vec<OwnedFd>,
}

impl Descriptors {
    /// Raises our own limit as far as the system lets us: a keeper holds three for each run.
    pub(super) fn raise() -> Self {
        let found = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: found.maximum,
            maximum: found.maximum,
        };
        let ours = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => raised,
            Err(_) => found,
        };
        let mut descriptors = Self {
            ours,
            childs: found,
            spare: Vec::new(),
        };
        if ours != found {
            descriptors.keep_spare();
        }
        descriptors
    }

    /// Spawns a child that inherits the limit which we found, not the one that we raised:
    /// programs that use select(2) break above 1,024.
    pub(super) fn spawn<T>(&mut self, spawn: impl FnOnce() -> T) -> T {
        if self.ours == self.childs {
            return spawn();
        }
        while_nothing_spawns(|| {
            self.spare.clear();
            setrlimit(Resource::Nofile, self.childs).ok();
            let spawned = spawn();
            setrlimit(Resource::Nofile, self.ours).ok();
            self.keep_spare();
            spawned
        })
    }

    /// Takes the lowest numbers that are free, as far as the system gives any.
    fn keep_spare(&mut self) {
        let Ok(null) = File::open("/dev/null") else {
            return;
        };
        let null = OwnedFd::from(null);
        let more = std::iter::from_fn(|| null.try_clone().ok());
        self.spare.extend(more.take(SPARE_MAX - 1));
        self.spare.push(null);
    }
}
