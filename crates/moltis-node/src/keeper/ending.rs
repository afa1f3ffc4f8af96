//! How a child comes to its end: by itself, by its time, or by somebody's wish.
//!
//! SIGTERM to its group, a grace, SIGKILL, and the group once more while its leader is a zombie and
//! so keeps the group's number. Children that have left the group are looked for wherever the
//! system lets us. Whoever holds the child's output open after its end is waited for, but not long.

use std::time::{Duration, Instant};

use moltis_proto::limits::DRAIN;
use moltis_proto::run::{Ending, ExitStatus as Status, Outcome};
use rustix::process::{Pid, Signal};

use super::kernel::Child;
use super::process;
use super::spawn::Plan;

/// How often a terminal is hung up until its shell notices: one that is busy starting may not.
const HANG_UP_EVERY: Duration = Duration::from_millis(250);

/// How long an ending waits for killed processes to be gone, before it says that some may live.
const SURVIVORS_TIME: Duration = Duration::from_millis(500);
/// How often it looks.
const SURVIVORS_EVERY: Duration = Duration::from_millis(5);

/// The orphans that this process has adopted; `None` where there is no telling. Reaps the dead.
pub(super) type Adopted<'a> = &'a dyn Fn() -> Option<Vec<Pid>>;

/// A child that lives, or has ended and is not yet let go.
#[derive(Debug)]
pub(super) struct Life {
    child: Child,
    is_terminal: bool,
    spawned: Instant,
    /// When its time is over, while it has any left.
    time_over: Option<Instant>,
    grace: Duration,
    wish: Option<Wish>,
    hang_up_at: Option<Instant>,
    /// What the kernel said about the end, and when. The child stays a zombie for now: its number
    /// is its group's, and nobody else gets it.
    exited: Option<(Option<Status>, Instant)>,
    /// When whoever holds the output open has had its time.
    drained_at: Option<Instant>,
    /// Somebody had it then.
    is_held_open: bool,
    look_again: Option<Instant>,
}

/// Why a child is being ended.
#[derive(Debug, Clone, Copy)]
struct Wish {
    outcome: Outcome,
    /// When SIGTERM has had its time; absent once SIGKILL is sent.
    kill_at: Option<Instant>,
}

/// What a keeper has to do at a time that it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// Stop waiting for output.
    StopReading,
}

impl Life {
    pub(super) fn new(child: Child, is_terminal: bool, plan: &Plan, now: Instant) -> Self {
        Self {
            child,
            is_terminal,
            spawned: now,
            // A time beyond what the clock can say is no limit.
            time_over: plan.timeout.and_then(|timeout| now.checked_add(timeout)),
            grace: plan.grace,
            wish: None,
            hang_up_at: None,
            exited: None,
            drained_at: None,
            is_held_open: false,
            look_again: None,
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn leader(&self) -> Pid {
        self.child.pid()
    }

    /// Sends a signal to the group, while it is certainly the child's.
    pub(super) fn signal(&self, number: i32) {
        if self.exited.is_none()
            && let Some(signal) = process::signal_of(number)
        {
            self.child.signal_group(signal);
        }
    }

    /// Begins to end the child. A second wish can only make it sooner.
    pub(super) fn end(
        &mut self,
        outcome: Outcome,
        grace: Duration,
        now: Instant,
        adopted: Adopted<'_>,
    ) {
        let kill_at = now.checked_add(grace);
        if self.child.has_ended() {
            // By itself, and this wish has overtaken the news of it.
            self.handle_exited(now, adopted);
        }
        if self.exited.is_some() {
            // It ended by itself; those that hold its output open do not have to be waited for.
            self.kill_all(adopted);
            self.drained_at = self.drained_at.map(|at| at.min(now));
            return;
        }
        if let Some(wish) = &mut self.wish {
            wish.kill_at = wish.kill_at.map(|at| kill_at.unwrap_or(at).min(at));
            return;
        }
        self.time_over = None;
        self.wish = Some(Wish { outcome, kill_at });
        let (escaped, _) = self.child.escaped(adopted().as_deref());
        if self.is_terminal {
            // Interactive shells ignore SIGTERM and end when their terminal is hung up.
            self.child.signal_group(Signal::HUP);
            self.hang_up_at = Some(now + HANG_UP_EVERY);
        }
        self.child.signal_group(Signal::TERM);
        self.child.signal_group(Signal::CONT);
        for pid in escaped {
            self.child.signal_escaped(pid, Signal::TERM);
        }
    }

    /// The child has ended and waits to be reaped.
    pub(super) fn handle_exited(&mut self, now: Instant, adopted: Adopted<'_>) {
        if self.exited.is_some() {
            return; // known since somebody wished for it
        }
        if self.wish.is_some() {
            self.kill_all(adopted);
        }
        self.exited = Some((self.child.status(), now));
        self.time_over = None;
        self.hang_up_at = None;
        self.drained_at = Some(now + DRAIN);
    }

    /// Somebody who outlives the child holds its output open.
    pub(super) fn note_held_open(&mut self) {
        self.is_held_open = true;
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let kill_at = match (&self.exited, &self.wish) {
            (None, Some(wish)) => wish.kill_at,
            _ => None,
        };
        let times = [
            self.time_over,
            kill_at,
            self.hang_up_at,
            self.drained_at,
            self.look_again,
        ];
        times.into_iter().flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, adopted: Adopted<'_>) -> Due {
        if self.time_over.is_some_and(|at| at <= now) {
            self.end(Outcome::TimedOut, self.grace, now, adopted);
        }
        if self.exited.is_none()
            && let Some(wish) = &mut self.wish
            && wish.kill_at.is_some_and(|at| at <= now)
        {
            wish.kill_at = None;
            self.kill_all(adopted);
        }
        if self.hang_up_at.is_some_and(|at| at <= now) {
            self.child.signal_group(Signal::HUP);
            self.hang_up_at = Some(now + HANG_UP_EVERY);
        }
        if self.look_again.is_some_and(|at| at <= now) {
            self.look_again = None;
        }
        if self.drained_at.is_some_and(|at| at <= now) {
            self.drained_at = None;
            return Due::StopReading;
        }
        Due::Nothing
    }

    /// Lets go of a child that has ended and whose output is complete. Returns the number that was
    /// its own until now.
    pub(super) fn reap(&mut self) -> Option<Pid> {
        if self.exited.is_none() || self.child.is_reaped() {
            return None;
        }
        self.drained_at = None;
        self.child.reap();
        Some(self.child.pid())
    }

    /// Returns how the run ended, once the child is reaped, and whoever was to be ended with it is
    /// gone or has had the time to be.
    pub(super) fn poll_ending(&mut self, now: Instant, adopted: Adopted<'_>) -> Option<Ending> {
        let (status, exited_at) = self.exited.filter(|_| self.child.is_reaped())?;
        let survive = match self.wish {
            Some(_) => {
                let (alive, sees_all) = self.survivors(adopted);
                if alive && now < exited_at + SURVIVORS_TIME {
                    self.look_again = Some(now + SURVIVORS_EVERY);
                    return None;
                }
                alive || !sees_all
            }
            None => self.is_held_open || self.left_somebody(adopted),
        };
        self.look_again = None;
        let by_itself = match status {
            Some(Status::Code(_)) => Outcome::Exited,
            Some(Status::Signal(_)) => Outcome::Signaled,
            None => Outcome::Lost,
        };
        Some(Ending {
            outcome: self.wish.map_or(by_itself, |wish| wish.outcome),
            reason: None,
            status,
            detail: String::new(),
            duration_ms: u64::try_from((now - self.spawned).as_millis()).unwrap_or(u64::MAX),
            descendants_may_survive: survive,
        })
    }

    /// Returns whether a run that ended by itself has left processes behind, as far as the system
    /// tells: where orphans are not ours, only those in its group are known.
    fn left_somebody(&self, adopted: Adopted<'_>) -> bool {
        let orphans = adopted(); // reaps the dead, who count as members of their group
        if self.child.group_lives() {
            return true;
        }
        let Some(orphans) = orphans.filter(|orphans| !orphans.is_empty()) else {
            return false;
        };
        let (alive, sees_all) = self.child.escaped(Some(&orphans));
        !alive.is_empty() || !sees_all
    }

    /// Kills again what still lives. Returns whether something does, and whether we would know.
    ///
    /// The leader is reaped, so its number may be somebody else's by now.
    fn survivors(&self, adopted: Adopted<'_>) -> (bool, bool) {
        let (escaped, sees_all) = self.child.escaped(adopted().as_deref());
        for pid in &escaped {
            self.child.signal_escaped(*pid, Signal::KILL);
        }
        let group = self.child.group_lives();
        (group || !escaped.is_empty(), sees_all)
    }

    fn kill_all(&self, adopted: Adopted<'_>) {
        if self.child.is_reaped() {
            return;
        }
        let (escaped, _) = self.child.escaped(adopted().as_deref());
        self.child.signal_group(Signal::KILL);
        for pid in escaped {
            self.child.signal_escaped(pid, Signal::KILL);
        }
    }
}
