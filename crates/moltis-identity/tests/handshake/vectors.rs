//! The golden vectors, read as somebody reads them who has only them and `docs/protocol.md`.

use moltis_identity::SecretKey;
use moltis_proto::handshake::{Binding, GatewayProof, Introduction, NodeProof, Verdict};
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::{Nonce, Signature};
use serde::de::DeserializeOwned;
use serde_json::Value;
use snow::Builder;

use crate::spec;

/// Returns what is in `handshake.json`; its writing is tested in `src/golden.rs`.
fn vectors() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../moltis-proto/tests/vectors/handshake.json"
    );
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn handshakes() -> Vec<Value> {
    let all = vectors()["handshakes"].as_array().unwrap().clone();
    assert_eq!(all.len(), 3);
    all
}

/// The encodings of small-order points that a verifier must refuse.
pub(crate) fn weak_keys() -> Vec<[u8; 32]> {
    let all = vectors()["weak_keys"].as_array().unwrap().clone();
    assert_eq!(all.len(), 14);
    all.iter().map(sized).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16).unwrap();
    let byte = |pair: &[u8]| u8::try_from(digit(pair[0]) * 16 + digit(pair[1])).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn sized<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn agreed(handshake: &Value) -> Negotiated {
    let offered = handshake["offered"].as_str().unwrap();
    let negotiated = Negotiated::from_header_values([offered]).unwrap();
    assert_eq!(
        negotiated.chosen.name(),
        handshake["chosen"].as_str().unwrap()
    );
    negotiated
}

/// Returns the message that is the `number`th of its kind.
fn message<T: DeserializeOwned>(handshake: &Value, name: &str, number: usize) -> Option<T> {
    let frames = handshake["frames"].as_array().unwrap();
    let frame = frames
        .iter()
        .filter(|frame| frame["message"] == name)
        .nth(number)?;
    let codec = agreed(handshake).chosen.codec();
    Some(codec.decode(&bytes(&frame["plaintext"])).unwrap())
}

#[test]
fn the_prologue_is_label_offers_and_choice() {
    for handshake in handshakes() {
        let mut prologue = b"moltis/node-noise/1\0".to_vec();
        prologue.extend(handshake["offered"].as_str().unwrap().bytes());
        prologue.push(0);
        prologue.extend(handshake["chosen"].as_str().unwrap().bytes());
        assert_eq!(bytes(&handshake["noise_prologue"]), prologue);
    }
}

#[test]
fn the_signed_bytes_and_signatures_follow_from_the_specification() {
    for handshake in handshakes() {
        let binding = Binding {
            hash: sized(&handshake["h"]),
            subprotocol: agreed(&handshake).chosen,
        };
        let challenge: GatewayProof = message(&handshake, "gateway_proof", 0).unwrap();
        let signed = spec::gateway_transcript(&binding, &challenge);
        assert_eq!(bytes(&handshake["gateway_signs"]), signed);
        let seed = sized(&handshake["gateway_seed"]);
        assert_eq!(challenge.signature, spec::sign(seed, &signed));
        assert_eq!(
            challenge.gateway_key,
            SecretKey::from_seed(seed).public_key()
        );

        let proof: NodeProof = message(&handshake, "node_proof", 0).unwrap();
        let signed = spec::node_transcript(&binding, &proof, &challenge);
        assert_eq!(bytes(&handshake["node_signs"]), signed);
        let seed = sized(&handshake["node_seed"]);
        assert_eq!(proof.signature, spec::sign(seed, &signed));
        assert_ne!(proof.signature, Signature::from_bytes([0; 64]));

        let code = spec::connection_code(
            &binding,
            challenge.gateway_key,
            proof.node_key,
            Nonce::from_bytes(sized(&handshake["code_secret"])),
            proof.nonce_n,
        );
        assert_eq!(handshake["connection_code"], code);
    }
}

#[test]
fn the_messages_read_as_the_vectors_say() {
    for handshake in handshakes() {
        for frame in handshake["frames"].as_array().unwrap() {
            let codec = agreed(&handshake).chosen.codec();
            let plaintext = bytes(&frame["plaintext"]);
            let reads = match frame["message"].as_str().unwrap() {
                "gateway_proof" => {
                    serde_json::to_value(codec.decode::<GatewayProof>(&plaintext).unwrap())
                }
                "node_proof" => {
                    serde_json::to_value(codec.decode::<NodeProof>(&plaintext).unwrap())
                }
                "introduction" => {
                    serde_json::to_value(codec.decode::<Introduction>(&plaintext).unwrap())
                }
                "verdict" => serde_json::to_value(codec.decode::<Verdict>(&plaintext).unwrap()),
                other => panic!("{other}"),
            };
            assert_eq!(frame["reads"], reads.unwrap());
        }
    }
}

#[test]
fn a_plain_noise_library_opens_every_frame() {
    // Not our channel: snow as it comes, with its stateful transport.
    for handshake in handshakes() {
        let end = |name: &str| {
            let pattern = handshake["noise_pattern"].as_str().unwrap();
            let prologue = bytes(&handshake["noise_prologue"]);
            let secret = bytes(&handshake[format!("{name}_ephemeral_secret")]);
            let builder = Builder::new(pattern.parse().unwrap())
                .prologue(&prologue)
                .unwrap()
                .fixed_ephemeral_key_for_testing_only(&secret);
            if name == "node" {
                builder.build_initiator().unwrap()
            } else {
                builder.build_responder().unwrap()
            }
        };
        let (mut node, mut gateway) = (end("node"), end("gateway"));
        let mut buffer = vec![0; 65_535];
        let length = node.write_message(&[], &mut buffer).unwrap();
        assert_eq!(buffer[..length], bytes(&handshake["noise_message_1"]));
        gateway.read_message(&buffer[..length], &mut []).unwrap();
        let length = gateway.write_message(&[], &mut buffer).unwrap();
        assert_eq!(buffer[..length], bytes(&handshake["noise_message_2"]));
        node.read_message(&buffer[..length], &mut []).unwrap();
        assert_eq!(node.get_handshake_hash(), bytes(&handshake["h"]));

        let mut node = node.into_transport_mode().unwrap();
        let mut gateway = gateway.into_transport_mode().unwrap();
        for frame in handshake["frames"].as_array().unwrap() {
            let reader = match frame["from"].as_str().unwrap() {
                "node" => &mut gateway,
                _ => &mut node,
            };
            assert_eq!(frame["number"], reader.receiving_nonce());
            let length = reader
                .read_message(&bytes(&frame["sealed"]), &mut buffer)
                .unwrap();
            assert_eq!(buffer[..length], bytes(&frame["plaintext"]));
        }
    }
}
