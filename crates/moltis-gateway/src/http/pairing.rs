//! `pairing`: the window, the requests that wait, and the line to type on another machine.

use std::time::Duration;

use axum::extract::State;
use axum::http::header::HOST;
use axum::http::{HeaderMap, StatusCode};
use moltis_proto::NODE_ADD;
use moltis_proto::limits::WINDOW_TIME;

use super::ApiState;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{Id, Json, Prefix, check_beginning};
use super::host::{Authority, Host};
use super::join::{Asked, Scheme, Ways, Whose};
use super::listen::lan_address;
use super::peer::{Peer, Security};
use super::tls::Tls;
use super::{forwarded, join, nodes};
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
    check_beginning("request", &id)?;
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
    check_beginning("request", &id)?;
    let id = desk.pairing().find_request(&id)?;
    desk.pairing().reject(id, caller.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET pairing/command`
pub(super) async fn command(
    State(desk): State<ApiState>,
    caller: Caller,
    prefix: Prefix,
    headers: HeaderMap,
) -> ApiResult<axum::Json<PairingCommand>> {
    let tls = desk.tls();
    let covers = |host: &Host| tls.is_some_and(|tls| tls.covers(&host.to_string()));
    let ways = Ways {
        listening: &desk.addresses(),
        lan: lan_address(),
        hosts: desk.door().hosts.iter().cloned().collect(),
        covers: tls.map(|_| &covers as &dyn Fn(&Host) -> bool),
    };
    let join = join::choose(asked(&caller.peer, &headers).as_ref(), &ways).ok_or_else(|| {
        ApiError::new(
            Code::NotFound,
            "the gateway listens on no address that a node could dial",
        )
        .hint("start it with --listen 0.0.0.0:9090")
    })?;
    let url = join.url(&prefix);
    let key = desk.fingerprint();
    let mut command = format!("{NODE_ADD} --host {url} --gateway-key {key}");
    let own = tls.map(Tls::status).filter(|tls| tls.is_own);
    let mut warnings: Vec<String> = join.warning.into_iter().collect();
    if let Some(own) = own.filter(|_| join.scheme == Scheme::Wss && join.whose == Whose::Ours) {
        let path = own.certificate.path;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        command = format!("{command} --tls-ca {file}");
        warnings.push(format!(
            "the gateway made its certificate itself: copy {} to that machine first",
            path.display()
        ));
    }
    Ok(axum::Json(PairingCommand {
        command,
        url,
        gateway_fingerprint: key.to_string(),
        warning: (!warnings.is_empty()).then(|| warnings.join("; ")),
    }))
}

/// Returns the address by which somebody asks: that of the outermost proxy, where there are some.
fn asked(peer: &Peer, headers: &HeaderMap) -> Option<Asked> {
    let host = || Authority::parse(headers.get(HOST)?.to_str().ok()?);
    let Peer::Proxied(proxied) = peer else {
        let authority = host()?;
        return Some(Asked {
            authority,
            of_proxy: None,
        });
    };
    // Of several words none is better than the others.
    let authority = match <[_; 1]>::try_from(forwarded::hosts(peer, headers)) {
        Ok([outside]) => outside?,
        Err(_) => host()?,
    };
    Some(Asked {
        authority,
        of_proxy: Some(match proxied.outside {
            Some(Security::Tls) => Scheme::Wss,
            Some(Security::Plain) | None => Scheme::Ws,
        }),
    })
}
