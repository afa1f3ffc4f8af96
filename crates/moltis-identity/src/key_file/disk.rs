//! Reading and writing a file that is nobody else's business (Linux and macOS).
//!
//! A file is checked through the descriptor that is then read, so there is no moment between check
//! and use. A new one is written whole beside its place, synced, and then moved there in one step.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::KeyFileError;
use crate::random;

/// What becomes of a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Keep,
    Replace,
}

/// Bytes of a key file, at the most. Ours have below 400.
const BYTES_MAX: usize = 4096;

/// Only the owner may read and write.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    // NONBLOCK: a pipe that somebody put there must not hold us.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => KeyFileError::Missing {
            path: path.to_owned(),
        },
        Errno::LOOP => KeyFileError::Symlink {
            path: path.to_owned(),
        },
        other => io_error("open", path, other.into()),
    })?;
    let mut file = File::from(file);
    check(&file, path)?;
    // All of it at once: a vector that grows leaves copies of the secret behind.
    let mut content = Zeroizing::new(Vec::with_capacity(BYTES_MAX + 1));
    let limit = BYTES_MAX as u64 + 1;
    (&mut file)
        .take(limit)
        .read_to_end(&mut content)
        .map_err(|error| io_error("read", path, error))?;
    if content.len() > BYTES_MAX {
        return Err(KeyFileError::Corrupt {
            path: path.to_owned(),
            problem: "it is longer than a key file",
        });
    }
    Ok(content)
}

fn check(file: &File, path: &Path) -> Result<(), KeyFileError> {
    let found = file
        .metadata()
        .map_err(|error| io_error("check", path, error))?;
    let path = || path.to_owned();
    if !found.is_file() {
        return Err(KeyFileError::NotAFile { path: path() });
    }
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        return Err(KeyFileError::Foreign {
            path: path(),
            owner: found.uid(),
            user,
        });
    }
    let mode = found.mode() & 0o7777;
    if mode & !0o600 != 0 {
        return Err(KeyFileError::TooOpen { path: path(), mode });
    }
    Ok(())
}

pub(super) fn write(path: &Path, content: &str, existing: Existing) -> Result<(), KeyFileError> {
    if existing == Existing::Keep && path.symlink_metadata().is_ok() {
        return Err(KeyFileError::Exists {
            path: path.to_owned(),
        });
    }
    let draft = Draft::beside(path)?;
    draft.fill(content)?;
    draft.move_to(path, existing)?;
    sync_directory(path)
}

/// A file that is removed again unless it reached its place.
struct Draft {
    path: PathBuf,
    file: File,
    moved: bool,
}

impl Draft {
    fn beside(target: &Path) -> Result<Self, KeyFileError> {
        let name = target.file_name().ok_or_else(|| KeyFileError::NotAFile {
            path: target.to_owned(),
        })?;
        let mut draft_name = std::ffi::OsString::from(".");
        draft_name.push(name);
        draft_name.push(format!(".{:016x}", u64::from_ne_bytes(random::bytes())));
        let path = target.with_file_name(draft_name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, PRIVATE)
            .map_err(|errno| io_error("create", target, errno.into()))?;
        Ok(Self {
            path,
            file: File::from(file),
            moved: false,
        })
    }

    fn fill(&self, content: &str) -> Result<(), KeyFileError> {
        // An unusual umask may have taken the owner's own rights away.
        rustix::fs::fchmod(&self.file, PRIVATE)
            .map_err(|errno| io_error("protect", &self.path, errno.into()))?;
        (&self.file)
            .write_all(content.as_bytes())
            .and_then(|()| self.file.sync_all())
            .map_err(|error| io_error("write", &self.path, error))
    }

    fn move_to(mut self, target: &Path, existing: Existing) -> Result<(), KeyFileError> {
        let moved = match existing {
            Existing::Keep => self.move_unless_taken(target),
            Existing::Replace => rustix::fs::rename(&self.path, target),
        };
        match moved {
            Ok(()) => {
                self.moved = true;
                Ok(())
            }
            Err(Errno::EXIST) => Err(KeyFileError::Exists {
                path: target.to_owned(),
            }),
            Err(other) => Err(io_error("create", target, other.into())),
        }
    }

    fn move_unless_taken(&self, target: &Path) -> rustix::io::Result<()> {
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(CWD, &self.path, CWD, target, flags) {
            // Not every file system knows the flag. A hard link never replaces either; the name
            // that is left over is the draft's, and goes when it is dropped.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                rustix::fs::link(&self.path, target)?;
                rustix::fs::unlink(&self.path).ok(); // a second name of a file that is in place
                Ok(())
            }
            other => other,
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.moved {
            rustix::fs::unlink(&self.path).ok(); // the error that led here is the one to report
        }
    }
}

/// A name is on disk only when its directory is. A file system that cannot sync a directory has
/// nothing better to offer.
fn sync_directory(path: &Path) -> Result<(), KeyFileError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    match synced {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::InvalidInput | ErrorKind::Unsupported
            ) =>
        {
            Err(io_error("sync the directory of", path, error))
        }
        _ => Ok(()),
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> KeyFileError {
    KeyFileError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}
