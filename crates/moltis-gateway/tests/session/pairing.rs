//! Joining, being told no, and being thrown out.

use std::time::{Duration, Instant};

use moltis_gateway::audit::Actor;
use moltis_node::{LinkError, LinkEvent};
use moltis_proto::Refusal;
use moltis_proto::code::CloseCode;

use crate::gateway::{TestGateway, until};
use crate::node::TestNode;

fn refusal(event: &LinkEvent) -> Option<Refusal> {
    match event {
        LinkEvent::Disconnected { error, .. } => match &**error {
            LinkError::Refused(refusal) => Some(*refusal),
            LinkError::Closed(CloseCode::Revoked) => Some(Refusal::Revoked),
            _ => None,
        },
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_window_turns_a_stranger_away() {
    let gateway = TestGateway::start().await;
    let mut node = TestNode::add("box", &gateway.url());
    assert_eq!(node.event(refusal).await, Refusal::PairingOff);
    assert_eq!(gateway.gateway.pairing().pending().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_screens_show_one_code_and_approval_lets_the_node_in() {
    let gateway = TestGateway::start().await;
    gateway.open_pairing().await;
    let mut node = TestNode::add("Build Server", &gateway.url());
    let shown = node
        .event(|event| match event {
            LinkEvent::Pending { code, .. } => Some(code.clone()),
            _ => None,
        })
        .await;
    let pending = gateway.gateway.pairing().pending();
    assert_eq!(pending[0].request.code, shown);
    let record = gateway.approve(pending[0].request.id).await;
    node.event(|event| match event {
        LinkEvent::Accepted { approved, .. } => approved.then_some(()),
        _ => None,
    })
    .await;
    gateway.online(record.device_id).await;
    assert_eq!(gateway.run("Build Server", "echo hi").await.out(), "hi\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_node_hears_so() {
    let gateway = TestGateway::start().await;
    gateway.open_pairing().await;
    let mut node = TestNode::add("box", &gateway.url());
    let id = until("a request", || {
        gateway
            .gateway
            .pairing()
            .pending()
            .first()
            .map(|pending| pending.request.id)
    })
    .await;
    gateway
        .gateway
        .pairing()
        .reject(id, Actor::operator())
        .await
        .unwrap();
    assert_eq!(node.event(refusal).await, Refusal::Rejected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_node_survives_a_restart_of_the_gateway() {
    let gateway = TestGateway::start().await;
    gateway.open_pairing().await;
    let _node = TestNode::add("box", &gateway.url());
    let id = until("a request", || {
        gateway
            .gateway
            .pairing()
            .pending()
            .first()
            .map(|pending| pending.request.id)
    })
    .await;
    let gateway = gateway.restart().await;
    // The window is closed again; who has a request may come back to it.
    until("the node to wait again", || {
        let pending = gateway.gateway.pairing().pending();
        pending
            .first()
            .filter(|pending| pending.request.revision > 1)
            .map(|_| ())
    })
    .await;
    let record = gateway.approve(id).await;
    gateway.online(record.device_id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_closes_the_connection_within_a_second_and_loses_its_runs() {
    let gateway = TestGateway::start().await;
    let mut node = gateway.node("box").await;
    let device = gateway.device("box");
    let mut run = gateway
        .start_run(crate::gateway::shell("sleep 100").on("box"))
        .await;
    let begun = Instant::now();
    gateway
        .gateway
        .pairing()
        .revoke(device, Actor::operator())
        .await
        .unwrap();
    gateway.offline(device).await;
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    let record = run.wait().await;
    let ending = record.ending.as_ref().unwrap();
    assert_eq!(ending.outcome, moltis_proto::run::Outcome::Lost);
    assert_eq!(ending.reason, Some(moltis_proto::run::Reason::NodeRevoked));
    assert_eq!(node.event(refusal).await, Refusal::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_node_comes_back_without_a_person() {
    let gateway = TestGateway::start().await;
    let mut node = gateway.node("box").await;
    let device = gateway.device("box");
    node.hang_up().await;
    gateway.offline(device).await;
    let gateway = gateway.restart().await;
    node.dial(&gateway.url());
    gateway.online(device).await;
}
