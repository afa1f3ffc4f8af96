//! A node built by hand from the machines, which says whatever a test wants.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{Channel, Initiator};
use moltis_identity::{SecretKey, StrictVerifier, random};
use moltis_proto::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{GatewayProof, Intent, Introduction, PolicyMode, Verdict};
use moltis_proto::key::Digest;
use moltis_proto::message::Windows;
use moltis_proto::run::{RunState, RunSummary, Totals};
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::telemetry::Platform;
use moltis_proto::version::LedgerRange;
use moltis_proto::{
    BootId, Codec, DeviceId, FromKeeper, InstanceId, JournalId, Labels, NodeId, NodeName, Nonce,
    RunId, ToGateway, ToKeeper, ToNode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::gateway::{PATIENCE, TestGateway};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub(crate) const BOOT: BootId = BootId::from_bytes([1; 16]);
pub(crate) const JOURNAL: JournalId = JournalId::from_bytes([2; 16]);

/// A run as a node lists it.
pub(crate) fn listed(run_id: RunId, digest: Digest, state: RunState) -> RunSummary {
    RunSummary {
        run_id,
        digest,
        journal_id: JOURNAL,
        state,
        totals: Totals::default(),
        stdin: 0,
    }
}

/// Dials `/ws` with one subprotocol.
pub(crate) async fn dial(gateway: &TestGateway) -> Socket {
    dial_as(gateway, "moltis.node.v1").await
}

async fn dial_as(gateway: &TestGateway, protocol: &str) -> Socket {
    let mut request = gateway.url().into_client_request().unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocol.parse().unwrap());
    Box::pin(connect_async(request)).await.unwrap().0
}

/// A device that a test plays.
pub(crate) struct Device {
    secret: SecretKey,
    id: DeviceId,
    name: String,
    protocol: &'static str,
}

impl Device {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            secret: SecretKey::generate(),
            id: DeviceId::from_bytes(random::bytes()),
            name: name.to_owned(),
            protocol: "moltis.node.v1",
        }
    }

    /// One that speaks another subprotocol.
    pub(crate) fn speaking(name: &str, protocol: &'static str) -> Self {
        Self {
            protocol,
            ..Self::new(name)
        }
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.id
    }

    /// Pairs, and leaves.
    pub(crate) async fn pair(&self, gateway: &TestGateway) {
        gateway.open_pairing().await;
        let mut node = self.knock(gateway).await;
        assert!(matches!(node.decision().await, Decision::Pending { .. }));
        gateway.approve_next().await;
        assert!(matches!(node.decision().await, Decision::Accepted { .. }));
    }

    /// Connects and is accepted; the list of runs is still to come.
    pub(crate) async fn connect(&self, gateway: &TestGateway) -> RawNode {
        let mut node = self.knock(gateway).await;
        assert!(matches!(node.decision().await, Decision::Accepted { .. }));
        node
    }

    /// Connects, and says that it holds nothing.
    pub(crate) async fn ready(&self, gateway: &TestGateway) -> RawNode {
        self.ready_with(gateway, Vec::new()).await
    }

    /// Connects, and says that it holds these.
    pub(crate) async fn ready_with(&self, gateway: &TestGateway, runs: Vec<RunSummary>) -> RawNode {
        let mut node = self.connect(gateway).await;
        node.list(BOOT, JOURNAL, runs).await;
        gateway.online(self.id).await;
        node
    }

    /// Proves itself, and waits for the verdict.
    async fn knock(&self, gateway: &TestGateway) -> RawNode {
        let mut node = self.prove(gateway).await;
        node.write(&self.introduction()).await;
        node
    }

    /// Proves itself; the introduction is still to come.
    pub(crate) async fn prove(&self, gateway: &TestGateway) -> RawNode {
        let mut socket = dial_as(gateway, self.protocol).await;
        let negotiated = Negotiated::from_header_values([self.protocol]).unwrap();
        let (initiator, message_1) = Initiator::new(&negotiated).unwrap();
        socket
            .send(Message::Binary(message_1.into()))
            .await
            .unwrap();
        let message_2 = binary(&mut socket).await.unwrap();
        let channel = initiator.finish(&message_2).unwrap();
        let claim = NodeClaim {
            device_id: self.id,
            instance_id: InstanceId::from_bytes(random::bytes()),
            boot_id: BOOT,
            intent: Intent::Pair,
            ledgers: LedgerRange::CURRENT,
        };
        let machine = NodeHandshake::new(channel.binding, claim, Pin::FirstUse);
        let mut node = RawNode {
            socket,
            channel,
            machine,
            codec: negotiated.chosen.codec(),
            windows: None,
        };
        let proof: GatewayProof = node.read().await.unwrap();
        let nonce = Nonce::from_bytes(random::bytes());
        let answer = node
            .machine
            .handle_gateway_proof(proof, &self.secret, &StrictVerifier, nonce)
            .unwrap();
        node.write(&answer).await;
        node
    }

    pub(crate) fn introduction(&self) -> Introduction {
        Introduction {
            node_id: NodeId::new(&*self.name).unwrap(),
            name: NodeName::new(&self.name).unwrap(),
            labels: Labels::default(),
            platform: Platform::default(),
            version: "0".to_owned(),
            user: "tester".to_owned(),
            working_dir: "/".to_owned(),
            timeout_ms: 0,
            policy: PolicyMode::Full,
            env_allow: Vec::new(),
            capabilities: Vec::new(),
        }
    }
}

/// A connection of a device.
pub(crate) struct RawNode {
    socket: Socket,
    channel: Channel,
    machine: NodeHandshake,
    codec: Codec,
    /// What was granted.
    pub(crate) windows: Option<Windows>,
}

impl RawNode {
    pub(crate) async fn decision(&mut self) -> Decision {
        let verdict: Verdict = self.read().await.unwrap();
        if let Verdict::Accepted { windows, .. } = &verdict {
            self.windows = Some(*windows);
        }
        self.machine
            .handle_verdict(verdict, &StrictVerifier)
            .unwrap()
    }

    pub(crate) async fn write<T: Serialize>(&mut self, message: &T) {
        let plain = self.codec.encode(message).unwrap();
        self.write_plain(&plain).await;
    }

    /// Sends any bytes, sealed.
    pub(crate) async fn write_plain(&mut self, plain: &[u8]) {
        let mut sealed = Vec::new();
        self.channel.sealer.seal(plain, &mut sealed).unwrap();
        // A gateway that has had enough may have closed already.
        self.socket.send(Message::Binary(sealed.into())).await.ok();
    }

    /// Sends any bytes, not sealed.
    pub(crate) async fn write_raw(&mut self, bytes: Vec<u8>) {
        self.socket.send(Message::Binary(bytes.into())).await.ok();
    }

    /// Sends WebSocket pings.
    pub(crate) async fn ping(&mut self, count: usize) {
        for _ in 0..count {
            // A gateway that has had enough may have closed already.
            self.socket.send(Message::Ping(Bytes::new())).await.ok();
        }
    }

    pub(crate) async fn send(&mut self, message: &ToGateway) {
        self.write(message).await;
    }

    pub(crate) async fn say(&mut self, message: FromKeeper) {
        self.send(&ToGateway::Run(message)).await;
    }

    /// Says what it holds, in one page.
    pub(crate) async fn list(
        &mut self,
        boot_id: BootId,
        journal: JournalId,
        runs: Vec<RunSummary>,
    ) {
        self.say(FromKeeper::Runs {
            boot_id,
            journals: vec![journal],
            runs,
            last: true,
        })
        .await;
    }

    /// Hangs up without a word.
    pub(crate) async fn drop_line(self, gateway: &TestGateway, device: &Device) {
        drop(self);
        gateway.offline(device.id()).await;
    }

    async fn read<T: DeserializeOwned>(&mut self) -> Option<T> {
        let frame = binary(&mut self.socket).await?;
        let mut plain = Vec::new();
        self.channel.opener.open(&frame, &mut plain).unwrap();
        Some(self.codec.decode(&plain).unwrap())
    }

    /// Returns the next message; `None` when the gateway has closed.
    pub(crate) async fn hear(&mut self) -> Option<ToNode> {
        tokio::time::timeout(PATIENCE, self.read())
            .await
            .expect("the gateway says nothing")
    }

    /// Returns whether the gateway says anything more; `None` when it has closed.
    pub(crate) async fn hear_any(&mut self) -> Option<Bytes> {
        tokio::time::timeout(PATIENCE, binary(&mut self.socket))
            .await
            .expect("the gateway says nothing")
    }

    /// Returns the next run message.
    pub(crate) async fn hear_run(&mut self) -> ToKeeper {
        loop {
            match self.hear().await.expect("the gateway has closed") {
                ToNode::Run(message) => return message,
                other => assert!(!matches!(other, ToNode::Close { .. }), "{other:?}"),
            }
        }
    }

    /// Waits for the gateway to close, and returns what it said last.
    pub(crate) async fn closed(&mut self) -> Option<ToNode> {
        let mut last = None;
        while let Some(message) = self.hear().await {
            last = Some(message);
        }
        last
    }
}

/// Returns the next binary message; `None` when the peer has closed.
pub(crate) async fn binary(socket: &mut Socket) -> Option<Bytes> {
    loop {
        match socket.next().await? {
            Ok(Message::Binary(bytes)) => return Some(bytes),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// Dials with these headers and returns the status that is answered instead of an upgrade.
pub(crate) async fn refused(gateway: &TestGateway, headers: &[(&'static str, &str)]) -> u16 {
    answered(gateway, headers).await.0
}

/// The same, with when to come back.
pub(crate) async fn answered(
    gateway: &TestGateway,
    headers: &[(&'static str, &str)],
) -> (u16, Option<u64>) {
    let mut request = gateway.url().into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tokio::time::timeout(Duration::from_secs(5), Box::pin(connect_async(request)))
        .await
        .unwrap()
    {
        Ok(_) => (101, None),
        Err(Error::Http(response)) => {
            let retry_after = response.headers().get("retry-after");
            let seconds = retry_after.map(|value| value.to_str().unwrap().parse().unwrap());
            (response.status().as_u16(), seconds)
        }
        Err(error) => panic!("{error}"),
    }
}
