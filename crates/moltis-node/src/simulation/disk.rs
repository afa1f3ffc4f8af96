//! The disk under a simulated keeper.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Every [`Step::what`]. Each is taken sooner or later: a simulation that has not seen one has not
/// looked everywhere.
pub const STEPS: [&str; 18] = [
    "journal.make",
    "journal.open",
    "journal.append",
    "journal.undo",
    "journal.clear",
    "journal.draft",
    "journal.rewrite",
    "journal.rename",
    "journal.cut",
    "journal.delete",
    "spool.make",
    "spool.before",
    "spool.write",
    "spool.sums",
    "spool.after",
    "spool.read",
    "spool.delete",
    "spool.stray",
];

/// Whoever is told of each step that a keeper takes on its disk.
pub trait Disk: fmt::Debug + Send + Sync {
    /// A step is about to be taken, or was just taken well: now is the time to die.
    ///
    /// # Errors
    /// What the system would say. Before the step, it is not taken then; behind it, it was taken and
    /// the keeper believes that it failed, as a write may that did not come to its end.
    fn step(&self, at: Step<'_>) -> io::Result<()>;

    /// Returns how long the next work takes that a keeper does on a thread of its own: all of what
    /// it does with spools. Its steps are taken when that time is over, in one moment.
    fn work_time(&self) -> Duration {
        Duration::ZERO
    }
}

/// A boundary of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// One of [`STEPS`].
    pub what: &'static str,
    /// The file that is written, read, or put in its place.
    pub path: &'a Path,
    /// Which boundary.
    pub edge: Edge,
}

/// The two boundaries of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Edge {
    /// It is about to be taken.
    Before,
    /// It was taken.
    After,
}
