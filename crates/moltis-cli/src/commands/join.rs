//! `moltis node add` and `moltis node run`: this machine at work as a node.
//!
//! `add` makes node.json and shows the joining, in [`meet`]; then it stays, or leaves the work to a
//! service, in [`install`]. [`mod@run`] is what that service runs: it only reads node.json. All of it
//! ends in one [`Node`] of the node crate, whose events [`events`] tells: to a person, or to the
//! log.

mod events;
mod install;
mod meet;
mod request;
mod run;

use moltis_identity::NodeIdentity;
use moltis_node::config::{ConfigFile, NodeConfig};
use moltis_node::{KeeperDir, LinkError, Node, NodeBuilder, NodeState};
use moltis_telemetry::{Collector, CollectorConfig};

pub(super) use self::run::run;
use super::starter::{Keeps, starter};
use super::{Context, on_one_thread};
use crate::account::Account;
use crate::args::node::Add;
use crate::exit::Exit;
use crate::failure::{Failure, failure};
use crate::logging::{self, LogFormat, Target};
use crate::paths::Home;
use crate::service::{self, NODE};
use crate::signals::stop_on_signal;

/// Events that wait to be told. The link never waits for us.
const QUEUE: usize = 64;

/// `moltis node add`.
pub(super) fn add(context: &Context, args: &Add) -> anyhow::Result<Exit> {
    let request = request::Request::check(context, args)?;
    logging::install(
        context.settings.log.as_deref(),
        None,
        "warn",
        LogFormat::Text,
        Target::Stderr,
    )?;
    let home = context.home()?;
    if args.foreground {
        on_one_thread(stay(context, &home, &request))
    } else {
        on_one_thread(install::add(context, &home, &request, args.no_wait))
    }
}

/// `moltis node add --foreground`.
async fn stay(context: &Context, home: &Home, request: &request::Request) -> anyhow::Result<Exit> {
    home.prepare()?;
    let manager = service::manager(&context.settings);
    if let Ok(Some(_)) = service::of_home(&manager, NODE, home) {
        context
            .output
            .warn("a service of this home is installed too, and cannot start while this runs");
    }
    let stop = stop_on_signal()?;
    let met = meet::meet(context, home, request, meet::Until::Stopped, &stop).await?;
    if let Some(error) = met.unreached {
        met.joined.undo(home);
        return Err(link_failure(error).into());
    }
    if met.accepted {
        return Ok(Exit::SUCCESS);
    }
    met.joined.undo(home);
    Ok(Exit::CANCELLED)
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
            starter(&self.home, &context.settings, Keeps::Node)?,
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
            failure
                .hint("how it stands: moltis node status; one in a terminal ends by Ctrl+C there")
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
