//! The HTTP API with a real gateway, a real node and real sockets: each body as it is written, what
//! is refused and in which words, and output to the last byte.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests own the tasks of the programs that they play, and end where they fail"
)]

mod bad_input;
mod bodies;
mod client;
mod doctor;
mod events;
mod feed;
mod fleet;
#[path = "../session/gateway.rs"]
#[expect(
    dead_code,
    reason = "shared with the tests of sessions, which use all of it"
)]
mod gateway;
mod in_process;
mod matrix;
#[path = "../session/node.rs"]
#[expect(
    dead_code,
    reason = "shared with the tests of sessions, which use all of it"
)]
mod node;
mod openapi;
mod output;
mod readers;
mod run_events;
mod runs;
