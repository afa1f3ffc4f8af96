//! What a simulation puts in the place of a machine, so that the drivers of this crate run as they
//! are on simulated time, disks, processes and roads. Only with the feature `simulation`.
//!
//! A keeper gets a [`Machine`] and runs as the future [`serve`]; a link gets [`Facts`] and a way to
//! [`Dial`] by [`NodeBuilder::simulated`](crate::NodeBuilder::simulated), and finds its keepers by
//! [`KeeperDir::simulated`](crate::KeeperDir::simulated). Both belong into one runtime of one
//! thread whose clock is paused: nothing here starts a thread.
//!
//! **Dying.** Dropping either future is `kill -9`: a keeper that is dropped signals nobody, deletes
//! nothing and says nothing. To die in the middle of a step, a [`Disk`] copies the directory as it
//! finds it, and its keeper is dropped at the next chance. What that one does until then has to be
//! ignored: its disk, its kernel and its sockets belong to a machine that is no more.
//!
//! What is real: the files in a keeper's directory and in the home of a node, and the locks on them.

mod disk;
mod kernel;
mod road;
mod sockets;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use self::disk::{Disk, Edge, STEPS, Step};
pub use self::kernel::{Child, Ends, Found, Input, Kernel, Order, Output, Terminal};
pub use self::road::{Dial, Facts, Road};
pub(crate) use self::sockets::Socket;
pub use self::sockets::Sockets;
use crate::keeper::{self, KeeperConfig, KeeperError, Served};

/// The machine of one keeper.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its processes.
    pub kernel: Arc<dyn Kernel>,
    /// The disk under its journals and spools.
    pub disk: Arc<dyn Disk>,
    /// Where its clients find it.
    pub sockets: Sockets,
}

/// Serves a directory on a simulated machine, as [`keeper::serve`] does on a real one.
///
/// # Errors
/// [`KeeperError`]; nothing was served then.
///
/// # Cancel safety
/// Dropping the future kills the keeper.
pub async fn serve(
    config: KeeperConfig,
    machine: Machine,
    stop: CancellationToken,
) -> Result<Served, KeeperError> {
    keeper::serve_simulated(machine, config, stop).await
}
