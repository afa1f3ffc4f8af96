//! A keeper and a link on machines that are made up, in one thread, on paused time.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    reason = "tests and their helpers"
)]

#[path = "../keeper/client.rs"]
#[expect(dead_code, reason = "the keeper's tests use all of it")]
mod client;
mod deaths;
mod endings;
mod life;
mod machine;
mod roads;
mod story;
