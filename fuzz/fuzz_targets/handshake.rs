//! Both machines of the handshake, with a stranger between them who lets messages through, changes
//! them, says them twice or too early, and makes up others. Trust comes to nobody else than an honest
//! peer, and a machine that has failed once says nothing more.
//!
//! Signatures are a checksum that only the honest ends of this program make: fast, and a stranger does
//! not guess it. That the true ones are verified strictly is `moltis-identity`'s test.
#![no_main]

use std::cell::RefCell;
use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_identity::StrictVerifier;
use moltis_proto::handshake::gateway::{GatewayHandshake, VerifiedNode};
use moltis_proto::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{
    Allowance, Binding, Epoch, HandshakeError, Intent, Introduction, NodeProof, PolicyMode,
    SessionLimits, Signer, Transcript, Verdict, Verifier,
};
use moltis_proto::key::Digest;
use moltis_proto::message::Windows;
use moltis_proto::telemetry::Platform;
use moltis_proto::version::{Ledger, LedgerRange};
use moltis_proto::{
    BootId, Codec, DeviceId, InstanceId, Labels, Nonce, PublicKey, RequestId, Signature,
    Subprotocol,
};

/// Everything that an honest end has signed in this story.
#[derive(Default)]
struct Signed(RefCell<HashSet<(PublicKey, Vec<u8>)>>);

impl Verifier for Signed {
    fn verify(&self, key: &PublicKey, transcript: &Transcript, signature: &Signature) -> bool {
        let signed = self.0.borrow();
        let genuine = signed.contains(&(*key, transcript.as_bytes().to_vec()));
        genuine && *signature == sign(transcript)
    }

    fn is_sound(&self, key: &PublicKey) -> bool {
        key.as_bytes()[0] != 0
    }

    fn sha256(&self, parts: &[&[u8]]) -> Digest {
        StrictVerifier.sha256(parts)
    }
}

fn sign(transcript: &Transcript) -> Signature {
    let digest = StrictVerifier.sha256(&[transcript.as_bytes()]);
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(digest.as_bytes());
    Signature::from_bytes(bytes)
}

struct Honest<'a> {
    key: PublicKey,
    signed: &'a Signed,
}

impl Signer for Honest<'_> {
    fn public_key(&self) -> PublicKey {
        self.key
    }

    fn sign(&self, transcript: &Transcript) -> Signature {
        let mut signed = self.signed.0.borrow_mut();
        signed.insert((self.key, transcript.as_bytes().to_vec()));
        sign(transcript)
    }
}

const GATEWAY: PublicKey = PublicKey::from_bytes([1; 32]);
const NODE: PublicKey = PublicKey::from_bytes([2; 32]);

const CLAIM: NodeClaim = NodeClaim {
    device_id: DeviceId::from_bytes([1; 16]),
    instance_id: InstanceId::from_bytes([2; 16]),
    boot_id: BootId::from_bytes([3; 16]),
    intent: Intent::Pair,
    ledgers: LedgerRange::CURRENT,
};

const ACCEPTED: Verdict = Verdict::Accepted {
    epoch: Epoch {
        incarnation: 1,
        counter: 2,
    },
    windows: Windows {
        run_bytes: 4096,
        connection_bytes: 65536,
        stdin_bytes: 1024,
        chunk_bytes_max: 1024,
    },
    limits: SessionLimits::STANDARD,
    ledger: Ledger(2),
};

fn introduction() -> Introduction {
    Introduction {
        node_id: "box".parse().expect("a node id"),
        name: "Box".parse().expect("a name"),
        labels: Labels::default(),
        platform: Platform {
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            version: "Debian 13".to_owned(),
            kernel: "6.12".to_owned(),
            hostname: "box".to_owned(),
        },
        version: "0.1.0".to_owned(),
        user: "ada".to_owned(),
        working_dir: "/home/ada".to_owned(),
        timeout_ms: 60_000,
        policy: PolicyMode::Full,
        env_allow: Vec::new(),
        capabilities: Vec::new(),
    }
}

/// The two ends, and what has gone between them.
struct Story<'a> {
    codec: Codec,
    signed: &'a Signed,
    gateway: GatewayHandshake,
    node: NodeHandshake,
    /// Every message that an honest end has said, as bytes.
    said: Vec<Vec<u8>>,
    gateway_failed: bool,
    node_failed: bool,
    /// What the node has sent as its proof.
    node_proof: Option<NodeProof>,
    /// What the gateway has taken for the node's proof.
    proof_taken: Option<NodeProof>,
    verified: Option<VerifiedNode>,
    decisions: usize,
    allowance: Allowance,
    allowed: bool,
}

impl Story<'_> {
    /// Gives a frame to the gateway. A driver closes after the first error; this one goes on, and
    /// nothing may come of it.
    fn to_gateway(&mut self, frame: &[u8], as_introduction: bool) {
        self.allowed &= self.allowance.take(frame.len()).is_ok();
        if as_introduction {
            let Ok(introduction) = self.codec.decode::<Introduction>(frame) else {
                return;
            };
            match self.gateway.handle_introduction(introduction.clone()) {
                Ok(node) => {
                    assert!(!self.gateway_failed && self.verified.is_none());
                    let proof = self.proof_taken.as_ref().expect("a proof came before");
                    assert_eq!(node.node_key(), proof.node_key);
                    assert_eq!(node.device_id(), proof.device_id);
                    assert_eq!(node.introduction(), &introduction);
                    self.verified = Some(node);
                }
                Err(error) => self.gateway_fails(&error),
            }
        } else {
            let Ok(proof) = self.codec.decode::<NodeProof>(frame) else {
                return;
            };
            match self.gateway.handle_proof(proof.clone(), self.signed) {
                Ok(()) => {
                    assert!(!self.gateway_failed && self.proof_taken.is_none());
                    // Word for word what the honest node said, on this channel, to this challenge.
                    assert_eq!(Some(&proof), self.node_proof.as_ref());
                    self.proof_taken = Some(proof);
                }
                Err(error) => self.gateway_fails(&error),
            }
        }
    }

    fn gateway_fails(&mut self, error: &HandshakeError) {
        if self.gateway_failed || self.verified.is_some() {
            assert!(matches!(error, HandshakeError::OutOfTurn { .. }));
        }
        self.gateway_failed = true;
    }

    /// Gives a frame to the node.
    fn to_node(&mut self, frame: &[u8], as_verdict: bool) {
        if as_verdict {
            let Ok(verdict) = self.codec.decode::<Verdict>(frame) else {
                return;
            };
            match self.node.handle_verdict(verdict.clone(), self.signed) {
                Ok(decision) => {
                    assert!(!self.node_failed && self.node_proof.is_some());
                    self.decisions += 1;
                    if let Decision::Accepted { ledger, .. } = &decision {
                        let proof = self.node_proof.as_ref();
                        assert_eq!(Some(*ledger), proof.map(|proof| proof.ledger));
                    }
                    if let (Decision::Pending { code, .. }, Some(node)) =
                        (&decision, &self.verified)
                    {
                        assert_eq!(code, node.connection_code(), "both read out one code");
                    }
                    // Only `Pending` is followed by another verdict.
                    self.node_failed = !matches!(decision, Decision::Pending { .. });
                }
                Err(error) => self.node_fails(&error),
            }
        } else {
            let Ok(proof) = self.codec.decode(frame) else {
                return;
            };
            let signer = Honest {
                key: NODE,
                signed: self.signed,
            };
            let nonce = Nonce::from_bytes([7; 32]);
            let taken = self
                .node
                .handle_gateway_proof(proof, &signer, self.signed, nonce);
            match taken {
                Ok(answer) => {
                    assert!(!self.node_failed && self.node_proof.is_none());
                    assert_eq!(self.node.gateway_key(), Some(GATEWAY));
                    self.say(&answer);
                    self.node_proof = Some(answer);
                }
                Err(error) => self.node_fails(&error),
            }
        }
    }

    fn node_fails(&mut self, error: &HandshakeError) {
        if self.node_failed {
            assert!(matches!(error, HandshakeError::OutOfTurn { .. }));
        }
        self.node_failed = true;
    }

    fn say<T: serde::Serialize>(&mut self, message: &T) {
        let said = self.codec.encode(message).expect("it fits a frame");
        self.said.push(said);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let signed = Signed::default();
    let subprotocol = Subprotocol::ALL[input.below(3)];
    let binding = Binding {
        hash: [3; 32],
        subprotocol,
    };
    let signer = Honest {
        key: GATEWAY,
        signed: &signed,
    };
    let secret = Nonce::from_bytes([9; 32]);
    let (gateway, challenge) = GatewayHandshake::new(
        binding,
        &signer,
        &signed,
        LedgerRange::CURRENT,
        Nonce::from_bytes([8; 32]),
        secret,
    );
    let pin = match input.below(4) {
        0 => Pin::Key(GATEWAY),
        1 => Pin::Key(NODE),
        2 => Pin::Fingerprint(signed.sha256(&[&GATEWAY.to_ssh_wire()])),
        _ => Pin::FirstUse,
    };
    // A stranger may lead the node to another channel than the gateway's.
    let elsewhere = input.below(8) == 7;
    let node_binding = Binding {
        hash: [if elsewhere { 4 } else { 3 }; 32],
        subprotocol,
    };
    let mut story = Story {
        codec: subprotocol.codec(),
        signed: &signed,
        gateway,
        node: NodeHandshake::new(node_binding, CLAIM, pin),
        said: Vec::new(),
        gateway_failed: false,
        node_failed: false,
        node_proof: None,
        proof_taken: None,
        verified: None,
        decisions: 0,
        allowance: Allowance::new(),
        allowed: true,
    };
    story.say(&challenge);
    story.say(&introduction());
    story.say(&ACCEPTED);
    story.say(&Verdict::Pending {
        request_id: RequestId::from_bytes([5; 16]),
        expires_in_ms: 60_000,
        code_reveal: secret,
    });
    let mut steps = 0;
    while !input.is_empty() && steps < 64 {
        steps += 1;
        let which = input.byte();
        let mut frame = match input.below(4) {
            0 => input.piece(5000).to_vec(),
            _ => story.said[usize::from(which >> 2) % story.said.len()].clone(),
        };
        // What goes through is changed at most places of the hand, or not at all.
        if input.below(4) == 0 {
            for _ in 0..=input.below(3) {
                let (at, to) = (usize::from(input.short()), input.byte());
                let length = frame.len();
                if let Some(byte) = frame.get_mut(at % length.max(1)) {
                    *byte = to;
                }
            }
        }
        match which & 3 {
            0 => story.to_gateway(&frame, false),
            1 => story.to_gateway(&frame, true),
            2 => story.to_node(&frame, false),
            _ => story.to_node(&frame, true),
        }
    }
    if elsewhere {
        assert!(
            story.proof_taken.is_none(),
            "a proof of another channel counts"
        );
        assert!(
            story.node_proof.is_none(),
            "a challenge of another channel counts"
        );
    }
    if matches!(pin, Pin::Key(NODE)) {
        assert!(
            story.node_proof.is_none(),
            "another key than the pinned one counts"
        );
    }
    if !story.allowed {
        assert!(story.allowance.take(0).is_ok() && story.allowance.take(1).is_err());
    }
});
