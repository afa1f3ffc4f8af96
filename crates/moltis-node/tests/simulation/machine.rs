//! A machine of a few programs, and a disk that tells when somebody dies.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use moltis_node::simulation::{
    self, Child, Edge, Ends, Found, Order, Output, Sockets, Step, Terminal,
};
use moltis_proto::run::{ExitStatus, TtySize};
use moltis_proto::{JournalId, RunId};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// What a pipe holds.
const PIPE_BYTES: usize = 64 * 1024;

/// End of file, as a terminal spells it.
const END_OF_TRANSMISSION: u8 = 4;

const TERM: i32 = 15;
const KILL: i32 = 9;
const PIPE: i32 = 13;

/// The programs of a machine. Each gets the number of the run that asks for it, and then:
/// `print` bytes and an exit code; `said` the same, done before anybody looks; `wait` seconds; `stay` seconds, without listening to SIGTERM.
/// `echo` writes on its terminal what is typed there, and at the end how large it is.
const PROGRAMS: [&str; 5] = [
    "/sim/print",
    "/sim/said",
    "/sim/wait",
    "/sim/stay",
    "/sim/echo",
];

/// The processes of a machine, which outlive its keepers.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    all: Mutex<BTreeMap<i32, Process>>,
    tasks: Mutex<JoinSet<()>>,
    /// How often each run was spawned.
    pub(crate) spawned: Mutex<BTreeMap<u8, u32>>,
}

#[derive(Debug)]
struct Process {
    run: (RunId, JournalId),
    status: watch::Sender<Option<ExitStatus>>,
    listens: bool,
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
    /// Steps behind which somebody has the file's lock for a moment, each once.
    holds: Mutex<BTreeSet<&'static str>>,
    /// How long it works at what it is given, where that is longer than a moment.
    works_for: Mutex<Duration>,
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

    /// Has somebody look into the file of the next step of this kind, under its lock.
    pub(crate) fn hold(&self, what: &'static str) {
        self.holds.lock().unwrap().insert(what);
    }

    /// Has whatever it is given from here on take this long.
    pub(crate) fn slow_down(&self, to: Duration) {
        *self.works_for.lock().unwrap() = to;
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
        if at.edge == Edge::After && self.holds.lock().unwrap().remove(at.what) {
            let file = std::fs::File::open(at.path).unwrap();
            file.lock().unwrap();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                drop(file);
            });
        }
        Ok(())
    }

    fn work_time(&self) -> Duration {
        Duration::from_millis(3).max(*self.works_for.lock().unwrap())
    }
}

impl Processes {
    pub(crate) fn is_any_alive(&self) -> bool {
        let all = self.all.lock().unwrap();
        all.values()
            .any(|process| process.status.borrow().is_none())
    }

    fn signal(&self, pid: i32, signal: i32) {
        if let Some(process) = self.all.lock().unwrap().get(&pid)
            && (signal == KILL || (signal == TERM && process.listens))
        {
            end(&process.status, ExitStatus::Signal(signal));
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
        let is_program = PROGRAMS.iter().any(|program| path == Path::new(program));
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
        let status = process.clone();
        let listens = order.argv[0] != "/sim/stay";
        let run = order.run;
        let of_run = Process {
            run,
            status,
            listens,
        };
        let status = of_run.status.clone();
        all.insert(pid, of_run);
        if let Some(tty) = order.tty {
            let size = Mutex::new(tty.size);
            let echo = Echo {
                process,
                size,
                typed: Mutex::default(),
                reader: Mutex::default(),
            };
            return Ok(Child {
                pid,
                ends: Ends::Terminal(Arc::new(echo)),
            });
        }
        let waiting = Arc::new(AtomicU64::new(0));
        let does: BoxFuture<'static, ExitStatus> = if order.argv[0] == "/sim/said" {
            waiting.store(number(2), Ordering::Relaxed);
            let bytes = vec![b'x'; usize::try_from(number(2)).unwrap()];
            let said = stdout.write_all(&bytes).now_or_never();
            said.expect("the pipe takes it at once").unwrap();
            drop(stdout);
            let status = ExitStatus::Code(i32::try_from(number(3)).unwrap());
            end(&process, status);
            Box::pin(std::future::ready(status))
        } else if order.argv[0] == "/sim/print" {
            let bytes = vec![b'x'; usize::try_from(number(2)).unwrap()];
            let code = i32::try_from(number(3)).unwrap();
            let waiting = Arc::clone(&waiting);
            Box::pin(async move {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let Ok(written) = stdout.write(rest).await else {
                        return ExitStatus::Signal(PIPE);
                    };
                    waiting.fetch_add(written as u64, Ordering::Relaxed);
                    rest = &rest[written..];
                }
                ExitStatus::Code(code)
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
        let pipe = |stream, waiting| {
            let process = status.subscribe();
            Box::new(Pipe {
                stream,
                waiting,
                process,
            }) as Box<dyn Output>
        };
        Ok(Child {
            pid,
            ends: Ends::Pipes {
                stdin: None,
                stdout: pipe(near, waiting),
                stderr: pipe(near_stderr, Arc::default()),
            },
        })
    }

    fn exit(&self, child: i32) -> BoxFuture<'static, ()> {
        let mut ended = self.processes.all.lock().unwrap()[&child]
            .status
            .subscribe();
        Box::pin(async move {
            ended.wait_for(Option::is_some).await.unwrap();
        })
    }

    fn status(&self, child: i32) -> Option<ExitStatus> {
        *self.processes.all.lock().unwrap()[&child].status.borrow()
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

    fn end_leftovers(&self, runs: &[(RunId, JournalId)]) -> bool {
        for process in self.processes.all.lock().unwrap().values() {
            if runs.contains(&process.run) {
                end(&process.status, ExitStatus::Signal(KILL));
            }
        }
        true
    }

    fn orphans(&self) -> Option<Vec<i32>> {
        Some(Vec::new())
    }
}

#[derive(Debug)]
struct Pipe {
    stream: DuplexStream,
    /// What is told to wait in it.
    waiting: Arc<AtomicU64>,
    /// Who has the other end.
    process: watch::Receiver<Option<ExitStatus>>,
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let bytes = (buf.filled().len() - before) as u64;
        let left = self.waiting.load(Ordering::Relaxed).saturating_sub(bytes);
        self.waiting.store(left, Ordering::Relaxed);
        read
    }
}

impl Output for Pipe {
    fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    fn is_held_open(&self) -> bool {
        self.process.borrow().is_none()
    }
}

/// A terminal with its only process in it.
#[derive(Debug)]
struct Echo {
    process: watch::Sender<Option<ExitStatus>>,
    size: Mutex<TtySize>,
    /// What it shows that was not read.
    typed: Mutex<Vec<u8>>,
    reader: Mutex<Option<Waker>>,
}

impl Echo {
    fn show(&self, bytes: &[u8]) {
        self.typed.lock().unwrap().extend_from_slice(bytes);
        if let Some(reader) = self.reader.lock().unwrap().take() {
            reader.wake();
        }
    }
}

impl Terminal for Echo {
    fn poll_read(&self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut typed = self.typed.lock().unwrap();
        if typed.is_empty() && self.process.borrow().is_none() {
            *self.reader.lock().unwrap() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = typed.len().min(out.len());
        out[..length].copy_from_slice(&typed[..length]);
        typed.drain(..length);
        Poll::Ready(Ok(length))
    }

    fn poll_write(&self, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.first() == Some(&END_OF_TRANSMISSION) {
            let size = *self.size.lock().unwrap();
            end(&self.process, ExitStatus::Code(0));
            self.show(format!("{}x{}", size.cols, size.rows).as_bytes());
        } else {
            self.show(bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn waiting(&self) -> u64 {
        self.typed.lock().unwrap().len() as u64
    }

    fn resize(&self, size: TtySize) {
        *self.size.lock().unwrap() = size;
    }
}
