//! The real binary, from outside: every test starts it in an empty home of its own.
//!
//! What can be tested a floor lower is tested there. Here are the stories that need processes:
//! joining, running, signals, pipes, terminals, crashes, and what a person is told.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests end the test where they cannot go on"
)]

mod harness;

mod acts;
mod ages;
mod api;
mod backup;
mod clock;
mod crash;
mod cuts;
mod disks;
mod doctor;
mod embed;
mod events;
mod exec;
mod faults;
mod figures;
mod fleet;
mod floods;
mod homes;
mod input;
mod leaving;
mod metrics;
mod networks;
mod node;
mod operator;
mod pages;
mod pairing;
mod pipes;
mod power;
mod proxied;
mod remote;
mod restored;
mod runs;
mod scripted;
mod service;
mod signals;
mod silent;
mod systemd;
mod terminal;
mod texts;
mod thin;
mod tls;
mod volume;
