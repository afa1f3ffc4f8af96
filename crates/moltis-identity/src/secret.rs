//! The private half of an identity: signs transcripts, is wiped on drop, prints as `…`.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey};
use moltis_proto::handshake::{Signer, Transcript};
use moltis_proto::{PublicKey, Signature};
use zeroize::Zeroizing;

use crate::random;

/// An Ed25519 private key (RFC 8032, 5.1.5). It signs [`Transcript`]s, which only the handshake
/// makes, and nothing else.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// Makes a new key.
    pub fn generate() -> Self {
        let seed = Zeroizing::new(random::bytes::<32>());
        Self(SigningKey::from_bytes(&seed))
    }

    /// Returns the key of this seed (the private key of RFC 8032).
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        Self(SigningKey::from_bytes(&seed))
    }

    /// Returns the public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Returns the seed, for the key file.
    pub(crate) fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    pub(crate) fn sign_bytes(&self, message: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(message).to_bytes())
    }
}

impl Signer for SecretKey {
    fn public_key(&self) -> PublicKey {
        self.public_key()
    }

    fn sign(&self, transcript: &Transcript) -> Signature {
        self.sign_bytes(transcript.as_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}
