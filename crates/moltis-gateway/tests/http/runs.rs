//! Runs over HTTP: started once, fed, followed, ended.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Method, Request};
use moltis_gateway::api::follow::{Decoder, Frame};
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::{Outcome, Run, State, Stream};
use serde_json::json;

use crate::client::{Client, request};
use crate::gateway::TestGateway;

/// Reads frames until the body ends.
fn frames(body: &[u8]) -> Vec<Frame> {
    let mut decoder = Decoder::default();
    decoder.feed(body);
    let frames: Vec<_> = std::iter::from_fn(|| decoder.next_frame().unwrap()).collect();
    assert!(!decoder.is_torn());
    frames
}

/// Puts the output of frames together, and returns the ending.
fn told(frames: Vec<Frame>) -> (Vec<u8>, Vec<u8>, Option<Run>) {
    let (mut stdout, mut stderr, mut run) = (Vec::new(), Vec::new(), None);
    for frame in frames {
        match frame {
            Frame::Output {
                stream,
                offset,
                bytes,
            } => {
                let out = match stream {
                    Stream::Stdout => &mut stdout,
                    Stream::Stderr => &mut stderr,
                };
                assert_eq!(offset, out.len() as u64);
                out.extend_from_slice(&bytes);
            }
            Frame::Ended(ended) => run = Some(*ended),
            Frame::Gap(_) | Frame::KeepAlive => {}
        }
    }
    (stdout, stderr, run)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_started_and_followed_in_one_request() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let client = Client::of(&gateway).await;
    let body = json!({"node": "box", "command": "printf '\\0\\377'; echo err >&2; exit 9"});
    let answer = client.post("runs?follow=true", body).await;
    assert_eq!(answer.status, 200);
    let (stdout, stderr, run) = told(frames(&answer.body));
    let run = run.unwrap();
    assert_eq!((&stdout[..], &stderr[..]), (&b"\0\xff"[..], &b"err\n"[..]));
    assert_eq!(
        (run.state, run.outcome),
        (State::Ended, Some(Outcome::Exited))
    );
    assert_eq!((run.exit_code, run.node.as_str()), (Some(9), "box"));
    assert_eq!(answer.header("moltis-run-id"), run.id);
    let again = client
        .get(&format!("runs/{}/follow?stdout=1&stderr=4", run.id))
        .await;
    let rest = frames(&again.body);
    assert!(
        matches!(&rest[0], Frame::Output { offset: 1, bytes, .. } if bytes == "\u{ff}".as_bytes() || bytes[..] == b"\xff"[..])
    );
    assert!(matches!(&rest[1], Frame::Ended(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_comes_while_the_command_runs_and_stdin_is_fed_by_offset() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let id = client
        .start(json!({"argv": ["cat"], "stdin_open": true}))
        .await;
    let follow = request(Method::GET, &format!("runs/{id}/follow"), "");
    let mut body = client.open(follow).await.into_body();
    let feed = async |offset: u64, bytes: &'static [u8], eof: bool| {
        let path = format!("runs/{id}/stdin?offset={offset}&eof={eof}");
        let answer = client.send(request(Method::POST, &path, bytes)).await;
        (answer.status.as_u16(), answer.value())
    };
    assert_eq!(
        feed(0, b"one\n", false).await,
        (200, json!({"accepted": 4}))
    );
    let mut decoder = Decoder::default();
    let first = next_frame(&mut body, &mut decoder).await;
    assert!(
        matches!(first, Frame::Output { ref bytes, .. } if bytes == "one\n"),
        "{first:?}"
    );
    // The same bytes again, and two more: what was accepted is skipped.
    assert_eq!(
        feed(0, b"one\ntw", false).await,
        (200, json!({"accepted": 6}))
    );
    let (status, problem) = feed(9, b"x", false).await;
    assert_eq!((status, &problem["code"]), (422, &json!("invalid")));
    assert!(
        problem["hint"].as_str().unwrap().contains("offset=6"),
        "{problem}"
    );
    assert_eq!(problem["next_offset"], 6);
    assert_eq!(feed(6, b"o\n", true).await, (200, json!({"accepted": 8})));
    let rest = body.collect().await.unwrap().to_bytes();
    decoder.feed(&rest);
    let mut out = b"one\n".to_vec();
    while let Some(frame) = decoder.next_frame().unwrap() {
        match frame {
            Frame::Output { bytes, .. } => out.extend_from_slice(&bytes),
            Frame::Ended(run) => assert_eq!(run.exit_code, Some(0)),
            Frame::Gap(_) | Frame::KeepAlive => {}
        }
    }
    assert_eq!(out, b"one\ntwo\n");
    let (status, problem) = feed(8, b"late", true).await;
    assert_eq!((status, &problem["code"]), (409, &json!("run_ended")));
}

async fn next_frame(body: &mut hyper::body::Incoming, decoder: &mut Decoder) -> Frame {
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return frame;
        }
        let bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
        decoder.feed(&bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_starts_one_run_and_another_body_under_it_is_refused() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let dir = client.dir().join("runs");
    let line = format!("echo ran >> {}; echo done", dir.display());
    let post = |query: &str, line: &str| -> Request<_> {
        let body = json!({"command": line}).to_string();
        let mut request = request(Method::POST, &format!("runs{query}"), body);
        let headers = request.headers_mut();
        headers.insert("content-type", "application/json".parse().unwrap());
        headers.insert("idempotency-key", "key-1".parse().unwrap());
        request
    };
    let (first, second) = tokio::join!(
        client.send(post("?wait=true", &line)),
        client.send(post("?wait=true", &line)),
    );
    assert_eq!(first.value(), second.value());
    assert_eq!(first.value()["stdout"], "done\n");
    let id = first.value()["run_id"].as_str().unwrap().parse().unwrap();
    gateway.forgotten(id).await;
    let (late, later) = tokio::join!(
        client.send(post("?wait=true", &line)),
        client.send(post("?follow=true", &line)),
    );
    assert_eq!(late.value(), first.value());
    let (stdout, _, run) = told(frames(&later.body));
    assert_eq!(
        (&stdout[..], run.unwrap().exit_code),
        (&b"done\n"[..], Some(0))
    );
    let third = client.send(post("", &line)).await;
    assert_eq!(third.status, 200, "it was there already");
    assert_eq!(third.value()["id"], first.value()["run_id"]);
    assert_eq!(std::fs::read_to_string(&dir).unwrap(), "ran\n");
    let other = client.send(post("", "echo other")).await;
    assert_eq!(other.problem().code, Code::IdempotencyConflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_under_its_key_is_the_same_run_whatever_became_of_its_node() {
    let gateway = TestGateway::start().await;
    let mut node = gateway.node("box").await;
    let client = Client::of(&gateway).await;
    let rename = async |to: &str| {
        let path = "nodes/box";
        let answer = client.json(Method::PATCH, path, json!({"name": to})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        crate::gateway::until("its name", || {
            let node = gateway.gateway.roster().find("box").unwrap();
            (node.record.name.as_str() == to).then_some(())
        })
        .await;
    };
    let ask = async |line: &str| {
        let body = json!({"node": "mine", "command": line}).to_string();
        let mut request = request(Method::POST, "runs?wait=true", body);
        let headers = request.headers_mut();
        headers.insert("content-type", "application/json".parse().unwrap());
        headers.insert("idempotency-key", "k".parse().unwrap());
        client.send(request).await
    };
    rename("mine").await;
    let line = "printf done";
    let first = ask(line).await.value();
    let id = first["run_id"].as_str().unwrap().parse().unwrap();
    gateway.forgotten(id).await;
    let check = async |when: &str| {
        let again = ask(line).await;
        assert_eq!(again.status, 200, "{when}: {again:?}");
        let again = again.value();
        assert_eq!(again["run_id"], first["run_id"], "{when}");
        assert_eq!(again["stdout"], "done", "{when}");
        let other = ask("printf other").await.problem();
        assert_eq!(other.code, Code::IdempotencyConflict, "{when}");
    };
    check("it is here").await;
    rename("yours").await;
    // Nobody knows whose that name was: it may never have been this node's.
    let nobody = ask(line).await.problem();
    assert_eq!(
        nobody.code,
        Code::IdempotencyConflict,
        "it has another name"
    );
    rename("mine").await;
    client.post("nodes/box/revoke", json!({})).await;
    check("it is revoked").await;
    node.hang_up().await;
    crate::gateway::until_asked("it to be gone", async || {
        let answer = client.delete("nodes/box").await;
        (answer.status == 204).then_some(())
    })
    .await;
    let nobody = ask(line).await.problem();
    assert_eq!(nobody.code, Code::IdempotencyConflict, "it is forgotten");
    let _another = gateway.node("mine").await;
    let other = ask(line).await.problem();
    assert_eq!(other.code, Code::IdempotencyConflict, "it is another place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_resized_and_interrupted() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let client = Client::of(&gateway).await;
    let line = "trap 'stty size; exit 5' INT; stty size; while :; do sleep 0.01; done";
    let tty = json!({"cols": 80, "rows": 24});
    let body = json!({"node": "box", "command": line, "tty": tty}).to_string();
    let mut start = request(Method::POST, "runs?follow=true", body);
    start
        .headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    let response = client.open(start).await;
    let id = response.headers()["moltis-run-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let mut body = response.into_body();
    let mut decoder = Decoder::default();
    let mut seen = Vec::new();
    while !seen.ends_with(b"24 80\r\n") {
        match next_frame(&mut body, &mut decoder).await {
            Frame::Output { bytes, .. } => seen.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        }
    }
    let size = json!({"cols": 100, "rows": 30});
    assert_eq!(
        client.post(&format!("runs/{id}/resize"), size).await.status,
        204
    );
    let int = json!({"signal": "INT"});
    assert_eq!(
        client.post(&format!("runs/{id}/signal"), int).await.status,
        204
    );
    let run = loop {
        match next_frame(&mut body, &mut decoder).await {
            Frame::Output { bytes, .. } => seen.extend_from_slice(&bytes),
            Frame::Ended(run) => break run,
            Frame::Gap(_) | Frame::KeepAlive => {}
        }
    };
    assert_eq!(run.exit_code, Some(5), "{}", String::from_utf8_lossy(&seen));
    assert!(
        seen.ends_with(b"30 100\r\n"),
        "{}",
        String::from_utf8_lossy(&seen)
    );
    assert!(run.tty);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_stdin_may_come_with_the_request() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let text = client
        .run(json!({"argv": ["cat"], "stdin": "grün\n"}))
        .await;
    assert_eq!(text["stdout"], "grün\n");
    let long = "x".repeat(700_000);
    let answer = client
        .run(json!({"argv": ["wc", "-c"], "stdin": long}))
        .await;
    assert_eq!(answer["stdout"].as_str().unwrap().trim(), "700000");
    let bytes = client
        .run(json!({"argv": ["od", "-An", "-tx1"], "stdin_base64": "AP8="}))
        .await;
    assert_eq!(bytes["stdout"], " 00 ff\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_answer_has_both_ends_of_long_output() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let line = "printf first; head -c 3000000 /dev/zero | tr '\\0' x; printf last";
    let answer = client.run(json!({"command": line})).await;
    let stdout = answer["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("firstxx") && stdout.ends_with("xxlast"));
    assert!(
        stdout.contains("\n… 1951433 bytes left out …\n"),
        "{}",
        stdout.len()
    );
    assert_eq!(answer["truncated"], true);
    assert_eq!(answer["stdout_bytes"], 3_000_009);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_offline_starts_nothing_and_says_so() {
    let gateway = TestGateway::start().await;
    let mut node = gateway.node("box").await;
    let client = Client::of(&gateway).await;
    node.hang_up().await;
    gateway.offline(gateway.device("box")).await;
    let answer = client
        .post("runs", json!({"node": "box", "argv": ["true"]}))
        .await;
    let problem = answer.problem();
    assert_eq!(problem.code, Code::NodeOffline);
    assert!(problem.detail.contains("`box`"), "{}", problem.detail);
    let runs = client.get("runs?node=box").await;
    assert_eq!(runs.value()["items"], json!([]), "no run is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_of_the_gateway_ends_answers_that_wait() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let wait = tokio::spawn({
        let client = Client::clone(&client);
        async move {
            client
                .post("runs?wait=true", json!({"argv": ["sleep", "30"]}))
                .await
        }
    });
    let id = crate::gateway::until("the run", || {
        let handle = tokio::runtime::Handle::current();
        let client = client.clone();
        let page = tokio::task::block_in_place(|| handle.block_on(client.get("runs")));
        page.value()["items"][0]["id"]
            .as_str()
            .map(ToOwned::to_owned)
    })
    .await;
    let follow = request(Method::GET, &format!("runs/{id}/follow"), Bytes::new());
    let body = client.open(follow).await.into_body();
    gateway.shut_down().await;
    let problem = wait.await.unwrap().problem();
    assert_eq!(problem.code, Code::ShuttingDown);
    assert!(problem.detail.contains(&id), "{}", problem.detail);
    let told = told(frames(&body.collect().await.unwrap().to_bytes()));
    assert!(told.2.is_none(), "the run goes on");
}
