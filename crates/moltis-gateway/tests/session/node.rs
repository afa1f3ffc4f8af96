//! A real node: a link and a keeper, both in this process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use moltis_identity::NodeIdentity;
use moltis_node::keeper::{Keeper, KeeperConfig, Policy, Rules};
use moltis_node::{LinkError, LinkEvent, Node, NodeConfig};
use moltis_proto::{BootId, NodeId, NodeName};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A node at work.
pub(crate) struct TestNode {
    pub(crate) identity: NodeIdentity,
    name: String,
    dir: TempDir,
    keeper: Arc<Keeper>,
    link: Option<Link>,
}

struct Link {
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), LinkError>>,
    events: mpsc::Receiver<LinkEvent>,
}

impl TestNode {
    /// Starts a node that asks to pair.
    pub(crate) fn add(name: &str, url: &str) -> Self {
        let node_id = NodeId::new(name.to_lowercase().replace(' ', "-")).unwrap();
        let dir = TempDir::new().unwrap();
        let keeper = Arc::new(keeper_in(&dir.path().join("runs")));
        let mut node = Self {
            identity: NodeIdentity::generate(node_id),
            name: name.to_owned(),
            dir,
            keeper,
            link: None,
        };
        node.dial(url);
        node
    }

    /// Starts the link anew, at this address.
    pub(crate) fn dial(&mut self, url: &str) {
        let mut config = NodeConfig::new(
            url.parse().unwrap(),
            NodeName::new(&self.name).unwrap(),
            self.dir.path().to_str().unwrap(),
            "/usr/bin:/bin",
        );
        config.timeout_seconds = 300;
        let (told, events) = mpsc::channel(256);
        let stop = CancellationToken::new();
        let identity = self.identity.clone();
        let node = Node::builder(config, identity, Arc::clone(&self.keeper))
            .pair()
            .events(told)
            .build();
        let running = tokio::spawn(node.run(stop.clone()));
        self.link = Some(Link {
            stop,
            running,
            events,
        });
    }

    /// Waits for an event that `pick` wants.
    pub(crate) async fn event<T>(&mut self, mut pick: impl FnMut(&LinkEvent) -> Option<T>) -> T {
        let link = self.link.as_mut().unwrap();
        let wanted = async {
            loop {
                let event = link.events.recv().await.expect("the link has ended");
                if let Some(found) = pick(&event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(crate::gateway::PATIENCE, wanted)
            .await
            .expect("the link did not say it")
    }

    /// Ends the link; the keeper and its runs stay.
    pub(crate) async fn hang_up(&mut self) {
        if let Some(link) = self.link.take() {
            link.stop.cancel();
            link.running.await.unwrap().unwrap();
        }
    }

    /// Stops the link in the middle of whatever it does, without a word.
    pub(crate) fn forsake(&mut self) {
        if let Some(link) = self.link.take() {
            link.running.abort();
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Returns a keeper that lets everything run.
pub(crate) fn keeper_in(dir: &Path) -> Keeper {
    let rules = Rules {
        policy: Policy::Full,
        env_allow: Vec::new(),
        timeout_max: None,
        timeout_default: None,
        working_dir: "/tmp".into(),
        base_env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
    };
    let boot_id = BootId::from_bytes([7; 16]);
    let config = KeeperConfig::new(dir, Arc::new(rules), boot_id, "test");
    Keeper::spawn_in_process(config).unwrap()
}
