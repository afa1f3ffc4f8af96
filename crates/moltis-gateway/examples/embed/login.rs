//! The login of this program, and how the gateway hears of it.

use axum::Form;
use axum::extract::{Request, State};
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use moltis_gateway::{Principal, Vouched};
use serde::Deserialize;

use crate::Portal;

/// The cookie that holds a session's secret.
const COOKIE_NAME: &str = "workshop";

/// What the form sends.
#[derive(Deserialize)]
pub(crate) struct Credentials {
    name: String,
    password: String,
}

/// Around the gateway: says on whose behalf a request comes. Who is not logged in here may still
/// come with an API token, or be a node; the gateway decides.
pub(crate) async fn vouch(
    State(portal): State<Portal>,
    mut request: Request,
    next: Next,
) -> Response {
    let secret = session_of(request.headers());
    if let Some(user) = secret.and_then(|secret| portal.sessions.user(&secret)) {
        let vouched = Vouched(Principal::User(user));
        request.extensions_mut().insert(vouched);
    }
    next.run(request).await
}

/// Around pages of our own: who is not logged in is sent to the form.
pub(crate) async fn required(
    State(portal): State<Portal>,
    mut request: Request,
    next: Next,
) -> Response {
    let secret = session_of(request.headers());
    match secret.and_then(|secret| portal.sessions.user(&secret)) {
        Some(user) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        None => Redirect::to("/login").into_response(),
    }
}

/// `GET /login`
pub(crate) async fn form() -> Html<&'static str> {
    Html(
        "<!doctype html><title>Workshop</title><form method=post>\
         <input name=name placeholder=Name> <input name=password type=password> \
         <button>Log in</button></form>",
    )
}

/// `POST /login`
pub(crate) async fn log_in(
    State(portal): State<Portal>,
    Form(credentials): Form<Credentials>,
) -> Response {
    let Credentials { name, password } = credentials;
    match portal.sessions.begin(&name, &password) {
        Some(secret) => with_cookie(&secret, Redirect::to("/")),
        None => (StatusCode::FORBIDDEN, "name or password is wrong\n").into_response(),
    }
}

/// `POST /logout`
pub(crate) async fn log_out(State(portal): State<Portal>, headers: HeaderMap) -> Response {
    if let Some(secret) = session_of(&headers) {
        portal.sessions.end(&secret);
    }
    with_cookie("", Redirect::to("/login"))
}

/// A page of another site can neither read this cookie nor have it sent.
fn with_cookie(secret: &str, answer: Redirect) -> Response {
    let cookie = format!("{COOKIE_NAME}={secret}; HttpOnly; SameSite=Strict; Path=/");
    ([(SET_COOKIE, cookie)], answer).into_response()
}

fn session_of(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter();
    let mut pairs = cookies
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, secret) = pairs.find(|(name, _)| *name == COOKIE_NAME)?;
    Some(secret.to_owned())
}
