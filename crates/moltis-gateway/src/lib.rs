//! Moltis: gateway.

pub mod api;
