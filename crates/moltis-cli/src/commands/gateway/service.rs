//! `moltis gateway install`, `uninstall` and `status`: the gateway as a service of the operating
//! system.

use std::net::SocketAddr;
use std::time::Duration;

use moltis_gateway::api::gateway::{Certificate, Gateway};
use moltis_service::{Installation, Installed, Manager, ServiceError};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::tls::{self, Served};
use crate::api::{ApiError, Client, LOOK_TIME};
use crate::args::{Format, Listen, Remote};
use crate::commands::Context;
use crate::config_file;
use crate::exit::Exit;
use crate::failure::{Failure, failure};
use crate::logging;
use crate::output::Output;
use crate::paths::Home;
use crate::service::{self, GATEWAY, Word, failed};

/// Bytes of the log in which the reason of a failed start is looked for.
const LOG_BYTES: u64 = 64 * 1024;

/// How long a gateway that has started may take to answer, and how often it is asked.
const ANSWER_TIME: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// `moltis gateway install`.
pub(in crate::commands) async fn install(context: &Context, args: Listen) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let manager = service::manager(&context.settings);
    let service = service::gateway(&home, &context.settings, &args)?;
    manager
        .check(&service)
        .await
        .map_err(|error| failed(error, GATEWAY))?;
    service::of_home(&manager, GATEWAY, &home)?;
    home.prepare()?;
    let file = config_file::load(&home.config(), &home.show(&home.config()))?;
    let standing = service::standing(&manager, GATEWAY).await?;
    if !standing.is_wanted && ask(context).await.map_err(Failure::from)?.is_some() {
        return Err(
            failure("a gateway runs on this home already, and not as a service")
                .hint("end it where it runs (Ctrl+C), then again: commands that run go on")
                .into(),
        );
    }
    let output = context.output;
    let log_before = log_length(&home);
    let installed = manager.install(&service).await;
    let installed = installed.map_err(|error| failed(error, GATEWAY))?;
    service::tell_beside(output, &home, &manager, GATEWAY, &installed).await;
    let started = manager.restart(GATEWAY).await;
    let answered = match started {
        Ok(()) => answer(context, &home, log_before).await,
        Err(error) => Err(not_started(&manager, error, &home, log_before)),
    };
    let gateway = match answered {
        Ok(gateway) => gateway,
        Err(failure) => {
            let is_back = put_back(output, &manager, &installed, standing.is_wanted).await;
            let hint = if is_back {
                "the gateway is as it was installed before"
            } else {
                "it tries again every two seconds; to take it away: moltis gateway uninstall"
            };
            return Err(failure.hint(hint).into());
        }
    };
    let shown = home.show(&installed.path);
    output.text(&format!("Service installed and running ({shown})."))?;
    let addresses: Vec<SocketAddr> = gateway
        .addresses
        .iter()
        .filter_map(|address| address.parse().ok())
        .collect();
    let has_certificate = gateway.certificate.is_some();
    let lines: Vec<_> = super::shown(tls::scheme(has_certificate), &addresses)
        .iter()
        .map(|address| format!("listening on {address}"))
        .collect();
    output.text(&lines.join("\n"))?;
    let arguments = installed.before.as_ref().map(Installed::arguments);
    if let Some(arguments) = arguments.filter(|arguments| *arguments != service.arguments()) {
        output.note(&format!(
            "it was installed before as: moltis {}",
            arguments.join(" ")
        ));
    }
    let insecure_http = args.tls.insecure_http || file.insecure_http.unwrap_or(false);
    let served = Served::of(has_certificate, insecure_http);
    super::say_who_reaches(output, &addresses, served, "moltis gateway install");
    Ok(Exit::SUCCESS)
}

/// Makes the service what it was before an installation that came to nothing; returns whether it
/// was anything.
async fn put_back(
    output: Output,
    manager: &Manager,
    installation: &Installation,
    ran: bool,
) -> bool {
    let put = async {
        let is_back = manager.put_back(installation).await?;
        match (is_back, ran) {
            (true, true) => manager.restart(GATEWAY).await?,
            (true, false) => manager.stop(GATEWAY).await?,
            (false, _) => {}
        }
        Ok::<_, ServiceError>(is_back)
    };
    put.await.unwrap_or_else(|error| {
        output.warn(&format!(
            "the service that was there before does not start again: {error}"
        ));
        false
    })
}

/// Waits until the gateway that was started answers.
async fn answer(context: &Context, home: &Home, log_before: u64) -> Result<Gateway, Failure> {
    let answered = async {
        loop {
            if let Some(gateway) = ask(context).await.map_err(Failure::from)? {
                return Ok(gateway);
            }
            sleep(LOOK).await;
        }
    };
    if let Ok(answered) = timeout(ANSWER_TIME, answered).await {
        return answered;
    }
    let failure = failure("the gateway was started and does not answer")
        .hint("see why: moltis gateway logs -f");
    let reason = logging::last_error(&home.gateway_log(), log_before, LOG_BYTES);
    Err(match reason {
        Some(reason) => failure.because(anyhow::anyhow!("{reason}")),
        None => failure,
    })
}

/// `moltis gateway uninstall`.
pub(in crate::commands) async fn uninstall(
    context: &Context,
    format: Format,
) -> anyhow::Result<Exit> {
    #[derive(Serialize)]
    struct Document {
        service_removed: bool,
    }
    let home = context.home()?;
    let manager = service::manager(&context.settings);
    service::of_home(&manager, GATEWAY, &home)?;
    let service_removed = service::remove(context.output, &manager, GATEWAY).await?;
    if format.json {
        context.output.json(&Document { service_removed })?;
    } else if service_removed {
        context.output.note(&format!(
            "removed; what the gateway knows stays in {}, and commands that run go on",
            home.show(home.dir())
        ));
    } else {
        context
            .output
            .note("there was nothing to remove: the gateway is not installed as a service");
    }
    Ok(Exit::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Document {
    service: Word,
    running: bool,
    /// It is asked, and tells of itself; null where none runs.
    answers: Option<bool>,
    addresses: Vec<String>,
    fingerprint: Option<String>,
    certificate: Option<Certificate>,
    version: Option<String>,
    started_at: Option<jiff::Timestamp>,
}

/// `moltis gateway status`.
pub(in crate::commands) async fn status(context: &Context, format: Format) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let manager = service::manager(&context.settings);
    let standing = service::standing_of(&manager, GATEWAY, &home).await?;
    let (gateway, silent) = match ask(context).await {
        Ok(gateway) => (gateway, None),
        Err(Unasked::Silent(failure)) => (None, Some(failure)),
        Err(Unasked::Other(failure)) => return Err(failure.into()),
    };
    let output = context.output;
    if format.json {
        let running = gateway.is_some() || silent.is_some();
        let answers = running.then_some(silent.is_none());
        let (addresses, fingerprint, certificate, version, started_at) = match gateway {
            Some(known) => (
                known.addresses,
                Some(known.fingerprint),
                known.certificate,
                Some(known.version),
                Some(known.started_at),
            ),
            None => (Vec::new(), None, None, None, None),
        };
        output.json(&Document {
            service: standing.word,
            running,
            answers,
            addresses,
            fingerprint,
            certificate,
            version,
            started_at,
        })?;
        return silent.map_or(Ok(Exit::SUCCESS), |failure| Err(failure.into()));
    }
    let dash = || "-".to_owned();
    let running = match (&gateway, standing.pid) {
        (None, _) if silent.is_some() => "yes, and it does not answer".to_owned(),
        (None, _) => "no".to_owned(),
        (Some(gateway), Some(_)) => format!("yes, version {}", gateway.version),
        (Some(gateway), None) => format!("yes, version {}, not as a service", gateway.version),
    };
    let addresses = gateway.as_ref().map_or_else(dash, |gateway| {
        let urls = gateway.addresses.iter();
        let scheme = tls::scheme(gateway.certificate.is_some());
        let urls: Vec<_> = urls
            .map(|address| format!("{scheme}://{address}"))
            .collect();
        urls.join("\n")
    });
    let key = gateway.map_or_else(dash, |gateway| gateway.fingerprint);
    output.fields(&[
        ("Service", standing.words),
        ("Running", running.clone()),
        ("Listening on", addresses),
        ("Gateway key", key),
        ("Home", home.show(home.dir())),
    ])?;
    if running == "no" {
        output.hint(if standing.word == Word::NotInstalled {
            "start one: moltis gateway, or as a service: moltis gateway install"
        } else {
            "see why: moltis gateway logs -f"
        });
    }
    silent.map_or(Ok(Exit::SUCCESS), |failure| Err(failure.into()))
}

/// Why a gateway that runs has not said what it is.
enum Unasked {
    /// It takes connections, and does not answer.
    Silent(Failure),
    /// It says something else.
    Other(Failure),
}

impl From<Failure> for Unasked {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

impl From<Unasked> for Failure {
    fn from(unasked: Unasked) -> Self {
        match unasked {
            Unasked::Silent(failure) | Unasked::Other(failure) => failure,
        }
    }
}

/// Asks the gateway of this home what it is; `None` where none runs.
async fn ask(context: &Context) -> Result<Option<Gateway>, Unasked> {
    let client: Client = context
        .client(&Remote::default())?
        .answered_within(LOOK_TIME);
    match client.get("gateway").await {
        Ok(gateway) => Ok(Some(gateway)),
        Err(ApiError::NotReached { .. }) => Ok(None),
        Err(error @ ApiError::Cut(_)) => Err(Unasked::Silent(error.into_failure())),
        Err(error) => Err(Unasked::Other(error.into_failure())),
    }
}

/// Adds to a failed start what the gateway itself wrote about it.
fn not_started(manager: &Manager, error: ServiceError, home: &Home, log_before: u64) -> Failure {
    if let ServiceError::NotStarted { .. } = error
        && let Some(reason) = logging::last_error(&home.gateway_log(), log_before, LOG_BYTES)
    {
        return failure("the gateway does not start as it was asked to be installed")
            .because(anyhow::anyhow!("{reason}"));
    }
    service::not_started(manager, GATEWAY, error)
}

fn log_length(home: &Home) -> u64 {
    std::fs::metadata(home.gateway_log()).map_or(0, |meta| meta.len())
}
