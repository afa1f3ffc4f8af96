//! A node: configuration, identity, keepers and a way to stop, joined into one thing that runs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moltis_identity::NodeIdentity;
use moltis_proto::Subprotocol;
use moltis_proto::handshake::Intent;
use moltis_telemetry::Collector;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{ConfigFile, NodeConfig};
use crate::error::LinkError;
use crate::event::LinkEvent;
use crate::keepers::Keepers;
use crate::link::{Link, Machine};
#[cfg(feature = "simulation")]
use crate::simulation;
use crate::state::NodeState;

/// Where the settings of a node come from.
#[derive(Debug, Clone)]
pub enum Settings {
    /// A file, which is read before each attempt, watched while connected, and into which the
    /// gateway's key is pinned.
    File(ConfigFile),
    /// A value. What is pinned is told by [`LinkEvent::GatewayKey`] and forgotten with the process.
    Value(Box<NodeConfig>),
}

impl From<ConfigFile> for Settings {
    fn from(file: ConfigFile) -> Self {
        Self::File(file)
    }
}

impl From<NodeConfig> for Settings {
    fn from(config: NodeConfig) -> Self {
        Self::Value(Box::new(config))
    }
}

/// When a node stops by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GiveUp {
    /// Never: what a service does. What only a person can mend is tried again each minute.
    #[default]
    Never,
    /// At an error before the gateway has answered for the first time, and whenever only a person
    /// can mend it: what a command in a terminal does. Once the gateway has answered, what passes
    /// by itself is waited for.
    WhenTurnedAway,
}

/// Sets up a [`Node`]. What is required are the arguments of [`Node::builder`].
#[must_use = "nothing runs before `build` and `run`"]
pub struct NodeBuilder {
    pub(crate) settings: Settings,
    pub(crate) identity: Arc<NodeIdentity>,
    pub(crate) keepers: Arc<dyn Keepers>,
    pub(crate) intent: Intent,
    pub(crate) give_up: GiveUp,
    pub(crate) leaves_once_accepted: bool,
    pub(crate) trusts_first_use: bool,
    pub(crate) collector: Option<Collector>,
    pub(crate) user: String,
    pub(crate) version: String,
    pub(crate) offers: Option<Vec<Subprotocol>>,
    pub(crate) state: Option<NodeState>,
    pub(crate) events: Option<mpsc::Sender<LinkEvent>>,
    pub(crate) clock: Clock,
    pub(crate) machine: Machine,
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("settings", &self.settings)
            .field("intent", &self.intent)
            .field("give_up", &self.give_up)
            .finish_non_exhaustive()
    }
}

impl NodeBuilder {
    /// Asks to pair where the gateway does not know this node, and trusts on first use where no
    /// gateway's key is pinned. Left out, a stranger is turned away.
    pub fn pair(mut self) -> Self {
        self.intent = Intent::Pair;
        self.trust_first_use()
    }

    /// Takes the first gateway that answers at its word where no key is pinned, and pins its key when
    /// it accepts this node. Left out, an unpinned gateway is not dialled: somebody has to look.
    pub fn trust_first_use(mut self) -> Self {
        self.trusts_first_use = true;
        self
    }

    /// When to stop without being told. Default: never.
    pub fn give_up(mut self, give_up: GiveUp) -> Self {
        self.give_up = give_up;
        self
    }

    /// Ends well as soon as the gateway has taken this node, before any keeper is asked: another
    /// process does the work.
    pub fn leave_once_accepted(mut self) -> Self {
        self.leaves_once_accepted = true;
        self
    }

    /// Sends telemetry. Left out, the node sends none.
    pub fn telemetry(mut self, collector: Collector) -> Self {
        self.collector = Some(collector);
        self
    }

    /// The account that commands run as, for people to see. Default: empty.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// The version of the software around this node. Default: that of this crate.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// What to offer in the upgrade, the preferred first. Default: what this machine's processor
    /// does fastest.
    pub fn offers(mut self, offers: Vec<Subprotocol>) -> Self {
        self.offers = Some(offers);
        self
    }

    /// Keeps `node.state` up to date. Left out, nothing is written.
    pub fn state(mut self, state: NodeState) -> Self {
        self.state = Some(state);
        self
    }

    /// Tells what happens. An event that finds the channel full is dropped: the link never waits
    /// for whoever watches it.
    pub fn events(mut self, events: mpsc::Sender<LinkEvent>) -> Self {
        self.events = Some(events);
        self
    }

    /// Where the time comes from that goes on while this machine sleeps, for tests and for systems
    /// that count it elsewhere. Default: the system's own clock.
    pub fn boottime(mut self, read: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.clock = Clock::with_boottime(read);
        self
    }

    /// Puts the node on a machine that a simulation has made up. It sleeps only where
    /// [`boottime`](Self::boottime), called after this, says so.
    #[cfg(feature = "simulation")]
    pub fn simulated(mut self, dial: Arc<dyn simulation::Dial>, facts: simulation::Facts) -> Self {
        let began = tokio::time::Instant::now();
        self.machine = Machine::Simulated(dial, Box::new(facts));
        self.boottime(move || began.elapsed())
    }

    /// Returns the node, which does nothing before it runs.
    pub fn build(self) -> Node {
        Node {
            link: Link::new(self),
        }
    }
}

/// One machine as a node of one gateway.
#[derive(Debug)]
pub struct Node {
    link: Link,
}

impl Node {
    /// Begins to set up a node.
    pub fn builder(
        settings: impl Into<Settings>,
        identity: NodeIdentity,
        keepers: impl Keepers,
    ) -> NodeBuilder {
        NodeBuilder {
            settings: settings.into(),
            identity: Arc::new(identity),
            keepers: Arc::new(keepers),
            intent: Intent::Connect,
            give_up: GiveUp::default(),
            leaves_once_accepted: false,
            trusts_first_use: false,
            collector: None,
            user: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            offers: None,
            state: None,
            events: None,
            clock: Clock::system(),
            machine: Machine::System,
        }
    }

    /// Dials, works, dials again, until `stop` is cancelled: then the gateway is told goodbye and
    /// the runs stay with their keepers.
    ///
    /// # Errors
    /// What made the node give up, as [`GiveUp`] says. Never after `stop`.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection without a goodbye; no run is harmed.
    pub async fn run(self, stop: CancellationToken) -> Result<(), LinkError> {
        self.link.run(stop).await
    }
}
