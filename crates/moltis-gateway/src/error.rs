//! What building and serving a gateway can fail with.

use std::path::PathBuf;

use moltis_identity::KeyFileError;

use crate::http::tls::TlsError;
use crate::http::{HostError, ProxyError};
use crate::output::OutputError;
use crate::store::StoreError;

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The directory is of no use.
    #[error("the gateway's directory `{}` {problem}", dir.display())]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The database cannot be opened.
    #[error("the gateway's store cannot be opened")]
    Store(#[from] StoreError),
    /// The stored output cannot be opened.
    #[error("the gateway's stored output cannot be opened")]
    Output(#[from] OutputError),
    /// The gateway's key cannot be read or made.
    #[error("the gateway's key cannot be used")]
    Key(#[from] KeyFileError),
    /// A window of the configuration is too small to move anything.
    #[error("a window of {found} bytes for {what} is too small: at least {min}")]
    Window {
        /// Whose.
        what: &'static str,
        /// What was configured.
        found: u32,
        /// The least.
        min: u32,
    },
    /// What an earlier process left open cannot be taken up.
    #[error("the runs that were left open cannot be taken up")]
    Runs(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A host of the configuration is none.
    #[error("the gateway's hosts cannot be used")]
    Host(#[from] HostError),
    /// A trusted proxy of the configuration is no address.
    #[error("the gateway's trusted proxies cannot be used")]
    Proxy(#[from] ProxyError),
    /// The certificate cannot be read or made.
    #[error("the gateway's certificate cannot be used")]
    Tls(#[from] TlsError),
}
