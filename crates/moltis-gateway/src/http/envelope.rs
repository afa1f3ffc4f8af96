//! What every answer wears: a request id, headers that keep a browser careful, and the body of a
//! failure. The outermost layer of the router; panics of handlers end here as a 500.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{MatchedPath, NestedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::ApiState;
use super::error::{ApiError, without_tokens};
use crate::api::REQUEST_ID_HEADER;
use crate::api::problem::{Code, Problem};

/// No other site embeds an answer.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// No other site keeps hold of the window that shows one.
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// The policy of an answer that is no page.
const NOTHING_RUNS: &str = "default-src 'none'; frame-ancestors 'none'";

/// Runs the request under its id and finishes the answer.
pub(super) async fn wrap(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let (id, since) = (state.next_request_id(), Instant::now());
    let (method, route) = (request.method().clone(), route_of(&request));
    // Somebody may have put a token into the path.
    let path = without_tokens(request.uri().path().to_owned());
    let what = format!("{} {path}", request.method());
    let span = tracing::debug_span!("request", request.id = %id);
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = answer
        .instrument(span)
        .await
        .unwrap_or_else(|panic| on_panic(&*panic));
    state.requests().note(
        &method,
        route.as_deref(),
        response.status(),
        since.elapsed(),
    );
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() {
        log(&error, &id, &what);
        write(&mut response, &error.problem(id.clone()));
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(HeaderName::from_static(REQUEST_ID_HEADER), id);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
    // What is no page of ours never becomes one, whatever a command has printed.
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(NOTHING_RUNS));
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Returns the template of the route that answers, without the prefix that an embedder gave it.
fn route_of(request: &Request) -> Option<String> {
    let extensions = request.extensions();
    let route = extensions.get::<MatchedPath>()?.as_str();
    let prefix = extensions.get::<NestedPath>().map(NestedPath::as_str);
    let own = prefix.and_then(|prefix| route.strip_prefix(prefix.trim_end_matches('/')));
    Some(own.unwrap_or(route).to_owned())
}

/// Turns a handler's panic into a failure of ours.
fn on_panic(panic: &(dyn Any + Send)) -> Response {
    let words = panic
        .downcast_ref::<&'static str>()
        .map(|words| (*words).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no words".to_owned());
    ApiError::internal("answer: a part of it panicked", words).into_response()
}

fn log(error: &ApiError, id: &str, what: &str) {
    let problem = error.problem(String::new());
    let (code, detail, error) = (problem.code, problem.detail, error.chain());
    if code == Code::Internal {
        tracing::error!(request.id = id, %code, error, "{what}: {detail}");
    } else {
        tracing::debug!(request.id = id, %code, error, "{what}: {detail}");
    }
}

fn write(response: &mut Response, problem: &Problem) {
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    if let Some(seconds) = problem.retry_after_seconds {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if problem.code == Code::Unauthenticated {
        headers.insert(
            WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"moltis\""),
        );
    }
    let body = serde_json::to_vec(problem).expect("a problem has string keys only");
    headers.insert(axum::http::header::CONTENT_LENGTH, body.len().into());
    *response.body_mut() = body.into();
}
