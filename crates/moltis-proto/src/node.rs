//! What every node has to get right, whoever wrote it: its connection, the runs that it holds, the ids
//! that are used up, and when to dial again.
//!
//! [`Link`] and [`Runs`] are the whole of it for a node that holds its commands in its own process and
//! their output in memory: what is left is to dial, to spawn, to read and to write. Our own node is made of the same parts ([`outbox`](crate::run::outbox),
//! [`stdin`](crate::run::stdin), [`turn`](crate::run::turn), [`UsedIds`], [`Backoff`]), but puts them
//! together in another way: its keeper outlives the node, spools to disk, gives terminals and finds
//! orphans.

pub mod backoff;
mod held;
mod link;
mod runs;
mod used;

pub use backoff::Backoff;
pub use link::{Caller, Link, LinkEnd, LinkEvent};
pub use runs::{Action, Record, Runs, RunsConfig, RunsError, ToChild};
pub use used::{USED_MAX, UsedIds};
