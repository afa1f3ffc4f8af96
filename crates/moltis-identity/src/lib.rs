//! Moltis: identity.
