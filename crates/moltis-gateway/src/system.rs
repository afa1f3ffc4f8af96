//! The machine below: steps on its disk, and work that blocks.
//!
//! A step of which a crash leaves all or nothing goes through [`System::step`], and work that blocks
//! a thread through [`System::blocking`] or a [`Worker`](crate::worker::Worker). On a real machine
//! the one is a plain call, and the other has threads of its own. In a simulation a disk hears of
//! each step and may fail it, and all work is done by the one thread that there is.

#[cfg(not(feature = "simulation"))]
mod real;
#[cfg(feature = "simulation")]
mod simulated;

#[cfg(not(feature = "simulation"))]
pub(crate) use self::real::System;
#[cfg(feature = "simulation")]
pub(crate) use self::simulated::System;

/// Starts a task that ends by itself, when its owner is dropped.
#[expect(
    clippy::disallowed_methods,
    reason = "a store is opened before there is anything to own its tasks; they end with it"
)]
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
    tokio::spawn(task)
}
