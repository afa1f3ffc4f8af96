//! One child as a value: what it does by a moment, and what it waits for then.
//!
//! Nothing here waits or knows of tasks. Its outputs are lengths, for the bytes follow from the tag;
//! its stdin is checked byte by byte as it is read.

use moltis_proto::run::ExitStatus;
use tokio::time::{Duration, Instant};

use super::script::{Act, Finish, Script, Stream, bytes as bytes_of};

/// Bytes that a pipe holds (pipe(7)).
pub(super) const PIPE_BYTES: u64 = 64 * 1024;

pub(super) const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;
/// Signals that end nobody: CHLD, CONT, URG, WINCH.
const HARMLESS: [i32; 4] = [17, 18, 23, 28];

/// A child, from its spawn until nobody remembers it.
#[derive(Debug)]
pub(super) struct Child {
    script: Script,
    /// The act that it is at.
    at: usize,
    /// How much of that act is done, in bytes.
    done: u64,
    /// When the wait that it is at is over.
    until: Option<Instant>,
    is_deaf: bool,
    pub(super) outputs: [Written; 2],
    pub(super) stdin: Stdin,
    pub(super) status: Option<ExitStatus>,
    /// Others that it has left behind.
    pub(super) left: Vec<Left>,
}

/// An output: how much was written, and how much of it was read.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Written {
    pub(super) total: u64,
    pub(super) read: u64,
    /// Nobody will read it any more.
    pub(super) is_closed: bool,
}

/// What waits for a child to read.
#[derive(Debug, Default)]
pub(super) struct Stdin {
    pub(super) waiting: Vec<u8>,
    /// How much was read.
    pub(super) read: u64,
    pub(super) is_closed: bool,
    /// It read a byte that was never sent at its place.
    pub(super) is_wrong: bool,
}

/// Somebody whom a child has left behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) until: Instant,
    pub(super) in_group: bool,
    pub(super) pid: i32,
}

impl Child {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            at: 0,
            done: 0,
            until: None,
            is_deaf: false,
            outputs: Default::default(),
            stdin: Stdin::default(),
            status: None,
            left: Vec::new(),
        }
    }

    pub(super) fn script(&self) -> &Script {
        &self.script
    }

    /// Does what it can by now. `next_pid` numbers whom it leaves behind.
    pub(super) fn advance(&mut self, now: Instant, next_pid: &mut i32) {
        self.left.retain(|left| left.until > now);
        while self.status.is_none() {
            let Some(act) = self.script.acts.get(self.at).copied() else {
                self.status = Some(match self.script.finish {
                    Finish::Exit(code) => ExitStatus::Code(code.into()),
                    Finish::Signal(signal) => ExitStatus::Signal(signal.into()),
                });
                return;
            };
            if !self.act(act, now, next_pid) {
                return;
            }
            self.at += 1;
            self.done = 0;
            self.until = None;
        }
    }

    /// Returns when it goes on by itself.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let own = self.until.filter(|_| self.status.is_none());
        let left = self.left.iter().map(|left| left.until).min();
        own.into_iter().chain(left).min()
    }

    /// Returns whether it goes on only when it is given more stdin, or its end.
    pub(super) fn waits_for_stdin(&self) -> bool {
        let reads = matches!(self.script.acts.get(self.at), Some(Act::Read(_)));
        self.status.is_none() && reads && !self.stdin.is_closed
    }

    /// Takes a signal.
    pub(super) fn signal(&mut self, signal: i32) {
        let ends = match signal {
            SIGTERM => !self.is_deaf,
            signal => !HARMLESS.contains(&signal),
        };
        if ends && self.status.is_none() {
            self.status = Some(ExitStatus::Signal(signal));
        }
        if signal == SIGKILL {
            self.left.retain(|left| !left.in_group);
        }
    }

    /// Returns whether somebody can still write its outputs.
    pub(super) fn holds_outputs(&self) -> bool {
        self.status.is_none() || self.left.iter().any(|left| left.in_group)
    }

    /// Does some of an act. Returns whether it is done.
    fn act(&mut self, act: Act, now: Instant, next_pid: &mut i32) -> bool {
        match act {
            Act::Write(stream, bytes) => self.write(usize::from(stream == Stream::Err), bytes),
            Act::Read(bytes) => self.read(bytes),
            Act::Wait(ms) => {
                let until = *self.until.get_or_insert(now + Duration::from_millis(ms));
                until <= now
            }
            Act::Deafen => {
                self.is_deaf = true;
                true
            }
            Act::Fork(ms) | Act::Escape(ms) => {
                *next_pid += 1;
                self.left.push(Left {
                    until: now + Duration::from_millis(ms),
                    in_group: matches!(act, Act::Fork(_)),
                    pid: *next_pid,
                });
                true
            }
        }
    }

    fn write(&mut self, to: usize, bytes: u64) -> bool {
        let output = &mut self.outputs[to];
        if output.is_closed && self.done < bytes {
            self.status = Some(ExitStatus::Signal(SIGPIPE));
            return false;
        }
        let room = PIPE_BYTES - (output.total - output.read);
        let now = room.min(bytes - self.done);
        output.total += now;
        self.done += now;
        self.done == bytes
    }

    fn read(&mut self, bytes: u64) -> bool {
        let wanted = usize::try_from(bytes - self.done).unwrap_or(usize::MAX);
        let taken = wanted.min(self.stdin.waiting.len());
        let (from, to) = (self.stdin.read, self.stdin.read + taken as u64);
        let right = bytes_of(self.script.tag, Stream::In, from, to);
        self.stdin.is_wrong |= self.stdin.waiting[..taken] != right;
        self.stdin.waiting.drain(..taken);
        self.stdin.read = to;
        self.done += taken as u64;
        self.done == bytes || self.stdin.is_closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(script: &str) -> Child {
        Child::new(script.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_pipe_holds_its_writer_until_it_is_read() {
        let mut child = child("tag 1; out 100000; err 5; exit 4");
        let now = Instant::now();
        child.advance(now, &mut 1);
        assert_eq!(child.outputs[0].total, PIPE_BYTES);
        child.outputs[0].read = PIPE_BYTES;
        child.advance(now, &mut 1);
        let [out, err] = child.outputs;
        assert_eq!((out.total, err.total), (100_000, 5));
        assert_eq!(child.status, Some(ExitStatus::Code(4)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_pipe_ends_its_writer() {
        let mut child = child("tag 1; out 1; wait 10; out 1; exit 0");
        let now = Instant::now();
        child.advance(now, &mut 1);
        child.outputs[0].is_closed = true;
        assert_eq!(child.poll_timeout(), Some(now + Duration::from_millis(10)));
        child.advance(now + Duration::from_millis(10), &mut 1);
        assert_eq!(child.status, Some(ExitStatus::Signal(SIGPIPE)));
    }

    #[tokio::test(start_paused = true)]
    async fn stdin_is_looked_at_byte_by_byte() {
        let mut child = child("tag 3; in 10; exit 0");
        child.stdin.waiting = bytes_of(3, Stream::In, 0, 4);
        child.advance(Instant::now(), &mut 1);
        assert!(child.status.is_none() && !child.stdin.is_wrong);
        assert!(child.waits_for_stdin());
        child.stdin.waiting = bytes_of(3, Stream::In, 5, 6);
        child.stdin.is_closed = true;
        child.advance(Instant::now(), &mut 1);
        assert!(child.stdin.is_wrong);
        assert_eq!(child.status, Some(ExitStatus::Code(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deaf_end_by_kill_alone_and_take_their_group_with_them() {
        let mut child = child("tag 1; deaf; fork 1000; escape 1000; wait 1000; exit 0");
        child.advance(Instant::now(), &mut 1);
        child.signal(SIGTERM);
        assert!(child.status.is_none());
        child.signal(SIGKILL);
        assert_eq!(child.status, Some(ExitStatus::Signal(SIGKILL)));
        assert!(!child.holds_outputs());
        assert_eq!(child.left.len(), 1);
    }
}
