//! Whose services these are.

use std::path::{Path, PathBuf};

/// The user of this process, as the tools need to know them. Values, so that nothing here reads
/// the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub(crate) name: String,
    pub(crate) id: u32,
    pub(crate) home: PathBuf,
    pub(crate) path: String,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) bus_address: Option<String>,
}

impl User {
    /// Names the user; `home` is their home directory, `path` the PATH in which the tools are
    /// looked for.
    pub fn new(
        name: impl Into<String>,
        id: u32,
        home: impl Into<PathBuf>,
        path: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            id,
            home: home.into(),
            path: path.into(),
            // Where the manager is by pam_systemd(8), also in a shell that was not told.
            runtime_dir: Path::new("/run/user").join(id.to_string()),
            bus_address: None,
        }
    }

    /// `XDG_RUNTIME_DIR`, where it is set. Default: `/run/user/<id>`.
    #[must_use]
    pub fn runtime_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.runtime_dir = dir.into();
        self
    }

    /// `DBUS_SESSION_BUS_ADDRESS`, where it is set.
    #[must_use]
    pub fn bus_address(mut self, address: impl Into<String>) -> Self {
        self.bus_address = Some(address.into());
        self
    }
}
