//! This program as a service of the operating system: what is installed, and how it stands in
//! words. The manager itself is the service crate's.

use std::net::SocketAddr;

use moltis_service::{Begin, Installation, Installed, Manager, Name, Service, ServiceError};
use moltis_service::{State, Status, User};

use crate::account::Account;
use crate::failure::{Failure, failure};
use crate::output::Output;
use crate::paths::Home;
use crate::program;
use crate::settings::{SERVICE_VARIABLE, Settings};

/// The node's service.
pub(crate) const NODE: Name = Name::new("moltis-node", "org.moltis.node");

/// The gateway's service.
pub(crate) const GATEWAY: Name = Name::new("moltis-gateway", "org.moltis.gateway");

/// The variable that tells which home a service works on.
const HOME_VARIABLE: &str = "MOLTIS_HOME";

/// Returns the service manager of this user.
pub(crate) fn manager(settings: &Settings) -> Manager {
    let account = Account::of_process(settings);
    let path = settings.path.as_deref().unwrap_or("/usr/bin:/bin");
    let mut user = User::new(
        Account::login(settings),
        rustix::process::geteuid().as_raw(),
        account.home,
        path,
    );
    if let Some(dir) = &settings.runtime_dir {
        user = user.runtime_dir(dir);
    }
    if let Some(address) = &settings.bus_address {
        user = user.bus_address(address);
    }
    Manager::of(user)
}

/// Returns the node of this home as a service.
pub(crate) fn node(home: &Home, settings: &Settings) -> Result<Service, Failure> {
    let service = Service::new(NODE, "Moltis node", program::path(settings)?);
    Ok(on(home, service).argument("node").argument("run"))
}

/// Returns the gateway of this home as a service that listens where `listen` says, or else where
/// its configuration does.
pub(crate) fn gateway(
    home: &Home,
    settings: &Settings,
    listen: &[SocketAddr],
) -> Result<Service, Failure> {
    let service = Service::new(GATEWAY, "Moltis gateway", program::path(settings)?);
    let mut service = on(home, service).argument("gateway");
    for address in listen {
        service = service.argument("--listen").argument(address.to_string());
    }
    // Commands on this machine find programs as they do in the shell in which this was typed.
    if let Some(path) = &settings.path {
        service = service.variable("PATH", path);
    }
    Ok(service)
}

fn on(home: &Home, service: Service) -> Service {
    service
        .variable(HOME_VARIABLE, home.dir().to_string_lossy())
        .variable(SERVICE_VARIABLE, "1")
}

/// Returns the file of a service of this home; `None` where there is none.
///
/// # Errors
/// The service that is installed works on another home.
pub(crate) fn of_home(
    manager: &Manager,
    name: Name,
    home: &Home,
) -> Result<Option<Installed>, Failure> {
    let installed = manager
        .installed(name)
        .map_err(|error| failed(error, name))?;
    let other = installed
        .as_ref()
        .and_then(|installed| installed.variable(HOME_VARIABLE))
        .filter(|dir| *dir != home.dir().to_string_lossy());
    match (other, name == NODE) {
        (None, _) => Ok(installed),
        (Some(other), is_node) => {
            let remove = if is_node {
                "moltis node remove"
            } else {
                "moltis gateway uninstall"
            };
            Err(failure(format!(
                "the service {} works on the home `{other}`, and this one is `{}`",
                name.unit(),
                home.dir().display()
            ))
            .hint(format!(
                "one user has one such service; to take it away there: MOLTIS_HOME={} {remove}",
                crate::visible::quoted(other)
            )))
        }
    }
}

/// Turns an error of the manager into words for a person, with what to type next.
pub(crate) fn failed(error: ServiceError, name: Name) -> Failure {
    let hint = match (&error, name == NODE) {
        (ServiceError::NoManager { .. }, true) => {
            Some("stay in this terminal instead: the same line with --foreground".to_owned())
        }
        (ServiceError::NoManager { .. }, false) => {
            Some("run it in this terminal instead: moltis gateway".to_owned())
        }
        (ServiceError::Masked { unit }, _) => Some(format!(
            "if it shall start again: systemctl --user unmask {unit}"
        )),
        (ServiceError::Busy, _) => Some("wait until it is done, then again".to_owned()),
        (ServiceError::NotStarted { .. }, true) => Some("see why: moltis node logs -f".to_owned()),
        (ServiceError::NotStarted { .. }, false) => {
            Some("see why: moltis gateway logs -f".to_owned())
        }
        _ => None,
    };
    let failure = match std::error::Error::source(&error) {
        Some(_) => failure("the service cannot be managed").because(error),
        None => failure(error.to_string()),
    };
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Stops a service and takes it away; returns whether there was anything to take.
///
/// Where no manager answers its files are gone all the same, and a warning says what may be left.
pub(crate) async fn remove(output: Output, manager: &Manager, name: Name) -> Result<bool, Failure> {
    match manager.uninstall(name).await {
        Ok(was_there) => Ok(was_there),
        Err(error @ ServiceError::NoManager { .. }) => {
            output.warn(&format!(
                "the service's file is removed; whether it still runs could not be asked: {error}"
            ));
            Ok(true)
        }
        Err(error) => Err(failed(error, name)),
    }
}

/// Says what an installation means beyond itself: what was kept of a person's own changes, and
/// whether the service starts with the machine.
pub(crate) async fn tell_beside(
    output: Output,
    home: &Home,
    manager: &Manager,
    name: Name,
    installation: &Installation,
) {
    if let Some(kept) = &installation.kept {
        output.warn(&format!(
            "{} was changed by hand: what it held is in {}; what you change with \
             `systemctl --user edit {}` stays",
            name.unit(),
            home.show(kept),
            name.unit()
        ));
    }
    if let Begin::AtLogin { command } = manager.begin_at_boot().await {
        let when = "the service starts when you log in and ends when you log out";
        match command {
            Some(command) => {
                output.warn(when);
                output.hint(&format!("so that it starts with the machine: {command}"));
            }
            None => output.note(when),
        }
    }
}

/// How a service stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// For scripts: `running`, `stopped` or `not_installed`.
    pub(crate) word: &'static str,
    /// For people: the same with a reason and a number, where there are any.
    pub(crate) words: String,
    /// Its process, while it runs.
    pub(crate) pid: Option<u32>,
}

/// Asks how a service stands. Where no manager answers, its file tells what can be told.
pub(crate) async fn standing(manager: &Manager, name: Name) -> Result<Standing, Failure> {
    match manager.status(name).await {
        Ok(status) => Ok(stands(&status)),
        Err(ServiceError::NoManager { said }) => {
            let installed = manager.installed(name);
            let installed = installed.map_err(|error| failed(error, name))?;
            let (word, words) = match installed {
                None => ("not_installed", "not installed".to_owned()),
                Some(_) => (
                    "stopped",
                    format!("installed, but no service manager of this user answers: {said}"),
                ),
            };
            let pid = None;
            Ok(Standing { word, words, pid })
        }
        Err(error) => Err(failed(error, name)),
    }
}

fn stands(status: &Status) -> Standing {
    let because = |words: &str, because: &Option<String>| match because {
        None => words.to_owned(),
        Some(because) => format!("{words}: {because}"),
    };
    let (word, mut words) = match &status.state {
        State::NotInstalled => ("not_installed", "not installed".to_owned()),
        State::Masked => ("not_installed", "masked: it may not start".to_owned()),
        State::Stopped { because: why } => ("stopped", because("stopped", why)),
        State::Starting { because: why } => ("stopped", because("about to start again", why)),
        State::Running { pid } => ("running", format!("running (process {pid})")),
    };
    match (&status.state, status.restarts) {
        (State::Running { .. } | State::Starting { .. }, Some(times)) if times > 0 => {
            let times = if times == 1 {
                "once".to_owned()
            } else {
                format!("{times} times")
            };
            words.push_str(", started again ");
            words.push_str(&times);
        }
        _ => {}
    }
    let is_there = !matches!(status.state, State::NotInstalled | State::Masked);
    if is_there && !status.enabled {
        words.push_str(", not enabled: it does not start by itself");
    }
    if is_there && status.is_outdated {
        words.push_str(", and its unit was changed since: systemctl --user daemon-reload");
    }
    Standing {
        word,
        words,
        pid: status.pid(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: State) -> Status {
        Status {
            state,
            enabled: true,
            restarts: Some(0),
            text: None,
            is_outdated: false,
        }
    }

    #[test]
    fn a_service_is_told_in_a_word_and_in_words() {
        let check = |status: &Status, word: &str, words: &str| {
            let standing = stands(status);
            assert_eq!((standing.word, &*standing.words), (word, words));
        };
        let running = status(State::Running { pid: 7 });
        check(&running, "running", "running (process 7)");
        let again = Status {
            restarts: Some(3),
            ..running
        };
        check(
            &again,
            "running",
            "running (process 7), started again 3 times",
        );
        let because = Some("exit code 1".to_owned());
        check(
            &status(State::Stopped { because }),
            "stopped",
            "stopped: exit code 1",
        );
        let odd = Status {
            enabled: false,
            is_outdated: true,
            ..status(State::Stopped { because: None })
        };
        check(
            &odd,
            "stopped",
            "stopped, not enabled: it does not start by itself, and its unit was changed since: \
             systemctl --user daemon-reload",
        );
        check(
            &status(State::NotInstalled),
            "not_installed",
            "not installed",
        );
        check(
            &status(State::Masked),
            "not_installed",
            "masked: it may not start",
        );
    }
}
