//! What becomes of each run when a connection stands again, against a reference model: one rule
//! after the other as protocol.md tells them, in place of a table.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_proto::key::Digest;
use moltis_proto::run::reconcile::{Action, NodeSide, OpenRow, Progress, Row, decide};
use moltis_proto::run::{Outcome, Reason, RunState, RunSummary, Totals};
use moltis_proto::{BootId, JournalId, RunId};

/// How long a `Start` may be sent again, as protocol.md says.
const START_TIME: Duration = Duration::from_secs(30);

fn expected(row: Row, listed: Option<&RunSummary>, node: NodeSide<'_>) -> Action {
    let open = match row {
        Row::Open(open) => open,
        // What is over here may be forgotten there; what is nobody's is kept and shown; what is
        // another's is somebody's to look at. Of what neither side has nothing becomes.
        _ if listed.is_none() => return Action::Leave,
        Row::Ended => return Action::Forget,
        Row::None => return Action::KeepUnclaimed,
        Row::Elsewhere | Row::WaitingApproval => return Action::Alert,
    };
    // The node's own word comes before everything that could be guessed.
    if let Some(listed) = listed {
        let runs = matches!(listed.state, RunState::Running { .. });
        return if runs { Action::Resume } else { Action::Drain };
    }
    let lost = |reason| Action::End {
        outcome: Outcome::Lost,
        reason,
    };
    let same_boot = open.boot_id == node.boot_id;
    let has_journal = node.journals.iter().any(|one| *one == open.journal_id);
    match (same_boot, has_journal, open.progress) {
        (false, _, _) => lost(Reason::NodeRebooted),
        (true, false, _) => lost(Reason::JournalWiped),
        (true, true, Progress::Running) => lost(Reason::NodeForgot),
        (true, true, Progress::Starting) => {
            let asked_there = node.journals[0] == open.journal_id;
            let is_young = open.age.is_some_and(|age| age <= START_TIME);
            match (open.same_incarnation, asked_there) {
                (_, true) if is_young => Action::StartAgain,
                (true, _) => Action::End {
                    outcome: Outcome::FailedToStart,
                    reason: Reason::NotStarted,
                },
                // The row of another process may be of a database that was put back.
                (false, true) => Action::Ask,
                (false, false) => lost(Reason::NodeForgot),
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let boot = |input: &mut Input<'_>| BootId::from_bytes([input.byte() % 3; 16]);
    let journal = |input: &mut Input<'_>| JournalId::from_bytes([input.byte() % 4; 16]);
    let journals: Vec<_> = (0..input.below(4)).map(|_| journal(&mut input)).collect();
    let node = NodeSide {
        boot_id: boot(&mut input),
        journals: &journals,
    };
    while !input.is_empty() {
        let row = match input.below(8) {
            0 => Row::None,
            1 => Row::Elsewhere,
            2 => Row::WaitingApproval,
            3 => Row::Ended,
            _ => Row::Open(OpenRow {
                progress: if input.flag() {
                    Progress::Running
                } else {
                    Progress::Starting
                },
                boot_id: boot(&mut input),
                journal_id: journal(&mut input),
                same_incarnation: input.flag(),
                age: match input.byte() {
                    0 => Some(START_TIME),
                    1 => Some(START_TIME + Duration::from_nanos(1)),
                    2 => Some(Duration::MAX),
                    3 => None,
                    seconds => Some(Duration::from_secs(seconds.into())),
                },
            }),
        };
        let listed = input.flag().then(|| RunSummary {
            run_id: RunId::from_bytes([9; 16]),
            digest: Digest::from_bytes([9; 32]),
            journal_id: journal(&mut input),
            state: if input.flag() {
                RunState::Running { pid: 7 }
            } else {
                RunState::Ended
            },
            totals: Totals {
                stdout: input.number(),
                stderr: input.number(),
            },
            stdin: input.number(),
        });
        let action = decide(row, listed.as_ref(), node);
        assert_eq!(
            action,
            expected(row, listed.as_ref(), node),
            "{row:?} {listed:?} {node:?}"
        );

        // What must hold whatever the model says: no ending and no second start against the node's
        // word, and a start only where it was asked before, if anybody was.
        match action {
            Action::End { .. } | Action::StartAgain | Action::Ask => assert_eq!(listed, None),
            Action::Forget => assert_eq!(row, Row::Ended),
            Action::Resume | Action::Drain => assert!(matches!(row, Row::Open(_))),
            Action::Leave | Action::KeepUnclaimed | Action::Alert => {
                assert!(!matches!(row, Row::Open(_)));
            }
        }
    }
});
