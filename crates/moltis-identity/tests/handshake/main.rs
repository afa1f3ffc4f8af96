//! The handshake against everybody who should not get through it.
//!
//! Two real machines, real Noise channels, both codecs. In between sits an adversary who sees and
//! may change every byte on the wire and, since anybody can be the other end of a Noise NN
//! channel, every byte of plaintext too.
#![expect(
    clippy::panic,
    clippy::unwrap_in_result,
    clippy::unwrap_used,
    reason = "a test's helpers fail like the test"
)]

mod changed;
mod honest;
mod meeting;
mod middle;
mod replayed;
mod skew;
mod spec;
mod turns;
mod vectors;
mod weak;
