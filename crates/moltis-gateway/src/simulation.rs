//! A gateway in a simulation: one thread, a clock that jumps, a disk that fails when it is told to.
//!
//! Only with the feature `simulation`, which no program that serves anybody turns on. A gateway that
//! was [`simulated`](crate::GatewayBuilder::simulated) is the one that production runs, with these
//! differences:
//!
//! - What production does on threads is done by tasks, or at once. Every SQL statement holds the
//!   thread until SQLite has answered, and readers read one after the other. On tokio's
//!   `current_thread` runtime with a paused clock there is never more than one thread at work, and
//!   time stands still while it works.
//! - A [`Disk`] hears before and after of each step that a crash leaves done or not done. Every one
//!   of them is a place to die at.
//! - [`Incarnation::kill`] ends it as SIGKILL does: nothing is told, flushed or closed.
//!
//! Random numbers and the machine's clocks come from the system as ever; whoever wants the same run
//! twice gives the process the same ones. SQLite has a source of its own, which shows in the salts of
//! the `-wal` file and in nothing else: the bytes of files are not to be compared. The wall clock is
//! the builder's [`Clock`](crate::clock::Clock), and it should lie before the machine's: the age of
//! files that no row knows is told by the file system.
//!
//! # What a crash leaves
//!
//! A process that is killed leaves its directory as it is. To copy are all files but
//! `gateway.db-shm`, which the next opening makes anew. In the middle of `output.write` and
//! `output.gap` the bytes that were being appended may also end anywhere.
//!
//! A power cut leaves what was synced, and of the rest anything. What was synced is told by the steps
//! that were seen `After`, each with the path that it is about:
//!
//! | step | from then on the disk holds |
//! |---|---|
//! | `store.sync` | the `-wal` file as it was at `Before` |
//! | `store.migrate`, `store.checkpoint`, `store.close` | `gateway.db` and the `-wal` file: SQLite syncs both itself |
//! | `store.sync_dir`, `output.sync_dir` | the names in that directory |
//! | `output.sync`, `output.sync_gaps`, `output.sync_synced` | that file as it was at `Before` |
//!
//! Segments and `gaps` only grow, so of those a length says what is synced; `synced` is 48 bytes that
//! are written over. Of the `-wal` file a length says too little. It grows until a checkpoint has
//! moved all of it into `gateway.db`; then the next commit begins a new generation, from the file's
//! start, over the bytes of the old one, and the file keeps its length. Bytes 16 to 24, two salts,
//! name the generation (sqlite.org/fileformat2.html, 4.1). So its bytes are to be kept at each sync,
//! and at the cut:
//!
//! - Each 512 bytes of it are as they were at the last sync or as they are now, by chance. What is
//!   longer than it was then may be missing or hold anything.
//! - Do the salts differ, then the first 32 bytes are the new ones: SQLite syncs the header of a
//!   generation before it writes what follows.
//!
//! A commit counts only where it and all before it are whole, which SQLite's checksums tell. A new
//! generation needs nothing of the one before: all of that is in `gateway.db`, and synced there.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moltis_proto::handshake::Epoch;
use moltis_proto::{DeviceId, InstanceId, RunId};
use tokio::task::AbortHandle;

/// What each [`Step::what`] can be, in the order in which a run meets them.
pub const STEPS: [&str; 24] = [
    "store.migrate",
    "store.open",
    "store.sync_dir",
    "store.commit",
    "store.sync",
    "store.checkpoint",
    "store.close",
    "output.make_dir",
    "output.make_file",
    "output.write",
    "output.gap",
    "output.sync",
    "output.synced",
    "output.sync_synced",
    "output.sync_dir",
    "output.new_gaps",
    "output.sync_gaps",
    "output.replace_gaps",
    "output.delete",
    "output.remove",
    "output.cut",
    "output.move",
    "output.stdin",
    "output.drop_stdin",
];

/// A step on the disk that a crash leaves done or not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// What is done: one of [`STEPS`].
    pub what: &'static str,
    /// The file or directory that it is about.
    pub path: &'a Path,
    /// Which side of it.
    pub edge: Edge,
}

/// A side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Edge {
    /// Nothing is done yet.
    Before,
    /// It is done.
    After,
}

/// The disk of a simulated gateway: files are real, and this decides how well that goes.
pub trait Disk: Send + Sync {
    /// Hears of a step. It may copy files, and kill the gateway.
    ///
    /// # Errors
    /// What the system says instead of success. [`Before`](Edge::Before) the step is then not done.
    /// [`After`](Edge::After) it is done, and only the error of a sync is heard: of all steps it
    /// alone may fail and have done what it should.
    fn step(&self, at: Step<'_>) -> io::Result<()>;

    /// Returns how long a step takes. Asked for what production does on threads of their own:
    /// before each `store.sync`, before the syncs of output, and before a run's output is written
    /// (`output.write`, with the run's directory). All others take no time.
    fn time_of(&self, what: &'static str, path: &Path) -> Duration {
        let _ = (what, path);
        Duration::ZERO
    }

    /// Returns how many bytes of output may be written below `dir` now. With none, writing waits.
    fn room(&self, dir: &Path) -> u64 {
        let _ = dir;
        u64::MAX
    }
}

/// Something that a gateway does which is no step on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// This connection of a device is the one that counts from now on.
    Seated {
        /// Whose.
        device: DeviceId,
        /// Which.
        epoch: Epoch,
        /// The process at its other end.
        instance: InstanceId,
    },
    /// A message about runs that came by this connection is obeyed.
    Heard {
        /// Whose.
        device: DeviceId,
        /// Which.
        epoch: Epoch,
    },
    /// This connection is over.
    Left {
        /// Whose.
        device: DeviceId,
        /// Which.
        epoch: Epoch,
    },
    /// A run's `Start` is given to a connection.
    Released(RunId),
}

/// Whoever is told of what is [`Seen`], in the moment in which it is done.
type Watch = dyn Fn(Seen) + Send + Sync;

/// One life of a simulated gateway: from its building until it is killed. Cloning shares it.
#[derive(Clone)]
pub struct Incarnation(Arc<Inner>);

struct Inner {
    disk: Arc<dyn Disk>,
    watch: Option<Box<Watch>>,
    tasks: Mutex<Life>,
}

#[derive(Default)]
struct Life {
    is_over: bool,
    tasks: Vec<AbortHandle>,
}

impl Incarnation {
    /// Begins one on this disk.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self::begin(disk, None)
    }

    /// Begins one on this disk, and tells `watch` what it does.
    pub fn watched(disk: Arc<dyn Disk>, watch: impl Fn(Seen) + Send + Sync + 'static) -> Self {
        Self::begin(disk, Some(Box::new(watch)))
    }

    fn begin(disk: Arc<dyn Disk>, watch: Option<Box<Watch>>) -> Self {
        Self(Arc::new(Inner {
            disk,
            watch,
            tasks: Mutex::default(),
        }))
    }

    /// Ends it: no task goes on behind its next wait, no step is done or heard of any more. What
    /// the gateway had open closes without a word; a connection that is served is cut. To be
    /// called before files are copied or after, as time stands still; may be called again.
    pub fn kill(&self) {
        let tasks = {
            let mut life = self.life();
            life.is_over = true;
            std::mem::take(&mut life.tasks)
        };
        for task in tasks {
            task.abort();
        }
    }

    /// Returns whether it was killed.
    pub fn is_killed(&self) -> bool {
        self.life().is_over
    }

    pub(crate) fn step(&self, at: Step<'_>) -> io::Result<()> {
        let of_the_dead = || io::Error::other("the process was killed");
        if self.is_killed() {
            return Err(of_the_dead());
        }
        self.0.disk.step(at)?;
        // The disk may have chosen this step to kill at.
        if self.is_killed() {
            return Err(of_the_dead());
        }
        Ok(())
    }

    pub(crate) fn see(&self, seen: Seen) {
        if let Some(watch) = &self.0.watch
            && !self.is_killed()
        {
            watch(seen);
        }
    }

    pub(crate) fn time_of(&self, what: &'static str, path: &Path) -> Duration {
        self.0.disk.time_of(what, path)
    }

    pub(crate) fn room(&self, dir: &Path) -> u64 {
        self.0.disk.room(dir)
    }

    pub(crate) fn started(&self, task: AbortHandle) {
        let mut life = self.life();
        if life.is_over {
            task.abort();
            return;
        }
        if life.tasks.len() == life.tasks.capacity() {
            life.tasks.retain(|task| !task.is_finished());
        }
        life.tasks.push(task);
    }

    fn life(&self) -> std::sync::MutexGuard<'_, Life> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_killed() { "over" } else { "alive" };
        f.debug_tuple("Incarnation").field(&what).finish()
    }
}
