//! What is checked before a route is looked up: would this be said in the clear to other machines,
//! is the host ours, does a change come from our own pages.
//!
//! `/ws` and `/healthz` pass: nodes prove themselves by key, and health is no secret.

use std::net::SocketAddr;

use axum::extract::{OriginalUri, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, LOCATION, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::error::{ApiError, ApiResult};
use super::host::Authority;
use super::peer::{Peer, Security};
use super::{ApiState, forwarded};
use crate::api::PREFIX as API_PREFIX;
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
    let peer = peer_of(&request);
    if let Err(error) = check_transport(&state, &peer) {
        return to_https(&state, &peer, &request).unwrap_or_else(|| error.into_response());
    }
    match admit(&state, &peer, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn admit(state: &ApiState, peer: &Peer, request: &Request) -> ApiResult<()> {
    check_host(state, peer, request)?;
    if matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    ) {
        return Ok(());
    }
    check_origin(state, peer, request.headers())
}

/// Returns who sent this request.
pub(super) fn peer_of(request: &Request) -> Peer {
    Peer::of(request.extensions())
}

/// What a proxy tells can close the door, and opens none: TLS outside of it says nothing of the way
/// from it to us.
fn check_transport(state: &ApiState, peer: &Peer) -> ApiResult<()> {
    if state.door().insecure_http {
        return Ok(());
    }
    let (local, in_the_clear) = match *peer {
        Peer::Unix { .. } | Peer::Remote(_) | Peer::Unknown | Peer::Tls { .. } => return Ok(()),
        Peer::Tcp { local, .. } => (local, !is_loopback(local)),
        Peer::Proxied(proxied) => {
            let hop = proxied.hop == Security::Plain && !is_loopback(proxied.local);
            if !hop && proxied.outside == Some(Security::Plain) {
                return Err(clear_before(proxied.proxy));
            }
            (proxied.local, hop)
        }
    };
    if !in_the_clear {
        return Ok(());
    }
    let port = local.port();
    let detail = format!(
        "{local} is not a loopback address and this connection has no TLS, so it answers /ws and \
         /healthz only: passwords, tokens and output would cross the network in the clear"
    );
    let tunnel = format!(
        "an SSH tunnel to an address of loopback that the gateway listens on (ssh -L \
         {port}:127.0.0.1:{port} <this machine>, then http://127.0.0.1:{port})"
    );
    let ways = match state.tls() {
        Some(_) => format!("ask by https:// on the same port, or use {tunnel}"),
        None => format!(
            "start the gateway with --tls-cert <file> --tls-key <file>, or with --tls-generate; or use \
             {tunnel}; or, where nobody else is on the network, start it with --insecure-http"
        ),
    };
    Err(ApiError::new(Code::TlsRequired, detail).hint(ways))
}

fn clear_before(proxy: SocketAddr) -> ApiError {
    let detail = format!(
        "the proxy at {} was asked by http://: passwords, tokens and output would cross the network \
         in the clear",
        proxy.ip()
    );
    ApiError::new(Code::TlsRequired, detail)
        .hint("ask the proxy by https://, and let it redirect who does not")
}

fn is_loopback(local: SocketAddr) -> bool {
    local.ip().to_canonical().is_loopback()
}

/// Sends a browser that asked for a page in the clear to the same page by TLS, where there is TLS on
/// this port. A program is told, and so is whoever has shown a token: what crossed the network in the
/// clear would be sent twice, and nobody would notice.
fn to_https(state: &ApiState, peer: &Peer, request: &Request) -> Option<Response> {
    let asks = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = request.extensions().get::<OriginalUri>();
    let path = path.map_or(request.uri(), |OriginalUri(uri)| uri);
    let path = path.path_and_query()?.as_str();
    let asks = asks && !request.headers().contains_key(AUTHORIZATION);
    let is_page = asks && !path.contains(API_PREFIX) && !path.starts_with("//");
    let is_direct = matches!(peer, Peer::Tcp { .. });
    if !is_page || !is_direct || state.tls().is_none() {
        return None;
    }
    check_host(state, peer, request).ok()?;
    let host = request.headers().get(HOST)?.to_str().ok()?;
    let location = HeaderValue::try_from(format!("https://{host}{path}")).ok()?;
    let status = StatusCode::TEMPORARY_REDIRECT;
    Some((status, [(LOCATION, location)]).into_response())
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
    let hosts = &state.door().hosts;
    let asked = Authority::parse(host).filter(|asked| hosts.allow(asked, peer));
    // A request line may name a host too; it then must be the same one.
    let line = request.uri().authority();
    let is_same = line.is_none_or(|line| Authority::parse(line.as_str()) == asked);
    // What a proxy was asked for is what the client's browser believes to talk to.
    let outside = forwarded::hosts(peer, request.headers());
    let foreign = outside.iter().any(|outside| {
        let ours = outside
            .as_ref()
            .is_some_and(|outside| hosts.allow(outside, peer));
        !ours
    });
    if asked.is_some() && is_same && !foreign {
        return Ok(());
    }
    let shown = |host: &str| -> String {
        let host: String = host.chars().take(300).collect();
        host.escape_debug().to_string()
    };
    let named = match line {
        Some(line) if asked.is_some() && !is_same => {
            let detail = format!(
                "the request line asks for the host `{}`, its Host header for `{}`",
                shown(line.as_str()),
                shown(host)
            );
            return Err(ApiError::new(Code::WrongHost, detail)
                .hint("name one host in both, or a path alone in the request line"));
        }
        _ if asked.is_some() => {
            let of_proxy = request.headers().get("x-forwarded-host");
            of_proxy.and_then(|host| host.to_str().ok()).unwrap_or("?")
        }
        _ => host,
    };
    let detail = format!("the host `{}` is not served here", shown(named));
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
