//! A program in the background whose lines are read as they come: a gateway, a node, a master.
//!
//! Dropping it ends it and everything in its process group.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::{Group, TICK};
use crate::stop;

/// A line that a program printed, without its end.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) is_stderr: bool,
    pub(crate) text: String,
}

/// A program in the background whose lines we read as they come, from both of its outputs.
#[derive(Debug)]
pub(crate) struct Background {
    group: Group,
    lines: Receiver<Line>,
    heard: Vec<String>,
}

impl Background {
    /// Starts the program with no input.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut group = Group::spawn(command)?;
        let (sender, lines) = mpsc::channel();
        pass_lines(group.child.stdout.take(), sender.clone(), false);
        pass_lines(group.child.stderr.take(), sender, true);
        Ok(Self {
            group,
            lines,
            heard: Vec::new(),
        })
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.group.child.id()
    }

    /// Returns the next line, or `None` once both outputs are closed.
    ///
    /// # Errors
    ///
    /// When no line comes within `limit`, or somebody asked us to stop.
    pub(crate) fn next_line(&mut self, limit: Duration) -> anyhow::Result<Option<Line>> {
        let since = Instant::now();
        loop {
            match self.lines.recv_timeout(TICK) {
                Ok(line) => {
                    self.heard.push(line.text.clone());
                    return Ok(Some(line));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if stop::asked() => bail!("stopped"),
                Err(RecvTimeoutError::Timeout) if since.elapsed() > limit => {
                    bail!(
                        "`{}` said nothing more for {limit:?}{}",
                        self.group.name,
                        self.said()
                    );
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Reads on until `find` makes something of a line, and returns that.
    ///
    /// # Errors
    ///
    /// When the program ends or falls silent before; the error shows what it said.
    pub(crate) fn find<T>(
        &mut self,
        limit: Duration,
        mut find: impl FnMut(&Line) -> Option<T>,
    ) -> anyhow::Result<T> {
        let until = Instant::now() + limit;
        while let Some(line) =
            self.next_line(until.saturating_duration_since(Instant::now()).max(TICK))?
        {
            if let Some(found) = find(&line) {
                return Ok(found);
            }
        }
        bail!("`{}` ended early{}", self.group.name, self.said())
    }

    /// Returns the newest line that `find` makes something of, among those that wait.
    pub(crate) fn newest<T>(&mut self, find: impl Fn(&Line) -> Option<T>) -> Option<T> {
        let mut newest = None;
        for line in self.lines.try_iter() {
            newest = find(&line).or(newest);
            // Only what is not understood is worth showing later.
            if line.is_stderr {
                self.heard.push(line.text);
            }
        }
        newest
    }

    /// Waits for the end and returns how it was.
    ///
    /// # Errors
    ///
    /// As [`Group::wait`].
    pub(crate) fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.group.wait(limit)
    }

    /// Returns an error when the program has ended by itself.
    ///
    /// # Errors
    ///
    /// With its status and what it said last.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        self.heard
            .extend(self.lines.try_iter().map(|line| line.text));
        match self.group.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("`{}` ended with {status}{}", self.group.name, self.said()),
        }
    }

    /// Kills the program, and nobody else of its group, without a word.
    ///
    /// # Errors
    ///
    /// When it cannot be reaped.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.group.child.kill()?;
        self.group.child.wait()?;
        Ok(())
    }

    /// Ends the program and its group.
    pub(crate) fn end(&mut self) {
        self.group.end();
    }

    /// Returns the last lines heard, for an error.
    pub(crate) fn said(&self) -> String {
        if self.heard.is_empty() {
            return "; it had said nothing at all".to_owned();
        }
        let last = self.heard.len().saturating_sub(12);
        format!("; it had said:\n    {}", self.heard[last..].join("\n    "))
    }
}

fn pass_lines(
    pipe: Option<impl Read + Send + 'static>,
    sender: mpsc::Sender<Line>,
    is_stderr: bool,
) {
    let Some(pipe) = pipe else { return };
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if sender.send(Line { is_stderr, text }).is_err() {
                return; // nobody listens any more
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{GRACE, strangers};

    fn shell(line: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn a_program_past_its_limit_is_ended_with_its_children() {
        let mut command = shell("sleep 1000 & echo $!; wait");
        let mut background = Background::start(&mut command).unwrap();
        let child: u32 = background
            .find(GRACE, |line| line.text.parse().ok())
            .expect("the shell names its child");
        let error = background.wait(Duration::from_millis(10)).unwrap_err();
        assert!(error.to_string().contains("took longer than"), "{error}");
        let since = Instant::now();
        while strangers::runs(child) && since.elapsed() < GRACE {
            thread::yield_now();
        }
        assert!(!strangers::runs(child), "child {child} is still there");
    }

    #[test]
    fn an_early_end_shows_what_was_said() {
        let mut background = Background::start(&mut shell("echo no such thing")).unwrap();
        let error = background.find(GRACE, |_| None::<()>).unwrap_err();
        assert!(error.to_string().ends_with("no such thing"), "{error}");
    }
}
