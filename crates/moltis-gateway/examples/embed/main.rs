//! A small portal of a workshop: pages and a login of its own, and a gateway under `/moltis`.
//!
//! ```text
//! cargo run -p moltis-gateway --example embed -- 127.0.0.1:8080 /srv/workshop users.txt
//! ```
//!
//! Each line of the file of users is `name:password:scopes`, as `alice:secret:nodes:read,runs:write`.
//! Everything of Moltis is in three places: [`gateway`] builds it and nests it, [`login`] says on whose
//! behalf a request comes, and [`pages`] lists nodes and runs a command by calls in-process. A machine
//! joins with `moltis node add --host ws://127.0.0.1:8080/moltis/ws`.
#![expect(clippy::print_stdout, reason = "an example talks to its user")]

mod gateway;
mod login;
mod pages;
mod sessions;

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use moltis_gateway::Gateway;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use sessions::Sessions;

/// What the handlers of this program work with.
#[derive(Clone)]
struct Portal {
    gateway: Gateway,
    sessions: Arc<Sessions>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(dir), Some(users)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: embed <address:port> <directory> <file of users>".into());
    };
    let users = std::fs::read_to_string(&users)
        .map_err(|error| format!("cannot read the users in `{users}`: {error}"))?;
    let (interrupt, terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let portal = Portal {
        gateway: gateway::build(Path::new(&dir)).await?,
        sessions: Arc::new(Sessions::of(&users)?),
    };
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}"))?;
    println!("listening on http://{}", listener.local_addr()?);

    let gateway = portal.gateway.clone();
    // Admission at `/moltis/ws` and the audit log want to know where somebody comes from.
    let app = app(portal).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            asked_to_stop(interrupt, terminate).await;
            // Ends answers that last and the connections of nodes, whose runs go on.
            gateway.shutdown().await;
        })
        .await?;
    println!("stopped");
    Ok(())
}

/// Returns the whole site: pages of its own, and the gateway under a prefix, behind one login.
fn app(portal: Portal) -> Router {
    let own = Router::new()
        .route("/", get(pages::front))
        .route("/run", post(pages::run))
        .route_layer(from_fn_with_state(portal.clone(), login::required))
        .route("/login", get(login::form).post(login::log_in))
        .route("/logout", post(login::log_out))
        .with_state(portal.clone());
    let moltis = portal
        .gateway
        .router()
        .layer(from_fn_with_state(portal, login::vouch));
    own.nest("/moltis", moltis)
}

async fn asked_to_stop(mut interrupt: Signal, mut terminate: Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
