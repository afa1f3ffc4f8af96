//! The way in for nodes: `/ws`, from the upgrade to an accepted connection.
//!
//! Here is the upgrade (which subprotocol, who may not even try) and what follows on it: the
//! handshake, the verdict, the wait for a person. What happens on an accepted connection is
//! [`session`](crate::session)'s; who is a stranger for how long is [`admission`](crate::admission)'s;
//! who may come in is [`pairing`](crate::pairing)'s.

mod ahead;
mod shake;

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use moltis_identity::GatewayIdentity;
use moltis_proto::NODE_ADD;
use moltis_proto::handshake::SessionLimits;
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::message::Windows;
use moltis_proto::subprotocol::{Negotiated, Subprotocol};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use self::ahead::Ahead;
use crate::admission::Admission;
use crate::exec::Shared;
use crate::http::Prefix;
use crate::http::peer::Peer;
use crate::metrics::{HandshakeCounts, Refused};
use crate::session;

/// A node's socket, upgraded.
pub(crate) type Socket = WebSocketStream<Ahead<TokioIo<Upgraded>>>;

/// Bytes that an idle connection keeps for reading: a sample of telemetry. A longer frame gets its
/// own room, and what comes in numbers is read [`ahead`].
const READ_BUFFER_BYTES: usize = 1024;

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
    counts: HandshakeCounts,
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
            counts: HandshakeCounts::default(),
        }))
    }

    /// Returns what is counted of handshakes.
    #[cfg(feature = "metrics")]
    pub(crate) fn handshakes(&self) -> &HandshakeCounts {
        &self.0.counts
    }

    /// Returns how many strangers are connected.
    #[cfg(feature = "metrics")]
    pub(crate) fn strangers(&self) -> usize {
        self.0.admission.strangers()
    }

    /// Counts a connection of which nothing will come.
    fn refused(&self, why: Refused) {
        self.0.counts.refused.one(why);
    }

    /// Returns the route for nodes.
    pub(crate) fn router(self) -> Router {
        Router::new().route("/ws", any(upgrade)).with_state(self)
    }
}

/// What a node asks for by its upgrade.
#[derive(Debug)]
pub(crate) struct Knock {
    key: HeaderValue,
    pub(crate) negotiated: Negotiated,
}

impl Knock {
    /// Reads an upgrade: all of it that the request alone decides.
    pub(crate) fn read(request: &Request) -> Result<Self, Refused> {
        let headers = request.headers();
        if headers.contains_key(ORIGIN) || headers.contains_key(COOKIE) {
            return Err(Refused::Browser);
        }
        let offered = headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .map(|value| value.to_str().unwrap_or_default());
        let negotiated = Negotiated::from_header_values(offered);
        let (Some(key), Some(negotiated)) = (websocket_key(request), negotiated) else {
            return Err(Refused::NotANode);
        };
        Ok(Self { key, negotiated })
    }

    /// Returns the answer of a gateway that lets the node speak on.
    pub(crate) fn switching(&self) -> Response {
        let accept = HeaderValue::try_from(derive_accept_key(self.key.as_bytes()));
        let accept = accept.expect("base64 makes a header's value");
        let chosen = self.negotiated.chosen.name();
        let headers = [
            (CONNECTION, HeaderValue::from_static("upgrade")),
            (UPGRADE, HeaderValue::from_static("websocket")),
            (SEC_WEBSOCKET_ACCEPT, accept),
            (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen)),
        ];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    }
}

async fn upgrade(State(door): State<Door>, mut request: Request) -> Response {
    let knock = match Knock::read(&request) {
        Ok(knock) => knock,
        Err(why) => {
            door.refused(why);
            return turned_away(why, &Prefix::of(request.extensions()));
        }
    };
    if door.0.shared.tasks.stop().is_cancelled() {
        door.refused(Refused::ShuttingDown);
        return come_back_in(1);
    }
    let peer = Peer::of(request.extensions());
    let address = peer.ip();
    // A peer without an address is a process of this machine, or the embedder's care.
    let source = peer.source().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let stranger = match door.0.admission.admit(source) {
        Ok(stranger) => stranger,
        Err(turned) => {
            door.refused(Refused::TurnedAway);
            tracing::debug!(peer.addr = %source, "a stranger was turned away");
            return come_back_in(turned.retry_after.as_secs().max(1));
        }
    };
    let response = knock.switching();
    let negotiated = knock.negotiated;
    let upgraded = hyper::upgrade::on(&mut request);
    let shared = Arc::clone(&door.0.shared);
    let tasks = shared.tasks.clone();
    // The room of the handshake is given back before the session begins.
    let accepted = Box::pin(async move {
        match upgraded.await {
            Ok(upgraded) => {
                let socket = socket_on(upgraded).await;
                shake::receive(door, socket, negotiated, source, address, stranger).await
            }
            Err(error) => {
                door.refused(Refused::Left);
                tracing::debug!(peer.addr = %source, %error, "an upgrade has failed");
                None
            }
        }
    });
    tasks.spawn(async move {
        let accepted = accepted.await;
        if let Some(accepted) = accepted {
            session::run(shared, accepted).await;
        }
    });
    response
}

pub(crate) async fn socket_on(upgraded: Upgraded) -> Socket {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let stream = Ahead::new(TokioIo::new(upgraded));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// Returns the key of a request that opens a WebSocket as RFC 6455, section 4.2.1, asks.
fn websocket_key(request: &Request) -> Option<HeaderValue> {
    let headers = request.headers();
    let has_body = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
    let opens = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && !has_body
        && headers.get_all(SEC_WEBSOCKET_KEY).iter().count() == 1
        && has_word(headers, &CONNECTION, "upgrade")
        && has_word(headers, &UPGRADE, "websocket")
        && headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_some_and(|version| version == "13");
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| opens)?;
    let decoded = STANDARD.decode(key).ok()?;
    (decoded.len() == 16).then(|| key.clone())
}

/// Returns whether a header's list holds this word.
fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut words = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    words.any(|found| found.trim().eq_ignore_ascii_case(word))
}

/// Tells who is no node what this address is for.
pub(crate) fn turned_away(why: Refused, prefix: &Prefix) -> Response {
    match why {
        Refused::Browser => browsers_stay_out(),
        _ => upgrade_required(prefix),
    }
}

/// A web page that opens a socket to a gateway is somebody's attack: nodes send neither.
fn browsers_stay_out() -> Response {
    let words = "this address is for Moltis nodes, which send neither Origin nor cookies\n";
    (StatusCode::FORBIDDEN, words).into_response()
}

fn upgrade_required(prefix: &Prefix) -> Response {
    let names: Vec<&str> = Subprotocol::ALL
        .iter()
        .map(|protocol| protocol.name())
        .collect();
    let words = format!(
        "this address is for Moltis nodes. A node connects by WebSocket with one of the subprotocols {}. \
         To join a machine: {NODE_ADD} --host ws://<this gateway>{prefix}/ws\n",
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
