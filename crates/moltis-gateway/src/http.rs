//! The front desk: every HTTP route, who may take it, and the layers around all of them.
//!
//! A handler parses, calls and converts, and is short. Before it run, from the outside in:
//! [`envelope`] (request id, the body of a failure, panics), [`gate`] (transport, host, origin), and
//! for each route [`auth`] with the [`Action`] that the table here declares. A route cannot be
//! written down without one.
//!
//! Shapes are in [`crate::api`]; [`convert`] makes them from rows. Sockets are in [`listen`] and
//! [`serve`]. What happens behind `/ws` is not here.

mod auth;
mod caller;
mod convert;
mod envelope;
mod error;
mod extract;
mod gate;
mod health;
mod host;
pub mod listen;
pub mod peer;
pub mod serve;
#[cfg(test)]
mod tests;
mod throttle;
mod tokens;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};

use crate::clock::Clock;
use crate::principal::Action;
use crate::store::Store;
use throttle::Throttle;

pub use error::{ApiError, ApiResult};
pub use host::{HostError, Hosts};

/// One line of the table: a way in, and what it does.
struct Route {
    path: &'static str,
    action: Action,
    handler: MethodRouter<ApiState>,
}

/// Every route there is.
fn table() -> Vec<Route> {
    vec![
        get("/", Action::Public, health::front_page),
        get("/healthz", Action::Public, health::healthz),
        get("/readyz", Action::Public, health::readyz),
        get("/api/v1/tokens", Action::AdminTokens, tokens::list),
        post("/api/v1/tokens", Action::AdminTokens, tokens::create),
        delete("/api/v1/tokens/{id}", Action::AdminTokens, tokens::revoke),
    ]
}

/// Returns the router of everything that this gateway serves, at any prefix.
pub fn router(state: ApiState) -> Router {
    let routes = table().into_iter().fold(Router::new(), |router, route| {
        let guard = from_fn_with_state((state.clone(), route.action), auth::guard);
        router.route(route.path, route.handler.route_layer(guard))
    });
    routes
        .fallback(health::no_such_route)
        .method_not_allowed_fallback(health::no_such_method)
        .layer(from_fn_with_state(state.clone(), gate::check))
        .layer(from_fn_with_state(state.clone(), envelope::wrap))
        .with_state(state)
}

fn get<H, T>(path: &'static str, action: Action, handler: H) -> Route
where
    H: Handler<T, ApiState>,
    T: 'static,
{
    route(Method::GET, path, action, handler)
}

fn post<H, T>(path: &'static str, action: Action, handler: H) -> Route
where
    H: Handler<T, ApiState>,
    T: 'static,
{
    route(Method::POST, path, action, handler)
}

fn delete<H, T>(path: &'static str, action: Action, handler: H) -> Route
where
    H: Handler<T, ApiState>,
    T: 'static,
{
    route(Method::DELETE, path, action, handler)
}

fn route<H, T>(method: Method, path: &'static str, action: Action, handler: H) -> Route
where
    H: Handler<T, ApiState>,
    T: 'static,
{
    let filter: Result<MethodFilter, _> = method.try_into();
    let filter = filter.expect("the table names methods that a router can tell apart");
    Route {
        handler: on(filter, handler),
        path,
        action,
    }
}

/// What decides who may come in, beside tokens.
#[derive(Debug, Clone)]
pub struct DoorConfig {
    /// Further hosts that the site may be asked for.
    pub hosts: Hosts,
    /// Serve everything without TLS on every address.
    pub insecure_http: bool,
    /// The user whose gateway this is.
    pub owner_uid: u32,
}

/// What handlers work with. Cloning shares it.
#[derive(Clone)]
pub struct ApiState(Arc<Inner>);

struct Inner {
    door: DoorConfig,
    store: Store,
    clock: Clock,
    throttle: Mutex<Throttle>,
    /// Random for each process, so that ids of two gateways do not meet in one log.
    request_base: u64,
    requests: AtomicU64,
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiState")
            .field("door", &self.0.door)
            .finish_non_exhaustive()
    }
}

impl ApiState {
    /// Puts together what handlers need. `request_base` is random.
    pub fn new(door: DoorConfig, store: Store, clock: Clock, request_base: u64) -> Self {
        Self(Arc::new(Inner {
            door,
            store,
            clock,
            throttle: Mutex::default(),
            request_base,
            requests: AtomicU64::new(0),
        }))
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn door(&self) -> &DoorConfig {
        &self.0.door
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        // A throttle that a panic left behind is still a throttle.
        self.0
            .throttle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn next_request_id(&self) -> String {
        let count = self.0.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}", self.0.request_base.wrapping_add(count))
    }
}
