//! launchd: the agent as a pure function, and `launchctl` around it.

mod agent;

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{sleep, timeout};

pub use self::agent::agent;
use crate::error::ServiceError;
use crate::files::{self, Installed, Lock};
use crate::manager::{ByHand, Installation};
use crate::service::{Name, Service};
use crate::status::{State, Status};
use crate::tool::{self, CHANGE, QUESTION};
use crate::user::User;

/// What launchctl says, as an exit code, of a service that it does not know.
const NO_SUCH_SERVICE: i32 = 113;

/// How long launchd may take to let a service go, or to start its process.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked.
const LOOK: Duration = Duration::from_millis(50);

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

    pub(crate) fn by_hand(&self, name: Name) -> ByHand {
        let file = format!("~/Library/LaunchAgents/{}.plist", name.label());
        ByHand {
            name: name.label().to_owned(),
            start: format!("launchctl bootstrap {} {file}", self.domain()),
            stop: format!("launchctl bootout {}", self.target(name)),
            edit: None,
            journal: None,
        }
    }

    pub(crate) async fn check(&self) -> Result<(), ServiceError> {
        match self.print(&self.domain()).await? {
            Some(_) => files::prepare(&self.dir()),
            None => Err(ServiceError::NoManager {
                said: format!("launchd has no domain {}", self.domain()),
            }),
        }
    }

    pub(crate) fn installed(&self, name: Name) -> Result<Option<Installed>, ServiceError> {
        let path = self.file(name);
        let text = files::read(&path)?;
        Ok(text.map(|text| agent::read(path, text)))
    }

    pub(crate) async fn status(&self, name: Name) -> Result<Status, ServiceError> {
        if let Some(printed) = self.print(&self.target(name)).await? {
            return Ok(agent::status(&printed));
        }
        let has_file = self.file(name).exists();
        Ok(Status {
            state: if has_file {
                State::Stopped { because: None }
            } else {
                State::NotInstalled
            },
            enabled: has_file,
            restarts: None,
            is_outdated: false,
        })
    }

    /// Returns what launchd says of a target; `None` where it knows none of that name.
    async fn print(&self, target: &str) -> Result<Option<String>, ServiceError> {
        let said = match tool::ask(&self.user, "launchctl", &["print", target], QUESTION).await {
            Ok(answer) if answer.is_success() => return Ok(Some(answer.stdout)),
            Ok(answer) if answer.code == Some(NO_SUCH_SERVICE) => return Ok(None),
            Ok(answer) => answer.said(),
            Err(no_answer) => format!("launchctl: {no_answer}"),
        };
        Err(ServiceError::NoManager { said })
    }

    pub(crate) async fn install(&self, service: &Service) -> Result<Installation, ServiceError> {
        let name = service.name;
        let text = agent(service)?;
        self.check().await?;
        let _lock = Lock::take(&self.dir()).await?;
        let before = self.installed(name)?;
        let installation = files::replace(before, self.file(name), &text)?;
        // A person may have disabled it; adding it is their word that it shall run.
        self.must(&["enable", &self.target(name)]).await?;
        Ok(installation)
    }

    pub(crate) async fn put_back(
        &self,
        installation: &Installation,
        before: &Installed,
    ) -> Result<(), ServiceError> {
        let _lock = Lock::take(&self.dir()).await?;
        files::put_back(installation.kept.as_deref(), before)
    }

    pub(crate) async fn restart(&self, name: Name) -> Result<(), ServiceError> {
        self.boot_out(name).await?;
        self.start(name).await.map_err(|error| match error {
            ServiceError::Tool { said, .. } => ServiceError::NotStarted {
                unit: name.label().to_owned(),
                said,
            },
            other => other,
        })?;
        let has_process = async {
            while self.status(name).await?.pid().is_none() {
                sleep(LOOK).await;
            }
            Ok(())
        };
        timeout(PATIENCE, has_process).await.unwrap_or_else(|_| {
            Err(ServiceError::NotStarted {
                unit: name.label().to_owned(),
                said: "launchd has not started its process".to_owned(),
            })
        })
    }

    pub(crate) async fn start(&self, name: Name) -> Result<(), ServiceError> {
        if self.print(&self.target(name)).await?.is_some() {
            return Ok(());
        }
        let path = self.file(name);
        self.must(&["bootstrap", &self.domain(), &path.to_string_lossy()])
            .await
    }

    pub(crate) async fn stop(&self, name: Name) -> Result<(), ServiceError> {
        self.boot_out(name).await.map(drop)
    }

    pub(crate) async fn uninstall(&self, name: Name) -> Result<bool, ServiceError> {
        let _lock = if self.dir().exists() {
            Some(Lock::take(&self.dir()).await?)
        } else {
            None
        };
        let stopped = self.boot_out(name).await;
        let found = self.installed(name)?;
        let kept = files::keep_edited(found.as_ref())?.is_some();
        let removed = files::remove(&self.file(name))? || kept;
        match stopped {
            Ok(was_there) => Ok(was_there || removed),
            Err(error) if removed => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Ends the service and makes launchd forget it; returns whether launchd knew it.
    ///
    /// launchctl answers before launchd has let the label go, and until then takes no other service
    /// of that label: what counts is that it is not known any more.
    async fn boot_out(&self, name: Name) -> Result<bool, ServiceError> {
        if self.print(&self.target(name)).await?.is_none() {
            return Ok(false);
        }
        let asked = self.must(&["bootout", &self.target(name)]).await;
        let forgotten = async {
            while self.print(&self.target(name)).await?.is_some() {
                sleep(LOOK).await;
            }
            Ok(true)
        };
        match timeout(PATIENCE, forgotten).await {
            Ok(forgotten) => forgotten,
            // Whatever it said to the request was right then.
            Err(_) => asked.map(|()| true),
        }
    }

    async fn must(&self, words: &[&str]) -> Result<(), ServiceError> {
        tool::must(&self.user, "launchctl", words, CHANGE).await?;
        Ok(())
    }
}
