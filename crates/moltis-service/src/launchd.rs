//! launchd: the agent as a pure function, and `launchctl` around it.

mod agent;

use std::path::PathBuf;

pub use self::agent::agent;
use crate::error::ServiceError;
use crate::files::{self, Installed, Lock};
use crate::manager::Installation;
use crate::service::{Name, Service};
use crate::status::{State, Status};
use crate::tool::{self, CHANGE, QUESTION};
use crate::user::User;

/// What launchctl says, as an exit code, of a service that it does not know.
const NO_SUCH_SERVICE: i32 = 113;

/// launchd's domain of one user.
#[derive(Debug, Clone)]
pub(crate) struct Launchd {
    user: User,
}

impl Launchd {
    pub(crate) fn new(user: User) -> Self {
        Self { user }
    }

    fn dir(&self) -> PathBuf {
        self.user.home.join("Library/LaunchAgents")
    }

    pub(crate) fn file(&self, name: Name) -> PathBuf {
        self.dir().join(format!("{}.plist", name.label()))
    }

    /// `gui/501`: the domain of a user who is logged in at the screen.
    fn domain(&self) -> String {
        format!("gui/{}", self.user.id)
    }

    fn target(&self, name: Name) -> String {
        format!("{}/{}", self.domain(), name.label())
    }

    pub(crate) async fn check(&self) -> Result<(), ServiceError> {
        let asked = tool::ask(
            &self.user,
            "launchctl",
            &["print", &self.domain()],
            QUESTION,
        )
        .await;
        match asked {
            Ok(answer) if answer.is_success() => files::prepare(&self.dir()),
            Ok(answer) => Err(ServiceError::NoManager {
                said: answer.said(),
            }),
            Err(no_answer) => Err(ServiceError::NoManager {
                said: format!("launchctl: {no_answer}"),
            }),
        }
    }

    pub(crate) fn installed(&self, name: Name) -> Result<Option<Installed>, ServiceError> {
        let path = self.file(name);
        let text = files::read(&path)?;
        Ok(text.map(|text| agent::read(path, text)))
    }

    pub(crate) async fn status(&self, name: Name) -> Result<Status, ServiceError> {
        let target = self.target(name);
        let has_file = self.file(name).exists();
        match tool::ask(&self.user, "launchctl", &["print", &target], QUESTION).await {
            Ok(answer) if answer.is_success() => Ok(agent::status(&answer.stdout)),
            Ok(answer) if answer.code == Some(NO_SUCH_SERVICE) => Ok(Status {
                state: if has_file {
                    State::Stopped { because: None }
                } else {
                    State::NotInstalled
                },
                enabled: has_file,
                restarts: None,
                text: None,
                is_outdated: false,
            }),
            Ok(answer) => Err(ServiceError::NoManager {
                said: answer.said(),
            }),
            Err(no_answer) => Err(ServiceError::NoManager {
                said: format!("launchctl: {no_answer}"),
            }),
        }
    }

    pub(crate) async fn install(&self, service: &Service) -> Result<Installation, ServiceError> {
        let name = service.name;
        let text = agent(service)?;
        self.check().await?;
        let _lock = Lock::take(&self.dir())?;
        let path = self.file(name);
        let kept = files::keep_edited(self.installed(name)?, &text)?;
        self.boot_out(name).await?;
        files::write(&path, &text)?;
        let shown = path.to_string_lossy();
        // A person may have disabled it; adding it is their word that it shall run.
        self.must(&["enable", &self.target(name)]).await?;
        let started = self.must(&["bootstrap", &self.domain(), &shown]).await;
        started.map_err(|error| match error {
            ServiceError::Tool { said, .. } => ServiceError::NotStarted {
                unit: name.label().to_owned(),
                said,
            },
            other => other,
        })?;
        Ok(Installation { path, kept })
    }

    pub(crate) async fn start(&self, name: Name) -> Result<(), ServiceError> {
        let path = self.file(name);
        self.must(&["bootstrap", &self.domain(), &path.to_string_lossy()])
            .await
    }

    pub(crate) async fn stop(&self, name: Name) -> Result<(), ServiceError> {
        self.boot_out(name).await.map(drop)
    }

    pub(crate) async fn uninstall(&self, name: Name) -> Result<bool, ServiceError> {
        let stopped = self.boot_out(name).await;
        let removed = files::remove(&self.file(name))?;
        match stopped {
            Ok(was_there) => Ok(was_there || removed),
            Err(error) if removed => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Ends the service and makes launchd forget it; returns whether launchd knew it.
    async fn boot_out(&self, name: Name) -> Result<bool, ServiceError> {
        if matches!(
            self.status(name).await?.state,
            State::NotInstalled | State::Stopped { because: None }
        ) {
            return Ok(false);
        }
        self.must(&["bootout", &self.target(name)]).await?;
        Ok(true)
    }

    async fn must(&self, words: &[&str]) -> Result<(), ServiceError> {
        tool::must(&self.user, "launchctl", words, CHANGE).await?;
        Ok(())
    }
}
