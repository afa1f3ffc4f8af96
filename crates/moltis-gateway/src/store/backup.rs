//! A copy of a database as it is at one moment, in one file, while a gateway writes to it or not.
//!
//! It is made from beside, with a connection that only reads ([`inspect`](super::inspect)), so that
//! a gateway that runs neither waits for it nor has to be asked. `VACUUM INTO`
//! (see `sqlite.org/lang_vacuum.html`) copies what is committed when it begins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use sqlx::Connection as _;

use super::inspect::{Access, is_closed, reader};
use super::{StoreError, open};

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// There is nothing to copy.
    #[error("there is no database in `{}`: no gateway has run there", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// Something lies where the copy was to be.
    #[error("`{}` exists already, and a backup replaces nothing", file.display())]
    Exists {
        /// The file.
        file: PathBuf,
    },
    /// SQLite takes names in UTF-8 only.
    #[error("the path `{}` is not UTF-8", file.display())]
    NotUtf8 {
        /// The path.
        file: PathBuf,
    },
    /// The copy cannot be made, kept or named.
    #[error("cannot {verb} `{}`", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The database cannot be read, or what was written is not what was read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Copies the database in `dir` into `file`, a new file with mode 0600, and reads the copy back.
/// Returns its bytes; it is on the disk then. Half a copy is never left under that name.
///
/// # Errors
/// [`BackupError`], by what stands in the way. Nothing is left behind then.
pub async fn backup(dir: &Path, file: &Path) -> Result<u64, BackupError> {
    let path = dir.join(open::FILE);
    if !path.exists() {
        let dir = dir.to_owned();
        return Err(BackupError::Missing { dir });
    }
    // An absolute path is no URI, which SQLite would read a `file:` as.
    let file = std::path::absolute(file).map_err(failed("find", file))?;
    if file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists { file });
    }
    let part = Begun::new(&open::beside(&file, ".part")).map_err(|error| match error {
        // What keeps us from making the one keeps us from making the other, which was asked for.
        BackupError::File { verb, source, .. } => failed(verb, &file)(source),
        error => error,
    })?;
    let mut copied = Ok(());
    if is_closed(&path) {
        copied = copy(&path, Access::Closed, &part).await;
    }
    // Somebody who opened it meanwhile may have written into what was read.
    if !is_closed(&path) {
        part.empty()?;
        copied = copy(&path, Access::Open, &part).await;
    }
    copied?;
    let bytes = part.keep()?;
    check(&part.path).await?;
    // Taken at the last moment: who is killed while it copies leaves nothing under this name.
    let name = Begun::new(&file)?;
    fs::rename(&part.path, &file).map_err(failed("name", &file))?;
    part.done();
    name.done();
    sync_dir(&file)?;
    Ok(bytes)
}

async fn copy(path: &Path, access: Access, part: &Begun) -> Result<(), BackupError> {
    let Some(into) = part.path.to_str() else {
        return Err(BackupError::NotUtf8 {
            file: part.path.clone(),
        });
    };
    let mut connection = reader(path, access).await?;
    let copied = async {
        open::check_owner(&mut connection, path).await?;
        open::check_version(&mut connection, path).await?;
        sqlx::query("VACUUM INTO $1")
            .bind(into)
            .execute(&mut connection)
            .await
            .map_err(
                |error| match StoreError::from_sqlx("copy the database", path, error) {
                    // It is not the disk of the database.
                    StoreError::DiskFull { .. } => StoreError::DiskFull {
                        path: part.path.clone(),
                    },
                    error => error,
                },
            )?;
        Ok(())
    }
    .await;
    connection.close().await.ok(); // it only read
    copied.map_err(BackupError::Store)
}

/// Reads the copy back, page by page.
async fn check(copy: &Path) -> Result<(), StoreError> {
    let mut connection = reader(copy, Access::Closed).await?;
    let checked = open::check_whole(&mut connection, copy).await;
    connection.close().await.ok(); // it only read
    checked
}

/// A file of ours that is not finished: it goes again unless it is.
#[derive(Debug)]
struct Begun {
    path: PathBuf,
    is_done: bool,
}

impl Begun {
    fn new(path: &Path) -> Result<Self, BackupError> {
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        match made {
            Ok(_) => Ok(Self {
                path: path.to_owned(),
                is_done: false,
            }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(BackupError::Exists {
                file: path.to_owned(),
            }),
            Err(error) => Err(failed("make", path)(error)),
        }
    }

    /// Takes everything out again: SQLite copies into an empty file only.
    fn empty(&self) -> Result<(), BackupError> {
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&self.path)
            .map(drop)
            .map_err(failed("write", &self.path))
    }

    /// Puts it on the disk, and returns its bytes.
    fn keep(&self) -> Result<u64, BackupError> {
        File::open(&self.path)
            .and_then(|file| {
                file.sync_all()?;
                Ok(file.metadata()?.len())
            })
            .map_err(failed("sync", &self.path))
    }

    fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.is_done {
            fs::remove_file(&self.path).ok(); // what stopped us may stop this too
        }
    }
}

fn sync_dir(file: &Path) -> Result<(), BackupError> {
    let dir = file.parent().unwrap_or(file);
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("sync", dir))
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File { verb, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::audit::Action;
    use crate::store::Store;
    use crate::store::testing::{entry, grow};

    async fn audit_lines(store: &Store) -> u64 {
        let verdict = store.verify_audit().await.unwrap();
        assert_eq!(verdict.first_bad, None);
        verdict.entries
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_copy_is_a_store_of_its_own_made_while_the_first_one_writes() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path()).await.unwrap();
        store.note(entry(Action::PairingOpen)).await.unwrap();
        let before = audit_lines(&store).await;
        let file = elsewhere.path().join("gateway.db");
        let writing = async {
            for _ in 0..50 {
                store.note(entry(Action::PairingOpen)).await.unwrap();
            }
        };
        let (bytes, ()) = tokio::join!(backup(dir.path(), &file), writing);
        let found = fs::metadata(&file).unwrap();
        assert_eq!(bytes.unwrap(), found.len());
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert_eq!(names(elsewhere.path()), ["gateway.db"]);
        let copy = Store::open(elsewhere.path()).await.unwrap();
        let copied = audit_lines(&copy).await;
        assert!((before..=before + 50).contains(&copied), "{copied}");
        assert_eq!(audit_lines(&store).await, before + 50);
    }

    #[tokio::test]
    async fn a_store_that_is_closed_is_copied_and_nothing_is_made_beside_it() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path()).await.unwrap();
        grow(&store).await;
        store.close().await;
        drop(store);
        let before = names(dir.path());
        let file = elsewhere.path().join("copy");
        assert!(backup(dir.path(), &file).await.unwrap() > 0);
        assert_eq!(names(dir.path()), before);
        assert_eq!(names(elsewhere.path()), ["copy"]);
    }

    #[tokio::test]
    async fn what_stands_in_the_way_is_named_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("copy");
        let nothing = backup(dir.path(), &file).await.unwrap_err();
        assert!(matches!(nothing, BackupError::Missing { .. }), "{nothing}");
        let store = Store::open(dir.path()).await.unwrap();
        fs::write(&file, "mine").unwrap();
        let taken = backup(dir.path(), &file).await.unwrap_err();
        assert!(matches!(taken, BackupError::Exists { .. }), "{taken}");
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        let nowhere = dir.path().join("no/copy");
        let error = backup(dir.path(), &nowhere).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot make `"), "{error}");
        store.close().await;
    }

    #[tokio::test]
    async fn nothing_has_the_name_of_the_copy_before_it_is_whole() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path()).await.unwrap();
        grow(&store).await;
        let file = elsewhere.path().join("copy");
        let mut copying = Box::pin(backup(dir.path(), &file));
        assert!(futures_util::poll!(&mut copying).is_pending());
        assert_eq!(names(elsewhere.path()), ["copy.part"]);
        copying.await.unwrap();
        assert_eq!(names(elsewhere.path()), ["copy"]);
        store.close().await;
    }

    #[tokio::test]
    async fn half_a_copy_is_not_left() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join(open::FILE), "this is no database, by far").unwrap();
        let file = elsewhere.path().join("copy");
        let error = backup(dir.path(), &file).await.unwrap_err();
        let is_told = matches!(
            error,
            BackupError::Store(StoreError::NotADatabase { .. } | StoreError::Database { .. })
        );
        assert!(is_told, "{error:?}");
        assert_eq!(names(elsewhere.path()), Vec::<String>::new());
    }
}
