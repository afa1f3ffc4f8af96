//! A machine of a few programs, and a disk that tells when somebody dies.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use moltis_node::simulation::{self, Child, Edge, Ends, Found, Order, Output, Sockets, Step};
use moltis_proto::run::ExitStatus;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// What a pipe holds.
const PIPE_BYTES: usize = 64 * 1024;

const TERM: i32 = 15;
const KILL: i32 = 9;
const PIPE: i32 = 13;

/// The processes of a machine, which outlive its keepers. Its programs are `/sim/print <number>
/// <bytes> <code>` and `/sim/wait <number> <seconds>`; the number is the run that asks for it.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    all: Mutex<BTreeMap<i32, watch::Sender<Option<ExitStatus>>>>,
    tasks: Mutex<JoinSet<()>>,
    /// How often each run was spawned.
    pub(crate) spawned: Mutex<BTreeMap<u8, u32>>,
}

/// The machine, as one keeper has it.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) processes: Arc<Processes>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) sockets: Sockets,
}

/// A boundary that a keeper dies at.
pub(crate) type Boundary = (&'static str, Edge);

/// A disk that remembers which boundaries it has seen.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) seen: Mutex<BTreeSet<Boundary>>,
    dies_at: Option<Boundary>,
    /// Steps that fail, each once.
    fails: Mutex<BTreeSet<&'static str>>,
    sockets: Sockets,
    /// The directory as it was in the moment of death.
    pub(crate) left: Mutex<Option<TempDir>>,
    is_dead: AtomicBool,
    pub(crate) died: Notify,
}

impl Machine {
    pub(crate) fn new(dies_at: Option<Boundary>, processes: Arc<Processes>) -> Self {
        let sockets = Sockets::default();
        let disk = Disk {
            dies_at,
            sockets: sockets.of_process(),
            ..Disk::default()
        };
        Self {
            processes,
            sockets: sockets.clone(),
            disk: Arc::new(disk),
        }
    }

    pub(crate) fn of_keeper(&self) -> simulation::Machine {
        simulation::Machine {
            kernel: Arc::new(self.clone()),
            disk: Arc::clone(&self.disk) as Arc<dyn simulation::Disk>,
            sockets: self.disk.sockets.clone(),
        }
    }
}

impl Disk {
    /// Has the next step of this kind fail.
    pub(crate) fn fail(&self, what: &'static str) {
        self.fails.lock().unwrap().insert(what);
    }

    pub(crate) fn has_seen(&self, what: &'static str) -> bool {
        self.seen.lock().unwrap().contains(&(what, Edge::After))
    }

    fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    fn die(&self, dir: &Path) {
        let left = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), left.path().join(entry.file_name())).unwrap();
        }
        *self.left.lock().unwrap() = Some(left);
        self.is_dead.store(true, Ordering::Relaxed);
        self.sockets.cut();
        self.died.notify_one();
    }
}

impl simulation::Disk for Disk {
    fn step(&self, at: Step<'_>) -> io::Result<()> {
        if self.is_dead() {
            return Err(io::Error::other("it is dead"));
        }
        assert!(simulation::STEPS.contains(&at.what), "{at:?}");
        self.seen.lock().unwrap().insert((at.what, at.edge));
        if self.dies_at == Some((at.what, at.edge)) {
            self.die(at.path.parent().unwrap());
        }
        if at.edge == Edge::Before && self.fails.lock().unwrap().remove(at.what) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn work_time(&self) -> Duration {
        Duration::from_millis(3)
    }
}

impl Processes {
    fn signal(&self, pid: i32, signal: i32) {
        if let Some(process) = self.all.lock().unwrap().get(&pid)
            && [TERM, KILL].contains(&signal)
        {
            end(process, ExitStatus::Signal(signal));
        }
    }
}

/// Ends a process, unless it has ended.
fn end(process: &watch::Sender<Option<ExitStatus>>, status: ExitStatus) {
    process.send_if_modified(|found| {
        let lived = found.is_none();
        found.get_or_insert(status);
        lived
    });
}

impl simulation::Kernel for Machine {
    fn look_at(&self, path: &Path) -> io::Result<Found> {
        let is_dir = path == Path::new("/");
        let is_program = [Path::new("/sim/print"), Path::new("/sim/wait")].contains(&path);
        if is_dir || is_program {
            let may_execute = true;
            return Ok(Found {
                is_dir,
                may_execute,
            });
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn spawn(&self, order: &Order<'_>) -> io::Result<Child> {
        if self.disk.is_dead() {
            return Err(io::Error::other("it is dead"));
        }
        let number = |at: usize| order.argv[at].parse::<u64>().unwrap();
        let run = u8::try_from(number(1)).unwrap();
        *self
            .processes
            .spawned
            .lock()
            .unwrap()
            .entry(run)
            .or_default() += 1;
        let (near, mut stdout) = tokio::io::duplex(PIPE_BYTES);
        let (near_stderr, stderr) = tokio::io::duplex(PIPE_BYTES);
        let (process, mut killed) = watch::channel(None);
        let mut all = self.processes.all.lock().unwrap();
        let pid = 100 + i32::try_from(all.len()).unwrap();
        all.insert(pid, process.clone());
        let does: BoxFuture<'static, ExitStatus> = if order.argv[0] == "/sim/print" {
            let bytes = vec![b'x'; usize::try_from(number(2)).unwrap()];
            let code = i32::try_from(number(3)).unwrap();
            Box::pin(async move {
                match stdout.write_all(&bytes).await {
                    Ok(()) => ExitStatus::Code(code),
                    Err(_) => ExitStatus::Signal(PIPE),
                }
            })
        } else {
            let time = Duration::from_secs(number(2));
            Box::pin(async move {
                tokio::time::sleep(time).await;
                drop(stdout);
                ExitStatus::Code(0)
            })
        };
        self.processes.tasks.lock().unwrap().spawn(async move {
            let status = tokio::select! {
                status = does => status,
                killed = killed.wait_for(Option::is_some) => killed.unwrap().unwrap(),
            };
            drop(stderr);
            end(&process, status);
        });
        let pipe = |near| Box::new(Pipe(near)) as Box<dyn Output>;
        Ok(Child {
            pid,
            ends: Ends::Pipes {
                stdin: None,
                stdout: pipe(near),
                stderr: pipe(near_stderr),
            },
        })
    }

    fn exit(&self, child: i32) -> BoxFuture<'static, ()> {
        let mut ended = self.processes.all.lock().unwrap()[&child].subscribe();
        Box::pin(async move {
            ended.wait_for(Option::is_some).await.unwrap();
        })
    }

    fn status(&self, child: i32) -> Option<ExitStatus> {
        *self.processes.all.lock().unwrap()[&child].borrow()
    }

    fn reap(&self, _child: i32) {}

    fn signal_group(&self, leader: i32, signal: i32) {
        if !self.disk.is_dead() {
            self.processes.signal(leader, signal);
        }
    }

    fn signal_one(&self, _pid: i32, _signal: i32) {}

    fn group_lives(&self, leader: i32) -> bool {
        self.status(leader).is_none()
    }

    fn escaped(&self, _child: i32) -> (Vec<i32>, bool) {
        (Vec::new(), true)
    }

    fn orphans(&self) -> Option<Vec<i32>> {
        Some(Vec::new())
    }
}

#[derive(Debug)]
struct Pipe(DuplexStream);

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Output for Pipe {
    fn waiting(&self) -> u64 {
        0
    }
}
