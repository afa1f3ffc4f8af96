//! `moltis node add` and `moltis node run`: this machine at work as a node.
//!
//! `add` makes node.json and shows the joining; `run` only reads it. Both end in one [`Node`] of
//! the node crate, whose events [`events`] tells: to a person, or to the log.

mod events;
mod request;

use moltis_identity::NodeIdentity;
use moltis_node::config::{ConfigFile, NodeConfig};
use moltis_node::{GiveUp, KeeperDir, LinkError, Node, NodeBuilder, NodeState};
use moltis_telemetry::{Collector, CollectorConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::node::config_failure;
use super::starter::starter;
use super::{Context, on_one_thread};
use crate::account::Account;
use crate::args::node::Add;
use crate::exit::Exit;
use crate::failure::{Failure, failure, usage};
use crate::logging::{self, LogFormat, Target};
use crate::paths::Home;

/// Events that wait to be told. The link never waits for us.
const QUEUE: usize = 64;

/// `moltis node add`.
pub(super) fn add(context: &Context, args: &Add) -> anyhow::Result<Exit> {
    let request = request::Request::check(context, args)?;
    if !args.foreground {
        return Err(
            usage("the service that keeps a node running comes with a later release")
                .hint("stay in this terminal instead: add --foreground")
                .into(),
        );
    }
    logging::install(
        context.settings.log.as_deref(),
        None,
        "warn",
        LogFormat::Text,
        Target::Stderr,
    )?;
    let home = context.home()?;
    home.prepare()?;
    let state = lock(&home)?;
    let joined = request.write(&home)?;
    if rustix::process::geteuid().is_root() {
        context
            .output
            .warn("commands from the gateway will run on this machine as root");
    }
    let prepared = Prepared {
        home: home.clone(),
        config: joined.config.clone(),
        identity: joined.identity.clone(),
        state,
    };
    on_one_thread(async {
        let (events, told) = mpsc::channel(QUEUE);
        let node = prepared
            .builder(context)?
            .pair()
            .give_up(GiveUp::WhenTurnedAway)
            .events(events)
            .build();
        let stop = stop_on_signal()?;
        let person = events::Person::new(context.output, &joined, &home);
        let (accepted, ended) = tokio::join!(person.tell(told), node.run(stop));
        if !accepted {
            joined.undo(&home);
        }
        match ended {
            Ok(()) if accepted => Ok(Exit::SUCCESS),
            Ok(()) => Ok(Exit::CANCELLED),
            Err(error) => Err(link_failure(error).into()),
        }
    })
}

/// `moltis node run`.
pub(super) async fn run(context: &Context) -> anyhow::Result<Exit> {
    let home = context.home()?;
    let file = ConfigFile::new(home.node_config());
    let config = file.load().map_err(config_failure)?;
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
    let identity = NodeIdentity::load(&home.node_key())?;
    let state = lock(&home)?;
    let prepared = Prepared {
        home,
        config,
        identity,
        state,
    };
    let (events, told) = mpsc::channel(QUEUE);
    let node = prepared.builder(context)?.events(events).build();
    let stop = stop_on_signal()?;
    let ((), ended) = tokio::join!(events::log(told), node.run(stop));
    ended.map_err(link_failure)?;
    Ok(Exit::SUCCESS)
}

/// Everything that a node needs from its home.
struct Prepared {
    home: Home,
    config: NodeConfig,
    identity: NodeIdentity,
    state: NodeState,
}

impl Prepared {
    fn builder(self, context: &Context) -> Result<NodeBuilder, Failure> {
        let account = Account::of_process(&context.settings);
        let mut sampled = CollectorConfig::new(&self.config.path);
        sampled.home = Some(account.home.clone().into());
        sampled
            .set_variables
            .clone_from(&self.config.api_key_variables);
        sampled.ollama_host.clone_from(&self.config.ollama_host);
        let keepers = KeeperDir::new(
            self.home.node_runs(),
            starter(&self.home, &context.settings, false)?,
        );
        let file = ConfigFile::new(self.home.node_config());
        Ok(Node::builder(file, self.identity, keepers)
            .telemetry(Collector::new(sampled))
            .user(account.name)
            .version(env!("CARGO_PKG_VERSION"))
            .state(self.state))
    }
}

fn lock(home: &Home) -> Result<NodeState, Failure> {
    NodeState::lock(home.node_state()).map_err(|error| {
        let running = matches!(error, moltis_node::state::StateError::Running { .. });
        let failure = failure(error.to_string()).because(error);
        if running {
            failure.hint("how it stands: moltis node status; to end it: moltis node remove")
        } else {
            failure
        }
    })
}

fn link_failure(error: LinkError) -> Failure {
    let hint = error.hint();
    let failure = match std::error::Error::source(&error) {
        Some(_) => failure(error.to_string()).because(error),
        None => failure(error.to_string()),
    };
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Returns a token that the first Ctrl+C, SIGTERM or SIGHUP cancels.
pub(super) fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let cancelled = stop.clone();
    tokio_util::task::TaskTracker::new().spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(stop)
}
