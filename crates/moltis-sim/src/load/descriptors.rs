//! Descriptors: each connection needs one, and systems grant few unless asked.

use anyhow::bail;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors beside the connections: the runtime's, the standard streams, a store.
const BESIDE: u64 = 64;

/// Raises the bound to what the system allows, and looks whether so many connections fit.
pub(super) fn need(connections: u64) -> anyhow::Result<()> {
    let granted = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: granted.maximum,
        maximum: granted.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => granted.maximum,
        Err(_) => granted.current,
    };
    let needed = connections + BESIDE;
    match current {
        Some(most) if most < needed => bail!(
            "{connections} connections need {needed} descriptors, but the system grants this \
             process {most} (`ulimit -Hn`)"
        ),
        _ => Ok(()),
    }
}
