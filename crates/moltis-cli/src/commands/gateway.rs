//! `moltis gateway`: the library's gateway in this terminal, or as [`service`].
//!
//! Settings are merged here (flag, file, default), the sockets are opened, the way to the keepers of
//! this machine is laid, and what a person should know is said. The rest is the gateway crate's.

pub(super) mod backup;
pub(super) mod service;
mod tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use moltis_gateway::config::SettingsFile;
use moltis_gateway::http::listen::{ListenError, Listener};
use moltis_gateway::local::{Connecting, KeeperStream};
use moltis_gateway::{Gateway, GatewayConfig};
use moltis_node::keeper::connect;
use tokio::task::JoinSet;

use self::tls::Served;
use super::Context;
use super::starter::{Keeps, starter};
use crate::args;
use crate::config_file::{self, ConfigFile};
use crate::exit::Exit;
use crate::failure::{Failure, failure, report};
use crate::logging::{self, Target};
use crate::notify;
use crate::open_files;
use crate::output::Output;
use crate::paths::Home;
use crate::signals::stop_on_signal;

/// Where a gateway listens when nobody says.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// `moltis gateway`.
pub(super) async fn run(context: &Context, args: args::Listen) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let ended = match prepare(context, &home) {
        Ok((file, stamp)) => serve(context, &home, args, file, stamp).await,
        Err(error) => Err(error),
    };
    if context.settings.is_service
        && let Err(error) = &ended
    {
        // Whoever asks why the service does not run looks there.
        logging::last_words(&home.gateway_log(), &report(error).line());
    }
    ended
}

/// Makes the home, reads the configuration, and starts the log.
fn prepare(context: &Context, home: &Home) -> anyhow::Result<(ConfigFile, SettingsFile)> {
    home.prepare()?;
    let settings_file = SettingsFile::stamp(home.config());
    let file = config_file::load(&home.config(), &home.show(&home.config()))?;
    let target = if context.settings.is_service {
        Target::File(home.gateway_log())
    } else {
        Target::Stderr
    };
    logging::install(
        context.settings.log.as_deref(),
        file.log_filter.as_deref(),
        "info,sqlx=warn",
        file.log_format.unwrap_or_default(),
        target,
    )?;
    Ok((file, settings_file))
}

async fn serve(
    context: &Context,
    home: &Home,
    args: args::Listen,
    file: ConfigFile,
    settings_file: SettingsFile,
) -> anyhow::Result<Exit> {
    let stop = stop_on_signal()?;
    // The socket comes first: it says whether a gateway runs here already.
    let mut listeners = vec![listen(Listener::unix(&home.gateway_socket()).await)?];
    let args::Listen { addresses, tls } = args;
    for address in listening(addresses, &file) {
        listeners.push(listen(Listener::tcp(address))?);
    }
    let bound: Vec<_> = listeners.iter().filter_map(Listener::address).collect();
    let keeps = Keeps::Local(open_files::raise());
    let starter = Arc::new(starter(home, &context.settings, keeps)?);
    let local = home.local_runs();
    let may_hold_runs = connect::has_journals(&local);
    let connector = move || -> Connecting {
        let (starter, local) = (Arc::clone(&starter), local.clone());
        Box::pin(async move {
            // After an upgrade an older keeper may still hold runs: those stay its own.
            let streams = connect::connect_all(&local, &*starter, env!("CARGO_PKG_VERSION")).await;
            let streams = streams.map_err(std::io::Error::other)?.into_iter();
            let streams = streams.map(|stream| Box::new(stream) as Box<dyn KeeperStream>);
            Ok(streams.collect())
        })
    };
    let mut config = config(home, &file, settings_file);
    tls::configure(&mut config, &tls, &file, home, &bound)?;
    let insecure_http = config.insecure_http;
    let built = Gateway::builder(config)
        .keeper(connector)
        .keeper_may_hold_runs(may_hold_runs)
        .boot_id(moltis_telemetry::boot_id()?)
        .build()
        .await;
    let gateway = built.map_err(tls::explained)?;
    // All of them, before one can be asked where the gateway listens.
    let serve = |listener| gateway.serve(listener, &stop);
    let served: Vec<_> = listeners.into_iter().map(serve).collect();
    let mut serving: JoinSet<()> = served.into_iter().collect();
    let certificate = gateway.tls();
    let shown = shown(tls::scheme(certificate.is_some()), &bound);
    announce(context.output, &shown);
    let served = Served::of(certificate.is_some(), insecure_http);
    say_who_reaches(context.output, &bound, served, "moltis gateway");
    if let Some(certificate) = &certificate {
        tls::tell(context.output, home, certificate);
    }
    notify::status(&format!("listening on {}", shown.join(", ")));
    notify::ready();
    stop.cancelled().await;
    notify::stopping();
    gateway.shutdown().await;
    while serving.join_next().await.is_some() {}
    Ok(Exit::SUCCESS)
}

fn listening(named: Vec<SocketAddr>, file: &ConfigFile) -> Vec<SocketAddr> {
    if !named.is_empty() {
        return named;
    }
    file.listen.clone().unwrap_or_else(|| vec![LISTEN])
}

fn config(home: &Home, file: &ConfigFile, settings_file: SettingsFile) -> GatewayConfig {
    let mut config = GatewayConfig::new(home.dir());
    config.settings_file = Some(settings_file);
    config.runs.default_route = file.default_route();
    config.hosts = file.hosts.clone().unwrap_or_default();
    config.trusted_proxies = file.trusted_proxies.clone().unwrap_or_default();
    if let Some(days) = file.keep_days {
        config.runs.keep_days = u32::try_from(days).unwrap_or(u32::MAX);
    }
    if let Some(bytes) = file.keep_bytes {
        config.runs.output.total_bytes_max = bytes;
    }
    if let Some(bytes) = file.output_bytes_max {
        config.runs.output.run_bytes_max = bytes;
    }
    config
}

fn listen(listener: Result<Listener, ListenError>) -> Result<Listener, Failure> {
    listener.map_err(|error| match error {
        ListenError::InUse { address } => {
            let other = SocketAddr::new(address.ip(), 0);
            failure(format!(
                "cannot listen on {address}: the port is in use, another program listens there already"
            ))
            .hint(format!("let the system pick a free port: moltis gateway --listen {other}"))
        }
        ListenError::AlreadyRunning { .. } => failure(error.to_string())
            .hint("one gateway runs on one home; MOLTIS_HOME names another home"),
        error if std::error::Error::source(&error).is_some() => {
            failure("the gateway cannot listen").because(error)
        }
        error => failure(error.to_string()),
    })
}

fn shown(scheme: &str, addresses: &[SocketAddr]) -> Vec<String> {
    let shown = addresses.iter();
    shown
        .map(|address| format!("{scheme}://{address}"))
        .collect()
}

/// Says that it is ready. Where nobody reads, it serves all the same.
fn announce(output: Output, shown: &[String]) {
    let lines: Vec<_> = shown
        .iter()
        .map(|address| format!("listening on {address}"))
        .collect();
    output.text(&lines.join("\n")).ok(); // a gateway whose stdout is closed still serves
}

/// Says who can reach these addresses, and what they are served; `command` is what listens elsewhere.
fn say_who_reaches(output: Output, addresses: &[SocketAddr], served: Served, command: &str) {
    let (loopback, open): (Vec<&SocketAddr>, Vec<&SocketAddr>) = addresses
        .iter()
        .partition(|address| address.ip().is_loopback());
    if let (Some(address), []) = (loopback.first(), open.as_slice()) {
        output.note(&format!(
            "other machines cannot reach it; so that they can: {command} --listen 0.0.0.0:{}",
            address.port()
        ));
    }
    let Some(address) = open.first() else { return };
    match served {
        Served::Nodes => output.note(&format!(
            "on {address}, which has no TLS, nodes are served at /ws and everything else is refused; \
             administer it on this machine, through an SSH tunnel, or with TLS: {command} --tls-generate, \
             or --tls-cert <file> --tls-key <file>"
        )),
        Served::Everything => output.warn(&format!(
            "everything is served on {address} without TLS too: who is on the way can read passwords, \
             tokens and output"
        )),
        Served::Https => {}
    }
}
