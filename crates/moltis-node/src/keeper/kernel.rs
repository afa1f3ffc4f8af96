//! The system under a keeper, as far as processes go: what may be executed, a child from its spawn
//! until it is reaped, and who has descended from it.
//!
//! How the system is asked stands in [`super::process`].

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
#[cfg(feature = "simulation")]
use std::sync::Arc;

use moltis_identity::files;
use moltis_proto::run::ExitStatus;
use moltis_proto::{JournalId, RunId};
use rustix::fs::Access;
use rustix::process::{Pid, Signal};

use super::process::{self, Descriptors, Mark, spawn_marked};
#[cfg(feature = "simulation")]
use crate::simulation;

/// Bytes of a program that the kernel reads to know how it is run (execve(2)).
const HEAD_BYTES: u64 = 256;

/// Who spawns, signals and tells of processes.
#[derive(Debug)]
pub(super) enum Kernel {
    /// The one that this program runs on.
    System(System),
    /// One that a simulation has made up.
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn simulation::Kernel>),
}

/// What sees the files of a machine.
#[derive(Debug, Clone)]
pub(super) enum Eyes {
    System,
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn simulation::Kernel>),
}

/// What a keeper has changed of its own process: nothing where it is a guest in somebody's program.
#[derive(Debug, Default)]
pub(super) struct System {
    descriptors: Option<Descriptors>,
    adopts_orphans: bool,
}

/// A run, and the journal that it stands in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) run: RunId,
    pub(super) journal: JournalId,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) is_dir: bool,
    /// A file may be executed, a directory entered.
    pub(super) may_execute: bool,
}

/// A child of ours that leads a process group, until it is reaped.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    reaped: bool,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    System {
        child: std::process::Child,
        mark: Option<Mark>,
    },
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn simulation::Kernel>),
}

/// What waits for the end of a child, without reaping it.
pub(super) enum Exit {
    System(process::Exit),
    #[cfg(feature = "simulation")]
    Simulated(futures_util::future::BoxFuture<'static, ()>),
}

impl Kernel {
    /// The system, for a guest in somebody's program: the process around it stays as it is.
    pub(super) fn as_guest() -> Self {
        Self::System(System::default())
    }

    /// The system, for a process of its own: with more descriptors, and a parent of its children's
    /// orphans.
    pub(super) fn as_owner() -> Self {
        Self::System(System {
            descriptors: Some(Descriptors::raise()),
            adopts_orphans: process::adopt_orphans(),
        })
    }

    /// Returns what looks at paths, on any thread.
    pub(super) fn eyes(&self) -> Eyes {
        match self {
            Self::System(_) => Eyes::System,
            #[cfg(feature = "simulation")]
            Self::Simulated(kernel) => Eyes::Simulated(Arc::clone(kernel)),
        }
    }

    /// Returns whether orphans of our children become our children.
    pub(super) fn adopts_orphans(&self) -> bool {
        match self {
            Self::System(system) => system.adopts_orphans,
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => true,
        }
    }

    /// Ends every process that these runs of a dead keeper have left behind, and no other. Returns
    /// whether none is left. `journal` is the name of its journal.
    pub(super) fn end_leftovers(&self, runs: &[Name], journal: &str) -> bool {
        match self {
            Self::System(system) => {
                let marks: Option<Vec<_>> = runs.iter().map(|run| system.mark_of(*run)).collect();
                marks.is_some_and(|marks| process::end_marked(&marks, journal))
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(kernel) => {
                let runs: Vec<_> = runs.iter().map(|name| (name.run, name.journal)).collect();
                kernel.end_leftovers(&runs)
            }
        }
    }

    /// Reaps those of our children that are no leaders and have ended. Returns the ones that live
    /// on; `None` where there is no telling.
    pub(super) fn orphans(&self, leaders: &HashSet<Pid>) -> Option<Vec<Pid>> {
        match self {
            Self::System(system) if system.adopts_orphans => {
                process::orphans(|pid| leaders.contains(&pid))
            }
            Self::System(_) => None,
            #[cfg(feature = "simulation")]
            Self::Simulated(kernel) => {
                let pids = kernel.orphans()?;
                Some(pids.into_iter().filter_map(Pid::from_raw).collect())
            }
        }
    }
}

impl Eyes {
    /// Reads how a program begins, as execve(2) will: what a system remembers of a path it tells
    /// also while the server is gone that holds the file. What cannot be read is none here.
    pub(super) fn head_of(&self, program: &Path) -> Vec<u8> {
        let mut head = Vec::new();
        match self {
            Self::System => {
                if let Ok(file) = files::open(program, File::options().read(true)) {
                    file.take(HEAD_BYTES).read_to_end(&mut head).ok(); // as above
                }
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => {}
        }
        head
    }

    /// Looks at a path, through links. Waits for as long as the file system takes.
    pub(super) fn look_at(&self, path: &Path) -> io::Result<Found> {
        match self {
            Self::System => Ok(Found {
                is_dir: std::fs::metadata(path)?.is_dir(),
                may_execute: rustix::fs::access(path, Access::EXEC_OK).is_ok(),
            }),
            #[cfg(feature = "simulation")]
            Self::Simulated(kernel) => kernel.look_at(path).map(|found| Found {
                is_dir: found.is_dir,
                may_execute: found.may_execute,
            }),
        }
    }
}

impl Name {
    /// Returns what its processes are marked with: nobody else has it, as both ids are random.
    fn number(self) -> u64 {
        let half = |id: [u8; 16]| u64::from_be_bytes(*id.first_chunk().expect("8 are in 16"));
        half(*self.run.as_bytes()) ^ half(*self.journal.as_bytes())
    }
}

impl System {
    /// Returns the mark of a run's child and of all who descend from it, where orphans are ours.
    pub(super) fn mark_of(&self, run: Name) -> Option<Mark> {
        let number = run.number();
        self.adopts_orphans.then(|| Mark::new(number)).flatten()
    }

    /// Spawns a child that inherits what it shall.
    pub(super) fn spawn<T>(&mut self, mark: Option<Mark>, spawn: impl FnOnce() -> T) -> T {
        spawn_marked(mark, || match &mut self.descriptors {
            Some(descriptors) => descriptors.spawn(spawn),
            None => spawn(),
        })
    }
}

impl Exit {
    /// Returns when the child has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn ended(self) {
        match self {
            Self::System(exit) => exit.ended().await,
            #[cfg(feature = "simulation")]
            Self::Simulated(ended) => ended.await,
        }
    }
}

impl Child {
    /// A child that was just spawned with this mark.
    pub(super) fn spawned(child: std::process::Child, mark: Option<Mark>) -> Self {
        Self {
            pid: Pid::from_child(&child),
            reaped: false,
            inner: Inner::System { child, mark },
        }
    }

    /// A child that exists in a simulation.
    #[cfg(feature = "simulation")]
    pub(super) fn simulated(pid: Pid, kernel: Arc<dyn simulation::Kernel>) -> Self {
        Self {
            pid,
            reaped: false,
            inner: Inner::Simulated(kernel),
        }
    }

    /// Returns its process id, which is its group's.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns its process id as messages tell it.
    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// Returns what waits for its end.
    pub(super) fn exit(&self) -> Exit {
        match &self.inner {
            Inner::System { .. } => Exit::System(process::Exit::of(self.pid)),
            #[cfg(feature = "simulation")]
            Inner::Simulated(kernel) => Exit::Simulated(kernel.exit(self.pid.as_raw_pid())),
        }
    }

    /// Sends a signal to its group, while the number is certainly that group's.
    pub(super) fn signal_group(&self, signal: Signal) {
        if self.reaped {
            return;
        }
        match &self.inner {
            Inner::System { .. } => process::signal_group(self.pid, signal),
            #[cfg(feature = "simulation")]
            Inner::Simulated(kernel) => {
                kernel.signal_group(self.pid.as_raw_pid(), signal.as_raw());
            }
        }
    }

    /// Sends a signal to one that has left the group.
    pub(super) fn signal_escaped(&self, pid: Pid, signal: Signal) {
        match &self.inner {
            Inner::System { .. } => process::signal_one(pid, signal),
            #[cfg(feature = "simulation")]
            Inner::Simulated(kernel) => kernel.signal_one(pid.as_raw_pid(), signal.as_raw()),
        }
    }

    /// Returns whether it has ended. It stays a zombie, so its number, which is its group's, cannot
    /// be given to anybody else before we reap it.
    pub(super) fn has_ended(&self) -> bool {
        match &self.inner {
            Inner::System { .. } => process::has_ended(self.pid),
            #[cfg(feature = "simulation")]
            Inner::Simulated(kernel) => kernel.status(self.pid.as_raw_pid()).is_some(),
        }
    }

    /// Returns what the kernel says about its end. It stays a zombie.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        match &self.inner {
            Inner::System { .. } => process::status_of(self.pid),
            #[cfg(feature = "simulation")]
            Inner::Simulated(kernel) => kernel.status(self.pid.as_raw_pid()),
        }
    }

    /// Lets go of one that has ended. Its number may be somebody else's from now on.
    pub(super) fn reap(&mut self) {
        if std::mem::replace(&mut self.reaped, true) {
            return;
        }
        match &mut self.inner {
            Inner::System { child, .. } => {
                child.try_wait().ok(); // it has ended: there is nothing to wait for
            }
            #[cfg(feature = "simulation")]
            Inner::Simulated(kernel) => kernel.reap(self.pid.as_raw_pid()),
        }
    }

    /// Returns whether it was let go.
    pub(super) fn is_reaped(&self) -> bool {
        self.reaped
    }

    /// Returns whether its group has members. A leader that was not reaped is one.
    pub(super) fn group_lives(&self) -> bool {
        match &self.inner {
            Inner::System { .. } => process::group_lives(self.pid),
            #[cfg(feature = "simulation")]
            Inner::Simulated(kernel) => kernel.group_lives(self.pid.as_raw_pid()),
        }
    }

    /// Returns every living process that has descended from it and left its group, and whether the
    /// search saw all there are. `adopted` are the orphans that are ours.
    pub(super) fn escaped(&self, adopted: Option<&[Pid]>) -> (Vec<Pid>, bool) {
        match &self.inner {
            Inner::System { mark, .. } => {
                let leader = (!self.reaped).then_some(self.pid);
                process::escaped(leader, *mark, adopted)
            }
            #[cfg(feature = "simulation")]
            Inner::Simulated(kernel) => {
                let (pids, sees_all) = kernel.escaped(self.pid.as_raw_pid());
                let pids = pids.into_iter().filter_map(Pid::from_raw);
                (pids.collect(), sees_all)
            }
        }
    }
}

impl Drop for Child {
    /// A keeper that goes takes its children with it. One that a simulation lets go was killed, and
    /// a killed keeper does nothing.
    fn drop(&mut self) {
        if let Inner::System { child, .. } = &mut self.inner
            && !self.reaped
        {
            process::signal_group(self.pid, Signal::KILL);
            child.try_wait().ok(); // reaped here or by the first process of the system
        }
    }
}
