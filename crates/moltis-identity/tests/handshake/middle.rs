//! Somebody sits between: relays, reflects, shows keys of their own.

use moltis_identity::{Fingerprint, SecretKey, StrictVerifier};
use moltis_proto::handshake::gateway::GatewayHandshake;
use moltis_proto::handshake::node::{Decision, NodeHandshake, Pin};
use moltis_proto::handshake::{Binding, GatewayProof, HandshakeError, NodeProof, Proof, Verdict};
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::version::Ledger;
use moltis_proto::{Codec, Nonce, Refusal, RequestId, Signature, Subprotocol};

use crate::meeting::{Layer, Meeting, Step, introduction, nonce};
use crate::spec;

/// What a node and a gateway say when the relay between them is one that both have a channel to.
struct Relay {
    meeting: Meeting,
    node: NodeHandshake,
    gateway: GatewayHandshake,
    gateway_proof: GatewayProof,
    /// The channel between node and relay.
    node_leg: Binding,
}

fn relay() -> Relay {
    let meeting = Meeting::new(Subprotocol::Postcard);
    let (node_leg, _) = meeting.channels();
    let (_, gateway_leg) = meeting.channels();
    let (gateway, gateway_proof) = begin(&meeting, gateway_leg.binding);
    Relay {
        node: NodeHandshake::new(node_leg.binding, meeting.claim(), meeting.pin),
        gateway,
        gateway_proof,
        node_leg: node_leg.binding,
        meeting,
    }
}

fn begin(meeting: &Meeting, binding: Binding) -> (GatewayHandshake, GatewayProof) {
    let ledgers = meeting.gateway_ledgers;
    GatewayHandshake::new(
        binding,
        &meeting.gateway,
        &StrictVerifier,
        ledgers,
        nonce(),
        nonce(),
    )
}

fn answer(relay: &mut Relay, proof: GatewayProof) -> Result<NodeProof, HandshakeError> {
    relay
        .node
        .handle_gateway_proof(proof, &relay.meeting.node, &StrictVerifier, nonce())
}

#[test]
fn a_relay_cannot_show_the_gateways_proof_to_the_node() {
    let mut relay = relay();
    let proof = relay.gateway_proof.clone();
    let refused = answer(&mut relay, proof).unwrap_err();
    assert_eq!(
        refused,
        HandshakeError::Signature {
            proof: Proof::Gateway
        }
    );
    assert_eq!(relay.node.gateway_key(), None);
}

#[test]
fn a_relay_that_the_node_trusts_cannot_hand_its_proof_on() {
    let mut relay = relay();
    // The node trusts whoever comes first, and that is the relay. It even passes the gateway's own
    // challenge and commitment on.
    relay.node = NodeHandshake::new(relay.node_leg, relay.meeting.claim(), Pin::FirstUse);
    let seed = [7; 32];
    let mut forged = relay.gateway_proof.clone();
    forged.gateway_key = SecretKey::from_seed(seed).public_key();
    forged.signature = spec::sign(seed, &spec::gateway_transcript(&relay.node_leg, &forged));
    let proof = answer(&mut relay, forged).unwrap();
    let refused = relay
        .gateway
        .handle_proof(proof, &StrictVerifier)
        .unwrap_err();
    assert_eq!(refused, HandshakeError::Signature { proof: Proof::Node });
    assert_eq!(refused.refusal(), None);
}

#[test]
fn a_relay_with_keys_of_its_own_on_both_sides_shows_two_different_codes() {
    let meeting = Meeting::new(Subprotocol::Postcard);
    let (node_leg, _) = meeting.channels();
    let (_, gateway_leg) = meeting.channels();
    let mallory = SecretKey::generate();

    // Towards the node it is a gateway, and the node has never seen the real one.
    let mut as_gateway = meeting.clone();
    as_gateway.gateway = mallory.clone();
    let (mut false_gateway, proof) = begin(&as_gateway, node_leg.binding);
    let mut node = NodeHandshake::new(node_leg.binding, meeting.claim(), Pin::FirstUse);
    let proof = node
        .handle_gateway_proof(proof, &meeting.node, &StrictVerifier, nonce())
        .unwrap();
    false_gateway.handle_proof(proof, &StrictVerifier).unwrap();
    let seen = false_gateway.handle_introduction(introduction()).unwrap();

    // Towards the gateway it is a node, and says what the real one says.
    let (mut gateway, proof) = begin(&meeting, gateway_leg.binding);
    let mut false_node = NodeHandshake::new(gateway_leg.binding, meeting.claim(), Pin::FirstUse);
    let proof = false_node
        .handle_gateway_proof(proof, &mallory, &StrictVerifier, nonce())
        .unwrap();
    gateway.handle_proof(proof, &StrictVerifier).unwrap();
    let verified = gateway.handle_introduction(introduction()).unwrap();

    let verdict = seen.pending(RequestId::from_bytes([0; 16]), 1);
    match node.handle_verdict(verdict, &StrictVerifier).unwrap() {
        Decision::Pending { code, .. } => assert_ne!(&code, verified.connection_code()),
        other => panic!("{other:?}"),
    }
    assert_eq!(verified.node_key(), mallory.public_key());
}

#[test]
fn a_commitment_that_does_not_open_is_refused() {
    for subprotocol in Subprotocol::ALL {
        let meeting = Meeting::new(subprotocol);
        let codec = subprotocol.codec();
        // The gateway itself, or somebody in its place, reveals another secret: one for which the
        // code would come out as wished.
        let result = meeting.run(&mut |step, layer, bytes| {
            if (step, layer) == (Step::Verdict, Layer::Plain) {
                let Verdict::Pending {
                    request_id,
                    expires_in_ms,
                    code_reveal,
                } = codec.decode(bytes).unwrap()
                else {
                    panic!("not pending");
                };
                let mut other = *code_reveal.as_bytes();
                other[31] ^= 1;
                let code_reveal = Nonce::from_bytes(other);
                let verdict = Verdict::Pending {
                    request_id,
                    expires_in_ms,
                    code_reveal,
                };
                *bytes = codec.encode(&verdict).unwrap();
            }
        });
        let broken = result.expect_err("a wrong secret was accepted");
        assert!(
            broken
                .error
                .to_string()
                .contains("commitment does not open")
        );
    }
}

#[test]
fn a_gateways_own_message_led_back_is_no_answer() {
    for codec in [Codec::Postcard, Codec::Json] {
        let echo = codec.encode(&relay().gateway_proof).unwrap();
        assert!(codec.decode::<NodeProof>(&echo).is_err());
    }
    // Nor when its fields are put into the right form, with the signature it already has.
    let mut relay = relay();
    let claim = relay.meeting.claim();
    let echo = NodeProof {
        node_key: relay.gateway_proof.gateway_key,
        device_id: claim.device_id,
        instance_id: claim.instance_id,
        boot_id: claim.boot_id,
        intent: claim.intent,
        ledger: relay.gateway_proof.ledger_max,
        nonce_n: relay.gateway_proof.nonce_g,
        signature: relay.gateway_proof.signature,
    };
    let refused = relay
        .gateway
        .handle_proof(echo, &StrictVerifier)
        .unwrap_err();
    assert_eq!(refused, HandshakeError::Signature { proof: Proof::Node });
}

#[test]
fn a_nodes_own_message_led_back_is_no_proof() {
    let mut relay = relay();
    let mut proof = relay.gateway_proof.clone();
    proof.gateway_key = relay.meeting.node.public_key();
    let refused = answer(&mut relay, proof).unwrap_err();
    assert_eq!(
        refused,
        HandshakeError::Signature {
            proof: Proof::Gateway
        }
    );
}

#[test]
fn a_node_that_holds_the_gateways_key_is_told_so_and_refused() {
    let mut meeting = Meeting::new(Subprotocol::Postcard);
    meeting.node = meeting.gateway.clone();
    // A node that behaves sees it first.
    let broken = meeting.honest().unwrap_err();
    assert_eq!(broken.step, Step::GatewayProof);
    // One that does not look is refused by the gateway, which may say why: the proof is good.
    let seed = [5; 32];
    meeting.gateway = SecretKey::from_seed(seed);
    let (_, channel) = meeting.channels();
    let (mut gateway, challenge) = begin(&meeting, channel.binding);
    let proof = lie(&meeting, channel.binding, &challenge, seed, Ledger(1));
    let refused = gateway.handle_proof(proof, &StrictVerifier).unwrap_err();
    assert_eq!(refused, HandshakeError::OwnKey);
    assert_eq!(refused.refusal(), Some(Refusal::OwnKey));
}

#[test]
fn a_gateway_that_holds_the_nodes_key_is_refused_even_when_pinned() {
    let mut meeting = Meeting::new(Subprotocol::Postcard);
    meeting.gateway = meeting.node.clone();
    for pin in [Pin::FirstUse, Pin::Key(meeting.node.public_key())] {
        meeting.pin = pin;
        let broken = meeting.honest().unwrap_err();
        assert_eq!(broken.step, Step::GatewayProof);
        assert!(
            broken.error.to_string().contains("our own key"),
            "{}",
            broken.error
        );
    }
}

#[test]
fn a_changed_gateway_key_stops_every_node_that_pinned_one() {
    let mut meeting = Meeting::new(Subprotocol::Postcard);
    let pinned = SecretKey::generate().public_key();
    let fingerprints = (
        Fingerprint::of(&pinned),
        Fingerprint::of(&meeting.gateway.public_key()),
    );
    for pin in [
        Pin::Key(pinned),
        Pin::Fingerprint(*fingerprints.0.as_digest()),
    ] {
        meeting.pin = pin;
        let broken = meeting.honest().unwrap_err();
        assert_eq!(broken.step, Step::GatewayProof, "the node has shown itself");
        let words = broken.error.to_string();
        assert_eq!(
            words,
            format!(
                "the gateway's key is `{}`, but `{}` is pinned",
                fingerprints.1, fingerprints.0
            )
        );
        match broken.error.downcast_ref() {
            Some(HandshakeError::GatewayKeyChanged { found_key, .. }) => {
                assert_eq!(*found_key, meeting.gateway.public_key());
            }
            other => panic!("{other:?}"),
        }
    }
    meeting.pin = Pin::FirstUse;
    meeting.honest().unwrap();
}

#[test]
fn a_key_that_is_only_shown_and_not_held_raises_no_alarm_about_a_changed_key() {
    let mut relay = relay();
    let mut proof = relay.gateway_proof.clone();
    proof.gateway_key = SecretKey::generate().public_key();
    let refused = answer(&mut relay, proof).unwrap_err();
    assert_eq!(
        refused,
        HandshakeError::Signature {
            proof: Proof::Gateway
        }
    );
}

#[test]
fn a_proof_for_one_subprotocol_is_none_for_another() {
    // The same handshake hash under two names cannot happen, and would not help.
    let meeting = Meeting::new(Subprotocol::Postcard);
    let (channel, _) = meeting.channels();
    let (_, proof) = begin(&meeting, channel.binding);
    for subprotocol in [Subprotocol::PostcardAes, Subprotocol::Json] {
        let binding = Binding {
            subprotocol,
            ..channel.binding
        };
        let mut node = NodeHandshake::new(binding, meeting.claim(), meeting.pin);
        let refused =
            node.handle_gateway_proof(proof.clone(), &meeting.node, &StrictVerifier, nonce());
        assert!(
            matches!(refused, Err(HandshakeError::Signature { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn an_offer_removed_on_the_way_breaks_the_channel() {
    use moltis_identity::noise::{Initiator, NoiseError, Responder};
    let offered = "moltis.node.v1+aes, moltis.node.v1";
    let told = Negotiated {
        chosen: Subprotocol::Postcard,
        ..Negotiated::from_header_values([offered]).unwrap()
    };
    let stripped = Negotiated::from_header_values(["moltis.node.v1"]).unwrap();
    let (initiator, message_1) = Initiator::new(&told).unwrap();
    let (_, message_2) = Responder::new(&stripped)
        .unwrap()
        .respond(&message_1)
        .unwrap();
    assert_eq!(
        initiator.finish(&message_2).map(|_| ()),
        Err(NoiseError::Prologue)
    );
}

#[test]
fn the_independent_transcripts_are_what_the_machines_sign() {
    for subprotocol in Subprotocol::ALL {
        let meeting = Meeting::new(subprotocol);
        let (channel, _) = meeting.channels();
        let (mut gateway, challenge) = begin(&meeting, channel.binding);
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(challenge.gateway_key.as_bytes()).unwrap();
        let signature = ed25519_dalek::Signature::from_bytes(challenge.signature.as_bytes());
        key.verify_strict(
            &spec::gateway_transcript(&channel.binding, &challenge),
            &signature,
        )
        .unwrap();

        let seed = [8; 32];
        let proof = lie(&meeting, channel.binding, &challenge, seed, Ledger(1));
        let nonce_n = proof.nonce_n;
        gateway.handle_proof(proof, &StrictVerifier).unwrap();
        let verified = gateway.handle_introduction(introduction()).unwrap();
        assert_eq!(
            verified.connection_code().as_str(),
            spec::connection_code(
                &channel.binding,
                meeting.gateway.public_key(),
                SecretKey::from_seed(seed).public_key(),
                verified.code_reveal(),
                nonce_n,
            )
        );
    }
}

/// A proof made without the machine, which would not say such things.
pub(crate) fn lie(
    meeting: &Meeting,
    binding: Binding,
    challenge: &GatewayProof,
    seed: [u8; 32],
    ledger: Ledger,
) -> NodeProof {
    let claim = meeting.claim();
    let mut proof = NodeProof {
        node_key: SecretKey::from_seed(seed).public_key(),
        device_id: claim.device_id,
        instance_id: claim.instance_id,
        boot_id: claim.boot_id,
        intent: claim.intent,
        ledger,
        nonce_n: nonce(),
        signature: Signature::from_bytes([0; 64]),
    };
    proof.signature = spec::sign(seed, &spec::node_transcript(&binding, &proof, challenge));
    proof
}
