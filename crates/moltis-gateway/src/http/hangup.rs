//! The end of a connection, in the hands of whoever answers on it.
//!
//! An answer ends when its body does, but a body is asked for more only while its reader reads. An
//! answer that has to end all the same ends with its connection. The accept loop of [`super::serve`]
//! puts a [`Hangup`] beside each request; an embedder's own server has none, and there a body that
//! is over waits until somebody asks for it, or the connection dies.

use axum::http::Extensions;
use tokio_util::sync::CancellationToken;

/// Closes one connection. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(super) struct Hangup(CancellationToken);

impl Hangup {
    /// Finds that of a request.
    pub(super) fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get::<Self>().cloned()
    }

    /// Closes the connection, with what was not sent yet.
    pub(super) fn now(&self) {
        self.0.cancel();
    }

    /// Waits until somebody has closed it.
    pub(super) async fn asked(&self) {
        self.0.cancelled().await;
    }
}
