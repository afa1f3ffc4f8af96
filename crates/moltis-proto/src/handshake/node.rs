//! The node's side of the handshake: know the gateway, answer its challenge, hear the verdict.
//!
//! The [`Introduction`](super::Introduction) is sent by the driver behind the proof; it needs no
//! machine. Where a pin is kept, and for how long, is the driver's matter too.

use std::mem;

use super::{
    Binding, ConnectionCode, Epoch, GatewayProof, HandshakeError, Intent, NodeProof, Proof,
    SessionLimits, Signer, Transcript, Verdict, Verifier,
};
use crate::code::Refusal;
use crate::key::{Digest, Nonce, PublicKey, Signature};
use crate::message::Windows;
use crate::version::{Ledger, LedgerRange};
use crate::{BootId, DeviceId, InstanceId, RequestId};

/// What a node knows of its gateway's key before it connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// This key and no other.
    Key(PublicKey),
    /// The key with this fingerprint: the SHA-256 of [`PublicKey::to_ssh_wire`].
    Fingerprint(Digest),
    /// Nothing: the key that comes first is trusted. The caller pins it from then on.
    FirstUse,
}

/// What a node says in its proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeClaim {
    /// Made once together with the key.
    pub device_id: DeviceId,
    /// This process.
    pub instance_id: InstanceId,
    /// This boot of the machine.
    pub boot_id: BootId,
    /// What the node wants.
    pub intent: Intent,
    /// The ledger numbers that the node speaks.
    pub ledgers: LedgerRange,
}

/// What the gateway decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Welcome: `Runs` is next.
    Accepted {
        /// This connection, for logs.
        epoch: Epoch,
        /// How much may be under way.
        windows: Windows,
        /// What the gateway expects.
        limits: SessionLimits,
        /// The ledger number of this connection.
        ledger: Ledger,
    },
    /// A person has to decide. The machine waits for another verdict; the gateway repeats this one
    /// as a sign of life.
    Pending {
        /// The request.
        request_id: RequestId,
        /// Milliseconds until it expires.
        expires_in_ms: u64,
        /// The code that the person sees on the gateway's side as well.
        code: ConnectionCode,
    },
    /// No.
    Refused(Refusal),
}

/// One handshake, as the node sees it.
#[derive(Debug)]
pub struct NodeHandshake {
    state: State,
    gateway_key: Option<PublicKey>,
}

#[derive(Debug)]
enum State {
    /// The gateway has to show its key.
    AwaitGatewayProof(Box<Begun>),
    /// Our proof is out; the gateway has to say what it makes of us.
    AwaitVerdict(Box<Sent>),
    /// A person is asked; what they decide comes as another verdict.
    AwaitDecision(Box<Sent>),
    /// Over, by a decision or by an error.
    Closed,
}

#[derive(Debug)]
struct Begun {
    binding: Binding,
    claim: NodeClaim,
    pin: Pin,
}

#[derive(Debug)]
struct Sent {
    binding: Binding,
    challenge: GatewayProof,
    node_key: PublicKey,
    nonce_n: Nonce,
    ledger: Ledger,
}

impl NodeHandshake {
    /// Begins to wait for the gateway's proof.
    pub fn new(binding: Binding, claim: NodeClaim, pin: Pin) -> Self {
        Self {
            state: State::AwaitGatewayProof(Box::new(Begun {
                binding,
                claim,
                pin,
            })),
            gateway_key: None,
        }
    }

    /// Takes step 3 and returns step 4. Nothing is signed before the gateway has proven to hold a
    /// key that fits the pin. `nonce_n` is fresh random bytes.
    ///
    /// # Errors
    /// The machine is then closed, and nothing of this node has been shown.
    pub fn handle_gateway_proof(
        &mut self,
        proof: GatewayProof,
        signer: &dyn Signer,
        verifier: &dyn Verifier,
        nonce_n: Nonce,
    ) -> Result<NodeProof, HandshakeError> {
        let begun = match mem::replace(&mut self.state, State::Closed) {
            State::AwaitGatewayProof(begun) => begun,
            other => return Err(other.out_of_turn("GatewayProof")),
        };
        let ledger = begun.check(&proof, signer.public_key(), verifier)?;
        self.gateway_key = Some(proof.gateway_key);
        let (answer, sent) = begun.answer(proof, ledger, signer, verifier, nonce_n);
        self.state = State::AwaitVerdict(Box::new(sent));
        Ok(answer)
    }

    /// Returns the gateway's key once it is proven and fits the pin.
    pub fn gateway_key(&self) -> Option<PublicKey> {
        self.gateway_key
    }

    /// Takes step 6. After [`Decision::Pending`] the same comes again now and then, as a sign of
    /// life, until a person has decided.
    ///
    /// # Errors
    /// The machine is then closed.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a message is handled once: whoever hands it over has no more use for it"
    )]
    pub fn handle_verdict(
        &mut self,
        verdict: Verdict,
        verifier: &dyn Verifier,
    ) -> Result<Decision, HandshakeError> {
        let sent = match mem::replace(&mut self.state, State::Closed) {
            State::AwaitVerdict(sent) | State::AwaitDecision(sent) => sent,
            other => return Err(other.out_of_turn("Verdict")),
        };
        match verdict {
            Verdict::Accepted {
                epoch,
                windows,
                limits,
                ledger,
            } => {
                if ledger != sent.ledger {
                    return Err(HandshakeError::LedgerChanged {
                        agreed: sent.ledger,
                        found: ledger,
                    });
                }
                Ok(Decision::Accepted {
                    epoch,
                    windows,
                    limits,
                    ledger,
                })
            }
            Verdict::Pending {
                request_id,
                expires_in_ms,
                code_reveal,
            } => {
                let code = sent.open_code(&code_reveal, verifier)?;
                self.state = State::AwaitDecision(sent);
                Ok(Decision::Pending {
                    request_id,
                    expires_in_ms,
                    code,
                })
            }
            Verdict::Refused { code } => Ok(Decision::Refused(code)),
        }
    }
}

impl State {
    fn out_of_turn(&self, found: &'static str) -> HandshakeError {
        let awaited = match self {
            Self::AwaitGatewayProof(_) => "a `GatewayProof`",
            Self::AwaitVerdict(_) => "a `Verdict`",
            Self::AwaitDecision(_) => "a decision",
            Self::Closed => "nothing more",
        };
        HandshakeError::OutOfTurn { found, awaited }
    }
}

impl Begun {
    /// Returns the ledger number to speak. The signature comes before the pin, so that a changed
    /// key is reported only when somebody really holds it.
    fn check(
        &self,
        proof: &GatewayProof,
        own_key: PublicKey,
        verifier: &dyn Verifier,
    ) -> Result<Ledger, HandshakeError> {
        if !verifier.is_sound(&proof.gateway_key) {
            return Err(HandshakeError::WeakKey {
                proof: Proof::Gateway,
            });
        }
        let transcript = Transcript::of_gateway(&self.binding, proof, verifier);
        if !verifier.verify(&proof.gateway_key, &transcript, &proof.signature) {
            return Err(HandshakeError::Signature {
                proof: Proof::Gateway,
            });
        }
        if proof.gateway_key == own_key {
            return Err(HandshakeError::OwnKey);
        }
        self.pin.check(&proof.gateway_key, verifier)?;
        let ours = self.claim.ledgers;
        let theirs = LedgerRange {
            min: proof.ledger_min,
            max: proof.ledger_max,
        };
        ours.agree(theirs)
            .ok_or(HandshakeError::NoCommonLedger { ours, theirs })
    }

    fn answer(
        self,
        challenge: GatewayProof,
        ledger: Ledger,
        signer: &dyn Signer,
        verifier: &dyn Verifier,
        nonce_n: Nonce,
    ) -> (NodeProof, Sent) {
        let node_key = signer.public_key();
        let mut proof = NodeProof {
            node_key,
            device_id: self.claim.device_id,
            instance_id: self.claim.instance_id,
            boot_id: self.claim.boot_id,
            intent: self.claim.intent,
            ledger,
            nonce_n,
            signature: Signature::from_bytes([0; 64]),
        };
        let transcript = Transcript::of_node(&self.binding, &proof, &challenge, verifier);
        proof.signature = signer.sign(&transcript);
        let sent = Sent {
            binding: self.binding,
            challenge,
            node_key,
            nonce_n,
            ledger,
        };
        (proof, sent)
    }
}

impl Pin {
    fn check(&self, found: &PublicKey, verifier: &dyn Verifier) -> Result<(), HandshakeError> {
        let fingerprint = |key: &PublicKey| verifier.sha256(&[&key.to_ssh_wire()]);
        let pinned = match self {
            Self::FirstUse => return Ok(()),
            Self::Key(key) if key == found => return Ok(()),
            Self::Key(key) => fingerprint(key),
            Self::Fingerprint(pinned) if *pinned == fingerprint(found) => return Ok(()),
            Self::Fingerprint(pinned) => *pinned,
        };
        Err(HandshakeError::GatewayKeyChanged {
            pinned,
            found: fingerprint(found),
            found_key: *found,
        })
    }
}

impl Sent {
    fn open_code(
        &self,
        secret: &Nonce,
        verifier: &dyn Verifier,
    ) -> Result<ConnectionCode, HandshakeError> {
        if verifier.sha256(&[secret.as_bytes()]) != self.challenge.code_commit {
            return Err(HandshakeError::Commitment);
        }
        Ok(ConnectionCode::of(
            &self.binding,
            &self.challenge.gateway_key,
            &self.node_key,
            secret,
            &self.nonce_n,
            verifier,
        ))
    }
}
