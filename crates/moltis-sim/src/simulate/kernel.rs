//! The processes of a machine: children that do what their [`script`] says, on the clock of the
//! world.
//!
//! One kernel is a machine's for good; a [`Handle`] is what one keeper has of it. What children do
//! is told to the [`Witness`], which knows better than any log what was started and how it ended.

pub(super) mod child;
pub(super) mod script;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::future::{BoxFuture, poll_fn};
use moltis_node::simulation::{self, Ends, Found, Order};
use moltis_proto::run::{ExitStatus, StdinMode};
use moltis_proto::{JournalId, RunId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::child::{Child, SIGKILL};
use self::script::{Script, Stream, Tag, bytes};
use super::fate::Fate;
use super::model::Happened;
use super::net::Place;
use super::witness::Witness;

/// Bytes of one read or write.
const PIECE_BYTES: usize = 64 * 1024;

/// Bytes of a journal's record beside the words of its command, and some more.
const RECORD_BYTES: usize = 256;

/// Bytes of stdin that a pipe holds.
const STDIN_BYTES: usize = 64 * 1024;

/// The processes of one machine. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    place: Place,
    witness: Witness,
    processes: Arc<Mutex<Processes>>,
    bell: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Processes {
    children: BTreeMap<i32, Process>,
    last_pid: i32,
}

#[derive(Debug)]
struct Process {
    child: Child,
    /// The run that it was started for.
    run: (RunId, JournalId),
    is_reaped: bool,
    /// Somebody has sent a signal to its group.
    was_signalled: bool,
    /// What the witness knows of its outputs and its end.
    told: ([u64; 2], bool),
    exit: Vec<Waker>,
    readers: [Option<Waker>; 2],
    writer: Option<Waker>,
}

impl Kernel {
    pub(super) fn new(place: Place, witness: Witness) -> Self {
        Self {
            place,
            witness,
            processes: Arc::default(),
            bell: Arc::default(),
        }
    }

    /// Lets time pass for the children, for ever.
    pub(super) async fn run(self) {
        loop {
            let children = |processes: &Processes| {
                let timers = processes.children.iter();
                let timers =
                    timers.filter_map(|(pid, one)| Some((one.child.poll_timeout()?, *pid)));
                timers.min()
            };
            let next = children(&self.processes());
            let bell = self.bell.notified();
            match next {
                Some((at, pid)) if at <= Instant::now() => self.touch(pid),
                Some((at, _)) => {
                    tokio::time::timeout_at(at, bell).await.ok(); // or something has changed
                }
                None => bell.await,
            }
        }
    }

    /// The machine is switched off: all processes are gone.
    pub(super) fn halt(&self) {
        let children = std::mem::take(&mut self.processes().children);
        for process in children.into_values() {
            let tag = process.child.script().tag;
            if process.child.status.is_none() {
                self.witness.see(Happened::Halted { tag });
            }
        }
    }

    /// Returns whether the child of a request lives.
    pub(super) fn lives(&self, tag: Tag) -> bool {
        let processes = self.processes();
        let mut ours = processes.children.values().filter(|one| one.is_of(tag));
        ours.any(|one| one.child.status.is_none())
    }

    /// Returns whether the child of a request waits for stdin, all of which has come with the request.
    pub(super) fn starves(&self, tag: Tag) -> bool {
        let processes = self.processes();
        let mut ours = processes.children.values().filter(|one| one.is_of(tag));
        ours.any(|one| one.child.script().is_fed && one.child.waits_for_stdin())
    }

    /// Returns how much a keeper that lives has read of the outputs of a child that does.
    pub(super) fn read_of(&self, tag: Tag) -> Option<[u64; 2]> {
        let processes = self.processes();
        let mut ours = processes.children.values().filter(|one| one.is_of(tag));
        let child = &ours.find(|one| one.child.status.is_none())?.child;
        let is_read = child.outputs.iter().all(|output| !output.is_closed);
        is_read.then(|| child.outputs.map(|output| output.read))
    }

    /// Returns whether the child of a request has had a signal, or has ended by itself.
    pub(super) fn was_signalled(&self, tag: Tag) -> bool {
        let processes = self.processes();
        let mut ours = processes.children.values().filter(|one| one.is_of(tag));
        ours.all(|one| one.was_signalled || one.child.status.is_some())
    }

    /// Lets a child do what it can, and whoever waits for it know.
    fn touch(&self, pid: i32) {
        let mut processes = self.processes();
        let Processes { children, last_pid } = &mut *processes;
        let Some(process) = children.get_mut(&pid) else {
            return;
        };
        process.child.advance(Instant::now(), last_pid);
        let happened = process.news();
        process.wake();
        drop(processes);
        for happened in happened {
            self.witness.see(happened);
        }
        self.bell.notify_one();
    }

    /// Changes a child, which then does what it can.
    fn with<T>(&self, pid: i32, change: impl FnOnce(&mut Process) -> T) -> Option<T> {
        let changed = self.processes().children.get_mut(&pid).map(change);
        self.touch(pid);
        changed
    }

    fn look<T>(&self, pid: i32, look: impl FnOnce(&Process) -> T) -> Option<T> {
        self.processes().children.get(&pid).map(look)
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    fn new(script: Script, run: (RunId, JournalId)) -> Self {
        Self {
            child: Child::new(script),
            run,
            is_reaped: false,
            was_signalled: false,
            told: ([0; 2], false),
            exit: Vec::new(),
            readers: [None, None],
            writer: None,
        }
    }

    fn is_of(&self, tag: Tag) -> bool {
        self.child.script().tag == tag
    }

    /// Returns what is new of it since it was last asked.
    fn news(&mut self) -> Vec<Happened> {
        let tag = self.child.script().tag;
        let mut news = Vec::new();
        let (written, ended) = &mut self.told;
        for (stream, at) in [(Stream::Out, 0), (Stream::Err, 1)] {
            let total = self.child.outputs[at].total;
            if std::mem::replace(&mut written[at], total) != total {
                news.push(Happened::Wrote { tag, stream, total });
            }
        }
        if self.child.stdin.is_wrong {
            news.push(Happened::ReadWrong { tag });
        }
        if let Some(status) = self.child.status
            && !std::mem::replace(ended, true)
        {
            news.push(Happened::Ended { tag, status });
        }
        news
    }

    /// Wakes whoever waits for what there is now.
    fn wake(&mut self) {
        let is_over = self.child.status.is_some();
        let holds = self.child.holds_outputs();
        for (output, reader) in self.child.outputs.iter().zip(&mut self.readers) {
            if output.total > output.read || !holds {
                wake(reader);
            }
        }
        if is_over || self.child.stdin.waiting.len() < STDIN_BYTES {
            wake(&mut self.writer);
        }
        if is_over {
            self.exit.drain(..).for_each(Waker::wake);
        }
    }
}

fn wake(waiting: &mut Option<Waker>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}

/// What one keeper has of the kernel, while it lives.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) kernel: Kernel,
    pub(super) keeper: Fate,
    /// Where its journals are.
    pub(super) dir: PathBuf,
}

impl Handle {
    /// Returns whether a journal of this machine holds the words of a child: nothing may be
    /// started that no keeper would know of when it is back.
    fn is_written_down(&self, words: &str) -> bool {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten();
        let paths = entries.flatten().map(|entry| entry.path());
        let mut journals = paths.filter(|path| path.extension().is_some_and(|it| it == "journal"));
        journals.any(|journal| {
            let words = words.as_bytes();
            let holds = |bytes: &[u8]| bytes.windows(words.len()).any(|part| part == words);
            let end = end_of(&journal, words.len() + RECORD_BYTES).unwrap_or_default();
            // One that was just written anew has it in some other place.
            holds(&end) || holds(&std::fs::read(journal).unwrap_or_default())
        })
    }
}

/// Returns the last bytes of a file, of which there may be fewer.
fn end_of(path: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes as u64)))?;
    let mut end = Vec::with_capacity(bytes);
    file.read_to_end(&mut end)?;
    Ok(end)
}

impl simulation::Kernel for Handle {
    fn look_at(&self, path: &Path) -> io::Result<Found> {
        match path.to_str() {
            Some("/bin/sh") => Ok(Found {
                is_dir: false,
                may_execute: true,
            }),
            Some("/") => Ok(Found {
                is_dir: true,
                may_execute: true,
            }),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn spawn(&self, order: &Order<'_>) -> io::Result<simulation::Child> {
        if self.keeper.is_over() {
            return Err(io::Error::other("the keeper is dead"));
        }
        let words = order.argv.last().cloned().unwrap_or_default();
        let script: Script = words.parse().map_err(io::Error::other)?;
        let tag = script.tag;
        self.kernel.witness.see(Happened::Executed {
            tag,
            place: self.kernel.place,
            run_id: order.run.0.to_string(),
            is_written_down: self.is_written_down(&words),
        });
        let mut processes = self.kernel.processes();
        processes.last_pid += 1;
        let pid = processes.last_pid;
        let mut process = Process::new(script, order.run);
        process.child.stdin.is_closed = order.stdin == StdinMode::Empty;
        processes.children.insert(pid, process);
        drop(processes);
        let output = |at| -> Box<dyn simulation::Output> {
            Box::new(Output {
                kernel: self.kernel.clone(),
                pid,
                at,
                tag,
            })
        };
        let stdin = (order.stdin == StdinMode::Open).then(|| -> Box<dyn simulation::Input> {
            Box::new(Input {
                kernel: self.kernel.clone(),
                pid,
            })
        });
        let ends = Ends::Pipes {
            stdin,
            stdout: output(0),
            stderr: output(1),
        };
        self.kernel.touch(pid);
        Ok(simulation::Child { pid, ends })
    }

    fn exit(&self, child: i32) -> BoxFuture<'static, ()> {
        let kernel = self.kernel.clone();
        Box::pin(poll_fn(move |cx| {
            let mut processes = kernel.processes();
            match processes.children.get_mut(&child) {
                Some(process) if process.child.status.is_none() => {
                    process.exit.push(cx.waker().clone());
                    Poll::Pending
                }
                Some(_) => Poll::Ready(()),
                None => Poll::Pending, // the machine was switched off
            }
        }))
    }

    fn status(&self, child: i32) -> Option<ExitStatus> {
        self.kernel.look(child, |one| one.child.status).flatten()
    }

    fn reap(&self, child: i32) {
        self.kernel.with(child, |one| one.is_reaped = true);
    }

    fn signal_group(&self, leader: i32, signal: i32) {
        if !self.keeper.is_over() {
            self.kernel.with(leader, |one| {
                one.was_signalled = true;
                one.child.signal(signal);
            });
        }
    }

    fn signal_one(&self, pid: i32, _signal: i32) {
        if self.keeper.is_over() {
            return;
        }
        let mut processes = self.kernel.processes();
        for process in processes.children.values_mut() {
            process.child.left.retain(|left| left.pid != pid);
        }
    }

    fn group_lives(&self, leader: i32) -> bool {
        let lives = |one: &Process| {
            let mut left = one.child.left.iter();
            !one.is_reaped || left.any(|left| left.in_group)
        };
        self.kernel.look(leader, lives).unwrap_or(false)
    }

    fn escaped(&self, child: i32) -> (Vec<i32>, bool) {
        let escaped = |one: &Process| {
            let left = one.child.left.iter().filter(|left| !left.in_group);
            left.map(|left| left.pid).collect()
        };
        (self.kernel.look(child, escaped).unwrap_or_default(), true)
    }

    fn end_leftovers(&self, runs: &[(RunId, JournalId)]) -> bool {
        if self.keeper.is_over() {
            return false;
        }
        let processes = self.kernel.processes();
        let all = processes.children.iter();
        let left: Vec<_> = all
            .filter(|(_, one)| runs.contains(&one.run))
            .map(|(pid, _)| *pid)
            .collect();
        drop(processes);
        for pid in left {
            self.kernel.with(pid, |one| {
                one.child.signal(SIGKILL);
                one.child.left.clear();
            });
        }
        true
    }

    fn orphans(&self) -> Option<Vec<i32>> {
        let processes = self.kernel.processes();
        let parents = processes.children.values();
        let dead = parents.filter(|one| one.child.status.is_some());
        let left = dead.flat_map(|one| one.child.left.iter().map(|left| left.pid));
        Some(left.collect())
    }
}

/// A keeper's end of an output.
#[derive(Debug)]
struct Output {
    kernel: Kernel,
    pid: i32,
    at: usize,
    tag: Tag,
}

impl simulation::Output for Output {
    fn waiting(&self) -> u64 {
        let waiting = |one: &Process| {
            let output = one.child.outputs[self.at];
            output.total - output.read
        };
        self.kernel.look(self.pid, waiting).unwrap_or(0)
    }

    fn is_held_open(&self) -> bool {
        let held = |one: &Process| one.child.holds_outputs();
        self.kernel.look(self.pid, held).unwrap_or(false)
    }
}

impl AsyncRead for Output {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut processes = self.kernel.processes();
        let Some(process) = processes.children.get_mut(&self.pid) else {
            return Poll::Pending; // the machine was switched off
        };
        let output = &mut process.child.outputs[self.at];
        let most = into.remaining().min(PIECE_BYTES) as u64;
        let (from, to) = (output.read, output.total.min(output.read + most));
        if from == to {
            if process.child.holds_outputs() {
                process.readers[self.at] = Some(cx.waker().clone());
                return Poll::Pending;
            }
            return Poll::Ready(Ok(()));
        }
        output.read = to;
        drop(processes);
        let stream = [Stream::Out, Stream::Err][self.at];
        into.put_slice(&bytes(self.tag, stream, from, to));
        self.kernel.touch(self.pid);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let at = self.at;
        self.kernel
            .with(self.pid, |one| one.child.outputs[at].is_closed = true);
    }
}

/// A keeper's end of a stdin.
#[derive(Debug)]
struct Input {
    kernel: Kernel,
    pid: i32,
}

impl AsyncWrite for Input {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.kernel.with(self.pid, |one| {
            if one.child.status.is_some() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let stdin = &mut one.child.stdin;
            let room = STDIN_BYTES - stdin.waiting.len();
            if room == 0 {
                one.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let taken = room.min(bytes.len());
            stdin.waiting.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        });
        written.unwrap_or(Poll::Pending) // the machine was switched off
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.kernel
            .with(self.pid, |one| one.child.stdin.is_closed = true);
    }
}
