//! What a keeper stands on: processes, the disk, and the sockets that clients come through.

use super::disk::Disk;
use super::door::Sockets;
use super::kernel::Kernel;

/// The machine of one keeper.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) kernel: Kernel,
    pub(super) disk: Disk,
    pub(super) sockets: Sockets,
}

impl Machine {
    /// This machine, with such a kernel.
    pub(super) fn with(kernel: Kernel) -> Self {
        Self {
            kernel,
            disk: Disk::default(),
            sockets: Sockets::default(),
        }
    }

    /// A machine that a simulation has made up.
    #[cfg(feature = "simulation")]
    pub(super) fn simulated(machine: crate::simulation::Machine) -> Self {
        Self {
            kernel: Kernel::Simulated(machine.kernel),
            disk: Disk::simulated(machine.disk),
            sockets: Sockets::simulated(machine.sockets),
        }
    }
}
