//! A folder for one showing, under `target/` where the socket paths in it stay short enough.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::{say, workspace};

/// The longest path of a Unix socket we take: the system's limit is 104 to 108 bytes.
const SOCKET_PATH_MAX: usize = 100;

/// The longest name below the home: a keeper's socket, with 16 bytes in hexadecimal.
const LONGEST: &str = "gateway/local/k0123456789abcdef0123456789abcdef.sock";

/// The folder beside both homes that stands for the person's own.
pub(super) const PERSON: &str = "person";

/// A home for a gateway and one for a node, removed when dropped.
#[derive(Debug)]
pub(crate) struct Home {
    folder: TempDir,
}

impl Home {
    /// Makes the folder, and says where when it is not under `target/`.
    pub(crate) fn make() -> anyhow::Result<Self> {
        let target = workspace::target();
        let builder = |parent: &Path| {
            fs::create_dir_all(parent).and_then(|()| {
                tempfile::Builder::new()
                    .prefix("stage-")
                    .rand_bytes(6)
                    .tempdir_in(parent)
            })
        };
        let sample = target.join("stage-123456").join(LONGEST);
        let folder = if sample.as_os_str().len() <= SOCKET_PATH_MAX {
            builder(&target).with_context(|| format!("a folder in {}", target.display()))?
        } else {
            let temporary = env::temp_dir();
            let folder = builder(&temporary)
                .with_context(|| format!("a folder in {}", temporary.display()))?;
            let path = folder.path().display();
            say::line(&format!(
                "socket paths under target/ would be too long; using {path} instead"
            ));
            folder
        };
        let home = Self { folder };
        for dir in [home.gateway(), home.node(), home.path().join(PERSON)] {
            fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        Ok(home)
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn gateway(&self) -> PathBuf {
        self.path().join("gateway")
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.path().join("node")
    }

    /// Removes everything.
    pub(crate) fn remove(&mut self) -> anyhow::Result<()> {
        let path = self.path();
        fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_gone_when_dropped() {
        let home = Home::make().unwrap();
        let path = home.path().to_path_buf();
        assert!(path.join("gateway").is_dir());
        assert!(path.join(LONGEST).as_os_str().len() <= SOCKET_PATH_MAX);
        drop(home);
        assert!(!path.exists());
    }
}
