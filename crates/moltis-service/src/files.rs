//! The file of a service on disk: written whole, 0600, marked as ours, and kept where a person has
//! changed it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::ServiceError;
use crate::manager::Installation;

/// Bytes of a file that are read, at the most.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A file of a service that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) is_edited: bool,
    pub(crate) command: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
}

impl Installed {
    /// Returns where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether a person has changed it, or wrote it.
    pub fn is_edited(&self) -> bool {
        self.is_edited
    }

    /// Returns the program that it starts; `None` where that cannot be told.
    pub fn program(&self) -> Option<&str> {
        self.command.first().map(String::as_str)
    }

    /// Returns what it starts its program with.
    pub fn arguments(&self) -> &[String] {
        self.command.get(1..).unwrap_or_default()
    }

    /// Returns what it sets a variable to.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().rfind(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Files that a person has changed and that are kept, at the most.
const KEPT_MAX: u32 = 100;

/// How long somebody else may take to change services.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often their lock is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Returns the mark of a text: what tells a file that we wrote from one that was changed.
pub(crate) fn mark(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

/// Moves a file that a person has changed beside its place, where no manager reads it; returns
/// where it is.
pub(crate) fn keep_edited(found: Option<&Installed>) -> Result<Option<PathBuf>, ServiceError> {
    let Some(found) = found.filter(|found| found.is_edited) else {
        return Ok(None);
    };
    let kept = |number: u32| {
        let mut path = found.path.clone().into_os_string();
        path.push(".kept");
        if number > 1 {
            path.push(format!(".{number}"));
        }
        PathBuf::from(path)
    };
    let kept = (1..=KEPT_MAX).map(kept).find(|path| !path.exists());
    let Some(kept) = kept else {
        return Err(ServiceError::Io {
            path: found.path.clone(),
            verb: "kept: there are so many kept ones already",
            source: io::ErrorKind::AlreadyExists.into(),
        });
    };
    fs::rename(&found.path, &kept).map_err(|source| ServiceError::Io {
        path: found.path.clone(),
        verb: "moved",
        source,
    })?;
    Ok(Some(kept))
}

/// Puts `text` in the place of the file that is there, which is kept where a person has changed it.
pub(crate) fn replace(
    before: Option<Installed>,
    path: PathBuf,
    text: &str,
) -> Result<Installation, ServiceError> {
    let differs = before.as_ref().is_some_and(|before| before.text != text);
    let kept = keep_edited(before.as_ref().filter(|_| differs))?;
    write(&path, text)?;
    Ok(Installation { path, before, kept })
}

/// Puts a file back in its place: the very one where it was kept, else its text.
pub(crate) fn put_back(kept: Option<&Path>, before: &Installed) -> Result<(), ServiceError> {
    let Some(kept) = kept else {
        return write(&before.path, &before.text);
    };
    fs::rename(kept, &before.path).map_err(|source| ServiceError::Io {
        path: kept.to_owned(),
        verb: "moved back",
        source,
    })
}

/// Reads a file; `None` where there is none. A link to nowhere is none either.
pub(crate) fn read(path: &Path) -> Result<Option<String>, ServiceError> {
    let io = |source| ServiceError::Io {
        path: path.to_owned(),
        verb: "read",
        source,
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io(source)),
    };
    // A pipe would wait for a writer, and a directory has no text.
    if !file.metadata().map_err(io)?.is_file() {
        return Err(io(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no ordinary file",
        )));
    }
    let mut bytes = Vec::new();
    let mut limited = io::Read::take(file, FILE_BYTES_MAX);
    io::Read::read_to_end(&mut limited, &mut bytes).map_err(io)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Writes a file anew, as a whole or not at all.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), ServiceError> {
    let io = |path: &Path, verb| {
        let path = path.to_owned();
        move |source| ServiceError::Io { path, verb, source }
    };
    let mut beside = path.as_os_str().to_owned();
    // Managers read what ends as a unit or a list does: a file by halves must not.
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        fs::remove_file(&beside).ok(); // the error that counts is the first one
    }
    written.map_err(io(path, "written"))
}

/// Removes a file; returns whether there was one.
pub(crate) fn remove(path: &Path) -> Result<bool, ServiceError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ServiceError::Io {
            path: path.to_owned(),
            verb: "removed",
            source,
        }),
    }
}

/// Makes a directory with its parents, and sees that it can be written to.
pub(crate) fn prepare(dir: &Path) -> Result<(), ServiceError> {
    let io = |verb| {
        move |source| ServiceError::Io {
            path: dir.to_owned(),
            verb,
            source,
        }
    };
    fs::create_dir_all(dir).map_err(io("made"))?;
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK)
        .map_err(io::Error::from)
        .map_err(io("written to"))
}

/// The right to change the services in one directory, held by one process at a time.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the lock lies on the open directory")] File);

impl Lock {
    /// Takes the right, waits for it for a while, and then says that somebody else has it.
    pub(crate) async fn take(dir: &Path) -> Result<Self, ServiceError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::try_take(dir) {
                Err(ServiceError::Busy) if Instant::now() < deadline => sleep(LOOK).await,
                taken => return taken,
            }
        }
    }

    fn try_take(dir: &Path) -> Result<Self, ServiceError> {
        let io = |source| ServiceError::Io {
            path: dir.to_owned(),
            verb: "locked",
            source,
        };
        let file = File::open(dir).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(fs::TryLockError::WouldBlock) => Err(ServiceError::Busy),
            Err(fs::TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_written_whole_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.service");
        prepare(path.parent().unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn two_who_change_services_at_once_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::try_take(dir.path()).unwrap();
        let busy = Lock::try_take(dir.path());
        assert!(matches!(busy, Err(ServiceError::Busy)));
        drop(first);
        Lock::try_take(dir.path()).unwrap();
    }

    #[test]
    fn what_is_no_file_is_told_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).is_err());
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        assert!(read(&pipe).is_err());
    }

    #[test]
    fn every_file_that_a_person_changed_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.service");
        let found = |is_edited| Installed {
            path: path.clone(),
            text: String::new(),
            is_edited,
            command: Vec::new(),
            variables: Vec::new(),
        };
        for (number, name) in [(1, "a.service.kept"), (2, "a.service.kept.2")] {
            fs::write(&path, [b'0' + number, 0xff]).unwrap();
            let kept = keep_edited(Some(&found(true))).unwrap().unwrap();
            assert_eq!(kept, dir.path().join(name));
            assert_eq!(fs::read(kept).unwrap(), [b'0' + number, 0xff]);
        }
        fs::write(&path, "ours").unwrap();
        assert_eq!(keep_edited(Some(&found(false))).unwrap(), None);
        assert!(path.exists());
    }
}
