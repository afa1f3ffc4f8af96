//! The gateway itself: built, nested into a router or served, and shut down.
//!
//! Everything else of this crate is a room; here they are put together and the doors between them
//! are opened. An embedder makes three calls: [`Gateway::builder`], [`Gateway::router`],
//! [`Gateway::shutdown`].

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use jiff::Timestamp;
use moltis_identity::{Fingerprint, GatewayIdentity, random};
use moltis_proto::message::Windows;
use moltis_proto::{BootId, DeviceId, PublicKey};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::doctor::Finding;
use crate::doctor::gather::Doctor;
use crate::error::BuildError;
use crate::events::Events;
use crate::exec::{Runs, Shared};
use crate::http::forwarded::{self, Proxies};
use crate::http::guests::Guests;
use crate::http::listen::Listener;
use crate::http::serve::Reception;
use crate::http::tls::{Tls, TlsError, TlsStatus};
use crate::http::{self, ApiState, DoorConfig, Hosts, Rooms};
use crate::in_process::InProcess;
use crate::local::{KeeperConnector, Local};
#[cfg(feature = "metrics")]
use crate::metrics::scrape::Sources;
use crate::output::Outputs;
use crate::pairing::PairingDesk;
use crate::principal::Principal;
use crate::records;
use crate::retention::{self, Keep, Life};
use crate::roster::Roster;
use crate::socket::Door;
use crate::store::{Store, StoreError};
use crate::system::System;
use crate::tasks::Tasks;
use crate::telemetry::Point;

/// How long output and store may take to close; half of the whole time where that is short.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// How much of it is the store's at least.
const STORE_CLOSE_TIME: Duration = Duration::from_secs(2);

/// A running gateway. Cloning shares it; it ends with [`Gateway::shutdown`].
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: GatewayConfig,
    identity: Arc<GatewayIdentity>,
    shared: Arc<Shared>,
    runs: Runs,
    door: Door,
    api: ApiState,
    /// The TCP connections of all listeners.
    reception: Reception,
    /// Made when it is first asked for.
    router: OnceLock<Router>,
}

/// Puts a gateway together.
#[derive(Debug)]
pub struct GatewayBuilder {
    config: GatewayConfig,
    clock: Clock,
    boot_id: Option<BootId>,
    identity: Option<GatewayIdentity>,
    keeper: Option<Keeper>,
    may_hold_runs: bool,
    system: System,
}

struct Keeper(Box<dyn KeeperConnector>);

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keeper")
    }
}

impl GatewayBuilder {
    /// Gives the way to the keeper of this machine. Without it there is no `local`.
    #[must_use]
    pub fn keeper(mut self, connector: impl KeeperConnector) -> Self {
        self.keeper = Some(Keeper(Box::new(connector)));
        self
    }

    /// Says whether keepers of this machine live, or have left something behind. The gateway then
    /// connects to them when it begins, and not only when a run that it knows needs it: they may hold
    /// runs that an older database knows nothing of.
    #[must_use]
    pub fn keeper_may_hold_runs(mut self, may_hold_runs: bool) -> Self {
        self.may_hold_runs = may_hold_runs;
        self
    }

    /// Takes the time of day from this clock instead of the machine's.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Names the running boot of this machine, which tells a power cut from a crash.
    #[must_use]
    pub fn boot_id(mut self, boot_id: BootId) -> Self {
        self.boot_id = Some(boot_id);
        self
    }

    /// Uses this key instead of the one in `gateway_key`.
    #[must_use]
    pub fn identity(mut self, identity: GatewayIdentity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Has it live this life of a simulation.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn simulated(mut self, incarnation: &crate::simulation::Incarnation) -> Self {
        self.system = System::simulated(incarnation.clone());
        self
    }

    /// Opens the store, takes up what was left open, and begins.
    ///
    /// # Errors
    /// [`BuildError`], by what cannot be used.
    pub async fn build(self) -> Result<Gateway, BuildError> {
        check_dir(&self.config.dir)?;
        check_windows(&self.config.windows)?;
        let hosts = Hosts::new(&self.config.hosts)?;
        let proxies = Proxies::new(&self.config.trusted_proxies)?;
        let store = Store::open_on(&self.system, &self.config.dir).await?;
        let tasks = Tasks::on(self.system.clone());
        let built = self.put_together(hosts, proxies, store.clone(), tasks.clone());
        let built = built.await;
        if built.is_err() {
            // Whoever tries again finds the store free, and no task of this try at work.
            tasks.shut_down(CLOSE_TIME).await;
            tokio::time::timeout(CLOSE_TIME, store.close()).await.ok();
        }
        built
    }

    async fn put_together(
        self,
        hosts: Hosts,
        proxies: Proxies,
        store: Store,
        tasks: Tasks,
    ) -> Result<Gateway, BuildError> {
        let Self {
            config,
            clock,
            boot_id,
            identity,
            keeper,
            may_hold_runs,
            system,
        } = self;
        let identity = match identity {
            Some(identity) => identity,
            None => GatewayIdentity::load_or_create(&config.dir.join("gateway_key"))?,
        };
        let identity = Arc::new(identity);
        let tls = open_tls(&config, &hosts, clock.now())?;
        let life = Life::begin(store.clone(), boot_id).await?;
        let outputs = Outputs::open_on(&system, &config.dir, boot_id, config.runs.output)?;
        let events = Events::default();
        let desk = PairingDesk::open(store.clone(), clock.clone(), events.clone(), &tasks).await?;
        let incarnation = u32::from_be_bytes(random::bytes());
        let roster = Roster::new(incarnation, desk.nodes(), events.clone());
        let shared = Shared::new(store, outputs, roster, events, tasks, clock, desk);
        shared
            .load()
            .await
            .map_err(|error| BuildError::Runs(error.into()))?;
        shared.end_all_of_unwelcome();
        let local = keeper
            .map(|Keeper(connector)| Local::new(Arc::clone(&shared), connector, config.windows));
        if let Some(local) = &local {
            shared.tasks.spawn(local.clone().keep_up(may_hold_runs));
        }
        shared.tasks.spawn(records::follow(Arc::clone(&shared)));
        let keep = Keep {
            runs: Duration::from_hours(u64::from(config.runs.keep_days) * 24),
        };
        shared
            .tasks
            .spawn(retention::keep_up(Arc::clone(&shared), keep, life));
        if let Some(tls) = &tls {
            let stop = shared.tasks.stop().clone();
            shared
                .tasks
                .spawn(tls.clone().keep_up(shared.clock.clone(), stop));
        }
        let has_local = local.is_some();
        let runs = Runs::new(
            Arc::clone(&shared),
            local,
            &config.runs.default_route,
            config.runs.local_timeout,
        );
        let door = Door::new(
            Arc::clone(&shared),
            Admission::new(&config.admission),
            Arc::clone(&identity),
            config.windows,
            config.session,
        );
        let doctor = Doctor {
            dir: config.dir.clone(),
            settings: config.settings_file.clone(),
            insecure_http: config.insecure_http,
            tls: tls.clone(),
            default_route: config.runs.default_route.clone(),
            has_local,
            store: shared.store.clone(),
            outputs: shared.outputs.clone(),
            roster: shared.roster.clone(),
            pairing: shared.desk.clone(),
            clock: shared.clock.clone(),
            last: tokio::sync::Mutex::default(),
        };
        let guests = Guests::default();
        let rooms = Rooms {
            door: door_config(&config, hosts, tls.clone()),
            store: shared.store.clone(),
            clock: shared.clock.clone(),
            outputs: shared.outputs.clone(),
            runs: runs.clone(),
            roster: shared.roster.clone(),
            pairing: shared.desk.clone(),
            fingerprint: identity.fingerprint(),
            doctor,
            #[cfg(feature = "metrics")]
            watched: Sources {
                shared: Arc::clone(&shared),
                door: door.clone(),
                guests: guests.clone(),
                dir: config.dir.clone(),
            },
            tasks: shared.tasks.clone(),
            events: shared.events.clone(),
        };
        let api = ApiState::new(rooms, u64::from_be_bytes(random::bytes()));
        shared.tasks.spawn(http::print_events(api.clone()));
        Ok(Gateway(Arc::new(Inner {
            config,
            identity,
            shared,
            runs,
            door,
            api,
            reception: Reception {
                guests,
                tls,
                proxies,
            },
            router: OnceLock::new(),
        })))
    }
}

impl Gateway {
    /// Begins a gateway with this configuration.
    pub fn builder(config: GatewayConfig) -> GatewayBuilder {
        GatewayBuilder {
            config,
            clock: Clock::system(),
            boot_id: None,
            identity: None,
            keeper: None,
            may_hold_runs: false,
            system: System::default(),
        }
    }

    /// Returns everything that is served, at any prefix: `/ws` for nodes, the API, health.
    pub fn router(&self) -> Router {
        let router = self.0.router.get_or_init(|| {
            let proxies = self.0.reception.proxies.clone();
            let unwrap = from_fn_with_state(proxies, forwarded::unwrap);
            http::router(self.0.api.clone())
                .merge(self.0.door.clone().router())
                .layer(unwrap)
        });
        router.clone()
    }

    /// Returns the API without a socket, on behalf of somebody: an [`Operator`](Principal::Operator),
    /// or a [`User`](Principal::User) of the program that embeds this gateway.
    pub fn on_behalf_of(&self, who: Principal) -> InProcess {
        InProcess::new(self.router(), who)
    }

    /// Answers on a listener until `stop`, or until the gateway is shut down. From the call on, and
    /// not only from the first poll, the gateway says that it listens there: whoever serves on
    /// several addresses calls for all of them before one can be asked.
    pub fn serve(
        &self,
        listener: Listener,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let ours = self.0.shared.tasks.stop().clone();
        let either = stop.child_token();
        let listening = self.0.api.listening(listener.address());
        let reception = self.0.reception.clone();
        let serving = http::serve::serve(listener, self.router(), reception, either.clone());
        async move {
            let _listening = listening;
            let mut serving = std::pin::pin!(serving);
            tokio::select! {
                biased;
                () = ours.cancelled() => either.cancel(),
                () = &mut serving => return,
            }
            serving.await;
        }
    }

    /// Answers on a stream that a simulation has made, as [`serve`](Self::serve) answers on a
    /// connection from `peer`: until it closes, or the gateway is shut down or killed. Neither TLS
    /// nor the bound on connections is met.
    #[cfg(feature = "simulation")]
    pub fn serve_stream<S>(&self, stream: S, peer: http::peer::Peer)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let tasks = &self.0.shared.tasks;
        let speak = http::serve::speak(stream, peer, self.router(), tasks.stop().clone());
        drop(tasks.spawn(speak));
    }

    /// Ends it in good order: nodes are told when to come back, output is written and synced, the
    /// store is closed. Runs belong to their keepers and go on. Takes no longer than the
    /// configured grace; may be called again. From then on another gateway may be built in its
    /// directory, unless a disk that does not answer has kept it from ending in time.
    pub async fn shutdown(&self) {
        let (shared, grace) = (&self.0.shared, self.0.config.shutdown_grace);
        let end = Instant::now() + grace;
        let close_time = CLOSE_TIME.min(grace / 2);
        let left = shared
            .tasks
            .shut_down(grace.saturating_sub(close_time))
            .await;
        if left > 0 {
            tracing::warn!(
                tasks = left,
                "some tasks did not end in time and are left behind"
            );
        }
        let store_begins = end - STORE_CLOSE_TIME.min(close_time / 2);
        let closed = tokio::time::timeout_at(store_begins, shared.outputs.close()).await;
        if closed.is_err() {
            // Whoever opens the store anew would write to the same files: it stays locked.
            tracing::warn!(
                "output could not be written and synced in time; nodes keep what was not acknowledged"
            );
            return;
        }
        let closed = tokio::time::timeout_at(end, shared.store.close()).await;
        if closed.is_err() {
            tracing::warn!("the store did not close in time; nothing that was written is lost");
        }
    }

    /// Returns the door of the dispatcher.
    pub fn runs(&self) -> &Runs {
        &self.0.runs
    }

    /// Returns who is known and who is here.
    pub fn roster(&self) -> &Roster {
        &self.0.shared.roster
    }

    /// Returns the desk where nodes are let in, renamed, revoked and forgotten.
    pub fn pairing(&self) -> &PairingDesk {
        &self.0.shared.desk
    }

    /// Returns the store.
    pub fn store(&self) -> &Store {
        &self.0.shared.store
    }

    /// Returns a node's telemetry since `since`, oldest first: at most a day.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn telemetry(
        &self,
        device: DeviceId,
        since: Timestamp,
    ) -> Result<Vec<Point>, StoreError> {
        self.0.shared.history_of(device, since).await
    }

    /// Looks for what is wrong: a finding for every check, also where all is well. Reads much of the
    /// home, and the database for some seconds at most.
    pub async fn doctor(&self) -> Vec<Finding> {
        self.0.api.findings().await
    }

    /// Returns the bell.
    pub fn events(&self) -> &Events {
        &self.0.shared.events
    }

    /// Returns what handlers work with.
    #[cfg(test)]
    pub(crate) fn api(&self) -> &ApiState {
        &self.0.api
    }

    /// Returns how HTTPS stands; `None` where the configuration names no certificate.
    pub fn tls(&self) -> Option<TlsStatus> {
        self.0.reception.tls.as_ref().map(Tls::status)
    }

    /// Returns the configuration.
    pub fn config(&self) -> &GatewayConfig {
        &self.0.config
    }

    /// Returns the gateway's public key.
    pub fn public_key(&self) -> PublicKey {
        self.0.identity.secret.public_key()
    }

    /// Returns the fingerprint of the gateway's key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.identity.fingerprint()
    }
}

/// Returns what decides who may come in by HTTP. The gateway is its process's user's.
fn door_config(config: &GatewayConfig, hosts: Hosts, tls: Option<Tls>) -> DoorConfig {
    DoorConfig {
        hosts,
        tls,
        insecure_http: config.insecure_http,
        owner_uid: rustix::process::geteuid().as_raw(),
    }
}

/// Reads the certificate, or makes it.
fn open_tls(
    config: &GatewayConfig,
    hosts: &Hosts,
    now: Timestamp,
) -> Result<Option<Tls>, TlsError> {
    let names = || hosts.iter().map(|host| host.host.to_string());
    let open = |tls| Tls::open(tls, &config.dir, names(), now);
    config.tls.as_ref().map(open).transpose()
}

fn check_dir(dir: &Path) -> Result<(), BuildError> {
    if !dir.is_absolute() {
        return Err(BuildError::Dir {
            dir: dir.to_owned(),
            problem: "is not an absolute path",
        });
    }
    Ok(())
}

fn check_windows(windows: &Windows) -> Result<(), BuildError> {
    let least = 4 * windows.chunk_bytes_max;
    for (what, found) in [
        ("one run", windows.run_bytes),
        ("one connection", windows.connection_bytes),
    ] {
        if found < least || windows.chunk_bytes_max == 0 {
            return Err(BuildError::Window {
                what,
                found,
                min: least.max(1),
            });
        }
    }
    Ok(())
}
