//! Output as it comes: checked, stored, and acknowledged when that is due.

use std::time::Instant;

use super::*;

impl Pump {
    pub(super) fn handle_output(
        &mut self,
        run_id: RunId,
        stream: Stream,
        offset: u64,
        bytes: &Bytes,
        now: Instant,
    ) -> Result<(), Violation> {
        let epoch = self.seat.sitter.epoch;
        let attached = self.attached(run_id)?;
        attached.refuse_before_start(run_id)?;
        let before = attached.inbox.in_flight();
        let fresh = attached
            .inbox
            .handle_output(stream, offset, bytes.len(), now)
            .map_err(|source| Violation::Output { run_id, source })?;
        if let Fresh::From { skip } = fresh
            && attached.run.is_owned_by(epoch)
        {
            let fresh = bytes.slice(skip..);
            append(&attached.run, stream, offset + skip as u64, fresh)?;
        }
        let after = attached.inbox.in_flight();
        self.count(before, after)?;
        self.settle_fresh(run_id, now);
        Ok(())
    }

    pub(super) fn handle_gap(
        &mut self,
        run_id: RunId,
        stream: Stream,
        (from, to): (u64, u64),
        reason: GapReason,
        now: Instant,
    ) -> Result<(), Violation> {
        let epoch = self.seat.sitter.epoch;
        let attached = self.attached(run_id)?;
        attached.refuse_before_start(run_id)?;
        let fresh = attached
            .inbox
            .handle_gap(stream, from, to, now)
            .map_err(|source| Violation::Output { run_id, source })?;
        if fresh != Fresh::Nothing && attached.run.is_owned_by(epoch) {
            mark_gap(&attached.run, stream, from, to, reason)?;
        }
        self.settle_fresh(run_id, now);
        Ok(())
    }

    /// Counts what is under way on the whole connection, and gives credit back early when that
    /// runs short: many runs below their own quarter could fill it together.
    pub(super) fn count(&mut self, before: u64, after: u64) -> Result<(), Violation> {
        self.in_flight = self.in_flight + after - before;
        let max = u64::from(self.windows.connection_bytes);
        if self.in_flight > max {
            return Err(Violation::ConnectionWindow {
                found: self.in_flight,
                max,
            });
        }
        Ok(())
    }

    pub(super) fn relieve(&mut self, now: Instant) {
        let max = u64::from(self.windows.connection_bytes);
        if self.in_flight < self.relieved_at.min(max / 2) {
            self.relieved_at = 0;
        }
        if self.in_flight < max / 4 || self.in_flight < self.relieved_at + max / 8 {
            return;
        }
        let waiting = self.unacked.iter().map(|(_, run_id)| run_id);
        for run_id in waiting.chain(&self.unstored) {
            let Some(attached) = self.attached.get_mut(run_id) else {
                continue;
            };
            let before = attached.inbox.in_flight();
            if let Some(ack) = attached.take_ack(now) {
                self.in_flight -= before - attached.inbox.in_flight();
                self.out.push_back(ack);
            }
        }
        self.relieved_at = self.in_flight;
    }

    pub(super) fn settle_fresh(&mut self, run_id: RunId, now: Instant) {
        let waits = self
            .attached
            .get(&run_id)
            .is_some_and(|attached| attached.queue != Queue::None);
        if waits {
            // It stands in a queue already; only an acknowledgement that is due now matters.
            self.acknowledge(run_id, now);
        } else {
            self.settle(run_id, now);
        }
        self.relieve(now);
    }

    /// A run has come to the front of a queue; one that was taken up anew stands elsewhere now.
    pub(super) fn settle_queued(&mut self, run_id: RunId, queue: Queue, now: Instant) {
        let stands_here = self
            .attached
            .get(&run_id)
            .is_some_and(|attached| attached.queue == queue);
        if stands_here {
            self.settle(run_id, now);
        }
    }

    /// Sends the acknowledgement that is due, and puts the run where the next one waits.
    pub(super) fn settle(&mut self, run_id: RunId, now: Instant) {
        self.acknowledge(run_id, now);
        let Some(attached) = self.attached.get_mut(&run_id) else {
            return;
        };
        attached.queue = match attached.inbox.poll_timeout() {
            None => Queue::None,
            Some(due) if due <= now => {
                self.unstored.push_back(run_id);
                Queue::Unstored
            }
            Some(due) => {
                self.unacked.push_back((due, run_id));
                Queue::Unacked(due)
            }
        };
    }

    pub(super) fn acknowledge(&mut self, run_id: RunId, now: Instant) {
        let Some(attached) = self.attached.get_mut(&run_id) else {
            return;
        };
        let before = attached.inbox.in_flight();
        if let Some(ack) = attached.poll_ack(now) {
            self.in_flight -= before - attached.inbox.in_flight();
            self.out.push_back(ack);
        }
    }
}
