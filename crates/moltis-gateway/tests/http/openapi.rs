//! The document that the gateway serves of itself.

use hyper::Method;
use serde_json::Value;

use crate::client::{Client, request};
use crate::gateway::TestGateway;

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_reviewed_when_it_changes() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let mut document = client.get("openapi.json").await.value();
    document["info"]["version"] = "[version]".into();
    insta::assert_snapshot!("openapi", format!("{document:#}"));
    gateway.shut_down().await;
}

/// A method of the document gets past the router; every other one is refused with the list.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_down_is_served_and_what_is_not_is_refused() {
    let gateway = TestGateway::start().await;
    let client = Client::of(&gateway).await;
    let document = client.get("openapi.json").await.value();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let written: Vec<&String> = operations.as_object().unwrap().keys().collect();
        let path = path.replace("{id}", "nobody");
        for method in [
            "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let answer = client.send(request(method.clone(), &path, "")).await;
            let same = if method == Method::HEAD {
                "get"
            } else {
                &method.as_str().to_lowercase()
            };
            let is_written = written.iter().any(|one| *one == same);
            assert_eq!(
                answer.status != 405,
                is_written,
                "{method} {path}: {answer:?}"
            );
            if is_written {
                let problem: Option<Value> = serde_json::from_slice(&answer.body).ok();
                let detail = problem.map(|problem| problem["detail"].to_string());
                let no_route = detail.is_some_and(|words| words.contains("there is no route"));
                assert!(!no_route, "{method} {path}");
            } else {
                let allow = answer.header("allow").to_lowercase();
                for method in &written {
                    assert!(allow.contains(&***method), "{method} {path}: {allow}");
                }
            }
        }
    }
    gateway.shut_down().await;
}
