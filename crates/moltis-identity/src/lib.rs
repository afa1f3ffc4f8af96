//! Who is who: keys, fingerprints, key files, strict verification and the Noise channel.
//!
//! A gateway and a node each hold one Ed25519 key. This crate makes and keeps it
//! ([`NodeIdentity`], [`GatewayIdentity`]), stands behind the [`Signer`] and [`Verifier`] of
//! `moltis-proto`, and gives the two ends a [`noise::Channel`] to meet on. The gateway, the node,
//! and everybody who writes a node of their own in Rust use it.
//!
//! It opens no connection, prints nothing, and signs nothing but the transcripts of the handshake.
//!
//! # Example
//!
//! Two ends meet: each proves its key over the channel that both are on.
//!
//! ```
//! use moltis_identity::noise::{Initiator, Responder};
//! use moltis_identity::{SecretKey, StrictVerifier, random};
//! use moltis_proto::handshake::Intent;
//! use moltis_proto::handshake::gateway::GatewayHandshake;
//! use moltis_proto::handshake::node::{NodeClaim, NodeHandshake, Pin};
//! use moltis_proto::subprotocol::Negotiated;
//! use moltis_proto::version::LedgerRange;
//! use moltis_proto::{BootId, DeviceId, InstanceId, Nonce};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // What the upgrade of the WebSocket agreed on; both ends see it.
//! let negotiated = Negotiated::from_header_values(["moltis.node.v1"]).ok_or("no offer is known")?;
//!
//! // Two Noise messages, and both ends have a channel with one binding.
//! let (initiator, message_1) = Initiator::new(&negotiated)?;
//! let (gateway_end, message_2) = Responder::new(&negotiated)?.respond(&message_1)?;
//! let node_end = initiator.finish(&message_2)?;
//!
//! // The gateway shows its key; the node knows it and answers.
//! let (gateway_key, node_key) = (SecretKey::generate(), SecretKey::generate());
//! let nonce = || Nonce::from_bytes(random::bytes());
//! let (mut gateway, gateway_proof) = GatewayHandshake::new(
//!     gateway_end.binding,
//!     &gateway_key,
//!     &StrictVerifier,
//!     LedgerRange::CURRENT,
//!     nonce(),
//!     nonce(),
//! );
//! let claim = NodeClaim {
//!     device_id: DeviceId::from_bytes(random::bytes()),
//!     instance_id: InstanceId::from_bytes(random::bytes()),
//!     boot_id: BootId::from_bytes(random::bytes()),
//!     intent: Intent::Pair,
//!     ledgers: LedgerRange::CURRENT,
//! };
//! let pin = Pin::Key(gateway_key.public_key());
//! let mut node = NodeHandshake::new(node_end.binding, claim, pin);
//! let node_proof =
//!     node.handle_gateway_proof(gateway_proof, &node_key, &StrictVerifier, nonce())?;
//! gateway.handle_proof(node_proof, &StrictVerifier)?;
//! # Ok(())
//! # }
//! ```

pub mod files;
pub mod fingerprint;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod hex;
mod identity;
pub mod key_file;
pub mod noise;
pub mod random;
mod secret;
mod verify;

pub use fingerprint::Fingerprint;
pub use identity::{GatewayIdentity, NodeIdentity};
pub use key_file::KeyFileError;
#[doc(no_inline)]
pub use moltis_proto::handshake::{Signer, Verifier};
pub use secret::SecretKey;
pub use verify::StrictVerifier;
