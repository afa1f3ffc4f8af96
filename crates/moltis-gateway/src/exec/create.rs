//! From a request that may become a run to its row and its node's mailbox, in this order; or to the
//! run that an earlier request with the same key has made.
//!
//! A row is *written* before its start is sent, and *synced* where the power cut that takes the row
//! would take the keeper's journal too (ADR 69).
//!
//! All of it is done by a task of its own: an asker who leaves in the middle takes nothing back,
//! and leaves no row behind that nobody sends.

use std::sync::Arc;

use bytes::Bytes;
use moltis_proto::run::Totals;
use moltis_proto::{BootId, RunId};
use tokio::time::Instant;

use super::ending::TRY_AGAIN;
use super::table::{Place, Spot};
use super::{
    Actor, Command, LiveRun, NewRun, ReadError, Ready, RunCreation, RunHandle, RunRecord, RunStage,
    Seat, Shared, StartError, StdinSource, device_of, handle,
};
use crate::output::{OutputError, RunOutput};
use crate::session::{chain, moment};
use crate::store::{StoreError, Target, Written};

/// A request that has passed all checks.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) new: NewRun,
    pub(super) stdin: StdinSource,
    /// Answer when the row would survive a power cut.
    pub(super) detach: bool,
    pub(super) by: Actor,
    /// When it was asked for.
    pub(super) asked: Instant,
    /// Its node has listed a run with this id, which nobody here knows of yet.
    pub(super) is_listed: bool,
}

impl Shared {
    /// Makes the run, or meets the one that is there.
    ///
    /// # Cancel safety
    /// Goes on when it is dropped.
    pub(super) async fn create(self: &Arc<Self>, order: Order) -> Result<RunHandle, StartError> {
        let shared = Arc::clone(self);
        let task = self.tasks.spawn(async move { shared.fulfil(order).await });
        match task.await {
            Ok(created) => created,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_ended_with_the_runtime) => Err(StartError::ShuttingDown),
            },
        }
    }

    async fn fulfil(self: &Arc<Self>, order: Order) -> Result<RunHandle, StartError> {
        let place = loop {
            match self.table.spot(order.new.id).await {
                Spot::Free(place) => break place,
                Spot::Live(run) => {
                    if let Some(met) = self.attach(&run, &order).await? {
                        return Ok(met);
                    }
                }
            }
        };
        let output = self.output_of(&order).await?;
        // Before there is a row, so that no row is without it.
        let is_new = matches!(order.stdin, StdinSource::Bytes(_))
            && (order.new.key.is_none() || self.store.run(order.new.id).await?.is_none());
        let created = async {
            if is_new {
                self.keep_stdin(&output, &order).await?;
            }
            let created = self.store.create_run(order.new.clone(), &order.by).await;
            created.map_err(StartError::from)
        };
        let created = created.await;
        if is_new && !matches!(created, Ok(RunCreation::Created(_))) {
            let output = Arc::clone(&output);
            let dropped = self.outputs.system().blocking(move || output.drop_stdin());
            dropped.await.ok(); // the runtime is shutting down: no row knows of it
        }
        match created? {
            RunCreation::Created(written) => {
                let id = order.new.id;
                let record = record_of(order.new);
                self.counts().created.one();
                // A slow disk does not make it younger.
                let born = moment::now();
                // The row is there, and the next process may send it.
                let safe = self.safe_to_send(&record, Some(written)).await;
                safe.map_err(|source| StartError::Unkept { id, source })?;
                let run = LiveRun::new(record, true, output, born).asked_at(order.asked.into_std());
                let run = self.send(place, run, order.stdin).await;
                self.settled(run.id, order.detach, Some(written)).await?;
                Ok(handle(&run, false))
            }
            RunCreation::Existing(row) => {
                drop(output);
                self.meet_row(place, *row, order).await
            }
            RunCreation::Conflict(existing) => Err(StartError::Conflict { existing }),
            RunCreation::NodeGone => Err(StartError::NodeGone),
            RunCreation::KeyOfFleet => Err(StartError::KeyOfFleet),
        }
    }

    /// Returns the output of a run that may be new. Where there is no row yet, whatever lies in its
    /// place came from an earlier run with its key, whose row is gone: an older database was put back.
    /// It is set aside until the node has said what it knows of the id, unless it has that run still.
    async fn output_of(&self, order: &Order) -> Result<Arc<RunOutput>, StartError> {
        let id = order.new.id;
        let output = self.outputs.run(id)?;
        if output.totals() == Totals::default() || self.store.run(id).await?.is_some() {
            return Ok(output);
        }
        if order.is_listed {
            return Ok(output);
        }
        // Then nobody else has its files.
        output.synced().await?;
        drop(output);
        tracing::warn!(run.id = %id, "output of an earlier run with this id is set aside");
        let outputs = self.outputs.clone();
        let set_aside = move || outputs.set_aside(id);
        let set_aside = self.outputs.system().blocking(set_aside).await;
        set_aside.unwrap_or(Ok(()))?; // the runtime is shutting down
        Ok(self.outputs.run(id)?)
    }

    /// Puts a run whose row is written into the table and into its node's mailbox.
    async fn send(
        self: &Arc<Self>,
        place: Place<'_>,
        run: LiveRun,
        stdin: StdinSource,
    ) -> Arc<LiveRun> {
        if let StdinSource::Bytes(bytes) = stdin {
            run.wishes().stdin.fill(bytes);
        }
        let run = place.fill(run);
        let target = run.target();
        if let Some(device) = device_of(&target)
            && self.is_revoked(device)
        {
            // The row came first, the revocation right behind it.
            self.end_all_of_revoked(device);
        }
        if let Some(seat) = self.seat_of(&target) {
            // A connection that is gone meanwhile leaves it to the next one, by the table.
            seat.send(Command::Start(Arc::clone(&run))).await.ok();
        }
        tracing::info!(run.id = %run.id, route = %target, "a run was asked for");
        run
    }

    /// Has a run whose start has not left go to this keeper, which its row does not name: the row comes
    /// first, for a process behind this one has to know whom it may ask.
    pub(super) fn move_unsent(self: &Arc<Self>, run: &Arc<LiveRun>, to: Ready, seat: &Arc<Seat>) {
        let (shared, run, seat) = (Arc::clone(self), Arc::clone(run), Arc::clone(seat));
        self.tasks.spawn(async move {
            let Ready {
                boot_id,
                journal_id,
            } = to;
            while let Err(error) = shared.store.move_unsent(run.id, boot_id, journal_id).await {
                if !run.is_owned_by(seat.sitter.epoch) {
                    return; // the next connection of its node has it
                }
                tracing::warn!(run.id = %run.id, error = %chain(&error), "a run is not sent yet: it cannot be written down where it goes");
                if !shared.may_pass(&error) {
                    return run.fail(error);
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
            if !run.is_owned_by(seat.sitter.epoch) {
                return;
            }
            run.update(|record| {
                record.boot_id = Some(boot_id);
                record.journal_id = Some(journal_id);
            });
            // A connection that is gone meanwhile leaves it to the next one.
            seat.send(Command::Start(run)).await.ok();
        });
    }

    /// Meets a run that is under way: an earlier request made it, or a node brought it and this
    /// request claims it. Returns `None` where it was let go of in this moment: the row is a new one
    /// then, of a run that nobody has.
    async fn attach(
        self: &Arc<Self>,
        run: &Arc<LiveRun>,
        order: &Order,
    ) -> Result<Option<RunHandle>, StartError> {
        let record = run.record();
        if record.digest != order.new.digest {
            return Err(StartError::Conflict {
                existing: Box::new((*record).clone()),
            });
        }
        let unkept = |source| StartError::Unkept { id: run.id, source };
        if record.unclaimed {
            let claimed = self.store.create_run(order.new.clone(), &order.by).await;
            if let RunCreation::Created(_) = claimed.map_err(unkept)? {
                handle(run, true).wait().await;
                return Ok(None);
            }
            self.claimed(run).await?;
        }
        if let StdinSource::Bytes(bytes) = &order.stdin {
            self.fill_again(run, bytes, order.detach).await;
        }
        self.settled(run.id, order.detach, None).await?;
        Ok(Some(handle(run, true)))
    }

    /// Meets a run that is not under way here: one that is over, or one whose row a failing store
    /// kept after all.
    async fn meet_row(
        self: &Arc<Self>,
        place: Place<'_>,
        row: RunRecord,
        order: Order,
    ) -> Result<RunHandle, StartError> {
        if row.stage == RunStage::Ended {
            drop(place);
            self.settled(row.id, order.detach, None).await?;
            return Ok(self.ended(row).await?);
        }
        let output = self.outputs.run(row.id)?;
        self.keep_stdin(&output, &order).await?;
        if order.detach {
            self.on_disk(None).await?;
        }
        // Its id and its digest make it safe to send it, whatever its node has of it.
        self.safe_to_send(&row, None).await?;
        let run = self.live_of(row)?;
        let run = self.send(place, run, order.stdin).await;
        Ok(handle(&run, true))
    }

    /// Waits until a start may be sent: where one power cut takes both the row and the keeper's
    /// journal, until the row would survive it. Otherwise the request, repeated under its key, would
    /// find nobody who knows that it was obeyed. Any other keeper knows the id, which is made from
    /// the key; and without a key no request is repeated.
    async fn safe_to_send(
        &self,
        record: &RunRecord,
        written: Option<Written>,
    ) -> Result<(), StoreError> {
        let here = self.outputs.boot_id();
        if record.key.is_some() && is_on_this_machine(&record.target, record.boot_id, here) {
            self.on_disk(written).await?;
        }
        Ok(())
    }

    /// Waits, for somebody who will not come back, until what is written of a run that is on its way
    /// would survive a power cut.
    pub(super) async fn settled(
        &self,
        id: RunId,
        detach: bool,
        written: Option<Written>,
    ) -> Result<(), StartError> {
        if !detach {
            return Ok(());
        }
        let kept = self.on_disk(written).await;
        kept.map_err(|source| StartError::Unkept { id, source })
    }

    /// Keeps the stdin that came with a request, so that it outlives this process; and a power cut,
    /// where the row has to before it is sent or told of.
    async fn keep_stdin(&self, output: &Arc<RunOutput>, order: &Order) -> Result<(), OutputError> {
        let StdinSource::Bytes(bytes) = &order.stdin else {
            return Ok(());
        };
        let (new, here) = (&order.new, self.outputs.boot_id());
        let outlives_power =
            order.detach || new.key.is_some() && is_on_this_machine(&new.target, new.boot_id, here);
        self.keep(output, bytes, outlives_power).await
    }

    /// Gives a run the stdin of a repeated request: what came with the first one may be lost, as a power
    /// cut took it, or the run was claimed.
    pub(super) async fn fill_again(
        self: &Arc<Self>,
        run: &Arc<LiveRun>,
        bytes: &Bytes,
        detach: bool,
    ) {
        let is_news = run.wishes().stdin.fill(bytes.clone());
        self.look(run).await;
        if !is_news {
            return;
        }
        let (record, here) = (run.record(), self.outputs.boot_id());
        let is_here = is_on_this_machine(&record.target, record.boot_id, here);
        let outlives_power = detach || record.key.is_some() && is_here;
        if let Err(error) = self.keep(&run.output, bytes, outlives_power).await {
            // It goes on its way all the same.
            tracing::warn!(run.id = %run.id, error = %chain(&error), "the stdin of a run cannot be kept");
        }
    }

    async fn keep(
        &self,
        output: &Arc<RunOutput>,
        bytes: &Bytes,
        outlives_power: bool,
    ) -> Result<(), OutputError> {
        let (kept, bytes) = (Arc::clone(output), bytes.clone());
        let keep = move || kept.keep_stdin(&bytes);
        let kept = self.outputs.system().blocking(keep).await;
        kept.unwrap_or(Ok(()))?; // the runtime is shutting down
        if outlives_power {
            output.stdin_synced().await?;
        }
        Ok(())
    }

    /// Waits until this write, or all so far, would survive a power cut.
    async fn on_disk(&self, written: Option<Written>) -> Result<(), StoreError> {
        match written {
            Some(written) => self.store.synced(written).await,
            None => self.store.synced_so_far().await,
        }
    }

    /// An unclaimed run has an owner now: its output may come.
    pub(super) async fn claimed(&self, run: &Arc<LiveRun>) -> Result<(), ReadError> {
        if let Some(row) = self.store.run(run.id).await? {
            run.update(|record| {
                record.unclaimed = false;
                record.spec = row.spec;
                record.key = row.key;
                record.requested_by = row.requested_by;
            });
        }
        if let Some(seat) = self.seat_of(&run.target()) {
            // A connection that is gone lists the run again.
            seat.send(Command::Adopt(Arc::clone(run))).await.ok();
        }
        Ok(())
    }
}

/// Returns whether the keeper of a place is on this machine, whose running boot is `here`: that of
/// `local`, or of a node that runs beside the gateway.
fn is_on_this_machine(target: &Target, boot_id: Option<BootId>, here: Option<BootId>) -> bool {
    *target == Target::Local || (here.is_some() && boot_id == here)
}

/// Returns the record of a run as its row will be.
pub(super) fn record_of(new: NewRun) -> RunRecord {
    RunRecord {
        seq: 0,
        id: new.id,
        digest: new.digest,
        target: new.target,
        shown: new.shown,
        requested_by: new.requested_by,
        key: new.key,
        spec: Some(new.spec),
        stage: new.stage,
        incarnation: new.incarnation,
        boot_id: new.boot_id,
        journal_id: new.journal_id,
        created_at: new.created_at,
        asked: new.asked,
        started_at: None,
        pid: None,
        cancel_requested_at: None,
        cancel_grace: None,
        tty_size: None,
        unclaimed: false,
        ended_at: None,
        ending: None,
        totals: Totals::default(),
        output_freed_at: None,
    }
}

#[cfg(test)]
mod tests {
    use moltis_proto::DeviceId;

    use super::*;

    #[test]
    fn a_node_beside_the_gateway_is_on_its_machine() {
        let [here, there] = [1, 2].map(|byte| BootId::from_bytes([byte; 16]));
        let node = Target::Node(DeviceId::from_bytes([5; 16]));
        assert!(is_on_this_machine(&Target::Local, Some(there), Some(here)));
        assert!(is_on_this_machine(&Target::Local, Some(there), None));
        assert!(is_on_this_machine(&node, Some(here), Some(here)));
        assert!(!is_on_this_machine(&node, Some(there), Some(here)));
        assert!(!is_on_this_machine(&node, Some(there), None));
        assert!(!is_on_this_machine(&node, None, None));
    }
}
