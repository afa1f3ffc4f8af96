//! What a connection begins with: the list of runs, what becomes of each, and every start.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::{
    Action, Attached, BootId, Event, Inbox, JOURNALS_MAX, JournalId, List, LiveRun, NodeSide,
    Phase, Pump, Queue, RUNS_MAX, Ready, Row, RunId, RunRefusal, RunSpec, RunSummary, StdinSent,
    Stream, TOO_LATE, Target, ToKeeper, Totals, Unknown, Violation, ending, reconcile,
};
use crate::session::moment;

impl Pump {
    pub(super) fn handle_runs(
        &mut self,
        boot_id: BootId,
        journals: Vec<JournalId>,
        mut page: Vec<RunSummary>,
        last: bool,
        now: Instant,
    ) -> Result<(), Violation> {
        let List::Incomplete {
            boot_id: known_boot,
            journals: known_journals,
            runs,
        } = &mut self.list
        else {
            return Err(Violation::SecondList);
        };
        if journals.is_empty() || journals.len() > JOURNALS_MAX {
            return Err(Violation::RunsList);
        }
        if page.is_empty() && !last {
            // It would cost nothing, and could come for ever.
            return Err(Violation::RunsList);
        }
        if *known_boot.get_or_insert(boot_id) != boot_id {
            return Err(Violation::RunsList);
        }
        if known_journals.is_empty() {
            *known_journals = journals;
        } else if *known_journals != journals {
            return Err(Violation::RunsList);
        }
        if page
            .iter()
            .any(|summary| !known_journals.contains(&summary.journal_id))
        {
            return Err(Violation::RunsList);
        }
        runs.append(&mut page);
        if runs.len() > RUNS_MAX * JOURNALS_MAX.min(4) {
            return Err(Violation::RunsList);
        }
        if last {
            let (runs, journals) = (std::mem::take(runs), std::mem::take(known_journals));
            self.complete(boot_id, journals, runs, now)?;
        }
        Ok(())
    }

    pub(super) fn complete(
        &mut self,
        boot_id: BootId,
        journals: Vec<JournalId>,
        mut runs: Vec<RunSummary>,
        now: Instant,
    ) -> Result<(), Violation> {
        let listed: HashMap<RunId, &RunSummary> =
            runs.iter().map(|run| (run.run_id, run)).collect();
        if listed.len() != runs.len() {
            return Err(Violation::RunsList);
        }
        let journal_id = *journals.first().ok_or(Violation::RunsList)?;
        let (mut known, mut unlisted) = (HashSet::new(), Vec::new());
        for run in self.shared.table.at(&self.seat.sitter.target) {
            known.insert(run.id);
            let summary = listed.get(&run.id).copied();
            if summary.is_some_and(|summary| !run.is_told_of_by(summary)) {
                run.set_listed(None);
                self.reconcile(&run, summary, Action::Alert);
                continue;
            }
            if run.record().unclaimed {
                match summary {
                    Some(summary) => run.set_listed(Some(summary.clone())),
                    None => unlisted.push(run),
                }
                continue;
            }
            if summary.is_none()
                && run.set_owner(self.seat.sitter.epoch)
                && self.give_unsent(&run, boot_id, journal_id) == Given::Later
            {
                continue;
            }
            let node = NodeSide {
                boot_id,
                journals: &journals,
            };
            let action = reconcile::decide(run.row(moment::at(now)), summary, node);
            self.reconcile(&run, summary, action);
        }
        self.list = List::Complete { boot_id, journals };
        runs.retain(|summary| !known.contains(&summary.run_id));
        let unknown = runs.iter().map(|summary| summary.run_id);
        self.seat.set_unknown(unknown.collect());
        self.seat.set_ready(Some(Ready {
            boot_id,
            journal_id,
        }));
        if let Target::Node(device) = self.seat.sitter.target {
            self.shared.events.send(Event::NodeOnline(device));
        }
        if !runs.is_empty() || !unlisted.is_empty() {
            self.shared.settle_unknown(Unknown {
                seat: Arc::clone(&self.seat),
                boot_id,
                runs,
                unlisted,
            });
        }
        Ok(())
    }

    pub(super) fn reconcile(
        &mut self,
        run: &Arc<LiveRun>,
        summary: Option<&RunSummary>,
        action: Action,
    ) {
        if action != Action::Leave {
            tracing::debug!(run.id = %run.id, ?action, "a run meets its node again");
        }
        match (action, summary) {
            (Action::Resume | Action::Drain, Some(summary)) => self.resume(run, summary),
            (Action::StartAgain, _) => self.start_again(run),
            (Action::Ask, _) => self.ask(run),
            (Action::End { outcome, reason }, _) => {
                self.shared
                    .end(run, ending::found(outcome, reason), ending::Source::Known);
            }
            (Action::Alert, _) => {
                tracing::warn!(run.id = %run.id, "a node lists a run that was never sent to it");
            }
            // Whoever ends the run tells the node to forget it, once that is synced.
            (Action::Forget | Action::Leave | Action::KeepUnclaimed, _)
            | (Action::Resume | Action::Drain, None) => {}
        }
    }

    /// Takes a run up where the store stands.
    pub(super) fn resume(&mut self, run: &Arc<LiveRun>, summary: &RunSummary) {
        let stored = Totals {
            stdout: run.output.stored(Stream::Stdout),
            stderr: run.output.stored(Stream::Stderr),
        };
        run.output.wake(Arc::clone(&self.stored));
        run.set_owner(self.seat.sitter.epoch);
        self.shared.note_listed(run, summary);
        let (stdin, is_delivered) = {
            let queue = &mut run.wishes().stdin;
            (queue.handle_resume(summary.stdin), queue.is_delivered())
        };
        run.stdin_room.notify_waiters();
        if is_delivered {
            self.shared.let_stdin_go(run);
        }
        let attached = Attached {
            run: Arc::clone(run),
            inbox: Inbox::new(&self.windows, stored.stdout, stored.stderr),
            stdin,
            phase: Phase::Flowing,
            cancel_sent: false,
            size_sent: None,
            queue: Queue::None,
            in_turn: false,
        };
        self.attached.insert(run.id, attached);
        self.out.push_back(ToKeeper::Resume {
            run_id: run.id,
            stdout: stored.stdout,
            stderr: stored.stderr,
        });
        self.look(run);
    }

    pub(super) fn adopt(&mut self, run: &Arc<LiveRun>) {
        if self.attached.contains_key(&run.id) {
            return;
        }
        let Some(summary) = run.take_listed() else {
            return;
        };
        self.resume(run, &summary);
    }

    pub(super) fn start(&mut self, run: &Arc<LiveRun>, now: Instant) {
        let List::Complete { boot_id, journals } = &self.list else {
            return; // the list, once complete, decides
        };
        if self.attached.contains_key(&run.id) {
            return; // the list has decided: it was sent already
        }
        if !run.set_owner(self.seat.sitter.epoch) {
            return; // a newer connection of its node decides
        }
        if let Some(journal_id) = journals.first() {
            // It may have waited for the disk while this connection took the place of another.
            if self.give_unsent(run, *boot_id, *journal_id) == Given::Later {
                return;
            }
        }
        let node = NodeSide {
            boot_id: *boot_id,
            journals,
        };
        match run.row(moment::at(now)) {
            row @ Row::Open(_) => {
                let action = reconcile::decide(row, None, node);
                self.reconcile(run, None, action);
            }
            Row::None | Row::Elsewhere | Row::WaitingApproval | Row::Ended => {}
        }
    }

    /// Sends a `Start` that may have been lost. Of a run that a process of before was asked for, and whose
    /// end is asked for since, it is only asked whether it ever began.
    fn start_again(&mut self, run: &Arc<LiveRun>) {
        if !run.ours {
            let wishes = &mut run.wishes();
            if wishes.cancel_grace.is_some() {
                return self.ask(run);
            }
            // The node does not know it, so nobody has read any of its stdin.
            wishes.stdin.handle_resume(0);
        }
        self.send_start(run);
    }

    pub(super) fn send_start(&mut self, run: &Arc<LiveRun>) {
        let record = run.record();
        let Some(spec) = &record.spec else { return };
        if !self.send(run, spec.clone(), Phase::AwaitStart) {
            return;
        }
        self.shared.outputs.system().released(run.id);
        self.look(run);
    }

    /// Asks the node whether it has had this run. What is wished of it waits for the answer.
    fn ask(&mut self, run: &Arc<LiveRun>) {
        self.send(run, reconcile::question(), Phase::AwaitWord);
    }

    /// Sends a `Start`; false where a newer connection has the run.
    fn send(&mut self, run: &Arc<LiveRun>, spec: RunSpec, phase: Phase) -> bool {
        if !run.may_send(self.seat.sitter.epoch) {
            return false;
        }
        run.output.wake(Arc::clone(&self.stored));
        let attached = self.attached.entry(run.id).or_insert_with(|| Attached {
            run: Arc::clone(run),
            inbox: Inbox::new(&self.windows, 0, 0),
            stdin: StdinSent::default(),
            phase,
            cancel_sent: false,
            size_sent: None,
            queue: Queue::None,
            in_turn: false,
        });
        attached.phase = phase;
        self.out.push_back(ToKeeper::Start {
            run_id: run.id,
            digest: run.record().digest,
            spec: Box::new(spec),
        });
        true
    }

    pub(super) fn handle_started(&mut self, run_id: RunId, pid: u32) -> Result<(), Violation> {
        let attached = self.attached(run_id)?;
        if attached.phase != Phase::AwaitStart {
            return Err(Violation::OutOfTurn {
                run_id,
                what: "it has started before",
            });
        }
        attached.phase = Phase::Flowing;
        let run = Arc::clone(&attached.run);
        self.shared.drop_aside(&run);
        self.shared.note_started(&run, Some(pid));
        Ok(())
    }

    pub(super) fn handle_state(&mut self, summary: &RunSummary) -> Result<(), Violation> {
        let run_id = summary.run_id;
        let attached = self.attached(run_id)?;
        let asked = matches!(attached.phase, Phase::AwaitStart | Phase::AwaitWord);
        if !asked || !attached.run.is_told_of_by(summary) {
            return Err(Violation::OutOfTurn {
                run_id,
                what: "nobody asked where it stands",
            });
        }
        let run = Arc::clone(&attached.run);
        self.drop_attached(run_id);
        self.resume(&run, summary);
        Ok(())
    }

    pub(super) fn handle_refused(
        &mut self,
        run_id: RunId,
        code: RunRefusal,
        now: Instant,
    ) -> Result<(), Violation> {
        let attached = self.attached(run_id)?;
        let phase = attached.phase;
        if !matches!(phase, Phase::AwaitStart | Phase::AwaitWord) {
            return Err(Violation::OutOfTurn {
                run_id,
                what: "a run that has started cannot be refused",
            });
        }
        let run = Arc::clone(&attached.run);
        self.drop_attached(run_id);
        if phase == Phase::AwaitWord {
            if let Some((outcome, reason)) = reconcile::answered(code) {
                self.shared
                    .end(&run, ending::found(outcome, reason), ending::Source::Known);
            }
            return Ok(());
        }
        if code == RunRefusal::Leaving {
            // The link finds the next keeper and connects anew: the table sends the run there.
            run.turn_away();
            self.turned_away
                .push_back((run.born.monotonic + TOO_LATE, run));
            return Ok(());
        }
        if code == RunRefusal::DigestMismatch {
            tracing::warn!(run.id = %run_id, "a node knows this run's id with another command");
        }
        self.shared.end(
            &run,
            ending::refused(code, run.born.monotonic, now),
            ending::Source::Known,
        );
        Ok(())
    }

    /// The keeper that the row of an unsent run names was never asked, or has refused: it may begin
    /// with this one, on another boot of the machine too. One whose end was asked for meanwhile begins
    /// nowhere. The caller has made the run its own.
    fn give_unsent(&self, run: &Arc<LiveRun>, boot_id: BootId, journal_id: JournalId) -> Given {
        if !run.take_unsent() {
            return Given::Now;
        }
        if run.wishes().cancel_grace.is_some() {
            self.shared
                .end(run, ending::cancelled_unsent(), ending::Source::Known);
            return Given::Now;
        }
        let record = run.record();
        if (record.boot_id, record.journal_id) == (Some(boot_id), Some(journal_id)) {
            return Given::Now;
        }
        // It stays unsent until then: the next connection of its node may take it too.
        run.turn_away();
        let to = Ready {
            boot_id,
            journal_id,
        };
        self.shared.move_unsent(run, to, &self.seat);
        Given::Later
    }
}

/// What becomes of a run that may go to another keeper than its row names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// Its row is right: the table decides.
    Now,
    /// Its row is written first, and then it is sent.
    Later,
}
