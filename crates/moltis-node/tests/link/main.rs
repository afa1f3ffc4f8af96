//! The link on real sockets, against a gateway that does as each test says.

mod answers;
mod cuts;
mod gateway;
mod hostile;
mod keepers;
mod life;
mod node;
mod pairing;
mod session;
mod settings;
