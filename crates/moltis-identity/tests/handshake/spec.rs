//! The signed bytes and the code once more, written from `docs/protocol.md` alone: what somebody
//! writes who has only that page. The tests hold it beside the real ones, and lie with it.

use ed25519_dalek::{Signer as _, SigningKey};
use moltis_proto::handshake::{Binding, GatewayProof, Intent, NodeProof};
use moltis_proto::{Nonce, PublicKey, Signature};
use sha2::{Digest as _, Sha256};

pub(crate) fn gateway_transcript(binding: &Binding, proof: &GatewayProof) -> Vec<u8> {
    let mut bytes = channel("moltis gateway proof 1", binding);
    bytes.extend(proof.gateway_key.as_bytes());
    bytes.extend(proof.nonce_g.as_bytes());
    bytes.extend(proof.ledger_min.0.to_be_bytes());
    bytes.extend(proof.ledger_max.0.to_be_bytes());
    bytes.extend(proof.code_commit.as_bytes());
    bytes
}

pub(crate) fn node_transcript(
    binding: &Binding,
    proof: &NodeProof,
    challenge: &GatewayProof,
) -> Vec<u8> {
    let mut bytes = channel("moltis node proof 1", binding);
    bytes.extend(proof.node_key.as_bytes());
    bytes.extend(proof.device_id.as_bytes());
    bytes.extend(proof.instance_id.as_bytes());
    bytes.extend(proof.boot_id.as_bytes());
    bytes.push(u8::from(proof.intent == Intent::Pair));
    bytes.extend(proof.ledger.0.to_be_bytes());
    bytes.extend(proof.nonce_n.as_bytes());
    bytes.extend(challenge.gateway_key.as_bytes());
    bytes.extend(challenge.nonce_g.as_bytes());
    bytes.extend(challenge.code_commit.as_bytes());
    bytes
}

pub(crate) fn connection_code(
    binding: &Binding,
    gateway_key: PublicKey,
    node_key: PublicKey,
    code_reveal: Nonce,
    nonce_n: Nonce,
) -> String {
    let mut hash = Sha256::new();
    hash.update(label("moltis connection code 1"));
    hash.update(binding.hash);
    hash.update(gateway_key.as_bytes());
    hash.update(node_key.as_bytes());
    hash.update(code_reveal.as_bytes());
    hash.update(nonce_n.as_bytes());
    let digest = hash.finalize();
    // Bit by bit, so that it shares no arithmetic with the real one.
    let bit = |at: usize| usize::from(digest[at / 8] >> (7 - at % 8) & 1);
    let letters: Vec<char> = (0..12)
        .map(|letter| (0..5).fold(0, |value, at| value * 2 + bit(letter * 5 + at)))
        .map(|value| {
            "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
                .chars()
                .nth(value)
                .unwrap()
        })
        .collect();
    let groups: Vec<String> = letters
        .chunks(4)
        .map(|group| group.iter().collect())
        .collect();
    groups.join("-")
}

pub(crate) fn sign(seed: [u8; 32], bytes: &[u8]) -> Signature {
    Signature::from_bytes(SigningKey::from_bytes(&seed).sign(bytes).to_bytes())
}

fn channel(text: &str, binding: &Binding) -> Vec<u8> {
    let mut bytes = label(text);
    bytes.extend(Sha256::digest(binding.subprotocol.name()));
    bytes.extend(binding.hash);
    bytes
}

fn label(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(32, 0);
    bytes
}
