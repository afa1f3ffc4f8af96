//! A disk that writes down each step, and at one of them fails or lets its gateway die.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use moltis_gateway::simulation::{Disk, Edge, Incarnation, STEPS, Step};
use tempfile::TempDir;

/// What happens to a gateway.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    None,
    Fails(Failure),
    /// It is killed at this boundary of all.
    DiesAt(usize),
    /// Each step of this name takes so long.
    IsSlow(&'static str, Duration),
}

/// Which step fails, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    pub(crate) what: &'static str,
    pub(crate) edge: Edge,
    pub(crate) kind: io::ErrorKind,
    /// Which of these steps is the first to fail.
    pub(crate) nth: usize,
    /// Whether those behind it fail too.
    pub(crate) lasts: bool,
}

/// A boundary that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) what: &'static str,
    pub(crate) edge: Edge,
    /// Below the home.
    pub(crate) path: PathBuf,
}

/// The disk of one life.
pub(crate) struct Witness {
    home: PathBuf,
    trouble: Trouble,
    seen: Mutex<Vec<Seen>>,
    failures: AtomicUsize,
    life: OnceLock<Incarnation>,
    /// What the killed process left.
    left: Mutex<Option<TempDir>>,
}

impl Witness {
    /// Begins a life in this home.
    pub(crate) fn begin(home: &Path, trouble: Trouble) -> (Arc<Self>, Incarnation) {
        let witness = Arc::new(Self {
            home: home.to_owned(),
            trouble,
            seen: Mutex::default(),
            failures: AtomicUsize::new(0),
            life: OnceLock::new(),
            left: Mutex::default(),
        });
        let incarnation = Incarnation::new(Arc::<Self>::clone(&witness));
        witness.life.set(incarnation.clone()).unwrap();
        (witness, incarnation)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns how often the disk has failed.
    pub(crate) fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    /// Ends the life as `kill -9` does, where that has not happened; returns what it leaves.
    pub(crate) fn kill(&self) -> TempDir {
        if self.left.lock().unwrap().is_none() {
            self.die();
        }
        self.left.lock().unwrap().take().unwrap()
    }

    fn die(&self) {
        let left = TempDir::new().unwrap();
        copy(&self.home, left.path());
        *self.left.lock().unwrap() = Some(left);
        self.life.get().unwrap().kill();
    }

    /// Writes a boundary down; returns how many were seen before, of all and of these.
    fn note(&self, at: Step<'_>) -> (usize, usize) {
        let mut seen = self.seen.lock().unwrap();
        let same = |seen: &&Seen| (seen.what, seen.edge) == (at.what, at.edge);
        let before = (seen.len(), seen.iter().filter(same).count());
        seen.push(Seen {
            what: at.what,
            edge: at.edge,
            path: at.path.strip_prefix(&self.home).unwrap().to_owned(),
        });
        before
    }
}

impl Disk for Witness {
    fn step(&self, at: Step<'_>) -> io::Result<()> {
        assert!(STEPS.contains(&at.what), "`{}` is not in the list", at.what);
        let (boundary, nth) = self.note(at);
        match self.trouble {
            Trouble::Fails(fails)
                if (fails.what, fails.edge) == (at.what, at.edge)
                    && (fails.nth == nth || fails.lasts && fails.nth < nth) =>
            {
                self.failures.fetch_add(1, Ordering::Relaxed);
                Err(fails.kind.into())
            }
            Trouble::DiesAt(last) if last == boundary => {
                self.die();
                Ok(())
            }
            Trouble::None | Trouble::Fails(_) | Trouble::DiesAt(_) | Trouble::IsSlow(..) => Ok(()),
        }
    }

    fn time_of(&self, what: &'static str, _path: &Path) -> Duration {
        match self.trouble {
            Trouble::IsSlow(slow, time) if slow == what => time,
            _ => Duration::ZERO,
        }
    }
}

/// Copies a home. The file that processes share is none that a dead one leaves.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else if entry.file_name() != "gateway.db-shm" {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
