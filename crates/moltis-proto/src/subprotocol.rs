//! The three WebSocket subprotocols of `/ws`, and how one is chosen.

use crate::codec::Codec;

/// What a node and a gateway speak inside a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subprotocol {
    /// postcard inside ChaChaPoly.
    Postcard,
    /// postcard inside AESGCM; offered first where the CPU has AES.
    PostcardAes,
    /// JSON inside ChaChaPoly.
    Json,
}

/// The cipher of the Noise channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaChaPoly,
    /// AES-256-GCM (NIST SP 800-38D).
    AesGcm,
}

impl Subprotocol {
    /// All, in no order of preference.
    pub const ALL: [Self; 3] = [Self::Postcard, Self::PostcardAes, Self::Json];

    /// Returns its name in `Sec-WebSocket-Protocol` (RFC 6455, 11.3.4).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postcard => "moltis.node.v1",
            Self::PostcardAes => "moltis.node.v1+aes",
            Self::Json => "moltis.node.v1+json",
        }
    }

    /// Returns the one with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Returns how its messages are written.
    pub const fn codec(self) -> Codec {
        match self {
            Self::Postcard | Self::PostcardAes => Codec::Postcard,
            Self::Json => Codec::Json,
        }
    }

    /// Returns how its frames are sealed.
    pub const fn cipher(self) -> Cipher {
        match self {
            Self::Postcard | Self::Json => Cipher::ChaChaPoly,
            Self::PostcardAes => Cipher::AesGcm,
        }
    }

    /// Returns the largest chunk of output that fits a frame of its codec.
    pub const fn chunk_bytes_max(self) -> usize {
        match self.codec() {
            Codec::Postcard => crate::limits::CHUNK_BYTES_MAX,
            Codec::Json => crate::limits::CHUNK_BYTES_MAX_JSON,
        }
    }
}

/// The names that a node offered, parsed, and the first of them that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// The names as offered, joined by `,`: part of the Noise prologue, so that removing an offer
    /// on the way is noticed.
    pub offered: String,
    /// The gateway's choice: the first offer that it knows.
    pub chosen: Subprotocol,
}

impl Negotiated {
    /// Reads the values of `Sec-WebSocket-Protocol`; `None` when no offer is known, when there are
    /// more than eight, or when one is no token.
    pub fn from_header_values<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let offers: Vec<&str> = values
            .into_iter()
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .collect();
        if offers.len() > 8
            || offers
                .iter()
                .any(|offer| offer.is_empty() || offer.len() > 64)
        {
            return None;
        }
        let chosen = offers
            .iter()
            .find_map(|offer| Subprotocol::from_name(offer))?;
        Some(Self {
            offered: offers.join(","),
            chosen,
        })
    }

    /// Returns the Noise prologue: label, offers and choice, parted by zero bytes.
    pub fn prologue(&self) -> Vec<u8> {
        let mut prologue = b"moltis/node-noise/1\0".to_vec();
        prologue.extend_from_slice(self.offered.as_bytes());
        prologue.push(0);
        prologue.extend_from_slice(self.chosen.name().as_bytes());
        prologue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_offer_is_chosen() {
        let choose = |value| Negotiated::from_header_values([value]).map(|it| it.chosen);
        assert_eq!(
            choose("moltis.node.v1+aes, moltis.node.v1"),
            Some(Subprotocol::PostcardAes)
        );
        assert_eq!(
            choose("moltis.node.v9, moltis.node.v1"),
            Some(Subprotocol::Postcard)
        );
        assert_eq!(choose("chat"), None);
        assert_eq!(choose(""), None);
        assert_eq!(choose("moltis.node.v1,,"), None);
        assert_eq!(choose("a,a,a,a,a,a,a,a,moltis.node.v1"), None);
    }

    #[test]
    fn a_removed_offer_changes_the_prologue() {
        let prologue = |value| Negotiated::from_header_values([value]).map(|it| it.prologue());
        assert_ne!(
            prologue("moltis.node.v1+aes,moltis.node.v1"),
            prologue("moltis.node.v1")
        );
    }
}
