//! A node's link, and the service manager that begins it anew whenever it ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use moltis_identity::{Fingerprint, NodeIdentity};
use moltis_node::simulation::{Dial, Facts, Road, Sockets};
use moltis_node::{LinkError, LinkEvent, Node, NodeConfig};
use moltis_proto::DeviceId;
use moltis_proto::code::CloseCode;
use moltis_proto::limits::SILENCE_MAX;
use moltis_proto::telemetry::Platform;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::machine::Machine;
use super::spawn;
use crate::simulate::fate::Fate;
use crate::simulate::freeze::Freeze;
use crate::simulate::model::{Happened, Trouble, violation};
use crate::simulate::net::{Net, Place};
use crate::simulate::trace::note;
use crate::simulate::witness::Witness;

/// Events of a link that wait to be written down.
const EVENTS: usize = 64;

/// A node: a machine, and the link on it. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Linked(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    machine: Machine,
    identity: NodeIdentity,
    gateway_key: Fingerprint,
    net: Net,
    witness: Witness,
    began: Instant,
    /// Another machine has its key, or had it when its link was accepted last. A copy shares this.
    is_contested: Arc<AtomicBool>,
    /// Nothing is wrong with its road, so no connection breaks.
    is_steady: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Its machine is switched off for good: no link begins any more.
    is_gone: bool,
    lives: Vec<Life>,
    version: u32,
    /// How long the machine has slept in all.
    asleep: Duration,
}

/// One life of a link.
#[derive(Debug, Clone)]
struct Life {
    fate: Fate,
    stop: CancellationToken,
    freeze: Freeze,
    sockets: Sockets,
}

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The service of this machine: it begins anew whenever it ends.
    Service,
    /// A second one, that somebody has started beside it.
    Second,
}

impl Linked {
    /// A node whose link has not begun.
    pub(super) fn new(
        machine: Machine,
        gateway_key: Fingerprint,
        net: &Net,
        witness: &Witness,
    ) -> Self {
        let name = format!("box{}", machine.place());
        let identity = NodeIdentity::generate(name.parse().expect("a name"));
        Self(Arc::new(Inner {
            machine,
            identity,
            gateway_key,
            net: net.clone(),
            witness: witness.clone(),
            began: Instant::now(),
            is_contested: Arc::default(),
            is_steady: AtomicBool::new(false),
            state: Mutex::default(),
        }))
    }

    /// Another machine that comes to the same gateway with this identity.
    pub(super) fn beside(&self, machine: Machine, identity: NodeIdentity) -> Self {
        let is_copy = machine.of() == self.place();
        if is_copy {
            self.0.is_contested.store(true, Ordering::Relaxed);
        }
        let is_contested = is_copy.then(|| Arc::clone(&self.0.is_contested));
        Self(Arc::new(Inner {
            machine,
            identity,
            gateway_key: self.0.gateway_key,
            net: self.0.net.clone(),
            witness: self.0.witness.clone(),
            began: self.0.began,
            is_contested: is_contested.unwrap_or_default(),
            is_steady: AtomicBool::new(false),
            state: Mutex::default(),
        }))
    }

    /// Switches its machine off for good.
    pub(super) fn vanish(&self) {
        self.state().is_gone = true;
        self.kill();
        self.0.machine.switch_off();
    }

    /// Says whether anything may break its connections.
    pub(super) fn set_steady(&self, is_steady: bool) {
        self.0.is_steady.store(is_steady, Ordering::Relaxed);
    }

    /// I16: a connection of which nothing but its width is wrong does not break.
    fn check_steady(&self, error: &LinkError) {
        let broke = match error {
            LinkError::Lifeless(_) | LinkError::Broken(_) | LinkError::Hangup { .. } => true,
            LinkError::Closed(code) => *code == CloseCode::Silence,
            _ => false,
        };
        if broke && self.0.is_steady.load(Ordering::Relaxed) {
            let place = self.place();
            let words = format!("the connection of {place} breaks on a thin line: {error}");
            self.0.witness.violated(violation!("I16", "{words}"));
        }
    }

    /// Returns who it is.
    pub(super) fn identity(&self) -> &NodeIdentity {
        &self.0.identity
    }

    /// Has the service manager begin its link, now and whenever it ends.
    pub(super) fn begin(&self) {
        spawn(self.clone().keep_up());
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.0.machine
    }

    pub(super) fn place(&self) -> Place {
        self.0.machine.place()
    }

    /// Returns the id of the node, by which it is asked for.
    pub(super) fn node_id(&self) -> String {
        self.0.identity.node_id.to_string()
    }

    /// Returns the id of the device, by which its key is known.
    pub(super) fn device_id(&self) -> DeviceId {
        self.0.identity.device_id
    }

    /// Returns the fingerprint of its key.
    pub(super) fn fingerprint(&self) -> String {
        self.0.identity.fingerprint().to_string()
    }

    /// Kills every link of this node, in this moment.
    pub(super) fn kill(&self) {
        for life in std::mem::take(&mut self.state().lives) {
            life.sockets.cut();
            life.fate.end();
        }
    }

    /// Stops every link of this node for so long.
    pub(super) fn freeze(&self, time: Duration) {
        for life in &self.state().lives {
            life.freeze.stop(time);
        }
    }

    /// Asks every link to end.
    pub(super) fn stop(&self) {
        for life in &self.state().lives {
            life.stop.cancel();
        }
    }

    /// Has the next link be one of a newer version, and asks this one to end.
    pub(super) fn upgrade(&self) {
        self.state().version += 1;
        self.stop();
    }

    /// Has a second link live beside the first one.
    pub(super) fn double(&self, time: Duration) {
        let node = self.clone();
        spawn(async move {
            tokio::time::timeout(time, node.live(Kind::Second))
                .await
                .ok(); // killed
        });
    }

    /// Has the machine have slept for so long, in this moment.
    pub(super) fn sleep(&self, time: Duration) {
        self.state().asleep += time;
        if time > SILENCE_MAX {
            self.0.witness.see(Happened::Woke {
                place: self.place(),
            });
        }
    }

    async fn keep_up(self) {
        while !self.state().is_gone {
            self.live(Kind::Service).await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }

    /// One life of a link.
    async fn live(&self, kind: Kind) {
        let name = match kind {
            Kind::Service => format!("link {}", self.place()),
            Kind::Second => format!("second {}", self.place()),
        };
        let version = format!("1.{}.0", self.state().version);
        let (keepers, sockets) = self.0.machine.keepers(&version);
        let life = Life {
            fate: Fate::default(),
            stop: CancellationToken::new(),
            freeze: Freeze::default(),
            sockets,
        };
        self.state().lives.push(life.clone());
        let (events, happening) = mpsc::channel(EVENTS);
        let url = "ws://gateway:9090/ws".parse();
        let mut config = NodeConfig::new(
            url.expect("an address"),
            "box".parse().expect("a name"),
            "/",
            "/bin",
        );
        config.gateway_key = Some(self.0.gateway_key);
        let dialled = Arc::new(AtomicU64::new(0));
        let dial = Way {
            net: self.0.net.clone(),
            place: self.place(),
            dialled: Arc::clone(&dialled),
        };
        let (here, facts) = (self.clone(), self.facts());
        let node = Node::builder(config, self.0.identity.clone(), keepers)
            .pair()
            .version(version.clone())
            .events(events)
            .simulated(Arc::new(dial), facts)
            .boottime(move || here.0.began.elapsed() + here.state().asleep)
            .build();
        note!(self.0.witness.trace, &name, "begins, version {version}");
        tokio::select! {
            biased;
            () = life.fate.over() => note!(self.0.witness.trace, &name, "is dead"),
            () = self.listen(&name, happening, &dialled) => {}
            ended = life.freeze.process(node.run(life.stop)) => {
                note!(self.0.witness.trace, &name, "ends: {:?}", ended.map_err(|error| error.to_string()));
            }
        }
    }

    /// Writes down what a link says.
    async fn listen(
        &self,
        name: &str,
        mut happening: mpsc::Receiver<LinkEvent>,
        dialled: &AtomicU64,
    ) {
        while let Some(event) = happening.recv().await {
            let trace = &self.0.witness.trace;
            match event {
                LinkEvent::Accepted { epoch, .. } => {
                    let place = self.0.machine.of();
                    self.0.net.let_in(dialled.load(Ordering::Relaxed));
                    if self.0.is_contested.load(Ordering::Relaxed) {
                        let cloned = Trouble::Cloned(place);
                        self.0.witness.see(Happened::Befell(cloned));
                    }
                    self.0.witness.see(Happened::Connected { place, epoch });
                    note!(trace, name, "is accepted");
                }
                LinkEvent::Disconnected { error, retry_in } => {
                    self.check_steady(&error);
                    note!(
                        trace,
                        name,
                        "is cut off, tries in {} ms: {error}",
                        retry_in.as_millis()
                    );
                }
                LinkEvent::Pending { .. } => note!(trace, name, "waits for a person"),
                _ => {}
            }
        }
        std::future::pending::<()>().await;
    }

    fn facts(&self) -> Facts {
        let text = |text: &str| text.to_owned();
        Facts {
            boot_id: self.0.machine.boot_id(),
            platform: Platform {
                os: text("linux"),
                arch: text("x86_64"),
                version: text("Debian 12"),
                kernel: text("6.1"),
                hostname: format!("box{}", self.place()),
            },
            sample: None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The road from a node's machine to the gateway.
#[derive(Debug)]
struct Way {
    net: Net,
    place: Place,
    /// The number of the newest connection.
    dialled: Arc<AtomicU64>,
}

impl Dial for Way {
    fn dial(&self, _authority: &str) -> BoxFuture<'static, std::io::Result<Box<dyn Road>>> {
        let (net, place, dialled) = (self.net.clone(), self.place, Arc::clone(&self.dialled));
        Box::pin(async move {
            let (number, end) = net.dial(place).await?;
            dialled.store(number, Ordering::Relaxed);
            Ok(Box::new(end) as Box<dyn Road>)
        })
    }
}
