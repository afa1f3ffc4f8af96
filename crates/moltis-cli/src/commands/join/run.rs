//! `moltis node run`: connect as node.json says, for ever. What the service runs.
//!
//! In a terminal what cannot work ends it with a reason. A service stays where its settings cannot
//! be read: it says so to its manager, in node.state and in the log, and goes on when they can.

use std::time::Duration;

use moltis_identity::NodeIdentity;
use moltis_node::NodeState;
use moltis_node::config::{ConfigFile, NodeConfig};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Prepared, QUEUE, events, link_failure, lock, stop_on_signal};
use crate::commands::Context;
use crate::commands::node::config_failure;
use crate::exit::Exit;
use crate::failure::report;
use crate::logging::{self, LogFormat, Target};
use crate::notify;
use crate::paths::Home;

/// How long a service waits before it looks at settings again that cannot be used.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// `moltis node run`.
pub(in crate::commands) async fn run(context: &Context) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let is_service = context.settings.is_service;
    // Before anything is made: a terminal hears of a machine that is no node.
    let settings = read(&home);
    if !is_service && let Err(error) = settings {
        return Err(error);
    }
    home.prepare()?;
    let target = if context.output.stderr_is_terminal() {
        Target::Stderr
    } else {
        Target::File(home.node_log())
    };
    logging::install(
        context.settings.log.as_deref(),
        None,
        "info",
        LogFormat::Text,
        target,
    )?;
    let ended = work(context, home, settings).await;
    if let Err(error) = &ended {
        tracing::error!(error = report(error).line(), "the node ends");
    }
    ended
}

async fn work(
    context: &Context,
    home: Home,
    settings: anyhow::Result<(NodeConfig, NodeIdentity)>,
) -> anyhow::Result<Exit> {
    let mut state = lock(&home)?;
    notify::ready();
    let stop = stop_on_signal()?;
    let usable = usable_settings(&home, settings, &mut state, &stop).await;
    let Some((config, identity)) = usable else {
        return Ok(Exit::SUCCESS);
    };
    let prepared = Prepared {
        home,
        config,
        identity,
        state,
    };
    let (events, told) = mpsc::channel(QUEUE);
    let node = prepared.builder(context)?.events(events).build();
    let ending = stop.clone();
    let goodbye = async {
        ending.cancelled().await;
        notify::stopping();
        std::future::pending::<()>().await;
    };
    let running = async { tokio::join!(events::log(told), node.run(stop)).1 };
    let ended = tokio::select! {
        ended = running => ended,
        () = goodbye => Ok(()),
    };
    ended.map_err(link_failure)?;
    Ok(Exit::SUCCESS)
}

/// Returns settings that can be used, as soon as there are any; `None` when it was stopped before.
async fn usable_settings(
    home: &Home,
    mut settings: anyhow::Result<(NodeConfig, NodeIdentity)>,
    state: &mut NodeState,
    stop: &CancellationToken,
) -> Option<(NodeConfig, NodeIdentity)> {
    let mut told = String::new();
    loop {
        let error = match settings {
            Ok(usable) => return Some(usable),
            Err(error) => report(&error).line(),
        };
        if told != error {
            tracing::error!(error, "this machine cannot be a node as it is set up");
            notify::status(&error);
            if let Err(error) = state.disconnected("", &error) {
                tracing::warn!(%error, "the node's state cannot be written");
            }
            told = error;
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = sleep(LOOK_AGAIN) => {}
        }
        settings = read(home);
    }
}

fn read(home: &Home) -> anyhow::Result<(NodeConfig, NodeIdentity)> {
    let file = ConfigFile::new(home.node_config());
    let config = file.load().map_err(config_failure)?;
    let identity = NodeIdentity::load(&home.node_key())?;
    Ok((config, identity))
}
