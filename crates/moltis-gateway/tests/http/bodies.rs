//! Every body, locked: a change here is a change for somebody's script.

use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::gateway::{TestGateway, until};
use crate::node::TestNode;

/// Replaces what differs from run to run, and from machine to machine, by what kind of thing it is.
fn steady(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(steady),
        Value::Object(fields) => {
            for (name, value) in fields {
                steady_field(name, value);
            }
        }
        Value::String(text) => *text = without_ids(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn steady_field(name: &str, value: &mut Value) {
    let kind = match name {
        "id" | "run_id" => "[id]",
        "fingerprint" | "gateway_fingerprint" => "[fingerprint]",
        "connection_code" => "[code]",
        "token" => "[token]",
        "request_id" => "[request]",
        "last_seen" | "connected_since" => "[time]",
        "working_dir" => "[dir]",
        "duration_ms" => "[ms]",
        "os" | "arch" | "version" | "kernel" | "hostname" => "[text]",
        name if name.ends_with("_at") => "[time]",
        _ => return steady(value),
    };
    if !value.is_null() {
        *value = kind.into();
    }
}

/// Replaces each word of 32 hexadecimal digits.
fn without_ids(text: &str) -> String {
    let word = |word: &str| {
        let id = word.len() == 32 && word.bytes().all(|b| b.is_ascii_hexdigit());
        if id {
            "[id]".to_owned()
        } else {
            word.to_owned()
        }
    };
    let words = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let words = words.map(|part| match part.char_indices().last() {
        Some((at, end)) if !end.is_ascii_alphanumeric() => word(&part[..at]) + &part[at..],
        _ => word(part),
    });
    words.collect()
}

/// The same, for a node whose connection may come or go at this moment.
fn shown_in_passing(answer: &Answer) -> String {
    let mut value = answer.value();
    for name in ["state", "connected_since", "remote_address", "last_seen"] {
        value[name] = "[now]".into();
    }
    steady(&mut value);
    format!("{} {value:#}", answer.status.as_u16())
}

fn shown(answer: &Answer) -> String {
    let mut value = answer.value();
    steady(&mut value);
    let media = answer.header("content-type");
    format!("{} {media}\n{value:#}", answer.status.as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_pairing() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    insta::assert_snapshot!("pairing_off", shown(&client.get("pairing").await));
    let open = json!({"enabled": true, "for_seconds": 60});
    let answer = client.json(Method::PUT, "pairing", open).await;
    insta::assert_snapshot!("pairing_on", shown(&answer));
    let _node = TestNode::add("Build Server", &gateway.url());
    until("a request to pair", || {
        gateway.gateway.pairing().pending().pop()
    })
    .await;
    let requests = client.get("pairing/requests").await;
    insta::assert_snapshot!("pairing_requests", shown(&requests));
    let request = &requests.value()["items"][0];
    let path = format!("pairing/requests/{}", request["id"].as_str().unwrap());
    let wrong = json!({"fingerprint": request["fingerprint"], "connection_code": "0000-0000-0000"});
    let answer = client.post(&format!("{path}/approve"), wrong).await;
    insta::assert_snapshot!("approve_changed", shown(&answer));
    let seen = json!({
        "fingerprint": request["fingerprint"],
        "connection_code": request["connection_code"],
    });
    let answer = client.post(&format!("{path}/approve"), seen.clone()).await;
    insta::assert_snapshot!("approved", shown_in_passing(&answer));
    let answer = client.post(&format!("{path}/approve"), seen).await;
    insta::assert_snapshot!("approve_twice", shown(&answer));
    gateway.online(gateway.device("Build Server")).await;
    insta::assert_snapshot!("nodes", shown(&client.get("nodes").await));
    let answer = client.get("nodes/build-server").await;
    insta::assert_snapshot!("node", shown(&answer));
    let labels = json!({"name": "Büro", "labels": {"gpu": "true"}});
    let answer = client
        .json(Method::PATCH, "nodes/Build%20Server", labels)
        .await;
    insta::assert_snapshot!("node_renamed", shown(&answer));
    let answer = client.delete("nodes/build-server").await;
    insta::assert_snapshot!("forget_online", shown(&answer));
    let answer = client.post("nodes/build-server/revoke", json!({})).await;
    assert_eq!(answer.value()["state"], "revoked");
    insta::assert_snapshot!("node_revoked", shown_in_passing(&answer));
    insta::assert_snapshot!(
        "start_on_revoked",
        shown(&start(&client, "build-server").await)
    );
    let nodes = client.get("nodes?state=online").await;
    assert_eq!(nodes.value()["items"], json!([]));
    let answer = client.delete("nodes/build-server").await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    insta::assert_snapshot!(
        "node_not_found",
        shown(&client.get("nodes/build-server").await)
    );
    insta::assert_snapshot!(
        "start_nowhere",
        shown(&start(&client, "build-server").await)
    );
    let command = client.get("pairing/command").await.value();
    let line = command["command"].as_str().unwrap();
    let url = gateway.url();
    assert!(
        line.starts_with(&format!(
            "moltis node add --host {url} --gateway-key SHA256:"
        )),
        "{line}"
    );
    assert!(
        command["warning"]
            .as_str()
            .unwrap()
            .contains("--listen 0.0.0.0:")
    );
    gateway.shut_down().await;
}

async fn start(client: &Client, node: &str) -> Answer {
    client
        .post("runs", json!({"node": node, "argv": ["true"]}))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn runs() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let line = json!({"node": "local", "command": "echo out; echo err >&2; exit 3"});
    let answer = client.post("runs?wait=true", line).await;
    insta::assert_snapshot!("run_waited_for", shown(&answer));
    let id = answer.value()["run_id"].as_str().unwrap().to_owned();
    insta::assert_snapshot!("run_ended", shown(&client.get(&format!("runs/{id}")).await));
    let argv = json!({"argv": ["sleep", "100"], "cwd": "/tmp", "timeout_seconds": 7});
    let answer = client.post("runs", argv).await;
    let mut value = answer.value();
    // Whether it runs already is chance.
    value["state"] = "[starting or running]".into();
    value["started_at"] = "[maybe]".into();
    steady(&mut value);
    insta::assert_snapshot!("run_started", format!("{value:#}"));
    let id = answer.value()["id"].as_str().unwrap().to_owned();
    let answer = client
        .post(
            &format!("runs/{}/cancel", &id[..8]),
            json!({"grace_seconds": 1}),
        )
        .await;
    assert_eq!(answer.status, 202);
    assert!(!answer.value()["cancel_requested_at"].is_null());
    let run = client.get(&format!("runs/{id}/follow")).await;
    assert!(run.body.len() > 13);
    insta::assert_snapshot!(
        "run_cancelled",
        shown(&client.get(&format!("runs/{id}")).await)
    );
    let page = client.get("runs?limit=1").await.value();
    assert_eq!(page["items"][0]["id"], id.as_str());
    let next = page["next"].as_str().unwrap();
    let page = client.get(&format!("runs?limit=1&cursor={next}")).await;
    insta::assert_snapshot!("runs", shown(&page));
    insta::assert_snapshot!("run_not_found", shown(&client.get("runs/ffffffff").await));
    let answer = client
        .post(&format!("runs/{id}/signal"), json!({"signal": "INT"}))
        .await;
    insta::assert_snapshot!("signal_after_the_end", shown(&answer));
    let gone = json!({"argv": ["/no/such/program"]});
    insta::assert_snapshot!(
        "run_not_executable",
        shown(&client.post("runs?wait=true", gone).await)
    );
    gateway.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_health() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let asked =
        json!({"name": "ci", "scopes": ["runs:write", "nodes:read"], "expires_in_seconds": 60});
    let answer = client.post("tokens", asked.clone()).await;
    let token = answer.value()["token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("moltis_") && token.len() == 50, "{token}");
    insta::assert_snapshot!("token_made", shown(&answer));
    insta::assert_snapshot!(
        "token_name_in_use",
        shown(&client.post("tokens", asked).await)
    );
    insta::assert_snapshot!("tokens", shown(&client.get("tokens").await));
    let answer = client.delete("tokens/ci").await;
    assert_eq!(answer.status, 204);
    insta::assert_snapshot!("healthz", shown(&client.get("/healthz").await));
    insta::assert_snapshot!("readyz", shown(&client.get("/readyz").await));
    let front = client.get("/").await;
    let front =
        String::from_utf8_lossy(&front.body).replace(env!("CARGO_PKG_VERSION"), "[version]");
    insta::assert_snapshot!("front_page", front);
    insta::assert_snapshot!("no_such_route", shown(&client.get("chats").await));
    gateway.shut_down().await;
}
