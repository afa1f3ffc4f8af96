//! `GET doctor`: the same findings as in this process, in the shape of a list.

use moltis_gateway::api::List;
use moltis_gateway::api::doctor::{Finding, Level};
use serde_json::Value;

use crate::client::Client;
use crate::gateway::{TestGateway, until};

async fn findings(client: &Client) -> Vec<Finding> {
    let answer = client.get("doctor").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let page: List<Finding> = answer.read();
    assert_eq!(page.next, None);
    page.items
}

fn found<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    findings.iter().find(|found| found.check == check).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_check_of_a_gateway_appears_over_http_and_in_this_process() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let all = findings(&client).await;
    let names: Vec<_> = all.iter().map(|found| found.check.as_str()).collect();
    let expected = [
        "config",
        "listen",
        "pairing_window",
        "nodes",
        "clock",
        "exec_route",
        "file_modes",
        "database",
        "disk",
    ];
    assert_eq!(names, expected);
    for found in all.iter().filter(|found| found.check != "disk") {
        assert_eq!(found.level, Level::Ok, "{found:?}");
    }
    assert!(
        found(&all, "listen")
            .message
            .contains(&gateway.address.to_string())
    );
    assert_eq!(gateway.gateway.doctor().await.len(), all.len());
    let raw = client.get("doctor").await.value();
    let shape = serde_json::json!({
        "check": "pairing_window",
        "level": "ok",
        "message": "closed: no new node may ask to pair",
        "hint": null,
    });
    assert!(raw["items"].as_array().unwrap().contains(&shape), "{raw}");
    assert_eq!(raw["next"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_and_a_window_that_is_open_are_warnings() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let mut node = gateway.node("box").await;
    let all = findings(&client).await;
    assert_eq!(found(&all, "nodes").message, "1 of 1 connected: box");
    let device = gateway.device("box");
    until("the node to tell its clock", || {
        gateway.gateway.roster().get(device)?.presence?.clock_ahead
    })
    .await;
    let clock = found(&findings(&client).await, "clock").clone();
    assert_eq!(clock.level, Level::Ok, "{clock:?}");
    assert!(clock.message.contains("all 1 connected nodes agree"));
    assert_eq!(found(&all, "pairing_window").level, Level::Warning);
    node.hang_up().await;
    gateway.offline(device).await;
    let all = findings(&client).await;
    assert_eq!(found(&all, "nodes").level, Level::Warning);
    assert!(found(&all, "nodes").message.contains("`box`"));
    client.post("nodes/box/revoke", serde_json::json!({})).await;
    let all = findings(&client).await;
    assert_eq!(found(&all, "nodes").level, Level::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_route_is_looked_up() {
    let gateway = TestGateway::start_with(|config| {
        config.runs.default_route = "node:box".to_owned();
    })
    .await;
    let client = Client::of(&gateway).await;
    let route = async |client: &Client| found(&findings(client).await, "exec_route").clone();
    let unknown = route(&client).await;
    assert_eq!(unknown.level, Level::Error);
    assert!(
        unknown.message.contains("`node:box`: no node"),
        "{unknown:?}"
    );
    let mut node = gateway.node("box").await;
    assert_eq!(route(&client).await.level, Level::Ok);
    let device = gateway.device("box");
    node.hang_up().await;
    gateway.offline(device).await;
    let offline = route(&client).await;
    assert_eq!(offline.level, Level::Error);
    assert!(offline.message.contains("which is offline"), "{offline:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_are_all_answered() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let asking: Vec<_> = (0..40)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { findings(&client).await.len() })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.unwrap(), 9);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_route_without_a_node_is_told() {
    let gateway = TestGateway::start_with(|config| {
        config.runs.default_route = "node:".to_owned();
    })
    .await;
    let client = Client::of(&gateway).await;
    let route = found(&findings(&client).await, "exec_route").clone();
    assert_eq!(route.level, Level::Error);
    assert!(route.message.contains("it names no node"), "{route:?}");
}
