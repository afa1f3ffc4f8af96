//! The dispatcher: from a request to a route, a row, a run, and a handle for the asker.
//!
//! [`Runs`] is the door. A request is routed ([`route`]), becomes a spec ([`request`]), is written
//! down, and only then sent: there is never a `Start` without a row. What goes on while it runs is
//! the [`pump`]'s, at the connection of its place; how it ends is [`ending`]'s. A run belongs to no
//! connection and to no asker: both come and go. A request for many nodes is many of these: see
//! [`select`] for who is meant, and [`fleet`] for how they are asked.

mod create;
mod ending;
mod error;
mod fleet;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
pub(crate) mod live;
pub(crate) mod pump;
pub mod request;
pub mod route;
pub mod select;
mod shared;
mod start;
mod stdin;
mod table;
mod unclaimed;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use moltis_proto::limits::{GRACE, GRACE_MAX};
use moltis_proto::run::{RunSpec, StdinMode, Totals, TtySize};
use moltis_proto::{DeviceId, RunId};

pub use error::{ReadError, RunError, StartError};
pub use fleet::{Fleet, FleetError, FleetRequest, FleetRun, OnFailure, Pace, Skipped};
pub use handle::{EVENT_BYTES_MAX, Follow, KEEP_ALIVE, RunEvent, RunHandle};
pub use request::{RunRequest, SpecError, StdinSource};
pub use route::{Candidate, Directory, Route, RouteError};
pub use select::{Selector, SelectorError};
pub(crate) use shared::{Met, Shared, Write};
pub use stdin::StdinError;
pub(crate) use unclaimed::Unknown;

use crate::audit::Actor;
use crate::local::Local;
use crate::output::OutputTrouble;
use crate::principal::Principal;
use crate::session::seat::{Command, Ready, Seat};
use crate::store::{
    NewRun, NodeRecord, RunCreation, RunFilter, RunKey, RunPage, RunRecord, RunStage, Target,
};
use live::{LiveRun, SIGNALS_MAX};
use request::PlaceRules;
use table::Spot;

/// How long a start waits for a node that has just connected to say what it holds.
const READY_TIME_MAX: Duration = Duration::from_secs(10);

/// How long bytes for stdin wait for room before the asker is told how far they came.
const STDIN_TIME_MAX: Duration = Duration::from_secs(30);

/// The door of the dispatcher. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Runs {
    shared: Arc<Shared>,
    local: Option<Local>,
    default_route: Arc<str>,
    local_timeout: Option<Duration>,
}

/// Who asks, and from where.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Who.
    pub who: Principal,
    /// Where from, for the audit log: an address, `socket`; `None` for a caller in this process.
    pub source: Option<String>,
}

impl From<&Principal> for Asker {
    fn from(who: &Principal) -> Self {
        Self::from(who.clone())
    }
}

impl From<Principal> for Asker {
    fn from(who: Principal) -> Self {
        Self { who, source: None }
    }
}

impl Asker {
    /// Whose keys are whose: a token's by its id, for names can be given again.
    fn key(&self, key: &str) -> RunKey {
        let principal = match &self.who {
            Principal::Operator => return RunKey::of_operator(key),
            Principal::Token { id, .. } => format!("token:{id}"),
            Principal::User(user) => format!("user:{}", user.name()),
        };
        RunKey {
            principal,
            key: key.to_owned(),
        }
    }

    fn actor(&self) -> Actor {
        Actor {
            name: self.who.to_string(),
            source: self.source.clone(),
        }
    }
}

/// A run as it is known now, and whether its place is.
#[derive(Debug, Clone)]
pub struct RunStatus {
    /// Its record.
    pub record: Arc<RunRecord>,
    /// Whether its place is connected; true for a run that is over.
    pub reachable: bool,
    /// When its place was last heard of.
    pub last_heard_at: Option<Timestamp>,
    /// How much it has written, as far as is known.
    pub totals: Totals,
    /// Why its output comes no further, where that is the gateway's disk.
    pub output_waits: Option<OutputTrouble>,
    /// Its node says that it is over, and tells how to who claims it: nobody has asked for it here.
    pub is_over_there: bool,
}

impl RunStatus {
    /// Returns where it stands, as far as anybody knows: by its record, and by its node's word where
    /// nobody here has asked for it.
    pub fn stage(&self) -> RunStage {
        if self.is_over_there {
            RunStage::Ended
        } else {
            self.record.stage
        }
    }
}

impl Runs {
    pub(crate) fn new(
        shared: Arc<Shared>,
        local: Option<Local>,
        default_route: &str,
        local_timeout: Option<Duration>,
    ) -> Self {
        Self {
            shared,
            local,
            default_route: default_route.into(),
            local_timeout,
        }
    }

    /// Returns a run's record as it is now; `None` when there is no such run.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn record(
        &self,
        id: RunId,
    ) -> Result<Option<Arc<RunRecord>>, crate::store::StoreError> {
        if let Some(run) = self.shared.table.get(id) {
            return Ok(Some(run.record()));
        }
        Ok(self.shared.store.run(id).await?.map(Arc::new))
    }

    /// Returns a run as it is known now, and whether its place is connected.
    ///
    /// # Errors
    /// [`RunError::NotFound`], and where the store cannot be read.
    pub async fn status(&self, id: RunId) -> Result<RunStatus, RunError> {
        let record = self.record(id).await?;
        let record = record.ok_or_else(|| RunError::NotFound(id.to_string()))?;
        Ok(self.status_of(record))
    }

    /// Returns whether a record's place is connected, beside it.
    pub fn status_of(&self, record: Arc<RunRecord>) -> RunStatus {
        let seat = self.shared.seat_of(&record.target);
        let reachable = record.stage == RunStage::Ended
            || seat.as_ref().is_some_and(|seat| seat.ready().is_some());
        let last_heard_at = seat.map(|seat| seat.heard_at()).or_else(|| {
            let device = device_of(&record.target)?;
            self.shared.roster.get(device)?.last_seen()
        });
        let live = self.shared.table.get(record.id);
        let live = live.filter(|_| record.stage != RunStage::Ended);
        let totals = live
            .as_ref()
            .map_or(record.totals, |run| run.output.totals());
        let is_over_there =
            record.unclaimed && live.as_ref().is_some_and(|run| run.is_listed_as_over());
        let output_waits = live.and_then(|run| run.output.waits_for());
        RunStatus {
            record,
            reachable,
            last_heard_at,
            totals,
            output_waits,
            is_over_there,
        }
    }

    /// Finds a run by its id or the beginning of it.
    ///
    /// # Errors
    /// [`RunError::NotFound`], [`RunError::Ambiguous`], and where the store cannot be read.
    pub async fn find(&self, text: &str) -> Result<RunStatus, RunError> {
        const CANDIDATES_MAX: u32 = 10;
        if let Ok(id) = text.parse() {
            return self.status(id).await;
        }
        let mut found = self.shared.store.find_runs(text, CANDIDATES_MAX).await?;
        match found.len() {
            0 => Err(RunError::NotFound(text.chars().take(40).collect())),
            1 => Ok(self.overlay(found.remove(0))),
            _ => Err(RunError::Ambiguous {
                prefix: text.to_owned(),
                candidates: found.iter().map(|run| run.id).collect(),
            }),
        }
    }

    /// Returns a page of runs, newest first, and where the next page begins. A stage is that of the
    /// run as it is known now, whatever its row says.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn list(
        &self,
        filter: &RunFilter,
        limit: u32,
    ) -> Result<(Vec<RunStatus>, Option<u64>), RunError> {
        let mut filter = filter.clone();
        let limit_reached = |found: &[_]| u32::try_from(found.len()).is_ok_and(|n| n >= limit);
        let mut found = Vec::new();
        loop {
            let RunPage { items, next } = self.shared.store.list_runs(&filter, limit).await?;
            let mut rows = items.into_iter();
            while let Some(row) = rows.next() {
                let seq = row.seq;
                let run = self.overlay(row);
                if filter.stage.is_some_and(|stage| stage != run.stage()) {
                    continue;
                }
                found.push(run);
                if limit_reached(&found) {
                    let more = rows.len() > 0 || next.is_some();
                    return Ok((found, more.then_some(seq)));
                }
            }
            if next.is_none() {
                return Ok((found, None));
            }
            filter.before = next;
        }
    }

    /// A row lags a little behind what is known here.
    fn overlay(&self, row: RunRecord) -> RunStatus {
        let mut record = Arc::new(row);
        if let Some(run) = self.shared.table.get(record.id) {
            let seq = record.seq;
            record = run.record();
            Arc::make_mut(&mut record).seq = seq;
        }
        self.status_of(record)
    }

    /// Returns a handle on any run: to wait for it, to follow it.
    ///
    /// # Errors
    /// [`RunError::NotFound`], and where the store cannot be read.
    pub async fn handle(&self, id: RunId) -> Result<RunHandle, RunError> {
        Ok(self.shared.handle(self.met(id).await?).await?)
    }

    /// Waits until a run is over.
    ///
    /// # Errors
    /// As [`Runs::handle`], and where its ending cannot be written.
    pub async fn wait(&self, id: RunId) -> Result<Arc<RunRecord>, RunError> {
        let mut run = self.handle(id).await?;
        run.wait().await;
        match run.failure() {
            Some(error) => Err(error.clone().into()),
            None => Ok(run.record()),
        }
    }

    /// Returns a run's output from these offsets on, and its end.
    ///
    /// # Errors
    /// As [`Runs::wait`].
    pub async fn follow(
        &self,
        id: RunId,
        stdout_from: u64,
        stderr_from: u64,
    ) -> Result<Follow, RunError> {
        let run = self.handle(id).await?;
        match run.failure() {
            Some(error) => Err(error.clone().into()),
            None => Ok(run.follow(stdout_from, stderr_from)),
        }
    }

    /// Asks for the end of a run: SIGTERM to its group, SIGKILL after the grace. Kept with the run,
    /// so that a connection that is gone hears of it when it is back. A run that is over stays as
    /// it is. Where the store takes no writes it is asked for all the same, as long as this gateway
    /// lives.
    ///
    /// # Errors
    /// [`RunError::NotFound`], [`RunError::Invalid`], and where the store fails while the run's place
    /// is not connected: whether it ever hears of it then is not sure.
    ///
    /// # Cancel safety
    /// Goes on when it is dropped.
    pub async fn cancel(
        &self,
        id: RunId,
        grace: Option<Duration>,
        asker: impl Into<Asker>,
    ) -> Result<RunStatus, RunError> {
        let grace = grace.unwrap_or(GRACE);
        if grace > GRACE_MAX {
            return Err(SpecError::Invalid(format!(
                "a grace of {} s is too long: at most {} s",
                grace.as_secs(),
                GRACE_MAX.as_secs()
            ))
            .into());
        }
        let run = match self.met(id).await? {
            Met::Live(run) => run,
            Met::Ended(row) => return Ok(self.status_of(Arc::new(*row))),
        };
        let (runs, by) = (self.clone(), asker.into().actor());
        let cancelled = async move { runs.cancel_live(&run, grace, &by).await };
        self.shared.to_the_end(cancelled).await
    }

    async fn cancel_live(
        &self,
        run: &Arc<LiveRun>,
        grace: Duration,
        by: &Actor,
    ) -> Result<RunStatus, RunError> {
        let at = self.shared.clock.now();
        let store = &self.shared.store;
        let noted = store.request_cancel(run.id, grace, at, by).await;
        run.update(|record| {
            record.cancel_requested_at.get_or_insert(at);
            record.cancel_grace.get_or_insert(grace);
        });
        run.wishes().cancel_grace.get_or_insert(grace);
        self.shared.look(run).await;
        let status = self.status_of(run.record());
        match noted {
            Err(error) if !status.reachable => Err(error.into()),
            Err(error) => {
                tracing::error!(run.id = %run.id, %error, "the end of a run was asked for, and that cannot be noted");
                Ok(status)
            }
            Ok(_) => Ok(status),
        }
    }

    /// Gives a run bytes for its stdin, beginning at `offset`; `eof` says that nothing follows
    /// them. Returns the offset behind what was taken: less than was given when there was no room
    /// for a while. In a gateway that has begun anew it waits for the node, which knows how far the
    /// command has read: what an earlier gateway took and did not deliver is to be given again.
    ///
    /// # Errors
    /// [`RunError::Stdin`], [`RunError::Over`], [`RunError::NotFound`].
    ///
    /// # Cancel safety
    /// What was taken stays taken; offsets make it safe to give it again.
    pub async fn stdin(
        &self,
        id: RunId,
        offset: u64,
        bytes: Bytes,
        eof: bool,
    ) -> Result<u64, RunError> {
        let run = self.open_run(id).await?;
        let opened = run
            .record()
            .spec
            .as_ref()
            .is_none_or(|spec| spec.stdin == StdinMode::Open);
        if !opened {
            return Err(StdinError::NotOpen.into());
        }
        let end = offset + bytes.len() as u64;
        let feed = async {
            loop {
                let room = run.stdin_room.notified();
                let taken = run.wishes().stdin.offer(offset, bytes.clone(), eof)?;
                self.shared.look(&run).await;
                if let Some(taken) = taken.filter(|taken| *taken >= end) {
                    return Ok(taken);
                }
                room.await;
            }
        };
        match tokio::time::timeout(STDIN_TIME_MAX, feed).await {
            Ok(taken) => taken,
            Err(_elapsed) => {
                let end = run.wishes().stdin.end();
                end.ok_or_else(|| StdinError::NotPlaced.into())
            }
        }
    }

    /// Tells a run's terminal its new size.
    ///
    /// # Errors
    /// [`RunError::NoTerminal`], [`RunError::Invalid`], [`RunError::Over`], [`RunError::NotFound`].
    pub async fn resize(&self, id: RunId, size: TtySize) -> Result<(), RunError> {
        request::check_size(size)?;
        let run = self.open_run(id).await?;
        if run
            .record()
            .spec
            .as_ref()
            .is_some_and(|spec| spec.tty.is_none())
        {
            return Err(RunError::NoTerminal(id));
        }
        self.shared.store.set_tty_size(id, size).await?;
        run.update(|record| record.tty_size = Some(size));
        run.wishes().size = Some(size);
        self.shared.look(&run).await;
        Ok(())
    }

    /// Sends a signal to a run's process group. One that cannot be sent now waits for the
    /// connection.
    ///
    /// # Errors
    /// [`RunError::Invalid`], [`RunError::TooManySignals`], [`RunError::Over`],
    /// [`RunError::NotFound`].
    pub async fn signal(&self, id: RunId, signal: i32) -> Result<(), RunError> {
        if !(1..=64).contains(&signal) {
            return Err(SpecError::Invalid(format!("{signal} is no signal: 1 to 64 are")).into());
        }
        let run = self.open_run(id).await?;
        {
            let mut wishes = run.wishes();
            if wishes.signals.len() >= SIGNALS_MAX {
                return Err(RunError::TooManySignals(id));
            }
            wishes.signals.push(signal);
        }
        self.shared.look(&run).await;
        Ok(())
    }

    /// Takes a run that a node brought and nobody here had asked for.
    ///
    /// # Errors
    /// [`RunError::Claimed`], [`RunError::NotFound`], and where the store fails.
    ///
    /// # Cancel safety
    /// Goes on when it is dropped.
    pub async fn claim(&self, id: RunId, asker: impl Into<Asker>) -> Result<RunStatus, RunError> {
        let (runs, asker) = (self.clone(), asker.into());
        let claimed = async move { runs.claim_for(id, &asker).await };
        self.shared.to_the_end(claimed).await
    }

    async fn claim_for(&self, id: RunId, asker: &Asker) -> Result<RunStatus, RunError> {
        let record = self.record(id).await?;
        let record = record.ok_or_else(|| RunError::NotFound(id.to_string()))?;
        if !record.unclaimed {
            return Err(RunError::Claimed(id));
        }
        let at = self.shared.clock.now();
        let (store, requested_by) = (&self.shared.store, asker.who.to_string());
        let claimed = store
            .claim_run(id, requested_by, at, &asker.actor())
            .await?;
        // Whoever makes a run of its row at this moment may have read it before.
        if let Spot::Live(run) = self.shared.table.spot(id).await
            && run.record().unclaimed
        {
            self.shared.claimed(&run).await?;
        }
        if claimed.is_none() {
            return Err(RunError::Claimed(id));
        }
        self.status(id).await
    }

    async fn open_run(&self, id: RunId) -> Result<Arc<LiveRun>, RunError> {
        match self.met(id).await? {
            Met::Live(run) if !run.is_over() => Ok(run),
            Met::Live(_) | Met::Ended(_) => Err(RunError::Over(id)),
        }
    }

    async fn met(&self, id: RunId) -> Result<Met, RunError> {
        let met = self.shared.meet(id).await?;
        met.ok_or_else(|| RunError::NotFound(id.to_string()))
    }
}

fn handle(run: &Arc<LiveRun>, existed: bool) -> RunHandle {
    RunHandle {
        record: run.watch(),
        output: Arc::clone(&run.output),
        existed,
        unwritten: run.unwritten(),
    }
}

fn device_of(target: &Target) -> Option<DeviceId> {
    match target {
        Target::Node(device) => Some(*device),
        Target::Local | Target::Ssh(_) => None,
    }
}

fn random_id() -> RunId {
    RunId::from_bytes(moltis_identity::random::bytes())
}

#[cfg(test)]
mod tests;
