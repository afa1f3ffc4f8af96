//! The front desk: every HTTP route, and the layers around all of them.
//!
//! What is served, to whom, and what it promises stands in [`mod@table`]; [`openapi`] writes the same
//! down for programs. A handler parses, calls and converts, and is short. Before it run, from the
//! outside in: [`envelope`] (request id, the body of a failure, panics), [`gate`] (transport, host,
//! origin), and for each route [`auth`] with the action that its row declares.
//!
//! Shapes are in [`crate::api`]; [`convert`] makes them from rows. Sockets are in [`listen`] and
//! [`serve`]. What happens behind `/ws` is not here.

mod auth;
mod authority;
mod caller;
mod convert;
mod doctor;
mod envelope;
mod error;
mod events;
mod extract;
mod follow;
pub(crate) mod forwarded;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod gateway;
pub(crate) mod guests;
mod hangup;
mod health;
mod host;
mod join;
pub mod listen;
#[cfg(feature = "metrics")]
mod metrics;
mod nodes;
mod openapi;
mod output;
mod page;
mod pairing;
pub mod peer;
mod result;
mod run_events;
mod runs;
pub(crate) mod serve;
mod sse;
mod streams;
mod table;
#[cfg(test)]
mod tests;
mod throttle;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(not(feature = "tls"))]
#[path = "http/no_tls.rs"]
pub mod tls;
mod tokens;
mod unread;
mod write_timeout;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use jiff::Timestamp;
use moltis_identity::Fingerprint;
use tokio_util::sync::CancellationToken;

use crate::api::doctor::Finding;
use crate::api::runs::Run;
use crate::clock::Clock;
use crate::doctor::gather::Doctor;
use crate::events::Events;
use crate::exec::{RunStatus, Runs};
use crate::metrics::RouteSeconds;
#[cfg(feature = "metrics")]
use crate::metrics::scrape::Sources;
use crate::output::Outputs;
use crate::pairing::PairingDesk;
use crate::roster::Roster;
use crate::store::{Store, Target};
use crate::tasks::Tasks;
use events::Press;
use streams::Streams;
use table::table;
use throttle::Throttle;
use tls::Tls;

pub use error::{ApiError, ApiResult};
pub(crate) use events::print_events;
pub(crate) use extract::Prefix;
pub use forwarded::ProxyError;
pub use host::{HostError, Hosts};
#[cfg(test)]
pub(crate) use table::operations;
pub(crate) use table::way;

/// Returns the router of everything that this gateway serves, at any prefix.
pub(crate) fn router(state: ApiState) -> Router {
    let routes = table().into_iter().fold(Router::new(), |router, route| {
        let guard = from_fn_with_state((state.clone(), route.action), auth::guard);
        let handler = if route.refuses_query() {
            route.handler.route_layer(from_fn(extract::refuse_query))
        } else {
            route.handler
        };
        router.route(route.path, handler.route_layer(guard))
    });
    routes
        .fallback(health::no_such_route)
        .method_not_allowed_fallback(health::no_such_method)
        .layer(from_fn_with_state(state.clone(), gate::check))
        .layer(from_fn_with_state(state.clone(), envelope::wrap))
        .with_state(state)
}

/// What decides who may come in, beside tokens.
#[derive(Debug, Clone)]
pub(crate) struct DoorConfig {
    /// Further hosts that the site may be asked for.
    pub hosts: Hosts,
    /// Serve everything without TLS on every address.
    pub insecure_http: bool,
    /// HTTPS, where there is a certificate.
    pub tls: Option<Tls>,
    /// The user whose gateway this is.
    pub owner_uid: u32,
}

/// The rooms that handlers call.
#[derive(Debug)]
pub(crate) struct Rooms {
    /// Who may come in.
    pub(crate) door: DoorConfig,
    /// Rows.
    pub(crate) store: Store,
    /// The time of day.
    pub(crate) clock: Clock,
    /// Files of output.
    pub(crate) outputs: Outputs,
    /// The dispatcher's door.
    pub(crate) runs: Runs,
    /// Who is known, and who is here.
    pub(crate) roster: Roster,
    /// Who may come to be known.
    pub(crate) pairing: PairingDesk,
    /// The gateway's own key.
    pub(crate) fingerprint: Fingerprint,
    /// Who says what is wrong.
    pub(crate) doctor: Doctor,
    /// What is looked at when somebody scrapes.
    #[cfg(feature = "metrics")]
    pub(crate) watched: Sources,
    /// The tasks of answers that last, and their end.
    pub(crate) tasks: Tasks,
    /// The bell.
    pub(crate) events: Events,
}

/// What handlers work with. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct ApiState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rooms: Rooms,
    throttle: Mutex<Throttle>,
    streams: Streams,
    /// The answers with output.
    outputs_read: Streams,
    press: Press,
    /// Random for each process, so that ids of two gateways do not meet in one log.
    request_base: u64,
    requests: AtomicU64,
    request_times: RouteSeconds,
    addresses: Mutex<Vec<SocketAddr>>,
    started_at: Timestamp,
}

/// An address that is listened on.
#[derive(Debug)]
pub(crate) struct Listening {
    state: ApiState,
    address: Option<SocketAddr>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut addresses = lock(&self.state.0.addresses);
        let at = addresses
            .iter()
            .position(|address| Some(*address) == self.address);
        if let Some(at) = at {
            addresses.remove(at);
        }
    }
}

/// What a panic left behind here is whole all the same: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ApiState {
    /// Puts together what handlers need. `request_base` is random.
    pub(crate) fn new(rooms: Rooms, request_base: u64) -> Self {
        Self(Arc::new(Inner {
            started_at: rooms.clock.now(),
            rooms,
            throttle: Mutex::default(),
            streams: Streams::default(),
            outputs_read: Streams::of_output(),
            press: Press::default(),
            request_base,
            requests: AtomicU64::new(0),
            request_times: RouteSeconds::default(),
            addresses: Mutex::default(),
        }))
    }

    fn store(&self) -> &Store {
        &self.0.rooms.store
    }

    fn outputs(&self) -> &Outputs {
        &self.0.rooms.outputs
    }

    fn clock(&self) -> &Clock {
        &self.0.rooms.clock
    }

    fn runs(&self) -> &Runs {
        &self.0.rooms.runs
    }

    fn roster(&self) -> &Roster {
        &self.0.rooms.roster
    }

    fn pairing(&self) -> &PairingDesk {
        &self.0.rooms.pairing
    }

    fn fingerprint(&self) -> Fingerprint {
        self.0.rooms.fingerprint
    }

    fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    /// Returns the addresses that are listened on now.
    fn addresses(&self) -> Vec<SocketAddr> {
        lock(&self.0.addresses).clone()
    }

    /// Notes that an address is listened on, for as long as the guard lives.
    pub(crate) fn listening(&self, address: Option<SocketAddr>) -> Listening {
        lock(&self.0.addresses).extend(address);
        Listening {
            state: self.clone(),
            address,
        }
    }

    /// Returns what is wrong here, and what is not.
    pub(crate) async fn findings(&self) -> Vec<Finding> {
        self.0.rooms.doctor.findings(self.addresses()).await
    }

    /// Returns how long answers took.
    fn requests(&self) -> &RouteSeconds {
        &self.0.request_times
    }

    /// Returns what is looked at when somebody scrapes.
    #[cfg(feature = "metrics")]
    fn watched(&self) -> &Sources {
        &self.0.rooms.watched
    }

    fn tasks(&self) -> &Tasks {
        &self.0.rooms.tasks
    }

    fn stop(&self) -> &CancellationToken {
        self.tasks().stop()
    }

    fn events(&self) -> &Events {
        &self.0.rooms.events
    }

    fn outputs_read(&self) -> &Streams {
        &self.0.outputs_read
    }

    fn streams(&self) -> &Streams {
        &self.0.streams
    }

    fn press(&self) -> &Press {
        &self.0.press
    }

    /// Returns the random number of this process.
    fn incarnation(&self) -> u32 {
        self.roster().incarnation()
    }

    /// Puts a run together with the present.
    fn run(&self, status: RunStatus) -> Run {
        let node = match &status.record.target {
            Target::Node(device) => self.roster().get(*device),
            Target::Local | Target::Ssh(_) => None,
        };
        Run::of(status, node.map(|node| node.record.name.to_string()))
    }

    fn tls(&self) -> Option<&Tls> {
        self.door().tls.as_ref()
    }

    fn door(&self) -> &DoorConfig {
        &self.0.rooms.door
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        lock(&self.0.throttle)
    }

    fn next_request_id(&self) -> String {
        let count = self.0.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}", self.0.request_base.wrapping_add(count))
    }
}
