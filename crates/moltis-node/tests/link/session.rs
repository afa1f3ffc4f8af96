//! An accepted connection: what passes, in which order, and how it ends.

use moltis_node::LinkEvent;
use moltis_proto::code::GoodbyeReason;
use moltis_proto::run::{Command, RunSpec, StdinMode, Stream};
use moltis_proto::{FromKeeper, Payload, RunId, Subprotocol, ToGateway, ToKeeper, ToNode, key};

use crate::gateway::TestGateway;
use crate::node::{TestNode, config};

/// Some output: a long frame.
pub(crate) static CHUNK: &[u8] = &[0xa5; 60_000];

pub(crate) fn run(number: u8) -> RunId {
    RunId::from_bytes([number; 16])
}

pub(crate) fn start(number: u8) -> ToKeeper {
    ToKeeper::Start {
        run_id: run(number),
        digest: key::Digest::from_bytes([number; 32]),
        spec: Box::new(RunSpec {
            command: Command::Shell("true".to_owned()),
            cwd: None,
            env: std::collections::BTreeMap::new(),
            timeout_ms: None,
            grace_ms: 0,
            stdin: StdinMode::Empty,
            tty: None,
        }),
    }
}

pub(crate) fn output(number: u8, offset: u64, bytes: &'static [u8]) -> FromKeeper {
    FromKeeper::Output {
        run_id: run(number),
        stream: Stream::Stdout,
        offset,
        bytes: Payload::from(bytes),
    }
}

async fn check_frames_pass(offer: Subprotocol) {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::start(config(gateway.url()), |node| node.offers(vec![offer]));
    let (peer, mut keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    let mut peer = peer;
    let runs = peer.hear().await;
    assert!(
        matches!(&runs, ToGateway::Run(FromKeeper::Runs { last: true, runs, .. }) if runs.is_empty()),
        "{runs:?}"
    );
    peer.say(ToNode::Run(start(1))).await;
    assert_eq!(keeper.hear().await, start(1));
    // In short pieces, for nothing is known of the road yet.
    keeper.say(output(1, 0, &CHUNK[..30_000])).await;
    for piece in [
        output(1, 0, &CHUNK[..16_384]),
        output(1, 16_384, &CHUNK[16_384..30_000]),
    ] {
        assert_eq!(peer.hear().await, ToGateway::Run(piece));
    }
    peer.say(ToNode::Ping { number: 42 }).await;
    assert_eq!(peer.hear().await, ToGateway::Pong { number: 42 });
    let (heard, ()) = tokio::join!(peer.hear(), node.stop());
    assert!(matches!(
        heard,
        ToGateway::Goodbye {
            reason: GoodbyeReason::Shutdown,
            ..
        }
    ));
    peer.closed().await;
}

#[tokio::test]
async fn frames_pass_both_ways_in_postcard() {
    check_frames_pass(Subprotocol::Postcard).await;
    check_frames_pass(Subprotocol::PostcardAes).await;
}

#[tokio::test]
async fn frames_pass_both_ways_in_json() {
    check_frames_pass(Subprotocol::Json).await;
}

#[tokio::test]
async fn an_acceptance_is_told() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (_peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    assert!(matches!(
        node.event().await,
        LinkEvent::Dialing { attempt: 1, .. }
    ));
    assert!(matches!(node.event().await, LinkEvent::GatewayKey { .. }));
    assert!(matches!(node.event().await, LinkEvent::Accepted { .. }));
}
