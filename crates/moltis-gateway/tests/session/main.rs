//! The gateway with real nodes, real sockets and a real store: what a session must do, and what it
//! must not let a node do.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests own the tasks of the programs that they play, and end where they fail"
)]

mod cuts;
mod gateway;
mod hostile;
mod json;
mod lists;
mod local;
mod node;
mod pairing;
mod presence;
mod proxy;
mod raw;
mod repeats;
mod runs;
