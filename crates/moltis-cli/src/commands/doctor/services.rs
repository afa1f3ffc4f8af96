//! What is installed as a service of this home, as its manager and its files tell.

use std::path::Path;

use moltis_service::{Installed, Manager, Name, ServiceError, State, Status};

use super::checks::{ServiceFacts, ServiceState, Services};
use crate::failure::report;
use crate::paths::Home;
use crate::service::{self, GATEWAY, NODE, Owned, typed};
use crate::settings::Settings;
use crate::visible::quoted;

/// Asks the manager of this user.
pub(super) async fn look(home: &Home, settings: &Settings) -> Services {
    let manager = service::manager(settings);
    let mut installed = Vec::new();
    for name in [NODE, GATEWAY] {
        installed.extend(facts(&manager, name, home).await);
    }
    Services {
        installed,
        begin: manager.begins(),
    }
}

/// Returns how a service stands; `None` where this home has none.
async fn facts(manager: &Manager, name: Name, home: &Home) -> Option<ServiceFacts> {
    let (file, unreadable) = match service::owned(manager, name, home) {
        Ok(Owned::Nobodys) => (None, None),
        Ok(Owned::Ours(file)) => (Some(file), None),
        // One of another home is looked at there.
        Ok(Owned::Anothers(_)) => return None,
        Err(failure) => (None, Some(report(&failure.into()).line())),
    };
    let (state, status) = match (unreadable, manager.status(name).await) {
        (Some(why), _) => (ServiceState::Unknown(why), None),
        (None, Ok(status)) => (state(&status, file.is_some())?, Some(status)),
        (None, Err(_)) if file.is_none() => return None,
        (None, Err(ServiceError::NoManager { said })) => (ServiceState::Unknown(said), None),
        (None, Err(error)) => (ServiceState::Unknown(error.to_string()), None),
    };
    let program = file.as_ref().and_then(Installed::program);
    let (install, logs) = if name == NODE {
        (add_again(home), "moltis node logs")
    } else {
        (install_again(file.as_ref()), "moltis gateway logs")
    };
    let by_hand = manager.by_hand(name);
    Some(ServiceFacts {
        is_node: name == NODE,
        name: by_hand.name,
        start: by_hand.start,
        state,
        enabled: status.as_ref().is_none_or(|status| status.enabled),
        missing_program: program
            // What systemd puts together itself (`%h`, a bare name) is not for us to look up.
            .filter(|program| program.starts_with('/') && !program.contains('%'))
            .filter(|program| !Path::new(program).exists())
            .map(str::to_owned),
        restarts: status
            .as_ref()
            .and_then(|status| status.restarts)
            .unwrap_or(0),
        is_outdated: status.is_some_and(|status| status.is_outdated),
        is_edited: file.is_some_and(|file| file.is_edited()),
        install,
        logs,
    })
}

/// Returns the line that joins this machine to its gateway again.
fn add_again(home: &Home) -> String {
    let url = crate::commands::joined_gateway(home);
    let url = url.map_or_else(|| "ws://<host>:9090/ws".to_owned(), |url| quoted(&url));
    format!("moltis node add --host {url}")
}

/// Returns the line that installs the gateway as it is installed.
fn install_again(file: Option<&Installed>) -> String {
    let arguments = file.map_or(&[][..], Installed::arguments);
    // They begin with `gateway`.
    let flags = arguments.get(1..).unwrap_or_default();
    let words = ["moltis", "gateway", "install"].map(str::to_owned);
    typed(&[&words, flags].concat())
}

/// Returns how a service stands; `None` where there is none.
fn state(status: &Status, has_file: bool) -> Option<ServiceState> {
    Some(match &status.state {
        State::NotInstalled if has_file => {
            ServiceState::Unknown("the service manager has not read its file".to_owned())
        }
        State::NotInstalled => return None,
        State::Masked => ServiceState::Masked,
        State::Stopped { because } => ServiceState::Stopped {
            because: because.clone(),
        },
        State::Starting { because } => ServiceState::Starting {
            because: because.clone(),
        },
        State::Running { .. } => ServiceState::Running,
    })
}
