//! `moltis node run`: connect as node.json says, for ever. What the service runs.
//!
//! In a terminal what cannot work ends it with a reason. A service stays where its settings cannot
//! be read: it says so to its manager, in node.state and in the log, and goes on when they can.

use std::time::Duration;

use moltis_identity::NodeIdentity;
use moltis_node::NodeState;
use moltis_node::config::{ConfigFile, NodeConfig};
use moltis_node::state::StateError;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Prepared, QUEUE, events, link_failure, lock};
use crate::commands::Context;
use crate::commands::node::config_failure;
use crate::exit::Exit;
use crate::failure::{Failure, report};
use crate::logging::{self, LogFormat, Target};
use crate::notify;
use crate::paths::Home;
use crate::signals::stop_on_signal;

/// How long a service waits before it looks at settings again that cannot be used.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// `moltis node run`.
pub(in crate::commands) async fn run(context: &Context) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let ended = serve(context, &home).await;
    if context.settings.is_service
        && let Err(error) = &ended
    {
        logging::last_words(&home.node_log(), &report(error).line());
    }
    ended
}

async fn serve(context: &Context, home: &Home) -> anyhow::Result<Exit> {
    let is_service = context.settings.is_service;
    // Before anything is made: a terminal hears of a machine that is no node.
    let settings = read(home);
    if !is_service && let Err(error) = settings {
        return Err(error);
    }
    home.prepare()?;
    let target = if is_service {
        Target::File(home.node_log())
    } else {
        Target::Stderr
    };
    let stop = stop_on_signal()?;
    let state = if is_service {
        match lock_in_time(home, &stop).await {
            Some(locked) => locked?,
            None => return Ok(Exit::SUCCESS),
        }
    } else {
        lock(home)?
    };
    // Only who holds the home writes its log.
    logging::install(
        context.settings.log.as_deref(),
        None,
        "info",
        LogFormat::Text,
        target,
    )?;
    notify::ready();
    work(context, home.clone(), settings, state, stop).await
}

/// Takes the home's lock as soon as nobody else has it; `None` when it was stopped before.
async fn lock_in_time(home: &Home, stop: &CancellationToken) -> Option<Result<NodeState, Failure>> {
    let mut told = false;
    loop {
        let locked = lock(home);
        let running = matches!(&locked, Err(failure) if is_running(failure));
        if !running {
            return Some(locked);
        }
        if !std::mem::replace(&mut told, true) {
            let words = "another node process works on this home: waiting until it ends";
            notify::status(words);
            logging::last_words(&home.node_log(), words);
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}

fn is_running(failure: &Failure) -> bool {
    let cause = std::error::Error::source(failure);
    let cause = cause.and_then(|cause| cause.downcast_ref::<StateError>());
    matches!(cause, Some(StateError::Running { .. }))
}

async fn work(
    context: &Context,
    home: Home,
    settings: anyhow::Result<(NodeConfig, NodeIdentity)>,
    mut state: NodeState,
    stop: CancellationToken,
) -> anyhow::Result<Exit> {
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
