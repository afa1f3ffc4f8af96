//! What every node has to get right, whoever wrote it, beside its runs: the ids that are used up, and when
//! to dial again.

pub mod backoff;
mod used;

pub use backoff::Backoff;
pub use used::{USED_MAX, UsedIds};
