//! One command on many nodes: who is asked, in which order, and that nobody is lost on the way.

use std::path::{Path, PathBuf};

use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use moltis_gateway::exec::{FleetRequest, OnFailure, Pace, RunRequest};
use moltis_gateway::principal::Principal;
use moltis_proto::run::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Answer, Client, request};
use crate::gateway::{TestGateway, until, until_asked};
use crate::node::TestNode;

/// A gateway with nodes `a`, `b`, `c` and so on.
struct Fleet {
    gateway: TestGateway,
    client: Client,
    nodes: Vec<TestNode>,
    /// Where commands leave their marks.
    dir: TempDir,
}

impl Fleet {
    async fn of(names: &[&str]) -> Self {
        let gateway = TestGateway::start().await;
        let mut nodes = Vec::new();
        for name in names {
            nodes.push(gateway.node(name).await);
        }
        let client = Client::of(&gateway).await;
        Self {
            gateway,
            client,
            nodes,
            dir: TempDir::new().unwrap(),
        }
    }

    /// Starts the gateway anew and waits until these nodes are back.
    async fn restart(mut self, names: &[&str]) -> Self {
        self.gateway = self.gateway.restart().await;
        for name in names {
            self.gateway.online(self.gateway.device(name)).await;
        }
        self.client = Client::of(&self.gateway).await;
        self
    }

    async fn label(&self, node: &str, labels: Value) {
        let body = json!({ "labels": labels });
        let path = format!("nodes/{node}");
        let answer = self.client.json(Method::PATCH, &path, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        until("the labels to be known", || {
            let node = self.gateway.gateway.roster().find(node).unwrap();
            let known: std::collections::BTreeMap<String, String> =
                node.record.labels.clone().into();
            (json!(known) == labels).then_some(())
        })
        .await;
    }

    async fn hang_up(&mut self, at: usize, name: &str) {
        self.nodes[at].hang_up().await;
        self.gateway.offline(self.gateway.device(name)).await;
    }

    /// Sends a request under a key.
    async fn keyed(&self, key: &str, body: &Value) -> Answer {
        self.client.send(keyed(key, "runs", body)).await
    }

    async fn runs(&self) -> usize {
        let list = self.client.get("runs").await.value();
        list["items"].as_array().unwrap().len()
    }
}

fn posted(path: &str, body: &Value) -> Request<http_body_util::Full<bytes::Bytes>> {
    let mut request = request(Method::POST, path, body.to_string());
    let json = "application/json".parse().unwrap();
    request.headers_mut().insert(CONTENT_TYPE, json);
    request
}

fn keyed(key: &str, path: &str, body: &Value) -> Request<http_body_util::Full<bytes::Bytes>> {
    let mut request = posted(path, body);
    let key = key.parse().unwrap();
    request.headers_mut().insert("idempotency-key", key);
    request
}

/// Returns one field of each item.
fn each<'v>(answer: &'v Value, list: &str, field: &str) -> Vec<&'v str> {
    let items = answer[list].as_array().unwrap();
    items
        .iter()
        .map(|item| item[field].as_str().unwrap())
        .collect()
}

/// A command that says where it is in files of `dir`: it writes a line to `begun`, waits for the
/// file `gate`, and notes how many of its kind there were beside it.
fn gated(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "mkdir -p {dir}/here; touch {dir}/here/$$; ls {dir}/here | wc -l >> {dir}/beside; \
         echo begun >> {dir}/begun; while [ ! -e {dir}/gate ]; do sleep 0.01; done; rm {dir}/here/$$"
    )
}

fn lines(file: &PathBuf) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_on_those_that_a_selector_means_and_nowhere_else() {
    let fleet = Fleet::of(&["a", "b", "c"]).await;
    fleet.label("a", json!({"role": "web"})).await;
    fleet.label("c", json!({"role": "web", "old": ""})).await;
    let ask = async |select: &str| {
        let body = json!({"select": select, "argv": ["echo", "hello"], "stdin": ""});
        fleet.client.post("runs?wait=true", body).await
    };
    let answer = ask("role=web").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let value = answer.value();
    assert_eq!(each(&value, "items", "node"), ["a", "c"]);
    assert_eq!(each(&value, "items", "stdout"), ["hello\n"; 2]);
    assert_eq!(value["skipped"], json!([]));
    let value = ask("role!=db, platform=linux").await.value();
    assert_eq!(each(&value, "items", "node"), ["a", "b", "c"]);
    let value = ask("role,old!=yes,name!=c").await.value();
    assert_eq!(each(&value, "items", "node"), ["a"]);
    assert_eq!(fleet.runs().await, 6);
    let value = fleet.client.get("nodes?select=role%3Dweb").await.value();
    assert_eq!(each(&value, "items", "id"), ["a", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_never_everybody() {
    let fleet = Fleet::of(&["a"]).await;
    for (select, code, words) in [
        ("gpu=true", "node_not_found", "no node matches `gpu=true`"),
        ("state=offline", "node_not_found", "no node matches"),
        ("", "invalid", "`select`: the selector is empty"),
        (
            "a=b,",
            "invalid",
            "at character 5: found the end, expected a key",
        ),
    ] {
        for dry_run in [false, true] {
            let body = json!({"select": select, "argv": ["true"], "dry_run": dry_run});
            let problem = fleet.client.post("runs", body).await.problem();
            assert_eq!(problem.code.as_str(), code, "{select}");
            assert!(
                problem.detail.contains(words),
                "{select}: {}",
                problem.detail
            );
        }
    }
    let body = json!({"select": "platfrom=linux", "dry_run": true});
    let problem = fleet.client.post("runs", body).await.problem();
    let hint = problem.hint.unwrap_or_default();
    assert!(hint.contains("did you mean `platform`?"), "{hint}");
    let problem = fleet.client.get("nodes?select=a%3D%3Db").await.problem();
    assert_eq!(problem.code.as_str(), "invalid");
    let none = fleet.client.get("nodes?select=gpu").await;
    assert_eq!(
        (none.status.as_u16(), &none.value()["items"]),
        (200, &json!([]))
    );
    assert_eq!(fleet.runs().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_shows_who_is_meant_and_starts_nothing() {
    let mut fleet = Fleet::of(&["a", "b"]).await;
    fleet.hang_up(1, "b").await;
    let answer = fleet
        .client
        .post("runs", json!({"select": "all", "dry_run": true}))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let value = answer.value();
    assert_eq!(each(&value, "items", "id"), ["a", "b"]);
    assert_eq!(each(&value, "items", "state"), ["online", "offline"]);
    assert_eq!(value["next"], json!(null));
    assert_eq!(fleet.runs().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_offline_is_told_and_who_is_revoked_is_not_meant() {
    let mut fleet = Fleet::of(&["a", "b", "c"]).await;
    fleet.hang_up(1, "b").await;
    fleet.client.post("nodes/c/revoke", json!({})).await;
    until("c to be revoked", || {
        let c = fleet.gateway.gateway.roster().list().pop()?;
        c.record.revoked_at
    })
    .await;
    let body = json!({"select": "all", "argv": ["true"]});
    let answer = fleet.client.post("runs", body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let value = answer.value();
    assert_eq!(each(&value, "items", "node"), ["a"]);
    assert_eq!(
        value["skipped"],
        json!([{
            "node": "b", "node_name": "b", "code": "node_offline",
            "detail": "the node `b` is offline",
        }])
    );
    let body = json!({"select": "name=b", "argv": ["true"]});
    let answer = fleet.client.post("runs", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(each(&answer.value(), "skipped", "node"), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_node_takes_is_refused_before_anything_starts() {
    let fleet = Fleet::of(&["a", "b"]).await;
    for (field, value, code) in [
        ("argv", json!([]), "invalid"),
        ("cwd", json!("tmp"), "invalid"),
        ("timeout_seconds", json!(301), "timeout_too_long"),
        ("env", json!({"LD_PRELOAD": "x"}), "env_not_allowed"),
        ("parallel", json!(0), "invalid"),
        ("node", json!("a"), "invalid"),
        ("stdin_open", json!(true), "invalid"),
        ("tty", json!({"cols": 80, "rows": 24}), "invalid"),
        ("paralel", json!(2), "invalid"),
    ] {
        let mut body = json!({"select": "all", "argv": ["true"]});
        body[field] = value;
        let problem = fleet.client.post("runs", body.clone()).await.problem();
        assert_eq!(problem.code.as_str(), code, "{body}: {}", problem.detail);
    }
    let body = json!({"select": "all", "argv": ["true"]});
    let problem = fleet.client.post("runs?follow=true", body).await.problem();
    assert!(problem.detail.contains("`follow`"), "{}", problem.detail);
    assert_eq!(fleet.runs().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_goes_to_each_of_them() {
    let fleet = Fleet::of(&["a", "b"]).await;
    let body = json!({"select": "all", "argv": ["cat"], "stdin": "the same"});
    let value = fleet.client.post("runs?wait=true", body).await.value();
    assert_eq!(each(&value, "items", "stdout"), ["the same"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_so_many_run_at_a_time() {
    let fleet = Fleet::of(&["a", "b", "c", "d", "e"]).await;
    let dir = fleet.dir.path().to_owned();
    let body = json!({"select": "all", "command": gated(&dir), "parallel": 2});
    let client = fleet.client.clone();
    let asked = tokio::spawn(async move { client.post("runs", body).await });
    until("two to have begun", || {
        (lines(&dir.join("begun")).len() == 2).then_some(())
    })
    .await;
    assert_eq!(fleet.runs().await, 2, "the third waits for one of them");
    assert!(!asked.is_finished());
    std::fs::write(dir.join("gate"), "").unwrap();
    let answer = asked.await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(
        each(&answer.value(), "items", "node"),
        ["a", "b", "c", "d", "e"]
    );
    until("all to have begun", || {
        (lines(&dir.join("begun")).len() == 5).then_some(())
    })
    .await;
    for beside in lines(&dir.join("beside")) {
        assert!(beside == "1" || beside == "2", "{beside} at a time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_failure_no_more_are_started() {
    let fleet = Fleet::of(&["a", "b", "c", "d"]).await;
    let marker = fleet.dir.path().join("marker");
    let line = format!("echo x >> {0}; [ $(wc -l < {0}) -ne 2 ]", marker.display());
    for (parallel, began) in [(Value::Null, 2), (json!(1), 2)] {
        std::fs::write(&marker, "").unwrap();
        let mut body = json!({"select": "all", "command": line, "fail_fast": true});
        if !parallel.is_null() {
            body["parallel"] = parallel;
        }
        let value = fleet.client.post("runs?wait=true", body).await.value();
        assert_eq!(each(&value, "items", "node"), ["a", "b"], "{value}");
        assert_eq!(value["items"][1]["exit_code"], 1);
        assert_eq!(each(&value, "skipped", "node"), ["c", "d"]);
        assert_eq!(each(&value, "skipped", "code"), ["fail_fast"; 2]);
        assert_eq!(lines(&marker).len(), began);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_means_the_same_nodes_whoever_came_since() {
    let mut fleet = Fleet::of(&["a", "b", "c"]).await;
    fleet.hang_up(2, "c").await;
    let marker = fleet.dir.path().join("marker");
    let line = format!("echo x >> {}", marker.display());
    let body = json!({"select": "all", "command": line});
    let first = fleet.keyed("k", &body).await;
    assert_eq!(first.status, 201, "{first:?}");
    let first = first.value();
    assert_eq!(each(&first, "items", "node"), ["a", "b"]);
    assert_eq!(each(&first, "skipped", "node"), ["c"]);
    // One is back, and one is new.
    let url = fleet.gateway.url();
    fleet.nodes[2].dial(&url);
    fleet.gateway.online(fleet.gateway.device("c")).await;
    fleet.nodes.push(fleet.gateway.node("d").await);
    let fleet = fleet.restart(&["a", "b", "c", "d"]).await;
    let again = fleet.keyed("k", &body).await;
    assert_eq!(again.status, 200, "{again:?}");
    let again = again.value();
    assert_eq!(each(&again, "items", "id"), each(&first, "items", "id"));
    assert_eq!(again["skipped"], first["skipped"]);
    assert_eq!(lines(&marker).len(), 2);
    for other in [
        json!({"select": "all", "command": "true"}),
        json!({"select": "name!=x", "command": line}),
        json!({"select": "all", "command": line, "parallel": 1}),
        json!({"node": "a", "command": line}),
    ] {
        let problem = fleet.keyed("k", &other).await.problem();
        assert_eq!(problem.code.as_str(), "idempotency_conflict", "{other}");
    }
    fleet
        .keyed("one", &json!({"node": "a", "command": line}))
        .await;
    let problem = fleet.keyed("one", &body).await.problem();
    assert_eq!(problem.code.as_str(), "idempotency_conflict");
    // A new key is a new request.
    let value = fleet.keyed("l", &body).await.value();
    assert_eq!(each(&value, "items", "node"), ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_cut_in_the_middle_goes_on_under_its_key() {
    let fleet = Fleet::of(&["a", "b", "c"]).await;
    let dir = fleet.dir.path().to_owned();
    let body = json!({"select": "all", "command": gated(&dir), "parallel": 1});
    let request = keyed("k", "runs?wait=true", &body);
    let client = fleet.client.clone();
    let asked = tokio::spawn(async move { client.send(request).await });
    until("the first to have begun", || {
        (lines(&dir.join("begun")).len() == 1).then_some(())
    })
    .await;
    asked.abort();
    let fleet = fleet.restart(&["a", "b", "c"]).await;
    std::fs::write(dir.join("gate"), "").unwrap();
    let answer = fleet.client.send(keyed("k", "runs?wait=true", &body)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(each(&answer.value(), "items", "node"), ["a", "b", "c"]);
    assert_eq!(lines(&dir.join("begun")).len(), 3, "each ran once");
    assert_eq!(fleet.runs().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stop_of_the_gateway_kept_from_starting_is_told_beside_what_it_did_not() {
    for key in [None, Some("k")] {
        let fleet = Fleet::of(&["a", "b", "c", "d"]).await;
        let dir = fleet.dir.path().to_owned();
        let body = json!({"select": "all", "command": gated(&dir), "parallel": 2});
        let client = fleet.client.clone();
        let (ask, key) = (body.clone(), key.map(str::to_owned));
        let asked = tokio::spawn({
            let key = key.clone();
            async move {
                match key {
                    Some(key) => client.send(keyed(&key, "runs", &ask)).await,
                    None => client.post("runs", ask).await,
                }
            }
        });
        until("two to have begun", || {
            (lines(&dir.join("begun")).len() == 2).then_some(())
        })
        .await;
        let fleet = fleet.restart(&["a", "b", "c", "d"]).await;
        let answer = asked.await.unwrap();
        assert_eq!(answer.status, 201, "{answer:?}");
        let told = answer.value();
        assert_eq!(each(&told, "items", "node"), ["a", "b"]);
        assert_eq!(each(&told, "skipped", "node"), ["c", "d"]);
        assert_eq!(each(&told, "skipped", "code"), ["shutting_down"; 2]);
        assert_eq!(fleet.runs().await, 2);
        std::fs::write(dir.join("gate"), "").unwrap();
        let Some(key) = key else { continue };
        let again = fleet.keyed(&key, &body).await.value();
        assert_eq!(each(&again, "items", "node"), ["a", "b", "c", "d"]);
        assert_eq!(fleet.runs().await, 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_many_is_told_all_that_go_on_when_the_gateway_stops() {
    let fleet = Fleet::of(&["a", "b"]).await;
    let body = json!({"select": "all", "argv": ["sleep", "30"]});
    let wait = |request| {
        let client = fleet.client.clone();
        tokio::spawn(async move { client.send(request).await })
    };
    let with_key = wait(keyed("k", "runs?wait=true", &body));
    let without = wait(posted("runs?wait=true", &body));
    until_asked("four runs", async || {
        (fleet.runs().await == 4).then_some(())
    })
    .await;
    let fleet = fleet.restart(&["a", "b"]).await;
    let mut named = Vec::new();
    for (answer, may_be_repeated) in [(with_key, true), (without, false)] {
        let answer = answer.await.unwrap();
        let retry_after = answer.headers.contains_key("retry-after");
        assert_eq!(retry_after, may_be_repeated);
        let problem = answer.problem();
        assert_eq!(problem.code.as_str(), "shutting_down");
        assert_eq!(problem.runs.len(), 2, "{problem:?}");
        named.extend(problem.runs);
    }
    let list = fleet.client.get("runs").await.value();
    let mut ids = each(&list, "items", "id");
    named.sort();
    ids.sort_unstable();
    assert_eq!(named, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_answer_skips_nobody_who_has_a_run() {
    let fleet = Fleet::of(&["a", "b", "c"]).await;
    let dir = fleet.dir.path().to_owned();
    let line = format!("{}; false", gated(&dir));
    let body = json!({"select": "all", "command": line, "parallel": 2, "fail_fast": true});
    let client = fleet.client.clone();
    let request = keyed("k", "runs?wait=true", &body);
    let asked = tokio::spawn(async move { client.send(request).await });
    until("two to have begun", || {
        (lines(&dir.join("begun")).len() == 2).then_some(())
    })
    .await;
    std::fs::write(dir.join("gate"), "").unwrap();
    let first = asked.await.unwrap().value();
    assert_eq!(each(&first, "items", "node"), ["a", "b"]);
    let again = fleet.keyed("k", &body).await.value();
    assert_eq!(each(&again, "items", "node"), ["a", "b"]);
    assert_eq!(each(&again, "skipped", "node"), ["c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asker_who_leaves_starts_no_more_and_takes_nothing_back() {
    let fleet = Fleet::of(&["a", "b"]).await;
    let dir = fleet.dir.path().to_owned();
    let request = |pace| FleetRequest {
        select: "all".parse().unwrap(),
        run: RunRequest::new(Command::Shell(gated(&dir))),
        pace,
    };
    let one_by_one = request(Pace::AtMost {
        parallel: std::num::NonZeroUsize::MIN,
        on_failure: OnFailure::GoOn,
    });
    let runs = fleet.gateway.gateway.runs().clone();
    {
        let mut asked = Box::pin(runs.start_fleet(one_by_one, &Principal::Operator));
        let begun = until("the first to have begun", || {
            (lines(&dir.join("begun")).len() == 1).then_some(())
        });
        tokio::select! {
            made = &mut asked => panic!("the second did not wait: {made:?}"),
            () = begun => {}
        }
    }
    std::fs::write(dir.join("gate"), "").unwrap();
    let all = runs.start_fleet(request(Pace::AllAtOnce), &Principal::Operator);
    assert_eq!(all.await.unwrap().runs.len(), 2);
    until_asked("three runs to be over", async || {
        let ended = fleet.client.get("runs?state=ended").await.value();
        (ended["items"].as_array().unwrap().len() == 3).then_some(())
    })
    .await;
    assert_eq!(fleet.runs().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outputs_of_many_share_one_bound() {
    let fleet = Fleet::of(&["a", "b"]).await;
    let line = "head -c 1500000 /dev/zero | tr '\\0' x";
    let body = json!({"select": "all", "command": line});
    let value = fleet.client.post("runs?wait=true", body).await.value();
    for item in value["items"].as_array().unwrap() {
        assert_eq!(item["stdout_bytes"], 1_500_000);
        assert_eq!(item["truncated"], true);
        let text = item["stdout"].as_str().unwrap();
        assert!(text.contains("bytes left out"), "{}", text.len());
    }
}
