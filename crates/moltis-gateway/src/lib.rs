//! Moltis: gateway.
