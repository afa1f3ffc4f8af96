//! Ctrl+C and its relatives, as a flag that everybody who waits looks at.
//!
//! Whoever owns children or files asks [`asked`] while it waits and then leaves by the ordinary way
//! out, so that everything is removed by the code that removes it anyway.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on a signal asks us to stop. Everything that waits looks at the flag, and the way out is
/// bounded, so a second signal changes nothing: what we made would be left behind.
pub(crate) fn listen() -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ASKED))
            .with_context(|| format!("cannot listen for signal {signal}"))?;
    }
    Ok(())
}

/// Returns whether a signal asked us to stop.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
