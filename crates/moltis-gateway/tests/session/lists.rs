//! What a node lists when it connects, and what becomes of each run then.

use std::time::Duration;

use moltis_gateway::api::runs::State;
use moltis_gateway::audit::Actor;
use moltis_gateway::exec::{RunRequest, StartError};
use moltis_gateway::principal::Principal;
use moltis_gateway::store::{RunFilter, RunRecord, RunStage, Store};
use moltis_proto::code::RunRefusal;
use moltis_proto::key::Digest;
use moltis_proto::run::{Outcome, Reason, RunState, RunSummary};
use moltis_proto::{BootId, FromKeeper, JournalId, RunId, ToKeeper};

use crate::gateway::{TestGateway, shell, until, until_asked};
use crate::hostile::{PROTOCOL, ended, output, with_run};
use crate::raw::{BOOT, Device, JOURNAL, RawNode, listed};

const RUNNING: RunState = RunState::Running { pid: 7 };
const OTHER_BOOT: BootId = BootId::from_bytes([8; 16]);
const OTHER_JOURNAL: JournalId = JournalId::from_bytes([9; 16]);

fn invented(number: u16) -> RunSummary {
    let mut id = [0xee; 16];
    id[..2].copy_from_slice(&number.to_be_bytes());
    listed(RunId::from_bytes(id), Digest::from_bytes([3; 32]), RUNNING)
}

async fn page(node: &mut RawNode, runs: Vec<RunSummary>, last: bool) {
    node.say(FromKeeper::Runs {
        boot_id: BOOT,
        journals: vec![JOURNAL],
        runs,
        last,
    })
    .await;
}

async fn all_runs(gateway: &TestGateway) -> Vec<std::sync::Arc<RunRecord>> {
    let filter = RunFilter::default();
    let (list, _) = gateway.gateway.runs().list(&filter, 5000).await.unwrap();
    list.into_iter().map(|status| status.record).collect()
}

async fn paired(gateway: &TestGateway) -> Device {
    let device = Device::new("mallory");
    device.pair(gateway).await;
    device
}

async fn hear_start(node: &mut RawNode) -> (RunId, Digest) {
    match node.hear_run().await {
        ToKeeper::Start {
            run_id,
            digest,
            spec,
        } if spec.is_sound() => (run_id, digest),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_comes_once_and_no_page_of_it_is_empty() {
    let gateway = TestGateway::start().await;
    let device = paired(&gateway).await;
    let mut node = device.ready(&gateway).await;
    node.list(BOOT, JOURNAL, Vec::new()).await;
    assert_eq!(node.closed().await, PROTOCOL);
    let mut node = device.connect(&gateway).await;
    page(&mut node, Vec::new(), false).await;
    assert_eq!(node.closed().await, PROTOCOL);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_does_not_end_in_time_closes() {
    let gateway = TestGateway::start().await;
    let device = paired(&gateway).await;
    let mut node = device.connect(&gateway).await;
    page(&mut node, vec![invented(1)], false).await;
    assert_eq!(node.closed().await, PROTOCOL);
}

#[tokio::test(flavor = "multi_thread")]
async fn invented_runs_are_kept_in_bounds_and_go_with_the_next_list() {
    let gateway = TestGateway::start().await;
    let device = paired(&gateway).await;
    let mut node = device.connect(&gateway).await;
    for first in (0..1200).step_by(200) {
        let runs = (first..first + 200).map(invented).collect();
        page(&mut node, runs, first == 1000).await;
    }
    gateway.online(device.id()).await;
    until_asked("the last of those that are kept", async || {
        (all_runs(&gateway).await.len() == 1024).then_some(())
    })
    .await;
    assert!(all_runs(&gateway).await.iter().all(|run| run.unclaimed));
    // What is not listed any more is gone, and room for others.
    let kept = all_runs(&gateway).await[0].id;
    let handle = gateway.gateway.runs().handle(kept).await.unwrap();
    let _node = device.ready_with(&gateway, vec![invented(5000)]).await;
    until_asked("the new one alone", async || {
        let runs = all_runs(&gateway).await;
        (runs.len() == 1 && runs[0].id == invented(5000).run_id).then_some(())
    })
    .await;
    // Who followed one of them is told.
    let record = tokio::time::timeout(crate::gateway::PATIENCE, handle.clone().wait()).await;
    let ending = record.unwrap().ending.clone().unwrap();
    assert_eq!(ending.reason, Some(Reason::NodeForgot));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclaimed_run_is_claimed_and_told_to_its_end() {
    let gateway = TestGateway::start().await;
    let device = paired(&gateway).await;
    let mut node = device.ready_with(&gateway, vec![invented(1)]).await;
    let id = invented(1).run_id;
    let runs = gateway.gateway.runs();
    let shown = until_asked("the run", async || runs.status(id).await.ok()).await;
    assert!(shown.record.unclaimed && shown.reachable);
    let claimed = runs.claim(id, &Principal::Operator).await.unwrap();
    assert!(!claimed.record.unclaimed);
    runs.claim(id, &Principal::Operator).await.unwrap_err();
    let ToKeeper::Resume {
        run_id,
        stdout: 0,
        stderr: 0,
    } = node.hear_run().await
    else {
        panic!("no resume");
    };
    assert_eq!(run_id, id);
    node.say(output(id, 0, 5)).await;
    node.say(ended(id, 5)).await;
    let record = runs.wait(id).await.unwrap();
    assert_eq!((record.totals.stdout, record.unclaimed), (5, false));
    loop {
        match node.hear_run().await {
            ToKeeper::Forget { run_id } => break assert_eq!(run_id, id),
            ToKeeper::Ack { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclaimed_run_that_is_over_on_its_node_is_not_said_to_run() {
    let gateway = TestGateway::start().await;
    let device = paired(&gateway).await;
    let over = RunSummary {
        state: RunState::Ended,
        ..invented(1)
    };
    let mut node = device.ready_with(&gateway, vec![over, invented(2)]).await;
    let runs = gateway.gateway.runs();
    until_asked("both runs", async || {
        (all_runs(&gateway).await.len() == 2).then_some(())
    })
    .await;
    let in_stage = async |stage| {
        let filter = RunFilter {
            stage: Some(stage),
            ..RunFilter::default()
        };
        let (list, _) = runs.list(&filter, 10).await.unwrap();
        list.iter().map(|run| run.record.id).collect::<Vec<_>>()
    };
    assert_eq!(in_stage(RunStage::Ended).await, [invented(1).run_id]);
    assert_eq!(in_stage(RunStage::Running).await, [invented(2).run_id]);
    let api = gateway.gateway.on_behalf_of(Principal::Operator);
    let id = invented(1).run_id.to_string();
    let shown = api.show_run(&id).await.unwrap();
    assert_eq!((shown.state, shown.outcome), (State::Ended, None));
    assert!(shown.unclaimed && shown.detail.unwrap().contains("claim it"));
    // Claimed, it is drained, and then its ending is known.
    let claimed = api.claim_run(&id).await.unwrap();
    assert_eq!((claimed.state, claimed.detail), (State::Running, None));
    assert!(matches!(node.hear_run().await, ToKeeper::Resume { .. }));
    node.say(ended(invented(1).run_id, 0)).await;
    runs.wait(invented(1).run_id).await.unwrap();
    let shown = api.show_run(&id).await.unwrap();
    assert_eq!(shown.state, State::Ended);
    assert!(shown.outcome.is_some() && !shown.unclaimed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_claims_the_run_that_it_made() {
    let mut request = shell("sleep 9").on("mallory");
    request.idempotency_key = Some("key".to_owned());
    let first = TestGateway::start().await;
    let device = paired(&first).await;
    let mut node = device.ready(&first).await;
    first.start_run(request.clone()).await;
    let (id, digest) = hear_start(&mut node).await;
    // Another gateway stands for one whose row a power cut has eaten.
    let gateway = TestGateway::start().await;
    device.pair(&gateway).await;
    let listed = || vec![listed(id, digest, RUNNING)];
    let node = device.ready_with(&gateway, listed()).await;
    let runs = gateway.gateway.runs();
    until_asked("the run", async || runs.status(id).await.ok()).await;
    // Without its node nobody can claim it, and its row may go again: it is nobody's answer.
    node.drop_line(&gateway, &device).await;
    let refused = runs.start(request.clone(), &Principal::Operator).await;
    assert!(
        matches!(refused, Err(StartError::Offline { .. })),
        "{refused:?}"
    );
    let mut node = device.ready_with(&gateway, listed()).await;
    let handle = gateway.start_run(request).await;
    assert_eq!((handle.id(), handle.existed()), (id, true));
    let record = handle.record();
    assert!(!record.unclaimed && record.spec.is_some());
    assert!(matches!(node.hear_run().await, ToKeeper::Resume { .. }));
}

/// A run that is said to run is not in the next list: returns how it ends.
async fn found_missing(boot: BootId, journal: JournalId) -> (Outcome, Option<Reason>) {
    let gateway = TestGateway::start().await;
    let (device, node, mut handle, _) = with_run(&gateway).await;
    until("the start", || handle.record().started_at).await;
    node.drop_line(&gateway, &device).await;
    let mut node = device.connect(&gateway).await;
    node.list(boot, journal, Vec::new()).await;
    let ending = handle.wait().await.ending.clone().unwrap();
    (ending.outcome, ending.reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_run_that_is_not_listed_is_lost_for_a_reason() {
    let lost = |reason| (Outcome::Lost, Some(reason));
    assert_eq!(found_missing(BOOT, JOURNAL).await, lost(Reason::NodeForgot));
    assert_eq!(
        found_missing(OTHER_BOOT, JOURNAL).await,
        lost(Reason::NodeRebooted)
    );
    assert_eq!(
        found_missing(BOOT, OTHER_JOURNAL).await,
        lost(Reason::JournalWiped)
    );
}

/// A start that was cut off twice, behind a restart of its gateway.
struct CutOff {
    gateway: TestGateway,
    node: RawNode,
    sent: (RunId, Digest),
}

impl CutOff {
    /// `cancelled` has its end asked for before the restart.
    async fn new(cancelled: bool) -> Self {
        let gateway = TestGateway::start().await;
        let device = paired(&gateway).await;
        let mut node = device.ready(&gateway).await;
        let handle = gateway.start_run(shell("true").on("mallory")).await;
        let sent = hear_start(&mut node).await;
        node.drop_line(&gateway, &device).await;
        let mut node = device.ready(&gateway).await;
        assert_eq!(hear_start(&mut node).await, sent);
        node.drop_line(&gateway, &device).await;
        if cancelled {
            let runs = gateway.gateway.runs();
            let cancelled = runs.cancel(sent.0, None, &Principal::Operator).await;
            cancelled.unwrap();
        }
        drop(handle);
        let gateway = gateway.restart().await;
        let node = device.ready(&gateway).await;
        Self {
            gateway,
            node,
            sent,
        }
    }

    /// Has the node answer so, and returns how the run ends.
    async fn refused(mut self, code: RunRefusal) -> (Outcome, Option<Reason>) {
        let run_id = self.sent.0;
        self.node.say(FromKeeper::Refused { run_id, code }).await;
        let record = self.gateway.gateway.runs().wait(run_id).await.unwrap();
        let ending = record.ending.clone().unwrap();
        (ending.outcome, ending.reason)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_cut_off_is_sent_again_also_by_the_next_process_of_the_gateway() {
    let mut cut_off = CutOff::new(false).await;
    let run_id = cut_off.sent.0;
    assert_eq!(hear_start(&mut cut_off.node).await, cut_off.sent);
    let started = FromKeeper::Started { run_id, pid: 1 };
    cut_off.node.say(started).await;
    cut_off.node.say(ended(run_id, 0)).await;
    let runs = cut_off.gateway.gateway.runs();
    let record = runs.wait(run_id).await.unwrap();
    let outcome = record.ending.as_ref().map(|ending| ending.outcome);
    assert_eq!(outcome, Some(Outcome::Exited));
    // An older database was put back: the run was over, and its node was told to forget it.
    let mut cut_off = CutOff::new(false).await;
    assert_eq!(hear_start(&mut cut_off.node).await, cut_off.sent);
    let lost = (Outcome::Lost, Some(Reason::NodeForgot));
    assert_eq!(cut_off.refused(RunRefusal::Forgotten).await, lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_end_was_asked_for_is_asked_for_by_the_next_process_and_never_sent() {
    let not_started = (Outcome::FailedToStart, Some(Reason::NotStarted));
    let lost = (Outcome::Lost, Some(Reason::NodeForgot));
    for (answer, expected) in [
        (RunRefusal::Invalid, not_started),
        (RunRefusal::Forgotten, lost),
    ] {
        let mut cut_off = CutOff::new(true).await;
        let asked = cut_off.node.hear_run().await;
        let ToKeeper::Start { run_id, spec, .. } = asked else {
            panic!("{asked:?}");
        };
        assert_eq!(run_id, cut_off.sent.0);
        assert!(!spec.is_sound(), "nothing may come of it: {spec:?}");
        assert_eq!(cut_off.refused(answer).await, expected, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_met_a_leaving_keeper_goes_to_the_next() {
    let gateway = TestGateway::start().await;
    let device = paired(&gateway).await;
    let mut node = device.ready(&gateway).await;
    let mut handle = gateway.start_run(shell("true").on("mallory")).await;
    let sent = hear_start(&mut node).await;
    node.say(FromKeeper::Refused {
        run_id: sent.0,
        code: RunRefusal::Leaving,
    })
    .await;
    // What was heard is behind it; nothing more is sent to a keeper that leaves.
    let number = 77;
    node.send(&moltis_proto::ToGateway::Ping { number }).await;
    let answer = node.hear().await.unwrap();
    assert_eq!(answer, moltis_proto::ToNode::Pong { number });
    assert_eq!(handle.record().stage, RunStage::Starting);
    node.drop_line(&gateway, &device).await;
    // The next one has a journal of its own, and the one before is gone.
    let mut node = device.connect(&gateway).await;
    node.list(BOOT, OTHER_JOURNAL, Vec::new()).await;
    assert_eq!(hear_start(&mut node).await, sent);
    node.say(FromKeeper::Started {
        run_id: sent.0,
        pid: 1,
    })
    .await;
    node.say(ended(sent.0, 0)).await;
    let ending = handle.wait().await.ending.clone().unwrap();
    assert_eq!(ending.outcome, Outcome::Exited);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_output_is_not_synced_is_not_forgotten() {
    let gateway = TestGateway::start().await;
    let (device, mut node, handle, id) = with_run(&gateway).await;
    let other = gateway.start_run(shell("true").on("mallory")).await;
    let (other_id, digest) = hear_start(&mut node).await;
    node.say(FromKeeper::Started {
        run_id: other_id,
        pid: 2,
    })
    .await;
    node.say(ended(other_id, 0)).await;
    // The first run has a file, and its disk fails.
    for part in 0..3 {
        node.say(output(id, part * 40_000, 40_000)).await;
    }
    let dir = gateway
        .home()
        .gateway_dir()
        .join("outputs")
        .join(id.to_string());
    until("the file", || dir.join("synced").exists().then_some(())).await;
    std::fs::remove_file(dir.join("synced")).unwrap();
    std::fs::create_dir(dir.join("synced")).unwrap();
    node.say(output(id, 120_000, 40_000)).await;
    node.say(ended(id, 160_000)).await;
    gateway.gateway.runs().wait(id).await.unwrap();
    gateway.gateway.runs().wait(other_id).await.unwrap();
    until_asked("the row", async || {
        let row = gateway.gateway.store().run(id).await.unwrap()?;
        (row.stage == RunStage::Ended).then_some(())
    })
    .await;
    let runs = vec![
        listed(id, handle.record().digest, RunState::Ended),
        listed(other_id, digest, RunState::Ended),
    ];
    drop((handle, other));
    node.drop_line(&gateway, &device).await;
    // They are settled in the order of the list: the second alone may go.
    let mut node = device.ready_with(&gateway, runs).await;
    assert_eq!(node.hear_run().await, ToKeeper::Forget { run_id: other_id });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_a_revocation_and_its_endings_leaves_no_run_open() {
    let gateway = TestGateway::start().await;
    let (device, node, handle, id) = with_run(&gateway).await;
    node.drop_line(&gateway, &device).await;
    drop(handle);
    let gateway = gateway
        .restart_after(async |dir| {
            let store = Store::open(&dir).await.unwrap();
            let (at, by) = (jiff::Timestamp::now(), Actor::operator());
            let revoked = store.revoke_node(device.id(), at, &by).await;
            revoked.unwrap().unwrap();
            store.close().await;
        })
        .await;
    let wait = gateway.gateway.runs().wait(id);
    let record = tokio::time::timeout(Duration::from_secs(20), wait).await;
    let ending = record.unwrap().unwrap().ending.clone().unwrap();
    assert_eq!(ending.reason, Some(Reason::NodeRevoked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_another_run_where_nobody_lists_the_first() {
    let gateway = TestGateway::start().await;
    let device = paired(&gateway).await;
    let mut node = device.ready_with(&gateway, vec![invented(1)]).await;
    let request: RunRequest = shell("true").on("mallory");
    let handle = gateway.start_run(request).await;
    assert_eq!(hear_start(&mut node).await.0, handle.id());
    assert_ne!(handle.id(), invented(1).run_id);
}
