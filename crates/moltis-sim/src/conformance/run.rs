//! One run as the gateway knows it: what was asked for, and all that the node said of it.

use moltis_proto::key::Digest;
use moltis_proto::message::Windows;
use moltis_proto::run::inbox::{Fresh, Inbox};
use moltis_proto::run::{
    Command, Ending, ExitStatus, Outcome, Reason, RunSpec, RunSummary, StdinMode, Stream, Totals,
};
use moltis_proto::{FromKeeper, RunRefusal};
use tokio::time::Instant;

use super::trouble::{Played, ensure, failed, shown};

/// A run in the books.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) digest: Digest,
    pub(super) spec: RunSpec,
    /// What checks its output on this connection; `None` while it is not followed.
    pub(super) inbox: Option<Inbox>,
    /// It was resumed, so that nothing more has to be said before its output.
    pub(super) is_resumed: bool,
    /// Process ids of every `started`: more than one is one too many.
    pub(super) started: Vec<u32>,
    pub(super) state: Option<RunSummary>,
    pub(super) refused: Option<RunRefusal>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// Holes: stream, from, to, why.
    pub(super) gaps: Vec<(Stream, u64, u64, moltis_proto::run::GapReason)>,
    /// Bytes of stdin taken, and whether no more is.
    pub(super) stdin: (u64, bool),
    pub(super) ended: Option<(Ending, Totals)>,
}

impl Run {
    pub(super) fn new(digest: Digest, spec: RunSpec) -> Self {
        Self {
            digest,
            spec,
            inbox: None,
            is_resumed: false,
            started: Vec::new(),
            state: None,
            refused: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            gaps: Vec::new(),
            stdin: (0, false),
            ended: None,
        }
    }

    /// Returns the bytes that are sent and not acknowledged.
    pub(super) fn under_way(&self) -> u64 {
        self.inbox.as_ref().map_or(0, Inbox::in_flight)
    }

    /// Takes what the node says of it.
    pub(super) fn take(&mut self, message: FromKeeper, windows: &Windows, now: Instant) -> Played {
        match message {
            FromKeeper::Started { pid, .. } => {
                self.started.push(pid);
                let came = format!("{} `started`", self.started.len());
                ensure(
                    self.started.len() == 1,
                    "a run starts once (section 6)",
                    came,
                )
            }
            FromKeeper::State { summary } => {
                self.state = Some(summary);
                Ok(())
            }
            FromKeeper::Refused { code, .. } => {
                self.refused = Some(code);
                Ok(())
            }
            FromKeeper::StdinAck { offset, closed, .. } => {
                self.inbox.as_ref().ok_or_else(not_followed)?;
                let came = format!("{offset} behind {}", self.stdin.0);
                ensure(offset >= self.stdin.0, "`stdin_ack` goes forward", came)?;
                self.stdin = (offset, closed);
                Ok(())
            }
            FromKeeper::Output {
                stream,
                offset,
                bytes,
                ..
            } => self.take_output(stream, offset, &bytes.0, windows, now),
            FromKeeper::Gap {
                stream,
                from,
                to,
                reason,
                ..
            } => {
                let inbox = self.inbox.as_mut().ok_or_else(not_followed)?;
                let taken = inbox.handle_gap(stream, from, to, now.into_std());
                taken.map_err(|error| broken_rule(&error))?;
                self.gaps.push((stream, from, to, reason));
                let collected = self.collected(stream);
                let end = usize::try_from(to).unwrap_or(usize::MAX);
                if end > collected.len() && end < 64 * 1024 * 1024 {
                    collected.resize(end, 0);
                }
                Ok(())
            }
            FromKeeper::Ended { ending, totals, .. } => {
                let inbox = self.inbox.as_mut().ok_or_else(not_followed)?;
                let taken = inbox.handle_ended(&totals, ending.outcome == Outcome::Lost);
                taken.map_err(|error| broken_rule(&error))?;
                self.ended = Some((*ending, totals));
                Ok(())
            }
            // The list is the connection's matter.
            FromKeeper::Runs { .. } => Ok(()),
        }
    }

    fn take_output(
        &mut self,
        stream: Stream,
        offset: u64,
        bytes: &[u8],
        windows: &Windows,
        now: Instant,
    ) -> Played {
        ensure(
            self.is_resumed || !self.started.is_empty(),
            "no output before `started` (section 6)",
            format!("output at {offset}"),
        )?;
        let inbox = self.inbox.as_mut().ok_or_else(not_followed)?;
        let fresh = inbox
            .handle_output(stream, offset, bytes.len(), now.into_std())
            .map_err(|error| broken_rule(&error))?;
        if let Fresh::From { skip } = fresh {
            self.collected(stream).extend_from_slice(&bytes[skip..]);
        }
        let under_way = self.under_way();
        let expected = "no more unacknowledged bytes than `run_bytes` (section 6)";
        let came = format!("{under_way}, where {} are allowed", windows.run_bytes);
        ensure(under_way <= u64::from(windows.run_bytes), expected, came)
    }

    fn collected(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// It ended by itself with this code.
    pub(super) fn exited(&self, code: i32) -> Played {
        self.ended_as(Outcome::Exited, None, Some(ExitStatus::Code(code)))
    }

    /// It ended in this way.
    pub(super) fn ended_as(
        &self,
        outcome: Outcome,
        reason: Option<Reason>,
        status: Option<ExitStatus>,
    ) -> Played {
        let ending = self.ending()?;
        let is_so = ending.outcome == outcome && ending.reason == reason && ending.status == status;
        ensure(
            is_so,
            format!("`ended`: {outcome:?}, reason {reason:?}, status {status:?}"),
            format!(
                "{:?}, reason {:?}, status {:?}, detail {:?}; stderr {}",
                ending.outcome,
                ending.reason,
                ending.status,
                ending.detail,
                shown(&self.stderr)
            ),
        )
    }

    pub(super) fn ending(&self) -> Played<&Ending> {
        let ended = self.ended.as_ref();
        ended
            .map(|(ending, _)| ending)
            .ok_or_else(|| failed("the run's `ended`", "it has not ended"))
    }

    /// This, and nothing else, was on stdout.
    pub(super) fn printed(&self, expected: &[u8]) -> Played {
        same_bytes("stdout", expected, &self.stdout)?;
        self.whole()
    }

    /// Nothing is missing.
    pub(super) fn whole(&self) -> Played {
        let came = format!("{:?}", self.gaps);
        ensure(self.gaps.is_empty(), "output without a gap", came)
    }
}

/// Compares long bytes with short words.
pub(super) fn same_bytes(what: &str, expected: &[u8], came: &[u8]) -> Played {
    if expected == came {
        return Ok(());
    }
    let at = expected
        .iter()
        .zip(came)
        .take_while(|(a, b)| a == b)
        .count();
    Err(failed(
        format!("{what} is {}", shown(expected)),
        format!(
            "{} ({} bytes); they part at byte {at}",
            shown(came),
            came.len()
        ),
    ))
}

fn not_followed() -> super::trouble::Trouble {
    failed(
        "output and endings of runs that were started or resumed on this connection only (section 6)",
        "a message of a run that was not",
    )
}

fn broken_rule(error: &moltis_proto::run::inbox::InboxError) -> super::trouble::Trouble {
    failed(
        "output as section 6 has it: in order, in chunks, within the window",
        error.to_string(),
    )
}

/// Asks for a line of `/bin/sh`.
pub(super) fn shell(line: impl Into<String>) -> RunSpec {
    spec(Command::Shell(line.into()))
}

/// Asks for a program and its arguments.
pub(super) fn argv(words: &[&str]) -> RunSpec {
    let words = words.iter().map(|&word| word.to_owned());
    spec(Command::Argv(words.collect()))
}

fn spec(command: Command) -> RunSpec {
    RunSpec {
        command,
        cwd: None,
        env: std::collections::BTreeMap::new(),
        timeout_ms: None,
        grace_ms: 1000,
        stdin: StdinMode::Empty,
        tty: None,
    }
}
