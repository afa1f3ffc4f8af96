//! Starts other programs, waits for them with a limit, and ends what they leave behind.
//!
//! Every program gets a process group of its own, so that its children can be ended with it; the
//! terminal's Ctrl+C therefore reaches only us, and we pass it on (`stop`).

use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{say, stop, tail};

mod background;
mod strangers;

pub(crate) use background::Background;
pub(crate) use strangers::{descendants, end_strangers, running};

/// How long a program may take to leave after SIGTERM before it is killed.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// How often a wait looks up.
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// Runs a program with our own input and outputs.
///
/// On a terminal it has the terminal. In a log, all that it prints is passed on to our stdout as it
/// comes, in the order in which it comes, so that the last lines are remembered.
///
/// # Errors
///
/// When it does not start, does not end within `limit`, ends with another code than 0, or somebody
/// asked us to stop.
pub(crate) fn run(command: &mut Command, limit: Duration) -> anyhow::Result<()> {
    let name = shown(command);
    let status = if say::is_watched() {
        Group::spawn(command)?.wait(limit)?
    } else {
        run_into_the_log(command, limit)?
    };
    if !status.success() {
        bail!("`{name}` ended with {status}");
    }
    Ok(())
}

fn run_into_the_log(command: &mut Command, limit: Duration) -> anyhow::Result<ExitStatus> {
    let (printed, ours) = io::pipe().context("making a pipe")?;
    command.stdout(ours.try_clone()?).stderr(ours);
    let group = Group::spawn(command);
    // The command keeps our ends of the pipe open, behind which nobody would see its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut group = group?;
    let copy = thread::spawn(move || pass_on(printed));
    let status = group.wait(limit);
    group.end();
    // Who has left the group may hold the pipe open for longer than anybody waits.
    let since = Instant::now();
    while !copy.is_finished() && since.elapsed() < GRACE {
        thread::sleep(TICK);
    }
    status
}

/// Passes on what comes, line by line.
fn pass_on(pipe: impl Read) {
    let mut lines = BufReader::new(pipe);
    let mut bytes = Vec::new();
    loop {
        let mut line = lines.by_ref().take(tail::LINE_BYTES_MAX);
        match line.read_until(b'\n', &mut bytes) {
            Ok(read) if read > 0 => say::pass_on(&bytes),
            _ => return, // what was read until then is passed on
        }
        bytes.clear();
    }
}

/// What a program printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program without input and collects what it prints.
///
/// # Errors
///
/// When it does not start or does not end within `limit`. Its exit code is the caller's business.
pub(crate) fn output(command: &mut Command, limit: Duration) -> anyhow::Result<Output> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut group = Group::spawn(command)?;
    let stdout = collect(group.child.stdout.take());
    let stderr = collect(group.child.stderr.take());
    let status = group.wait(limit)?;
    Ok(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

/// As [`output`], but a code other than 0 is an error that shows what was printed to stderr.
///
/// # Errors
///
/// As [`output`], and when the program fails.
pub(crate) fn stdout_of(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let name = shown(command);
    let output = output(command, limit)?;
    if !output.status.success() {
        bail!(
            "`{name}` ended with {}: {}",
            output.status,
            output.stderr.trim()
        );
    }
    Ok(output.stdout)
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).ok(); // what was read until then is still worth showing
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A program in a process group of its own, ended with all its children when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    name: String,
    child: Child,
}

impl Group {
    /// Starts the program.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let name = shown(command);
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        Ok(Self { name, child })
    }

    /// Waits for the end.
    ///
    /// # Errors
    ///
    /// When it takes longer than `limit` or somebody asked us to stop; it is ended then.
    pub(crate) fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if stop::asked() {
                self.end();
                bail!("stopped while `{}` was running", self.name);
            }
            if since.elapsed() > limit {
                self.end();
                bail!("`{}` took longer than {limit:?}", self.name);
            }
            thread::sleep(TICK.min(since.elapsed() / 8 + Duration::from_micros(200)));
        }
    }

    /// Ends the whole group: SIGTERM, and SIGKILL for what is still there after a grace.
    ///
    /// The grace is the group's, not its leader's: a leader like cargo dies at once, while a quickstart
    /// below it still ends its gateway and removes its folder.
    pub(crate) fn end(&mut self) {
        let pid = Pid::from_child(&self.child);
        if kill_process_group(pid, Signal::TERM).is_ok() {
            let since = Instant::now();
            while since.elapsed() < GRACE && self.is_there() {
                thread::sleep(TICK);
            }
            kill_process_group(pid, Signal::KILL).ok(); // nobody may be left in the group
        }
        self.child.wait().ok(); // reaped already
    }

    /// Returns whether anybody of the group still runs.
    fn is_there(&mut self) -> bool {
        // Reaps the leader as well, which would stay in the group otherwise.
        matches!(self.child.try_wait(), Ok(None)) || strangers::group_runs(self.child.id())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns the command as a person would type it, near enough for a message.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program.file_name().map_or_else(
        || program.to_string_lossy().into_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    for word in command.get_args() {
        text.push(' ');
        text.push_str(&word.to_string_lossy());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn what_a_program_prints_is_collected() {
        let output = output(&mut shell("echo out; echo err >&2; exit 3"), GRACE).unwrap();
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str()),
            ("out\n", "err\n")
        );
        assert_eq!(output.status.code(), Some(3));
    }
    #[test]
    fn whoever_cleans_up_below_a_leader_that_died_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cleaned");
        let cleaner = format!(
            "trap 'sleep 0.5; : > {}; exit' TERM; echo up; while :; do sleep 0.1; done",
            file.display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "/bin/sh -c \"$1\" & wait", "leader", &cleaner]);
        let mut leader = Background::start(&mut command).unwrap();
        leader
            .find(GRACE, |line| (line.text == "up").then_some(()))
            .unwrap();
        leader.end();
        assert!(file.exists(), "it had no time");
    }

    #[test]
    fn whoever_ignores_the_request_is_killed_with_the_group() {
        let mut command = shell("trap '' TERM; echo $$; while :; do sleep 0.1; done");
        let mut stubborn = Background::start(&mut command).unwrap();
        let group: u32 = stubborn.find(GRACE, |line| line.text.parse().ok()).unwrap();
        stubborn.end();
        assert!(!strangers::group_runs(group));
    }
}
