//! The API without a socket, with a real node behind it.

use bytes::Bytes;
use futures_util::StreamExt as _;
use moltis_gateway::api::events::{EventData, EventKind, EventsQuery, RunEventsQuery};
use moltis_gateway::api::follow::Frame;
use moltis_gateway::api::nodes::{ListNodes, PatchNode};
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::{
    FollowQuery, ListRuns, Outcome, OutputQuery, StartRun, State, StdinQuery, Stream,
};
use moltis_gateway::api::tokens::Scope;
use moltis_gateway::in_process::{GatewayEvent, RunEvent};
use moltis_gateway::{InProcess, Principal, Streamed, User};

use crate::gateway::TestGateway;

fn on_behalf_of(gateway: &TestGateway, name: &str, scopes: &[Scope]) -> InProcess {
    let user = User::new(name, scopes.iter().copied()).unwrap();
    gateway.gateway.on_behalf_of(Principal::User(user))
}

fn on(node: &str, line: &str) -> StartRun {
    StartRun {
        node: Some(node.to_owned()),
        command: Some(line.to_owned()),
        ..StartRun::default()
    }
}

/// Reads to the end: what stdout was, and how the run ended.
async fn whole(mut frames: Streamed<Frame>) -> (Vec<u8>, Option<Outcome>) {
    let mut stdout = Vec::new();
    while let Some(frame) = frames.next().await {
        match frame.unwrap() {
            Frame::Output {
                stream: Stream::Stdout,
                bytes,
                ..
            } => stdout.extend_from_slice(&bytes),
            Frame::Ended(run) => return (stdout, run.outcome),
            Frame::Output { .. } | Frame::Gap(_) | Frame::KeepAlive => {}
        }
    }
    panic!("the run's end is missing behind {} bytes", stdout.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_the_embedder_runs_commands_and_stands_there_as_who_asked() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let scopes = [Scope::NodesRead, Scope::RunsRead, Scope::RunsWrite];
    let api = on_behalf_of(&gateway, "alice", &scopes);
    let nodes = api.list_nodes(&ListNodes::default()).await.unwrap();
    assert_eq!(nodes.items[0].name, "box");

    let printed = "head -c 300000 /dev/zero; printf end";
    let started = api
        .start_and_follow(&on("box", printed), Some("once"))
        .await;
    let started = started.unwrap();
    let (stdout, outcome) = whole(started.frames).await;
    assert_eq!((stdout.len(), outcome), (300_003, Some(Outcome::Exited)));

    let again = api.start_run(&on("box", printed), Some("once")).await;
    assert_eq!(again.unwrap().id, started.run_id, "one key is one run");
    let bob = on_behalf_of(&gateway, "bob", &scopes);
    let other = bob.start_run(&on("box", printed), Some("once")).await;
    assert_ne!(other.unwrap().id, started.run_id, "a key is its user's own");

    let query = OutputQuery {
        offset: Some(300_000),
        ..OutputQuery::default()
    };
    let output = api.read_output(&started.run_id, &query).await.unwrap();
    assert_eq!(output.next_offset, Some(300_003));
    let pieces: Vec<_> = output.bytes.map(|piece| piece.unwrap()).collect().await;
    assert_eq!(pieces.concat(), b"end");

    let run = api.show_run(&started.run_id).await.unwrap();
    assert_eq!(
        (run.state, run.requested_by.as_str()),
        (State::Ended, "user:alice")
    );
    let runs = api.list_runs(&ListRuns::default()).await.unwrap();
    assert_eq!(runs.items.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_as_what_they_are_and_taken_up_behind_the_last_one() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let api = on_behalf_of(&gateway, "alice", &[Scope::RunsRead, Scope::RunsWrite]);
    let mut all = api.follow_events(&EventsQuery::default()).await.unwrap();
    let run = api.start_run(&on("box", "echo hello"), None).await.unwrap();
    let query = RunEventsQuery::default();
    let events = api.follow_run_events(&run.id, &query).await.unwrap();
    let events: Vec<_> = events.map(|told| told.unwrap()).collect().await;
    let [started, output, ended] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(matches!(&started.what, RunEvent::Started(run) if run.node_name == "box"));
    assert!(matches!(&output.what, RunEvent::Output(output) if output.data == "aGVsbG8K"));
    assert!(matches!(&ended.what, RunEvent::Ended(run) if run.exit_code == Some(0)));
    let query = RunEventsQuery {
        last_event_id: output.id.clone(),
    };
    let rest = api.follow_run_events(&run.id, &query).await.unwrap();
    let rest: Vec<_> = rest.map(|told| told.unwrap()).collect().await;
    assert_eq!(&rest[..], std::slice::from_ref(ended));

    let mut kinds = Vec::new();
    while kinds.last() != Some(&EventKind::RunEnded) {
        let told = all.next().await.unwrap().unwrap();
        let GatewayEvent::Happened(kind, EventData::Run(about)) = told.what else {
            panic!("alice may see runs alone: {told:?}");
        };
        assert_eq!(about.id, run.id);
        kinds.push(kind);
    }
    assert_eq!(kinds, [EventKind::RunStarted, EventKind::RunEnded]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_runs_a_command_on_every_node_that_is_meant() {
    let gateway = TestGateway::start().await;
    let _nodes = [gateway.node("one").await, gateway.node("two").await];
    let api = gateway.gateway.on_behalf_of(Principal::Operator);
    let all = StartRun {
        node: None,
        select: Some("all".to_owned()),
        ..on("", "echo hello")
    };
    assert_eq!(api.list_fleet(&all).await.unwrap().items.len(), 2);
    let ran = api.run_fleet_to_end(&all, None).await.unwrap();
    let said: Vec<_> = ran.items.iter().map(|run| run.stdout.as_str()).collect();
    assert_eq!(said, ["hello\n", "hello\n"]);
    assert_eq!(api.start_fleet(&all, None).await.unwrap().items.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_is_fed_while_the_run_is_followed() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let api = gateway.gateway.on_behalf_of(Principal::Operator);
    let open = StartRun {
        stdin_open: true,
        ..on("box", "cat")
    };
    let run = api.start_run(&open, None).await.unwrap();
    let at = |offset, eof| StdinQuery { offset, eof };
    let text = Bytes::from_static(b"over and out");
    let accepted = api.write_stdin(&run.id, &at(0, false), text).await;
    assert_eq!(accepted.unwrap().accepted, 12);
    let frames = api.follow_run(&run.id, &FollowQuery::default()).await;
    let end = api.write_stdin(&run.id, &at(12, true), Bytes::new()).await;
    end.unwrap();
    let (stdout, outcome) = whole(frames.unwrap()).await;
    assert_eq!(
        (&stdout[..], outcome),
        (&b"over and out"[..], Some(Outcome::Exited))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_does_what_its_scopes_say_and_the_machine_of_the_gateway_is_the_operators() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let reader = on_behalf_of(&gateway, "reader", &[Scope::NodesRead, Scope::RunsRead]);
    let refused = reader.start_run(&on("box", "true"), None).await;
    assert_eq!(refused.unwrap_err().code, Code::ScopeMissing);
    let rename = PatchNode {
        name: Some("mine".to_owned()),
        labels: None,
    };
    let refused = reader.change_node("box", &rename).await;
    assert_eq!(refused.unwrap_err().code, Code::ScopeMissing);
    let writer = on_behalf_of(&gateway, "writer", &[Scope::RunsWrite]);
    let refused = writer.run_to_end(&on("local", "true"), None).await;
    assert_eq!(refused.unwrap_err().code, Code::ScopeMissing);
    let ran = writer.run_to_end(&on("box", "true"), None).await;
    assert_eq!(ran.unwrap().outcome, Outcome::Exited);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_what_is_followed_in_process() {
    let gateway = TestGateway::start().await;
    let _node = gateway.node("box").await;
    let api = gateway.gateway.on_behalf_of(Principal::Operator);
    let run = on("box", "echo begun; sleep 600");
    let mut started = api.start_and_follow(&run, None).await.unwrap();
    while let Some(frame) = started.frames.next().await {
        if matches!(frame.unwrap(), Frame::Output { .. }) {
            break;
        }
    }
    gateway.gateway.shutdown().await;
    let rest: Vec<_> = started.frames.collect().await;
    assert!(
        rest.iter()
            .all(|frame| !matches!(frame, Ok(Frame::Ended(_)))),
        "the run goes on: {rest:?}"
    );
    gateway.shut_down().await;
}
