//! A gateway that breaks the rules: the connection ends with a clear error, and no keeper hears of
//! what was wrong.

use futures_util::SinkExt as _;
use moltis_node::LinkError;
use moltis_proto::code::CloseCode;
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::message::Windows;
use moltis_proto::{Subprotocol, ToGateway, ToKeeper, ToNode};
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::Message;

use crate::gateway::{Peer, TestGateway};
use crate::node::{TestKeeper, TestNode, config};
use crate::session::start;

struct Scene {
    gateway: TestGateway,
    node: TestNode,
    peer: Peer,
    keeper: TestKeeper,
}

async fn scene() -> Scene {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    assert!(matches!(peer.hear().await, ToGateway::Run(_)));
    Scene {
        gateway,
        node,
        peer,
        keeper,
    }
}

impl Scene {
    /// The node says that we broke the protocol, closes, tells why, lets its keeper alone, and
    /// comes back.
    async fn broken(mut self) -> std::sync::Arc<LinkError> {
        assert_eq!(
            self.peer.hear().await,
            ToGateway::Close {
                code: CloseCode::Protocol
            }
        );
        let (error, _) = self.node.disconnected().await;
        assert_eq!(
            self.keeper.try_hear().await,
            None,
            "the keeper hears nothing of it"
        );
        let (mut peer, _keeper) = tokio::join!(self.gateway.admit(), self.node.idle_keeper());
        peer.hear().await;
        self.node.stop().await;
        error
    }
}

#[tokio::test]
async fn garbage_that_opens_is_no_message() {
    for garbage in [
        &b""[..],
        b"\xff\xff",
        b"\x00\x7f",
        &[0; 5000],
        b"{\"run\":1}",
    ] {
        let mut scene = scene().await;
        scene.peer.send_plain(garbage).await.unwrap();
        assert!(matches!(&*scene.broken().await, LinkError::Codec(_)));
    }
}

#[tokio::test]
async fn a_message_with_something_behind_it_is_refused() {
    let mut scene = scene().await;
    let mut plain = scene
        .peer
        .codec
        .encode(&ToNode::Ping { number: 1 })
        .unwrap();
    plain.push(0);
    scene.peer.send_plain(&plain).await.unwrap();
    assert!(matches!(&*scene.broken().await, LinkError::Codec(_)));
}

#[tokio::test]
async fn a_frame_that_was_changed_or_repeated_does_not_open() {
    let mut changed = scene().await;
    let mut frame = Vec::new();
    changed.peer.sealer.seal(b"\x02\x01", &mut frame).unwrap();
    frame[0] ^= 1;
    let sent = changed
        .peer
        .socket
        .send(Message::Binary(frame.into()))
        .await;
    sent.unwrap();
    assert!(matches!(&*changed.broken().await, LinkError::Noise(_)));

    let mut repeated = scene().await;
    let plain = repeated
        .peer
        .codec
        .encode(&ToNode::Ping { number: 1 })
        .unwrap();
    let mut frame = Vec::new();
    repeated.peer.sealer.seal(&plain, &mut frame).unwrap();
    for _ in 0..2 {
        let message = Message::Binary(frame.clone().into());
        repeated.peer.socket.send(message).await.unwrap();
    }
    // The first of the two may be answered before the second is found out.
    let mut heard = repeated.peer.hear().await;
    if matches!(heard, ToGateway::Pong { .. }) {
        heard = repeated.peer.hear().await;
    }
    assert!(matches!(
        heard,
        ToGateway::Close {
            code: CloseCode::Protocol
        }
    ));
    let (error, _) = repeated.node.disconnected().await;
    assert!(matches!(&*error, LinkError::Noise(_)), "{error:?}");
}

#[tokio::test]
async fn text_and_oversized_messages_are_refused() {
    let mut text = scene().await;
    text.peer
        .socket
        .send(Message::Text("hello".into()))
        .await
        .unwrap();
    assert!(matches!(&*text.broken().await, LinkError::Protocol(_)));

    let mut long = scene().await;
    let message = Message::Binary(vec![0; FRAME_BYTES_MAX + 1].into());
    long.peer.socket.send(message).await.ok(); // The node may have hung up in the middle.
    let (error, _) = long.node.disconnected().await;
    assert!(matches!(&*error, LinkError::Protocol(_)), "{error:?}");
    assert_eq!(long.keeper.try_hear().await, None);
}

#[tokio::test]
async fn only_the_owner_of_a_machine_speaks_of_its_keeper() {
    let windows = Windows {
        run_bytes: 1,
        connection_bytes: 1,
        stdin_bytes: 1,
        chunk_bytes_max: 1,
    };
    for message in [ToKeeper::Leave, ToKeeper::Attach { windows }] {
        let mut scene = scene().await;
        scene.peer.say(ToNode::Run(message)).await;
        assert!(matches!(&*scene.broken().await, LinkError::Protocol(_)));
    }
}

#[tokio::test]
async fn a_start_before_the_list_of_runs_is_refused() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let mut peer = gateway.admit().await;
    peer.say(ToNode::Run(start(1))).await;
    let mut keeper = node.idle_keeper().await;
    let (error, _) = node.disconnected().await;
    assert!(matches!(&*error, LinkError::Protocol(_)), "{error:?}");
    assert_eq!(keeper.try_hear().await, None);
}

#[tokio::test]
async fn a_flood_of_pings_costs_no_memory_and_stops_nothing() {
    let mut scene = scene().await;
    for number in 0..20_000 {
        scene.peer.say(ToNode::Ping { number }).await;
    }
    scene.peer.say(ToNode::Run(start(1))).await;
    assert_eq!(scene.keeper.hear().await, start(1));
    loop {
        match scene.peer.hear().await {
            ToGateway::Pong { number: 19_999 } => break,
            ToGateway::Pong { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn too_much_before_the_verdict_is_refused() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::add(config(gateway.url()));
    let mut peer = gateway.noise().await;
    peer.send_plain(&[7; 5000]).await.unwrap();
    let error = node.error().await;
    assert!(matches!(error, LinkError::Protocol(_)), "{error:?}");
}

#[tokio::test]
async fn a_gateway_whose_noise_is_none_is_no_gateway() {
    use futures_util::StreamExt as _;
    use tokio_tungstenite::accept_hdr_async;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    for message_2 in [&b"hello"[..], &[0; 48], &[0xff; 48]] {
        let gateway = TestGateway::bind().await;
        let mut node = TestNode::start(config(gateway.url()), |node| {
            node.offers(vec![Subprotocol::Postcard])
                .give_up(moltis_node::GiveUp::WhenTurnedAway)
        });
        #[expect(clippy::result_large_err, reason = "the shape that the library wants")]
        let choose = |_: &Request, mut response: Response| {
            let name = "moltis.node.v1".parse().unwrap();
            let headers = response.headers_mut();
            headers.insert("sec-websocket-protocol", name);
            Ok(response)
        };
        let mut socket = accept_hdr_async(gateway.tcp().await, choose).await.unwrap();
        socket.next().await.unwrap().unwrap();
        let message = Message::Binary(message_2.to_vec().into());
        socket.send(message).await.unwrap();
        let error = node.error().await;
        assert!(
            matches!(error, LinkError::NotAGateway { .. } | LinkError::Noise(_)),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_frame_that_comes_byte_by_byte_is_a_frame() {
    let mut scene = scene().await;
    let plain = scene.peer.codec.encode(&ToNode::Run(start(1))).unwrap();
    let mut frame = Vec::new();
    scene.peer.sealer.seal(&plain, &mut frame).unwrap();
    let mut wire = vec![0x82, u8::try_from(frame.len()).unwrap()];
    wire.extend_from_slice(&frame);
    let stream = scene.peer.socket.get_mut();
    for byte in wire {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(scene.keeper.hear().await, start(1));
}
