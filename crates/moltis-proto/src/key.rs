//! Keys, signatures and nonces as sized bytes. Nothing here computes with them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! sized_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Takes these bytes as they are.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// Returns the bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), STANDARD.encode(self.0))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(&STANDARD.encode(self.0))
                } else {
                    use serde::ser::SerializeTuple as _;
                    let mut tuple = serializer.serialize_tuple($len)?;
                    self.0.iter().try_for_each(|byte| tuple.serialize_element(byte))?;
                    tuple.end()
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                    let bytes = STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)?;
                    let sized = bytes.try_into().map_err(|bytes: Vec<u8>| {
                        D::Error::invalid_length(bytes.len(), &stringify!($len bytes))
                    })?;
                    Ok(Self(sized))
                } else {
                    struct Sized;
                    impl<'de> serde::de::Visitor<'de> for Sized {
                        type Value = [u8; $len];

                        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                            f.write_str(stringify!($len bytes))
                        }

                        fn visit_seq<A: serde::de::SeqAccess<'de>>(
                            self,
                            mut seq: A,
                        ) -> Result<[u8; $len], A::Error> {
                            let mut bytes = [0; $len];
                            for (at, byte) in bytes.iter_mut().enumerate() {
                                *byte = seq
                                    .next_element()?
                                    .ok_or_else(|| A::Error::invalid_length(at, &self))?;
                            }
                            Ok(bytes)
                        }
                    }
                    deserializer.deserialize_tuple($len, Sized).map(Self)
                }
            }
        }
    };
}

sized_bytes! {
    /// An Ed25519 public key (RFC 8032, 5.1.5), not yet checked to be one.
    PublicKey, 32
}
sized_bytes! {
    /// An Ed25519 signature (RFC 8032, 5.1.6), not yet checked.
    Signature, 64
}
sized_bytes! {
    /// Thirty-two random bytes, used once.
    Nonce, 32
}
sized_bytes! {
    /// A SHA-256 digest (FIPS 180-4).
    Digest, 32
}

impl PublicKey {
    /// Returns the key as SSH writes it (RFC 8709, 4): the bytes whose SHA-256 is its fingerprint.
    pub fn to_ssh_wire(&self) -> [u8; 51] {
        let mut wire = *b"\0\0\0\x0bssh-ed25519\0\0\0\x20................................";
        wire[19..].copy_from_slice(&self.0);
        wire
    }
}
