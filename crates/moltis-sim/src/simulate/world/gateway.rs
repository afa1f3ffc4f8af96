//! The gateway's program on its machine, and the service manager that begins it anew whenever it
//! ends.
//!
//! Each life has a directory of its own, which is made in the moment of the death before it, of what
//! that death leaves. So whatever a dead gateway still does is done where nobody looks.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moltis_gateway::api::events::EventKind;
use moltis_gateway::clock::Clock;
use moltis_gateway::config::STANDARD_WINDOWS;
use moltis_gateway::events::{Event, Kinds};
use moltis_gateway::http::peer::Peer;
use moltis_gateway::local::{Connecting, KeeperStream};
use moltis_gateway::output::OutputLimits;
use moltis_gateway::simulation::Incarnation;
use moltis_gateway::{Gateway, GatewayConfig, InProcess, Principal};
use moltis_node::Keepers;
use moltis_node::keeper::connect;
use moltis_node::simulation::Sockets;
use moltis_proto::message::Windows;

use super::link::Linked;
use super::machine::{Boot, Machine, VERSION};
use super::seats::Seats;
use super::spawn;
use crate::simulate::dice::Dice;
use crate::simulate::disk::leavings::{self, Synced};
use crate::simulate::disk::{self, Disk, Mounted, Noted};
use crate::simulate::fate::Fate;
use crate::simulate::model::{Happened, Model, Trouble, violation};
use crate::simulate::net::{Net, Sent};
use crate::simulate::plan::{Shape, Theme};
use crate::simulate::trace::note;
use crate::simulate::witness::Witness;

/// Windows that are full soon.
const SMALL_WINDOWS: Windows = Windows {
    run_bytes: 64 * 1024,
    connection_bytes: 160 * 1024,
    stdin_bytes: 16 * 1024,
    chunk_bytes_max: 16 * 1024,
};

/// Limits that are met soon.
const SMALL_OUTPUT: OutputLimits = OutputLimits {
    run_bytes_max: 1024 * 1024,
    total_bytes_max: 8 * 1024 * 1024,
    segment_bytes: 128 * 1024,
    recent_bytes: 64 * 1024,
};

/// Limits that are met all the time.
const LOUD_OUTPUT: OutputLimits = OutputLimits {
    run_bytes_max: 192 * 1024,
    total_bytes_max: 4 * 1024 * 1024,
    segment_bytes: 16 * 1024,
    recent_bytes: 16 * 1024,
};

/// Handshakes whose keys are computed at once: a world is to be the same on every machine.
const CRYPTO_AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");

/// Files of a database.
const DATABASE: [&str; 2] = ["gateway.db", "gateway.db-wal"];

/// How a gateway comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// Its process is killed.
    Killed(Sent),
    /// Its machine is switched off.
    PowerCut,
    /// It is killed, and its database put back to the state that was noted.
    Restored,
}

/// The gateway of a world. Cloning shares it.
#[derive(Clone)]
pub(super) struct Served(Arc<Inner>);

struct Inner {
    machine: Option<Machine>,
    root: PathBuf,
    is_small: bool,
    is_loud: bool,
    disk: Disk,
    net: Net,
    clock: Clock,
    witness: Witness,
    seats: Seats,
    boot: Boot,
    state: Mutex<State>,
}

struct State {
    /// The number of the directory that the present life, or the next one, is in.
    number: u32,
    /// A node on its machine.
    beside: Option<Linked>,
    life: Option<Life>,
    /// How long the service manager waits.
    back_in: Duration,
    dice: Dice,
    has_backup: bool,
}

/// One life of the gateway.
#[derive(Clone)]
pub(super) struct Life {
    pub(super) fate: Fate,
    incarnation: Incarnation,
    sockets: Option<Sockets>,
    /// Present once it answers.
    gateway: Option<Gateway>,
}

impl Life {
    /// Returns the API on behalf of the operator.
    pub(super) fn api(&self) -> Option<InProcess> {
        Some(self.gateway.as_ref()?.on_behalf_of(Principal::Operator))
    }

    pub(super) fn gateway(&self) -> Option<&Gateway> {
        self.gateway.as_ref()
    }
}

impl Served {
    /// A gateway that begins now, on a machine with keepers where there are any.
    pub(super) fn new(
        machine: Option<Machine>,
        root: &Path,
        shape: &Shape,
        (net, clock, witness, boot): (&Net, &Clock, &Witness, &Boot),
        dice: Dice,
    ) -> Self {
        witness
            .tell(|model| model.keeps(output_limits(shape.is_small, shape.theme == Theme::Loud)));
        let served = Self(Arc::new(Inner {
            machine,
            root: root.to_owned(),
            is_small: shape.is_small,
            is_loud: shape.theme == Theme::Loud,
            disk: Disk::default(),
            net: net.clone(),
            clock: clock.clone(),
            witness: witness.clone(),
            seats: Seats::default(),
            boot: boot.clone(),
            state: Mutex::new(State {
                number: 0,
                beside: None,
                life: None,
                back_in: Duration::ZERO,
                dice,
                has_backup: false,
            }),
        }));
        spawn(served.clone().keep_up());
        served
    }

    /// This node is on its machine.
    pub(super) fn put_beside(&self, node: &Linked) {
        self.state().beside = Some(node.clone());
    }

    /// Has its machine start anew: whatever is on it has another boot from now on. A gateway gives up
    /// there what was not synced, for it cannot tell this from a power cut.
    pub(super) fn next_boot(&self) {
        self.0.boot.next();
        self.befell(Trouble::GatewayLostPower);
        self.power_takes();
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.0.disk
    }

    /// Returns where its present life, or the next one, keeps output.
    pub(super) fn outputs(&self) -> PathBuf {
        self.dir(self.state().number).join("outputs")
    }

    /// Returns who holds its connections.
    pub(super) fn seats(&self) -> &Seats {
        &self.0.seats
    }

    /// Returns the present life, where it answers.
    pub(super) fn life(&self) -> Option<Life> {
        let life = self.state().life.clone()?;
        life.gateway.is_some().then_some(life)
    }

    /// Has it come back so much later than it ends the next time.
    pub(super) fn back_in(&self, back_in: Duration) {
        self.state().back_in = back_in;
    }

    /// Ends it, in this moment.
    pub(super) fn die(&self, death: Death) {
        let Some(life) = self.state().life.take() else {
            return;
        };
        note!(self.0.witness.trace, "gateway", "{death:?}");
        self.end(&life, death);
    }

    /// Asks it to end in good order.
    pub(super) async fn shut_down(&self) {
        let Some(life) = self.state().life.clone() else {
            return;
        };
        if let Some(gateway) = &life.gateway {
            note!(self.0.witness.trace, "gateway", "is asked to end");
            gateway.shutdown().await;
        }
        if !life.fate.is_over() {
            self.state().life = None;
            self.end(&life, Death::Killed(Sent::Arrives));
        }
    }

    /// Notes the state of the database, with all that is written.
    pub(super) fn back_up(&self) {
        let mut state = self.state();
        let to = self.0.root.join("backup");
        fs::create_dir_all(&to).expect("a directory of a world can be made");
        for name in DATABASE {
            let from = self.dir(state.number).join(name);
            fs::remove_file(to.join(name)).ok(); // it may not be there
            fs::copy(from, to.join(name)).ok(); // it may not be there yet
        }
        state.has_backup = to.join(DATABASE[0]).exists();
        drop(state);
        self.befell(Trouble::BackedUp);
    }

    /// Ends a life: it says nothing more, and what it leaves is where the next one begins.
    fn end(&self, life: &Life, death: Death) {
        life.fate.end();
        life.incarnation.kill();
        if let Some(sockets) = &life.sockets {
            sockets.cut();
        }
        let sent = match death {
            Death::Killed(sent) => sent,
            Death::PowerCut | Death::Restored => Sent::IsLost,
        };
        self.0.net.close_gateway(sent);
        self.befell(Trouble::GatewayDied);
        let mut state = self.state();
        let (from, to) = (self.dir(state.number), self.dir(state.number + 1));
        state.number += 1;
        let left = match death {
            Death::PowerCut => {
                self.0.boot.next();
                self.befell(Trouble::GatewayLostPower);
                self.0.seats.lost_rows();
                self.power_takes();
                let dice = &mut state.dice;
                self.0
                    .disk
                    .with_synced(|synced| leavings::copy_after_power_cut(&from, &to, synced, dice))
            }
            Death::Killed(_) | Death::Restored => leavings::copy(&from, &to),
        };
        left.expect("files of a world can be copied");
        if death == Death::Restored && state.has_backup {
            self.befell(Trouble::Restored);
            self.0.seats.restored();
            for name in DATABASE {
                fs::remove_file(to.join(name)).ok(); // it may not be there
                fs::copy(self.0.root.join("backup").join(name), to.join(name)).ok(); // likewise
            }
        }
        self.0.disk.with_synced(|synced| {
            synced.move_to(&to);
            if death == Death::PowerCut {
                synced.all();
            }
        });
        if death == Death::PowerCut {
            if let Some(node) = &state.beside {
                node.kill();
            }
            let beside = state.beside.as_ref().map(|node| node.machine().clone());
            for machine in self.0.machine.iter().chain(&beside) {
                machine.reboot();
                machine.lose_files(&mut state.dice);
            }
        }
    }

    /// Begins it, and begins it anew, for ever.
    async fn keep_up(self) {
        loop {
            let life = self.begin();
            self.live(&life).await;
            life.fate.over().await;
            self.state().life = None;
            let back_in = std::mem::replace(&mut self.state().back_in, Duration::from_millis(300));
            tokio::time::sleep(back_in).await;
        }
    }

    fn begin(&self) -> Life {
        let fate = Fate::default();
        let here = self.clone();
        let dies = move |death: disk::Death| {
            let life = here.state().life.take();
            if let Some(life) = life {
                if death == disk::Death::OfPower {
                    return here.end(&life, Death::PowerCut);
                }
                let arrives = here.state().dice.percent(50);
                let sent = if arrives { Sent::Arrives } else { Sent::IsLost };
                here.end(&life, Death::Killed(sent));
            }
        };
        let mounted = Mounted {
            disk: self.0.disk.clone(),
            who: "gateway".to_owned(),
            fate: fate.clone(),
            trace: self.0.witness.trace.clone(),
            dies: Box::new(dies),
            tells: Box::new({
                let witness = self.0.witness.clone();
                move |noted| match noted {
                    Noted::Met(_) => witness.see(Happened::Befell(Trouble::StoreFailed)),
                    Noted::Syncs => witness.tell(Model::syncs),
                    Noted::Synced => witness.tell(Model::has_synced),
                    Noted::Spooled(_) => {} // only keepers do
                }
            }),
            is_watched: true,
        };
        self.0.seats.begin();
        let (seats, witness, alive) = (&self.0.seats, &self.0.witness, fate.clone());
        let (seats, witness) = (seats.clone(), witness.clone());
        let watch = move |seen| {
            if !alive.is_over()
                && let Err(violation) = seats.handle(seen)
            {
                witness.violated(violation);
            }
        };
        let life = Life {
            fate,
            incarnation: Incarnation::watched(Arc::new(mounted), watch),
            sockets: None,
            gateway: None,
        };
        let mut state = self.state();
        let number = state.number;
        self.0
            .disk
            .with_synced(|synced| synced.move_to(&self.dir(number)));
        state.life = Some(life.clone());
        life
    }

    /// Builds the gateway, and serves whoever comes.
    async fn live(&self, life: &Life) {
        let built = tokio::select! {
            biased;
            () = life.fate.over() => return,
            built = self.build(life) => built,
        };
        let (gateway, sockets) = match built {
            Ok(built) => built,
            Err(_) if life.fate.is_over() => return,
            Err(error) => return self.cannot_begin(life, &error),
        };
        if life.fate.is_over() {
            return;
        }
        note!(
            self.0.witness.trace,
            "gateway",
            "answers, life {}",
            self.state().number
        );
        let mut arriving = self.0.net.listen();
        {
            let mut state = self.state();
            let Some(life) = &mut state.life else {
                return;
            };
            life.gateway = Some(gateway.clone());
            life.sockets = sockets;
        }
        self.follow_clones(&gateway, &life.fate);
        let fate = life.fate.clone();
        spawn(async move {
            loop {
                let arrival = tokio::select! {
                    biased;
                    () = fate.over() => return,
                    arrival = arriving.recv() => arrival,
                };
                let Some(arrival) = arrival else {
                    return;
                };
                let octet = u8::try_from(arrival.from).unwrap_or(u8::MAX);
                let remote = SocketAddr::from(([10, 0, 0, octet], 1024));
                gateway.serve_stream(arrival.end, Peer::Remote(remote));
            }
        });
    }

    /// Hears whose key is told to be in two places.
    fn follow_clones(&self, gateway: &Gateway, fate: &Fate) {
        let (seats, fate) = (self.0.seats.clone(), fate.clone());
        let kinds = Kinds::from_iter([EventKind::KeyCloned]);
        let mut follower = gateway.events().follow(kinds);
        spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = fate.over() => return,
                    event = follower.recv() => {
                        if let Ok(Event::KeyCloned(device)) = event {
                            seats.told(device);
                        }
                    }
                }
            }
        });
    }

    async fn build(
        &self,
        life: &Life,
    ) -> Result<(Gateway, Option<Sockets>), moltis_gateway::BuildError> {
        let dir = self.dir(self.state().number);
        let mut config = GatewayConfig::new(dir);
        config.windows = if self.0.is_small {
            SMALL_WINDOWS
        } else {
            STANDARD_WINDOWS
        };
        config.runs.output = output_limits(self.0.is_small, self.0.is_loud);
        config.admission.crypto_at_once = CRYPTO_AT_ONCE;
        let mut builder = Gateway::builder(config)
            .clock(self.0.clock.clone())
            .boot_id(self.0.boot.id())
            .simulated(&life.incarnation);
        let mut sockets = None;
        if let Some(machine) = &self.0.machine {
            let (keepers, ours) = machine.keepers(VERSION);
            let keepers: Arc<dyn Keepers> = Arc::new(keepers);
            builder = builder.keeper_may_hold_runs(connect::has_journals(machine.runs()));
            builder = builder.keeper(move || -> Connecting {
                let keepers = Arc::clone(&keepers);
                Box::pin(async move {
                    let streams = keepers.connect().await.map_err(std::io::Error::other)?;
                    let boxed = |stream| Box::new(stream) as Box<dyn KeeperStream>;
                    Ok(streams.into_iter().map(boxed).collect())
                })
            });
            sockets = Some(ours);
        }
        Ok((builder.build().await?, sockets))
    }

    /// A gateway begins on whatever a death has left, unless its disk is in trouble now.
    fn cannot_begin(&self, life: &Life, error: &moltis_gateway::BuildError) {
        let words = chain(error);
        note!(self.0.witness.trace, "gateway", "cannot begin: {words}");
        if self.0.disk.troubled() == 0 {
            let violation = violation!("recovery", "the gateway cannot begin: {words}");
            self.0.witness.violated(violation);
        }
        self.state().life = None;
        self.end(life, Death::Killed(Sent::IsLost));
    }

    /// Tells the model whose output was not synced.
    fn power_takes(&self) {
        let taken = self.0.disk.with_synced(Synced::take_unsynced);
        self.0.witness.tell(|model| model.power_takes(&taken));
    }

    fn befell(&self, trouble: Trouble) {
        self.0.witness.see(Happened::Befell(trouble));
    }

    fn dir(&self, number: u32) -> PathBuf {
        self.0.root.join(format!("gateway.{number}"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn output_limits(is_small: bool, is_loud: bool) -> OutputLimits {
    if is_loud {
        LOUD_OUTPUT
    } else if is_small {
        SMALL_OUTPUT
    } else {
        OutputLimits::default()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}
