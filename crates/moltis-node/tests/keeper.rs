//! The keeper with real processes.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

#[path = "keeper/client.rs"]
mod client;
#[path = "keeper/fixture.rs"]
mod fixture;

#[path = "keeper/ends.rs"]
mod ends;
#[path = "keeper/output.rs"]
mod output;
