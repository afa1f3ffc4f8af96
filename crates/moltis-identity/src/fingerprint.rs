//! Fingerprints of public keys, written as `ssh-keygen -lf` writes them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use moltis_proto::PublicKey;
use moltis_proto::key::Digest;
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a public key in SSH's wire form: `SHA256:` and 43 characters of base64 without
/// padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(Digest);

/// Why a text is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is not a fingerprint: expected `SHA256:` and 43 characters, as `moltis node fingerprint` prints it"
)]
pub struct FingerprintError {
    found: String,
}

impl Fingerprint {
    /// Returns the fingerprint of this key.
    pub fn of(key: &PublicKey) -> Self {
        Self(Digest::from_bytes(Sha256::digest(key.to_ssh_wire()).into()))
    }

    /// Takes a digest that the handshake has named.
    pub const fn from_digest(digest: Digest) -> Self {
        Self(digest)
    }

    /// Returns the digest, for [`Pin::Fingerprint`](moltis_proto::handshake::node::Pin).
    pub const fn as_digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", STANDARD_NO_PAD.encode(self.0.as_bytes()))
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let wrong = || FingerprintError {
            found: text.chars().take(64).collect(),
        };
        let encoded = text.strip_prefix("SHA256:").ok_or_else(wrong)?;
        let bytes = STANDARD_NO_PAD.decode(encoded).map_err(|_| wrong())?;
        let bytes = bytes.try_into().map_err(|_| wrong())?;
        Ok(Self(Digest::from_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_survives_its_text_form() {
        let fingerprint = Fingerprint::of(&PublicKey::from_bytes([7; 32]));
        assert_eq!(fingerprint.to_string().len(), 50);
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
    }

    #[test]
    fn other_texts_are_no_fingerprints() {
        let good = Fingerprint::of(&PublicKey::from_bytes([7; 32])).to_string();
        for text in [
            "",
            "SHA256:",
            &good[7..],
            &good[..49],
            &format!("{good}="),
            &format!("{good}A"),
            &format!(" {good}"),
            "MD5:16:27:ac:a5:76:28:2d:36:63:1b:56:4d:eb:df:a6:48",
        ] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }
}
