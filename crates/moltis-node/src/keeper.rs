//! The keeper: the process that owns the runs of one directory, on a node or on the gateway's
//! machine.
//!
//! It spawns commands, reads both their outputs, feeds their stdin, ends them at their time, keeps
//! what they wrote until a gateway has stored it, and remembers how they ended. It has no network:
//! it listens on a Unix socket of its own user and speaks the run messages of
//! [`moltis_proto::message`] there, framed as [`wire`] says. When the client on that socket goes,
//! the runs go on; the next client resumes where the last one stopped.
//!
//! Clients use [`connect`].

pub mod config;
pub mod connect;
pub mod wire;

pub use config::{KeeperConfig, Policy, Rules, RulesSource};
pub use connect::{KeeperStream, Starter};
