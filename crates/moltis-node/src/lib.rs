//! The Moltis node as a library.
//!
//! A node is two halves. The [`keeper`] owns runs: it spawns commands, keeps their output and
//! knows how they ended; it has no network. The link, which is a [`Node`] at work, dials the
//! gateway, proves who this machine is and passes run messages between the two. They meet on a Unix
//! socket, so a run survives the end of the link, of the gateway and of an upgrade.
//!
//! The crate never prints, reads the environment, catches a signal or looks for a home directory:
//! its embedder hands it values, and what happens comes out as [`LinkEvent`]s.

pub mod config;
pub mod home;
pub mod keeper;
pub mod keepers;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod state;
pub mod tls;
pub mod url;

mod clock;
mod error;
mod event;
mod link;
mod node;

pub use config::{ConfigFile, NodeConfig, Policy};
pub use error::{LinkError, Outlook, Step};
pub use event::{LinkEvent, Trust};
pub use keepers::{KeeperDir, Keepers};
pub use node::{GiveUp, Node, NodeBuilder, Settings};
pub use state::NodeState;
pub use url::GatewayUrl;
