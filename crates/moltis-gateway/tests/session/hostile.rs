//! Nodes and strangers that break the rules: each is closed, and harms nothing.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use moltis_gateway::GatewayConfig;
use moltis_gateway::exec::RunHandle;
use moltis_identity::noise::Initiator;
use moltis_proto::code::CloseCode;
use moltis_proto::handshake::node::Decision;
use moltis_proto::run::{
    Ending, ExitStatus, GapReason, Outcome, RunState, RunSummary, Stream, Totals,
};
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::{FromKeeper, Payload, RunId, ToGateway, ToKeeper, ToNode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::gateway::{PATIENCE, TestGateway, shell, told};
use crate::raw::{BOOT, Device, JOURNAL, RawNode, answered, binary, dial, refused};

pub(crate) const PROTOCOL: Option<ToNode> = Some(ToNode::Close {
    code: CloseCode::Protocol,
});

/// A paired hostile node that was given a run, and has started it.
pub(crate) async fn with_run(gateway: &TestGateway) -> (Device, RawNode, RunHandle, RunId) {
    let device = Device::new("mallory");
    device.pair(gateway).await;
    let mut node = device.ready(gateway).await;
    let handle = gateway.start_run(shell("true").on("mallory")).await;
    let ToKeeper::Start { run_id, .. } = node.hear_run().await else {
        panic!("no start");
    };
    node.say(FromKeeper::Started { run_id, pid: 1 }).await;
    (device, node, handle, run_id)
}

pub(crate) fn output(run_id: RunId, offset: u64, len: usize) -> FromKeeper {
    FromKeeper::Output {
        run_id,
        stream: Stream::Stdout,
        offset,
        bytes: Payload(Bytes::from(vec![b'x'; len])),
    }
}

pub(crate) fn ended(run_id: RunId, stdout: u64) -> FromKeeper {
    FromKeeper::Ended {
        run_id,
        ending: Box::new(Ending {
            outcome: Outcome::Exited,
            reason: None,
            status: Some(ExitStatus::Code(0)),
            detail: String::new(),
            duration_ms: 1,
            descendants_may_survive: false,
        }),
        totals: Totals { stdout, stderr: 0 },
    }
}

/// Says these, and expects to be closed for it.
async fn closed_for(lies: impl FnOnce(RunId) -> Vec<FromKeeper>) {
    let gateway = TestGateway::start().await;
    let (device, mut node, handle, run_id) = with_run(&gateway).await;
    for lie in lies(run_id) {
        node.say(lie).await;
    }
    assert_eq!(node.closed().await, PROTOCOL);
    gateway.offline(device.id()).await;
    // The run is not over: its node may come back and tell the truth.
    assert!(handle.record().ending.is_none() || handle.record().totals.stdout <= 1);
    assert_eq!(gateway.run("local", "echo well").await.out(), "well\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_in_the_output() {
    closed_for(|id| vec![output(id, 0, 10), output(id, 11, 10)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_no_stream_can_have() {
    closed_for(|id| {
        vec![FromKeeper::Gap {
            run_id: id,
            stream: Stream::Stdout,
            from: 0,
            to: u64::MAX,
            reason: GapReason::Limit,
        }]
    })
    .await;
}

/// A gateway whose disk takes no output, so that nothing is acknowledged.
async fn with_full_disk(change: impl FnOnce(&mut GatewayConfig)) -> TestGateway {
    let gateway = TestGateway::start_with(change).await;
    let outputs = gateway.home().gateway_dir().join("outputs");
    std::fs::remove_dir(&outputs).unwrap();
    std::fs::write(&outputs, "").unwrap();
    gateway
}

/// Says this much of a run's output, chunk by chunk.
async fn say_output(node: &mut RawNode, run_id: RunId, bytes: usize) {
    let chunk = 60 * 1024;
    for offset in (0..bytes).step_by(chunk) {
        let len = chunk.min(bytes - offset);
        node.say(output(run_id, offset as u64, len)).await;
    }
}

/// Waits until all that was said before has been handled.
async fn answers(node: &mut RawNode) {
    node.send(&ToGateway::Ping { number: 5 }).await;
    while node.hear().await.expect("the gateway has closed") != (ToNode::Pong { number: 5 }) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn output_beyond_the_window_of_a_run() {
    let gateway = with_full_disk(|_| {}).await;
    let (_, mut node, _, run_id) = with_run(&gateway).await;
    let window = node.windows.unwrap().run_bytes as usize;
    // What is acknowledged early lies in memory: the first 64 KiB at most.
    say_output(&mut node, run_id, window).await;
    answers(&mut node).await;
    for part in 0..3 {
        let at = window + part * 40_000;
        node.say(output(run_id, at as u64, 40_000)).await;
    }
    assert_eq!(node.closed().await, PROTOCOL);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_beyond_the_window_of_the_connection() {
    let gateway = with_full_disk(|config| config.windows.connection_bytes = 1024 * 1024).await;
    let (_, mut node, _, first) = with_run(&gateway).await;
    let _other = gateway.start_run(shell("true").on("mallory")).await;
    let ToKeeper::Start { run_id: second, .. } = node.hear_run().await else {
        panic!("no start");
    };
    node.say(FromKeeper::Started {
        run_id: second,
        pid: 2,
    })
    .await;
    let each = 600 * 1024;
    assert!(each < node.windows.unwrap().run_bytes as usize);
    say_output(&mut node, first, each).await;
    answers(&mut node).await;
    say_output(&mut node, second, each).await;
    assert_eq!(node.closed().await, PROTOCOL);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ending() {
    closed_for(|id| vec![output(id, 0, 1), ended(id, 1), ended(id, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ending_that_counts_more_than_came() {
    closed_for(|id| vec![output(id, 0, 1), ended(id, 2)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_behind_the_ending() {
    closed_for(|id| vec![ended(id, 0), output(id, 0, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_never_given() {
    closed_for(|_| vec![output(RunId::from_bytes([9; 16]), 0, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_that_was_never_sent() {
    closed_for(|run_id| {
        vec![FromKeeper::StdinAck {
            run_id,
            offset: 1,
            closed: false,
        }]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_run() {
    let gateway = TestGateway::start().await;
    let _honest = gateway.node("honest").await;
    let victim = gateway
        .start_run(shell("echo mine; sleep 1; exit 5").on("honest"))
        .await;
    let device = Device::new("mallory");
    device.pair(&gateway).await;
    let mut node = device.ready(&gateway).await;
    node.say(ended(victim.id(), 0)).await;
    assert_eq!(node.closed().await, PROTOCOL);
    // Listing it is no way either.
    let mut node = device.connect(&gateway).await;
    node.say(FromKeeper::Runs {
        boot_id: BOOT,
        journals: vec![JOURNAL],
        runs: vec![RunSummary {
            run_id: victim.id(),
            digest: victim.record().digest,
            journal_id: JOURNAL,
            state: RunState::Ended,
            totals: Totals::default(),
            stdin: 0,
        }],
        last: true,
    })
    .await;
    gateway.online(device.id()).await;
    node.say(ended(victim.id(), 0)).await;
    assert_eq!(node.closed().await, PROTOCOL);
    let told = told(&victim).await;
    assert_eq!(told.out(), "mine\n");
    assert_eq!(
        told.record.ending.as_ref().unwrap().status,
        Some(ExitStatus::Code(5))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_message_before_the_list() {
    let gateway = TestGateway::start().await;
    let device = Device::new("mallory");
    device.pair(&gateway).await;
    let mut node = device.connect(&gateway).await;
    node.say(ended(RunId::from_bytes([1; 16]), 0)).await;
    assert_eq!(node.closed().await, PROTOCOL);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings() {
    let gateway = TestGateway::start().await;
    let device = Device::new("mallory");
    device.pair(&gateway).await;
    let mut node = device.ready(&gateway).await;
    for number in 0..1000 {
        node.send(&ToGateway::Ping { number }).await;
    }
    assert_eq!(node.closed().await, PROTOCOL);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_no_messages_or_do_not_open() {
    let gateway = TestGateway::start().await;
    let device = Device::new("mallory");
    device.pair(&gateway).await;
    let mut node = device.ready(&gateway).await;
    node.write_plain(b"\xff\xff garbage").await;
    assert_eq!(node.closed().await, PROTOCOL);
    let mut node = device.ready(&gateway).await;
    node.write_raw(vec![0; 64]).await;
    node.closed().await;
    gateway.offline(device.id()).await;
    // And an operator's request cannot be said at all: it is no variant.
    device.ready(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_send_garbage_are_closed_without_a_word() {
    let gateway = TestGateway::start().await;
    for garbage in [
        vec![],
        vec![0; 32],
        vec![0xff; 33],
        vec![7; 5000],
        vec![0; 70_000],
    ] {
        let mut socket = dial(&gateway).await;
        socket
            .send(Message::Binary(garbage.clone().into()))
            .await
            .ok();
        // A zero ephemeral has the right length, and is refused all the same.
        let answer = tokio::time::timeout(Duration::from_secs(5), binary(&mut socket)).await;
        assert_eq!(answer.expect("not closed"), None, "{} bytes", garbage.len());
    }
    let mut socket = dial(&gateway).await;
    socket.send(Message::Text("hello".into())).await.unwrap();
    assert_eq!(binary(&mut socket).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_says_nothing_is_closed_after_ten_seconds() {
    let gateway = TestGateway::start().await;
    let mut socket = dial(&gateway).await;
    let begun = std::time::Instant::now();
    assert_eq!(binary(&mut socket).await, None);
    let took = begun.elapsed();
    assert!((9..13).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_node_is_not_upgraded() {
    let gateway = TestGateway::start().await;
    assert_eq!(refused(&gateway, &[]).await, 426);
    assert_eq!(
        refused(&gateway, &[("sec-websocket-protocol", "chat")]).await,
        426
    );
    let node = ("sec-websocket-protocol", "moltis.node.v1");
    assert_eq!(
        refused(&gateway, &[node, ("origin", "http://evil.example")]).await,
        403
    );
    assert_eq!(refused(&gateway, &[node, ("cookie", "a=b")]).await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fails_again_and_again_is_sent_away() {
    let gateway = TestGateway::start().await;
    let node = ("sec-websocket-protocol", "moltis.node.v1");
    let mut statuses = Vec::new();
    for _ in 0..60 {
        statuses.push(answered(&gateway, &[node]).await);
    }
    assert_eq!(statuses[0].0, 101);
    let sent_away = statuses.iter().find(|(status, _)| *status == 503);
    let (_, retry_after) = sent_away.unwrap_or_else(|| panic!("{statuses:?}"));
    assert!(
        retry_after.is_some_and(|seconds| seconds >= 1),
        "{statuses:?}"
    );
}

/// A proven stranger introduces itself with so much more than it has to say.
async fn introduced_with(gateway: &TestGateway, device: &Device, more: usize) -> bool {
    let mut node = device.prove(gateway).await;
    let mut introduction = device.introduction();
    introduction.capabilities = vec!["x".repeat(250); more / 250];
    node.write(&introduction).await;
    node.hear_any().await.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn before_it_is_accepted_a_frame_has_four_kibibytes() {
    let gateway = TestGateway::start().await;
    let device = Device::new("mallory");
    // It is refused, but with a verdict: pairing is off.
    assert!(introduced_with(&gateway, &device, 3000).await);
    assert!(!introduced_with(&gateway, &device, 4500).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_it_is_accepted_a_node_has_sixteen_kibibytes_and_pings_count() {
    let gateway = TestGateway::start().await;
    let device = Device::new("mallory");
    for (pings, heard) in [(40, true), (70, false)] {
        let mut node = device.prove(&gateway).await;
        node.ping(pings).await;
        node.write(&device.introduction()).await;
        assert_eq!(node.hear_any().await.is_some(), heard, "{pings}");
    }
    // Before the first message of all, too.
    for (pings, heard) in [(40, true), (70, false)] {
        let mut socket = dial(&gateway).await;
        for _ in 0..pings {
            socket.send(Message::Ping(Bytes::new())).await.ok();
        }
        let negotiated = Negotiated::from_header_values(["moltis.node.v1"]).unwrap();
        let (_, message_1) = Initiator::new(&negotiated).unwrap();
        socket.send(Message::Binary(message_1.into())).await.ok();
        assert_eq!(binary(&mut socket).await.is_some(), heard, "{pings}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_person_may_not_flood() {
    let gateway = TestGateway::start().await;
    gateway.open_pairing().await;
    let device = Device::new("mallory");
    let mut node = device.prove(&gateway).await;
    node.write(&device.introduction()).await;
    assert!(matches!(node.decision().await, Decision::Pending { .. }));
    node.ping(500).await;
    while node.hear_any().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_whose_bytes_drip_is_closed_after_ten_seconds() {
    let gateway = TestGateway::start().await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "GET /ws HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: moltis.node.v1\r\n\r\n",
        gateway.address
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let begun = std::time::Instant::now();
    // A frame of 32 bytes whose header comes whole and whose bytes come one by one.
    let drip = async {
        writer.write_all(&[0x82, 0xa0, 0, 0, 0, 0]).await.ok();
        while writer.write_all(&[1]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let closed = async {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.ok(); // a reset is an end too
    };
    tokio::select! {
        () = closed => {}
        () = drip => {}
        () = tokio::time::sleep(PATIENCE) => panic!("it is still open"),
    }
    assert!(
        begun.elapsed() >= Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
}

/// Sends the head of a request to `/ws` and returns the status of the answer.
async fn status_of(gateway: &TestGateway, version: &str, headers: &[&str]) -> String {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "GET /ws {version}\r\nhost: gw\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-protocol: moltis.node.v1\r\n{}\r\n\r\n",
        headers.join("\r\n")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_one_key_and_no_body() {
    let gateway = TestGateway::start().await;
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    let new = "HTTP/1.1";
    assert_eq!(status_of(&gateway, new, &[key]).await, "101");
    assert_eq!(status_of(&gateway, "HTTP/1.0", &[key]).await, "426");
    for headers in [
        &[key, key][..],
        &["sec-websocket-key: a"],
        &[],
        &[key, "content-length: 5"],
        &[key, "transfer-encoding: chunked"],
    ] {
        let status = status_of(&gateway, new, headers).await;
        assert_eq!(status, "426", "{headers:?}");
    }
}
