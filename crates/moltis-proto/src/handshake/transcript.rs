//! The bytes that keys sign: a label of 32 bytes, the channel, then fields of fixed width.
//!
//! Nothing else in this crate makes a [`Transcript`], so a key behind a
//! [`Signer`](super::Signer) signs these two structures and never bytes that a peer chose.

use super::{Binding, GatewayProof, Intent, NodeProof, Verifier};
use crate::key::Digest;
use crate::label::{GATEWAY_PROOF, NODE_PROOF};

/// What a key signs, and nothing else: made only by the handshake of this crate, from fields of
/// fixed width behind a label of 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript(Vec<u8>);

/// Bytes of the longer of the two, the node's.
const BYTES_MAX: usize = 3 * 32 + 32 + 3 * 16 + 1 + 2 + 32 + 3 * 32;

impl Transcript {
    /// Returns the bytes to sign or to verify.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What a gateway signs: 228 bytes.
    pub(super) fn of_gateway(
        binding: &Binding,
        proof: &GatewayProof,
        verifier: &dyn Verifier,
    ) -> Self {
        let mut bytes = channel(&GATEWAY_PROOF, binding, verifier);
        bytes.extend_from_slice(proof.gateway_key.as_bytes());
        bytes.extend_from_slice(proof.nonce_g.as_bytes());
        bytes.extend_from_slice(&proof.ledger_min.0.to_be_bytes());
        bytes.extend_from_slice(&proof.ledger_max.0.to_be_bytes());
        bytes.extend_from_slice(proof.code_commit.as_bytes());
        Self(bytes)
    }

    /// What a node signs: 307 bytes, the challenge it answers among them.
    pub(super) fn of_node(
        binding: &Binding,
        proof: &NodeProof,
        challenge: &GatewayProof,
        verifier: &dyn Verifier,
    ) -> Self {
        let mut bytes = channel(&NODE_PROOF, binding, verifier);
        bytes.extend_from_slice(proof.node_key.as_bytes());
        bytes.extend_from_slice(proof.device_id.as_bytes());
        bytes.extend_from_slice(proof.instance_id.as_bytes());
        bytes.extend_from_slice(proof.boot_id.as_bytes());
        bytes.push(match proof.intent {
            Intent::Connect => 0,
            Intent::Pair => 1,
        });
        bytes.extend_from_slice(&proof.ledger.0.to_be_bytes());
        bytes.extend_from_slice(proof.nonce_n.as_bytes());
        bytes.extend_from_slice(challenge.gateway_key.as_bytes());
        bytes.extend_from_slice(challenge.nonce_g.as_bytes());
        bytes.extend_from_slice(challenge.code_commit.as_bytes());
        Self(bytes)
    }
}

fn channel(label: &[u8; 32], binding: &Binding, verifier: &dyn Verifier) -> Vec<u8> {
    let name: Digest = verifier.sha256(&[binding.subprotocol.name().as_bytes()]);
    let mut bytes = Vec::with_capacity(BYTES_MAX);
    bytes.extend_from_slice(label);
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&binding.hash);
    bytes
}
