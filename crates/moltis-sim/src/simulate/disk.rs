//! The disks of the world: real files, and who decides how well it goes with them.
//!
//! A [`Disk`] is a program's on one machine, through all its lives; a [`Mounted`] is what one life
//! has of it, and what the product asks before and behind each step. There a process may die, and
//! there the system may say that the disk is full or broken. What a death leaves is [`leavings`]'.

pub(super) mod leavings;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::leavings::Synced;
use super::fate::Fate;
use super::trace::{Trace, note};

/// A side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Edge {
    Before,
    After,
}

/// A boundary of a step, which is a place to die at.
pub(super) type Boundary = (&'static str, Edge);

/// Steps that are seldom taken. Somebody dies at them on purpose, or nobody would in thousands of
/// worlds.
const RARE: [&str; 22] = [
    "journal.clear",
    "journal.draft",
    "journal.rename",
    "journal.rewrite",
    "journal.undo",
    "output.cut",
    "output.delete",
    "output.drop_stdin",
    "output.move",
    "output.new_gaps",
    "output.remove",
    "output.replace_gaps",
    "output.stdin",
    "output.sync_gaps",
    "spool.after",
    "spool.before",
    "spool.delete",
    "spool.make",
    "spool.read",
    "spool.stray",
    "spool.sums",
    "store.close",
];

/// Steps of the gateway that are taken least of all.
pub(super) const RAREST_OF_GATEWAY: [&str; 5] = [
    "output.cut",
    "output.new_gaps",
    "output.replace_gaps",
    "output.sync_gaps",
    "store.close",
];

/// Steps of a journal that is written anew.
pub(super) const STEPS_OF_DRAFTS: [&str; 3] =
    ["journal.draft", "journal.rename", "journal.rewrite"];

/// How a process dies at a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// It is killed.
    Alone,
    /// With its machine, whose power is gone.
    OfPower,
}

/// How often a boundary was met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Met {
    pub(super) passed: u64,
    pub(super) died: u64,
}

/// What a disk says instead of success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no room.
    Full,
    /// It fails.
    Failing,
}

/// What a disk has done to a program, or a program to its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted<'a> {
    /// A step has met trouble.
    Met(Trouble),
    /// The store begins a sync.
    Syncs,
    /// That sync is done.
    Synced,
    /// A keeper has written this spool, or deleted it.
    Spooled(&'a Path),
}

/// The disk of a program. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    met: BTreeMap<Boundary, Met>,
    /// Whoever takes so many more steps dies at the last of them.
    death_in: Option<u32>,
    /// The same, of the rare ones alone.
    rare_death_in: Option<u32>,
    /// Whoever comes to the first of these boundaries dies there, and then to the next.
    deaths_at: VecDeque<Boundary>,
    /// Whoever comes to this one loses its power there.
    power_cut_at: Option<Boundary>,
    /// The trouble, and how many more steps meet it.
    trouble: Option<(Trouble, u32)>,
    troubled: u64,
    takes: Duration,
    synced: Synced,
}

impl Disk {
    /// Has whoever takes `steps` more boundaries die at the last of them.
    pub(super) fn kill_in(&self, steps: u32) {
        self.state().death_in = Some(steps);
    }

    /// Has whoever takes `steps` more boundaries of rare steps die at the last of them.
    pub(super) fn kill_in_rare(&self, steps: u32) {
        self.state().rare_death_in = Some(steps);
    }

    /// Has whoever comes to these boundaries die there, one after the other.
    pub(super) fn kill_at(&self, boundaries: Vec<Boundary>) {
        self.state().deaths_at = boundaries.into();
    }

    /// Has the machine lose its power in the moment in which somebody comes to this boundary.
    pub(super) fn cut_power_at(&self, boundary: Boundary) {
        self.state().power_cut_at = Some(boundary);
    }

    /// Has the next steps meet trouble, so many of them.
    pub(super) fn trouble(&self, trouble: Trouble, steps: u32) {
        self.state().trouble = Some((trouble, steps));
    }

    /// Has slow steps take this long.
    pub(super) fn slow(&self, takes: Duration) {
        self.state().takes = takes;
    }

    /// Ends whatever was wrong with it.
    pub(super) fn heal(&self) {
        let mut state = self.state();
        (state.death_in, state.rare_death_in) = (None, None);
        state.deaths_at.clear();
        state.power_cut_at = None;
        (state.trouble, state.takes) = (None, Duration::ZERO);
    }

    /// Returns how often each boundary was met.
    pub(super) fn met(&self) -> BTreeMap<Boundary, Met> {
        self.state().met.clone()
    }

    /// Returns how many steps have met trouble.
    pub(super) fn troubled(&self) -> u64 {
        self.state().troubled
    }

    /// Looks at, or changes, what is known to be synced.
    pub(super) fn with_synced<T>(&self, look: impl FnOnce(&mut Synced) -> T) -> T {
        look(&mut self.state().synced)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one life of a program has of its disk.
pub(super) struct Mounted {
    pub(super) disk: Disk,
    pub(super) who: String,
    pub(super) fate: Fate,
    pub(super) trace: Trace,
    /// Called in the moment of a death at a boundary.
    pub(super) dies: Box<dyn Fn(Death) + Send + Sync>,
    /// Told of what the model has to know.
    pub(super) tells: Box<dyn Fn(Noted<'_>) + Send + Sync>,
    /// Whether a power cut may ask what is synced.
    pub(super) is_watched: bool,
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mounted").field(&self.who).finish()
    }
}

impl Mounted {
    fn step(&self, what: &'static str, path: &Path, edge: Edge) -> io::Result<()> {
        if self.fate.is_over() {
            return Err(io::Error::other("the process is dead"));
        }
        // It is done, also where somebody dies of it.
        if let ("spool.after" | "spool.delete", Edge::After) = (what, edge) {
            (self.tells)(Noted::Spooled(path));
        }
        let mut state = self.disk.state();
        let met = state.met.entry((what, edge)).or_default();
        met.passed += 1;
        let is_rare = RARE.contains(&what) && count_down(&mut state.rare_death_in);
        let here = (what, edge);
        let loses_power = state.power_cut_at.take_if(|at| *at == here).is_some();
        let is_there = state.deaths_at.pop_front_if(|at| *at == here).is_some();
        let is_meant = is_there || is_rare || loses_power;
        if count_down(&mut state.death_in) || is_meant {
            state.met.entry((what, edge)).or_default().died += 1;
            drop(state);
            note!(self.trace, &self.who, "dies {edge:?} {what}");
            self.fate.end();
            (self.dies)(if loses_power {
                Death::OfPower
            } else {
                Death::Alone
            });
            return Err(io::Error::other("the process is dead"));
        }
        if edge == Edge::Before
            && let Some((trouble, left)) = &mut state.trouble
        {
            let trouble = *trouble;
            *left -= 1;
            if *left == 0 {
                state.trouble = None;
            }
            state.troubled += 1;
            note!(self.trace, &self.who, "{what}: {trouble:?}");
            (self.tells)(Noted::Met(trouble));
            return Err(match trouble {
                Trouble::Full => io::ErrorKind::StorageFull.into(),
                Trouble::Failing => io::Error::from_raw_os_error(5), // EIO
            });
        }
        if self.is_watched {
            state.synced.note(what, path, edge);
        }
        match (what, edge) {
            ("store.sync", Edge::Before) => (self.tells)(Noted::Syncs),
            ("store.sync", Edge::After) => (self.tells)(Noted::Synced),
            _ => {}
        }
        Ok(())
    }

    fn takes(&self) -> Duration {
        self.disk.state().takes
    }
}

/// Counts a boundary. Returns whether it is the last one, which is counted once.
fn count_down(left: &mut Option<u32>) -> bool {
    let Some(steps) = left else {
        return false;
    };
    *steps = steps.saturating_sub(1);
    let is_last = *steps == 0;
    if is_last {
        *left = None;
    }
    is_last
}

impl moltis_node::simulation::Disk for Mounted {
    fn step(&self, at: moltis_node::simulation::Step<'_>) -> io::Result<()> {
        let edge = match at.edge {
            moltis_node::simulation::Edge::Before => Edge::Before,
            moltis_node::simulation::Edge::After => Edge::After,
        };
        self.step(at.what, at.path, edge)
    }

    fn work_time(&self) -> Duration {
        self.takes()
    }
}

impl moltis_gateway::simulation::Disk for Mounted {
    fn step(&self, at: moltis_gateway::simulation::Step<'_>) -> io::Result<()> {
        let edge = match at.edge {
            moltis_gateway::simulation::Edge::Before => Edge::Before,
            moltis_gateway::simulation::Edge::After => Edge::After,
        };
        self.step(at.what, at.path, edge)
    }

    fn time_of(&self, _what: &'static str, _path: &Path) -> Duration {
        self.takes()
    }
}
