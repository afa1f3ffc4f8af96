//! What is installed as a service of this home, as its manager and its files tell.

use std::path::Path;

use moltis_service::{Begin, Installed, Manager, Name, ServiceError, State, Status};

use super::checks::{ServiceFacts, ServiceState, Services, Start};
use crate::paths::Home;
use crate::service::{self, GATEWAY, NODE};
use crate::settings::Settings;

/// Asks the manager of this user.
pub(super) async fn look(home: &Home, settings: &Settings) -> Services {
    let manager = service::manager(settings);
    let mut installed = Vec::new();
    for name in [NODE, GATEWAY] {
        installed.extend(facts(&manager, name, home).await);
    }
    let start = match manager.begins() {
        Begin::AtBoot => Start::AtBoot,
        Begin::AtLogin { command } => Start::AtLogin { command },
    };
    Services { installed, start }
}

/// Returns how a service stands; `None` where this home has none.
async fn facts(manager: &Manager, name: Name, home: &Home) -> Option<ServiceFacts> {
    // One of another home is looked at there.
    let file = service::of_home(manager, name, home).ok()?;
    let (state, status) = match manager.status(name).await {
        Ok(status) => (state(&status, file.is_some())?, Some(status)),
        Err(_) if file.is_none() => return None,
        Err(ServiceError::NoManager { said }) => (ServiceState::Unknown(said), None),
        Err(error) => (ServiceState::Unknown(error.to_string()), None),
    };
    let program = file.as_ref().and_then(Installed::program);
    let (install, logs) = if name == NODE {
        ("moltis node add --host <url>", "moltis node logs")
    } else {
        ("moltis gateway install", "moltis gateway logs")
    };
    Some(ServiceFacts {
        name: name.unit(),
        state,
        enabled: status.as_ref().is_none_or(|status| status.enabled),
        missing_program: program
            .filter(|program| !Path::new(program).exists())
            .map(str::to_owned),
        is_outdated: status.is_some_and(|status| status.is_outdated),
        is_edited: file.is_some_and(|file| file.is_edited()),
        install,
        logs,
    })
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
