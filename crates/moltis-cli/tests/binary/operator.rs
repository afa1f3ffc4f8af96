//! A node that says it is more than a node. It holds a key of its own and speaks JSON, so that it
//! can say what no type of ours would let it say.

use std::net::TcpStream;

use moltis_identity::noise::{Channel, Initiator};
use moltis_identity::{SecretKey, StrictVerifier, random};
use moltis_proto::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{Intent, Introduction};
use moltis_proto::version::LedgerRange;
use moltis_proto::{BootId, Codec, DeviceId, InstanceId, NodeId, NodeName, Nonce};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::{IntoClientRequest as _, client};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use crate::harness::{Gateway, Home, LONG};

const SUBPROTOCOL: &str = "moltis.node.v1+json";

/// A device that says whatever a test wants.
struct Claimant {
    secret: SecretKey,
    id: DeviceId,
}

impl Claimant {
    fn new() -> Self {
        Self {
            secret: SecretKey::generate(),
            id: DeviceId::from_bytes(random::bytes()),
        }
    }

    /// What an honest node says of itself.
    fn introduction() -> Value {
        let id = NodeId::new("mallory").unwrap();
        let name = NodeName::new("mallory").unwrap();
        serde_json::to_value(Introduction::new(id, name)).unwrap()
    }

    /// Connects, proves its key, and introduces itself like this.
    fn connect(&self, gateway: &Gateway<'_>, introduction: &Value) -> Connection {
        let mut request = gateway.ws().into_client_request().unwrap();
        let header = SUBPROTOCOL.parse().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", header);
        let stream = TcpStream::connect(&gateway.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let (mut socket, _) = client(request, stream).unwrap();
        let negotiated = [SUBPROTOCOL];
        let negotiated =
            moltis_proto::subprotocol::Negotiated::from_header_values(negotiated).unwrap();
        let (initiator, message) = Initiator::new(&negotiated).unwrap();
        socket.send(Message::Binary(message.into())).unwrap();
        let answer = binary(&mut socket).unwrap();
        let channel = initiator.finish(&answer).unwrap();
        let claim = NodeClaim {
            device_id: self.id,
            instance_id: InstanceId::from_bytes(random::bytes()),
            boot_id: BootId::from_bytes([1; 16]),
            intent: Intent::Pair,
            ledgers: LedgerRange::CURRENT,
        };
        let handshake = NodeHandshake::new(channel.binding, claim, Pin::FirstUse);
        let mut connection = Connection {
            socket,
            channel,
            handshake,
        };
        let proof = serde_json::from_value(connection.hear().unwrap()).unwrap();
        let nonce = Nonce::from_bytes(random::bytes());
        let answered =
            connection
                .handshake
                .handle_gateway_proof(proof, &self.secret, &StrictVerifier, nonce);
        connection.say(&serde_json::to_value(answered.unwrap()).unwrap());
        connection.say(introduction);
        connection
    }
}

/// One connection of it.
struct Connection {
    socket: WebSocket<TcpStream>,
    channel: Channel,
    handshake: NodeHandshake,
}

impl Connection {
    fn say(&mut self, message: &Value) {
        let (plain, mut sealed) = (Codec::Json.encode(message).unwrap(), Vec::new());
        self.channel.sealer.seal(&plain, &mut sealed).unwrap();
        // A gateway that has had enough may have closed already.
        self.socket.send(Message::Binary(sealed.into())).ok();
    }

    /// Returns what the gateway says next; `None` once it has closed.
    fn hear(&mut self) -> Option<Value> {
        let (sealed, mut plain) = (binary(&mut self.socket)?, Vec::new());
        self.channel.opener.open(&sealed, &mut plain).unwrap();
        Some(serde_json::from_slice(&plain).unwrap())
    }

    fn decision(&mut self) -> Decision {
        let verdict = serde_json::from_value(self.hear().unwrap()).unwrap();
        let decided = self.handshake.handle_verdict(verdict, &StrictVerifier);
        decided.unwrap()
    }

    /// Returns what it hears before the gateway closes.
    fn rest(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.hear()).collect()
    }
}

/// Returns the next binary message; `None` once the peer has closed.
fn binary(socket: &mut WebSocket<TcpStream>) -> Option<Vec<u8>> {
    loop {
        match socket.read() {
            Ok(Message::Binary(bytes)) => return Some(bytes.into()),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// A request for a run on the gateway's own machine, in the words in which a gateway asks a node.
fn start(mark: &str) -> Value {
    json!({"run": {"start": {
        "run_id": "0190a3c0-0000-7000-8000-000000000001",
        "digest": "0".repeat(64),
        "spec": {
            "command": {"shell": format!("echo done > {mark}")},
            "cwd": null, "env": {}, "timeout_ms": null, "grace_ms": 0, "stdin": "null", "tty": null,
        },
    }}})
}

#[test]
fn a_node_that_says_that_it_is_an_operator_is_closed_and_gets_nothing() {
    let home = Home::new();
    let gateway = home.gateway();
    let claimant = Claimant::new();
    let honest = Claimant::introduction();

    // Nobody is introduced as anything but a node, before it is approved and after.
    let roles = [json!("operator"), json!(["node", "operator"])];
    let claims = roles.iter().flat_map(|role| {
        ["role", "roles", "scopes", "principal", "client_id"].map(|word| {
            let mut claim = honest.clone();
            claim[word] = role.clone();
            claim
        })
    });
    let claims: Vec<_> = claims.collect();
    let closed_for = |message: &Value| {
        let heard = claimant.connect(&gateway, message).rest();
        let closed = json!({"close": {"code": "protocol"}});
        assert!(
            heard.is_empty() || heard == [closed.clone()],
            "{message}: {heard:?}"
        );
    };
    home.ok(["node", "pairing", "enable"]);
    claims.iter().for_each(closed_for);
    assert_eq!(home.json(["node", "pending", "--json"]), json!([]));

    let mut waiting = claimant.connect(&gateway, &honest);
    let decision = waiting.decision();
    assert!(matches!(decision, Decision::Pending { .. }), "{decision:?}");
    let pending = home.json(["node", "pending", "--json"]);
    home.ok([
        "node",
        "approve",
        pending[0]["id"].as_str().unwrap(),
        "--yes",
    ]);
    let decision = waiting.decision();
    assert!(
        matches!(decision, Decision::Accepted { .. }),
        "{decision:?}"
    );
    claims.iter().for_each(closed_for);

    // What a gateway says to nodes is no word that a node has.
    let mark = home.user().join("mark");
    let orders = [
        start(mark.to_str().unwrap()),
        json!({"run": {"cancel": {"run_id": "0190a3c0-0000-7000-8000-000000000001", "grace_ms": 0}}}),
        json!({"approve": {"id": "mallory"}}),
        json!({"node.invoke": {"node": "local", "command": "true"}}),
    ];
    for order in orders {
        let mut connection = claimant.connect(&gateway, &honest);
        let decision = connection.decision();
        assert!(
            matches!(decision, Decision::Accepted { .. }),
            "{decision:?}"
        );
        connection.say(&order);
        let last = connection.rest().pop();
        let code = last.as_ref().map(|last| &last["close"]["code"]);
        assert_eq!(code, Some(&json!("protocol")), "{order}: {last:?}");
    }
    assert_eq!(home.json(["runs", "list", "--json"]), json!([]));
    assert!(!mark.exists(), "it has run");

    // And its key opens no other door.
    let key = claimant.secret.public_key();
    for bearer in [
        claimant.id.to_string(),
        moltis_identity::Fingerprint::of(&key).to_string(),
    ] {
        let status = crate::api::status_with(&gateway, "GET /api/v1/nodes", &bearer);
        assert_eq!(status, 401, "{bearer}");
    }
}
