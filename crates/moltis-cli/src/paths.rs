//! Where things live: one directory, mode 0700, and the names of the files below it.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use moltis_identity::files;
use rustix::fs::Access;

use crate::failure::{Failure, OrFail as _, failure};
use crate::settings::Settings;

/// The longest path of a socket below a home, from there on: a keeper's.
const LONGEST_SOCKET: &str = "/local/k0123456789abcdef0123456789abcdef.sock";

/// Bytes of a Unix socket's path, less the closing zero byte (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// The home directory of Moltis.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: PathBuf,
    user_home: Option<PathBuf>,
}

impl Home {
    /// Finds the home by `MOLTIS_HOME`, else `~/.moltis`. Touches nothing.
    ///
    /// # Errors
    /// The path is relative or too long for the sockets below it, or something else is there.
    pub(crate) fn find(settings: &Settings) -> Result<Self, Failure> {
        let dir = match (&settings.moltis_home, &settings.user_home) {
            (Some(dir), _) => dir.clone(),
            (None, Some(user_home)) => user_home.join(".moltis"),
            (None, None) => {
                return Err(failure("there is no home directory")
                    .hint("set MOLTIS_HOME to the directory where Moltis shall keep its files"));
            }
        };
        check_path(&dir)?;
        if let Ok(found) = std::fs::metadata(&dir)
            && !found.is_dir()
        {
            return Err(failure(format!(
                "`{}` cannot be the home directory: it is {}, expected a directory",
                dir.display(),
                files::kind(found.file_type())
            ))
            .hint("move it away, or set MOLTIS_HOME to a directory"));
        }
        Ok(Self {
            dir,
            user_home: settings.user_home.clone(),
        })
    }

    /// Makes the directory when it is missing, and sees that it is ours alone.
    ///
    /// # Errors
    /// It cannot be made or written, belongs to somebody else, or others may write to it.
    pub(crate) fn prepare(&self) -> Result<(), Failure> {
        let shown = self.show(&self.dir);
        let made = files::make_dir(&self.dir, 0o700);
        made.or_fail(|| format!("cannot make the home directory `{shown}`"))
            .map_err(|failure| {
                failure.hint("set MOLTIS_HOME to a directory that you may write to")
            })?;
        let found = std::fs::metadata(&self.dir)
            .or_fail(|| format!("cannot look at the home directory `{shown}`"))?;
        let us = rustix::process::geteuid();
        if found.uid() != us.as_raw() {
            return Err(failure(format!(
                "the home directory `{shown}` belongs to the user {}, and you are {}",
                found.uid(),
                us.as_raw()
            ))
            .hint("set MOLTIS_HOME to a directory of your own"));
        }
        let mode = found.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 && !is_empty(&self.dir) {
            return Err(failure(format!(
                "others may write to the home directory `{shown}`: its mode is {mode:04o}, expected 0700"
            ))
            .hint(format!("look at what is in it, then: chmod 700 {shown}")));
        }
        if mode & 0o077 != 0 {
            std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o700))
                .or_fail(|| format!("cannot set the mode of `{shown}` to 0700"))?;
        }
        let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        let usable = rustix::fs::access(&self.dir, wanted);
        usable.map_err(io::Error::from).map_err(|error| {
            if mode & 0o700 != 0o700 {
                return failure(format!(
                    "cannot write to the home directory `{shown}`: its mode is {mode:04o}, expected 0700"
                ))
                .hint(format!("chmod 700 {shown}"));
            }
            failure(format!("cannot write to the home directory `{shown}`"))
                .because(error)
                .hint("set MOLTIS_HOME to a directory that you may write to")
        })
    }

    /// Returns the directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("moltis.toml")
    }

    /// Returns the socket of the local administrator.
    pub(crate) fn gateway_socket(&self) -> PathBuf {
        self.dir.join("gateway.sock")
    }

    /// Returns the node's configuration.
    pub(crate) fn node_config(&self) -> PathBuf {
        self.dir.join("node.json")
    }

    /// Returns the node's key file.
    pub(crate) fn node_key(&self) -> PathBuf {
        self.dir.join("node_key")
    }

    /// Returns what the running node says of itself.
    pub(crate) fn node_state(&self) -> PathBuf {
        self.dir.join("node.state")
    }

    /// Returns the log file of the node's service.
    pub(crate) fn node_log(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    /// Returns the log file of the gateway's service.
    pub(crate) fn gateway_log(&self) -> PathBuf {
        self.dir.join("gateway.log")
    }

    /// Returns the directory of the node's keeper.
    pub(crate) fn node_runs(&self) -> PathBuf {
        self.dir.join("runs")
    }

    /// Returns the directory of the keeper for `local`.
    pub(crate) fn local_runs(&self) -> PathBuf {
        self.dir.join("local")
    }

    /// Returns a path as a person writes it: `~/…` below their own directory.
    pub(crate) fn show(&self, path: &Path) -> String {
        let below = self
            .user_home
            .as_deref()
            .filter(|home| *home != Path::new("/"))
            .and_then(|home| path.strip_prefix(home).ok());
        match below {
            Some(rest) => Path::new("~").join(rest).display().to_string(),
            None => path.display().to_string(),
        }
    }
}

fn check_path(dir: &Path) -> Result<(), Failure> {
    let shown = dir.display();
    if !dir.is_absolute() {
        return Err(failure(format!(
            "the home directory `{shown}` is relative: expected a path that begins with `/`"
        ))
        .hint("set MOLTIS_HOME to an absolute path"));
    }
    let Some(text) = dir.to_str() else {
        return Err(failure(format!("the path `{shown}` is not UTF-8"))
            .hint("set MOLTIS_HOME to a path that is"));
    };
    let longest = text.len() + LONGEST_SOCKET.len();
    if longest > SOCKET_PATH_BYTES_MAX {
        return Err(failure(format!(
            "the home directory `{shown}` is {} bytes long: at most {} leave room for the sockets below it",
            text.len(),
            SOCKET_PATH_BYTES_MAX - LONGEST_SOCKET.len()
        ))
        .hint("set MOLTIS_HOME to a shorter path"));
    }
    Ok(())
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(dir: &Path) -> Result<Home, Failure> {
        Home::find(&Settings {
            moltis_home: Some(dir.to_owned()),
            ..Settings::default()
        })
    }

    fn message(result: Result<impl Sized, Failure>) -> String {
        result.err().map(|failure| failure.to_string()).unwrap()
    }

    #[test]
    fn a_relative_home_and_one_too_long_for_sockets_are_refused() {
        let said = message(home(Path::new("here/moltis")));
        assert!(said.contains("`here/moltis` is relative"), "{said}");
        let long = format!("/{}", "x".repeat(62));
        let said = message(home(Path::new(&long)));
        assert!(said.contains("63 bytes long: at most 62"), "{said}");
        home(Path::new(&long[..62])).unwrap();
    }

    #[test]
    fn what_is_in_the_place_of_the_home_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let said = message(home(&file));
        assert!(
            said.contains("it is a regular file, expected a directory"),
            "{said}"
        );
    }

    #[test]
    fn a_new_home_is_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(&dir.path().join("a/b")).unwrap();
        home.prepare().unwrap();
        let mode = std::fs::metadata(home.dir()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_home_that_others_write_to_is_refused_and_one_they_read_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path()).unwrap();
        let set = |mode| {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        std::fs::write(dir.path().join("moltis.toml"), "").unwrap();
        set(0o777);
        let said = message(home.prepare());
        assert!(said.contains("its mode is 0777, expected 0700"), "{said}");
        set(0o755);
        home.prepare().unwrap();
        let mode = std::fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_path_below_the_own_directory_is_shown_with_a_tilde() {
        let home = Home::find(&Settings {
            user_home: Some("/home/ada".into()),
            ..Settings::default()
        })
        .unwrap();
        assert_eq!(home.show(&home.gateway_socket()), "~/.moltis/gateway.sock");
        assert_eq!(home.show(Path::new("/etc/x")), "/etc/x");
    }
}
