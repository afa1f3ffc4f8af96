//! Keys that fit any signature, shown through the real machines.

use moltis_identity::StrictVerifier;
use moltis_proto::handshake::gateway::GatewayHandshake;
use moltis_proto::handshake::node::{NodeHandshake, Pin};
use moltis_proto::handshake::{GatewayProof, HandshakeError, NodeProof, Proof};
use moltis_proto::version::Ledger;
use moltis_proto::{PublicKey, Signature, Subprotocol};

use crate::meeting::{Meeting, nonce};
use crate::vectors::weak_keys;

/// With a key of small order and such a point as R, an S of zero satisfies the equation for every
/// eighth message or oftener.
fn forgeries() -> impl Iterator<Item = (PublicKey, Signature)> {
    let points = weak_keys();
    let keys = points.clone();
    keys.into_iter().flat_map(move |key| {
        let rs = points.clone();
        rs.into_iter().map(move |r| {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&r);
            (PublicKey::from_bytes(key), Signature::from_bytes(signature))
        })
    })
}

#[test]
fn a_gateway_with_a_weak_key_is_refused_even_when_pinned() {
    let meeting = Meeting::new(Subprotocol::Postcard);
    let (channel, _) = meeting.channels();
    for (gateway_key, signature) in forgeries() {
        let proof = GatewayProof {
            gateway_key,
            nonce_g: nonce(),
            ledger_min: Ledger(1),
            ledger_max: Ledger(1),
            code_commit: moltis_proto::key::Digest::from_bytes([0; 32]),
            signature,
        };
        for pin in [Pin::FirstUse, Pin::Key(gateway_key)] {
            let mut node = NodeHandshake::new(channel.binding, meeting.claim(), pin);
            let refused =
                node.handle_gateway_proof(proof.clone(), &meeting.node, &StrictVerifier, nonce());
            let proof = Proof::Gateway;
            assert_eq!(refused.unwrap_err(), HandshakeError::WeakKey { proof });
        }
    }
}

#[test]
fn a_node_with_a_weak_key_is_refused_without_a_word() {
    let meeting = Meeting::new(Subprotocol::Postcard);
    let (_, channel) = meeting.channels();
    let claim = meeting.claim();
    for (node_key, signature) in forgeries() {
        let (mut gateway, _) = GatewayHandshake::new(
            channel.binding,
            &meeting.gateway,
            &StrictVerifier,
            meeting.gateway_ledgers,
            nonce(),
            nonce(),
        );
        let proof = NodeProof {
            node_key,
            device_id: claim.device_id,
            instance_id: claim.instance_id,
            boot_id: claim.boot_id,
            intent: claim.intent,
            ledger: Ledger(1),
            nonce_n: nonce(),
            signature,
        };
        let refused = gateway.handle_proof(proof, &StrictVerifier).unwrap_err();
        assert_eq!(refused, HandshakeError::WeakKey { proof: Proof::Node });
        assert_eq!(refused.refusal(), None);
    }
}
