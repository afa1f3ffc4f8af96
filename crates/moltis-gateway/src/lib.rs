//! Moltis: gateway.

pub mod admission;
pub mod api;
pub mod events;
pub mod http;
pub mod principal;
pub mod tasks;
