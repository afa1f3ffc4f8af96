//! What is checked before a route is looked up: does this address speak to strangers in the clear,
//! is the host ours, does a change come from our own pages.
//!
//! `/ws` and `/healthz` pass: nodes prove themselves by key, and health is no secret.

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::ApiState;
use super::error::{ApiError, ApiResult};
use super::host::Authority;
use super::peer::Peer;
use crate::api::problem::Code;

/// Paths that everybody may ask for, by any host.
const OPEN: [&str; 2] = ["/ws", "/healthz"];

/// Returns whether everybody may ask for this path, by any host.
pub(super) fn is_open(path: &str) -> bool {
    OPEN.contains(&path)
}

/// Lets a request in, or says why not.
pub(super) async fn check(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    if is_open(request.uri().path()) {
        return next.run(request).await;
    }
    match admit(&state, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn admit(state: &ApiState, request: &Request) -> ApiResult<()> {
    let peer = peer_of(request);
    check_transport(state, &peer)?;
    check_host(state, &peer, request)?;
    if matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    ) {
        return Ok(());
    }
    check_origin(state, &peer, request.headers())
}

/// Returns who sent this request.
pub(super) fn peer_of(request: &Request) -> Peer {
    let info = request.extensions().get::<ConnectInfo<Peer>>();
    info.map_or(Peer::Unknown, |ConnectInfo(peer)| *peer)
}

fn check_transport(state: &ApiState, peer: &Peer) -> ApiResult<()> {
    let Some(local) = peer.local() else {
        return Ok(());
    };
    if local.ip().to_canonical().is_loopback() || state.door().insecure_http {
        return Ok(());
    }
    let port = local.port();
    let detail = format!(
        "{local} is not a loopback address and has no TLS, so it answers /ws and /healthz only: \
         passwords, tokens and output would cross the network in the clear"
    );
    // The one way out that this release has; those that follow belong here too.
    Err(ApiError::new(Code::TlsRequired, detail).hint(format!(
        "use an SSH tunnel to an address of loopback that the gateway listens on: \
         ssh -L {port}:127.0.0.1:{port} <this machine>, then http://127.0.0.1:{port}"
    )))
}

fn check_host(state: &ApiState, peer: &Peer, request: &Request) -> ApiResult<()> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(ApiError::new(
            Code::BadRequest,
            "a request needs one Host header",
        ));
    };
    let host = host.to_str().unwrap_or("?");
    let asked = Authority::parse(host).filter(|asked| state.door().hosts.allow(asked, peer));
    // A request line may name a host too; it then must be the same one.
    let line = request
        .uri()
        .authority()
        .map(|line| Authority::parse(line.as_str()));
    if asked.is_some() && line.is_none_or(|line| line == asked) {
        return Ok(());
    }
    let detail = format!("the host `{}` is not served here", host.escape_debug());
    Err(ApiError::new(Code::WrongHost, detail).hint(
        "ask for 127.0.0.1, localhost or an address that the gateway listens on, with its port, or \
         add the name to `hosts` under `[gateway]` in moltis.toml",
    ))
}

/// A browser says where a change comes from; a program says nothing.
fn check_origin(state: &ApiState, peer: &Peer, headers: &HeaderMap) -> ApiResult<()> {
    let cross = || {
        ApiError::new(Code::Csrf, "the request comes from a page of another site")
            .hint("only pages of this gateway, and programs that are no browser, may change things")
    };
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.next() {
        let ours = origin
            .to_str()
            .ok()
            .and_then(Authority::parse_origin)
            .is_some_and(|origin| state.door().hosts.allow(&origin, peer));
        if !ours || origins.next().is_some() {
            return Err(cross());
        }
    }
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(cross()),
    }
}
