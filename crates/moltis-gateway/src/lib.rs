//! Moltis: gateway.

pub mod api;
pub mod http;
pub mod principal;
