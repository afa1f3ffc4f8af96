//! Connections break, gateways end, nodes come twice: runs do not notice.

use std::time::Duration;

use moltis_gateway::exec::RunEvent;
use moltis_gateway::principal::Principal;
use moltis_proto::run::Outcome;

use crate::gateway::{TestGateway, shell, told};
use crate::node::TestNode;
use crate::proxy::Proxy;

/// Prints 200,000 numbers over about two seconds.
const NUMBERS: &str = "for part in 0 1 2 3 4 5 6 7 8 9; do \
                       seq $((part * 20000 + 1)) $(((part + 1) * 20000)); sleep 0.2; done";

fn numbers() -> Vec<u8> {
    (1..=200_000)
        .flat_map(|number: u32| format!("{number}\n").into_bytes())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_whole_whenever_the_connection_is_cut() {
    let gateway = TestGateway::start().await;
    let proxy = Proxy::to(gateway.address).await;
    let _node = gateway.node_at("box", &proxy.url()).await;
    let handle = gateway.start_run(shell(NUMBERS).on("box")).await;
    let mut follow = handle.follow(0, 0);
    let mut seen = 0;
    let mut cuts = 0;
    let mut collected = Vec::new();
    loop {
        match follow.next().await.unwrap() {
            RunEvent::Output { bytes, .. } => {
                collected.extend_from_slice(&bytes);
                seen += bytes.len();
                if seen > 300_000 && cuts < 3 {
                    seen = 0;
                    cuts += 1;
                    proxy.cut();
                }
            }
            RunEvent::Gap { from, to, .. } => panic!("a gap from {from} to {to}"),
            RunEvent::Ended(record) => {
                assert_eq!(record.ending.as_ref().unwrap().outcome, Outcome::Exited);
                break;
            }
            RunEvent::KeepAlive => {}
        }
    }
    assert_eq!(cuts, 3);
    assert!(collected == numbers(), "{} bytes", collected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_survives_a_restart_of_the_gateway() {
    let gateway = TestGateway::start().await;
    let node = gateway.node("box").await;
    let mark = node.dir().join("mark");
    let line = format!("echo once >> {}; {NUMBERS}", mark.display());
    let mut on_node = gateway.start_run(shell(&line).on("box")).await.follow(0, 0);
    let handle = gateway.start_run(shell(NUMBERS).on("local")).await;
    let local = handle.id();
    let mut seen = 0;
    let id = gateway
        .gateway
        .runs()
        .list(&moltis_gateway::store::RunFilter::default(), 10)
        .await
        .unwrap()
        .0;
    let id = id
        .iter()
        .find(|run| run.record.id != local)
        .unwrap()
        .record
        .id;
    while seen < 200_000 {
        if let RunEvent::Output { bytes, .. } = on_node.next().await.unwrap() {
            seen += bytes.len();
        }
    }
    drop((on_node, handle));
    let gateway = gateway.restart().await;
    for id in [id, local] {
        let handle = gateway.gateway.runs().handle(id).await.unwrap();
        let told = told(&handle).await;
        assert_eq!(
            told.record.ending.as_ref().unwrap().outcome,
            Outcome::Exited
        );
        assert_eq!(told.gaps, 0);
        assert!(told.stdout == numbers(), "{} bytes", told.stdout.len());
    }
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_while_nobody_is_connected_is_told_later() {
    let gateway = TestGateway::start().await;
    let mut node = gateway.node("box").await;
    let device = gateway.device("box");
    let mark = node.dir().join("mark");
    let line = format!(
        "echo before; sleep 0.3; echo after; touch {}",
        mark.display()
    );
    let handle = gateway.start_run(shell(&line).on("box")).await;
    let mut follow = handle.follow(0, 0);
    follow.next().await.unwrap();
    node.hang_up().await;
    gateway.offline(device).await;
    let status = gateway.gateway.runs().status(handle.id()).await.unwrap();
    assert!(!status.reachable);
    assert!(status.last_heard_at.is_some());
    crate::gateway::until("the command to end", || mark.exists().then_some(())).await;
    node.dial(&gateway.url());
    let told = told(&handle).await;
    assert_eq!(told.out(), "before\nafter\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_a_node_that_was_away() {
    let gateway = TestGateway::start().await;
    let mut node = gateway.node("box").await;
    let device = gateway.device("box");
    let mut handle = gateway
        .start_run(shell("echo go; sleep 100").on("box"))
        .await;
    handle.follow(0, 0).next().await.unwrap();
    node.hang_up().await;
    gateway.offline(device).await;
    gateway
        .gateway
        .runs()
        .cancel(handle.id(), None, &Principal::Operator)
        .await
        .unwrap();
    node.dial(&gateway.url());
    let record = tokio::time::timeout(Duration::from_secs(20), handle.wait())
        .await
        .unwrap();
    assert_eq!(record.ending.as_ref().unwrap().outcome, Outcome::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_connection_of_a_device_wins() {
    let gateway = TestGateway::start().await;
    let proxy = Proxy::to(gateway.address).await;
    let mut node = gateway.node_at("box", &proxy.url()).await;
    let device = gateway.device("box");
    let since = || {
        gateway
            .gateway
            .roster()
            .get(device)
            .unwrap()
            .presence
            .map(|here| here.since)
    };
    let before = since();
    let handle = gateway.start_run(shell(NUMBERS).on("box")).await;
    // The link is dropped without a word, and the proxy keeps its connection: half open.
    let second: &mut TestNode = &mut node;
    second.forsake();
    second.dial(&gateway.url());
    crate::gateway::until("the newer connection", || {
        since().filter(|since| Some(*since) != before)
    })
    .await;
    let told = told(&handle).await;
    assert!(told.stdout == numbers(), "{} bytes", told.stdout.len());
    assert!(since().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_ends_says_goodbye_and_ends_soon() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let _run = gateway.start_run(shell("sleep 5").on("box")).await;
    let begun = std::time::Instant::now();
    gateway.shut_down().await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}
