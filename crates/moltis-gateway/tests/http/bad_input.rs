//! What is refused, and that it is refused by name.

use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Client, request};
use crate::gateway::TestGateway;

/// Sends bodies to a route and checks code and words of each refusal.
async fn check(client: &Client, method: Method, path: &str, cases: &[(Value, &str, &str)]) {
    for (body, code, words) in cases {
        let answer = client.json(method.clone(), path, body.clone()).await;
        let problem = answer.problem();
        assert_eq!(
            problem.code.as_str(),
            *code,
            "{path} {body}: {}",
            problem.detail
        );
        let said = format!("{} {}", problem.detail, problem.hint.unwrap_or_default());
        assert!(said.contains(words), "{path} {body}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_meant_are_refused_by_name() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let client = Client::of(&gateway).await;
    let long = "x".repeat(100_000);
    check(
        &client,
        Method::POST,
        "runs",
        &[
            (json!({}), "invalid", "`argv` or `command`"),
            (json!({"argv": []}), "invalid", "program"),
            (json!({"argv": [""]}), "invalid", "program"),
            (json!({"argv": ["a\0b"]}), "invalid", "NUL"),
            (json!({"command": "  "}), "invalid", "empty"),
            (
                json!({"argv": ["a", 3]}),
                "invalid",
                "`argv[1]`: invalid type: integer `3`",
            ),
            (
                json!({"argv": "ls"}),
                "invalid",
                "`argv`: invalid type: string",
            ),
            (
                json!({"argv": ["a"], "comand": "b"}),
                "invalid",
                "unknown field `comand`",
            ),
            (
                json!({"argv": ["a"], "timeout_seconds": -1}),
                "invalid",
                "`timeout_seconds`: invalid value: integer `-1`",
            ),
            (
                json!({"argv": ["a"], "timeout_seconds": "abc"}),
                "invalid",
                "`timeout_seconds`: invalid type",
            ),
            (
                json!({"argv": ["a"], "timeout_seconds": 1_000_000_000_000_u64}),
                "invalid",
                "1000000000000",
            ),
            (
                json!({"argv": ["a"], "timeout_seconds": 301, "node": "box"}),
                "timeout_too_long",
                "300",
            ),
            (json!({"argv": ["a"], "cwd": "tmp"}), "invalid", "absolute"),
            (
                json!({"argv": ["a"], "env": {"LD_PRELOAD": "x"}}),
                "env_not_allowed",
                "`LD_PRELOAD`",
            ),
            (
                json!({"argv": ["a"], "env": {"FOO": "x"}}),
                "env_not_allowed",
                "env NAME=value",
            ),
            (
                json!({"argv": ["a"], "env": {"LANG": "../x"}}),
                "invalid",
                "`LANG`",
            ),
            (
                json!({"argv": ["a"], "tty": {"cols": 0, "rows": 24}}),
                "invalid",
                "1 to 4096",
            ),
            (
                json!({"argv": ["a"], "tty": {"cols": 80}}),
                "invalid",
                "missing field `rows`",
            ),
            (json!({"argv": ["a", long]}), "too_large", "stdin"),
            (
                json!({"argv": ["a"], "node": "nobody"}),
                "node_not_found",
                "nobody",
            ),
            (json!({"argv": ["a"], "node": ""}), "node_not_found", ""),
            (json!({"argv": ["a"], "node": "ssh:x"}), "not_found", "x"),
        ],
    )
    .await;
    check(
        &client,
        Method::PUT,
        "pairing",
        &[
            (json!({}), "invalid", "missing field `enabled`"),
            (json!({"enabled": "yes"}), "invalid", "`enabled`"),
            (
                json!({"enabled": true, "for_seconds": 0}),
                "invalid",
                "for_seconds",
            ),
            (
                json!({"enabled": true, "for_seconds": 3601}),
                "invalid",
                "60 minutes",
            ),
            (
                json!({"enabled": false, "for_seconds": 60}),
                "invalid",
                "for_seconds",
            ),
        ],
    )
    .await;
    check(
        &client,
        Method::PATCH,
        "nodes/box",
        &[
            (json!({"name": ""}), "invalid", "`name`"),
            (json!({"name": "local"}), "invalid", "routes"),
            (json!({"name": "ssh:x"}), "invalid", "routes"),
            (json!({"name": "a\u{202e}b"}), "invalid", "202e"),
            (json!({"name": "n".repeat(10_000)}), "invalid", "10000"),
            (json!({"labels": {"a b": "x"}}), "invalid", "`labels`"),
            (json!({"id": "x"}), "invalid", "unknown field `id`"),
        ],
    )
    .await;
    let unknown = json!({"fingerprint": "x", "connection_code": "y"});
    check(
        &client,
        Method::POST,
        "pairing/requests/ffff/approve",
        &[(unknown, "not_found", "ffff")],
    )
    .await;
    gateway.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_and_paths_are_read_as_strictly() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    for (path, code) in [
        ("runs?limit=0", "invalid"),
        ("runs?limit=501", "invalid"),
        ("runs?limit=many", "bad_request"),
        ("runs?cursor=x", "bad_request"),
        ("runs?colour=red", "bad_request"),
        ("runs?state=lost", "bad_request"),
        ("runs?node=nobody", "node_not_found"),
        ("runs/xyz", "not_found"),
        ("runs/%ff", "bad_request"),
        ("runs/00/output?offset=-1", "bad_request"),
        ("runs/00/output?stream=both", "bad_request"),
        ("nodes?state=away", "bad_request"),
        ("nodes/a%2Fb", "node_not_found"),
    ] {
        let problem = client.get(path).await.problem();
        assert_eq!(problem.code.as_str(), code, "{path}: {}", problem.detail);
    }
    let both = client
        .post("runs?wait=true&follow=true", json!({"argv": ["a"]}))
        .await;
    assert_eq!(both.problem().code.as_str(), "bad_request");
    let yes = client.post("runs?wait=yes", json!({"argv": ["a"]})).await;
    assert!(yes.problem().detail.contains("true"), "{yes:?}");
    let mut form = request(Method::POST, "runs/00/stdin?offset=0", "a=b");
    let media = "application/x-www-form-urlencoded".parse().unwrap();
    form.headers_mut().insert("content-type", media);
    let problem = client.send(form).await.problem();
    assert_eq!(problem.code.as_str(), "unsupported_media_type");
    gateway.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_means_several_nodes_is_refused_with_the_candidates() {
    let gateway = TestGateway::start().await;
    let _one = gateway.node("build-1").await;
    let _two = gateway.node("build-2").await;
    let client = Client::of(&gateway).await;
    let answer = client
        .post("runs", json!({"node": "build", "argv": ["true"]}))
        .await;
    let problem = answer.problem();
    assert_eq!(problem.code.as_str(), "node_ambiguous");
    let ids: Vec<_> = problem
        .candidates
        .iter()
        .map(|one| one.id.as_str())
        .collect();
    assert_eq!(ids, ["build-1", "build-2"]);
    gateway.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_of_an_id_shows_and_changes_nothing() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let client = Client::of(&gateway).await;
    assert_eq!(client.get("nodes/b").await.value()["id"], "box");
    let rename = json!({"name": "other"});
    for (method, path, body) in [
        (Method::POST, "nodes/b/revoke", json!({})),
        (Method::DELETE, "nodes/b", json!({})),
        (Method::PATCH, "nodes/bo", rename.clone()),
    ] {
        let problem = client.json(method, path, body).await.problem();
        assert_eq!(problem.code.as_str(), "node_not_found", "{problem:?}");
        assert!(problem.hint.unwrap().contains("`box`"), "{path}");
    }
    assert_eq!(client.get("nodes/box").await.value()["state"], "online");
    for word in ["box", "other"] {
        let path = format!("nodes/{word}");
        let renamed = client.json(Method::PATCH, &path, rename.clone()).await;
        assert_eq!(renamed.value()["name"], "other", "{renamed:?}");
    }

    let run = client.post("runs", json!({"node": "box", "command": "sleep 600"}));
    let run = run.await.value();
    let id = run["id"].as_str().unwrap();
    let shown = client.get(&format!("runs/{}", &id[..7])).await;
    assert_eq!(shown.value()["id"], id);
    let cancel = |digits: usize| format!("runs/{}/cancel", &id[..digits]);
    let problem = client.post(&cancel(7), json!({})).await.problem();
    assert_eq!(problem.code.as_str(), "not_found", "{problem:?}");
    let shown = client.get(&format!("runs/{id}")).await;
    assert!(shown.value()["cancel_requested_at"].is_null());
    let cancelled = client.post(&cancel(8), json!({})).await;
    assert_eq!(cancelled.status, 202);

    let rejected = client.post("pairing/requests/0a1b2c3/reject", json!({}));
    let problem = rejected.await.problem();
    assert!(problem.hint.unwrap().contains("8 digits"));
}
