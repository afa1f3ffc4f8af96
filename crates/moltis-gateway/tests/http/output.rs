//! Output by offset and by range, to the last byte.

use hyper::Method;
use moltis_gateway::api::problem::Code;
use serde_json::json;

use crate::client::{Answer, Client, request};
use crate::gateway::{TestGateway, until_asked};

async fn ranged(client: &Client, path: &str, range: &str) -> Answer {
    let mut request = request(Method::GET, path, "");
    request
        .headers_mut()
        .insert("range", range.parse().unwrap());
    client.send(request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_output_is_read_from_any_offset() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let result = client
        .run(json!({"command": "printf 0123456789; printf err >&2"}))
        .await;
    let path = format!("runs/{}/output", result["run_id"].as_str().unwrap());
    for (query, expected) in [
        ("", "0123456789"),
        ("?offset=4", "456789"),
        ("?offset=10", ""),
        ("?stream=stderr&offset=1", "rr"),
        ("?offset=8&follow=true", "89"),
    ] {
        let answer = client.get(&format!("{path}{query}")).await;
        assert_eq!(answer.status, 200, "{query}");
        assert_eq!(answer.body, expected, "{query}");
        assert_eq!(answer.header("content-type"), "application/octet-stream");
        if !query.contains("follow") {
            let end = if query.contains("stderr") { "3" } else { "10" };
            assert_eq!(answer.header("moltis-next-offset"), end, "{query}");
        }
    }
    let answer = client.get(&format!("{path}?offset=11")).await;
    assert_eq!(answer.problem().code, Code::RangeNotSatisfiable);
    for (range, status, body, content_range) in [
        ("bytes=2-4", 206, "234", "bytes 2-4/10"),
        ("bytes=8-99", 206, "89", "bytes 8-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("bytes=0-", 206, "0123456789", "bytes 0-9/10"),
        ("lines=0-1", 200, "0123456789", ""),
    ] {
        let answer = ranged(&client, &path, range).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (status, body.as_bytes()),
            "{range}"
        );
        if !content_range.is_empty() {
            assert_eq!(answer.header("content-range"), content_range, "{range}");
        }
    }
    assert_eq!(ranged(&client, &path, "bytes=10-").await.status, 416);
    let both = ranged(&client, &format!("{path}?offset=1"), "bytes=0-1").await;
    assert_eq!(both.problem().code, Code::BadRequest);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_output_is_whole() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let client = Client::of(&gateway).await;
    let id = client
        .start(json!({"node": "box", "command": "seq 1 2000000"}))
        .await;
    let followed = client.get(&format!("runs/{id}/output?follow=true")).await;
    let mut expected = Vec::new();
    for number in 1..=2_000_000 {
        expected.extend_from_slice(number.to_string().as_bytes());
        expected.push(b'\n');
    }
    assert!(followed.body == expected);
    let stored = client
        .get(&format!("runs/{id}/output?offset=1000000"))
        .await;
    assert!(stored.body == expected[1_000_000..]);
    assert_eq!(
        stored.header("moltis-next-offset"),
        expected.len().to_string()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_ends_before_a_gap_and_one_that_starts_in_it_is_told_its_bounds() {
    let gateway = TestGateway::start_with(|config| {
        config.runs.output.segment_bytes = 64 * 1024;
        config.runs.output.run_bytes_max = 512 * 1024;
    })
    .await;
    let client = Client::of(&gateway).await;
    let result = client
        .run(json!({"command": "head -c 4000000 /dev/zero"}))
        .await;
    let path = format!("runs/{}/output", result["run_id"].as_str().unwrap());
    let head = client.get(&path).await;
    let next: u64 = head.header("moltis-next-offset").parse().unwrap();
    assert_eq!(head.body.len() as u64, next);
    assert!(next < 4_000_000, "{next}");
    let answer = client.get(&format!("{path}?offset={}", next + 5)).await;
    let problem = answer.problem();
    assert_eq!(problem.code, Code::OutputGap);
    let gap = problem.gap.unwrap();
    assert_eq!(gap.from, next);
    // Segments are given up while the last bytes go to the disk, so one gap may follow another.
    let (mut at, mut tail) = (
        gap.to,
        client.get(&format!("{path}?offset={}", gap.to)).await,
    );
    while tail.status == 409 {
        at = tail.problem().gap.unwrap().to;
        tail = client.get(&format!("{path}?offset={at}")).await;
    }
    assert_eq!(tail.body.len() as u64, 4_000_000 - at, "{tail:?}");
    assert_eq!(tail.header("moltis-next-offset"), "4000000");
    assert_eq!(result["truncated"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_to_come_is_waited_for_only_by_a_follower() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let id = client
        .start(json!({"argv": ["cat"], "stdin_open": true}))
        .await;
    let path = format!("runs/{id}/output");
    let empty = client.get(&path).await;
    assert_eq!((empty.status.as_u16(), empty.body.len()), (200, 0));
    assert_eq!(client.get(&format!("{path}?offset=3")).await.status, 416);
    let follow = request(Method::GET, &format!("{path}?offset=3&follow=true"), "");
    let body = client.open(follow).await.into_body();
    let stdin = format!("runs/{id}/stdin?offset=0&eof=true");
    client.send(request(Method::POST, &stdin, "abcdef")).await;
    let bytes = http_body_util::BodyExt::collect(body)
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(bytes, "def");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_output_waits_for_the_disk_the_gateway_is_not_ready() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    assert_eq!(client.get("/readyz").await.status, 200);
    let outputs = gateway.home().gateway_dir().join("outputs");
    std::fs::remove_dir(&outputs).unwrap();
    std::fs::write(&outputs, "").unwrap();
    let id = client
        .start(json!({"node": "local", "command": "head -c 200000 /dev/zero"}))
        .await;
    let answer = until_asked("the trouble", async || {
        let answer = client.get("/readyz").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    let words = answer.value()["problem"].to_string();
    assert!(words.contains("output waits"), "{words}");
    std::fs::remove_file(&outputs).unwrap();
    until_asked("the end of it", async || {
        (client.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    let run = until_asked("the end of the run", async || {
        let run = client.get(&format!("runs/{id}")).await.value();
        (run["state"] == "ended").then_some(run)
    })
    .await;
    assert_eq!(run["stdout_bytes"], 200_000, "{run}");
}
