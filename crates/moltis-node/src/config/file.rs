//! `node.json` on disk: read whole, written whole, 0600, and never by halves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use moltis_identity::files;
use moltis_proto::NODE_ADD;
use moltis_proto::nearest::nearest;

use super::words::{key_at, line_of};
use super::{ConfigError, NodeConfig};

/// Bytes of the file, at the most: far above what the bounds of its values allow in practice.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The keys at the top of the file.
const KEYS: [&str; 13] = [
    "gateway_url",
    "gateway_key",
    "tls_ca",
    "pair",
    "name",
    "labels",
    "working_dir",
    "timeout_seconds",
    "policy",
    "env_allow",
    "path",
    "api_key_variables",
    "ollama_host",
];

/// Why the file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigFileError {
    /// There is none: this machine has not joined a gateway.
    #[error("`{}` is not there: this machine is no node yet", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("`{}` cannot be {verb}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What we were doing: `read` or `written`.
        verb: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Others could change what may run here.
    #[error("`{}` has mode {mode:04o}: others may write to it, expected 0600", .path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not JSON, or not these keys and values.
    #[error("`{}` line {line}: {problem}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What was found there and what is expected.
        problem: String,
    },
}

impl ConfigFileError {
    /// Returns what to type next, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some(format!(
                "join a gateway: {NODE_ADD} --host ws://<host>:9090/ws"
            )),
            Self::Mode { path, .. } => Some(format!("chmod 600 {}", path.display())),
            Self::Content { path, .. } => Some(format!(
                "mend {}, or begin anew: moltis node remove && {NODE_ADD} --host <url>",
                path.display()
            )),
            Self::Io { .. } => None,
        }
    }
}

/// The file `node.json`, by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    path: PathBuf,
}

/// What tells one state of the file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl ConfigFile {
    /// Names the file; nothing is touched.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`ConfigFileError::Missing`] where this machine is no node; else the file, the line and the
    /// key that cannot be used.
    pub fn load(&self) -> Result<NodeConfig, ConfigFileError> {
        let text = self.read()?;
        let content = |line, problem| ConfigFileError::Content {
            path: self.path.clone(),
            line,
            problem,
        };
        let config: NodeConfig = serde_json::from_str(&text)
            .map_err(|error| content(error.line().max(1), parse_problem(&text, &error)))?;
        config.check().map_err(|error: ConfigError| {
            content(line_of(&text, error.key).unwrap_or(1), error.to_string())
        })?;
        Ok(config)
    }

    /// Writes the file anew, mode 0600, as a whole or not at all.
    ///
    /// # Errors
    /// [`ConfigFileError::Content`] for a value that could not be read back, else what the file
    /// system said.
    pub fn save(&self, config: &NodeConfig) -> Result<(), ConfigFileError> {
        config.check().map_err(|error| ConfigFileError::Content {
            path: self.path.clone(),
            line: 1,
            problem: error.to_string(),
        })?;
        let mut text = serde_json::to_string_pretty(config)
            .map_err(|error| self.io("written", error.into()))?;
        text.push('\n');
        self.replace(text.as_bytes())
            .map_err(|source| self.io("written", source))
    }

    /// Returns what tells this state of the file from a later one; `None` where there is no file.
    pub fn stamp(&self) -> Option<Stamp> {
        let meta = fs::metadata(&self.path).ok()?;
        Some(Stamp {
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }

    fn read(&self) -> Result<String, ConfigFileError> {
        let opened = files::open(&self.path, File::options().read(true));
        let file = opened.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ConfigFileError::Missing {
                path: self.path.clone(),
            },
            _ => self.io("read", source),
        })?;
        let meta = file.metadata().map_err(|source| self.io("read", source))?;
        if meta.mode() & 0o022 != 0 {
            return Err(ConfigFileError::Mode {
                path: self.path.clone(),
                mode: meta.mode() & 0o7777,
            });
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|source| self.io("read", source))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            let source = io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("more than {FILE_BYTES_MAX} bytes"),
            );
            return Err(self.io("read", source));
        }
        Ok(text)
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let mut beside = self.path.clone().into_os_string();
        beside.push(format!(".new.{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let written = write_new(&beside, bytes).and_then(|()| fs::rename(&beside, &self.path));
        if written.is_err() {
            fs::remove_file(&beside).ok(); // The error that counts is the first one.
            return written;
        }
        match self.path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    fn io(&self, verb: &'static str, source: io::Error) -> ConfigFileError {
        ConfigFileError::Io {
            path: self.path.clone(),
            verb,
            source,
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Turns serde's words into ours: the key first, then what is wrong with it.
fn parse_problem(text: &str, error: &serde_json::Error) -> String {
    let words = error.to_string();
    let words = words.split(" at line ").next().unwrap_or(&words);
    if let Some(unknown) = words.strip_prefix("unknown field `") {
        let found = unknown.split('`').next().unwrap_or(unknown);
        return match nearest(found, KEYS) {
            Some(known) => format!("unknown key `{found}`: did you mean `{known}`?"),
            None => format!("unknown key `{found}`"),
        };
    }
    match key_at(text, error.line(), error.column()) {
        Some(key) if error.is_data() => format!("`{key}`: {words}"),
        _ => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const SOUND: &str = r#"{
  "gateway_url": "ws://127.0.0.1:9090/ws",
  "name": "Build Server",
  "labels": { "gpu": "true" },
  "working_dir": "/home/ada",
  "timeout_seconds": 0,
  "policy": { "mode": "allow-list", "allow": [["/usr/bin/uname", "-a"]] },
  "path": "/usr/bin:/bin"
}
"#;

    fn file(text: &str) -> (tempfile::TempDir, ConfigFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        (dir, ConfigFile::new(path))
    }

    fn problem(text: &str) -> (usize, String) {
        let (_dir, file) = file(text);
        match file.load() {
            Err(ConfigFileError::Content { line, problem, .. }) => (line, problem),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_saved_is_read_back_and_is_private() {
        let (_dir, file) = file(SOUND);
        let config = file.load().unwrap();
        let before = file.stamp();
        file.save(&config).unwrap();
        assert_eq!(file.load().unwrap(), config);
        assert_ne!(file.stamp(), before);
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let beside = fs::read_dir(file.path().parent().unwrap()).unwrap().count();
        assert_eq!(beside, 1, "nothing is left beside it");
    }

    #[test]
    fn an_error_names_line_and_key() {
        let replaced = |from: &str, to: &str| problem(&SOUND.replace(from, to));
        let (line, words) = replaced("\"name\"", "\"nmae\"");
        assert_eq!(
            (line, words.as_str()),
            (3, "unknown key `nmae`: did you mean `name`?")
        );
        let (line, words) = replaced("\"timeout_seconds\": 0", "\"timeout_seconds\": \"abc\"");
        assert_eq!(line, 6);
        assert!(
            words.starts_with("`timeout_seconds`: invalid type"),
            "{words}"
        );
        let (line, words) = replaced("ws://127.0.0.1:9090/ws", "http://h:1");
        assert_eq!(line, 2);
        assert!(
            words.starts_with("`gateway_url`: ") && words.contains("ws://h:1/ws"),
            "{words}"
        );
        let (line, words) = replaced("Build Server", "ssh:x");
        assert_eq!(line, 3);
        assert!(words.starts_with("`name`: "), "{words}");
        let (line, words) = replaced("/home/ada", "ada");
        assert_eq!(line, 5);
        assert!(words.starts_with("`working_dir` is `ada`"), "{words}");
        let (line, _) = replaced("\"path\": \"/usr/bin:/bin\"", "\"path\": ");
        assert_eq!(line, 9);
        let (_, words) = problem("");
        assert!(words.contains("EOF"), "{words}");
        let (_, words) = problem("[]");
        assert!(words.contains("invalid"), "{words}");
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let (_dir, file) = file(SOUND);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o666)).unwrap();
        let error = file.load().unwrap_err();
        assert!(matches!(error, ConfigFileError::Mode { mode: 0o666, .. }));
        assert!(error.hint().unwrap().starts_with("chmod 600 "));
    }

    #[test]
    fn a_missing_file_says_how_to_join() {
        let dir = tempfile::tempdir().unwrap();
        let error = ConfigFile::new(dir.path().join("node.json"))
            .load()
            .unwrap_err();
        assert!(matches!(error, ConfigFileError::Missing { .. }));
        assert!(error.hint().unwrap().contains("moltis node add"));
    }

    #[test]
    fn a_value_that_cannot_be_used_is_not_saved() {
        let (_dir, file) = file(SOUND);
        let mut config = file.load().unwrap();
        config.timeout_seconds = u64::MAX;
        assert!(file.save(&config).is_err());
        assert_eq!(file.load().unwrap().timeout_seconds, 0);
    }

    #[test]
    fn binary_and_huge_files_are_told_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        fs::write(&path, [0xff; 64]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = ConfigFile::new(path);
        assert!(matches!(file.load(), Err(ConfigFileError::Io { .. })));
        fs::write(file.path(), vec![b' '; 2 * 1024 * 1024]).unwrap();
        assert!(matches!(file.load(), Err(ConfigFileError::Io { .. })));
    }
}
