//! A world: a gateway, nodes, roads between them, people who ask, and all that goes wrong.
//!
//! It is played on one thread whose clock jumps to whatever is next. [`gateway`], [`link`] and
//! [`machine`] hold the programs of the product in their lives and deaths, [`callers`] those who ask
//! for something. [`faults`] says how each fault is done, [`checks`] what is looked at behind each
//! step and at the end.

mod callers;
mod checks;
mod faults;
mod gateway;
mod guests;
mod link;
mod machine;
mod seats;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use moltis_gateway::api::pairing::{Approve, SetPairing};
use moltis_gateway::clock::Clock;
use moltis_identity::{Fingerprint, GatewayIdentity};
use moltis_proto::{DeviceId, PublicKey};
use tokio::time::Instant;

use self::callers::{Caller, Request, for_a_while};
use self::gateway::Served;
use self::link::Linked;
use self::machine::{Boot, Machine};
use super::dice::Dice;
use super::disk::{Boundary, Met};
use super::kernel::script::Tag;
use super::model::{Happened, Trouble, Violation, violation};
use super::net::{Net, Place};
use super::plan::{GATEWAY, Plan, Step, Theme, Wish};
use super::trace::{Trace, note};
use super::witness::Witness;

/// How long a world has until its gateway answers and its nodes are in.
const BEGINNING: Duration = Duration::from_mins(2);

/// How long everything may take behind the last fault (I18): until a silent connection is given up,
/// a minute until the next attempt, and some time for what waited.
const END: Duration = Duration::from_secs(150);

/// The time of day when a world begins: before the machine's own, which stands at 2100.
const DAWN: i64 = 1_900_000_000;

/// What came of a world.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) trace: Trace,
    pub(super) violation: Option<Violation>,
    /// How often each fault was done.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// How often each boundary of the gateway and of the keepers was met.
    pub(super) boundaries: BTreeMap<Boundary, Met>,
    pub(super) starts: u64,
}

struct World {
    served: Served,
    nodes: Vec<Linked>,
    local: Option<Machine>,
    /// Machines that are none of the plan's nodes: copies of them, and strangers.
    guests: Vec<Linked>,
    /// The key of each device, as it was seen first.
    pins: BTreeMap<DeviceId, PublicKey>,
    /// Where the files of machines are.
    root: PathBuf,
    keepers_stay: Duration,
    /// The first node is on the gateway's machine.
    is_beside: bool,
    /// Its line is thin, and nothing else is wrong.
    is_thin: bool,
    net: Net,
    clock: Clock,
    witness: Witness,
    dice: Dice,
    began: Instant,
    /// How far the wall clock is from the world's.
    clock_is_off: SignedDuration,
    requests: BTreeMap<Tag, Request>,
    revoked: Vec<Place>,
    faults: BTreeMap<&'static str, u64>,
}

/// Plays a world below a directory that is its own.
pub(super) async fn play(seed: u64, root: &Path, trace: Trace) -> Outcome {
    let witness = Witness::new(trace.clone());
    let plan = Plan::new(seed);
    note!(trace, "world", "{:?}", plan.shape);
    let mut world = World::new(seed, &plan, root, &witness);
    let violation = world.live(plan).await.err();
    let mut boundaries = world.served.disk().met();
    let nodes = world.nodes.iter().chain(&world.guests);
    let machines = nodes.map(Linked::machine).chain(&world.local);
    for (boundary, met) in machines.flat_map(|machine| machine.disk().met()) {
        let sum = boundaries.entry(boundary).or_default();
        sum.passed += met.passed;
        sum.died += met.died;
    }
    Outcome {
        trace,
        violation,
        faults: world.faults,
        boundaries,
        starts: world.requests.len() as u64,
    }
}

impl World {
    fn new(seed: u64, plan: &Plan, root: &Path, witness: &Witness) -> Self {
        let shape = &plan.shape;
        let (net, clock) = (Net::new(), Clock::manual(at(DAWN)));
        let boot = Boot::default();
        let machine = |place: Place| {
            let root = root.join(format!("place{place}"));
            let is_gateways = place == GATEWAY || (place == 1 && shape.is_beside);
            let boot = is_gateways.then_some(&boot);
            Machine::new((place, place), &root, shape.keepers_stay, boot, witness)
        };
        let local = shape.has_local.then(|| machine(GATEWAY));
        let key = gateway_key(root);
        let around = (&net, &clock, witness, &boot);
        let dice = Dice::new(seed, "gateway");
        let served = Served::new(local.clone(), root, shape, around, dice);
        let nodes = (1..=shape.nodes).map(|place| Linked::new(machine(place), key, &net, witness));
        let nodes: Vec<_> = nodes.collect();
        if shape.is_beside {
            served.put_beside(&nodes[0]);
            witness.see(Happened::IsBeside { place: 1 });
        }
        Self {
            served,
            nodes,
            local,
            guests: Vec::new(),
            pins: BTreeMap::new(),
            root: root.to_owned(),
            keepers_stay: shape.keepers_stay,
            is_beside: shape.is_beside,
            is_thin: shape.theme == Theme::Thin,
            net,
            clock,
            witness: witness.clone(),
            dice: Dice::new(seed, "world"),
            began: Instant::now(),
            clock_is_off: SignedDuration::ZERO,
            requests: BTreeMap::new(),
            revoked: Vec::new(),
            faults: BTreeMap::new(),
        }
    }

    async fn live(&mut self, plan: Plan) -> Result<(), Violation> {
        self.begin().await?;
        for (place, weather) in (1..).zip(plan.shape.weathers) {
            self.net.set_weather(place, weather);
        }
        if self.is_thin {
            self.net.cut(1);
            tokio::time::sleep(BEGINNING).await;
            self.node(1).set_steady(true);
        }
        for (pause, step) in plan.steps {
            tokio::time::sleep(pause).await;
            self.turn_clock();
            match step {
                Step::Wish(wish) => self.wish(wish),
                Step::Fault(fault) => self.fault(fault).await,
            }
            self.check_step().await?;
        }
        self.heal();
        note!(self.witness.trace, "world", "all faults are over");
        tokio::time::sleep(END).await;
        self.turn_clock();
        self.check_end().await
    }

    /// Waits for the gateway, and lets every node in.
    async fn begin(&mut self) -> Result<(), Violation> {
        let begun = tokio::time::timeout(BEGINNING, async {
            while self.served.life().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.let_in().await
        });
        match begun.await {
            Ok(Some(())) => Ok(()),
            Ok(None) | Err(_) => Err(violation!("I18", "the nodes of a new world are not let in")),
        }
    }

    async fn let_in(&self) -> Option<()> {
        let api = self.served.life()?.api()?;
        let open = SetPairing {
            enabled: true,
            for_seconds: None,
        };
        api.set_pairing(&open).await.ok()?;
        let mut left = self.nodes.len();
        for node in &self.nodes {
            node.begin();
        }
        while left > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            for request in api.list_pairing_requests().await.ok()?.items {
                let seen = Approve {
                    fingerprint: request.fingerprint,
                    connection_code: request.connection_code,
                };
                if api
                    .approve_pairing_request(&request.id, &seen)
                    .await
                    .is_ok()
                {
                    left -= 1;
                }
            }
        }
        Some(())
    }

    fn wish(&mut self, wish: Wish) {
        let caller = Caller {
            served: self.served.clone(),
            witness: self.witness.clone(),
        };
        match wish {
            Wish::Start {
                place,
                script,
                has_key,
                how,
                timeout_seconds,
            } => {
                let request = Request {
                    place,
                    node: self.name_of(place),
                    key: has_key.then(|| format!("key-{}", script.tag)),
                    script,
                    how,
                    timeout_seconds,
                };
                self.requests.insert(request.script.tag, request.clone());
                spawn(caller.start(request));
            }
            Wish::Repeat(tag) => {
                if let Some(request) = self.requests.get(&tag) {
                    spawn(caller.start(request.clone()));
                }
            }
            Wish::Contradict(tag) => {
                if let Some(request) = self.requests.get(&tag) {
                    spawn(caller.contradict(request.clone()));
                }
            }
            Wish::Cancel(tag, grace) => {
                if let Some(id) = self.id_of(tag) {
                    if self.is_thin {
                        self.cancel_in_time(caller, tag, id, grace);
                    } else {
                        spawn(caller.cancel(tag, id, grace));
                    }
                }
            }
            Wish::Signal(tag, signal) => {
                if let Some(id) = self.id_of(tag) {
                    spawn(caller.signal(tag, id, signal));
                }
            }
            Wish::Feed(tag, bytes, eof) => {
                if let Some(id) = self.id_of(tag) {
                    spawn(caller.feed(tag, id, bytes, eof));
                }
            }
            Wish::Follow(tag, time) => {
                if let Some(id) = self.id_of(tag) {
                    spawn(for_a_while(time, caller.follow(tag, id)));
                }
            }
            Wish::Look(tag) => {
                if let Some(id) = self.id_of(tag) {
                    spawn(caller.look_at(tag, id));
                }
            }
            Wish::List => spawn(async { drop(caller.list().await) }),
            Wish::Rename(place, number) => {
                let node = self.node(place).node_id();
                spawn(caller.rename(node, format!("box-{number}")));
            }
            Wish::Revoke(place) => self.revoke(place, caller),
            Wish::Claim => spawn(caller.claim()),
        }
    }

    fn revoke(&mut self, place: Place, caller: Caller) {
        self.revoked.push(place);
        self.witness.see(Happened::Befell(Trouble::Revoking(place)));
        let (node, net) = (self.node(place).node_id(), self.net.clone());
        let device = self.node(place).device_id();
        spawn(async move {
            let before = net.open(place);
            let witness = caller.witness.clone();
            if caller.revoke(place, device, node).await {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let now = net.open(place);
                if let Some(open) = before.iter().find(|number| now.contains(number)) {
                    let words = format!("connection {open} of {place} is open, which is revoked");
                    witness.violated(violation!("I12", "{words}"));
                }
            }
        });
    }

    /// Turns the gateway's wall clock to where it is to be.
    fn turn_clock(&self) {
        let passed = SignedDuration::try_from(self.began.elapsed()).unwrap_or_default();
        let now = at(DAWN).checked_add(passed + self.clock_is_off);
        self.clock.set(now.unwrap_or(at(DAWN)));
    }

    fn node(&self, place: Place) -> &Linked {
        &self.nodes[place.clamp(1, self.nodes.len()) - 1]
    }

    fn machine(&self, place: Place) -> Option<&Machine> {
        match place {
            GATEWAY => self.local.as_ref(),
            node => Some(self.node(node).machine()),
        }
    }

    fn name_of(&self, place: Place) -> String {
        match place {
            GATEWAY => "local".to_owned(),
            node => format!("node:{}", self.node(node).node_id()),
        }
    }

    fn id_of(&self, tag: Tag) -> Option<String> {
        self.witness.ask(|model| model.id_of(tag))
    }
}

/// Makes the gateway's key where its first life will find it, so that nodes can be told of it.
fn gateway_key(root: &Path) -> Fingerprint {
    let dir = root.join("gateway.0");
    std::fs::create_dir_all(&dir).expect("a directory of a world can be made");
    let identity = GatewayIdentity::create(&dir.join("gateway_key"));
    identity
        .expect("a key of a world can be made")
        .fingerprint()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or_default()
}

/// Starts a task that lives as long as its world, which ends with its process.
#[expect(clippy::disallowed_methods, reason = "the world owns all of them")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(task));
}
