//! The way in for nodes: `/ws`, from the upgrade to an accepted connection.
//!
//! Here is the upgrade (which subprotocol, who may not even try) and what follows on it: the
//! handshake, the verdict, the wait for a person. What happens on an accepted connection is
//! [`session`](crate::session)'s; who is a stranger for how long is [`admission`](crate::admission)'s;
//! who may come in is [`pairing`](crate::pairing)'s.

mod shake;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{ConnectInfo, State};
use axum::http::header::{COOKIE, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Extension, Router};
use moltis_identity::GatewayIdentity;
use moltis_proto::NODE_ADD;
use moltis_proto::handshake::SessionLimits;
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::message::Windows;
use moltis_proto::subprotocol::{Negotiated, Subprotocol};

use crate::admission::Admission;
use crate::exec::Shared;
use crate::http::peer::Peer;

/// Bytes that an idle connection keeps for reading. A longer frame gets its own room.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Bytes that are gathered before they are written, and the most that wait: what the session
/// queues at once and one frame more, with room for headers.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;
const WRITE_BUFFER_BYTES_MAX: usize = 512 * 1024;

/// What the door needs. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    admission: Admission,
    identity: Arc<GatewayIdentity>,
    /// What nodes are granted; the chunk depends on the codec.
    windows: Windows,
    limits: SessionLimits,
}

impl Door {
    pub(crate) fn new(
        shared: Arc<Shared>,
        admission: Admission,
        identity: Arc<GatewayIdentity>,
        windows: Windows,
        limits: SessionLimits,
    ) -> Self {
        Self(Arc::new(Inner {
            shared,
            admission,
            identity,
            windows,
            limits,
        }))
    }

    /// Returns the route for nodes.
    pub(crate) fn router(self) -> Router {
        Router::new().route("/ws", any(upgrade)).with_state(self)
    }
}

async fn upgrade(
    State(door): State<Door>,
    peer: Option<Extension<ConnectInfo<Peer>>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    if headers.contains_key(ORIGIN) || headers.contains_key(COOKIE) {
        return browsers_stay_out();
    }
    let offered = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .map(|value| value.to_str().unwrap_or_default());
    let (Ok(upgrade), Some(negotiated)) = (upgrade, Negotiated::from_header_values(offered)) else {
        return upgrade_required();
    };
    if door.0.shared.tasks.stop().is_cancelled() {
        return come_back_in(1);
    }
    let address = peer.and_then(|Extension(ConnectInfo(peer))| peer.ip());
    // A peer without an address is a process of this machine, or the embedder's care.
    let source = address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let stranger = match door.0.admission.admit(source) {
        Ok(stranger) => stranger,
        Err(turned) => {
            tracing::debug!(peer.addr = %source, "a stranger was turned away");
            return come_back_in(turned.retry_after.as_secs().max(1));
        }
    };
    let tasks = door.0.shared.tasks.clone();
    upgrade
        .protocols([negotiated.chosen.name()])
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(FRAME_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .on_upgrade(move |socket| {
            // The task that calls this is nobody's: ours goes on alone, and is waited for.
            tasks.spawn(shake::receive(
                door, socket, negotiated, source, address, stranger,
            ));
            std::future::ready(())
        })
}

/// A web page that opens a socket to a gateway is somebody's attack: nodes send neither.
fn browsers_stay_out() -> Response {
    let words = "this address is for Moltis nodes, which send neither Origin nor cookies\n";
    (StatusCode::FORBIDDEN, words).into_response()
}

fn upgrade_required() -> Response {
    let names: Vec<&str> = Subprotocol::ALL
        .iter()
        .map(|protocol| protocol.name())
        .collect();
    let words = format!(
        "this address is for Moltis nodes. A node connects by WebSocket with one of the subprotocols {}. \
         To join a machine: {NODE_ADD} --host ws://<this gateway>/ws\n",
        names.join(", ")
    );
    let mut response = (StatusCode::UPGRADE_REQUIRED, words).into_response();
    response
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static("websocket"));
    response
}

fn come_back_in(seconds: u64) -> Response {
    let words = "the gateway takes no more connections at the moment\n";
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, words).into_response();
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}
