//! The gateway's side of the handshake: challenge, check, listen, then hand a [`VerifiedNode`] over.
//!
//! Pairing, the roster and the store are not here: what becomes of a node whose key is proven is
//! decided by the gateway crate, which asks for a `VerifiedNode` wherever it needs that trust.

use std::mem;

use super::{
    Binding, ConnectionCode, Epoch, GatewayProof, HandshakeError, Intent, Introduction, NodeProof,
    Proof, SessionLimits, Signer, Transcript, Verdict, Verifier,
};
use crate::key::{Nonce, PublicKey, Signature};
use crate::message::Windows;
use crate::version::{Ledger, LedgerRange};
use crate::{BootId, DeviceId, InstanceId, RequestId};

/// One handshake, as the gateway sees it.
#[derive(Debug)]
pub struct GatewayHandshake {
    state: State,
}

#[derive(Debug)]
enum State {
    /// The challenge is sent; the node has to answer it.
    AwaitProof(Box<Challenge>),
    /// The node has proven its key; it has to say what it is.
    AwaitIntroduction(Box<Proven>),
    /// Over, by success or by an error.
    Closed,
}

#[derive(Debug)]
struct Challenge {
    binding: Binding,
    sent: GatewayProof,
    ledgers: LedgerRange,
    code_secret: Nonce,
}

#[derive(Debug)]
struct Proven {
    proof: NodeProof,
    connection_code: ConnectionCode,
    code_secret: Nonce,
}

impl GatewayHandshake {
    /// Begins: returns the machine and the first message, step 3.
    ///
    /// `nonce_g` and `code_secret` are fresh random bytes, each used for this handshake alone.
    pub fn new(
        binding: Binding,
        signer: &dyn Signer,
        verifier: &dyn Verifier,
        ledgers: LedgerRange,
        nonce_g: Nonce,
        code_secret: Nonce,
    ) -> (Self, GatewayProof) {
        let mut proof = GatewayProof {
            gateway_key: signer.public_key(),
            nonce_g,
            ledger_min: ledgers.min,
            ledger_max: ledgers.max,
            code_commit: verifier.sha256(&[code_secret.as_bytes()]),
            signature: Signature::from_bytes([0; 64]),
        };
        proof.signature = signer.sign(&Transcript::of_gateway(&binding, &proof, verifier));
        let challenge = Challenge {
            binding,
            sent: proof.clone(),
            ledgers,
            code_secret,
        };
        let state = State::AwaitProof(Box::new(challenge));
        (Self { state }, proof)
    }

    /// Takes step 4: the node's answer to the challenge.
    ///
    /// # Errors
    /// The machine is then closed. [`HandshakeError::refusal`] says whether the node may be told.
    pub fn handle_proof(
        &mut self,
        proof: NodeProof,
        verifier: &dyn Verifier,
    ) -> Result<(), HandshakeError> {
        let challenge = match mem::replace(&mut self.state, State::Closed) {
            State::AwaitProof(challenge) => challenge,
            other => return Err(other.out_of_turn("NodeProof")),
        };
        self.state = State::AwaitIntroduction(Box::new(challenge.check(proof, verifier)?));
        Ok(())
    }

    /// Takes step 5: what the node says of itself. The handshake is then over; the verdict is up
    /// to the caller.
    ///
    /// # Errors
    /// The machine is then closed.
    pub fn handle_introduction(
        &mut self,
        introduction: Introduction,
    ) -> Result<VerifiedNode, HandshakeError> {
        let proven = match mem::replace(&mut self.state, State::Closed) {
            State::AwaitIntroduction(proven) => proven,
            other => return Err(other.out_of_turn("Introduction")),
        };
        introduction.check()?;
        Ok(VerifiedNode {
            proof: proven.proof,
            introduction,
            connection_code: proven.connection_code,
            code_secret: proven.code_secret,
        })
    }
}

impl State {
    fn out_of_turn(&self, found: &'static str) -> HandshakeError {
        let awaited = match self {
            Self::AwaitProof(_) => "a `NodeProof`",
            Self::AwaitIntroduction(_) => "an `Introduction`",
            Self::Closed => "nothing more",
        };
        HandshakeError::OutOfTurn { found, awaited }
    }
}

impl Challenge {
    /// The order matters: before the signature holds, nothing that the message says is believed.
    fn check(&self, proof: NodeProof, verifier: &dyn Verifier) -> Result<Proven, HandshakeError> {
        if !verifier.is_sound(&proof.node_key) {
            return Err(HandshakeError::WeakKey { proof: Proof::Node });
        }
        let transcript = Transcript::of_node(&self.binding, &proof, &self.sent, verifier);
        if !verifier.verify(&proof.node_key, &transcript, &proof.signature) {
            return Err(HandshakeError::Signature { proof: Proof::Node });
        }
        if proof.node_key == self.sent.gateway_key {
            return Err(HandshakeError::OwnKey);
        }
        if !self.ledgers.contains(proof.ledger) {
            return Err(HandshakeError::LedgerNotOffered {
                ours: self.ledgers,
                found: proof.ledger,
            });
        }
        let connection_code = ConnectionCode::of(
            &self.binding,
            &self.sent.gateway_key,
            &proof.node_key,
            &self.code_secret,
            &proof.nonce_n,
            verifier,
        );
        Ok(Proven {
            proof,
            connection_code,
            code_secret: self.code_secret,
        })
    }
}

/// A node that has proven on this connection that it holds its key. Only a [`GatewayHandshake`]
/// makes one. What the roster thinks of that key is another question.
#[derive(Debug, Clone)]
pub struct VerifiedNode {
    proof: NodeProof,
    introduction: Introduction,
    connection_code: ConnectionCode,
    code_secret: Nonce,
}

impl VerifiedNode {
    /// Returns the key that the node proved to hold.
    pub fn node_key(&self) -> PublicKey {
        self.proof.node_key
    }

    /// Returns the device id, signed by that key. Whether the two belong together is for the
    /// roster to say.
    pub fn device_id(&self) -> DeviceId {
        self.proof.device_id
    }

    /// Returns the id of the node's process.
    pub fn instance_id(&self) -> InstanceId {
        self.proof.instance_id
    }

    /// Returns the boot of the node's machine.
    pub fn boot_id(&self) -> BootId {
        self.proof.boot_id
    }

    /// Returns what the node wants.
    pub fn intent(&self) -> Intent {
        self.proof.intent
    }

    /// Returns the ledger number of this connection.
    pub fn ledger(&self) -> Ledger {
        self.proof.ledger
    }

    /// Returns what the node says of itself: claims, not facts.
    pub fn introduction(&self) -> &Introduction {
        &self.introduction
    }

    /// Returns the code that both screens show.
    pub fn connection_code(&self) -> &ConnectionCode {
        &self.connection_code
    }

    /// Returns the secret that [`Verdict::Pending`] reveals.
    pub fn code_reveal(&self) -> Nonce {
        self.code_secret
    }

    /// Returns the verdict that makes the node wait for a person.
    pub fn pending(&self, request_id: RequestId, expires_in_ms: u64) -> Verdict {
        Verdict::Pending {
            request_id,
            expires_in_ms,
            code_reveal: self.code_secret,
        }
    }

    /// Returns the verdict that lets the node in, with the ledger number it signed.
    pub fn accepted(&self, epoch: Epoch, windows: Windows, limits: SessionLimits) -> Verdict {
        Verdict::Accepted {
            epoch,
            windows,
            limits,
            ledger: self.proof.ledger,
        }
    }
}
