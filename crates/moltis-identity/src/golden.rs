//! Golden vectors of whole handshakes: `moltis-proto/tests/vectors/handshake.json`.
//!
//! Two real ends with fixed keys, nonces and ephemerals, in each subprotocol. Whoever writes a
//! node in another language replays them. `cargo xtask bless` writes the file anew; without it a
//! difference is a failure.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use moltis_proto::handshake::gateway::GatewayHandshake;
use moltis_proto::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{
    Binding, Epoch, Intent, Introduction, PolicyMode, SessionLimits, Signer, Transcript,
};
use moltis_proto::message::Windows;
use moltis_proto::subprotocol::{Cipher, Negotiated};
use moltis_proto::telemetry::Platform;
use moltis_proto::version::{Ledger, LedgerRange};
use moltis_proto::{
    BootId, Codec, DeviceId, InstanceId, Labels, NodeId, NodeName, Nonce, PublicKey, RequestId,
    Signature,
};
use serde::Serialize;

use crate::noise::{self, Opener, Sealer};
use crate::{Fingerprint, SecretKey, StrictVerifier, hex, verify};

/// What both ends speak here. The vectors stay as they are while the ledger grows.
const LEDGERS: LedgerRange = LedgerRange {
    min: Ledger(1),
    max: Ledger(1),
};

#[derive(Serialize)]
struct Vectors {
    about: [&'static str; 6],
    handshakes: Vec<Handshake>,
    weak_keys: Vec<String>,
}

/// Everything that happens in one handshake, in its order. Bytes are hexadecimal digits.
#[derive(Serialize)]
struct Handshake {
    name: &'static str,
    offered: String,
    chosen: &'static str,
    codec: &'static str,
    noise_pattern: &'static str,
    noise_prologue: String,
    node_ephemeral_secret: String,
    gateway_ephemeral_secret: String,
    noise_message_1: String,
    noise_message_2: String,
    h: String,
    gateway_seed: String,
    gateway_key: String,
    gateway_fingerprint: String,
    node_seed: String,
    node_key: String,
    node_fingerprint: String,
    nonce_g: String,
    code_secret: String,
    nonce_n: String,
    gateway_signs: String,
    node_signs: String,
    connection_code: String,
    frames: Vec<Frame>,
}

#[derive(Serialize)]
struct Frame {
    message: &'static str,
    from: &'static str,
    /// Place among the frames of its direction: the Noise nonce.
    number: u64,
    /// The message as JSON, whatever the codec.
    reads: serde_json::Value,
    plaintext: String,
    sealed: String,
}

const ABOUT: [&str; 6] = [
    "Whole handshakes of the Moltis node protocol with fixed keys, nonces and ephemerals; see docs/protocol.md.",
    "All bytes are hexadecimal digits. *_seed is an Ed25519 private key (RFC 8032), *_ephemeral_secret an X25519 one.",
    "gateway_signs and node_signs are the exact bytes under the signatures in gateway_proof and node_proof.",
    "h is the Noise handshake hash. A frame's number is the Noise nonce of its direction; sealed is one WebSocket message.",
    "After `pending` a second verdict follows on the same connection.",
    "weak_keys are encodings that a verifier must refuse as public keys, whatever the signature.",
];

#[test]
fn handshakes_are_byte_for_byte_those_of_the_vectors() {
    let vectors = Vectors {
        about: ABOUT,
        handshakes: vec![
            handshake("pairing, postcard", "moltis.node.v1", Intent::Pair),
            handshake(
                "reconnecting, postcard with AES",
                "moltis.node.v1+aes,moltis.node.v1",
                Intent::Connect,
            ),
            handshake("pairing, JSON", "moltis.node.v1+json", Intent::Pair),
        ],
        weak_keys: verify::SMALL_ORDER.map(ToOwned::to_owned).to_vec(),
    };
    let mut text = serde_json::to_string_pretty(&vectors).unwrap();
    text.push('\n');
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../moltis-proto/tests/vectors/handshake.json");
    if std::env::var_os("MOLTIS_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    let different = stored
        .lines()
        .zip(text.lines())
        .find(|(old, new)| old != new);
    assert!(
        stored == text,
        "the wire has changed: {different:?}; a struct that has been on the wire never changes, \
         and a new message needs a number in the ledger. `cargo xtask bless` writes {}",
        path.display()
    );
}

fn handshake(name: &'static str, offered: &str, intent: Intent) -> Handshake {
    let negotiated = Negotiated::from_header_values([offered]).unwrap();
    let subprotocol = negotiated.chosen;
    let codec = subprotocol.codec();
    let (node_e, gateway_e) = ([0x11; 32], [0x22; 32]);
    let (message_1, message_2, node, gateway) =
        noise::tests::with_ephemerals(&negotiated, &node_e, &gateway_e);
    let mut down = Road::new("gateway", codec, gateway.sealer, node.opener);
    let mut up = Road::new("node", codec, node.sealer, gateway.opener);

    let (gateway_seed, node_seed) = ([0x33; 32], [0x44; 32]);
    let gateway_key = Recorder::new(gateway_seed);
    let node_key = Recorder::new(node_seed);
    let nonces = [0x55, 0x66, 0x77].map(|byte| Nonce::from_bytes([byte; 32]));
    let [nonce_g, code_secret, nonce_n] = nonces;

    let (mut gateway_end, gateway_proof) = GatewayHandshake::new(
        gateway.binding,
        &gateway_key,
        &StrictVerifier,
        LEDGERS,
        nonce_g,
        code_secret,
    );
    let pin = Pin::Key(gateway_key.public_key());
    let mut node_end = NodeHandshake::new(node.binding, claim(intent), pin);
    let mut frames = vec![down.carry("gateway_proof", &gateway_proof)];
    let node_proof = node_end
        .handle_gateway_proof(gateway_proof, &node_key, &StrictVerifier, nonce_n)
        .unwrap();
    frames.push(up.carry("node_proof", &node_proof));
    gateway_end
        .handle_proof(node_proof, &StrictVerifier)
        .unwrap();
    frames.push(up.carry("introduction", &introduction()));
    let verified = gateway_end.handle_introduction(introduction()).unwrap();
    let code = verified.connection_code().to_string();
    if intent == Intent::Pair {
        let pending = verified.pending(RequestId::from_bytes([0x88; 16]), 3_600_000);
        frames.push(down.carry("verdict", &pending));
        match node_end.handle_verdict(pending, &StrictVerifier).unwrap() {
            Decision::Pending { code: shown, .. } => assert_eq!(shown.as_str(), code),
            other => panic!("{other:?}"),
        }
    }
    let accepted = verified.accepted(EPOCH, WINDOWS, SessionLimits::STANDARD);
    frames.push(down.carry("verdict", &accepted));
    node_end.handle_verdict(accepted, &StrictVerifier).unwrap();

    Handshake {
        name,
        offered: negotiated.offered.clone(),
        chosen: subprotocol.name(),
        codec: match codec {
            Codec::Postcard => "postcard",
            Codec::Json => "json",
        },
        noise_pattern: match subprotocol.cipher() {
            Cipher::ChaChaPoly => "Noise_NN_25519_ChaChaPoly_BLAKE2s",
            Cipher::AesGcm => "Noise_NN_25519_AESGCM_BLAKE2s",
        },
        noise_prologue: hex::encode(&negotiated.prologue()),
        node_ephemeral_secret: hex::encode(&node_e),
        gateway_ephemeral_secret: hex::encode(&gateway_e),
        noise_message_1: hex::encode(&message_1),
        noise_message_2: hex::encode(&message_2),
        h: handshake_hash(&node.binding, &gateway.binding),
        gateway_seed: hex::encode(&gateway_seed),
        gateway_key: hex::encode(gateway_key.public_key().as_bytes()),
        gateway_fingerprint: Fingerprint::of(&gateway_key.public_key()).to_string(),
        node_seed: hex::encode(&node_seed),
        node_key: hex::encode(node_key.public_key().as_bytes()),
        node_fingerprint: Fingerprint::of(&node_key.public_key()).to_string(),
        nonce_g: hex::encode(nonce_g.as_bytes()),
        code_secret: hex::encode(code_secret.as_bytes()),
        nonce_n: hex::encode(nonce_n.as_bytes()),
        gateway_signs: gateway_key.signed(),
        node_signs: node_key.signed(),
        connection_code: code,
        frames,
    }
}

const EPOCH: Epoch = Epoch {
    incarnation: 0x0102_0304,
    counter: 5,
};

const WINDOWS: Windows = Windows {
    run_bytes: 1_048_576,
    connection_bytes: 8_388_608,
    stdin_bytes: 262_144,
    chunk_bytes_max: 45_056,
};

fn claim(intent: Intent) -> NodeClaim {
    NodeClaim {
        device_id: DeviceId::from_bytes([0x99; 16]),
        instance_id: InstanceId::from_bytes([0xaa; 16]),
        boot_id: BootId::from_bytes([0xbb; 16]),
        intent,
        ledgers: LEDGERS,
    }
}

fn introduction() -> Introduction {
    let labels = [("gpu", "true"), ("zone/rack", "")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Introduction {
        node_id: NodeId::new("3f9c0a1e-0000-4000-8000-000000000000").unwrap(),
        name: NodeName::new("Büro 2").unwrap(),
        labels: Labels::new(BTreeMap::from(labels)).unwrap(),
        platform: Platform {
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            version: "Debian 12".to_owned(),
            kernel: "6.1.0".to_owned(),
            hostname: "box".to_owned(),
        },
        version: "0.1.0".to_owned(),
        user: "build".to_owned(),
        working_dir: "/home/build".to_owned(),
        timeout_ms: 300_000,
        policy: PolicyMode::AllowList,
        env_allow: vec!["BUILD_ID".to_owned()],
        capabilities: Vec::new(),
    }
}

fn handshake_hash(node: &Binding, gateway: &Binding) -> String {
    assert_eq!(node, gateway);
    hex::encode(&node.hash)
}

/// Signs, and remembers what.
struct Recorder {
    key: SecretKey,
    signed: RefCell<Vec<String>>,
}

impl Recorder {
    fn new(seed: [u8; 32]) -> Self {
        Self {
            key: SecretKey::from_seed(seed),
            signed: RefCell::default(),
        }
    }

    fn signed(&self) -> String {
        let signed = self.signed.borrow();
        assert_eq!(signed.len(), 1, "a key signs once in a handshake");
        signed[0].clone()
    }
}

impl Signer for Recorder {
    fn public_key(&self) -> PublicKey {
        self.key.public_key()
    }

    fn sign(&self, transcript: &Transcript) -> Signature {
        self.signed
            .borrow_mut()
            .push(hex::encode(transcript.as_bytes()));
        self.key.sign(transcript)
    }
}

/// One direction of the channel.
struct Road {
    from: &'static str,
    codec: Codec,
    number: u64,
    sealer: Sealer,
    opener: Opener,
}

impl Road {
    fn new(from: &'static str, codec: Codec, sealer: Sealer, opener: Opener) -> Self {
        Self {
            from,
            codec,
            number: 0,
            sealer,
            opener,
        }
    }

    fn carry<T: Serialize>(&mut self, message: &'static str, value: &T) -> Frame {
        let plaintext = self.codec.encode(value).unwrap();
        let (mut sealed, mut opened) = (Vec::new(), Vec::new());
        self.sealer.seal(&plaintext, &mut sealed).unwrap();
        self.opener.open(&sealed, &mut opened).unwrap();
        assert_eq!(opened, plaintext);
        let number = self.number;
        self.number += 1;
        Frame {
            message,
            from: self.from,
            number,
            reads: serde_json::to_value(value).unwrap(),
            plaintext: hex::encode(&plaintext),
            sealed: hex::encode(&sealed),
        }
    }
}
