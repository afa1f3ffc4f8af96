//! Moltis: gateway.

pub mod admission;
pub mod api;
pub mod audit;
pub mod clock;
pub mod config;
pub mod error;
pub mod events;
pub mod exec;
pub mod gateway;
pub mod http;
pub mod local;
pub mod output;
pub mod pairing;
pub mod principal;
pub mod roster;
#[expect(
    dead_code,
    reason = "the door in front of it comes with the desk behind it"
)]
mod session;
mod sightings;
pub mod store;
pub mod tasks;

pub use config::GatewayConfig;
pub use error::BuildError;
pub use gateway::{Gateway, GatewayBuilder};
