//! What must be true of a world, whatever befalls it: the reference model.
//!
//! The kernel tells what was started, written and ended; the callers tell what they asked for and
//! what they were told. The model knows nothing of gateways and nodes, so it cannot make their
//! mistakes. The numbers of the [`Violation`]s are those of `docs/protocol.md`'s promises as
//! `docs/simulation.md` lists them.

mod excuses;
mod told;

use std::collections::{BTreeMap, BTreeSet};

use moltis_gateway::api::follow::{Gap, GapReason};
use moltis_gateway::api::runs::{Outcome, OutcomeReason, Run, State};
use moltis_proto::handshake::Epoch;
use moltis_proto::run::ExitStatus;

pub(super) use self::excuses::Trouble;
use self::excuses::{Excuses, Since};
use super::kernel::script::{Script, Stream, Tag, bytes as right_bytes};
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
    },
    /// It was told that this is its run.
    Answered { tag: Tag, run_id: String },
    /// It was told that nothing was started.
    Refused { tag: Tag },
    /// A kernel started it.
    Executed {
        tag: Tag,
        place: Place,
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
    /// Somebody asked for its end.
    Cancelled { tag: Tag },
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

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {words}")]
pub(super) struct Violation {
    pub(super) invariant: &'static str,
    pub(super) words: String,
}

/// Makes a violation.
macro_rules! violation {
    ($invariant:literal, $($words:tt)*) => {
        $crate::simulate::model::Violation {
            invariant: $invariant,
            words: format!($($words)*),
        }
    };
}
pub(super) use violation;

/// What is known of the world.
#[derive(Debug, Default)]
pub(super) struct Model {
    runs: BTreeMap<Tag, Known>,
    by_id: BTreeMap<String, Tag>,
    excuses: Excuses,
    /// Machines whose keys are refused, and since when the operator knows.
    revoked: BTreeMap<Place, Since>,
    /// Machines that have slept, and whose links were not accepted anew since.
    woken: BTreeMap<Place, Since>,
    /// When each node was connected last: what befell it since then may not be known here.
    connected: BTreeMap<Place, Since>,
    /// Connections that were accepted.
    epochs: BTreeSet<(u32, u32)>,
}

/// What is known of one request, and of what came of it.
#[derive(Debug)]
struct Known {
    place: Place,
    key: Option<String>,
    asked: Since,
    /// When it was asked for again, under its key.
    asked_last: Since,
    /// When its place was connected last before it was asked for.
    connected: Since,
    ids: BTreeSet<String>,
    executed: Option<Since>,
    written: [u64; 2],
    status: Option<ExitStatus>,
    was_halted: bool,
    is_cancelled: bool,
    /// The caller was told that nothing was started, and cannot ask again.
    was_refused: bool,
    told: Option<(Told, Since)>,
}

/// How a caller was told that a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    outcome: Outcome,
    reason: Option<OutcomeReason>,
    exit_code: Option<i32>,
    signal: Option<i32>,
}

impl Told {
    /// Returns whether this one says that nothing was started, and the later one that nobody knows. A
    /// gateway whose row was not synced concludes it anew, and the journal may be another one by then.
    fn is_nothing_and(&self, later: &Self) -> bool {
        self.reason == Some(OutcomeReason::NotStarted)
            && later.reason == Some(OutcomeReason::NodeForgot)
    }
}

type Checked = Result<(), Violation>;

impl Model {
    /// Takes note of an event, and looks at whether it may be.
    pub(super) fn handle(&mut self, happened: Happened) -> Checked {
        match happened {
            Happened::Asked { place, script, key } => {
                self.asked(place, script.tag, key);
                Ok(())
            }
            Happened::Answered { tag, run_id } => self.answered(tag, &run_id),
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
                is_written_down,
            } => self.executed(tag, place, is_written_down),
            Happened::Wrote { tag, stream, total } => {
                self.known(tag)?.written[at(stream)] = total;
                Ok(())
            }
            Happened::ReadWrong { tag } => Err(violation!(
                "stdin",
                "the child of {tag} read a byte that was not sent at its place"
            )),
            Happened::Ended { tag, status } => {
                self.known(tag)?.status = Some(status);
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
            Happened::Seen(run) => self.seen(&run),
            Happened::Read {
                tag,
                stream,
                offset,
                bytes,
            } => self.read(tag, stream, offset, &bytes),
            Happened::Missed { tag, gap } => self.missed(tag, gap),
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

    /// Returns whether the keeper of a child may have died, or its row may be lost.
    pub(super) fn is_orphan(&self, tag: Tag) -> bool {
        self.runs.get(&tag).is_some_and(|run| {
            self.excuses.keeper_died(run.place, run.asked) || self.excuses.lost_rows(run.asked)
        })
    }

    /// Returns whether anything has befallen the keepers of the gateway's machine.
    pub(super) fn had_trouble_here(&self) -> bool {
        let begun = Since::default();
        self.excuses.keeper_died(GATEWAY, begun)
            || self.excuses.keeper_left(GATEWAY, begun)
            || self.excuses.disk_had_trouble(GATEWAY)
    }

    fn known(&mut self, tag: Tag) -> Result<&mut Known, Violation> {
        let unknown = || violation!("I3", "nobody has asked for {tag}");
        self.runs.get_mut(&tag).ok_or_else(unknown)
    }

    fn asked(&mut self, place: Place, tag: Tag, key: Option<String>) {
        let asked = self.excuses.now();
        let connected = self.connected.get(&place).copied().unwrap_or(asked);
        let again = self
            .runs
            .entry(tag)
            .and_modify(|run| run.asked_last = asked);
        again.or_insert_with(|| Known {
            place,
            key,
            asked,
            asked_last: asked,
            connected,
            ids: BTreeSet::new(),
            executed: None,
            written: [0; 2],
            status: None,
            was_halted: false,
            is_cancelled: false,
            was_refused: false,
            told: None,
        });
    }

    fn answered(&mut self, tag: Tag, run_id: &str) -> Checked {
        let known = self.known(tag)?;
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

    fn executed(&mut self, tag: Tag, place: Place, is_written_down: bool) -> Checked {
        let now = self.excuses.now();
        let revoked = self.revoked.get(&place).copied();
        let slept = self.woken.get(&place).copied();
        let excuses = self.excuses.clone();
        let run = self.known(tag)?;
        // Where both sides lose what they had written, nobody knows of it any more. On the gateway's
        // own machine, whose power takes both, its row is synced before; and a keeper that leaves
        // forgets only what its gateway had synced.
        let lost_files = excuses.lost_files(place, run.connected);
        let forgot_all = (excuses.restored(run.asked)
            && (lost_files || excuses.keeper_left(place, run.connected)))
            || (excuses.gateway_lost_power(run.asked) && lost_files && place != GATEWAY);
        if run.executed.is_some() && !forgot_all {
            return Err(violation!("I1", "{tag} is executed a second time"));
        }
        if run.executed.replace(now).is_some() {
            (run.written, run.status, run.was_halted) = ([0; 2], None, false);
        }
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
        if revoked.is_some_and(|since| run.asked >= since && !excuses.restored(since)) {
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
            // The same key asks anew of a database that knows nothing of it.
            Some((_, since)) if forgot_all || excuses.lost_rows(*since) => Ok(()),
            Some((told, _)) => Err(violation!("I10", "{tag} begins after it was told {told:?}")),
            None => Ok(()),
        }
    }

    fn seen(&mut self, run: &Run) -> Checked {
        if run.unclaimed {
            if self.excuses.has_lost_rows() {
                return Ok(());
            }
            return Err(violation!("I3", "{} runs without a row", run.id));
        }
        let Some(tag) = tag_of(run) else {
            return Err(violation!("I3", "nobody has asked for {}", run.id));
        };
        self.answered(tag, &run.id)?;
        let now = self.excuses.now();
        let excuses = self.excuses.clone();
        let known = self.known(tag)?;
        let told = match (run.state, run.outcome) {
            (State::Ended, Some(outcome)) => Told {
                outcome,
                reason: run.outcome_reason,
                exit_code: run.exit_code,
                signal: run.signal,
            },
            (State::Ended, None) => {
                return Err(violation!("I7", "{tag} is over and has no outcome"));
            }
            (_, None) => {
                return match &known.told {
                    // Whoever waits is told before the row is written, as its node keeps it.
                    Some((told, since)) if !excuses.gateway_died(*since) => Err(violation!(
                        "I7",
                        "{tag} was told {told:?} and is not over any more"
                    )),
                    _ => Ok(()),
                };
            }
            (state, Some(outcome)) => {
                return Err(violation!("I7", "{tag} is {state:?} and {outcome:?}"));
            }
        };
        if let Some((before, since)) = &known.told
            && *before != told
            && !(before.is_nothing_and(&told) && excuses.gateway_lost_power(*since))
            && !excuses.restored(*since)
            && !excuses.forgot_ending(known.place, known.asked, *since)
        {
            return Err(violation!(
                "I7",
                "{tag} was told {before:?}, and now {told:?}"
            ));
        }
        known.check_ending(tag, &told, &excuses)?;
        known.check_totals(tag, run, &told)?;
        known.told.get_or_insert((told.clone(), now)).0 = told.clone();
        Ok(())
    }

    fn read(&mut self, tag: Tag, stream: Stream, offset: u64, bytes: &[u8]) -> Checked {
        let known = self.known(tag)?;
        let end = offset + bytes.len() as u64;
        let written = known.written[at(stream)];
        if end > written {
            return Err(violation!(
                "I4",
                "{tag} has written {written} bytes to {stream:?}, and {end} are read"
            ));
        }
        let right = right_bytes(tag, stream, offset, end);
        if bytes == right {
            return Ok(());
        }
        let pairs = (offset..).zip(bytes.iter().zip(&right));
        let wrong: Vec<_> = pairs.filter(|(_, (found, right))| found != right).collect();
        Err(violation!(
            "I4",
            "{} of {} bytes of {stream:?} of {tag} from {offset} on are wrong, the first is {:?}",
            wrong.len(),
            bytes.len(),
            wrong.first()
        ))
    }

    fn missed(&mut self, tag: Tag, gap: Gap) -> Checked {
        let excuses = self.excuses.clone();
        let known = self.known(tag)?;
        let place = known.place;
        let is_excused = match gap.reason {
            GapReason::Limit => true,
            GapReason::DiskFull | GapReason::DiskFailed => excuses.disk_had_trouble(place),
            // One that leaves as its disk fails takes with it what it had in memory.
            GapReason::KeeperDied => {
                excuses.keeper_died(place, known.asked)
                    || excuses.rebooted(place, known.asked)
                    || (excuses.keeper_left(place, known.asked) && excuses.disk_had_trouble(place))
            }
            GapReason::PowerCut => {
                excuses.gateway_lost_power(known.asked) || excuses.lost_files(place, known.asked)
            }
            GapReason::Freed => {
                excuses.lost_rows(known.asked) || excuses.rebooted(place, known.asked)
            }
            _ => false,
        };
        if is_excused {
            return Ok(());
        }
        Err(violation!(
            "I5",
            "{tag} has lost what nothing excuses: {gap:?}"
        ))
    }
}

impl Known {
    fn is_alive(&self) -> bool {
        self.executed.is_some() && self.status.is_none() && !self.was_halted
    }

    /// Looks at whether the world has such an end for this run.
    fn check_ending(&self, tag: Tag, told: &Told, excuses: &Excuses) -> Checked {
        let by_kernel = match (told.exit_code, told.signal) {
            (Some(code), None) => Some(ExitStatus::Code(code)),
            (None, Some(signal)) => Some(ExitStatus::Signal(signal)),
            (None, None) => None,
            (Some(_), Some(_)) => return Err(violation!("I8", "{tag} has a code and a signal")),
        };
        if by_kernel.is_some() && by_kernel != self.status {
            let status = self.status;
            return Err(violation!(
                "I8",
                "{tag} is told {told:?}, and its kernel says {status:?}"
            ));
        }
        let (place, asked, connected) = (self.place, self.asked, self.connected);
        let objection = match told.outcome {
            Outcome::Exited | Outcome::Signaled => by_kernel
                .is_none()
                .then_some(("I8", "without a word of the kernel")),
            Outcome::Cancelled => (!self.is_cancelled && !excuses.keeper_left(place, connected))
                .then_some(("I8", "and nobody has asked for its end")),
            Outcome::TimedOut => None,
            Outcome::FailedToStart | Outcome::Refused => {
                // The same key asked anew of a database that was put back and knows nothing of it.
                let was_before = self.executed.is_some_and(|at| at < self.asked_last);
                let knew = excuses.restored(asked) && was_before;
                (self.executed.is_some() && !knew).then_some(("I10", "and it was executed"))
            }
            Outcome::Lost => {
                let is_excused = match told.reason {
                    Some(OutcomeReason::NodeRebooted) => excuses.rebooted(place, connected),
                    // One that leaves as its disk fails cannot write down how its runs ended.
                    Some(OutcomeReason::KeeperDied) => {
                        excuses.keeper_died(place, connected)
                            || (excuses.keeper_left(place, connected)
                                && excuses.disk_had_trouble(place))
                    }
                    Some(OutcomeReason::JournalWiped) => {
                        excuses.lost_files(place, connected)
                            || excuses.keeper_left(place, connected)
                            || excuses.keeper_died(place, connected)
                    }
                    // Of a start that was under way nobody can be asked when new runs are another
                    // keeper's.
                    Some(OutcomeReason::NodeForgot) => {
                        excuses.restored(asked) || excuses.keeper_began(place, connected)
                    }
                    Some(OutcomeReason::NodeRevoked) => excuses.was_revoked(place),
                    _ => false,
                };
                (!is_excused).then_some(("I18", "and nothing excuses it"))
            }
        };
        if let Some((invariant, why)) = objection {
            let words = format!("{tag} is told {told:?}, {why}");
            return Err(Violation { invariant, words });
        }
        if self.was_halted && matches!(told.outcome, Outcome::Exited | Outcome::Signaled) {
            return Err(violation!(
                "I9",
                "{tag} is told {told:?}, and its machine was switched off"
            ));
        }
        Ok(())
    }

    /// Looks at whether all is accounted for that the child wrote.
    fn check_totals(&self, tag: Tag, run: &Run, told: &Told) -> Checked {
        let totals = [run.stdout_bytes, run.stderr_bytes];
        let written = self.written;
        let is_right = match told.outcome {
            Outcome::Lost => totals[0] <= written[0] && totals[1] <= written[1],
            Outcome::FailedToStart | Outcome::Refused => true,
            _ => totals == written,
        };
        if is_right {
            return Ok(());
        }
        Err(violation!(
            "I4",
            "{tag} is {:?} with {totals:?} bytes, and has written {written:?}",
            told.outcome
        ))
    }
}

/// Returns the request that a run says it is of: its words stand in its command.
pub(super) fn tag_of(run: &Run) -> Option<Tag> {
    let script: Script = run.command.as_ref()?.parse().ok()?;
    Some(script.tag)
}

fn at(stream: Stream) -> usize {
    usize::from(stream == Stream::Err)
}
