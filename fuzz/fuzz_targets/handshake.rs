//! Both machines of the handshake, fed with whatever the bytes say. Signatures are believed, so that
//! what comes behind them is reached; whether they are true is another test's matter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moltis_identity::{SecretKey, StrictVerifier};
use moltis_proto::handshake::gateway::GatewayHandshake;
use moltis_proto::handshake::node::{NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{Binding, Intent, Transcript, Verifier};
use moltis_proto::key::Digest;
use moltis_proto::version::LedgerRange;
use moltis_proto::{BootId, Codec, DeviceId, InstanceId, Nonce, PublicKey, Signature, Subprotocol};

struct Believer;

impl Verifier for Believer {
    fn verify(&self, _: &PublicKey, _: &Transcript, _: &Signature) -> bool {
        true
    }

    fn is_sound(&self, _: &PublicKey) -> bool {
        true
    }

    fn sha256(&self, parts: &[&[u8]]) -> Digest {
        StrictVerifier.sha256(parts)
    }
}

/// Takes a frame with its length in two bytes from the front.
fn frame<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (frame, rest) = rest.split_at(length);
    *bytes = rest;
    Some(frame)
}

fuzz_target!(|bytes: &[u8]| {
    let secret = SecretKey::from_seed([7; 32]);
    let nonce = Nonce::from_bytes([9; 32]);
    for subprotocol in [Subprotocol::Postcard, Subprotocol::Json] {
        let codec: Codec = subprotocol.codec();
        let binding = Binding {
            hash: [3; 32],
            subprotocol,
        };
        let (mut gateway, proof) = GatewayHandshake::new(
            binding,
            &secret,
            &Believer,
            LedgerRange::CURRENT,
            nonce,
            nonce,
        );
        let claim = NodeClaim {
            device_id: DeviceId::from_bytes([1; 16]),
            instance_id: InstanceId::from_bytes([2; 16]),
            boot_id: BootId::from_bytes([3; 16]),
            intent: Intent::Pair,
            ledgers: LedgerRange::CURRENT,
        };
        let mut node = NodeHandshake::new(binding, claim, Pin::FirstUse);
        let honest = SecretKey::from_seed([8; 32]);
        assert_ne!(honest.public_key(), secret.public_key());
        let mut rest = bytes;
        let mut begun = false;
        while let Some(frame) = frame(&mut rest) {
            if let Ok(proof) = codec.decode(frame) {
                gateway.handle_proof(proof, &Believer).ok();
            }
            if let Ok(introduction) = codec.decode(frame) {
                gateway.handle_introduction(introduction).ok();
            }
            if let Ok(proof) = codec.decode(frame) {
                begun = true;
                let taken = node.handle_gateway_proof(proof, &honest, &Believer, nonce);
                taken.ok();
            }
            if !begun {
                // Most inputs are about what comes behind a good beginning.
                begun = true;
                let taken = node.handle_gateway_proof(proof.clone(), &honest, &Believer, nonce);
                taken.ok();
            }
            if let Ok(verdict) = codec.decode(frame) {
                node.handle_verdict(verdict, &Believer).ok();
            }
        }
    }
});
