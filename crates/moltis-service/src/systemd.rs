//! systemd's user manager: the unit as a pure function, and `systemctl --user` around it.

mod properties;
mod unit;

use std::path::{Path, PathBuf};

pub use self::unit::unit;
use crate::error::ServiceError;
use crate::files::{self, Installed, Lock};
use crate::manager::{Begin, ByHand, Installation};
use crate::service::{Name, Service};
use crate::status::{State, Status};
use crate::tool::{self, Answer, CHANGE, QUESTION};
use crate::user::User;

/// Where logind keeps a file for each user who lingers.
pub(crate) const LINGER_DIR: &str = "/var/lib/systemd/linger";

/// systemd's manager of one user.
#[derive(Debug, Clone)]
pub(crate) struct Systemd {
    user: User,
}

impl Systemd {
    pub(crate) fn new(user: User) -> Self {
        Self { user }
    }

    /// `~/.config/systemd/user`: where systemd looks unless its own `XDG_CONFIG_HOME` says otherwise,
    /// and the same in every shell, whatever that has in its variable.
    fn dir(&self) -> PathBuf {
        self.user.home.join(".config/systemd/user")
    }

    pub(crate) fn file(&self, name: Name) -> PathBuf {
        self.dir().join(name.unit())
    }

    pub(crate) async fn check(&self, name: Name) -> Result<(), ServiceError> {
        let status = self.status(name).await?;
        if status.state == State::Masked {
            return Err(ServiceError::Masked { unit: name.unit() });
        }
        let asked = ["show", "--property", "UnitPath", "--value"];
        let read = self.ask(&asked).await?.stdout;
        if !is_listed(&read, &self.dir()) {
            return Err(ServiceError::NotRead {
                path: self.dir(),
                found: read.trim().to_owned(),
            });
        }
        files::prepare(&self.dir())
    }

    pub(crate) fn installed(&self, name: Name) -> Result<Option<Installed>, ServiceError> {
        let path = self.file(name);
        if is_mask(&path) {
            return Ok(None);
        }
        let text = files::read(&path)?;
        Ok(text.map(|text| unit::read(path, text)))
    }

    pub(crate) async fn status(&self, name: Name) -> Result<Status, ServiceError> {
        let unit = name.unit();
        let properties = properties::ASKED.join(",");
        let answer = self
            .ask(&["show", "--property", &properties, "--", &unit])
            .await?;
        let mut status = properties::status(&answer.stdout);
        let file = properties::file(&answer.stdout);
        if status.state != State::Masked
            && file.is_some_and(|file| !is_same(file, &self.file(name)))
        {
            // A unit of this name that somebody else brought is none of ours to touch.
            status.state = State::NotInstalled;
        }
        Ok(status)
    }

    pub(crate) async fn install(&self, service: &Service) -> Result<Installation, ServiceError> {
        let name = service.name;
        let text = unit(service)?;
        self.check(name).await?;
        let _lock = Lock::take(&self.dir()).await?;
        let before = self.installed(name)?;
        let installation = files::replace(before, self.file(name), &text)?;
        self.must(&["daemon-reload"], QUESTION).await?;
        self.must(&["enable", "--", &name.unit()], QUESTION).await?;
        Ok(installation)
    }

    pub(crate) async fn put_back(
        &self,
        installation: &Installation,
        before: &Installed,
    ) -> Result<(), ServiceError> {
        let _lock = Lock::take(&self.dir()).await?;
        files::put_back(installation.kept.as_deref(), before)?;
        self.must(&["daemon-reload"], QUESTION).await?;
        Ok(())
    }

    pub(crate) async fn restart(&self, name: Name) -> Result<(), ServiceError> {
        let unit = name.unit();
        let started = self.must(&["restart", "--", &unit], CHANGE).await;
        started.map(drop).map_err(|error| match error {
            ServiceError::Tool { said, .. } => ServiceError::NotStarted { unit, said },
            other => other,
        })
    }

    pub(crate) async fn start(&self, name: Name) -> Result<(), ServiceError> {
        let words = ["start", "--no-block", "--", &name.unit()];
        self.must(&words, QUESTION).await?;
        Ok(())
    }

    pub(crate) async fn stop(&self, name: Name) -> Result<(), ServiceError> {
        self.must(&["stop", "--", &name.unit()], CHANGE).await?;
        Ok(())
    }

    pub(crate) async fn uninstall(&self, name: Name) -> Result<bool, ServiceError> {
        let path = self.file(name);
        // What is half installed may have no directory; then nobody else is at work in it either.
        let _lock = if self.dir().exists() {
            Some(Lock::take(&self.dir()).await?)
        } else {
            None
        };
        let answers = self.status(name).await;
        let mut was_there = false;
        if let Ok(status) = &answers
            && !matches!(status.state, State::NotInstalled | State::Masked)
        {
            was_there = true;
            // Stop before the file goes: systemd keeps a unit that runs and has no file.
            self.stop(name).await?;
            // It says no where the file is gone already; what it leaves is removed below.
            let disabled = self.must(&["disable", "--", &name.unit()], QUESTION).await;
            disabled.ok();
        }
        if !is_mask(&path) {
            // What cannot be read is nothing that we wrote: it is somebody's to look at.
            let found = self.installed(name)?;
            was_there |= files::keep_edited(found.as_ref())?.is_some();
            was_there |= files::remove(&path)?;
        }
        let wanted = self.dir().join("default.target.wants").join(name.unit());
        was_there |= files::remove(&wanted)?;
        match answers {
            Ok(_) => {
                self.must(&["daemon-reload"], QUESTION).await?;
                // It says no to a unit that it has forgotten, which is what we want.
                let reset = ["reset-failed", "--", &name.unit()];
                self.must(&reset, QUESTION).await.ok();
                Ok(was_there)
            }
            Err(error) if was_there => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// `dir` is [`LINGER_DIR`].
    pub(crate) fn begins(&self, dir: &Path) -> Begin {
        if dir.join(&self.user.name).exists() {
            return Begin::AtBoot;
        }
        let sudo = (self.user.id != 0).then_some("sudo");
        let words = ["loginctl", "enable-linger", &self.user.name];
        let words = sudo.into_iter().chain(words).map(str::to_owned);
        Begin::AtLogin {
            command: Some(words.collect()),
        }
    }

    pub(crate) async fn linger(&self, dir: &Path) -> Begin {
        if self.begins(dir) != Begin::AtBoot {
            // Whether it may is the system's to say; how it stands then is what counts.
            let words = ["--no-ask-password", "enable-linger", &self.user.name];
            tool::ask(&self.user, "loginctl", &words, QUESTION)
                .await
                .ok();
        }
        self.begins(dir)
    }

    /// Asks the manager; what is no answer of its is [`ServiceError::NoManager`].
    async fn ask(&self, words: &[&str]) -> Result<Answer, ServiceError> {
        let words = [&["--user", "--no-pager"], words].concat();
        let said = match tool::ask(&self.user, "systemctl", &words, QUESTION).await {
            Ok(answer) if answer.is_success() => return Ok(answer),
            Ok(answer) => answer.said(),
            Err(no_answer) => format!("systemctl: {no_answer}"),
        };
        Err(ServiceError::NoManager { said })
    }

    async fn must(
        &self,
        words: &[&str],
        limit: std::time::Duration,
    ) -> Result<Answer, ServiceError> {
        let words = [&["--user", "--no-ask-password"], words].concat();
        tool::must(&self.user, "systemctl", &words, limit).await
    }
}

/// Returns what a person types about a unit.
pub(crate) fn by_hand(name: Name) -> ByHand {
    let unit = name.unit();
    ByHand {
        start: format!("systemctl --user start {unit}"),
        stop: format!("systemctl --user stop {unit}"),
        edit: Some(format!("systemctl --user edit {unit}")),
        journal: Some(format!("journalctl --user -u {unit}")),
        name: unit,
    }
}

/// Returns whether a directory is in a list that systemctl prints, in which it quotes as a shell does.
fn is_listed(list: &str, dir: &Path) -> bool {
    let plain = dir.to_string_lossy();
    let mut escaped = String::new();
    for character in plain.chars() {
        if "\"\\`$".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    list.contains(&*plain) || list.contains(&escaped)
}

/// Returns whether two paths lead to one file, also where the manager knows the home directory by
/// another name.
fn is_same(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| std::fs::canonicalize(path.parent()?).ok();
    let is_one_dir = || whole(one).is_some_and(|one| Some(one) == whole(other));
    one == other || (one.file_name() == other.file_name() && is_one_dir())
}

/// Returns whether a file is how systemd writes down that a unit must not start.
fn is_mask(path: &Path) -> bool {
    std::fs::read_link(path).is_ok_and(|to| to == Path::new("/dev/null"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn systemd(home: &Path) -> Systemd {
        let user = User::new("ada", 1000, home, "/usr/bin:/bin");
        Systemd::new(user.runtime_dir(home.join("run")))
    }

    const NAME: Name = Name::new("t", "org.t");

    #[tokio::test]
    async fn without_a_manager_nothing_is_installed_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let systemd = systemd(dir.path());
        let service = Service::new(NAME, "d", "/bin/true");
        let error = systemd.install(&service).await.unwrap_err();
        assert!(matches!(error, ServiceError::NoManager { .. }), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!systemd.uninstall(NAME).await.unwrap());
    }

    #[tokio::test]
    async fn half_an_installation_is_removed_without_a_manager_and_that_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let systemd = systemd(dir.path());
        let wants = systemd.dir().join("default.target.wants");
        std::fs::create_dir_all(&wants).unwrap();
        std::os::unix::fs::symlink("../t.service", wants.join("t.service")).unwrap();
        let error = systemd.uninstall(NAME).await.unwrap_err();
        assert!(matches!(error, ServiceError::NoManager { .. }), "{error}");
        assert_eq!(std::fs::read_dir(&wants).unwrap().count(), 0);
        assert!(!systemd.uninstall(NAME).await.unwrap());
    }

    #[test]
    fn who_lingers_starts_at_boot_and_who_does_not_is_told_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let systemd = systemd(dir.path());
        assert_eq!(
            systemd.begins(dir.path()),
            Begin::AtLogin {
                command: Some(
                    ["sudo", "loginctl", "enable-linger", "ada"]
                        .map(str::to_owned)
                        .to_vec()
                )
            }
        );
        std::fs::write(dir.path().join("ada"), "").unwrap();
        assert_eq!(systemd.begins(dir.path()), Begin::AtBoot);
    }

    #[test]
    fn a_mask_is_no_installation() {
        let dir = tempfile::tempdir().unwrap();
        let systemd = systemd(dir.path());
        std::fs::create_dir_all(systemd.dir()).unwrap();
        std::os::unix::fs::symlink("/dev/null", systemd.file(NAME)).unwrap();
        assert_eq!(systemd.installed(NAME).unwrap(), None);
    }
}
