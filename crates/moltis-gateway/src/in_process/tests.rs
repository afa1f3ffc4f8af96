//! Every operation has a method, which asks for the same right. What the methods do beyond that is
//! tested with a real node, in `tests/http/`.

use std::sync::Arc;

use bytes::Bytes;
use moltis_proto::DeviceId;

use super::InProcess;
use crate::api::events::{EventsQuery, RunEventsQuery};
use crate::api::nodes::{ListNodes, PatchNode};
use crate::api::pairing::{Approve, SetPairing};
use crate::api::problem::{Code, Problem};
use crate::api::runs::{
    Cancel, FollowQuery, ListRuns, OutputQuery, Resize, SendSignal, StartRun, StdinQuery,
};
use crate::api::tokens::{CreateToken, ListTokens, Scope};
use crate::http::operations;
use crate::principal::{Action, Principal, User};
use crate::store::{NodeRecord, testing};
use crate::{Gateway, GatewayConfig};

/// Calls the method of an operation, on things that are not there.
async fn call(api: &InProcess, operation: &str) -> Result<(), Problem> {
    let stdin = StdinQuery {
        offset: 0,
        eof: true,
    };
    let size = Resize { cols: 80, rows: 24 };
    let signal = SendSignal {
        signal: "INT".to_owned(),
    };
    let seen = Approve {
        fingerprint: "SHA256:x".to_owned(),
        connection_code: "x".to_owned(),
    };
    let close = SetPairing {
        enabled: false,
        for_seconds: None,
    };
    let token = CreateToken {
        name: "made in process".to_owned(),
        scopes: vec![Scope::NodesRead],
        expires_in_seconds: None,
    };
    let run = StartRun {
        command: Some("true".to_owned()),
        ..StartRun::default()
    };
    match operation {
        "front_page" => api.front_page().await.map(drop),
        "healthz" => api.healthz().await.map(drop),
        "readyz" => api.readyz().await.map(drop),
        "openapi" => api.openapi().await.map(drop),
        "show_gateway" => api.show_gateway().await.map(drop),
        "diagnose" => api.diagnose().await.map(drop),
        #[cfg(feature = "metrics")]
        "scrape_metrics" => api.scrape_metrics().await.map(drop),
        "list_nodes" => api.list_nodes(&ListNodes::default()).await.map(drop),
        "show_node" => api.show_node("box").await.map(drop),
        "change_node" => api
            .change_node("box", &PatchNode::default())
            .await
            .map(drop),
        "forget_node" => api.forget_node("box").await,
        "revoke_node" => api.revoke_node("box").await.map(drop),
        "show_pairing" => api.show_pairing().await.map(drop),
        "set_pairing" => api.set_pairing(&close).await.map(drop),
        "show_pairing_command" => api.show_pairing_command().await.map(drop),
        "list_pairing_requests" => api.list_pairing_requests().await.map(drop),
        "approve_pairing_request" => api.approve_pairing_request("0", &seen).await.map(drop),
        "reject_pairing_request" => api.reject_pairing_request("0").await,
        "list_runs" => api.list_runs(&ListRuns::default()).await.map(drop),
        "start_run" => start(api, &run).await,
        "show_run" => api.show_run("0").await.map(drop),
        "read_output" => {
            let read = api.read_output("0", &OutputQuery::default()).await;
            read.map(drop)
        }
        "follow_run" => {
            let follow = api.follow_run("0", &FollowQuery::default()).await;
            follow.map(drop)
        }
        "follow_run_events" => {
            let query = RunEventsQuery::default();
            api.follow_run_events("0", &query).await.map(drop)
        }
        "follow_events" => api.follow_events(&EventsQuery::default()).await.map(drop),
        "write_stdin" => {
            let written = api.write_stdin("0", &stdin, Bytes::from_static(b"x")).await;
            written.map(drop)
        }
        "resize_terminal" => api.resize_terminal("0", &size).await,
        "send_signal" => api.send_signal("0", &signal).await,
        "cancel_run" => api.cancel_run("0", &Cancel::default()).await.map(drop),
        "claim_run" => api.claim_run("0").await.map(drop),
        "list_tokens" => api.list_tokens(&ListTokens::default()).await.map(drop),
        "create_token" => api.create_token(&token).await.map(drop),
        "revoke_token" => api.revoke_token("nobody").await,
        other => panic!("the operation `{other}` has no method in-process: write one"),
    }
}

/// All forms of one operation; each is refused alike, or none.
async fn start(api: &InProcess, run: &StartRun) -> Result<(), Problem> {
    let all = StartRun {
        select: Some("all".to_owned()),
        ..run.clone()
    };
    let codes = [
        api.start_run(run, None).await.map(drop),
        api.run_to_end(run, None).await.map(drop),
        api.start_and_follow(run, None).await.map(drop),
        api.start_fleet(&all, None).await.map(drop),
        api.run_fleet_to_end(&all, None).await.map(drop),
        api.list_fleet(&all).await.map(drop),
    ];
    let denied = codes.iter().filter(|refused| {
        let code = refused.as_ref().err().map(|no| no.code);
        code == Some(Code::ScopeMissing)
    });
    assert!([0, codes.len()].contains(&denied.count()), "{codes:?}");
    for mixed in [
        api.start_run(&all, None).await.map(drop),
        api.start_fleet(run, None).await.map(drop),
    ] {
        assert_eq!(mixed.unwrap_err().code, Code::Invalid);
    }
    let [first, ..] = codes;
    first
}

async fn gateway() -> (tempfile::TempDir, Gateway) {
    let dir = tempfile::tempdir().unwrap();
    let config = GatewayConfig::new(dir.path().join("home"));
    (dir, Gateway::builder(config).build().await.unwrap())
}

fn user(scopes: &[Scope]) -> Principal {
    Principal::User(User::new("alice", scopes.iter().copied()).unwrap())
}

#[tokio::test]
async fn a_dry_run_of_many_nodes_is_a_first_page_that_the_list_goes_on_from() {
    let (_dir, gateway) = gateway().await;
    let named = |number: u16| {
        let mut device = [0; 16];
        device[..2].copy_from_slice(&number.to_be_bytes());
        Arc::new(NodeRecord {
            device_id: DeviceId::from_bytes(device),
            node_id: format!("box-{number:04}").parse().unwrap(),
            ..testing::node(1)
        })
    };
    gateway.roster().set_known((0..1001).map(named));
    let api = gateway.on_behalf_of(user(&[Scope::Admin]));
    let all = StartRun {
        select: Some("all".to_owned()),
        ..StartRun::default()
    };
    let first = api.list_fleet(&all).await.unwrap();
    assert_eq!(first.items.len(), 1000);
    assert_eq!(first.items[999].id, "box-0999");
    let query = ListNodes {
        select: all.select,
        cursor: Some(first.next.expect("one more node")),
        ..ListNodes::default()
    };
    let second = api.list_nodes(&query).await.unwrap();
    assert_eq!(second.items.len(), 1);
    assert_eq!(second.items[0].id, "box-1000");
    assert_eq!(second.next, None);
}

#[tokio::test]
async fn every_operation_has_a_method_that_asks_for_the_same_right() {
    let (_dir, gateway) = gateway().await;
    let nobody = gateway.on_behalf_of(user(&[]));
    let admin = gateway.on_behalf_of(user(&[Scope::Admin]));
    for (operation, action) in operations() {
        let refused = call(&nobody, operation).await.err().map(|no| no.code);
        let expected = (action != Action::Public).then_some(Code::ScopeMissing);
        assert_eq!(refused, expected, "{operation} for {action:?}");
        let refused = call(&admin, operation).await.err().map(|no| no.code);
        let of_rights = [Code::ScopeMissing, Code::Unauthenticated, Code::Internal];
        assert!(
            refused.is_none_or(|code| !of_rights.contains(&code)),
            "{operation}: {refused:?}"
        );
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_refusal_has_the_words_and_the_id_of_any_other() {
    let (_dir, gateway) = gateway().await;
    let api = gateway.on_behalf_of(user(&[Scope::NodesRead]));
    let problem = api.show_node("a/../b c%?#é").await.unwrap_err();
    assert_eq!(problem.code, Code::NodeNotFound);
    assert!(problem.detail.contains("`a/../b c%?#é`"), "{problem}");
    assert_eq!(problem.request_id.len(), 16);
    assert_eq!(problem.to_string(), problem.detail);
    let problem = api.show_node("").await.unwrap_err();
    assert_eq!(problem.code, Code::NotFound);
    let problem = api.list_tokens(&ListTokens::default()).await.unwrap_err();
    assert!(problem.detail.contains("`user:alice`"), "{problem}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_users_scopes_are_the_most_that_it_can_give_away() {
    let (_dir, gateway) = gateway().await;
    let api = gateway.on_behalf_of(user(&[Scope::TokensAdmin, Scope::NodesRead]));
    let make = |name: &str, scope| CreateToken {
        name: name.to_owned(),
        scopes: vec![scope],
        expires_in_seconds: Some(60),
    };
    let made = api.create_token(&make("mine", Scope::NodesRead)).await;
    assert!(made.unwrap().token.starts_with("moltis_"));
    let refused = api.create_token(&make("more", Scope::RunsWrite)).await;
    assert_eq!(refused.unwrap_err().code, Code::ScopeMissing);
    assert_eq!(
        api.list_tokens(&ListTokens::default())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    api.revoke_token("mine").await.unwrap();
    gateway.shutdown().await;
}

#[tokio::test]
async fn lists_that_have_pages_have_them_here_too() {
    let (_dir, gateway) = gateway().await;
    let api = gateway.on_behalf_of(Principal::Operator);
    for name in ["first", "second"] {
        let token = CreateToken {
            name: name.to_owned(),
            scopes: vec![Scope::NodesRead],
            expires_in_seconds: None,
        };
        api.create_token(&token).await.unwrap();
    }
    let mut query = ListTokens {
        limit: Some(1),
        ..ListTokens::default()
    };
    let mut names = Vec::new();
    loop {
        let page = api.list_tokens(&query).await.unwrap();
        assert_eq!(page.items.len(), 1);
        names.extend(page.items.into_iter().map(|token| token.name));
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    names.sort(); // two that were made in one millisecond have no order
    assert_eq!(names, ["first", "second"]);
    gateway.shutdown().await;
}
