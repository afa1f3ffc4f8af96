//! The environment of this process, read once; the only place that reads it.
//!
//! Flags come from [`crate::args`] and the file from [`crate::config_file`]; a command merges the
//! three where it starts: flag, environment, file, default. Secrets come from the environment only,
//! never from an argument, and print as `…`.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// See [`Settings::for_keeper`].
const FOR_KEEPER: &[&str] = &[
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "PATH",
    "LANG",
    "MOLTIS_HOME",
    "MOLTIS_LOG",
];

/// See [`Settings::is_service`].
pub(crate) const SERVICE_VARIABLE: &str = "MOLTIS_SERVICE";

/// What the environment says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// `MOLTIS_HOME`.
    pub(crate) moltis_home: Option<PathBuf>,
    /// `HOME`.
    pub(crate) user_home: Option<PathBuf>,
    /// `MOLTIS_API_TOKEN`.
    pub(crate) api_token: Option<Secret>,
    /// `MOLTIS_LOG`.
    pub(crate) log: Option<String>,
    /// `PATH`.
    pub(crate) path: Option<String>,
    /// `USER`, or `LOGNAME`.
    pub(crate) user: Option<String>,
    /// `SHELL`.
    pub(crate) shell: Option<String>,
    /// `TMPDIR`.
    pub(crate) tmp_dir: Option<String>,
    /// `TERM`.
    pub(crate) term: Option<String>,
    /// `OLLAMA_HOST`.
    pub(crate) ollama_host: Option<String>,
    /// How this program was called: the first of its arguments.
    pub(crate) called: Option<OsString>,
    /// `XDG_RUNTIME_DIR`: where this user's service manager is.
    pub(crate) runtime_dir: Option<PathBuf>,
    /// `DBUS_SESSION_BUS_ADDRESS`.
    pub(crate) bus_address: Option<String>,
    /// `MOLTIS_SERVICE`, which the services that we install set: nobody looks at a terminal.
    pub(crate) is_service: bool,
    /// Names of all variables that are set and not empty; no value.
    pub(crate) names: Vec<String>,
    /// What a keeper process is given of our environment: nothing that could be a secret.
    pub(crate) for_keeper: Vec<(String, OsString)>,
}

/// A text that is never printed.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// Returns the text, for the one place that needs it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Settings {
    /// Reads the environment of this process. An empty variable counts as not set.
    pub(crate) fn from_process() -> Self {
        let get = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| get(name).and_then(|value| value.into_string().ok());
        Self {
            moltis_home: get("MOLTIS_HOME").map(PathBuf::from),
            user_home: etcetera::home_dir().ok(),
            api_token: text("MOLTIS_API_TOKEN").map(Secret),
            log: text("MOLTIS_LOG"),
            path: text("PATH"),
            user: text("USER").or_else(|| text("LOGNAME")),
            shell: text("SHELL"),
            tmp_dir: text("TMPDIR").filter(|dir| dir.starts_with('/')),
            term: text("TERM"),
            ollama_host: text("OLLAMA_HOST"),
            called: std::env::args_os().next(),
            runtime_dir: get("XDG_RUNTIME_DIR").map(PathBuf::from),
            bus_address: text("DBUS_SESSION_BUS_ADDRESS"),
            is_service: get(SERVICE_VARIABLE).is_some(),
            names: std::env::vars_os()
                .filter(|(_, value)| !value.is_empty())
                .filter_map(|(name, _)| name.into_string().ok())
                .collect(),
            for_keeper: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
                .filter(|(name, _)| FOR_KEEPER.contains(&name.as_str()) || name.starts_with("LC_"))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_an_ellipsis() {
        assert_eq!(format!("{:?}", Secret("moltis_abc".into())), "…");
    }
}
