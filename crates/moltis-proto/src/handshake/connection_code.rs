//! The connection code: what a person compares on two screens before approving a node.

use std::fmt;
use std::str::FromStr;

use super::{Binding, Verifier};
use crate::key::{Nonce, PublicKey};
use crate::label::CONNECTION_CODE;

/// Sixty bits that both screens show: `7Q4M-2XKD-P9VA`. The same code means that nobody sits
/// between the two.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectionCode(String);

/// Why a text is not a connection code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a connection code: expected three groups of four, like `7Q4M-2XKD-P9VA`")]
pub struct ConnectionCodeError {
    found: String,
}

/// Crockford's base32: no I, L, O, U, so that a code can be read aloud.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl ConnectionCode {
    /// Returns the code with its dashes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 60 bits of SHA-256(label ‖ h ‖ `gateway_key` ‖ `node_key` ‖ secret ‖ `nonce_n`).
    pub(super) fn of(
        binding: &Binding,
        gateway_key: &PublicKey,
        node_key: &PublicKey,
        secret: &Nonce,
        nonce_n: &Nonce,
        verifier: &dyn Verifier,
    ) -> Self {
        let digest = verifier.sha256(&[
            &CONNECTION_CODE,
            &binding.hash,
            gateway_key.as_bytes(),
            node_key.as_bytes(),
            secret.as_bytes(),
            nonce_n.as_bytes(),
        ]);
        let first = digest.as_bytes()[..8].iter();
        Self::from_bits(first.fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }

    /// Writes the upper 60 of 64 bits, five to a character.
    fn from_bits(bits: u64) -> Self {
        let mut text = String::with_capacity(14);
        for at in 0..12 {
            if at > 0 && at % 4 == 0 {
                text.push('-');
            }
            let five = bits >> (59 - 5 * at) & 31;
            text.push(char::from(ALPHABET[five as usize]));
        }
        Self(text)
    }
}

impl fmt::Display for ConnectionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ConnectionCode {
    type Err = ConnectionCodeError;

    /// Reads a code as a person types it: dashes may be missing, letters may be small, and `O`,
    /// `I` and `L` count as the digits they look like.
    fn from_str(text: &str) -> Result<Self, ConnectionCodeError> {
        let wrong = || ConnectionCodeError {
            found: text.chars().take(40).collect(),
        };
        let mut bits = 0_u64;
        let mut count = 0;
        for c in text.trim().chars().filter(|c| *c != '-') {
            let c = match c.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                other => other,
            };
            let five = ALPHABET
                .iter()
                .position(|known| char::from(*known) == c)
                .ok_or_else(wrong)?;
            count += 1;
            if count > 12 {
                return Err(wrong());
            }
            bits = bits << 5 | five as u64;
        }
        if count != 12 {
            return Err(wrong());
        }
        Ok(Self::from_bits(bits << 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_the_first_sixty_bits_in_groups_of_four() {
        assert_eq!(ConnectionCode::from_bits(0).as_str(), "0000-0000-0000");
        assert_eq!(
            ConnectionCode::from_bits(u64::MAX).as_str(),
            "ZZZZ-ZZZZ-ZZZZ"
        );
        // The last four bits of the eight bytes are not part of it.
        assert_eq!(
            ConnectionCode::from_bits(0b1_1111).as_str(),
            "0000-0000-0001"
        );
        assert_eq!(
            ConnectionCode::from_bits(0x0044_3214_c742_5400).as_str(),
            "0123-4567-89A0"
        );
    }

    #[test]
    fn a_person_may_type_it_without_dashes_and_in_small_letters() {
        let code: ConnectionCode = "7Q4M-2XKD-P9VA".parse().unwrap();
        assert_eq!(code.as_str(), "7Q4M-2XKD-P9VA");
        assert_eq!("7q4m2xkdp9va".parse(), Ok(code));
        assert_eq!(
            " oil0-0000-0000 "
                .parse::<ConnectionCode>()
                .unwrap()
                .as_str(),
            "0110-0000-0000"
        );
    }

    #[test]
    fn other_texts_are_no_codes() {
        for text in [
            "",
            "-",
            "7Q4M-2XKD-P9V",
            "7Q4M-2XKD-P9VAA",
            "7Q4M-2XKD-P9VU",
            "7Q4M 2XKD P9VA",
        ] {
            assert!(text.parse::<ConnectionCode>().is_err(), "{text}");
        }
    }
}
