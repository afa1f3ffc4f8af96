//! `pairing`: the window, the requests that wait, and the line to type on another machine.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use axum::extract::State;
use axum::http::header::HOST;
use axum::http::{HeaderMap, StatusCode};
use moltis_proto::NODE_ADD;
use moltis_proto::limits::WINDOW_TIME;

use super::ApiState;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{Id, Json};
use super::host::Authority;
use super::{join, nodes};
use crate::api::nodes::NodeDetail;
use crate::api::pairing::{Approve, PairingCommand, PairingRequest, PairingStatus, SetPairing};
use crate::api::problem::Code;
use crate::api::{Empty, List};

/// `GET pairing`
pub(super) async fn status(State(desk): State<ApiState>) -> axum::Json<PairingStatus> {
    axum::Json(desk.pairing().window().into())
}

/// `PUT pairing`
pub(super) async fn set(
    State(desk): State<ApiState>,
    caller: Caller,
    Json(asked): Json<SetPairing>,
) -> ApiResult<axum::Json<PairingStatus>> {
    match (asked.enabled, asked.for_seconds) {
        (true, seconds) => {
            let time = seconds.map_or(WINDOW_TIME, Duration::from_secs);
            desk.pairing().enable(time, caller.actor()).await?;
        }
        (false, None) => desk.pairing().disable(caller.actor()).await?,
        (false, Some(_)) => {
            return Err(ApiError::invalid(
                "`for_seconds` goes with `enabled: true` only",
            ));
        }
    }
    Ok(status(State(desk)).await)
}

/// `GET pairing/requests`
pub(super) async fn requests(State(desk): State<ApiState>) -> axum::Json<List<PairingRequest>> {
    let waiting = desk.pairing().pending();
    let items: Vec<_> = waiting.into_iter().map(PairingRequest::from).collect();
    axum::Json(items.into())
}

/// `POST pairing/requests/{id}/approve`
pub(super) async fn approve(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Json(seen): Json<Approve>,
) -> ApiResult<axum::Json<NodeDetail>> {
    let id = desk.pairing().find_request(&id)?;
    let approved = desk
        .pairing()
        .approve(id, seen.into(), caller.actor())
        .await?;
    nodes::answer(&desk, approved).await
}

/// `POST pairing/requests/{id}/reject`
pub(super) async fn reject(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Json(Empty {}): Json<Empty>,
) -> ApiResult<StatusCode> {
    let id = desk.pairing().find_request(&id)?;
    desk.pairing().reject(id, caller.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET pairing/command`
pub(super) async fn command(
    State(desk): State<ApiState>,
    headers: HeaderMap,
) -> ApiResult<axum::Json<PairingCommand>> {
    let asked = headers
        .get(HOST)
        .and_then(|host| Authority::parse(host.to_str().ok()?));
    let addresses = desk.addresses();
    let join = join::choose(asked.as_ref(), &addresses, lan_address()).ok_or_else(|| {
        ApiError::new(
            Code::NotFound,
            "the gateway listens on no address that a node could dial",
        )
        .hint("start it with --listen 0.0.0.0:9090")
    })?;
    let url = format!("ws://{}/ws", join.authority);
    let key = desk.fingerprint();
    Ok(axum::Json(PairingCommand {
        command: format!("{NODE_ADD} --host {url} --gateway-key {key}"),
        url,
        gateway_fingerprint: key.to_string(),
        warning: join.warning,
    }))
}

/// Returns the address that this machine uses on its network. Nothing is sent: connecting a UDP
/// socket only asks the kernel for a route.
fn lan_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // TEST-NET-1 (RFC 5737): nobody's address, so the default route answers.
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}
