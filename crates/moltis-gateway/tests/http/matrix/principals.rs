//! Everybody who may ask.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::{Method, Request};
use serde_json::json;

use super::transports::{House, Transport};
use crate::client::request;

/// Somebody, by what their requests show.
pub(super) struct Principal {
    name: &'static str,
    headers: Vec<(&'static str, String)>,
    query: Option<String>,
    /// The scope of the token that is shown, where it is a good one.
    scope: Option<&'static str>,
    is_another_site: bool,
}

/// Every scope that a token may have.
const SCOPES: [&str; 12] = [
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
        let brief = make(house, "brief", "admin").await;
        let gone = make(house, "gone", "admin").await;
        house.later();
        revoke(house, "gone").await;
        all.push(Self::new("expired").bearer(&brief));
        all.push(Self::new("revoked").bearer(&gone));
        for scope in SCOPES {
            let token = make(house, scope, scope).await;
            all.push(Self::new(scope).bearer(&token).may(scope));
        }
        let mighty = make(house, "mighty", "admin").await;
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
        all
    }

    fn new(name: &'static str) -> Self {
        Self {
            name,
            headers: Vec::new(),
            query: None,
            scope: None,
            is_another_site: false,
        }
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

    /// Returns what it is called here.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the scope that its good token has.
    pub(super) fn scope(&self) -> Option<&'static str> {
        self.scope
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
        f.write_str(self.name)
    }
}

/// Makes a token that works for a minute.
async fn make(house: &House, name: &str, scope: &str) -> String {
    let body = json!({"name": name, "scopes": [scope], "expires_in_seconds": 60});
    let mut asked = request(Method::POST, "tokens", body.to_string());
    let json = HeaderValue::from_static("application/json");
    asked.headers_mut().insert("content-type", json);
    let answer = house.ask(Transport::UnixSocket, asked).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.value()["token"].as_str().unwrap().to_owned()
}

async fn revoke(house: &House, name: &str) {
    let asked = request(Method::DELETE, &format!("tokens/{name}"), "");
    assert!(!asked.headers().contains_key(AUTHORIZATION));
    let answer = house.ask(Transport::UnixSocket, asked).await;
    assert_eq!(answer.status, 204, "{answer:?}");
}
