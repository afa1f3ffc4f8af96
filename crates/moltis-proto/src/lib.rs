//! The words that a Moltis gateway and its nodes share.
//!
//! A gateway and a node meet only on the wire; this crate is that wire. It holds the messages, the
//! two codecs that carry them, every limit, and the state machines of both ends: handshake, runs,
//! liveness. Whoever writes a node of their own in Rust needs this crate and `moltis-identity`, and
//! begins at [`node`].
//!
//! It never does I/O, reads a clock, draws a random number or touches a key: bytes, time and
//! randomness come in as arguments, and cryptography stands behind the traits of [`handshake`].

pub mod code;
pub mod codec;
pub mod env;
pub mod handshake;
pub mod id;
pub mod key;
pub mod label;
pub mod limits;
pub mod liveness;
mod map;
pub mod message;
pub mod name;
pub mod nearest;
pub mod node;
pub mod payload;
pub mod run;
pub mod subprotocol;
pub mod telemetry;
pub mod typed;
pub mod version;

pub use code::{Refusal, RunRefusal};
pub use codec::{Codec, CodecError};
pub use id::{BootId, DeviceId, InstanceId, JournalId, RequestId, RunId};
pub use key::{Nonce, PublicKey, Signature};
pub use message::{FromKeeper, ToGateway, ToKeeper, ToNode};
pub use name::{Labels, NodeId, NodeName};
pub use payload::Payload;
pub use subprotocol::Subprotocol;
pub use typed::NODE_ADD;
