//! Moltis: gateway.

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
mod socket;
pub mod store;
pub mod tasks;
pub mod telemetry;

pub use config::GatewayConfig;
pub use error::BuildError;
pub use gateway::{Gateway, GatewayBuilder};
pub use in_process::{Cut, InProcess, Streamed};
pub use principal::{Principal, User, Vouched};
