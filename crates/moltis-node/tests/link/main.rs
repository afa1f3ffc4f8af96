//! The link on real sockets, against a gateway that does as each test says.

mod gateway;
mod node;
mod session;
