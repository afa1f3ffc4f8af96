//! One handshake from the first Noise message to the verdict, with room for an adversary.

use std::error::Error;

use moltis_identity::noise::{Channel, Initiator, Opener, Responder, Sealer};
use moltis_identity::{SecretKey, StrictVerifier, random};
use moltis_proto::handshake::gateway::{GatewayHandshake, VerifiedNode};
use moltis_proto::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{
    Allowance, Epoch, Intent, Introduction, PolicyMode, SessionLimits, Verdict,
};
use moltis_proto::message::Windows;
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::telemetry::Platform;
use moltis_proto::version::LedgerRange;
use moltis_proto::{
    BootId, DeviceId, InstanceId, Labels, NodeId, NodeName, Nonce, Refusal, RequestId, Subprotocol,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The six messages, in the order in which they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    Message1,
    Message2,
    GatewayProof,
    NodeProof,
    Introduction,
    Verdict,
}

impl Step {
    pub(crate) const ALL: [Self; 6] = [
        Self::Message1,
        Self::Message2,
        Self::GatewayProof,
        Self::NodeProof,
        Self::Introduction,
        Self::Verdict,
    ];
}

/// Where the adversary sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Layer {
    /// Outside of the channel: sees frames.
    Wire,
    /// At the other end of two channels: sees messages and seals them anew.
    Plain,
}

/// What the adversary does to each message.
pub(crate) type Adversary<'a> = dyn FnMut(Step, Layer, &mut Vec<u8>) + 'a;

/// Everything that two ends bring along.
#[derive(Debug, Clone)]
pub(crate) struct Meeting {
    pub(crate) subprotocol: Subprotocol,
    pub(crate) gateway: SecretKey,
    pub(crate) node: SecretKey,
    pub(crate) device_id: DeviceId,
    pub(crate) gateway_ledgers: LedgerRange,
    pub(crate) node_ledgers: LedgerRange,
    pub(crate) pin: Pin,
    pub(crate) intent: Intent,
    pub(crate) answer: Answer,
}

/// What the gateway makes of a verified node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Accept,
    Pend,
    Refuse(Refusal),
}

/// A handshake that came to its end.
#[derive(Debug)]
pub(crate) struct Met {
    pub(crate) verified: VerifiedNode,
    pub(crate) decision: Decision,
    pub(crate) node: NodeHandshake,
}

/// A handshake that did not, and where.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) step: Step,
    pub(crate) error: Box<dyn Error>,
}

impl Meeting {
    pub(crate) fn new(subprotocol: Subprotocol) -> Self {
        let gateway = SecretKey::generate();
        Self {
            subprotocol,
            pin: Pin::Key(gateway.public_key()),
            gateway,
            node: SecretKey::generate(),
            device_id: DeviceId::from_bytes(random::bytes()),
            gateway_ledgers: LedgerRange::CURRENT,
            node_ledgers: LedgerRange::CURRENT,
            intent: Intent::Pair,
            answer: Answer::Pend,
        }
    }

    /// Returns node and gateway on a channel of their own.
    pub(crate) fn channels(&self) -> (Channel, Channel) {
        let negotiated = negotiated(self.subprotocol);
        let (initiator, message_1) = Initiator::new(&negotiated).unwrap();
        let responder = Responder::new(&negotiated).unwrap();
        let (gateway, message_2) = responder.respond(&message_1).unwrap();
        (initiator.finish(&message_2).unwrap(), gateway)
    }

    pub(crate) fn claim(&self) -> NodeClaim {
        NodeClaim {
            device_id: self.device_id,
            instance_id: InstanceId::from_bytes([2; 16]),
            boot_id: BootId::from_bytes([3; 16]),
            intent: self.intent,
            ledgers: self.node_ledgers,
        }
    }

    /// Runs the whole of it with nobody in between.
    pub(crate) fn honest(&self) -> Result<Met, Broken> {
        self.run(&mut |_, _, _| {})
    }

    /// Runs the whole of it.
    pub(crate) fn run(&self, adversary: &mut Adversary<'_>) -> Result<Met, Broken> {
        let negotiated = negotiated(self.subprotocol);
        let (initiator, mut message_1) = Initiator::new(&negotiated).unwrap();
        let responder = Responder::new(&negotiated).unwrap();
        adversary(Step::Message1, Layer::Wire, &mut message_1);
        let (gateway, mut message_2) = responder
            .respond(&message_1)
            .map_err(|error| Broken::at(Step::Message1, error))?;
        adversary(Step::Message2, Layer::Wire, &mut message_2);
        let node = initiator
            .finish(&message_2)
            .map_err(|error| Broken::at(Step::Message2, error))?;

        let mut down = Road::new(self.subprotocol, gateway.sealer, node.opener);
        let mut up = Road::new(self.subprotocol, node.sealer, gateway.opener);
        let (mut gateway, proof) = GatewayHandshake::new(
            gateway.binding,
            &self.gateway,
            &StrictVerifier,
            self.gateway_ledgers,
            nonce(),
            nonce(),
        );
        let mut node = NodeHandshake::new(node.binding, self.claim(), self.pin);

        let step = Step::GatewayProof;
        let proof = down.carry(step, &proof, adversary)?;
        let proof = node
            .handle_gateway_proof(proof, &self.node, &StrictVerifier, nonce())
            .map_err(|error| Broken::at(step, error))?;
        let step = Step::NodeProof;
        let proof = up.carry(step, &proof, adversary)?;
        gateway
            .handle_proof(proof, &StrictVerifier)
            .map_err(|error| Broken::at(step, error))?;
        let step = Step::Introduction;
        let words = up.carry(step, &introduction(), adversary)?;
        let verified = gateway
            .handle_introduction(words)
            .map_err(|error| Broken::at(step, error))?;
        let step = Step::Verdict;
        let verdict = down.carry(step, &self.answer.verdict(&verified), adversary)?;
        let decision = node
            .handle_verdict(verdict, &StrictVerifier)
            .map_err(|error| Broken::at(step, error))?;
        Ok(Met {
            verified,
            decision,
            node,
        })
    }
}

impl Answer {
    fn verdict(self, verified: &VerifiedNode) -> Verdict {
        match self {
            Self::Accept => accepted(verified),
            Self::Pend => verified.pending(RequestId::from_bytes([9; 16]), 60_000),
            Self::Refuse(code) => Verdict::Refused { code },
        }
    }
}

impl Broken {
    fn at(step: Step, error: impl Error + 'static) -> Self {
        Self {
            step,
            error: Box::new(error),
        }
    }
}

/// One direction of the channel.
struct Road {
    subprotocol: Subprotocol,
    sealer: Sealer,
    opener: Opener,
    allowance: Allowance,
}

impl Road {
    fn new(subprotocol: Subprotocol, sealer: Sealer, opener: Opener) -> Self {
        Self {
            subprotocol,
            sealer,
            opener,
            allowance: Allowance::new(),
        }
    }

    fn carry<T: Serialize + DeserializeOwned>(
        &mut self,
        step: Step,
        message: &T,
        adversary: &mut Adversary<'_>,
    ) -> Result<T, Broken> {
        let codec = self.subprotocol.codec();
        let mut plaintext = codec.encode(message).unwrap();
        adversary(step, Layer::Plain, &mut plaintext);
        let mut frame = Vec::new();
        self.sealer.seal(&plaintext, &mut frame).unwrap();
        adversary(step, Layer::Wire, &mut frame);

        let mut opened = Vec::new();
        self.allowance
            .take(frame.len())
            .map_err(|error| Broken::at(step, error))?;
        self.opener
            .open(&frame, &mut opened)
            .map_err(|error| Broken::at(step, error))?;
        codec
            .decode(&opened)
            .map_err(|error| Broken::at(step, error))
    }
}

pub(crate) fn negotiated(subprotocol: Subprotocol) -> Negotiated {
    Negotiated::from_header_values([subprotocol.name()]).unwrap()
}

pub(crate) fn nonce() -> Nonce {
    Nonce::from_bytes(random::bytes())
}

pub(crate) fn introduction() -> Introduction {
    Introduction {
        node_id: NodeId::new("box").unwrap(),
        name: NodeName::new("Build Server").unwrap(),
        labels: Labels::default(),
        platform: Platform {
            os: "linux".to_owned(),
            ..Platform::default()
        },
        version: "0.1.0".to_owned(),
        user: "build".to_owned(),
        working_dir: "/home/build".to_owned(),
        timeout_ms: 300_000,
        policy: PolicyMode::Full,
        env_allow: Vec::new(),
        capabilities: Vec::new(),
    }
}

pub(crate) fn accepted(verified: &VerifiedNode) -> Verdict {
    let epoch = Epoch {
        incarnation: 1,
        counter: 1,
    };
    let windows = Windows {
        run_bytes: 1 << 20,
        connection_bytes: 8 << 20,
        stdin_bytes: 256 << 10,
        chunk_bytes_max: 60 << 10,
    };
    verified.accepted(epoch, windows, SessionLimits::STANDARD)
}
