//! From the words of a request to an order: the route, the node, the spec, and all that can be
//! refused before a row is written. What follows is in [`super::create`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::create::Order;
use super::{
    Asker, Met, NewRun, NodeRecord, PlaceRules, READY_TIME_MAX, Ready, Route, RouteError,
    RunHandle, RunId, RunKey, RunRecord, RunRequest, RunSpec, RunStage, Runs, Seat, SpecError,
    StartError, StdinSource, Target, device_of, random_id, request,
};

/// Everything that a route leads to.
pub(super) struct Goal {
    target: Target,
    /// What lists show.
    shown: String,
    record: Option<Arc<NodeRecord>>,
}

/// What a run is known by, before there is one.
pub(super) struct Name {
    pub(super) id: RunId,
    /// What makes the same name again.
    pub(super) key: Option<RunKey>,
}

impl Goal {
    /// Returns the way to a node.
    pub(super) fn node(record: Arc<NodeRecord>) -> Self {
        Self {
            target: Target::Node(record.device_id),
            shown: record.node_id.as_str().to_owned(),
            record: Some(record),
        }
    }
}

impl Runs {
    /// Starts a run, or meets the one that an earlier request with the same key made.
    ///
    /// # Errors
    /// [`StartError`]: nothing was started then, but with [`StartError::Unkept`].
    ///
    /// # Cancel safety
    /// Dropping it does not take a run back that is on its way: it starts all the same.
    pub async fn start(
        &self,
        request: RunRequest,
        asker: impl Into<Asker>,
    ) -> Result<RunHandle, StartError> {
        let asker = asker.into();
        let goal = self.goal(request.target.as_deref());
        let key = request.idempotency_key.as_ref();
        let key = key.map(|key| asker.key(key));
        let id = key.as_ref().map_or_else(random_id, RunKey::run_id);
        self.start_at(goal, &request, Name { id, key }, &asker)
            .await
    }

    /// Starts a run at its place, or meets the one that an earlier request of this name made: also
    /// where its place is gone since, has another name, or does not take it any more.
    pub(super) async fn start_at(
        &self,
        goal: Result<Goal, StartError>,
        request: &RunRequest,
        name: Name,
        asker: &Asker,
    ) -> Result<RunHandle, StartError> {
        if self.shared.tasks.stop().is_cancelled() {
            return Err(StartError::ShuttingDown);
        }
        let target = goal.as_ref().ok().map(|goal| goal.target.clone());
        let (id, has_key) = (name.id, name.key.is_some());
        let started = match goal {
            Ok(goal) => self.start_new(goal, request, name, asker).await,
            Err(error) => Err(error),
        };
        match started {
            Err(error) if has_key && error.is_of_today() => {
                self.meet(id, request, target.as_ref()).await?.ok_or(error)
            }
            started => started,
        }
    }

    async fn start_new(
        &self,
        goal: Goal,
        request: &RunRequest,
        Name { id, key }: Name,
        asker: &Asker,
    ) -> Result<RunHandle, StartError> {
        let asked = Instant::now();
        let seat = self.ready_seat(&goal).await;
        let spec = self.spec(request, &goal, seat.as_ref().ok().map(|(seat, _)| &**seat))?;
        let digest = request::digest_of(device_of(&goal.target), &spec, &request.stdin);
        let (seat, ready) = seat?;
        request::check_fits(seat.sitter.codec, id, digest, &spec)?;
        let new = NewRun {
            id,
            key,
            requested_by: asker.who.to_string(),
            digest,
            target: goal.target,
            shown: goal.shown,
            spec,
            stage: RunStage::Starting,
            incarnation: self.shared.roster.incarnation(),
            boot_id: Some(ready.boot_id),
            journal_id: Some(ready.journal_id),
            created_at: self.shared.clock.now(),
            asked: self.shared.outputs.moment_of_boot(),
        };
        let order = Order {
            new,
            stdin: request.stdin.clone(),
            detach: request.detach,
            by: asker.actor(),
            asked,
            // As it was when it was looked at: it may be gone again by the time of the row.
            is_listed: seat.has_listed(id),
        };
        self.shared.create(order).await
    }

    /// Meets the run that this request has made before. `target` is where it leads today.
    async fn meet(
        &self,
        id: RunId,
        request: &RunRequest,
        target: Option<&Target>,
    ) -> Result<Option<RunHandle>, StartError> {
        let Some(met) = self.shared.meet(id).await? else {
            return Ok(None);
        };
        let record = met.record();
        // Only with its node here can it be claimed; without, its row may go again.
        if record.unclaimed {
            return Ok(None);
        }
        let is_there = match target {
            Some(target) => *target == record.target,
            None => self.is_named(request, &record),
        };
        if !is_there || !request::is_of(request, &record, self.local_timeout) {
            return Err(StartError::Conflict {
                existing: Box::new((*record).clone()),
            });
        }
        if let (Met::Live(run), StdinSource::Bytes(bytes)) = (&met, &request.stdin) {
            self.shared.fill_again(run, bytes, request.detach).await;
        }
        let handle = self.shared.handle(met).await?;
        self.shared.settled(id, request.detach, None).await?;
        Ok(Some(handle))
    }

    /// Returns whether a request that leads nowhere names the place of this run all the same: a node that
    /// was revoked or forgotten. A name that is nobody's may never have been this node's.
    fn is_named(&self, request: &RunRequest, record: &RunRecord) -> bool {
        let text = request.target.as_deref().unwrap_or(&self.default_route);
        let word = text.strip_prefix("node:").unwrap_or(text);
        let node = device_of(&record.target).and_then(|device| self.shared.roster.get(device));
        word == record.shown
            || node.is_some_and(|node| {
                word == node.record.name.as_str() || word == node.record.node_id.as_str()
            })
    }

    /// Returns whether a request with this target would run on the gateway's own machine.
    pub(crate) fn is_here(&self, target: Option<&str>) -> bool {
        let text = target.unwrap_or(&self.default_route);
        matches!(self.shared.roster.route(text), Ok(Route::Local))
    }

    fn goal(&self, target: Option<&str>) -> Result<Goal, StartError> {
        let text = target.unwrap_or(&self.default_route);
        match self.shared.roster.route(text)? {
            Route::Local => Ok(Goal {
                target: Target::Local,
                shown: "local".to_owned(),
                record: None,
            }),
            Route::Node(record) => Ok(Goal::node(record)),
            Route::Ssh(label) => Err(RouteError::NoSuchTarget { label }.into()),
        }
    }

    async fn ready_seat(&self, goal: &Goal) -> Result<(Arc<Seat>, Ready), StartError> {
        let Some(record) = &goal.record else {
            let local = self.local.as_ref().ok_or(StartError::NoLocal)?;
            let stop = self.shared.tasks.stop();
            return local.ready().await.map_err(|error| {
                if stop.is_cancelled() {
                    StartError::ShuttingDown
                } else {
                    StartError::LocalFailed(error)
                }
            });
        };
        let offline = || StartError::Offline {
            name: record.name.clone(),
        };
        let seat = self
            .shared
            .seat_of(&goal.target)
            .filter(|seat| !seat.is_closing())
            .ok_or_else(offline)?;
        if let Some(ready) = seat.ready() {
            return Ok((seat, ready));
        }
        let ready = tokio::time::timeout(READY_TIME_MAX, seat.wait_ready()).await;
        match ready {
            Ok(Ok(ready)) => Ok((seat, ready)),
            Ok(Err(_)) | Err(_) => Err(offline()),
        }
    }

    /// Makes the spec of a request for a place, or says what the place does not take.
    pub(super) fn spec(
        &self,
        request: &RunRequest,
        goal: &Goal,
        seat: Option<&Seat>,
    ) -> Result<RunSpec, SpecError> {
        let Some(record) = &goal.record else {
            let rules = PlaceRules {
                name: "local",
                timeout_max: None,
                timeout_default: self.local_timeout,
                env_allow: &[],
            };
            return request::spec_of(request, &rules);
        };
        // What the node said on this connection, or, while it is offline, on its last.
        let here = seat.and_then(|seat| seat.sitter.record.as_deref());
        let said = &here.unwrap_or(record).claims;
        let rules = PlaceRules {
            name: record.name.as_str(),
            timeout_max: (said.timeout_ms > 0).then(|| Duration::from_millis(said.timeout_ms)),
            timeout_default: None,
            env_allow: &said.env_allow,
        };
        request::spec_of(request, &rules)
    }
}
