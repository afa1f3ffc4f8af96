//! Key files: one private key each, readable by its owner alone, complete or not there at all.
//!
//! A node's and a gateway's file begin with different words, so that one is never taken for the
//! other. The layout is in `text`, the handling of the file in `disk`.

mod disk;
mod text;

use std::io;
use std::path::{Path, PathBuf};

use moltis_proto::{DeviceId, NodeId};
use zeroize::Zeroizing;

use crate::SecretKey;

/// Why a key file is not used, or not made. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// There is no such file.
    #[error("there is no key file `{}`", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file is there already; a key is never overwritten.
    #[error("`{}` exists already and is kept: remove it yourself if its identity is to end", path.display())]
    Exists {
        /// Where it is.
        path: PathBuf,
    },
    /// The path is a symbolic link.
    #[error("the key file `{}` is a symbolic link: put the file itself there", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// The path is a directory, a pipe or a device.
    #[error("the key file `{}` is not a regular file: move it away", path.display())]
    NotAFile {
        /// Where it is.
        path: PathBuf,
    },
    /// Others than the owner may read or write it.
    #[error(
        "the key file `{}` has mode {mode:04o}, so others on this machine may have read it: make a new key, or type `chmod 600 '{}'` if you know that nobody has",
        path.display(), path.display()
    )]
    TooOpen {
        /// Where it is.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    #[error(
        "the key file `{}` belongs to user {owner}, but this process runs as user {user}: run as its owner, or `chown` it",
        path.display()
    )]
    Foreign {
        /// Where it is.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// It is a key file, but for another purpose.
    #[error("`{}` is {found}, but {expected} is expected: do not share key files", path.display())]
    WrongKind {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// It was written by a newer version.
    #[error("the key file `{}` was written by a newer version of Moltis: update this one", path.display())]
    Newer {
        /// Where it is.
        path: PathBuf,
    },
    /// It is no key file, or damaged.
    #[error(
        "the key file `{}` is damaged: {problem}; restore it from a backup, or remove it to begin with a new identity",
        path.display()
    )]
    Corrupt {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file system said no.
    #[error("could not {doing} the key file `{}`", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What a key file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Node,
    Gateway,
}

/// What a key file holds. A node's names its device and node id, a gateway's does not.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) secret: SecretKey,
    pub(crate) node: Option<(DeviceId, NodeId)>,
}

/// Reads a file that nobody else can have read or written.
pub(crate) fn read(path: &Path, kind: Kind) -> Result<Record, KeyFileError> {
    let content: Zeroizing<Vec<u8>> = disk::read(path)?;
    text::parse(&content, kind).map_err(|problem| problem.at(path))
}

/// Makes a file that is not there yet.
pub(crate) fn create(path: &Path, record: &Record) -> Result<(), KeyFileError> {
    disk::write(path, &text::format(record), disk::Existing::Keep)
}

/// Makes a file in the place of the one that is there.
pub(crate) fn replace(path: &Path, record: &Record) -> Result<(), KeyFileError> {
    disk::write(path, &text::format(record), disk::Existing::Replace)
}
