//! The service manager of this user, whichever it is.

use std::path::{Path, PathBuf};

use crate::error::ServiceError;
use crate::files::Installed;
use crate::launchd::Launchd;
use crate::service::{Name, Service};
use crate::status::Status;
use crate::systemd::Systemd;
use crate::user::User;

/// The service manager of one user of this machine.
#[derive(Debug, Clone)]
pub struct Manager {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Systemd(Systemd),
    Launchd(Launchd),
}

/// What an installation changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The file, which is there now.
    pub path: PathBuf,
    /// The file that was there before.
    pub before: Option<Installed>,
    /// Where the file went that a person had changed.
    pub kept: Option<PathBuf>,
}

/// When the services of this user start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begin {
    /// With the machine.
    AtBoot,
    /// They start when the user logs in and end when the user logs out.
    AtLogin {
        /// The command that changes that, in words; `None` where nothing does.
        command: Option<Vec<String>>,
    },
}

/// What a person types to their manager about one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByHand {
    /// What the manager calls it.
    pub name: String,
    /// Starts it.
    pub start: String,
    /// Stops it.
    pub stop: String,
    /// Changes how it runs, so that an installation does not undo it; `None` where nothing does.
    pub edit: Option<String>,
    /// Shows what it printed beside its log; `None` where that is kept nowhere.
    pub journal: Option<String>,
}

impl Manager {
    /// Returns the manager that this operating system has: launchd on macOS, else systemd.
    pub fn of(user: User) -> Self {
        if cfg!(target_os = "macos") {
            Self::launchd(user)
        } else {
            Self::systemd(user)
        }
    }

    /// Returns systemd's manager of this user.
    pub fn systemd(user: User) -> Self {
        Self {
            kind: Kind::Systemd(Systemd::new(user)),
        }
    }

    /// Returns launchd's domain of this user.
    pub fn launchd(user: User) -> Self {
        Self {
            kind: Kind::Launchd(Launchd::new(user)),
        }
    }

    /// Sees that a manager answers, that the service can be written down, and that it may start.
    /// Changes nothing but for the directory of the files, which is made.
    ///
    /// # Errors
    /// [`ServiceError::NoManager`], [`ServiceError::Masked`], [`ServiceError::Value`], or the
    /// directory that cannot be written.
    pub async fn check(&self, service: &Service) -> Result<(), ServiceError> {
        service.check()?;
        match &self.kind {
            Kind::Systemd(systemd) => systemd.check(service.name).await,
            Kind::Launchd(launchd) => launchd.check().await,
        }
    }

    /// Returns what a person types about a service, for messages.
    pub fn by_hand(&self, name: Name) -> ByHand {
        match &self.kind {
            Kind::Systemd(_) => crate::systemd::by_hand(name),
            Kind::Launchd(launchd) => launchd.by_hand(name),
        }
    }

    /// Returns where the file of a service lies, or would.
    pub fn file(&self, name: Name) -> PathBuf {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.file(name),
            Kind::Launchd(launchd) => launchd.file(name),
        }
    }

    /// Reads the file of a service; `None` where there is none.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn installed(&self, name: Name) -> Result<Option<Installed>, ServiceError> {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.installed(name),
            Kind::Launchd(launchd) => launchd.installed(name),
        }
    }

    /// Asks how a service stands.
    ///
    /// # Errors
    /// [`ServiceError::NoManager`] where nobody could answer.
    pub async fn status(&self, name: Name) -> Result<Status, ServiceError> {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.status(name).await,
            Kind::Launchd(launchd) => launchd.status(name).await,
        }
    }

    /// Writes the file of a service and makes the service start by itself; it is not started yet,
    /// and one that runs goes on as it was.
    ///
    /// A file that a person has changed is kept beside, under the name that is returned.
    ///
    /// # Errors
    /// [`ServiceError::Busy`] after a while, [`ServiceError::NotRead`], or what could not be written.
    pub async fn install(&self, service: &Service) -> Result<Installation, ServiceError> {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.install(service).await,
            Kind::Launchd(launchd) => launchd.install(service).await,
        }
    }

    /// Puts back the file that an installation has replaced; returns whether there was one. The
    /// service is neither stopped nor started.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn put_back(&self, installation: &Installation) -> Result<bool, ServiceError> {
        let Some(before) = &installation.before else {
            return Ok(false);
        };
        match &self.kind {
            Kind::Systemd(systemd) => systemd.put_back(installation, before).await?,
            Kind::Launchd(launchd) => launchd.put_back(installation, before).await?,
        }
        Ok(true)
    }

    /// Starts a service that is installed, or starts it again where it runs. Returns under systemd
    /// when it has said that it is ready, under launchd when it has a process.
    ///
    /// # Errors
    /// [`ServiceError::NotStarted`]; the manager goes on trying.
    ///
    /// # Cancel safety
    /// The manager does it all the same.
    pub async fn restart(&self, name: Name) -> Result<(), ServiceError> {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.restart(name).await,
            Kind::Launchd(launchd) => launchd.restart(name).await,
        }
    }

    /// Has a service started that is installed, where it does not run; does not wait for it.
    ///
    /// # Errors
    /// The manager does not take the request.
    pub async fn start(&self, name: Name) -> Result<(), ServiceError> {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.start(name).await,
            Kind::Launchd(launchd) => launchd.start(name).await,
        }
    }

    /// Stops a service and leaves it installed.
    ///
    /// # Errors
    /// The manager does not stop it.
    pub async fn stop(&self, name: Name) -> Result<(), ServiceError> {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.stop(name).await,
            Kind::Launchd(launchd) => launchd.stop(name).await,
        }
    }

    /// Stops a service, removes its file, and makes the manager forget it. Returns whether there
    /// was anything to remove; half an installation is removed as well.
    ///
    /// # Errors
    /// The file cannot be removed, or the manager does not stop it. Where no manager answers the
    /// files are removed first, and then the error says so.
    pub async fn uninstall(&self, name: Name) -> Result<bool, ServiceError> {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.uninstall(name).await,
            Kind::Launchd(launchd) => launchd.uninstall(name).await,
        }
    }

    /// Tells when this user's services start.
    pub fn begins(&self) -> Begin {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.begins(Path::new(crate::systemd::LINGER_DIR)),
            // An agent belongs to a login, always.
            Kind::Launchd(_) => Begin::AtLogin { command: None },
        }
    }

    /// Makes this user's services start with the machine, where this user may say so, and returns
    /// how it stands then.
    pub async fn begin_at_boot(&self) -> Begin {
        match &self.kind {
            Kind::Systemd(systemd) => systemd.linger(Path::new(crate::systemd::LINGER_DIR)).await,
            Kind::Launchd(_) => self.begins(),
        }
    }
}
