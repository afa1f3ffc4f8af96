//! The keeper's one task: it owns every run, waits for anything to happen, and lets the machines
//! decide.
//!
//! A turn of the loop: settle the runs to which something happened, make frames for the client,
//! wait. What the client says is answered in [`super::desk`]; how it comes and goes stands in
//! `attach`, how the keeper itself goes in `leave`.

mod attach;
mod leave;
mod papers;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use moltis_proto::limits;
use moltis_proto::node::UsedIds;
use moltis_proto::run::Outcome;
use moltis_proto::run::turn::Offer;
use moltis_proto::{BootId, FromKeeper, RunId, RunRefusal};
use rustix::process::Pid;
use tokio_util::sync::CancellationToken;

use self::papers::Unwritten;
use super::client::{Client, Io};
use super::config::{KeeperConfig, RulesSource};
use super::disk::Disk;
use super::door::Door;
use super::ending::Due;
use super::journal::Journal;
use super::kernel::Kernel;
use super::machine::Machine;
use super::ops::{Event, Ops};
use super::recover::Estate;
use super::run::Run;
use super::starting::Starts;
use super::wire;

/// Bytes of output in memory, all runs together. Above it, runs that nobody follows go to their
/// spools, or drop what is more than a little where those take nothing; the others read on only while
/// they hold little.
const MEMORY_BYTES_MAX: u64 = 48 * 1024 * 1024;
/// What each run may hold above that: more than the acknowledged bytes that it keeps.
const SHARE_BYTES: u64 = 4 * limits::KEPT_BELOW_ACK_BYTES;
/// Clients that have not said `Attach` yet. One more is turned away.
const STRANGERS_MAX: usize = 16;
/// How often adopted orphans are looked after while there may be any.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long a keeper that leaves waits for its client, and then for its disk.
const LEAVE_TIME: Duration = Duration::from_secs(5);

/// A keeper at work.
pub(super) struct Core {
    pub(super) dir: PathBuf,
    pub(super) rules: Box<dyn RulesSource>,
    pub(super) boot_id: BootId,
    pub(super) kernel: Kernel,
    pub(super) disk: Disk,
    /// Our own journal, then those of dead keepers.
    pub(super) journals: Vec<Journal>,
    /// So many of the journals were in the list that the client was told.
    told_journals: usize,
    /// Runs whose ending the disk has not taken yet.
    unwritten: Unwritten,
    pub(super) runs: HashMap<RunId, Run>,
    pub(super) used: UsedIds,
    pub(super) ops: Ops,
    pub(super) starts: Starts,
    pub(super) client: Option<Client>,
    pub(super) leaving: bool,
    leave_after: Duration,
    idle_since: Instant,
    going: Going,
    /// The children that are runs, by process id.
    pub(super) leaders: HashSet<Pid>,
    dirty: Vec<RunId>,
    timers: BTreeSet<(Instant, RunId)>,
    memory_bytes: u64,
    spools_bytes: u64,
    spools_bytes_max: u64,
    strangers: usize,
    sweep_at: Option<Instant>,
}

/// How far a keeper has come that leaves and whose runs are over.
#[derive(Debug, Clone, Copy)]
enum Going {
    No,
    /// The client takes what it can, up to this time.
    Telling(Instant),
    /// What the client has not acknowledged goes to the disk, up to this time.
    Spilling(Instant),
}

/// What ended a wait.
enum Wake {
    Stop,
    Frames,
    Client(Io),
    Event(Event),
    Door(super::connect::KeeperStream),
    Time,
}

/// Returns now, by the clock that tests pause.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Core {
    pub(super) fn new(
        config: KeeperConfig,
        machine: Machine,
        journal: Journal,
        estate: Estate,
    ) -> Self {
        let mut core = Self {
            spools_bytes: 0,
            spools_bytes_max: machine.disk.share(&config.dir).min(config.spools_bytes),
            dir: config.dir,
            rules: config.rules,
            boot_id: config.boot_id,
            kernel: machine.kernel,
            ops: Ops::new(machine.disk.clone()),
            starts: Starts::new(),
            disk: machine.disk,
            journals: vec![journal],
            told_journals: 0,
            unwritten: Unwritten::default(),
            runs: HashMap::new(),
            used: UsedIds::default(),
            client: None,
            leaving: false,
            leave_after: config.leave_after,
            idle_since: now(),
            going: Going::No,
            leaders: HashSet::new(),
            dirty: Vec::new(),
            timers: BTreeSet::new(),
            memory_bytes: 0,
            strangers: 0,
            sweep_at: None,
        };
        core.inherit(estate);
        core
    }

    /// Takes what dead keepers have left.
    fn inherit(&mut self, estate: Estate) {
        self.journals.extend(estate.journals);
        for run in estate.runs {
            self.insert(run);
        }
        for run_id in estate.forgotten {
            self.used.insert(run_id, RunRefusal::Forgotten);
        }
    }

    /// Keeps runs until it is asked to stop, or has nothing to do for long.
    pub(super) async fn run(mut self, mut door: Door, stop: CancellationToken) {
        let mut shows_leaving = false;
        loop {
            let has_frames = self.hear();
            self.advance();
            if self.leaving && !std::mem::replace(&mut shows_leaving, true) {
                door.show_leaving();
            }
            if self.is_over() {
                break;
            }
            match self.wait(&mut door, &stop, has_frames).await {
                Wake::Stop => self.leave(),
                Wake::Frames => {}
                Wake::Client(io) => self.handle_io(io),
                Wake::Event(event) => self.handle_event(event),
                Wake::Door(stream) => {
                    if self.strangers < STRANGERS_MAX {
                        self.strangers += 1;
                        self.ops.receive(stream);
                    }
                }
                Wake::Time => self.handle_time(),
            }
        }
        self.write_again();
        for journal in self.journals.drain(..) {
            // One that tells what is forgotten is the next keeper's.
            if journal.is_blank() {
                journal.delete();
            }
        }
        // Whoever finds no door any more finds no lock either, and takes over what is left.
        door.close();
    }

    async fn wait(&mut self, door: &mut Door, stop: &CancellationToken, has_frames: bool) -> Wake {
        let deadline = self.deadline();
        let leaving = self.leaving;
        let Self { client, ops, .. } = self;
        let client_io = async {
            match client {
                Some(client) => client.io().await,
                None => std::future::pending().await,
            }
        };
        let anything = async {
            tokio::select! {
                io = client_io => Wake::Client(io),
                event = ops.next() => Wake::Event(event),
                stream = door.next() => Wake::Door(stream),
                () = sleep_until(deadline) => Wake::Time,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled(), if !leaving => Wake::Stop,
            wake = anything => wake,
            () = std::future::ready(()), if has_frames => Wake::Frames,
        }
    }

    // Before each wait.

    /// Lets every run to which something happened start what it needs.
    fn settle(&mut self) {
        let now = now();
        for id in std::mem::take(&mut self.dirty) {
            self.settle_run(id, now);
        }
    }

    fn settle_run(&mut self, id: RunId, now: Instant) {
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        run.is_dirty = false;
        let is_complete = run.is_output_complete();
        if is_complete && let Some(life) = &mut run.life {
            if let Some(leader) = life.reap() {
                // From here on it may be the number of another run's leader.
                self.leaders.remove(&leader);
            }
            let adopted = || self.kernel.orphans(&self.leaders);
            if let Some(ending) = life.poll_ending(now, &adopted) {
                let totals = run.outbox.totals();
                let is_written = papers::note_ending(&mut self.journals, run, &ending, totals);
                self.unwritten.note(id, is_written, now);
                run.finish(ending);
            }
        }
        let memory_bytes = run.outbox.memory_bytes();
        self.memory_bytes = self.memory_bytes - run.memory_bytes + memory_bytes;
        run.memory_bytes = memory_bytes;
        let spools_bytes = run.outbox.spool_bytes();
        self.spools_bytes = self.spools_bytes - run.spools_bytes + spools_bytes;
        run.spools_bytes = spools_bytes;
        let may_grow = self.spools_bytes < self.spools_bytes_max;
        run.outbox.let_spools_grow(may_grow);
        let is_crowded = self.memory_bytes > MEMORY_BYTES_MAX;
        run.outbox.let_memory_grow(!is_crowded);
        if is_crowded && !run.outbox.is_followed() {
            run.outbox.spill(now);
        }
        let may_read = !is_crowded || !run.outbox.is_followed() || memory_bytes < SHARE_BYTES;
        run.settle(may_read, &mut self.ops);
        let timer = run.poll_timeout();
        if timer != run.timer {
            if let Some(old) = run.timer {
                self.timers.remove(&(old, id));
            }
            self.timers.extend(timer.map(|at| (at, id)));
            run.timer = timer;
        }
        if let Some(client) = &mut self.client
            && run.outbox.is_followed()
        {
            if let Some(state) = run.stdin.poll_ack() {
                client.tell(FromKeeper::StdinAck {
                    run_id: id,
                    offset: state.offset,
                    closed: state.closed,
                });
            }
            if run.outbox.has_transmit() {
                client.turn.add(id);
            }
        }
    }

    /// Lets runs and client do what they can, until all of them wait for something.
    fn advance(&mut self) {
        loop {
            self.settle();
            if self.stage_frames().is_err() {
                self.detach("a message to it does not fit a frame");
            }
            if self.dirty.is_empty() {
                break;
            }
        }
    }

    /// Makes frames for the client, as long as it takes them.
    fn stage_frames(&mut self) -> Result<(), wire::WireError> {
        let Some(client) = &mut self.client else {
            return Ok(());
        };
        client.stage_control()?;
        let now = now();
        let (runs, dirty) = (&mut self.runs, &mut self.dirty);
        while client.wants_frames() {
            let frame = client.turn.poll(|id, credit| {
                let Some(run) = runs.get_mut(&id) else {
                    return Offer::Nothing;
                };
                let offer = run.outbox.offer(credit, now);
                if matches!(offer, Offer::Frame { .. }) {
                    mark_dirty(run, dirty);
                }
                offer.map(|frame| (id, frame))
            });
            let Some((id, frame)) = frame else {
                break;
            };
            client.push_frame(id, frame)?;
        }
        Ok(())
    }

    fn deadline(&mut self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let idle = (self.runs.is_empty() && self.client.is_none())
            .then(|| self.idle_since + self.leave_after);
        let leave_by = match self.going {
            Going::No => None,
            Going::Telling(by) | Going::Spilling(by) => Some(by),
        };
        // Anything else that is held waits for the end of a look.
        let holds_start = self.client.as_ref().is_some_and(Client::holds_start);
        let begin_at = holds_start.then(|| self.starts.poll_timeout()).flatten();
        let times = [
            timer,
            idle,
            leave_by,
            begin_at,
            self.sweep_at,
            self.unwritten.again_at,
        ];
        times.into_iter().flatten().min()
    }

    // What has happened.

    fn handle_event(&mut self, event: Event) {
        let now = now();
        match event {
            Event::Planned { run_id, planned } => self.handle_planned(run_id, planned),
            Event::Exited { run_id } => {
                let adopted = || self.kernel.orphans(&self.leaders);
                if let Some(run) = self.runs.get_mut(&run_id)
                    && let Some(life) = &mut run.life
                {
                    life.handle_exited(now, &adopted);
                    mark_dirty(run, &mut self.dirty);
                }
            }
            Event::Read {
                run_id,
                stream,
                source,
                read,
            } => self.with(run_id, |run| run.handle_read(stream, source, read, now)),
            Event::Wrote {
                run_id,
                sink,
                written,
            } => self.with(run_id, |run| run.handle_wrote(sink, &written)),
            Event::Closed { run_id } => self.with(run_id, Run::close_sink),
            Event::Spooled {
                run_id,
                stream,
                mut spool,
                done,
            } => {
                if self.runs.contains_key(&run_id) {
                    let goes = matches!(self.going, Going::Spilling(_));
                    self.with(run_id, |run| {
                        run.handle_spooled(stream, spool, done, now);
                        if goes {
                            run.outbox.spill(now);
                        }
                    });
                } else {
                    // The run was forgotten meanwhile.
                    spool.delete();
                }
            }
            Event::Deleted | Event::Parted => {}
            Event::Attached(attached) => {
                self.strangers -= 1;
                self.attach(*attached);
            }
            Event::Gone => self.strangers -= 1,
        }
    }

    fn handle_io(&mut self, io: Io) {
        match io {
            Io::Written(Ok(bytes)) if bytes > 0 => {
                if let Some(client) = &mut self.client {
                    client.handle_written(bytes);
                }
            }
            Io::Read(Ok(bytes)) if bytes > 0 => {}
            Io::Read(Ok(_)) => self.detach("it has closed"),
            Io::Read(Err(error)) | Io::Written(Err(error)) => self.detach(&error.to_string()),
            Io::Written(Ok(_)) => self.detach("it takes nothing"),
        }
    }

    fn handle_time(&mut self) {
        let now = now();
        while let Some((at, id)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let adopted = || self.kernel.orphans(&self.leaders);
            let Some(run) = self.runs.get_mut(&id) else {
                continue;
            };
            run.timer = None;
            run.outbox.handle_timeout(now);
            let due = run
                .life
                .as_mut()
                .map(|life| life.handle_timeout(now, &adopted));
            if due == Some(Due::StopReading) {
                run.stop_waiting_for_output();
            }
            mark_dirty(run, &mut self.dirty);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            let orphans = self.kernel.orphans(&self.leaders).unwrap_or_default();
            let again = !orphans.is_empty() || !self.leaders.is_empty();
            self.sweep_at = again.then_some(now + SWEEP_EVERY);
        }
        if self.unwritten.again_at.is_some_and(|at| at <= now) {
            self.write_again();
        }
        let idles = self.runs.is_empty() && self.client.is_none();
        if idles && now >= self.idle_since + self.leave_after {
            self.leaving = true;
        }
    }

    // Helpers.

    /// Does something to a run, if it is still here, and has it settled.
    pub(super) fn with(&mut self, id: RunId, change: impl FnOnce(&mut Run)) {
        if let Some(run) = self.runs.get_mut(&id) {
            change(run);
            mark_dirty(run, &mut self.dirty);
        }
    }

    /// Adds a run that has just begun or ended.
    pub(super) fn insert(&mut self, run: Run) {
        let id = run.id;
        if let Some(life) = &run.life {
            self.leaders.insert(life.leader());
            if self.kernel.adopts_orphans() {
                // A long run leaves orphans too: until the last one is over.
                self.sweep_at.get_or_insert(now() + SWEEP_EVERY);
            }
        }
        self.runs.insert(id, run);
        self.with(id, |_| {});
    }

    /// Lets go of a run that is over.
    pub(super) fn remove(&mut self, id: RunId) -> Option<Run> {
        let mut run = self.runs.remove(&id)?;
        if let Some(at) = run.timer {
            self.timers.remove(&(at, id));
        }
        self.memory_bytes -= run.memory_bytes;
        self.spools_bytes -= run.spools_bytes;
        self.idle_since = now();
        let freed = run.outbox.handle_detached(self.idle_since);
        if let Some(client) = &mut self.client {
            client.turn.remove(id);
            client.turn.handle_freed(freed);
        }
        Some(run)
    }

    /// Ends a run at somebody's wish.
    pub(super) fn cancel(&mut self, id: RunId, grace: Duration) {
        if self.call_off(id) {
            return;
        }
        let adopted = || self.kernel.orphans(&self.leaders);
        if let Some(run) = self.runs.get_mut(&id)
            && let Some(life) = &mut run.life
        {
            life.end(Outcome::Cancelled, grace, now(), &adopted);
            mark_dirty(run, &mut self.dirty);
        }
    }
}

fn mark_dirty(run: &mut Run, dirty: &mut Vec<RunId>) {
    if !std::mem::replace(&mut run.is_dirty, true) {
        dirty.push(run.id);
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;
    use std::sync::Arc;

    use moltis_proto::JournalId;
    use moltis_proto::key::Digest;
    use moltis_proto::run::{self, RunSpec, StdinMode};

    use super::super::config::{Policy, Rules};
    use super::super::journal::Record;
    use super::*;

    fn core(dir: &std::path::Path) -> Core {
        let rules = Rules {
            policy: Policy::Full,
            env_allow: Vec::new(),
            timeout_max: None,
            timeout_default: None,
            working_dir: dir.to_owned(),
            base_env: BTreeMap::new(),
        };
        let boot_id = BootId::from_bytes([1; 16]);
        let config = KeeperConfig::new(dir, Arc::new(rules), boot_id, "1.2.3");
        let machine = Machine::with(Kernel::as_guest());
        let id = JournalId::from_bytes([2; 16]);
        let journal = Journal::create(&machine.disk, dir, id, boot_id, "1.2.3").unwrap();
        Core::new(config, machine, journal, Estate::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_takes_nothing_is_not_asked_at_each_message_to_adopt_what_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut core = core(dir.path());
        let id = JournalId::from_bytes([3; 16]);
        let mut dead = Journal::create(&core.disk, dir.path(), id, core.boot_id, "1.2.3").unwrap();
        let run_id = RunId::from_bytes([7; 16]);
        dead.append(&Record::Forgotten { run_id }).unwrap();
        core.journals.push(dead);
        core.told_journals = 2;
        let full = std::fs::File::options().write(true).open("/dev/full");
        let good = core.journals[0].write_to(full.unwrap());
        core.let_spent_journals_go();
        core.journals[0].write_to(good);
        core.let_spent_journals_go();
        assert_eq!(core.journals.len(), 2, "it was asked a moment ago");
        tokio::time::advance(Duration::from_secs(5)).await;
        core.let_spent_journals_go();
        assert_eq!(core.journals.len(), 1);
    }

    #[tokio::test]
    async fn a_leader_that_was_reaped_is_none_although_its_run_is_not_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut core = core(dir.path());
        let (run_id, digest) = (RunId::from_bytes([7; 16]), Digest::from_bytes([9; 32]));
        let spec = RunSpec {
            command: run::Command::Shell("exec sleep 60".to_owned()),
            cwd: None,
            env: BTreeMap::new(),
            timeout_ms: None,
            grace_ms: 0,
            stdin: StdinMode::Empty,
            tty: None,
        };
        core.begin(run_id, digest, spec);
        let planned = core.ops.next().await;
        core.handle_event(planned);
        let leader = *core.leaders.iter().next().unwrap();
        // Its group has a member until we wait for it, and the run with it.
        let member = Command::new("sleep")
            .arg("60")
            .process_group(leader.as_raw_pid())
            .spawn();
        let mut member = member.unwrap();
        core.cancel(run_id, Duration::ZERO);
        let is_there = |pid: Pid| rustix::process::test_kill_process(pid).is_ok();
        while is_there(leader) {
            assert_eq!(core.leaders.len(), 1);
            let event = tokio::time::timeout(Duration::from_millis(10), core.ops.next());
            if let Ok(event) = event.await {
                core.handle_event(event);
            }
            core.handle_time();
            core.advance();
        }
        assert!(core.runs[&run_id].life.is_some(), "it waits for the member");
        assert!(core.leaders.is_empty());
        member.kill().unwrap();
        member.wait().unwrap();
    }
}
