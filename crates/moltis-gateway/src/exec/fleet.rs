//! One command on many nodes: who is asked, in which order, how many at a time, and who is not.
//!
//! Each node gets a run of its own, made as any other ([`super::start`]); a fleet is nothing but the
//! request that made them. Nobody is lost: whoever was meant has a run, or is [`Skipped`] with the
//! reason. Under an idempotency key the first request writes down whom it meant, and a repeated
//! one asks those (ADR 63).

mod left_out;
mod run;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use futures_util::future::join_all;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{FutureExt as _, StreamExt as _};
use moltis_proto::key::Digest;
use moltis_proto::run::{ExitStatus, Outcome};
use moltis_proto::{Codec, NodeId, NodeName, RunId};
use sha2::{Digest as _, Sha256};

use self::left_out::{as_it_stops, because_of, not_after_a_failure, offline, why_not};
pub use self::run::FleetRun;
use super::select::{Known, Selector, Standing};
use super::start::{Goal, Name};
use super::{
    Asker, READY_TIME_MAX, RunKey, RunRecord, RunRequest, Runs, SpecError, StartError, StdinSource,
    random_id,
};
use crate::roster::NodeView;
use crate::store::{
    FleetCreation, FleetMember, FleetRecord, LeftOut, LeftOutBecause, StoreError, Target,
};

/// Runs of one fleet that are on their way to the store at the same time: enough that the writer
/// makes full transactions of them, and few enough that it keeps room for others.
const STARTING_MAX: usize = 64;

/// Bytes of all commands of a fleet that may be under way at once. A run keeps its command until it
/// is over.
const COMMANDS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A request to run one command on many nodes.
#[derive(Debug, Clone)]
pub struct FleetRequest {
    /// Which nodes.
    pub select: Selector,
    /// What to run there. Its target is not looked at.
    pub run: RunRequest,
    /// How many at a time.
    pub pace: Pace,
}

/// How many nodes of a fleet run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// All of them.
    AllAtOnce,
    /// At most so many, in the order of their names. Dropping the request starts no more.
    AtMost {
        /// How many.
        parallel: NonZeroUsize,
        /// What happens when one did not exit 0.
        on_failure: OnFailure,
    },
}

/// What becomes of the nodes behind one that did not exit 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// They are asked all the same.
    GoOn,
    /// They are skipped. What runs goes on.
    StartNoMore,
}

/// What a request for many nodes has made.
#[derive(Debug, Default)]
pub struct Fleet {
    /// The runs, in the order in which they were asked for.
    pub runs: Vec<FleetRun>,
    /// Nodes that were meant and have no run.
    pub skipped: Vec<Skipped>,
}

/// A node that was meant and has no run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its id.
    pub node_id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Why.
    pub why: LeftOut,
}

/// Why a request for many nodes was refused. Nothing was started, but with
/// [`Unkept`](FleetError::Unkept).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The selector means nobody, which never means everybody.
    #[error("no node matches `{select}`")]
    NoMatch {
        /// The selector.
        select: Selector,
    },
    /// The key stands for another request.
    #[error("the idempotency key was used before for another request")]
    Conflict,
    /// More memory than the gateway gives to one request.
    #[error(
        "a command of {bytes} bytes on {nodes} nodes at once is too much: at most {COMMANDS_BYTES_MAX} bytes may be under way for one request"
    )]
    TooLarge {
        /// Bytes of the command with its variables.
        bytes: usize,
        /// Nodes at once.
        nodes: usize,
    },
    /// The runs are on their way, and a power cut may take their rows: nobody should leave them alone.
    #[error("{} runs were made and may run, but the store cannot keep them", .runs.len())]
    Unkept {
        /// Their ids.
        runs: Vec<RunId>,
        /// What the store said.
        #[source]
        source: StoreError,
    },
    /// No node takes it, or none can: as for one node.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl From<StoreError> for FleetError {
    fn from(error: StoreError) -> Self {
        Self::Start(error.into())
    }
}

/// A request that has passed all checks, and whom it is for.
struct Order {
    run: RunRequest,
    key: Option<RunKey>,
    asker: Asker,
    members: VecDeque<FleetMember>,
}

impl Runs {
    /// Starts a command on every node that a selector means. Returns when the last one was started,
    /// which with [`Pace::AtMost`] is when few enough of those before it still run.
    ///
    /// # Errors
    /// [`FleetError`]: nothing was started then, but with [`FleetError::Unkept`]. What keeps single nodes from it is not an error:
    /// they are skipped.
    ///
    /// # Cancel safety
    /// With [`Pace::AllAtOnce`] it goes on when it is dropped. With [`Pace::AtMost`] no more are
    /// started then; the same request under the same key goes on.
    pub async fn start_fleet(
        &self,
        request: FleetRequest,
        asker: impl Into<Asker>,
    ) -> Result<Fleet, FleetError> {
        let asker = asker.into();
        if self.shared.tasks.stop().is_cancelled() {
            return Err(StartError::ShuttingDown.into());
        }
        let pace = request.pace;
        let order = self.plan(request, asker).await?;
        match pace {
            Pace::AllAtOnce => {
                let runs = self.clone();
                let all = async move { runs.start_all(order).await };
                match self.shared.tasks.spawn(all).await {
                    Ok(fleet) => fleet,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_ended_with_the_runtime) => Err(StartError::ShuttingDown.into()),
                    },
                }
            }
            Pace::AtMost {
                parallel,
                on_failure,
            } => self.start_some(order, parallel, on_failure).await,
        }
    }

    /// Decides whom a request is for; under a key only for the first time.
    async fn plan(&self, request: FleetRequest, asker: Asker) -> Result<Order, FleetError> {
        let FleetRequest { select, run, pace } = request;
        let key = run.idempotency_key.as_ref().map(|key| asker.key(key));
        let digest = digest_of(&select, &run, pace);
        let known = match &key {
            Some(key) => self.shared.store.fleet(key.run_id()).await?,
            None => None,
        };
        let members = match known {
            Some(fleet) if fleet.digest != digest => return Err(FleetError::Conflict),
            Some(fleet) => fleet.members,
            None => {
                let members = self.members(&select, &run, pace).await?;
                self.remember(key.as_ref(), digest, members).await?
            }
        };
        Ok(Order {
            // The rows are synced together, when all are written.
            run: RunRequest {
                detach: false,
                ..run
            },
            key,
            asker,
            members: members.into(),
        })
    }

    /// Writes down whom a request with a key is for, and returns whom the first one with it was for.
    async fn remember(
        &self,
        key: Option<&RunKey>,
        digest: Digest,
        members: Vec<FleetMember>,
    ) -> Result<Vec<FleetMember>, FleetError> {
        let Some(key) = key else {
            return Ok(members);
        };
        let fleet = FleetRecord {
            key: key.clone(),
            digest,
            members: members.clone(),
            created_at: self.shared.clock.now(),
        };
        match self.shared.store.create_fleet(fleet).await? {
            FleetCreation::Created(_) => Ok(members),
            FleetCreation::Existing(first) if first.digest == digest => Ok(first.members),
            FleetCreation::Existing(_) | FleetCreation::KeyOfRun => Err(FleetError::Conflict),
        }
    }

    /// Returns the nodes that are meant, each with why it cannot be asked. What no node would take
    /// is refused as a whole.
    async fn members(
        &self,
        select: &Selector,
        run: &RunRequest,
        pace: Pace,
    ) -> Result<Vec<FleetMember>, FleetError> {
        self.await_arrivals(select).await;
        let nodes = self.shared.roster.meant_by(select);
        if nodes.is_empty() {
            let select = select.clone();
            return Err(FleetError::NoMatch { select });
        }
        let mut members = Vec::with_capacity(nodes.len());
        let (mut refusal, mut is_taken) = (None, false);
        for node in nodes {
            let left_out = match self.check(&node, run) {
                Err(error) => match because_of(&error) {
                    Some(because) => {
                        let detail = error.to_string();
                        refusal = refusal.or(Some(error));
                        Some(LeftOut { because, detail })
                    }
                    None => return Err(StartError::Spec(error).into()),
                },
                Ok(()) if node.presence.is_none() => Some(offline(&node.record.name)),
                Ok(()) => None,
            };
            is_taken |= left_out
                .as_ref()
                .is_none_or(|why| why.because == LeftOutBecause::Offline);
            members.push(FleetMember {
                device_id: node.record.device_id,
                node_id: node.record.node_id.clone(),
                name: node.record.name.clone(),
                left_out,
            });
        }
        match refusal {
            Some(error) if !is_taken => return Err(StartError::Spec(error).into()),
            _ => {}
        }
        let asked = members.iter().filter(|member| member.left_out.is_none());
        check_memory(run, pace, asked.count())?;
        Ok(members)
    }

    /// Waits for nodes that have just connected and have not said yet what they hold: behind a
    /// restart of the gateway that is many.
    async fn await_arrivals(&self, select: &Selector) {
        let nodes = self.shared.roster.list();
        let arriving = nodes.iter().filter_map(|node| {
            let would_be = Known {
                standing: Standing::Online,
                ..node.known()
            };
            let is_meant = node.record.revoked_at.is_none() && select.matches(&would_be);
            let seat = self.shared.roster.seat(node.record.device_id)?;
            (is_meant && node.presence.is_none() && !seat.is_closing()).then_some(seat)
        });
        let arriving: Vec<_> = arriving.collect();
        let all = join_all(arriving.iter().map(|seat| seat.wait_ready()));
        // Who is late is offline, as for one node.
        tokio::time::timeout(READY_TIME_MAX, all)
            .await
            .map(drop)
            .ok();
    }

    /// Checks that a node takes a request.
    fn check(&self, node: &NodeView, run: &RunRequest) -> Result<(), SpecError> {
        let device = node.record.device_id;
        let seat = self.shared.seat_of(&Target::Node(device));
        let goal = Goal::node(Arc::clone(&node.record));
        let spec = self.spec(run, &goal, seat.as_deref())?;
        let codec = seat.map_or(Codec::Postcard, |seat| seat.sitter.codec);
        super::request::check_fits(
            codec,
            RunId::from_bytes([0; 16]),
            Digest::from_bytes([0; 32]),
            &spec,
        )
    }

    async fn start_all(&self, mut order: Order) -> Result<Fleet, FleetError> {
        let mut made = Made::default();
        let members = std::mem::take(&mut order.members);
        let order = &order;
        let mut started = stream::iter(members)
            .map(|member| self.start_member(order, member))
            .buffered(STARTING_MAX);
        while let Some(one) = started.next().await {
            made.add(one);
        }
        self.settle(made).await
    }

    async fn start_some(
        &self,
        mut order: Order,
        parallel: NonZeroUsize,
        on_failure: OnFailure,
    ) -> Result<Fleet, FleetError> {
        let mut made = Made::default();
        let mut running = FuturesUnordered::new();
        let mut has_failed = false;
        let stop = self.shared.tasks.stop();
        while let Some(member) = order.members.pop_front() {
            while running.len() >= parallel.get() {
                let ended = tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    ended = running.next() => ended,
                };
                has_failed |= ended.is_some_and(|record: Arc<RunRecord>| !has_exited_0(&record));
            }
            // Of those that are over nobody has to wait for.
            while let Some(Some(record)) = running.next().now_or_never() {
                has_failed |= !has_exited_0(&record);
            }
            // Others run already: their ids are worth more than an error, which asks for all once more.
            if stop.is_cancelled() && !made.fleet.runs.is_empty() {
                made.add(self.leave_out(&order, member, as_it_stops()).await);
                continue;
            }
            if has_failed && on_failure == OnFailure::StartNoMore {
                made.add(self.leave_out(&order, member, not_after_a_failure()).await);
                continue;
            }
            let started = self.start_member(&order, member).await;
            if let Ok(run) = &started {
                let mut run = run.clone();
                running.push(async move { run.wait().await });
            }
            made.add(started);
        }
        self.settle(made).await
    }

    async fn start_member(
        &self,
        order: &Order,
        member: FleetMember,
    ) -> Result<FleetRun, NotStarted> {
        if let Some(why) = member.left_out.clone() {
            return Err((member, why).into());
        }
        let key = order.key.clone();
        let device = member.device_id;
        let id = key
            .as_ref()
            .map_or_else(random_id, |key| key.member_id(device));
        let node = self.shared.roster.get(device).map(|node| node.record);
        let Some(record) = node.filter(|record| record.revoked_at.is_none()) else {
            // What ran there before it was revoked is still what this request has made.
            let gone = why_not(&StartError::NodeGone);
            return self.leave_out(order, member, gone).await;
        };
        let goal = Goal::node(record);
        let started = self.start_at(Ok(goal), &order.run, Name { id, key }, &order.asker);
        match started.await {
            Ok(handle) => Ok(FleetRun::of(&handle)),
            Err(error) => {
                let why = why_not(&error);
                let (is_failure, stops) = (
                    why.because == LeftOutBecause::Failed,
                    why.because == LeftOutBecause::ShuttingDown,
                );
                // A gateway that stops looks at no key.
                let mut not_started = if stops {
                    match self.leave_out(order, member, why).await {
                        Ok(run) => return Ok(run),
                        Err(not_started) => not_started,
                    }
                } else {
                    NotStarted::from((member, why))
                };
                not_started.failure = (is_failure || stops).then_some(error);
                Err(not_started)
            }
        }
    }

    /// Starts nothing at a node. What an earlier request with the same key has made there is still told.
    async fn leave_out(
        &self,
        order: &Order,
        member: FleetMember,
        why: LeftOut,
    ) -> Result<FleetRun, NotStarted> {
        if let Some(key) = &order.key
            && let Ok(handle) = self.handle(key.member_id(member.device_id)).await
        {
            return Ok(FleetRun::of(&handle));
        }
        let why = member.left_out.clone().unwrap_or(why);
        Err((member, why).into())
    }

    /// Waits until all that is written would survive a power cut: nobody has to stay for them. A
    /// gateway that could start none has failed.
    pub(super) async fn settle(&self, made: Made) -> Result<Fleet, FleetError> {
        let Made { fleet, failure } = made;
        if let Some(error) = failure {
            if fleet.runs.is_empty() {
                return Err(error.into());
            }
            let error = crate::session::chain(&error);
            tracing::warn!(%error, "not every run of a request for many nodes could be started");
        }
        match self.shared.store.synced_so_far().await {
            Err(source) if !fleet.runs.is_empty() => {
                let runs = fleet.runs.iter().map(|run| run.id).collect();
                Err(FleetError::Unkept { runs, source })
            }
            synced => Ok(synced.map(|()| fleet)?),
        }
    }
}

/// A node of a fleet that has no run.
struct NotStarted {
    skipped: Skipped,
    /// What failed here, where the node could have been asked.
    failure: Option<StartError>,
}

impl From<(FleetMember, LeftOut)> for NotStarted {
    fn from((member, why): (FleetMember, LeftOut)) -> Self {
        let skipped = Skipped {
            node_id: member.node_id,
            name: member.name,
            why,
        };
        Self {
            skipped,
            failure: None,
        }
    }
}

/// A fleet while it is made.
#[derive(Default)]
pub(super) struct Made {
    pub(super) fleet: Fleet,
    /// The first failure that was ours.
    failure: Option<StartError>,
}

impl Made {
    fn add(&mut self, started: Result<FleetRun, NotStarted>) {
        match started {
            Ok(run) => self.fleet.runs.push(run),
            Err(NotStarted { skipped, failure }) => {
                self.fleet.skipped.push(skipped);
                self.failure = self.failure.take().or(failure);
            }
        }
    }
}

fn has_exited_0(record: &RunRecord) -> bool {
    record.ending.as_ref().is_some_and(|ending| {
        ending.outcome == Outcome::Exited && ending.status == Some(ExitStatus::Code(0))
    })
}

fn check_memory(run: &RunRequest, pace: Pace, asked: usize) -> Result<(), FleetError> {
    let nodes = match pace {
        Pace::AllAtOnce => asked,
        Pace::AtMost { parallel, .. } => asked.min(parallel.get()),
    };
    let bytes = said(run).len();
    if bytes.saturating_mul(nodes) > COMMANDS_BYTES_MAX {
        return Err(FleetError::TooLarge { bytes, nodes });
    }
    Ok(())
}

/// Returns what the spec of a run is made from, in one text. The node's name is not in it.
fn said(run: &RunRequest) -> Vec<u8> {
    let timeout_ms = run.timeout.map(super::request::millis);
    let spec = (&run.command, &run.cwd, &run.env, timeout_ms, &run.tty);
    serde_json::to_vec(&spec).expect("words, maps with string keys and numbers become JSON")
}

/// Returns a pace as a text that no other pace has.
fn said_of(pace: Pace) -> String {
    match pace {
        Pace::AllAtOnce => "all at once".to_owned(),
        Pace::AtMost {
            parallel,
            on_failure: OnFailure::GoOn,
        } => format!("at most {parallel}"),
        Pace::AtMost {
            parallel,
            on_failure: OnFailure::StartNoMore,
        } => format!("at most {parallel} until one fails"),
    }
}

/// Returns what one key stands for: everything that a request says.
fn digest_of(select: &Selector, run: &RunRequest, pace: Pace) -> Digest {
    /// `moltis fleet digest 1`, filled with zeros to 32 bytes.
    const LABEL: &[u8; 32] = b"moltis fleet digest 1\0\0\0\0\0\0\0\0\0\0\0";
    let stdin = match &run.stdin {
        StdinSource::Empty => (0_u8, None),
        StdinSource::Open => (1, None),
        StdinSource::Bytes(bytes) => (2, Some(Sha256::digest(bytes))),
    };
    let mut hash = Sha256::new();
    hash.update(LABEL);
    for part in [
        select.to_string().into_bytes(),
        said_of(pace).into_bytes(),
        said(run),
    ] {
        // Of parts whose lengths are known no two lists make one text.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update([stdin.0]);
    hash.update(stdin.1.unwrap_or_default());
    Digest::from_bytes(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use moltis_proto::run::Command;

    fn request(line: &str) -> RunRequest {
        RunRequest::new(Command::Shell(line.to_owned()))
    }

    fn at_most(parallel: usize, on_failure: OnFailure) -> Pace {
        Pace::AtMost {
            parallel: NonZeroUsize::new(parallel).unwrap(),
            on_failure,
        }
    }

    #[test]
    fn a_digest_stands_for_everything_that_a_request_says() {
        let all: Selector = "all".parse().unwrap();
        let gpu: Selector = "gpu=true".parse().unwrap();
        let stdin = |stdin| RunRequest {
            stdin,
            ..request("a")
        };
        let digests = [
            digest_of(&all, &request("a"), Pace::AllAtOnce),
            digest_of(&gpu, &request("a"), Pace::AllAtOnce),
            digest_of(&all, &request("b"), Pace::AllAtOnce),
            digest_of(&all, &request("a"), at_most(1, OnFailure::GoOn)),
            digest_of(&all, &request("a"), at_most(2, OnFailure::GoOn)),
            digest_of(&all, &request("a"), at_most(1, OnFailure::StartNoMore)),
            digest_of(
                &all,
                &stdin(StdinSource::Bytes("x".into())),
                Pace::AllAtOnce,
            ),
            digest_of(&all, &stdin(StdinSource::Bytes("".into())), Pace::AllAtOnce),
        ];
        for (at, one) in digests.iter().enumerate() {
            assert!(digests[at + 1..].iter().all(|other| other != one), "{at}");
        }
        let spaced: Selector = " gpu = true ".parse().unwrap();
        let again = digest_of(&spaced, &request("a"), Pace::AllAtOnce);
        assert_eq!(again, digests[1]);
    }

    #[test]
    fn what_is_under_way_at_once_has_a_bound() {
        let long = request(&"x".repeat(65_000));
        assert!(check_memory(&long, Pace::AllAtOnce, 1000).is_ok());
        let error = check_memory(&long, Pace::AllAtOnce, 2000).unwrap_err();
        assert!(error.to_string().contains("2000 nodes"), "{error}");
        assert!(check_memory(&long, at_most(10, OnFailure::GoOn), 2000).is_ok());
    }
}
