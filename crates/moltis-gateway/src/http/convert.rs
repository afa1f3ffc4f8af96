//! Where the three vocabularies meet: rows and wire messages become the shapes of [`crate::api`],
//! and what a request says becomes words of the rooms behind.
//!
//! One file for each family, conversions only.

mod errors;
mod fleet;
pub(super) mod nodes;
mod pairing;
pub(super) mod runs;
mod telemetry;
mod tokens;
