//! The Moltis gateway as a library: it lets machines in, runs commands on them, keeps what they print,
//! and answers over HTTP. The `moltis` binary is one program around it; yours may be another.
//!
//! A program that embeds it makes three calls. It builds a gateway, nests its router under any path,
//! and shuts it down. Its own login says who asks ([`Vouched`]), and what the API does it can have
//! without a socket ([`Gateway::on_behalf_of`]):
//!
//! ```
//! use axum::Router;
//! use moltis_gateway::api::nodes::ListNodes;
//! use moltis_gateway::api::tokens::Scope;
//! use moltis_gateway::{Gateway, GatewayConfig, Principal, User};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let home = tempfile::tempdir()?;
//! # let dir = home.path().join("moltis");
//! let gateway = Gateway::builder(GatewayConfig::new(dir)).build().await?;
//! let app: Router = Router::new().nest("/moltis", gateway.router());
//!
//! let alice = User::new("alice", [Scope::NodesRead])?;
//! let api = gateway.on_behalf_of(Principal::User(alice));
//! let nodes = api.list_nodes(&ListNodes::default()).await?;
//! assert!(nodes.items.is_empty(), "no machine has joined yet");
//!
//! // In `axum::serve(listener, app).with_graceful_shutdown(…)`, behind your signal:
//! gateway.shutdown().await;
//! # drop(app);
//! # Ok(())
//! # }
//! ```
//!
//! `docs/embedding.md` says the rest, and `examples/embed/` is a small program that does all of it.
//!
//! # What it never does
//!
//! It prints nothing, ends no process, reads no environment and nothing outside of its directory but
//! the files that its configuration names, catches no signal, starts no runtime and installs no
//! subscriber: it logs by `tracing`. It starts no process; `local` is a keeper that the embedder
//! connects ([`GatewayBuilder::keeper`]).
//!
//! # Features
//!
//! | feature | gives | brings along |
//! |---|---|---|
//! | `metrics` (default) | `GET /metrics` | `prometheus-client` |
//! | `tls` (default) | HTTPS and `wss://` on the gateway's own listeners | `tokio-rustls`, `rustls`, `rcgen` |
//! | `simulation` | a gateway on one thread, with a disk that fails when it is told to (`simulation`) | nothing |
//!
//! The first two are not needed by a program that listens by itself and is watched by other means. The
//! last one is for tests of Moltis itself.

pub mod admission;
pub mod api;
pub mod audit;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod error;
pub mod events;
pub mod exec;
pub mod gateway;
pub mod http;
pub mod in_process;
pub mod local;
mod metrics;
pub mod output;
pub mod pairing;
pub mod principal;
mod records;
pub mod retention;
pub mod roster;
mod session;
#[cfg(feature = "simulation")]
pub mod simulation;
mod socket;
pub mod store;
mod system;
pub mod tasks;
pub mod telemetry;
mod worker;

pub use config::GatewayConfig;
pub use error::BuildError;
pub use gateway::{Gateway, GatewayBuilder};
pub use in_process::{Cut, InProcess, Streamed};
pub use principal::{Principal, User, Vouched};
