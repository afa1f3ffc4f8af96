//! Where the link finds the keepers of its machine: the border between the two halves of a node.
//!
//! A keeper is a process of its own behind a Unix socket, or lives in this process behind a pipe in
//! memory. The link does not care; it passes frames ([`crate::keeper::wire`]).

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::keeper::{Keeper, KeeperStream, Sockets, Starter, connect};

/// Why no keeper can be reached.
pub type KeepersError = Box<dyn Error + Send + Sync>;

/// Finds and starts keepers.
pub trait Keepers: Send + Sync + 'static {
    /// Connects to every keeper of this machine that lives, the one for new runs first. Starts one
    /// where none does, so there is always a first.
    ///
    /// # Errors
    /// None lives and none can be started.
    fn connect(&self) -> BoxFuture<'_, Result<Vec<KeeperStream>, KeepersError>>;
}

impl fmt::Debug for dyn Keepers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keepers")
    }
}

/// A keeper in this process: what an embedder joins to its node, with the runs ending as it does.
impl Keepers for Arc<Keeper> {
    fn connect(&self) -> BoxFuture<'_, Result<Vec<KeeperStream>, KeepersError>> {
        Box::pin(async { Ok(vec![Keeper::connect(self).await?]) })
    }
}

/// The keepers of one directory, `runs/` of a node.
pub struct KeeperDir {
    sockets: Sockets,
    dir: PathBuf,
    version: String,
    starter: Box<dyn Starter>,
}

impl KeeperDir {
    /// Looks for keepers in `dir`; `starter` starts one where none of this crate's version answers.
    pub fn new(dir: impl Into<PathBuf>, starter: impl Starter + 'static) -> Self {
        Self {
            sockets: Sockets::default(),
            dir: dir.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            starter: Box::new(starter),
        }
    }

    /// New runs go to keepers of this version: the one that `starter` gives its keepers.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Looks for keepers behind the sockets of a simulation.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn simulated(mut self, sockets: crate::simulation::Sockets) -> Self {
        self.sockets = Sockets::simulated(sockets);
        self
    }
}

impl fmt::Debug for KeeperDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeeperDir")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Keepers for KeeperDir {
    fn connect(&self) -> BoxFuture<'_, Result<Vec<KeeperStream>, KeepersError>> {
        Box::pin(async {
            let (dir, starter) = (&self.dir, &*self.starter);
            Ok(connect::connect_all_by(&self.sockets, dir, starter, &self.version).await?)
        })
    }
}
