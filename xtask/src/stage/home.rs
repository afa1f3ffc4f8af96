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

/// How the folder is called, and how many random letters follow.
const PREFIX: &str = "stage-";
const RANDOM: usize = 6;

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
        let parent = shallow(&[target.clone(), env::temp_dir(), "/tmp".into()])?;
        let folder = fs::create_dir_all(&parent).and_then(|()| {
            tempfile::Builder::new()
                .prefix(PREFIX)
                .rand_bytes(RANDOM)
                .tempdir_in(&parent)
        });
        let folder = folder.with_context(|| format!("a folder in {}", parent.display()))?;
        if parent != target {
            let path = folder.path().display();
            say::line(&format!(
                "socket paths under target/ would be too long; using {path} instead"
            ));
        }
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

/// Returns the first of these folders below which the sockets' paths are short enough.
fn shallow(parents: &[PathBuf]) -> anyhow::Result<PathBuf> {
    let below = PREFIX.len() + RANDOM + LONGEST.len() + 2;
    let is_short = |parent: &&PathBuf| parent.as_os_str().len() + below <= SOCKET_PATH_MAX;
    parents.iter().find(is_short).cloned().with_context(|| {
        format!("no folder is short enough for a socket {below} bytes below it: tried {parents:?}")
    })
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
    #[test]
    fn the_first_folder_that_is_short_enough_is_taken() {
        let long = PathBuf::from(format!("/{}", "x".repeat(60)));
        // What macOS calls its folder for temporary files is too long itself.
        let macos = PathBuf::from("/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T");
        let taken = shallow(&[long.clone(), macos.clone(), "/tmp".into()]);
        assert_eq!(taken.unwrap(), Path::new("/tmp"));
        let taken = shallow(&["/short".into(), macos.clone(), "/tmp".into()]);
        assert_eq!(taken.unwrap(), Path::new("/short"));
        let error = shallow(&[long.clone(), macos, long]).unwrap_err();
        assert!(error.to_string().contains("short enough"), "{error}");
    }
}
