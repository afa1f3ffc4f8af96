//! This program as a service of the operating system: what is installed, and how it stands in
//! words. The manager itself is the service crate's.

use std::path::Path;

use moltis_service::{Begin, Installation, Installed, Manager, Name, Service, ServiceError};
use moltis_service::{State, Status, User};
use serde::Serialize;

use crate::account::Account;
use crate::args::Listen;
use crate::failure::{Failure, failure};
use crate::output::Output;
use crate::paths::Home;
use crate::program;
use crate::settings::{SERVICE_VARIABLE, Settings};
use crate::visible::quoted;

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

/// Returns the gateway of this home as a service that listens where and how `listen` says, or else
/// as its configuration does.
pub(crate) fn gateway(
    home: &Home,
    settings: &Settings,
    listen: &Listen,
) -> Result<Service, Failure> {
    let service = Service::new(GATEWAY, "Moltis gateway", program::path(settings)?);
    let mut service = on(home, service).argument("gateway");
    for address in &listen.addresses {
        service = service.argument("--listen").argument(address.to_string());
    }
    for word in listen.tls.words() {
        service = service.argument(word);
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

/// A service of this user, seen from one home.
#[derive(Debug)]
pub(crate) enum Owned {
    /// There is none.
    Nobodys,
    /// It works on this home, or does not say on which.
    Ours(Installed),
    /// It works on another home: what this says.
    Anothers(Failure),
}

/// Reads the file of a service and tells whose it is.
///
/// # Errors
/// It is there and cannot be read.
pub(crate) fn owned(manager: &Manager, name: Name, home: &Home) -> Result<Owned, Failure> {
    let installed = manager.installed(name);
    let Some(installed) = installed.map_err(|error| failed(error, name))? else {
        return Ok(Owned::Nobodys);
    };
    let dir = installed.variable(HOME_VARIABLE);
    let Some(other) = dir.filter(|dir| !is_same(Path::new(dir), home.dir())) else {
        return Ok(Owned::Ours(installed));
    };
    let failure = failure(format!(
        "the service {} belongs to the home `{other}`, and this one is `{}`",
        name.unit(),
        home.dir().display()
    ));
    Ok(Owned::Anothers(failure.hint(format!(
        "one user has one such service; to take it away there: MOLTIS_HOME={} {}",
        quoted(other),
        words_for(name).remove
    ))))
}

/// Returns the file of a service of this home; `None` where there is none.
///
/// # Errors
/// The service that is installed works on another home, or its file cannot be read.
pub(crate) fn of_home(
    manager: &Manager,
    name: Name,
    home: &Home,
) -> Result<Option<Installed>, Failure> {
    match owned(manager, name, home)? {
        Owned::Nobodys => Ok(None),
        Owned::Ours(installed) => Ok(Some(installed)),
        Owned::Anothers(failure) => Err(failure),
    }
}

/// Returns whether two paths lead to one directory.
fn is_same(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| std::fs::canonicalize(path).ok();
    one == other || whole(one).is_some_and(|one| Some(one) == whole(other))
}

/// What a person types about a service.
struct Words {
    remove: &'static str,
    logs: &'static str,
    instead: &'static str,
}

fn words_for(name: Name) -> &'static Words {
    if name == NODE {
        &Words {
            remove: "moltis node remove",
            logs: "moltis node logs -f",
            instead: "stay in this terminal instead: the same line with --foreground",
        }
    } else {
        &Words {
            remove: "moltis gateway uninstall",
            logs: "moltis gateway logs -f",
            instead: "run it in this terminal instead: moltis gateway",
        }
    }
}

/// Returns words as a person types them into a shell.
pub(crate) fn typed(words: &[String]) -> String {
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

/// Turns an error of the manager into words for a person, with what to type next.
pub(crate) fn failed(error: ServiceError, name: Name) -> Failure {
    let words = words_for(name);
    let hints = match &error {
        ServiceError::NoManager { .. } => vec![
            words.instead.to_owned(),
            "a service belongs to the user who types this: not by sudo or su, but logged in as that user"
                .to_owned(),
        ],
        ServiceError::Masked { unit } => {
            vec![format!("if it shall start again: systemctl --user unmask {unit}")]
        }
        ServiceError::Busy => vec!["wait until it is done, then again".to_owned()],
        ServiceError::NotStarted { .. } => vec![format!("see why: {}", words.logs)],
        ServiceError::NotRead { .. } => vec![
            "is XDG_CONFIG_HOME set for the service manager? moltis writes to ~/.config".to_owned(),
        ],
        _ => Vec::new(),
    };
    let failure = match std::error::Error::source(&error) {
        Some(_) => failure("the service cannot be managed").because(error),
        None => failure(error.to_string()),
    };
    hints.into_iter().fold(failure, Failure::hint)
}

/// As [`failed`], of a service that was started and does not come up.
pub(crate) fn not_started(manager: &Manager, name: Name, error: ServiceError) -> Failure {
    let failure = failed(error, name);
    match manager.by_hand(name).journal {
        Some(journal) => failure.hint(format!("what it printed beside its log: {journal}")),
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
                "the service's file is removed; whether it still runs could not be asked: {error}; \
                 where a manager is: {}",
                manager.by_hand(name).stop
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
        let by_hand = manager.by_hand(name);
        output.warn(&format!(
            "{} was changed by hand: what it held is in {}",
            by_hand.name,
            home.show(kept)
        ));
        if let Some(edit) = by_hand.edit {
            output.hint(&format!("so that a change stays: {edit}"));
        }
    }
    let is_new = installation.before.is_none();
    if let Begin::AtLogin { command } = manager.begin_at_boot().await
        && is_new
    {
        let when = "the service starts when you log in and ends when you log out";
        match command {
            Some(command) => {
                output.warn(when);
                output.hint(&format!(
                    "so that it starts with the machine: {}",
                    typed(&command)
                ));
            }
            None => output.note(when),
        }
    }
}

/// How a service stands, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// It has a process.
    Running,
    /// It is there and has none.
    Stopped,
    /// It is not there, or may not start.
    NotInstalled,
}

/// How a service stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// For scripts.
    pub(crate) word: Word,
    /// For people: the same with a reason and a number, where there are any.
    pub(crate) words: String,
    /// Its process, while it runs.
    pub(crate) pid: Option<u32>,
    /// It runs, or its manager is about to start it.
    pub(crate) is_wanted: bool,
}

/// Asks how the service of a home stands; that of another home is none of this one's.
pub(crate) async fn standing_of(
    manager: &Manager,
    name: Name,
    home: &Home,
) -> Result<Standing, Failure> {
    match owned(manager, name, home)? {
        Owned::Nobodys | Owned::Ours(_) => standing(manager, name).await,
        Owned::Anothers(other) => Ok(Standing {
            word: Word::NotInstalled,
            words: format!("not installed: {other}"),
            pid: None,
            is_wanted: false,
        }),
    }
}

/// Asks how a service stands. Where no manager answers, its file tells what can be told.
pub(crate) async fn standing(manager: &Manager, name: Name) -> Result<Standing, Failure> {
    match manager.status(name).await {
        Ok(status) => Ok(stands(&status)),
        Err(ServiceError::NoManager { said }) => {
            let installed = manager.installed(name);
            let installed = installed.map_err(|error| failed(error, name))?;
            let (word, words) = match installed {
                None => (Word::NotInstalled, "not installed".to_owned()),
                Some(_) => (
                    Word::Stopped,
                    format!("installed, but no service manager of this user answers: {said}"),
                ),
            };
            Ok(Standing {
                word,
                words,
                pid: None,
                is_wanted: false,
            })
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
        State::NotInstalled => (Word::NotInstalled, "not installed".to_owned()),
        State::Masked => (Word::NotInstalled, "masked: it may not start".to_owned()),
        State::Stopped { because: why } => (Word::Stopped, because("stopped", why)),
        State::Starting { because: why } => (Word::Stopped, because("about to start", why)),
        State::Running { pid } => (Word::Running, format!("running (process {pid})")),
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
        is_wanted: matches!(status.state, State::Running { .. } | State::Starting { .. }),
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
            is_outdated: false,
        }
    }

    #[test]
    fn a_service_is_told_in_a_word_and_in_words() {
        let check = |status: &Status, word: Word, words: &str| {
            let standing = stands(status);
            assert_eq!((standing.word, &*standing.words), (word, words));
        };
        let running = status(State::Running { pid: 7 });
        check(&running, Word::Running, "running (process 7)");
        let again = Status {
            restarts: Some(3),
            ..running
        };
        check(
            &again,
            Word::Running,
            "running (process 7), started again 3 times",
        );
        let because = Some("exit code 1".to_owned());
        check(
            &status(State::Stopped { because }),
            Word::Stopped,
            "stopped: exit code 1",
        );
        let odd = Status {
            enabled: false,
            is_outdated: true,
            ..status(State::Stopped { because: None })
        };
        check(
            &odd,
            Word::Stopped,
            "stopped, not enabled: it does not start by itself, and its unit was changed since: \
             systemctl --user daemon-reload",
        );
        check(
            &status(State::NotInstalled),
            Word::NotInstalled,
            "not installed",
        );
        check(
            &status(State::Masked),
            Word::NotInstalled,
            "masked: it may not start",
        );
    }
}
