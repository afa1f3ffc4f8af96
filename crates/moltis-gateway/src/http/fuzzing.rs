//! What the targets in `fuzz/` reach of what the gateway reads by HTTP: the head of an upgrade, bodies
//! and queries, hosts and ranges. Compiled for them, which `cfg(fuzzing)` says, and for tests.

use std::convert::Infallible;
use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use moltis_proto::limits::FRAME_BYTES_MAX;
use moltis_proto::run::RunSpec;
use moltis_proto::{Codec, RunId, env};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_tungstenite::tungstenite::Message;

use super::error::ApiError;
use super::extract::{Asked, BODY_BYTES_MAX, Json, Prefix};
use super::host::{Authority, Hosts};
use super::output::range;
use super::peer::Peer;
use super::runs::request;
use super::serve;
use crate::api;
use crate::api::runs::{StartQuery, StartRun};
use crate::exec::Selector;
use crate::exec::request::{PlaceRules, check_fits, digest_of, spec_of};
use crate::socket::{Knock, Socket, socket_on, turned_away};

/// Reads a body as some handler does. Returns whether it took it.
type ReadBody = fn(&str, &[u8]) -> bool;

/// Reads a query as some handler does. Returns whether it took it.
type ReadQuery = fn(&str) -> bool;

/// Every type that a handler reads from a body.
pub const BODIES: [(&str, ReadBody); 10] = [
    ("StartRun", body::<StartRun>),
    ("Cancel", body::<api::runs::Cancel>),
    ("Resize", body::<api::runs::Resize>),
    ("SendSignal", body::<api::runs::SendSignal>),
    ("PatchNode", body::<api::nodes::PatchNode>),
    ("SetPairing", body::<api::pairing::SetPairing>),
    ("Approve", body::<api::pairing::Approve>),
    ("CreateToken", body::<api::tokens::CreateToken>),
    ("Empty", body::<api::Empty>),
    ("start_run", start_run),
];

/// Every type that a handler reads from a query.
pub const QUERIES: [(&str, ReadQuery); 9] = [
    ("StartQuery", query::<StartQuery>),
    ("ListRuns", query::<api::runs::ListRuns>),
    ("OutputQuery", query::<api::runs::OutputQuery>),
    ("FollowQuery", query::<api::runs::FollowQuery>),
    ("StdinQuery", query::<api::runs::StdinQuery>),
    ("ListNodes", query::<api::nodes::ListNodes>),
    ("ListTokens", query::<api::tokens::ListTokens>),
    ("EventsQuery", query::<api::events::EventsQuery>),
    ("RunEventsQuery", query::<api::events::RunEventsQuery>),
];

/// Reads a body by the extractor of the handlers. It needs a runtime that has been entered, for the
/// time that a body may take.
fn read<T: DeserializeOwned>(media: &str, bytes: &[u8]) -> Option<T> {
    let mut request = Request::new(Body::from(bytes.to_vec()));
    if let Ok(media) = HeaderValue::from_str(media) {
        request.headers_mut().insert(CONTENT_TYPE, media);
    }
    // All of the body is here, so nothing is waited for.
    match Json::<T>::from_request(request, &()).now_or_never()? {
        Ok(Json(value)) => Some(value),
        Err(error) => refused(error),
    }
}

/// A refusal is words of a bounded length for the peer.
fn refused<T>(error: ApiError) -> Option<T> {
    let problem = error.problem(String::new());
    assert!((400..500).contains(&problem.status), "{problem:?}");
    assert!(!problem.detail.is_empty() && problem.detail.len() <= 4096);
    serde_json::to_vec(&problem).expect("a problem can be written");
    drop(error.into_response());
    None
}

fn body<T>(media: &str, bytes: &[u8]) -> bool
where
    T: DeserializeOwned + Serialize + PartialEq + Debug,
{
    let Some(value) = read::<T>(media, bytes) else {
        return false;
    };
    assert!(bytes.len() <= BODY_BYTES_MAX);
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let again = read::<T>("application/json", &written);
    assert_eq!(again.as_ref(), Some(&value), "read again as it is written");
    true
}

fn query<T>(text: &str) -> bool
where
    T: DeserializeOwned + Debug,
{
    let Ok(uri) = format!("/x?{text}").parse() else {
        return false;
    };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = uri;
    let (mut parts, _) = request.into_parts();
    let read = Asked::<T>::from_request_parts(&mut parts, &()).now_or_never();
    match read.expect("a query needs nothing else") {
        Ok(Asked(_)) => true,
        Err(error) => refused::<()>(error).is_some(),
    }
}

/// Takes the body of `POST runs` on to what is sent to a node.
fn start_run(media: &str, bytes: &[u8]) -> bool {
    let Some(asked) = read::<StartRun>(media, bytes) else {
        return false;
    };
    if let Some(select) = &asked.select
        && let Ok(selector) = select.parse::<Selector>()
    {
        let again = selector.to_string().parse();
        assert_eq!(again.as_ref(), Ok(&selector));
    }
    let read = request::read(asked, StartQuery::default(), &HeaderMap::new());
    let request = match read {
        Ok(request) => request,
        Err(error) => return refused::<()>(error).is_some(),
    };
    let rules = PlaceRules {
        name: "box",
        timeout_max: None,
        timeout_default: None,
        env_allow: &["BUILD_ID".to_owned()],
    };
    let Ok(spec) = spec_of(&request, &rules) else {
        return false;
    };
    assert_eq!(env::check(&spec.env, rules.env_allow), Ok(()));
    let digest = digest_of(None, &spec, &request.stdin);
    let id = RunId::from_bytes([7; 16]);
    for codec in [Codec::Postcard, Codec::Json] {
        if check_fits(codec, id, digest, &spec).is_err() {
            return false;
        }
        let sent = codec.encode(&spec).expect("it fits");
        let found: RunSpec = codec.decode(&sent).expect("a node reads it");
        assert_eq!(digest_of(None, &found, &request.stdin), digest);
        assert_eq!(found, spec);
    }
    // Another request is another run, whatever differs.
    let mut other = spec.clone();
    other.grace_ms += 1;
    assert_ne!(digest_of(None, &other, &request.stdin), digest);
    true
}

/// Returns host and port of a `Host` header, as they are compared; `None` for what is no host.
pub fn host(text: &str) -> Option<(String, Option<u16>)> {
    told(Authority::parse(text))
}

/// Returns the same of an `Origin`.
pub fn origin(text: &str) -> Option<(String, Option<u16>)> {
    told(Authority::parse_origin(text))
}

fn told(authority: Option<Authority>) -> Option<(String, Option<u16>)> {
    let authority = authority?;
    let again = Authority::parse(&authority.to_string());
    assert_eq!(again.as_ref(), Some(&authority), "parsed as it is written");
    Some((authority.host.to_string(), authority.port))
}

/// Returns whether somebody who dialled `local` may ask for this host.
pub fn allows(configured: &[String], text: &str, local: SocketAddr) -> bool {
    let peer = Peer::Tcp {
        remote: SocketAddr::from(([192, 0, 2, 9], 50_000)),
        local,
    };
    let asked = Authority::parse(text);
    let hosts = Hosts::new(configured);
    matches!((asked, hosts), (Some(asked), Ok(hosts)) if hosts.allow(&asked, &peer))
}

/// Returns the bytes that a `Range` header asks for, of a stream of which `stored` are there.
pub fn range(header: &str, stored: u64) -> Option<(u64, u64)> {
    range::parse(header)?.within(stored)
}

/// What came of a peer's bytes on a new connection.
#[derive(Debug, Default)]
pub struct Spoken {
    /// What it was answered, by HTTP.
    pub answer: Vec<u8>,
    /// How many frames of the WebSocket were read behind an upgrade.
    pub frames: usize,
}

/// Speaks HTTP with a peer that says these bytes, so many at a time, and waits; `/ws` answers every
/// request. Behind an upgrade the frames of the WebSocket are read.
///
/// # Panics
/// If something is read that a node's session would not expect.
pub fn speak(bytes: &[u8], at_a_time: usize) -> Spoken {
    let wire = Wire(Arc::new(Mutex::new(Bytewise {
        rest: Bytes::copy_from_slice(bytes),
        at_a_time: at_a_time.max(1),
        answer: Vec::new(),
    })));
    let upgrade = Arc::new(Mutex::new(None::<OnUpgrade>));
    let asked = Arc::clone(&upgrade);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answer = knock(request.map(Body::new), &asked);
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let connection = serve::reader(Peer::Unix { uid: 0, pid: None })
        .serve_connection(wire.clone(), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut context = Context::from_waker(Waker::noop());
    // All bytes are there: it goes on as long as some are read or written.
    let mut before = None;
    while connection.as_mut().poll(&mut context).is_pending() {
        let now = Some(wire.progress());
        if before == now {
            break;
        }
        before = now;
    }
    let upgraded = upgrade.lock().ok().and_then(|mut upgrade| upgrade.take());
    let upgraded = upgraded.and_then(futures_util::FutureExt::now_or_never);
    let frames = upgraded.and_then(Result::ok).and_then(|upgraded| {
        let mut socket = socket_on(upgraded).now_or_never()?;
        Some(count_frames(&mut socket))
    });
    Spoken {
        answer: std::mem::take(&mut wire.lock().answer),
        frames: frames.unwrap_or(0),
    }
}

fn knock(mut request: Request, upgrade: &Mutex<Option<OnUpgrade>>) -> Response {
    match Knock::read(&request) {
        Ok(knock) => {
            let offered = &knock.negotiated.offered;
            assert!(offered.is_ascii() && offered.len() <= 8 * 65);
            if let Ok(mut upgrade) = upgrade.lock() {
                *upgrade = Some(hyper::upgrade::on(&mut request));
            }
            knock.switching()
        }
        Err(why) => turned_away(why, &Prefix::default()),
    }
}

fn count_frames(socket: &mut Socket) -> usize {
    let mut frames = 0;
    while let Some(Some(Ok(message))) = socket.next().now_or_never() {
        frames += 1;
        if let Message::Binary(bytes) = message {
            assert!(bytes.len() <= FRAME_BYTES_MAX);
        }
        if frames > 1024 {
            break;
        }
    }
    frames
}

/// A peer that has said all that it will ever say.
#[derive(Clone)]
struct Wire(Arc<Mutex<Bytewise>>);

struct Bytewise {
    rest: Bytes,
    at_a_time: usize,
    answer: Vec<u8>,
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, Bytewise> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is left to read, and what was written.
    fn progress(&self) -> (usize, usize) {
        let wire = self.lock();
        (wire.rest.len(), wire.answer.len())
    }
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut room: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = self.lock();
        let length = wire.rest.len().min(wire.at_a_time).min(room.remaining());
        if length == 0 {
            return Poll::Pending;
        }
        room.put_slice(&wire.rest.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().answer.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: gw\r\nconnection: upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        sec-websocket-protocol: moltis.node.v1\r\n\r\n";

    #[test]
    fn a_node_is_let_in_and_its_frames_are_read() {
        for at_a_time in [1, 7, 4096] {
            // A binary frame of two bytes, masked by zeros (RFC 6455, 5.2).
            let said = [UPGRADE.as_bytes(), &[0x82, 0x82, 0, 0, 0, 0, 1, 2]].concat();
            let spoken = speak(&said, at_a_time);
            let answer = String::from_utf8_lossy(&spoken.answer).into_owned();
            assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
            assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
            assert_eq!(spoken.frames, 1);
        }
    }

    #[test]
    fn a_browser_and_a_stray_request_are_not() {
        for (extra, status) in [
            ("origin: http://gw\r\n", 403),
            ("content-length: 0\r\n", 426),
        ] {
            let said = UPGRADE.replacen("host:", &format!("{extra}host:"), 1);
            let spoken = speak(said.as_bytes(), 4096);
            let answer = String::from_utf8_lossy(&spoken.answer).into_owned();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
        }
    }

    #[test]
    fn a_key_is_sixteen_bytes_in_base64() {
        for key in [
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZT09",
            "dGhlMH!hbXBsZSBub25jZQ==",
        ] {
            let said = UPGRADE.replacen("dGhlIHNhbXBsZSBub25jZQ==", key, 1);
            let spoken = speak(said.as_bytes(), 4096);
            let answer = String::from_utf8_lossy(&spoken.answer).into_owned();
            assert!(answer.starts_with("HTTP/1.1 426 "), "{key}: {answer}");
        }
    }

    #[tokio::test]
    async fn bodies_and_queries_are_read_as_handlers_read_them() {
        let [(_, start), ..] = BODIES;
        assert!(start("application/json", br#"{"argv":["true"]}"#));
        assert!(!start("text/plain", br#"{"argv":["true"]}"#));
        let (_, run) = BODIES[BODIES.len() - 1];
        assert!(run("application/json", br#"{"command":"true"}"#));
        assert!(!run("application/json", b"{}"));
        let [(_, query), ..] = QUERIES;
        assert!(query("wait=true"));
        assert!(!query("wait=maybe"));
    }

    #[test]
    fn hosts_and_ranges_are_read() {
        let local = SocketAddr::from(([127, 0, 0, 1], 9090));
        assert!(allows(&[], "localhost:9090", local));
        assert!(!allows(&[], "evil.example:9090", local));
        assert_eq!(origin("https://GW"), Some(("gw".to_owned(), Some(443))));
        assert_eq!(host("gw:1"), Some(("gw".to_owned(), Some(1))));
        assert_eq!(range("bytes=1-", 3), Some((1, 3)));
    }
}
