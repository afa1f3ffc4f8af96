//! What must be true of a world, whatever befalls it: the reference model.
//!
//! The kernel tells what was started, written and ended; the callers tell what they asked for and
//! what they were told. The model knows nothing of gateways and nodes, so it cannot make their
//! mistakes. The numbers of the [`Violation`]s are those of `docs/protocol.md`'s promises as
//! `docs/simulation.md` lists them.

mod excuses;
mod known;
mod output;
mod told;
mod wrong;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use moltis_gateway::api::follow::Gap;
use moltis_gateway::api::runs::{OutcomeReason, Run, RunResult, State};
use moltis_gateway::output::OutputLimits;
use moltis_proto::handshake::Epoch;
use moltis_proto::run::ExitStatus;

pub(super) use self::excuses::Trouble;
use self::excuses::{Excuses, Since};
use self::known::{Known, Told, at};
use self::output::{Room, check_text};
pub(super) use self::wrong::{Violation, violation};
use super::kernel::script::{Script, Stream, Tag};
use super::net::Place;
use super::plan::GATEWAY;

/// Something that happened in the world.
#[derive(Clone)]
pub(super) enum Happened {
    /// A caller asks for a run.
    Asked {
        place: Place,
        script: Script,
        key: Option<String>,
        timeout: Option<Duration>,
    },
    /// It was told that this is its run.
    Answered { tag: Tag, run_id: String },
    /// It was told so, and does not wait: the row of its run is on the disk.
    Settled { tag: Tag },
    /// It waited, and was told how its run ended.
    Returned { tag: Tag, result: Box<RunResult> },
    /// It was told that nothing was started.
    Refused { tag: Tag },
    /// A kernel started it.
    Executed {
        tag: Tag,
        place: Place,
        run_id: String,
        is_written_down: bool,
    },
    /// It has written so much by now.
    Wrote {
        tag: Tag,
        stream: Stream,
        total: u64,
    },
    /// It read a byte that was not sent to it, at its place.
    ReadWrong { tag: Tag },
    /// It ended.
    Ended { tag: Tag, status: ExitStatus },
    /// Its machine was switched off while it lived.
    Halted { tag: Tag },
    /// Somebody asks for its end.
    Cancelled { tag: Tag },
    /// It was told that the end is on its way.
    CancelTaken { tag: Tag },
    /// The gateway says this of it.
    Seen(Box<Run>),
    /// A reader got these bytes.
    Read {
        tag: Tag,
        stream: Stream,
        offset: u64,
        bytes: bytes::Bytes,
    },
    /// A reader was told of a gap.
    Missed { tag: Tag, gap: Gap },
    /// This machine is the gateway's own.
    IsBeside { place: Place },
    /// A keeper begins on a machine.
    KeeperBegan { place: Place },
    /// A machine has slept for longer than a connection may be silent.
    Woke { place: Place },
    /// A link of it was accepted by the gateway, as this connection of this life of it.
    Connected { place: Place, epoch: Epoch },
    /// The operator was told that this machine's key is refused from now on.
    Revoked { place: Place },
    /// Something went wrong in the world itself, which excuses some of what follows.
    Befell(Trouble),
}

/// What is known of the world.
#[derive(Debug, Default)]
pub(super) struct Model {
    runs: BTreeMap<Tag, Known>,
    by_id: BTreeMap<String, Tag>,
    /// The runs that kernels have started, by their ids.
    executed: BTreeMap<String, Tag>,
    excuses: Excuses,
    /// How much the gateway keeps of all output.
    limits: OutputLimits,
    /// How much all children have written.
    written: u64,
    /// Machines whose keys are refused, and since when the operator knows.
    revoked: BTreeMap<Place, Since>,
    /// Machines that have slept, and whose links were not accepted anew since.
    woken: BTreeMap<Place, Since>,
    /// When each node was connected last: what befell it since then may not be known here.
    connected: BTreeMap<Place, Since>,
    /// Nodes on the gateway's machine.
    beside: BTreeSet<Place>,
    /// Connections that were accepted.
    epochs: BTreeSet<(u32, u32)>,
}

type Checked = Result<(), Violation>;

impl Model {
    /// Takes note of an event, and looks at whether it may be.
    pub(super) fn handle(&mut self, happened: Happened) -> Checked {
        self.excuses.go_on();
        match happened {
            Happened::Asked {
                place,
                script,
                key,
                timeout,
            } => {
                self.asked(place, script.tag, key, timeout);
                Ok(())
            }
            Happened::Answered { tag, run_id } => self.answered(tag, &run_id),
            Happened::Settled { tag } => {
                self.known(tag)?.is_row_synced = true;
                Ok(())
            }
            Happened::Returned { tag, result } => self.returned(tag, &result),
            Happened::Refused { tag } => {
                let known = self.known(tag)?;
                known.was_refused = known.key.is_none();
                match known.executed {
                    Some(_) if known.was_refused => {
                        Err(violation!("I10", "{tag} is refused, and was executed"))
                    }
                    _ => Ok(()),
                }
            }
            Happened::Executed {
                tag,
                place,
                run_id,
                is_written_down,
            } => self.executed(tag, place, run_id, is_written_down),
            Happened::Wrote { tag, stream, total } => {
                let written = &mut self.known(tag)?.written[at(stream)];
                let more = total.saturating_sub(*written);
                *written = total;
                self.written += more;
                Ok(())
            }
            Happened::ReadWrong { tag } => Err(violation!(
                "stdin",
                "the child of {tag} read a byte that was not sent at its place"
            )),
            Happened::Ended { tag, status } => {
                let now = self.excuses.now();
                self.known(tag)?.status = Some((status, now));
                Ok(())
            }
            Happened::Halted { tag } => {
                self.known(tag)?.was_halted = true;
                Ok(())
            }
            Happened::Cancelled { tag } => {
                self.known(tag)?.is_cancelled = true;
                Ok(())
            }
            Happened::CancelTaken { tag } => {
                let now = self.excuses.now();
                self.known(tag)?.cancel_taken.get_or_insert(now);
                Ok(())
            }
            Happened::Seen(run) => self.seen(&run),
            Happened::Read {
                tag,
                stream,
                offset,
                bytes,
            } => {
                let known = known_of(&mut self.runs, tag)?;
                known.read(tag, (stream, offset), &bytes, &self.excuses)
            }
            Happened::Missed { tag, gap } => {
                let room = Room {
                    limits: self.limits,
                    written: self.written,
                };
                let known = known_of(&mut self.runs, tag)?;
                known.missed(tag, gap, room, &self.excuses)
            }
            Happened::IsBeside { place } => {
                self.beside.insert(place);
                Ok(())
            }
            // Whatever it is told is told behind its list of runs, and so behind the sleep.
            Happened::KeeperBegan { place } => {
                self.excuses.note(Trouble::KeeperBegan(place));
                self.woken.remove(&place);
                Ok(())
            }
            Happened::Woke { place } => {
                self.excuses.note(Trouble::Slept(place));
                self.woken.insert(place, self.excuses.now());
                Ok(())
            }
            Happened::Connected { place, epoch } => {
                self.woken.remove(&place);
                self.connected.insert(place, self.excuses.now());
                if self.epochs.insert((epoch.incarnation, epoch.counter)) {
                    return Ok(());
                }
                Err(violation!("I11", "two connections are {epoch:?}"))
            }
            Happened::Revoked { place } => {
                self.excuses.note(Trouble::Revoked(place));
                self.revoked.insert(place, self.excuses.now());
                Ok(())
            }
            Happened::Befell(trouble) => {
                if let Trouble::KeeperDied(place) = trouble {
                    let here = self.runs.values_mut().filter(|run| run.place == place);
                    for run in here.filter(|run| run.is_alive()) {
                        run.written_to_keeper.get_or_insert(run.written);
                    }
                }
                self.excuses.note(trouble);
                Ok(())
            }
        }
    }

    /// Returns the requests whose children live, as far as their kernels know, with their place.
    pub(super) fn alive(&self) -> Vec<(Tag, Place)> {
        let alive = self.runs.iter().filter(|(_, run)| run.is_alive());
        alive.map(|(tag, run)| (*tag, run.place)).collect()
    }

    /// Returns the run that a kernel has started last for a request, by its id.
    pub(super) fn executed_as(&self, tag: Tag) -> Option<String> {
        let mut executed = self.executed.iter();
        executed
            .find(|(_, of)| **of == tag)
            .map(|(id, _)| id.clone())
    }

    /// Returns how much a child has written to stdout and stderr.
    pub(super) fn written(&self, tag: Tag) -> [u64; 2] {
        self.runs.get(&tag).map_or([0; 2], |run| run.written)
    }

    /// Returns the run of a request, where its caller was told of one.
    pub(super) fn id_of(&self, tag: Tag) -> Option<String> {
        self.runs.get(&tag)?.ids.first().cloned()
    }

    /// Returns the ids of all runs that anybody was told of.
    pub(super) fn ids(&self) -> Vec<String> {
        self.by_id.keys().cloned().collect()
    }

    /// Returns whether the keeper of a child has died, and none has begun since that could end it; or
    /// whether it was given up because another machine has its node's key.
    pub(super) fn is_orphan(&self, tag: Tag) -> bool {
        self.runs.get(&tag).is_some_and(|run| {
            let is_left = self.excuses.keeper_died(run.place, run.begun())
                && !self.excuses.has_heir(run.place);
            is_left || run.was_contested(&self.excuses)
        })
    }

    /// Returns why a child that lives, and whose keeper is here, should be over by now.
    pub(super) fn should_be_over(&self, tag: Tag) -> Option<&'static str> {
        let run = self.runs.get(&tag)?;
        if run.is_overdue(self.excuses.now()) {
            return Some("its time is long over");
        }
        let taken = run.cancel_taken?;
        // A store that takes no writes does not keep it from going out, nor a death from forgetting it.
        let is_gone = self.excuses.took_row(taken) || self.excuses.death_took_ending(taken);
        (!is_gone).then_some("its end was on its way")
    }

    /// Returns whether what came with a request as stdin may be gone from its gateway.
    pub(super) fn may_lack_stdin(&self, tag: Tag) -> bool {
        let run = self.runs.get(&tag);
        run.is_some_and(|run| {
            let is_on_disk = run.is_row_synced;
            self.excuses.restored(run.asked)
                || (!is_on_disk && self.excuses.gateway_lost_power(run.asked))
        })
    }

    /// Returns a run that somebody was told of, that is not among these, and that nothing has taken.
    pub(super) fn missing(&self, ids: &BTreeSet<&str>) -> Option<Tag> {
        let is_missing = |run: &Known| {
            let is_here = run.ids.iter().any(|id| ids.contains(id.as_str()));
            let is_taken = |answered| {
                self.excuses.restored_over(answered)
                    || (!run.is_row_synced && self.excuses.power_took(answered))
            };
            !is_here && run.answered.is_some_and(|answered| !is_taken(answered))
        };
        let mut runs = self.runs.iter();
        runs.find(|(_, run)| is_missing(run)).map(|(tag, _)| *tag)
    }

    /// Returns whether a keeper of a place was ever killed or left, so that another one has to clear
    /// up behind it.
    pub(super) fn had_heirs(&self, place: Place) -> bool {
        let begun = Since::default();
        self.excuses.keeper_died(place, begun) || self.excuses.keeper_left(place, begun)
    }

    /// The gateway keeps so much output.
    pub(super) fn keeps(&mut self, limits: OutputLimits) {
        self.limits = limits;
    }

    /// The gateway's store begins a sync.
    pub(super) fn syncs(&mut self) {
        self.excuses.syncs();
    }

    /// That sync is done.
    pub(super) fn has_synced(&mut self) {
        self.excuses.has_synced();
    }

    /// The spool of a stream of a run holds so much from now on; `None` where it is deleted.
    pub(super) fn spools(&mut self, run_id: &str, stream: Stream, bytes: Option<u64>) {
        let (run, now) = (self.executed.get(run_id), self.excuses.now());
        let Some(run) = run.and_then(|tag| self.runs.get_mut(tag)) else {
            return;
        };
        let (held, deleted) = &mut run.spooled[at(stream)];
        match bytes {
            Some(bytes) => (*held, *deleted) = (bytes, None),
            // A file that is deleted before it holds anything is none.
            None => {
                deleted.get_or_insert(now);
            }
        }
    }

    /// The power of the gateway is cut, which takes some of the output of these runs.
    pub(super) fn power_takes(&mut self, runs: &BTreeSet<String>) {
        for tag in runs.iter().filter_map(|run| self.executed.get(run)) {
            if let Some(run) = self.runs.get_mut(tag) {
                run.was_taken_by_power = true;
            }
        }
    }

    /// Returns whether anything has befallen the keepers of the gateway's machine.
    pub(super) fn had_trouble_here(&self) -> bool {
        let begun = Since::default();
        self.excuses.keeper_died(GATEWAY, begun)
            || self.excuses.keeper_left(GATEWAY, begun)
            || self.excuses.disk_had_trouble(GATEWAY, begun)
    }

    fn known(&mut self, tag: Tag) -> Result<&mut Known, Violation> {
        known_of(&mut self.runs, tag)
    }

    fn asked(&mut self, place: Place, tag: Tag, key: Option<String>, timeout: Option<Duration>) {
        let asked = self.excuses.now();
        let connected = self.connected.get(&place).copied().unwrap_or(asked);
        let run = self.runs.entry(tag);
        let run = run.or_insert_with(|| Known::new(place, key, asked, connected));
        run.asked_last = asked;
        if !run.timeouts.contains(&timeout) {
            run.timeouts.push(timeout);
        }
    }

    fn answered(&mut self, tag: Tag, run_id: &str) -> Checked {
        let now = self.excuses.now();
        let known = self.known(tag)?;
        known.answered.get_or_insert(now);
        known.ids.insert(run_id.to_owned());
        if known.ids.len() > 1 {
            let (key, ids) = (&known.key, &known.ids);
            return Err(violation!(
                "I2",
                "the key {key:?} of {tag} has the runs {ids:?}"
            ));
        }
        match self.by_id.insert(run_id.to_owned(), tag) {
            Some(other) if other != tag => Err(violation!(
                "I2",
                "{other} and {tag} were told of the same run {run_id}"
            )),
            _ => Ok(()),
        }
    }

    fn executed(
        &mut self,
        tag: Tag,
        place: Place,
        run_id: String,
        is_written_down: bool,
    ) -> Checked {
        self.executed.insert(run_id, tag);
        let excuses = &self.excuses;
        let revoked = self.revoked.get(&place).copied();
        // A copy of the machine has not slept.
        let was_copied = excuses.cloned(place, Since::default());
        let slept = self.woken.get(&place).copied().filter(|_| !was_copied);
        let is_here = place == GATEWAY || self.beside.contains(&place);
        let run = known_of(&mut self.runs, tag)?;
        // Where both sides lose what they had written, nobody knows of it any more. On the gateway's
        // own machine, whose power takes both, its row is synced before; and a keeper that leaves
        // forgets only what its gateway had synced.
        let forgot_all = run.executed.is_some_and(|at| {
            let lost_files = excuses.lost_files(place, at) || excuses.cloned(place, at);
            (excuses.restored_over(at) && (lost_files || excuses.keeper_left(place, at)))
                || (excuses.power_took(at) && lost_files && !is_here)
        });
        if run.executed.is_some() && !forgot_all {
            return Err(violation!("I1", "{tag} is executed a second time"));
        }
        if run.executed.replace(excuses.now()).is_some() {
            (run.written, run.status, run.was_halted) = ([0; 2], None, false);
            (run.written_to_keeper, run.spooled) = (None, [(0, None); 2]);
            run.was_taken_by_power = false;
            run.reads = Default::default();
            run.told = None;
        }
        run.is_row_synced |= place == GATEWAY && run.key.is_some();
        if run.place != place {
            let asked = run.place;
            return Err(violation!(
                "I3",
                "{tag} was asked for at {asked} and runs at {place}"
            ));
        }
        if !is_written_down {
            return Err(violation!("I3", "{tag} runs and no journal knows of it"));
        }
        // What was sent before may still be under way.
        if revoked.is_some_and(|since| run.asked >= since && !excuses.restored_over(since)) {
            return Err(violation!(
                "I12",
                "{tag} was asked for and begins at {place}, whose key was revoked before"
            ));
        }
        if slept.is_some_and(|woken| run.asked < woken) {
            return Err(violation!(
                "suspend",
                "{tag} begins by a word from before its machine slept"
            ));
        }
        if run.was_refused {
            return Err(violation!(
                "I10",
                "{tag} begins after its caller was told that it will not"
            ));
        }
        match &run.told {
            // A start that was under way when the key was refused may arrive.
            Some((told, _)) if told.reason == Some(OutcomeReason::NodeRevoked) => Ok(()),
            // Nor does the machine whose key is in two places hear that it was given up.
            Some((told, _))
                if told.reason == Some(OutcomeReason::NodeRebooted)
                    && run.was_contested(excuses) =>
            {
                Ok(())
            }
            // The same key asks anew of a database that knows nothing of it.
            Some((_, since)) if forgot_all || excuses.took_row(*since) => Ok(()),
            Some((told, _)) => Err(violation!("I10", "{tag} begins after it was told {told:?}")),
            None => Ok(()),
        }
    }

    fn seen(&mut self, run: &Run) -> Checked {
        if run.unclaimed {
            return self.seen_unclaimed(run);
        }
        let Some(tag) = tag_of(run) else {
            return Err(violation!("I3", "nobody has asked for {}", run.id));
        };
        self.answered(tag, &run.id)?;
        let known = known_of(&mut self.runs, tag)?;
        match (run.state, run.outcome) {
            (State::Ended, Some(outcome)) => {
                known.ended(tag, Told::by_run(outcome, run), &self.excuses)
            }
            (State::Ended, None) => Err(violation!("I7", "{tag} is over and has no outcome")),
            (_, None) => match &known.told {
                // Whoever waits is told before the row is written, as its node keeps it.
                Some((told, since))
                    if !self.excuses.death_took_ending(*since)
                        && !self.excuses.restored_without_ending(*since) =>
                {
                    Err(violation!(
                        "I7",
                        "{tag} was told {told:?} and is not over any more"
                    ))
                }
                _ => Ok(()),
            },
            (state, Some(outcome)) => Err(violation!("I7", "{tag} is {state:?} and {outcome:?}")),
        }
    }

    /// A run that its node lists and that has no row: one that was there has been lost.
    fn seen_unclaimed(&self, run: &Run) -> Checked {
        let tags = [&self.by_id, &self.executed];
        let tag = tags.into_iter().find_map(|tags| tags.get(&run.id));
        let (had_row, asked) = match tag.and_then(|tag| self.runs.get(tag)) {
            Some(known) => {
                let there = known.answered.into_iter().chain(known.executed).min();
                (there.unwrap_or(known.asked), known.asked)
            }
            // Of one that no kernel has started nobody knows whose it was.
            None if self.excuses.has_lost_rows() => return Ok(()),
            None => return Err(violation!("I3", "{} was never asked for", run.id)),
        };
        // It may have been gone before a start that was on its way arrived.
        if self.excuses.took_row(had_row) || self.excuses.took_row(asked) {
            return Ok(());
        }
        Err(violation!("I3", "{} runs without a row", run.id))
    }

    fn returned(&mut self, tag: Tag, result: &RunResult) -> Checked {
        self.answered(tag, &result.run_id)?;
        let known = known_of(&mut self.runs, tag)?;
        known.ended(tag, Told::by_result(result), &self.excuses)?;
        check_text(tag, result)
    }
}

fn known_of(runs: &mut BTreeMap<Tag, Known>, tag: Tag) -> Result<&mut Known, Violation> {
    let unknown = || violation!("I3", "nobody has asked for {tag}");
    runs.get_mut(&tag).ok_or_else(unknown)
}

/// Returns the request that a run says it is of: its words stand in its command.
pub(super) fn tag_of(run: &Run) -> Option<Tag> {
    Script::tag_of(run.command.as_ref()?)
}
