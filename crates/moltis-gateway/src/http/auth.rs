//! Who asks: a bearer token, the socket's peer, or whom an embedder vouches for. Every guarded route
//! passes through here once, with the action that it declares in the table of [`super`].

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use tokio::time::Instant;

use super::ApiState;
use super::authority::Authority;
use super::error::{ApiError, ApiResult};
use super::gate::peer_of;
use super::hangup::Hangup;
use super::peer::Peer;
use crate::api::problem::Code;
use crate::api::tokens::{Scope, TOKEN_PREFIX};
use crate::principal::{Action, Denied, Principal, Vouched, authorize};
use crate::store::{TokenHash, TokenRecord};

/// A token's last use is written down this often.
const USE_NOTED_EVERY: Duration = Duration::from_mins(1);

/// Lets a request through to its handler, which finds the [`Principal`] in its extensions.
pub(super) async fn guard(
    State((state, action)): State<(ApiState, Action)>,
    mut request: Request,
    next: Next,
) -> Response {
    let admitted = match action {
        Action::Public => Ok((None, None)),
        _ => match read(&state, &request) {
            Ok(shown) => identify(&state, shown).await,
            Err(error) => Err(error),
        },
    };
    let checked = admitted.and_then(|(who, authority)| {
        authorize(who.as_ref(), action).map_err(|denied| refuse(denied, who.as_ref()))?;
        Ok((who, authority))
    });
    let (who, authority) = match checked {
        Ok(checked) => checked,
        Err(error) => return error.into_response(),
    };
    if let Some(who) = who {
        request.extensions_mut().insert(who);
    }
    match authority {
        None => next.run(request).await,
        Some(authority) => {
            let hangup = Hangup::of(request.extensions());
            authority
                .hold(next.run(request), hangup, state.tasks())
                .await
        }
    }
}

/// What a request shows of who asks, before anybody is asked about it.
enum Shown {
    User(Principal),
    Token { hash: TokenHash, peer: Peer },
}

/// Reads what is shown, or says what is missing. The word of the program that embeds us goes before
/// everything that a request can bring.
fn read(state: &ApiState, request: &Request) -> ApiResult<Shown> {
    if let Some(Vouched(who)) = request.extensions().get() {
        return Ok(Shown::User(who.clone()));
    }
    let peer = peer_of(request);
    if let Peer::Unix { uid, .. } = peer {
        return of_user(state, uid).map(Shown::User);
    }
    match bearer(request.headers()) {
        Ok(Some(token)) => Ok(Shown::Token {
            hash: TokenHash::of(token),
            peer,
        }),
        Ok(None) => Err(unauthenticated("this needs a token, and there is none")),
        Err(error) => Err(throttled(state, &peer, error)),
    }
}

/// Finds out who that is, and how long its word counts; the operator's does not end.
async fn identify(
    state: &ApiState,
    shown: Shown,
) -> ApiResult<(Option<Principal>, Option<Authority>)> {
    let (hash, peer) = match shown {
        Shown::User(principal) => return Ok((Some(principal), None)),
        Shown::Token { hash, peer } => (hash, peer),
    };
    match Authority::of(state.store(), state.clock(), hash).await? {
        Some((token, authority)) => {
            note_use(state, &token, state.clock().now()).await;
            Ok((Some(token.into()), Some(authority)))
        }
        // Unknown, expired and revoked are one answer: none of them tells a guess from a token.
        None => Err(throttled(
            state,
            &peer,
            unauthenticated("this token is not known here, has expired, or was revoked"),
        )),
    }
}

/// Keeps when a token was used, to the minute.
async fn note_use(state: &ApiState, token: &TokenRecord, now: Timestamp) {
    let fresh = token
        .last_used_at
        .is_some_and(|used| now.duration_since(used).unsigned_abs() < USE_NOTED_EVERY);
    if fresh {
        return;
    }
    if let Err(error) = state.store().touch_token(token.id, now).await {
        tracing::debug!(%error, token.id = %token.id, "the use of a token is not noted");
    }
}

fn of_user(state: &ApiState, uid: u32) -> ApiResult<Principal> {
    let owner = state.door().owner_uid;
    if uid == owner || uid == 0 {
        return Ok(Principal::Operator);
    }
    Err(ApiError::new(
        Code::Unauthenticated,
        format!("this socket is for user {owner}, who runs the gateway, and not for user {uid}"),
    )
    .hint("ask over TCP, with a token"))
}

/// Returns the token of an `Authorization` header; `None` where there is no such header.
fn bearer(headers: &HeaderMap) -> ApiResult<Option<&str>> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = all.next() else {
        return Ok(None);
    };
    let malformed = || unauthenticated("the Authorization header is not `Bearer moltis_…`");
    if all.next().is_some() {
        return Err(malformed());
    }
    let value = value.to_str().map_err(|_| malformed())?;
    let (scheme, token) = value.split_once(' ').ok_or_else(malformed)?;
    let sound = scheme.eq_ignore_ascii_case("bearer") && token.trim().starts_with(TOKEN_PREFIX);
    if sound {
        Ok(Some(token.trim()))
    } else {
        Err(malformed())
    }
}

/// Counts a failed token, and answers 429 in place of `error` when there were too many.
fn throttled(state: &ApiState, peer: &Peer, error: ApiError) -> ApiError {
    let Some(source) = peer.source() else {
        return error;
    };
    match state.throttle().fail(source, Instant::now()) {
        Ok(()) => error,
        Err(wait) => {
            let seconds = wait.as_secs() + 1;
            ApiError::new(
                Code::TooMany,
                "too many failed tokens came from this address",
            )
            .hint(format!("try again in {seconds} s"))
            .retry_after(seconds)
        }
    }
}

fn unauthenticated(detail: &str) -> ApiError {
    ApiError::new(Code::Unauthenticated, detail).hint(
        "send `Authorization: Bearer moltis_…`; `moltis token create` makes a token, and at the \
         Unix socket none is needed",
    )
}

pub(super) fn refuse(denied: Denied, who: Option<&Principal>) -> ApiError {
    match denied {
        Denied::Unauthenticated => unauthenticated("this needs a token, and there is none"),
        Denied::ScopeMissing(any_of) => {
            let who = who.map(ToString::to_string).unwrap_or_default();
            let scope = any_of.first().copied().unwrap_or(Scope::Admin);
            let detail = match any_of {
                [_one] => format!("`{who}` lacks the scope `{scope}`, which this needs"),
                several => {
                    let several: Vec<_> =
                        several.iter().map(|scope| format!("`{scope}`")).collect();
                    let several = several.join(", ");
                    format!("`{who}` has none of the scopes {several}, one of which this needs")
                }
            };
            ApiError::new(Code::ScopeMissing, detail).hint(format!(
                "make a token with it: moltis token create --name <name> --scope {scope}"
            ))
        }
    }
}
