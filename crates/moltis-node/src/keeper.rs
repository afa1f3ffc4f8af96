//! The keeper: the process that owns the runs of one directory, on a node or on the gateway's
//! machine.
//!
//! It spawns commands, reads both their outputs, feeds their stdin, ends them at their time, keeps
//! what they wrote until a gateway has stored it, and remembers how they ended. It has no network:
//! it listens on a Unix socket of its own user and speaks the run messages of
//! [`moltis_proto::message`] there, framed as [`wire`] says. When the client on that socket goes,
//! the runs go on; the next client resumes where the last one stopped.
//!
//! Two ways in: [`serve`] is the process `moltis keeper`; [`Keeper::spawn_in_process`] puts a
//! keeper into an embedder's program or a test, where its runs end with the program. Clients use
//! [`connect`].
//!
//! To read it, follow a run: [`wire`] and `client` (frames), `desk` (what a message does),
//! `starting`, `lookers`, `spawn` and `program` (from a spec to a child), `run` (pipes, outbox, spool), `ending` (how it stops),
//! `journal` and `recover` (what outlives this process), and `core`, the loop around them.

mod client;
pub mod config;
pub mod connect;
mod core;
mod desk;
mod disk;
mod door;
mod ending;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod kernel;
mod lookers;
mod machine;
mod ops;
mod pipes;
mod process;
mod program;
mod recover;
mod run;
mod spawn;
mod spool;
mod starting;
pub mod wire;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use moltis_identity::files;
use moltis_proto::JournalId;
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::core::Core;
use self::disk::Disk;
use self::door::{Door, LEAVING, SOCKET};
use self::journal::Journal;
use self::kernel::Kernel;
use self::machine::Machine;
use self::recover::Estate;

pub use self::config::{KeeperConfig, Policy, Rules, RulesError, RulesSource};
pub use self::connect::{KeeperStream, Starter};
pub(crate) use self::door::Sockets;
pub use self::journal::JournalError;

/// Bytes that a socket's address may have (unix(7): 108 with its closing zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Bytes that wait between a keeper in this process and its client.
const DUPLEX_BYTES: usize = 256 * 1024;

/// Why a keeper cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// Its directory cannot be used.
    #[error("the keeper's directory `{}` cannot be used", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file that keepers begin under cannot be opened.
    #[error("the lock `{}` cannot be opened", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its socket would have too long a path.
    #[error("the keeper's socket `{}` has a path of {} bytes: at most {SOCKET_PATH_BYTES_MAX} work, so use a home with a shorter path", path.display(), path.as_os_str().len())]
    SocketPath {
        /// The socket.
        path: PathBuf,
    },
    /// Its socket cannot be opened.
    #[error("the keeper's socket `{}` cannot be opened", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Why a keeper's process came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It was asked to stop, or had nothing to do for long.
    Left,
    /// A keeper of the same version serves this directory already.
    Another,
}

/// Serves a directory as a process of its own, on a Unix socket, until `stop` or until there is
/// nothing to do for long. Takes over the journals of dead keepers first.
///
/// It changes the process that it runs in: a session of its own, more descriptors, SIGCHLD is not
/// ignored, and orphans of its children become its children.
///
/// # Errors
/// [`KeeperError`]; nothing was served then.
pub async fn serve(config: KeeperConfig, stop: CancellationToken) -> Result<Served, KeeperError> {
    rustix::process::setsid().ok(); // whoever leads a group already has one of its own
    // Whatever our starter left open is none of our children's business.
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    hear_of_children();
    serve_on(Machine::with(Kernel::as_owner()), config, stop).await
}

/// Whoever starts us may ignore SIGCHLD, and that survives an exec(2): then the system reaps our
/// children before we have read how they ended. With a handler, which may do nothing, it does not.
fn hear_of_children() {
    let heard = signal(SignalKind::child()); // it stays for the life of the process
    if let Err(error) = heard {
        tracing::warn!(error = %error, "how commands end may not be known");
    }
}

/// As [`serve`], on a machine that a simulation has made up.
#[cfg(feature = "simulation")]
pub(crate) async fn serve_simulated(
    machine: crate::simulation::Machine,
    config: KeeperConfig,
    stop: CancellationToken,
) -> Result<Served, KeeperError> {
    serve_on(Machine::simulated(machine), config, stop).await
}

async fn serve_on(
    machine: Machine,
    config: KeeperConfig,
    stop: CancellationToken,
) -> Result<Served, KeeperError> {
    let starting = StartLock::take(&config.dir)?;
    let estate = inherit(&machine, &config, &starting)?;
    if estate.has_keeper_of(&config.version) {
        return Ok(Served::Another);
    }
    let journal = new_journal(&machine.disk, &config)?;
    let socket = config.dir.join(format!("k{}.{SOCKET}", journal.id()));
    delete_dead_sockets(&config.dir, &estate.journals);
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        journal.delete();
        return Err(KeeperError::SocketPath { path: socket });
    }
    let opened = machine.sockets.open(&socket);
    let door = opened.map_err(|source| KeeperError::Socket {
        path: socket,
        source,
    })?;
    drop(starting);
    let core = Core::new(config, machine, journal, estate);
    core.run(door, stop).await;
    Ok(Served::Left)
}

/// A keeper inside this program.
#[derive(Debug)]
pub struct Keeper {
    clients: mpsc::Sender<KeeperStream>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Keeper {
    /// Puts a keeper into the runtime of the caller. Its runs end with it: when it is dropped or
    /// shut down. It does not change the process around it, so children that leave their process
    /// group and lose their parents are not found.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn spawn_in_process(config: KeeperConfig) -> Result<Self, KeeperError> {
        let starting = StartLock::take(&config.dir)?;
        let machine = Machine::with(Kernel::as_guest());
        let estate = inherit(&machine, &config, &starting)?;
        let journal = new_journal(&machine.disk, &config)?;
        drop(starting);
        let (clients, arriving) = mpsc::channel(4);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let core = Core::new(config, machine, journal, estate);
        tasks.spawn(core.run(Door::memory(arriving), stop.clone()));
        tasks.close();
        Ok(Self {
            clients,
            stop,
            tasks,
        })
    }

    /// Returns a connection to it, as its socket would give one. The newest that attaches is its
    /// client.
    ///
    /// # Errors
    /// The keeper has left.
    pub async fn connect(&self) -> io::Result<KeeperStream> {
        let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
        self.clients
            .send(far.into())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(near.into())
    }

    /// Ends every run, then the keeper.
    ///
    /// # Cancel safety
    /// Cancel safe: the keeper goes on leaving.
    pub async fn shut_down(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Held while a keeper begins, so that two that begin at once see each other.
struct StartLock {
    _file: File,
}

impl StartLock {
    fn take(dir: &Path) -> Result<Self, KeeperError> {
        let wrong = |source| KeeperError::Directory {
            dir: dir.to_owned(),
            source,
        };
        files::make_dir(dir, 0o700).map_err(wrong)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let path = dir.join("keepers.lock");
        let file = files::open(&path, &mut options).map_err(|source| KeeperError::Lock {
            path: path.clone(),
            source,
        })?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| wrong(error.into()))?;
        Ok(Self { _file: file })
    }
}

fn inherit(
    machine: &Machine,
    config: &KeeperConfig,
    starting: &StartLock,
) -> Result<Estate, KeeperError> {
    let estate = recover::take_over_all(
        &machine.kernel,
        &machine.disk,
        &config.dir,
        config.boot_id,
        &[],
        Some(starting),
    );
    estate.map_err(|source| KeeperError::Directory {
        dir: config.dir.clone(),
        source,
    })
}

fn new_journal(disk: &Disk, config: &KeeperConfig) -> Result<Journal, KeeperError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(KeeperError::Random)?;
    let id = JournalId::from_bytes(id);
    Ok(Journal::create(
        disk,
        &config.dir,
        id,
        config.boot_id,
        &config.version,
    )?)
}

/// Takes away the sockets of the keepers whose journals we hold now.
fn delete_dead_sockets(dir: &Path, journals: &[Journal]) {
    for journal in journals {
        for kind in [SOCKET, LEAVING] {
            fs::remove_file(dir.join(format!("k{}.{kind}", journal.id()))).ok(); // most are gone
        }
    }
}
