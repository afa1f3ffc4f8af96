//! Everybody who may ask.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request};
use moltis_gateway::User;
use moltis_gateway::api::tokens::Scope;
use serde_json::json;

use super::transports::{House, Transport, Way};
use crate::client::request;

/// Somebody, by what their requests show.
pub(super) struct Principal {
    name: &'static str,
    headers: Vec<(&'static str, String)>,
    query: Option<String>,
    /// The scope of the token that is shown, where it is a good one.
    scope: Option<&'static str>,
    /// The scopes of the user that an embedder takes it for.
    login: Option<&'static [&'static str]>,
    is_another_site: bool,
}

/// The user whom every embedder here knows.
const USER: &str = "alice";

/// Users with one scope.
const EACH: &str = "user";

/// The cookie by which a user shows its scopes, one between any two commas. An embedder that has users
/// looks closer.
const LOGIN: &str = "login=";

/// Returns the user that an embedder takes a request to come from.
pub(super) fn logged_in(headers: &HeaderMap) -> Option<User> {
    let cookie = headers.get(COOKIE)?.to_str().ok()?;
    let scopes = cookie.strip_prefix(LOGIN)?.split_terminator(',');
    let scopes: Vec<Scope> = scopes.map(|scope| scope.parse().unwrap()).collect();
    Some(User::new(USER, scopes).unwrap())
}

/// Every scope that a token may have.
static SCOPES: [&str; 12] = [
    "nodes:read",
    "nodes:admin",
    "runs:read",
    "runs:write",
    "chats",
    "mcp",
    "ssh:admin",
    "vault:admin",
    "audit:read",
    "metrics",
    "tokens:admin",
    "admin",
];

impl Principal {
    /// Returns everybody.
    pub(super) async fn all(house: &House) -> Vec<Self> {
        let mut all = vec![
            Self::new("nobody"),
            Self::new("basic").with("authorization", "Basic bW9sdGlzOm1vbHRpcw=="),
            Self::new("empty").with("authorization", "Bearer "),
            Self::new("malformed").with("authorization", "Bearer hunter2"),
            Self::new("unknown").bearer(&format!("moltis_{}", "A".repeat(43))),
            Self::new("cookie").with("cookie", "sid=admin; token=admin"),
            // What a node sends before it has proved anything.
            Self::new("node")
                .with("connection", "upgrade")
                .with("upgrade", "websocket")
                .with("sec-websocket-version", "13")
                .with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .with("sec-websocket-protocol", "moltis.node.v1"),
            Self::new("proxied")
                .with("x-forwarded-for", "127.0.0.1")
                .with("forwarded", "for=127.0.0.1;proto=https")
                .with("x-forwarded-proto", "https"),
        ];
        let mut owner = house.way(Transport::UnixSocket);
        let brief = make(&mut owner, "brief", "admin").await;
        let gone = make(&mut owner, "gone", "admin").await;
        house.later();
        revoke(&mut owner, "gone").await;
        all.push(Self::new("expired").bearer(&brief));
        all.push(Self::new("revoked").bearer(&gone));
        for scope in SCOPES {
            let token = make(&mut owner, scope, scope).await;
            all.push(Self::new(scope).bearer(&token).may(scope));
        }
        let mighty = make(&mut owner, "mighty", "admin").await;
        let mut twice = Self::new("twice").bearer(&mighty).bearer(&mighty);
        twice.scope = None;
        all.push(twice);
        all.push(Self::in_the_query("token in the query", &mighty));
        for (name, header, value) in [
            ("foreign origin", "origin", "http://evil.example"),
            ("null origin", "origin", "null"),
            ("cross-site", "sec-fetch-site", "cross-site"),
            ("same-site", "sec-fetch-site", "same-site"),
        ] {
            let browser = Self::new(name).with(header, value);
            all.push(browser.bearer(&mighty).may("admin").of_another_site());
        }
        for scope in SCOPES.chunks(1) {
            all.push(Self::user(EACH, scope));
        }
        all.push(Self::user("user of several", &["nodes:read", "runs:write"]));
        all.push(Self::user("user of nothing", &[]));
        // An embedder's word goes before what a request shows, be it less or more.
        all.push(Self::user("user with a wrong token", &["admin"]).bearer("hunter2"));
        all.push(
            Self::user("user with a mighty token", &[])
                .bearer(&mighty)
                .may("admin"),
        );
        all.push(
            Self::user("user on another site", &["admin"])
                .with("origin", "http://evil.example")
                .of_another_site(),
        );
        all
    }

    fn new(name: &'static str) -> Self {
        Self {
            name,
            headers: Vec::new(),
            query: None,
            scope: None,
            login: None,
            is_another_site: false,
        }
    }

    fn user(name: &'static str, scopes: &'static [&'static str]) -> Self {
        let cookie = format!("{LOGIN}{}", scopes.join(","));
        let mut user = Self::new(name).with("cookie", &cookie);
        user.login = Some(scopes);
        user
    }

    fn with(mut self, header: &'static str, value: &str) -> Self {
        self.headers.push((header, value.to_owned()));
        self
    }

    fn bearer(self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }

    fn may(mut self, scope: &'static str) -> Self {
        self.scope = Some(scope);
        self
    }

    fn of_another_site(mut self) -> Self {
        self.is_another_site = true;
        self
    }

    fn in_the_query(name: &'static str, token: &str) -> Self {
        Self {
            query: Some(format!("token={token}&access_token={token}")),
            ..Self::new(name)
        }
    }

    /// Returns whether it has something to try over a transport: where nobody looks at a login, one
    /// user with a single scope is as good as another.
    pub(super) fn comes_by(&self, transport: Transport) -> bool {
        transport.has_a_login() || self.name != EACH || self.login == Some(&["admin"])
    }

    /// Returns what it is called here.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the scope that its good token has.
    pub(super) fn scope(&self) -> Option<&'static str> {
        self.scope
    }

    /// Returns the scopes that it has where an embedder says who asks.
    pub(super) fn login(&self) -> Option<&'static [&'static str]> {
        self.login
    }

    /// Returns as whom it is refused that has too few scopes.
    pub(super) fn called(&self, has_a_login: bool) -> String {
        match self.login {
            Some(_) if has_a_login => format!("`user:{USER}`"),
            _ => format!("`token:{}`", self.name),
        }
    }

    /// Returns whether it is a page of another site, in somebody's browser.
    pub(super) fn is_another_site(&self) -> bool {
        self.is_another_site
    }

    /// Returns whether it shows something where a token belongs.
    pub(super) fn shows_a_token(&self) -> bool {
        self.headers
            .iter()
            .any(|(name, _)| *name == "authorization")
    }

    /// Returns whether it asks for the protocol of nodes.
    pub(super) fn knocks_as_a_node(&self) -> bool {
        self.headers.iter().any(|(name, _)| *name == "upgrade")
    }

    /// Puts what it shows into a request.
    pub(super) fn show(&self, asked: &mut Request<Full<Bytes>>) {
        for (name, value) in &self.headers {
            let name = HeaderName::from_static(name);
            asked.headers_mut().append(name, value.parse().unwrap());
        }
        if let Some(query) = &self.query {
            *asked.uri_mut() = format!("{}?{query}", asked.uri()).parse().unwrap();
        }
    }
}

impl std::fmt::Debug for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.name, self.login.unwrap_or_default())
    }
}

/// Makes a token that works for a minute.
async fn make(owner: &mut Way<'_>, name: &str, scope: &str) -> String {
    let body = json!({"name": name, "scopes": [scope], "expires_in_seconds": 60});
    let mut asked = request(Method::POST, "tokens", body.to_string());
    let json = HeaderValue::from_static("application/json");
    asked.headers_mut().insert("content-type", json);
    let answer = owner.ask(asked).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.value()["token"].as_str().unwrap().to_owned()
}

async fn revoke(owner: &mut Way<'_>, name: &str) {
    let asked = request(Method::DELETE, &format!("tokens/{name}"), "");
    assert!(!asked.headers().contains_key(AUTHORIZATION));
    let answer = owner.ask(asked).await;
    assert_eq!(answer.status, 204, "{answer:?}");
}
