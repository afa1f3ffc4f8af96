//! Runs that a place lists and that are not under way here: ended ones may be forgotten, and those
//! that nobody here has asked for wait for somebody who claims them (ADR 30).

use std::sync::Arc;

use moltis_proto::run::{Outcome, Reason, RunState, RunSummary};
use moltis_proto::{BootId, RunId};

use super::Shared;
use super::ending;
use super::error::ReadError;
use super::live::LiveRun;
use super::table::Spot;
use crate::events::Event;
use crate::session::chain;
use crate::session::seat::{Command, Seat};
use crate::store::{RunRecord, RunStage, StoreError, Target};

/// Runs of one place that nobody here has asked for, at most. Honest ones are what a power cut took
/// from the store, and few. Further ones are left to their node: the next list may find room.
const UNCLAIMED_MAX: usize = 1024;

/// Runs that a node lists and that are not under way here.
#[derive(Debug)]
pub(crate) struct Unknown {
    pub(crate) seat: Arc<Seat>,
    pub(crate) boot_id: BootId,
    pub(crate) runs: Vec<RunSummary>,
    /// Runs that nobody has claimed, and that the node does not list any more.
    pub(crate) unlisted: Vec<Arc<LiveRun>>,
}

impl Shared {
    /// Finds out about runs that a node lists and that are not under way here. The task ends with
    /// the connection, so that there is one for a place.
    pub(crate) fn settle_unknown(self: &Arc<Self>, unknown: Unknown) {
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let Unknown {
                seat,
                boot_id,
                runs,
                unlisted,
            } = unknown;
            for run in unlisted {
                if let Err(error) = shared.let_go(&run).await {
                    tracing::warn!(run.id = %run.id, %error, "a run that nobody claimed cannot be deleted");
                }
            }
            let before = shared.table.at(&seat.sitter.target);
            let mut room = UNCLAIMED_MAX.saturating_sub(unclaimed(&before));
            let mut left = 0;
            for summary in runs {
                if seat.is_closing() {
                    return; // the next connection lists what it holds then
                }
                let settled = shared.settle_one(&seat, boot_id, summary, room > 0).await;
                match settled {
                    Ok(Settled::Kept) => room -= 1,
                    Ok(Settled::Left) => left += 1,
                    Ok(Settled::Done) => {}
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "a run that a node lists cannot be settled");
                    }
                }
            }
            if left > 0 {
                tracing::warn!(route = %seat.sitter.target, runs = left, "a node holds more runs that nobody here knows than are kept: claim some, and let it connect again");
            }
        });
    }

    async fn settle_one(
        &self,
        seat: &Arc<Seat>,
        boot_id: BootId,
        summary: RunSummary,
        room: bool,
    ) -> Result<Settled, ReadError> {
        let id = summary.run_id;
        let place = match self.table.spot(id).await {
            Spot::Live(run) => {
                self.listed(seat, &run, summary).await;
                return Ok(Settled::Done);
            }
            Spot::Free(place) => place,
        };
        let (row, settled) = match self.store.run(id).await? {
            Some(row) => (row, Settled::Done),
            None if !room => return Ok(Settled::Left),
            None => match self.write_unclaimed(seat, boot_id, &summary).await? {
                Some(row) => (row, Settled::Kept),
                None => return Ok(Settled::Done),
            },
        };
        if row.target != seat.sitter.target {
            warn_of_two(seat, id);
            return Ok(Settled::Done);
        }
        if row.digest != summary.digest {
            warn_of_another(seat, id);
            return Ok(Settled::Done);
        }
        if row.stage == RunStage::Ended {
            // One that was concluded to be lost is as long as it was then, whatever its node has.
            let may_have_more = summary.state == RunState::Ended && summary.totals == row.totals;
            let ended = self.ended_output(&row).await?;
            if !may_have_more || self.outputs.is_whole(id, &ended).await? {
                self.store.synced_so_far().await?;
                self.unless_it_stops(self.outputs.synced(id)).await?;
                seat.send(Command::Forget(id)).await.ok(); // it will list it again
                return Ok(Settled::Done);
            }
            tracing::info!(run.id = %id, "a power cut took output of a run that is over; its node is asked for it");
        }
        let run = place.fill(self.live_of(row)?);
        self.listed(seat, &run, summary).await;
        if seat.is_closing() {
            self.let_be(seat); // the connection may have ended before it was there
        }
        Ok(settled)
    }

    /// A node lists a run that is under way here and that this connection was not given.
    async fn listed(&self, seat: &Arc<Seat>, run: &Arc<LiveRun>, summary: RunSummary) {
        if run.target() != seat.sitter.target {
            warn_of_two(seat, run.id);
            return;
        }
        if !run.is_told_of_by(&summary) {
            warn_of_another(seat, run.id);
            return;
        }
        run.set_listed(Some(summary));
        // One that nobody has claimed stays where it is.
        if !run.record().unclaimed {
            seat.send(Command::Adopt(Arc::clone(run))).await.ok(); // it will list it again
        }
    }

    /// Writes down a run that nobody here has asked for, and returns its row. It is never killed.
    async fn write_unclaimed(
        &self,
        seat: &Arc<Seat>,
        boot_id: BootId,
        summary: &RunSummary,
    ) -> Result<Option<RunRecord>, StoreError> {
        let (id, target) = (summary.run_id, &seat.sitter.target);
        let shown = match target {
            Target::Local => "local".to_owned(),
            Target::Node(device) => match self.roster.get(*device) {
                Some(node) => node.record.node_id.as_str().to_owned(),
                None => return Ok(None),
            },
            Target::Ssh(_) => return Ok(None), // no keeper is there to list anything
        };
        tracing::warn!(run.id = %id, route = %shown, "a place holds a run that nobody here knows; it can be claimed");
        self.store
            .add_unclaimed(
                id,
                summary.digest,
                target,
                shown,
                boot_id,
                summary.journal_id,
                self.roster.incarnation(),
                self.clock.now(),
            )
            .await?;
        self.store.run(id).await
    }

    /// Deletes a run that nobody claimed and that its node holds no more. It was known by the
    /// node's word alone, so nothing is left to keep; who follows it is told that it is over.
    async fn let_go(self: &Arc<Self>, run: &Arc<LiveRun>) -> Result<(), StoreError> {
        if self.store.delete_unclaimed(run.id).await?.is_none() {
            // Somebody has claimed it meanwhile, and is told by its row.
            let ending = ending::found(Outcome::Lost, Reason::NodeForgot);
            self.end(run, ending, ending::Source::Known);
            return Ok(());
        }
        self.end_without_a_row(run);
        Ok(())
    }

    /// Ends a run whose row is deleted.
    pub(super) fn end_without_a_row(&self, run: &Arc<LiveRun>) {
        if !run.take_ending() {
            return;
        }
        let ending = ending::found(Outcome::Lost, Reason::NodeForgot);
        // Whoever hears of the end finds the place free.
        self.table.remove(run);
        let totals = run.output.totals();
        run.output.finish(totals);
        let at = self.clock.now();
        run.update(|record| {
            record.stage = RunStage::Ended;
            record.ended_at = Some(at);
            record.ending = Some(ending);
            record.totals = totals;
        });
        self.events.send(Event::RunLetGo(run.record()));
    }
}

/// What has come of a run that a node lists and that is not under way here.
enum Settled {
    /// It can be claimed now.
    Kept,
    /// Nobody here knows it, and there is no room for it.
    Left,
    /// Nothing more is to be done.
    Done,
}

fn warn_of_two(seat: &Seat, id: RunId) {
    tracing::warn!(run.id = %id, route = %seat.sitter.target, "two devices list one run: the one that it was sent to keeps it");
}

fn warn_of_another(seat: &Seat, id: RunId) {
    tracing::warn!(run.id = %id, route = %seat.sitter.target, "a node lists another command under the id of a run: it is left alone");
}

fn unclaimed(runs: &[Arc<LiveRun>]) -> usize {
    runs.iter().filter(|run| run.record().unclaimed).count()
}
