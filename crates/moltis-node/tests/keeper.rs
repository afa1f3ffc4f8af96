//! The keeper with real processes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests and their helpers, some of which print figures"
)]

#[path = "keeper/client.rs"]
mod client;
#[path = "keeper/fixture.rs"]
mod fixture;

#[path = "keeper/dies.rs"]
mod dies;
#[path = "keeper/disk.rs"]
mod disk;
#[path = "keeper/door.rs"]
mod door;
#[path = "keeper/ends.rs"]
mod ends;
#[path = "keeper/input.rs"]
mod input;
#[path = "keeper/many.rs"]
mod many;
#[path = "keeper/mounts.rs"]
mod mounts;
#[path = "keeper/output.rs"]
mod output;
#[path = "keeper/rules.rs"]
mod rules;
#[path = "keeper/speed.rs"]
mod speed;
#[path = "keeper/stays.rs"]
mod stays;
