//! The disk under a keeper: every step that the next keeper could see is taken through here.

use std::fs::File;
use std::io;
use std::path::Path;
#[cfg(feature = "simulation")]
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use moltis_proto::limits::{SPOOL_BYTES_MAX, disk_reserve_bytes};

#[cfg(feature = "simulation")]
use crate::simulation::{self, Edge, Step};

/// Where journals and spools lie. Nobody is told of its steps, unless a simulation is.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    #[cfg(feature = "simulation")]
    simulated: Option<Arc<dyn simulation::Disk>>,
}

impl Disk {
    /// A disk whose steps a simulation is told of, and may refuse.
    #[cfg(feature = "simulation")]
    pub(super) fn simulated(disk: Arc<dyn simulation::Disk>) -> Self {
        Self {
            simulated: Some(disk),
        }
    }

    /// Takes a step at `path`. A keeper may die before it, and behind it.
    #[cfg_attr(
        not(feature = "simulation"),
        expect(unused_variables, clippy::unused_self, reason = "nobody is told")
    )]
    pub(super) fn step<T>(
        &self,
        what: &'static str,
        path: &Path,
        step: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        #[cfg(feature = "simulation")]
        self.tell(what, path, Edge::Before)?;
        let done = step()?;
        #[cfg(feature = "simulation")]
        self.tell(what, path, Edge::After)?;
        Ok(done)
    }

    /// Returns whether a simulation has made it up.
    #[cfg_attr(
        not(feature = "simulation"),
        expect(clippy::unused_self, reason = "there is one disk")
    )]
    pub(super) fn is_simulated(&self) -> bool {
        #[cfg(feature = "simulation")]
        return self.simulated.is_some();
        #[cfg(not(feature = "simulation"))]
        false
    }

    /// Does work that waits for the disk, on a thread of its own. It is done also when nobody asks
    /// for its result any more, which is `None` when it panicked.
    #[cfg_attr(
        not(feature = "simulation"),
        expect(clippy::unused_self, reason = "there is one way")
    )]
    pub(super) fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, Option<T>> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = self.simulated.clone() {
            let takes_time = async move {
                let time = disk.work_time();
                if !time.is_zero() {
                    tokio::time::sleep(time).await;
                }
                Some(work())
            };
            return takes_time.boxed();
        }
        let doing = tokio::task::spawn_blocking(work);
        doing.map(Result::ok).boxed()
    }

    /// Returns the bytes that all spools in `dir` may take of its disk: a tenth, and not less than
    /// one stream may.
    #[cfg_attr(
        not(feature = "simulation"),
        expect(clippy::unused_self, reason = "there is one disk")
    )]
    pub(super) fn share(&self, dir: &Path) -> u64 {
        #[cfg(feature = "simulation")]
        if self.simulated.is_some() {
            return u64::MAX; // the size of ours says nothing about it
        }
        let Ok(disk) = rustix::fs::statvfs(dir) else {
            return u64::MAX;
        };
        match disk.f_blocks.saturating_mul(disk.f_frsize) {
            0 => u64::MAX, // a file system without a size
            size => (size / 10).max(SPOOL_BYTES_MAX),
        }
    }

    /// Checks that a file which grows to this length leaves to the journal what is its own.
    #[cfg_attr(
        not(feature = "simulation"),
        expect(clippy::unused_self, reason = "there is one disk")
    )]
    pub(super) fn check_room(&self, file: &File, length: u64) -> io::Result<()> {
        #[cfg(feature = "simulation")]
        if self.simulated.is_some() {
            return Ok(()); // what is free on ours says nothing about it
        }
        let growth = length.saturating_sub(file.metadata()?.len());
        let Ok(disk) = rustix::fs::fstatvfs(file) else {
            return Ok(()); // the write itself will tell
        };
        let size = disk.f_blocks.saturating_mul(disk.f_frsize);
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        // A file system without a size does not count.
        if growth > 0 && size > 0 && free < disk_reserve_bytes(size).saturating_add(growth) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    #[cfg(feature = "simulation")]
    fn tell(&self, what: &'static str, path: &Path, edge: Edge) -> io::Result<()> {
        match &self.simulated {
            Some(disk) => disk.step(Step { what, path, edge }),
            None => Ok(()),
        }
    }
}
