//! Moltis: gateway.

pub mod admission;
pub mod api;
pub mod audit;
pub mod clock;
pub mod events;
pub mod http;
pub mod output;
pub mod pairing;
pub mod principal;
pub mod store;
pub mod tasks;
