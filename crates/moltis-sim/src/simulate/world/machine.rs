//! A machine: a kernel, a disk, sockets, and the keepers that live on it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moltis_node::keeper::{KeeperConfig, Policy, Rules, Served};
use moltis_node::simulation::{self, Sockets};
use moltis_node::{KeeperDir, Keepers};
use moltis_proto::BootId;
use moltis_proto::limits::SPOOL_BYTES_MAX;
use tokio_util::sync::CancellationToken;

use super::spawn;
use crate::simulate::dice::Dice;
use crate::simulate::disk::{self, Disk, Mounted, Noted, leavings};
use crate::simulate::fate::Fate;
use crate::simulate::kernel::script::Stream;
use crate::simulate::kernel::{Handle, Kernel};
use crate::simulate::model::{Happened, Trouble};
use crate::simulate::net::Place;
use crate::simulate::trace::note;
use crate::simulate::witness::Witness;

/// Bytes that a spool begins with: its header, and four of a checksum for each page that it may have.
const SPOOL_HEAD_BYTES: u64 = 4096 + SPOOL_BYTES_MAX / 4096 * 4;

/// The version of the gateway, and so of the keepers on its machine.
pub(super) const VERSION: &str = "1.0.0";

/// A machine with its keepers. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Machine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Place,
    /// The place whose runs are its runs: its own, or that of the machine which it is a copy of.
    of: Place,
    witness: Witness,
    kernel: Kernel,
    disk: Disk,
    sockets: Sockets,
    /// Where its keepers have their journals.
    runs: PathBuf,
    keepers_stay: Duration,
    /// The boot of the gateway's machine, where this is a part of it.
    boot_of_gateway: Option<Boot>,
    state: Mutex<State>,
}

/// Counts the boots of the gateway's machine, on which there may be keepers too. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Boot(Arc<AtomicU8>);

impl Default for Boot {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(1)))
    }
}

impl Boot {
    pub(super) fn id(&self) -> BootId {
        BootId::from_bytes([self.0.load(Ordering::Relaxed); 16])
    }

    pub(super) fn next(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct State {
    boot: u8,
    keepers: Vec<Keeper>,
}

/// One life of a keeper.
#[derive(Debug, Clone)]
struct Keeper {
    fate: Fate,
    sockets: Sockets,
    stop: CancellationToken,
}

impl Machine {
    /// A machine that is switched on, without a keeper. Its runs are those of a place, which is its
    /// own unless it is a copy.
    pub(super) fn new(
        (place, of): (Place, Place),
        root: &Path,
        keepers_stay: Duration,
        boot_of_gateway: Option<&Boot>,
        witness: &Witness,
    ) -> Self {
        let kernel = Kernel::new(of, witness.clone());
        spawn(kernel.clone().run());
        Self(Arc::new(Inner {
            place,
            of,
            witness: witness.clone(),
            kernel,
            disk: Disk::default(),
            sockets: Sockets::default(),
            runs: root.join("runs"),
            keepers_stay,
            boot_of_gateway: boot_of_gateway.cloned(),
            state: Mutex::new(State {
                boot: 1,
                keepers: Vec::new(),
            }),
        }))
    }

    pub(super) fn place(&self) -> Place {
        self.0.place
    }

    /// Returns the place whose runs are its runs.
    pub(super) fn of(&self) -> Place {
        self.0.of
    }

    /// Returns its processes.
    pub(super) fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    /// Returns the disk of its keepers.
    pub(super) fn disk(&self) -> &Disk {
        &self.0.disk
    }

    /// Returns where its keepers have their journals and spools.
    pub(super) fn runs(&self) -> &Path {
        &self.0.runs
    }

    pub(super) fn boot_id(&self) -> BootId {
        if let Some(boot) = &self.0.boot_of_gateway {
            return boot.id();
        }
        let mut id = [u8::try_from(self.0.place).unwrap_or(u8::MAX); 16];
        id[0] = self.state().boot;
        BootId::from_bytes(id)
    }

    /// Returns the way to its keepers for a process of this version on it.
    pub(super) fn keepers(&self, version: &str) -> (impl Keepers, Sockets) {
        let sockets = self.0.sockets.of_process();
        let (machine, of_version) = (self.clone(), version.to_owned());
        let starter = move |dir: &Path| {
            machine.start_keeper(dir, &of_version);
            Ok::<_, io::Error>(())
        };
        let dir = KeeperDir::new(&self.0.runs, starter);
        (dir.version(version).simulated(sockets.clone()), sockets)
    }

    /// Kills every keeper, in this moment.
    pub(super) fn kill_keepers(&self) {
        for keeper in std::mem::take(&mut self.state().keepers) {
            if !keeper.fate.is_over() {
                note!(self.0.witness.trace, &self.name(), "is killed");
                keeper.fate.end();
                keeper.sockets.cut();
                self.befell(Trouble::KeeperDied(self.0.of));
            }
        }
    }

    /// Starts a keeper, whether or not anybody needs one.
    pub(super) fn begin_keeper(&self) {
        self.start_keeper(&self.0.runs, VERSION);
    }

    /// Asks every keeper to leave.
    pub(super) fn leave_keepers(&self) {
        if !self.state().keepers.is_empty() {
            self.befell(Trouble::KeeperLeaves(self.0.of));
        }
        for keeper in &self.state().keepers {
            keeper.stop.cancel();
        }
    }

    /// Switches the machine off and on: every process is gone, and the next boot is another one.
    pub(super) fn reboot(&self) {
        self.0.kernel.halt();
        self.kill_keepers();
        self.state().boot += 1;
        self.befell(Trouble::Rebooted(self.0.of));
    }

    /// Switches the machine off for good.
    pub(super) fn switch_off(&self) {
        self.0.kernel.halt();
        self.kill_keepers();
    }

    /// Has files suffer that nobody synced: all that a keeper writes.
    pub(super) fn lose_files(&self, dice: &mut Dice) {
        if fs::exists(&self.0.runs).unwrap_or(false) {
            self.befell(Trouble::LostFiles(self.0.of));
            leavings::spoil_all(&self.0.runs, dice).expect("files of a world can be written");
        }
    }

    fn start_keeper(&self, dir: &Path, version: &str) {
        let (fate, sockets) = (Fate::default(), self.0.sockets.of_process());
        let keeper = Keeper {
            fate: fate.clone(),
            sockets: sockets.clone(),
            stop: CancellationToken::new(),
        };
        let (here, place) = (self.clone(), self.0.of);
        let mounted = Mounted {
            disk: self.0.disk.clone(),
            who: self.name(),
            fate: fate.clone(),
            trace: self.0.witness.trace.clone(),
            dies: Box::new({
                let sockets = sockets.clone();
                move |_death| {
                    sockets.cut();
                    here.befell(Trouble::KeeperDied(place));
                }
            }),
            tells: Box::new({
                let witness = self.0.witness.clone();
                move |noted| {
                    let trouble = match noted {
                        Noted::Met(disk::Trouble::Full) => Trouble::DiskFull(place),
                        Noted::Met(disk::Trouble::Failing) => Trouble::DiskFailed(place),
                        Noted::Spooled(spool) => return note_spool(&witness, spool),
                        Noted::Syncs | Noted::Synced => return,
                    };
                    witness.see(Happened::Befell(trouble));
                }
            }),
            is_watched: false,
        };
        let handle = Handle {
            kernel: self.0.kernel.clone(),
            keeper: fate.clone(),
            dir: dir.to_owned(),
        };
        let mut config = KeeperConfig::new(dir, rules(), self.boot_id(), version);
        config.leave_after = self.0.keepers_stay;
        let machine = simulation::Machine {
            kernel: Arc::new(handle),
            disk: Arc::new(mounted),
            sockets,
        };
        note!(
            self.0.witness.trace,
            &self.name(),
            "begins, version {version}"
        );
        self.0.witness.see(Happened::KeeperBegan { place });
        let (here, stop) = (self.clone(), keeper.stop.clone());
        self.state().keepers.push(keeper);
        spawn(async move {
            let served = tokio::select! {
                biased;
                () = fate.over() => return,
                served = simulation::serve(config, machine, stop) => served,
            };
            let trace = &here.0.witness.trace;
            match served {
                Ok(Served::Left) => {
                    note!(trace, &here.name(), "has left");
                    here.befell(Trouble::KeeperLeft(place));
                }
                Ok(Served::Another) => note!(trace, &here.name(), "finds another one"),
                Err(error) => note!(trace, &here.name(), "cannot serve: {error}"),
            }
            fate.end();
        });
    }

    fn befell(&self, trouble: Trouble) {
        self.0.witness.see(Happened::Befell(trouble));
    }

    fn name(&self) -> String {
        format!("keeper {}", self.0.place)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes note of how much a spool holds, or that it is deleted.
fn note_spool(witness: &Witness, spool: &Path) {
    let stream = match spool.extension().and_then(OsStr::to_str) {
        Some("out") => Stream::Out,
        _ => Stream::Err,
    };
    let length = fs::metadata(spool).ok().map(|file| file.len());
    if let Some(run_id) = spool.file_stem().and_then(OsStr::to_str) {
        let bytes = length.map(|length| length.saturating_sub(SPOOL_HEAD_BYTES));
        witness.tell(|model| model.spools(run_id, stream, bytes));
    }
}

/// Everything may run, from the root.
fn rules() -> Arc<Rules> {
    let path = [("PATH".to_owned(), "/bin".to_owned())];
    Arc::new(Rules {
        policy: Policy::Full,
        env_allow: Vec::new(),
        timeout_max: None,
        timeout_default: None,
        working_dir: PathBuf::from("/"),
        base_env: path.into(),
    })
}
