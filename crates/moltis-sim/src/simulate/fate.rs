//! Whether a process of the world lives.

use tokio_util::sync::CancellationToken;

/// One life of a process. Cloning shares it: whatever belongs to the process asks before it acts.
#[derive(Debug, Clone, Default)]
pub(super) struct Fate(CancellationToken);

impl Fate {
    /// It ends, in this moment.
    pub(super) fn end(&self) {
        self.0.cancel();
    }

    /// Returns whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits for its end.
    pub(super) async fn over(&self) {
        self.0.cancelled().await;
    }
}
