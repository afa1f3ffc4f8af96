//! The Moltis node as a library.
//!
//! A node is two halves. The [`keeper`] owns runs: it spawns commands, keeps their output and
//! knows how they ended; it has no network. The link dials the gateway, proves who this machine is
//! and passes run messages between the two. They meet on a Unix socket, so a run survives the end
//! of the link, of the gateway and of an upgrade.
//!
//! The crate never prints, reads the environment or looks for a home directory: its embedder
//! hands it values.

pub mod keeper;
