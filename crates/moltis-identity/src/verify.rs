//! Strict Ed25519 verification: the only way in which Moltis believes a signature.
//!
//! The usual verification accepts keys of small order, and with one of those a single signature
//! fits any message. `verify_strict` does not; Wycheproof's vectors do not tell the two apart, so
//! the tests here bring torsion points of their own.

use ed25519_dalek::VerifyingKey;
use moltis_proto::handshake::{Transcript, Verifier};
use moltis_proto::key::Digest;
use moltis_proto::{PublicKey, Signature};
use sha2::{Digest as _, Sha256};

/// Checks signatures by the strict rules, and hashes with SHA-256.
#[derive(Debug, Clone, Copy, Default)]
pub struct StrictVerifier;

impl Verifier for StrictVerifier {
    fn verify(&self, key: &PublicKey, transcript: &Transcript, signature: &Signature) -> bool {
        verify_strict(key, transcript.as_bytes(), signature)
    }

    fn is_sound(&self, key: &PublicKey) -> bool {
        sound(key).is_some()
    }

    fn sha256(&self, parts: &[&[u8]]) -> Digest {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        Digest::from_bytes(hash.finalize().into())
    }
}

fn verify_strict(key: &PublicKey, message: &[u8], signature: &Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
    sound(key).is_some_and(|key| key.verify_strict(message, &signature).is_ok())
}

/// Returns the key as a point, where that is of large order and its encoding the canonical one: a
/// point must not have two names in a roster that is keyed by them.
fn sound(key: &PublicKey) -> Option<VerifyingKey> {
    let point = VerifyingKey::from_bytes(key.as_bytes()).ok()?;
    let canonical = point.to_edwards().compress().to_bytes() == *key.as_bytes();
    (canonical && !point.is_weak()).then_some(point)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::SMALL_ORDER;
