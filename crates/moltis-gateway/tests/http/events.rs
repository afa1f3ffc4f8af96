//! `GET events`: order, resuming, resets, scopes, bounds and ends.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use moltis_gateway::api::problem::Code;
use moltis_gateway::events::{EVENTS_KEPT, Event};
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::feed::{Feed, Next, asked, send_with};
use crate::gateway::{TestGateway, until_asked};

/// Rings so many times at once.
fn ring(gateway: &TestGateway, times: usize) {
    for _ in 0..times {
        gateway.gateway.events().send(Event::PairingChanged);
    }
}

/// Takes an id apart: the process, and the number there.
fn parts(id: &str) -> (&str, u64) {
    let (process, number) = id.split_once('-').unwrap();
    (process, number.parse().unwrap())
}

async fn token(client: &Client, scopes: &[&str]) -> String {
    let body = json!({"name": scopes.join("+"), "scopes": scopes});
    let answer = client.post("tokens", body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.value()["token"].as_str().unwrap().to_owned()
}

/// Asks with a token for something that is refused.
async fn refused(gateway: &TestGateway, token: &str, path: &str) -> Answer {
    Answer::of(send_with(gateway.address, token, asked(path, None)).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_storm_every_event_comes_once_and_in_order_over_any_number_of_cuts() {
    const ALL: u64 = 12_000;
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let mut feed = Feed::open(&client, "events?types=pairing.changed", None).await;
    let Next::Block(opening) = feed.next().await else {
        panic!("a stream begins");
    };
    assert_eq!(opening.retry.as_deref(), Some("2000"));
    let opened_at = opening.id.unwrap();
    let storm = {
        let gateway = gateway.gateway.clone();
        tokio::spawn(async move {
            for number in 0..ALL {
                gateway.events().send(Event::PairingChanged);
                if number % 100 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
    };
    let (process, first) = parts(&opened_at);
    let (mut last, mut cut_after) = (opened_at.clone(), 1);
    for expected in first + 1..=first + ALL {
        let event = feed.event().await;
        assert_eq!(event.name.as_deref(), Some("pairing.changed"));
        assert_eq!(event.data, json!({"enabled": false, "expires_at": null}));
        last = event.id.unwrap();
        assert_eq!(parts(&last), (process, expected));
        if expected - first == cut_after {
            cut_after *= 2;
            feed = Feed::open(&client, "events?types=pairing.changed", Some(&last)).await;
        }
    }
    storm.await.unwrap();
    // The query does where the header cannot be set, and a cut before the first event loses none.
    ring(&gateway, 1);
    let path = format!("events?last_event_id={last}");
    let event = Feed::open(&client, &path, None).await.event().await;
    assert_eq!(parts(&event.id.unwrap()).1, first + ALL + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_cannot_be_gone_on_from_is_answered_with_a_reset_and_the_reason() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    ring(&gateway, 1);
    let mut feed = Feed::open(&client, "events", Some("0-nonsense")).await;
    let first = feed.event().await;
    assert_eq!(first.name.as_deref(), Some("reset"));
    assert_eq!(first.data, json!({"reason": "unknown_id"}));
    let id = first.id.unwrap();
    ring(&gateway, 1);
    let (process, number) = parts(&id);
    assert_eq!(
        feed.event().await.id,
        Some(format!("{process}-{}", number + 1)),
        "what happens behind the reset comes"
    );
    let ahead = format!("{process}-{}", number + 2);
    let other = u32::from_str_radix(process, 16).unwrap().wrapping_add(1);
    let other = format!("{other:08x}-1");
    for (last, reason) in [(ahead, "unknown_id"), (other.clone(), "restarted")] {
        let event = Feed::open(&client, "events", Some(&last))
            .await
            .event()
            .await;
        assert_eq!(event.name.as_deref(), Some("reset"), "{last}");
        assert_eq!(event.data["reason"], reason, "{last}");
    }
    // One that is connected and lags is told so too, and then goes on.
    ring(&gateway, 2 * EVENTS_KEPT);
    let mut lagging = loop {
        let event = feed.event().await;
        if event.name.as_deref() == Some("reset") {
            break event;
        }
    };
    assert_eq!(lagging.data["reason"], "too_old");
    ring(&gateway, 1);
    let before = parts(&lagging.id.take().unwrap()).1;
    assert_eq!(parts(&feed.event().await.id.unwrap()).1, before + 1);
    let event = Feed::open(&client, "events", Some(&id)).await.event().await;
    assert_eq!(event.data["reason"], "too_old");

    let gateway = gateway.restart().await;
    let client = Client::of(&gateway).await;
    let event = Feed::open(&client, "events", Some(&id)).await.event().await;
    assert_eq!(event.data["reason"], "restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_sees_the_events_of_its_scopes_and_is_told_what_it_may_not_ask_for() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let nobody = gateway.node("box").await;
    let device = gateway.device("box");
    let kinds: [(&str, &str, &[&str]); 3] = [
        ("runs:read", "run.ended", &["run.started", "run.ended"]),
        ("nodes:read", "telemetry", &["node.changed", "node.changed"]),
        (
            "nodes:admin",
            "key_cloned",
            &["pairing.changed", "key_cloned"],
        ),
    ];
    let mut feeds = Vec::new();
    for (scope, ..) in kinds {
        let token = token(&client, &[scope]).await;
        let feed = Feed::open_with(&gateway, &token, "events", None).await;
        feeds.push((token, feed));
    }
    let mut all = Feed::open(&client, "events", None).await;
    let run = client.run(json!({"node": "box", "argv": ["true"]})).await;
    client
        .json(Method::PATCH, "nodes/box", json!({"name": "bench"}))
        .await;
    client
        .json(Method::PATCH, "nodes/bench", json!({"name": "box"}))
        .await;
    ring(&gateway, 1);
    gateway.gateway.events().send(Event::KeyCloned(device));
    for ((token, feed), (scope, other, expected)) in feeds.iter_mut().zip(kinds) {
        for name in expected {
            let mut event = feed.event().await;
            // Samples come when they come.
            while event.name.as_deref() == Some("telemetry") {
                event = feed.event().await;
            }
            assert_eq!(event.name.as_deref(), Some(*name), "{scope}");
        }
        let path = format!("events?types={other}");
        let _feed = Feed::open_with(&gateway, token, &path, None).await;
        for (scope_of_other, other, _) in kinds {
            if scope_of_other == scope {
                continue;
            }
            let path = format!("events?types={other}");
            let problem = refused(&gateway, token, &path).await.problem();
            assert_eq!(problem.code, Code::ScopeMissing, "{scope}: {path}");
            assert!(problem.detail.contains(scope_of_other), "{problem:?}");
        }
    }
    let mut names = Vec::new();
    while !names.iter().any(|name| name == "key_cloned") {
        names.push(all.event().await.name.unwrap());
    }
    names.retain(|name| name != "telemetry");
    let expected = [
        "run.started",
        "run.ended",
        "node.changed",
        "node.changed",
        "pairing.changed",
        "key_cloned",
    ];
    assert_eq!(names, expected, "the operator sees all, in order");
    assert_eq!(run["outcome"], "exited");

    let none = token(&client, &["metrics"]).await;
    let problem = refused(&gateway, &none, "events").await.problem();
    assert_eq!(problem.code, Code::ScopeMissing);
    for scope in ["nodes:read", "runs:read", "nodes:admin"] {
        assert!(problem.detail.contains(scope), "{problem:?}");
    }
    for types in ["", "run.ended,", "node.gone", "reset"] {
        let answer = client.get(&format!("events?types={types}")).await;
        assert_eq!(answer.problem().code, Code::BadRequest, "{types}");
    }
    drop(nobody);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_in_good_order_with_the_gateway() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let mut feed = Feed::open(&client, "events", None).await;
    ring(&gateway, 3);
    for _ in 0..3 {
        feed.event().await;
    }
    gateway.shut_down().await;
    let (events, end) = feed.rest().await;
    assert!(events.is_empty() && matches!(end, Next::End), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_asker_has_a_bound_of_streams_and_takes_none_from_others() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let mut feeds = Vec::new();
    let refused = loop {
        let answer = client.open(asked("events", None)).await;
        if answer.status() != 200 {
            break answer;
        }
        feeds.push(answer);
        assert!(feeds.len() <= 64, "there is a bound");
    };
    assert_eq!((feeds.len(), refused.status().as_u16()), (64, 429));
    assert!(refused.headers().contains_key("retry-after"));
    let other = token(&client, &["runs:read"]).await;
    let _feed = Feed::open_with(&gateway, &other, "events", None).await;
    // Who leaves makes room.
    feeds.pop();
    until_asked("a place", async || {
        let answer = client.open(asked("events", None)).await;
        (answer.status() == 200).then_some(())
    })
    .await;
}

/// Asks for what lasts, with a token, and returns once it has begun to come.
async fn lasting(gateway: &TestGateway, token: &str, path: &str) -> hyper::body::Incoming {
    use http_body_util::BodyExt as _;
    let answer = send_with(gateway.address, token, asked(path, None)).await;
    assert_eq!(answer.status(), 200, "{path}");
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    body
}

/// Everything that lasts ends with its token, whether that is revoked or expires.
#[tokio::test(flavor = "multi_thread")]
async fn what_lasts_ends_within_a_second_of_its_token_and_the_run_goes_on() {
    use http_body_util::BodyExt as _;
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let _node = gateway.node("box").await;
    let gate = client.dir().join("gate");
    let command = format!(
        "echo begun; until test -e {}; do sleep 0.05; done; echo done",
        gate.display()
    );
    let body = json!({"node": "box", "command": command});
    let id = client.start(body.clone()).await;
    for expires in [false, true] {
        let seconds = if expires { 6 } else { 3600 };
        let made = json!({
            "name": format!("ci-{expires}"),
            "scopes": ["runs:read", "runs:write"],
            "expires_in_seconds": seconds,
        });
        let made = client.post("tokens", made).await.value();
        let token = made["token"].as_str().unwrap();
        let mut bodies = Vec::new();
        for path in [
            "events".to_owned(),
            format!("runs/{id}/events"),
            format!("runs/{id}/follow"),
            format!("runs/{id}/output?follow=true"),
        ] {
            bodies.push((path.clone(), lasting(&gateway, token, &path).await));
        }
        let waiting = {
            let mut request = crate::client::request(
                Method::POST,
                "runs?wait=true",
                Bytes::from(body.to_string()),
            );
            let json = "application/json".parse().unwrap();
            request.headers_mut().insert("content-type", json);
            let (address, token) = (gateway.address, token.to_owned());
            tokio::spawn(async move { send_with(address, &token, request).await })
        };
        until_asked("the run that is waited for", async || {
            let runs = client.get("runs").await.value();
            let mut runs = runs["items"].as_array().unwrap().iter();
            let by = format!("token:ci-{expires}");
            runs.any(|run| run["requested_by"] == by.as_str())
                .then_some(())
        })
        .await;
        let ends = if expires {
            made["expires_at"].as_str().unwrap().parse().unwrap()
        } else {
            let path = format!("tokens/{}", made["id"].as_str().unwrap());
            assert_eq!(client.delete(&path).await.status, 204);
            jiff::Timestamp::now()
        };
        for (path, mut body) in bodies {
            let cut = loop {
                match body.frame().await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => break jiff::Timestamp::now(),
                    None => panic!("{path} ended as if it were whole"),
                }
            };
            let late = cut.duration_since(ends);
            // A second is promised; what is more is for a busy machine.
            assert!(late < jiff::SignedDuration::from_secs(4), "{path}: {late}");
        }
        let answer = waiting.await.unwrap();
        assert_eq!(answer.status(), 401);
        let problem = answer.into_body().collect().await.unwrap().to_bytes();
        let problem: Value = serde_json::from_slice(&problem).unwrap();
        assert_eq!(problem["code"], "unauthenticated");
        assert!(problem["detail"].to_string().contains("goes on"));
    }
    std::fs::write(gate, "").unwrap();
    let whole = client.get(&format!("runs/{id}/output?follow=true")).await;
    assert_eq!(whole.body, "begun\ndone\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_revokes_its_own_token_is_told_that_this_is_done() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let mine = token(&client, &["tokens:admin"]).await;
    let mut request = crate::client::request(Method::DELETE, "tokens/tokens:admin", "");
    request
        .headers_mut()
        .insert("connection", "close".parse().unwrap());
    let answer = send_with(gateway.address, &mine, request).await;
    assert_eq!(answer.status(), 204);
    assert_eq!(refused(&gateway, &mine, "tokens").await.status, 401);
}
