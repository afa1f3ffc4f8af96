//! One command: its process group, its pipes, its time, and its end.

use std::convert::Infallible;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use moltis_proto::limits::DRAIN;
use moltis_proto::message::Windows;
use moltis_proto::run::outbox::{Outbox, OutboxLimits};
use moltis_proto::run::stdin::{StdinReceiver, StdinWrite};
use moltis_proto::run::{Command, Ending, ExitStatus, Outcome, Reason, RunSpec, StdinMode, Stream};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{machine, runs};

/// What is kept of each stream: all in memory, as this node has no spool. A command whose output
/// nobody takes waits when it is full, or, while no gateway is there, loses what comes then.
pub(crate) const LIMITS: OutboxLimits = OutboxLimits {
    memory_bytes: 16 * 1024 * 1024,
    spool_bytes: 0,
    spool_head_bytes: 0,
    kept_below_ack_bytes: 64 * 1024,
    spool_after: Duration::from_hours(24),
};

/// A run, shared by its command's task and the connection.
pub(crate) struct Run {
    outbox: Mutex<Outbox>,
    stdin: Mutex<StdinReceiver>,
    /// Present while the command runs.
    group: Mutex<Option<Pid>>,
    cancel: watch::Sender<Option<Duration>>,
    /// The gateway has said something: there may be room for output, or bytes for stdin.
    changed: Notify,
    /// There may be something to tell the gateway.
    wake: Arc<Notify>,
}

impl Run {
    /// A run that is over.
    pub(crate) fn over(outbox: Outbox, wake: &Arc<Notify>) -> Arc<Self> {
        Self::new(outbox, StdinReceiver::closed(), None, wake)
    }

    fn new(
        outbox: Outbox,
        stdin: StdinReceiver,
        group: Option<Pid>,
        wake: &Arc<Notify>,
    ) -> Arc<Self> {
        Arc::new(Self {
            outbox: Mutex::new(outbox),
            stdin: Mutex::new(stdin),
            group: Mutex::new(group),
            cancel: watch::Sender::new(None),
            changed: Notify::new(),
            wake: Arc::clone(wake),
        })
    }

    pub(crate) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stdin(&self) -> MutexGuard<'_, StdinReceiver> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self) -> MutexGuard<'_, Option<Pid>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the process id; `None` once the command is over.
    pub(crate) fn pid(&self) -> Option<u32> {
        let group = *self.group();
        group.map(|pid| pid.as_raw_pid().cast_unsigned())
    }

    pub(crate) fn changed(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn cancel(&self, grace_ms: u64) {
        self.cancel
            .send_replace(Some(Duration::from_millis(grace_ms.min(300_000))));
    }

    /// Sends a signal to the whole group; a number that is none does nothing.
    pub(crate) fn signal(&self, number: i32) {
        let group = self.group();
        if let (Some(group), Some(signal)) = (*group, Signal::from_named_raw(number)) {
            kill_process_group(group, signal).ok(); // it has ended meanwhile
        }
    }

    /// Waits until this stream may be read, and returns how much of it.
    async fn room(&self, stream: Stream) -> usize {
        loop {
            // Made before the look, so that no news between the two is missed.
            let changed = self.changed.notified();
            if let Some(room) = self.outbox().may_read(stream) {
                return usize::try_from(room).unwrap_or(usize::MAX);
            }
            changed.await;
        }
    }
}

/// Starts a command. Its process id is there when it has one; a command that cannot start is a run
/// that is over.
pub(crate) fn start(
    spec: RunSpec,
    windows: &Windows,
    wake: &Arc<Notify>,
    commands: &mut JoinSet<()>,
) -> (Arc<Run>, Option<u32>) {
    let mut outbox = Outbox::new(LIMITS);
    let spawned = spawn(&spec).and_then(|child| {
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let gone = || ending(Outcome::FailedToStart, None);
        Ok((child, pid.ok_or_else(gone)?))
    });
    let (child, pid) = match spawned {
        Ok(spawned) => spawned,
        Err(ending) => {
            outbox.finish(ending);
            return (Run::over(outbox, wake), None);
        }
    };
    let stdin = match spec.stdin {
        StdinMode::Empty => StdinReceiver::closed(),
        StdinMode::Open => StdinReceiver::open(windows.stdin_bytes),
    };
    let run = Run::new(outbox, stdin, Some(pid), wake);
    commands.spawn(attend(Arc::clone(&run), child, pid, spec));
    let pid = run.pid();
    (run, pid)
}

fn spawn(spec: &RunSpec) -> Result<Child, Ending> {
    if spec.tty.is_some() {
        return Err(Ending {
            detail: "this node has no terminals".to_owned(),
            ..ending(Outcome::FailedToStart, None)
        });
    }
    let cwd = spec.cwd.clone().unwrap_or_else(machine::home);
    if !std::path::Path::new(&cwd).is_dir() {
        return Err(ending(Outcome::FailedToStart, Some(Reason::WorkingDir)));
    }
    let mut command = match &spec.command {
        Command::Argv(words) => {
            let mut command = tokio::process::Command::new(&words[0]);
            command.args(&words[1..]);
            command
        }
        Command::Shell(line) => {
            let mut command = tokio::process::Command::new("/bin/sh");
            command.args(["-c", line]);
            command
        }
    };
    command
        .current_dir(cwd)
        .env_clear()
        .envs(runs::env_of(spec))
        .process_group(0)
        .stdin(match spec.stdin {
            StdinMode::Empty => Stdio::null(),
            StdinMode::Open => Stdio::piped(),
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().map_err(|error| Ending {
        detail: error.to_string(),
        ..ending(Outcome::FailedToStart, reason_of(&error))
    })
}

/// Why a command did not start, where the system says it.
fn reason_of(error: &io::Error) -> Option<Reason> {
    match error.kind() {
        io::ErrorKind::NotFound => Some(Reason::NotFound),
        io::ErrorKind::PermissionDenied => Some(Reason::NotExecutable),
        _ => None,
    }
}

/// Stays with a command until all of it is over.
async fn attend(run: Arc<Run>, mut child: Child, group: Pid, spec: RunSpec) {
    let started = Instant::now();
    let (over, is_over) = watch::channel(None);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let output = async {
        tokio::join!(
            read(&run, Stream::Stdout, stdout, is_over.clone()),
            read(&run, Stream::Stderr, stderr, is_over.clone()),
        )
    };
    let mut output = pin!(output);
    let mut input = pin!(feed(&run, child.stdin.take()));
    let mut ended = pin!(wait(&run, &mut child, group, &spec));
    let mut is_read = false;
    let (outcome, status) = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            _ = &mut output, if !is_read => is_read = true,
            never = &mut input => match never {},
        }
    };
    over.send_replace(Some(Instant::now()));
    if !is_read {
        output.await;
    }
    run.stdin().handle_closed();
    *run.group() = None;
    run.outbox().finish(Ending {
        status,
        duration_ms: started.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
        descendants_may_survive: test_kill_process_group(group).is_ok(),
        ..ending(outcome, None)
    });
    run.wake.notify_one();
}

/// Reads one output to its end. Once the command is over, somebody who still holds the pipe is
/// waited for [`DRAIN`] and no longer; time in which there is no room does not count.
async fn read(
    run: &Run,
    stream: Stream,
    pipe: Option<impl AsyncRead + Unpin>,
    mut is_over: watch::Receiver<Option<Instant>>,
) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 64 * 1024];
    let mut patience = DRAIN;
    loop {
        let room = run.room(stream).await.min(buffer.len());
        let since = Instant::now();
        let out_of_patience = async {
            let over = is_over.wait_for(Option::is_some).await;
            let over = over.ok().and_then(|over| *over);
            sleep(patience).await;
            over
        };
        let read = tokio::select! {
            biased;
            read = pipe.read(&mut buffer[..room]) => read.unwrap_or(0),
            _ = out_of_patience => 0,
        };
        if read == 0 {
            break;
        }
        let bytes = Bytes::copy_from_slice(&buffer[..read]);
        run.outbox()
            .handle_output(stream, bytes, Instant::now().into_std());
        run.wake.notify_one();
        if let Some(over) = *is_over.borrow() {
            patience = patience.saturating_sub(since.max(over).elapsed());
        }
    }
    run.outbox().handle_eof(stream);
}

/// Writes what the gateway sends for the command, until the command takes no more.
async fn feed(run: &Run, pipe: Option<ChildStdin>) -> Infallible {
    if let Some(mut pipe) = pipe {
        loop {
            let changed = run.changed.notified();
            let next = run.stdin().poll_write();
            match next {
                None => changed.await,
                Some(StdinWrite::Close) => break,
                Some(StdinWrite::Bytes(bytes)) => match pipe.write(&bytes).await {
                    Ok(taken) => run.stdin().handle_taken(taken),
                    Err(_) => break,
                },
            }
            run.wake.notify_one();
        }
    }
    run.stdin().handle_closed();
    run.wake.notify_one();
    std::future::pending().await
}

/// Waits for the command's end, or brings it about.
async fn wait(
    run: &Run,
    child: &mut Child,
    group: Pid,
    spec: &RunSpec,
) -> (Outcome, Option<ExitStatus>) {
    let mut cancel = run.cancel.subscribe();
    let cancelled = async {
        let grace = cancel.wait_for(Option::is_some).await;
        grace.ok().and_then(|grace| *grace).unwrap_or_default()
    };
    let time = async {
        match spec.timeout_ms {
            Some(ms) => sleep(Duration::from_millis(ms)).await,
            None => std::future::pending().await,
        }
    };
    let (outcome, grace) = tokio::select! {
        biased;
        status = child.wait() => return how(&status),
        grace = cancelled => (Outcome::Cancelled, grace),
        () = time => (Outcome::TimedOut, Duration::from_millis(spec.grace_ms)),
    };
    kill_process_group(group, Signal::TERM).ok(); // it has ended this very moment
    let until = Instant::now() + grace;
    let mut ended = None;
    // The first process of a group may go before the others.
    while test_kill_process_group(group).is_ok() && Instant::now() < until {
        tokio::select! {
            status = child.wait(), if ended.is_none() => ended = Some(status),
            () = sleep(Duration::from_millis(20)) => {}
        }
    }
    kill_process_group(group, Signal::KILL).ok(); // nobody is left
    let status = match ended {
        Some(status) => status,
        None => child.wait().await,
    };
    (outcome, how(&status).1)
}

fn how(status: &io::Result<std::process::ExitStatus>) -> (Outcome, Option<ExitStatus>) {
    let Ok(status) = status else {
        return (Outcome::Lost, None);
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => (Outcome::Exited, Some(ExitStatus::Code(code))),
        (None, Some(signal)) => (Outcome::Signaled, Some(ExitStatus::Signal(signal))),
        (None, None) => (Outcome::Lost, None),
    }
}

pub(crate) fn ending(outcome: Outcome, reason: Option<Reason>) -> Ending {
    Ending {
        outcome,
        reason,
        status: None,
        detail: String::new(),
        duration_ms: 0,
        descendants_may_survive: false,
    }
}
