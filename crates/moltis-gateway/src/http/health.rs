//! Answers that need nobody's name: is it alive, is it ready, what is served here, and what is not.

use axum::extract::{OriginalUri, State};
use axum::http::{Method, StatusCode};

use super::ApiState;
use super::error::ApiError;
use super::extract::Prefix;
use crate::api::Health;
use crate::api::problem::Code;

/// `/healthz`: the process answers.
pub(super) async fn healthz() -> axum::Json<Health> {
    axum::Json(Health {
        ok: true,
        problem: None,
    })
}

/// `/readyz`: it can do its work.
pub(super) async fn readyz(State(state): State<ApiState>) -> (StatusCode, axum::Json<Health>) {
    let store = state.store().ready().await.err();
    let output = state.outputs().trouble().borrow().clone();
    let sync = state.outputs().sync_trouble().borrow().clone();
    let problems: Vec<String> = [
        store.map(|error| error.to_string()),
        output.map(|trouble| trouble.to_string()),
        sync.map(|trouble| trouble.to_string()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let ok = problems.is_empty();
    let status = if ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let problem = (!ok).then(|| problems.join("; "));
    (status, axum::Json(Health { ok, problem }))
}

/// `/`: what is served here.
pub(super) async fn front_page(prefix: Prefix) -> String {
    format!(
        "This is a Moltis gateway, version {}.\n\n\
         \x20 {prefix}/api/v1   the API: bearer tokens, made by `moltis token create`\n\
         \x20 {prefix}/ws       where nodes connect: `moltis node add` on a machine, as `moltis node pairing enable` prints it\n\
         \x20 {prefix}/healthz  the process lives\n\
         \x20 {prefix}/readyz   it can do its work\n\n\
         On this machine `moltis` talks to it by its Unix socket and needs no token.\n",
        env!("CARGO_PKG_VERSION"),
    )
}

/// Everything that is no route.
pub(super) async fn no_such_route(prefix: Prefix, OriginalUri(uri): OriginalUri) -> ApiError {
    ApiError::new(
        Code::NotFound,
        format!("there is no route `{}`", uri.path()),
    )
    .hint(format!("the API begins at {prefix}/api/v1"))
}

/// A route with a method that it does not have.
pub(super) async fn no_such_method(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    ApiError::new(
        Code::MethodNotAllowed,
        format!("`{}` does not take {method}", uri.path()),
    )
    .hint("the Allow header of this answer lists what it takes")
}
