//! The link on real sockets, against a gateway that does as each test says.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail like the test")]

mod answers;
mod cuts;
mod gateway;
mod hostile;
mod keepers;
mod life;
mod node;
mod pairing;
mod real;
mod session;
mod settings;
mod slow;
mod speed;
