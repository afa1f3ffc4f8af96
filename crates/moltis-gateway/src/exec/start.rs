//! From a request to a run: the route, the row, and the node's mailbox, in this order.

use std::sync::Arc;
use std::time::Duration;

use super::{
    Actor, Asker, Command, Creation, LiveRun, NewRun, NodeRecord, PlaceRules, READY_TIME_MAX,
    ReadError, Ready, Route, RouteError, RunCreation, RunHandle, RunId, RunKey, RunRecord,
    RunRequest, RunSpec, RunStage, Runs, Seat, Shared, SpecError, StartError, StdinSource, Target,
    device_of, handle, random_id, request, watch,
};

/// Everything that a route leads to.
struct Goal {
    target: Target,
    /// What lists show.
    shown: String,
    record: Option<Arc<NodeRecord>>,
}

impl Runs {
    /// Starts a run, or meets the one that an earlier request with the same key made.
    ///
    /// # Errors
    /// [`StartError`]: nothing was started then.
    ///
    /// # Cancel safety
    /// Dropping it does not take a run back whose row is written.
    pub async fn start(
        &self,
        request: RunRequest,
        asker: impl Into<Asker>,
    ) -> Result<RunHandle, StartError> {
        let asker = asker.into();
        if self.shared.tasks.stop().is_cancelled() {
            return Err(StartError::ShuttingDown);
        }
        let goal = self.goal(request.target.as_deref())?;
        let seat = self.ready_seat(&goal).await;
        let spec = self.spec(&request, &goal, seat.as_ref().ok().map(|(seat, _)| &**seat))?;
        let digest = request::digest_of(device_of(&goal.target), &spec);
        let key = request.idempotency_key.as_ref().map(|key| RunKey {
            principal: asker.key_owner(),
            key: key.clone(),
        });
        let id = key.as_ref().map_or_else(random_id, RunKey::run_id);
        let (seat, ready) = match seat {
            Ok(seat) => seat,
            Err(offline) if key.is_some() => {
                // A request that was answered before is answered again, whoever is offline.
                return self.meet(id, digest).await?.ok_or(offline);
            }
            Err(offline) => return Err(offline),
        };
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
        };
        self.create(new, request.stdin, request.detach, &asker.actor())
            .await
    }

    /// Writes the row, then sends the run.
    async fn create(
        &self,
        new: NewRun,
        stdin: StdinSource,
        detach: bool,
        by: &Actor,
    ) -> Result<RunHandle, StartError> {
        let run = loop {
            match self.shared.reserve(&new)? {
                Ok(run) => break run,
                Err(other) => match other.created().await {
                    Creation::Written | Creation::Pending => {
                        return self.attach(&other, new, by).await;
                    }
                    // It was not written after all: this request may try.
                    Creation::GivenUp => {}
                },
            }
        };
        if let StdinSource::Bytes(bytes) = stdin {
            run.wishes().stdin.fill(bytes);
        }
        let reservation = Reservation::of(&self.shared, &run);
        let written = match self.shared.store.create_run(new, by).await? {
            RunCreation::Created(written) => written,
            RunCreation::Existing(record) => {
                drop(reservation);
                return Ok(self.handle_of(*record).await?);
            }
            RunCreation::Conflict(existing) => return Err(StartError::Conflict { existing }),
            RunCreation::NodeGone => return Err(StartError::NodeGone),
        };
        reservation.keep();
        let target = run.target();
        if let Some(device) = device_of(&target)
            && self.shared.is_revoked(device)
        {
            // The row came first, the revocation right behind it.
            self.shared.end_all_of_revoked(device);
        }
        if let Some(seat) = self.shared.seat_of(&target) {
            // A connection that is gone meanwhile leaves it to the next one, by the table.
            seat.send(Command::Start(Arc::clone(&run))).await.ok();
        }
        tracing::info!(run.id = %run.id, route = %target, "a run was asked for");
        if detach {
            self.shared.store.synced(written).await?;
        }
        Ok(handle(&run, false))
    }

    /// Meets a run that an earlier request made, or that a node brought and this request claims.
    async fn attach(
        &self,
        run: &Arc<LiveRun>,
        new: NewRun,
        by: &Actor,
    ) -> Result<RunHandle, StartError> {
        let record = run.record();
        if record.digest != new.digest {
            return Err(StartError::Conflict {
                existing: Box::new((*record).clone()),
            });
        }
        if record.unclaimed {
            self.shared.store.create_run(new, by).await?;
            self.claimed(run).await?;
        }
        Ok(handle(run, true))
    }

    /// Meets the run with this id, wherever it is written.
    async fn meet(
        &self,
        id: RunId,
        digest: moltis_proto::key::Digest,
    ) -> Result<Option<RunHandle>, StartError> {
        let Some(record) = self.record(id).await? else {
            return Ok(None);
        };
        if record.digest != digest {
            return Err(StartError::Conflict {
                existing: Box::new((*record).clone()),
            });
        }
        Ok(Some(self.handle_of((*record).clone()).await?))
    }

    pub(super) async fn handle_of(&self, record: RunRecord) -> Result<RunHandle, ReadError> {
        if let Some(run) = self.shared.live(record.id) {
            return Ok(handle(&run, true));
        }
        let ended = crate::output::EndedOutput {
            totals: record.totals,
            heads: self.shared.store.run_heads(record.id).await?,
            freed: record.output_freed_at.is_some(),
        };
        let output = self.shared.outputs.ended(record.id, &ended)?;
        Ok(RunHandle {
            output,
            record: watch::channel(Arc::new(record)).1,
            existed: true,
        })
    }

    fn goal(&self, target: Option<&str>) -> Result<Goal, StartError> {
        let text = target.unwrap_or(&self.default_route);
        match self.shared.roster.route(text)? {
            Route::Local => Ok(Goal {
                target: Target::Local,
                shown: "local".to_owned(),
                record: None,
            }),
            Route::Node(record) => Ok(Goal {
                target: Target::Node(record.device_id),
                shown: record.node_id.as_str().to_owned(),
                record: Some(record),
            }),
            Route::Ssh(label) => Err(RouteError::NoSuchTarget { label }.into()),
        }
    }

    async fn ready_seat(&self, goal: &Goal) -> Result<(Arc<Seat>, Ready), StartError> {
        let Some(record) = &goal.record else {
            let local = self.local.as_ref().ok_or(StartError::NoLocal)?;
            return local.ready().await.map_err(StartError::LocalFailed);
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

    fn spec(
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
        let said = seat.and_then(|seat| seat.sitter.introduction.as_deref());
        let (timeout_ms, env_allow) = said.map_or(
            (record.claims.timeout_ms, &record.claims.env_allow),
            |said| (said.timeout_ms, &said.env_allow),
        );
        let rules = PlaceRules {
            name: record.name.as_str(),
            timeout_max: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
            timeout_default: None,
            env_allow,
        };
        request::spec_of(request, &rules)
    }
}

/// A place in the table of runs that is given up unless the row gets written.
struct Reservation<'a> {
    shared: &'a Shared,
    run: &'a Arc<LiveRun>,
    kept: bool,
}

impl<'a> Reservation<'a> {
    fn of(shared: &'a Shared, run: &'a Arc<LiveRun>) -> Self {
        Self {
            shared,
            run,
            kept: false,
        }
    }

    fn keep(mut self) {
        self.kept = true;
        self.run.set_creation(Creation::Written);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.shared.remove_live(self.run);
            self.run.set_creation(Creation::GivenUp);
        }
    }
}
