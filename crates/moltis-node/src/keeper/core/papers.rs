//! What is written down about runs that are over, and what becomes of the journals of dead keepers.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use moltis_proto::RunId;
use moltis_proto::run::{Ending, Totals};

use super::super::journal::{Journal, Record};
use super::super::run::Run;
use super::{Core, now};

/// How long a disk that has not taken an ending is left in peace.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Runs whose ending only this process knows.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    runs: BTreeSet<RunId>,
    /// When the disk is asked again.
    pub(super) again_at: Option<Instant>,
    /// Until when it is not asked to take over what a dead keeper has forgotten.
    not_adopted_until: Option<Instant>,
}

impl Unwritten {
    /// Remembers a run whose ending is not written, and forgets one of which it is. However many end
    /// meanwhile, the disk is asked again when the first one has waited.
    pub(super) fn note(&mut self, id: RunId, is_written: bool, now: Instant) {
        if is_written {
            self.runs.remove(&id);
        } else {
            self.runs.insert(id);
            self.again_at.get_or_insert(now + AGAIN_AFTER);
        }
        if self.runs.is_empty() {
            self.again_at = None;
        }
    }
}

impl Core {
    /// Writes down how a run has ended.
    pub(in crate::keeper) fn write_ending(&mut self, id: RunId) {
        let run = self.runs.get(&id);
        let ended = run.and_then(|run| Some((run, run.outbox.ending()?)));
        // One that is forgotten needs no ending.
        let is_written = ended.is_none_or(|(run, ending)| {
            note_ending(&mut self.journals, run, ending, run.outbox.totals())
        });
        self.unwritten.note(id, is_written, now());
    }

    /// Tries again to write down what the disk has not taken.
    pub(super) fn write_again(&mut self) {
        self.unwritten.again_at = None;
        for id in self.unwritten.runs.clone() {
            self.write_ending(id);
        }
    }

    /// Lets go of the journals of dead keepers in which no run stands any more, once the gateway has
    /// read the list in which they are: it has concluded by then what it can conclude from a run that
    /// is not in one of them. What they have forgotten our own tells from then on.
    pub(in crate::keeper) fn let_spent_journals_go(&mut self) {
        if self
            .unwritten
            .not_adopted_until
            .is_some_and(|until| now() < until)
        {
            return;
        }
        let mut at = 1;
        while at < self.told_journals.min(self.journals.len()) {
            let (ours, others) = self.journals.split_at_mut(1);
            let spent = &others[at - 1];
            if !spent.is_empty() {
                at += 1;
            } else if let Err(error) = ours[0].adopt_forgotten(spent) {
                tracing::warn!(error = %error, "the journal of a dead keeper stays for now");
                self.unwritten.not_adopted_until = Some(now() + AGAIN_AFTER);
                return;
            } else {
                spent.delete();
                self.journals.remove(at);
                self.told_journals -= 1;
            }
        }
    }
}

/// Returns whether it is written.
pub(super) fn note_ending(
    journals: &mut [Journal],
    run: &Run,
    ending: &Ending,
    totals: Totals,
) -> bool {
    let record = Record::Ended {
        run_id: run.id,
        ending: Cow::Borrowed(ending),
        totals,
    };
    let mut journals = journals.iter_mut();
    let journal = journals.find(|journal| journal.id() == run.journal);
    let written = journal.map(|journal| journal.append(&record));
    if let Some(Err(error)) = &written {
        tracing::error!(run.id = %run.id, error = %error, "an ending is not written down yet");
    }
    !matches!(written, Some(Err(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_end_meanwhile_do_not_put_off_an_ending_that_waits_for_the_disk() {
        let (mut unwritten, began) = (Unwritten::default(), now());
        let run = |number| RunId::from_bytes([number; 16]);
        unwritten.note(run(0), false, began);
        for second in 1..5 {
            let now = began + Duration::from_secs(second.into());
            unwritten.note(run(second), second % 2 == 0, now);
            assert_eq!(unwritten.again_at, Some(began + AGAIN_AFTER), "{second}");
        }
        for number in [0, 1, 3] {
            assert!(unwritten.again_at.is_some());
            unwritten.note(run(number), true, began);
        }
        assert_eq!(unwritten.again_at, None);
    }
}
