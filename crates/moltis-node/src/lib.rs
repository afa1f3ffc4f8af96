//! Moltis: node.
