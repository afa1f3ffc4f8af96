//! Who may do what, and over which transport: every method of every path, asked by everybody.
//!
//! What is expected stands in [`ROUTES`], written down a second time and read off nothing, so that a
//! route that changes its scope fails here, and a route without a row does too.

mod principals;
mod transports;

use std::collections::BTreeSet;
use std::io::Write as _;

use futures_util::future::join_all;
use http_body_util::Full;
use hyper::{Method, Request};
use moltis_gateway::api::problem::Code;
use serde_json::Value;

use self::principals::Principal;
use self::transports::{House, Transport, Way};
use crate::client::{Answer, request};

/// What a route asks of whoever takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing, on whatever address and by whatever host.
    Nothing,
    /// Nothing, but the site has to be served there.
    Site,
    /// A token with this scope, or to be the owner at the Unix socket.
    Scope(&'static str),
    /// The same with any of these.
    AnyScope(&'static [&'static str]),
}

use Needs::{AnyScope, Nothing, Scope, Site};

/// Every route, and what it needs.
#[rustfmt::skip]
const ROUTES: &[(&str, &str, Needs)] = &[
    ("GET",    "/healthz",                              Nothing),
    ("GET",    "/",                                     Site),
    ("GET",    "/readyz",                               Site),
    #[cfg(feature = "metrics")]
    ("GET",    "/metrics",                              Scope("metrics")),
    ("GET",    "/api/v1/openapi.json",                  Site),
    ("GET",    "/api/v1/gateway",                       Scope("nodes:read")),
    ("GET",    "/api/v1/nodes",                         Scope("nodes:read")),
    ("GET",    "/api/v1/nodes/{id}",                    Scope("nodes:read")),
    ("PATCH",  "/api/v1/nodes/{id}",                    Scope("nodes:admin")),
    ("DELETE", "/api/v1/nodes/{id}",                    Scope("nodes:admin")),
    ("POST",   "/api/v1/nodes/{id}/revoke",             Scope("nodes:admin")),
    ("GET",    "/api/v1/pairing",                       Scope("nodes:admin")),
    ("PUT",    "/api/v1/pairing",                       Scope("nodes:admin")),
    ("GET",    "/api/v1/pairing/command",               Scope("nodes:admin")),
    ("GET",    "/api/v1/pairing/requests",              Scope("nodes:admin")),
    ("POST",   "/api/v1/pairing/requests/{id}/approve", Scope("nodes:admin")),
    ("POST",   "/api/v1/pairing/requests/{id}/reject",  Scope("nodes:admin")),
    ("GET",    "/api/v1/runs",                          Scope("runs:read")),
    ("POST",   "/api/v1/runs",                          Scope("runs:write")),
    ("GET",    "/api/v1/runs/{id}",                     Scope("runs:read")),
    ("GET",    "/api/v1/runs/{id}/output",              Scope("runs:read")),
    ("GET",    "/api/v1/runs/{id}/follow",              Scope("runs:read")),
    ("POST",   "/api/v1/runs/{id}/stdin",               Scope("runs:write")),
    ("POST",   "/api/v1/runs/{id}/resize",              Scope("runs:write")),
    ("POST",   "/api/v1/runs/{id}/signal",              Scope("runs:write")),
    ("POST",   "/api/v1/runs/{id}/cancel",              Scope("runs:write")),
    ("POST",   "/api/v1/runs/{id}/claim",               Scope("runs:write")),
    ("GET",    "/api/v1/runs/{id}/events",              Scope("runs:read")),
    ("GET",    "/api/v1/events",                        AnyScope(&["nodes:read", "nodes:admin", "runs:read"])),
    ("GET",    "/api/v1/tokens",                        Scope("tokens:admin")),
    ("POST",   "/api/v1/tokens",                        Scope("tokens:admin")),
    ("DELETE", "/api/v1/tokens/{id}",                   Scope("tokens:admin")),
    ("GET",    "/api/v1/doctor",                        Scope("admin")),
];

/// Everything that somebody may try on a path.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND",
];

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Its handler answers, whatever it says.
    Served,
    /// It is refused before, with one of these codes.
    Refused(&'static [&'static str]),
    /// It is sent to the same page by TLS.
    LedToTls,
}

/// Says what has to become of a request.
fn fate(transport: Transport, who: &Principal, (method, path): (&str, &str), needs: Needs) -> Fate {
    if needs == Nothing {
        return Fate::Served;
    }
    if !transport.serves_the_site() {
        let asks = matches!(method, "GET" | "HEAD") && !who.shows_a_token();
        if transport.leads_to_tls() && asks && !path.starts_with("/api/") {
            return Fate::LedToTls;
        }
        return Fate::Refused(&["tls_required"]);
    }
    if who.is_another_site() && !matches!(method, "GET" | "HEAD") {
        return Fate::Refused(&["csrf"]);
    }
    let scopes = match needs {
        Nothing | Site => return Fate::Served,
        Scope(one) => &[one][..],
        AnyScope(several) => several,
    };
    let with = |theirs: &[&str]| {
        let enough = |scope| scopes.contains(scope) || *scope == "admin";
        if theirs.iter().any(enough) {
            Fate::Served
        } else {
            Fate::Refused(&["scope_missing"])
        }
    };
    if let Some(theirs) = who.login().filter(|_| transport.has_a_login()) {
        return with(theirs);
    }
    // Whatever a token says: the system has said who it is.
    match transport.is_the_owner() {
        Some(true) => return Fate::Served,
        Some(false) => return Fate::Refused(&["unauthenticated"]),
        None => {}
    }
    match who.scope() {
        // What is wrong is counted, and after a while answered with when to come back.
        None if who.shows_a_token() => Fate::Refused(&["unauthenticated", "too_many"]),
        None => Fate::Refused(&["unauthenticated"]),
        Some(one) => with(&[one]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_has_a_row_and_every_row_a_route() {
    let houses = House::both().await;
    let asked = request(Method::GET, "openapi.json", "");
    let answer = houses[0].way(Transport::UnixSocket).ask(asked).await;
    let document: Value = answer.read();
    let mut served = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            served.insert((method.to_uppercase(), path.clone()));
        }
    }
    let rows = ROUTES
        .iter()
        .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()));
    assert_eq!(served, rows.collect());
    shut(houses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_gets_what_is_theirs_on_every_route_and_transport_and_nothing_else() {
    on_every_way(async |mut way, principals| {
        let transport = way.transport;
        for (method, path, needs) in ROUTES {
            let head = (*method == "GET").then_some("HEAD");
            for method in [Some(*method), head].into_iter().flatten() {
                for who in principals.iter().filter(|who| who.comes_by(transport)) {
                    let answer = way.ask(asked(method, path, who)).await;
                    let fate = fate(transport, who, (method, *path), *needs);
                    check(&answer, &fate, (method, *path), (who, transport));
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_has_no_row_is_served_to_nobody() {
    let paths: BTreeSet<_> = ROUTES.iter().map(|(_, path, _)| *path).collect();
    // Whom nothing else stops, whom everything does, and who asks for another protocol.
    let tries = |who: &&Principal| ["admin", "nobody", "node"].contains(&who.name());
    on_every_way(async |mut way, principals| {
        let transport = way.transport;
        for path in &paths {
            for method in METHODS {
                let is_row = ROUTES.iter().any(|(m, p, _)| {
                    p == path && (*m == method || (method == "HEAD" && *m == "GET"))
                });
                if is_row {
                    continue;
                }
                for who in principals.iter().filter(tries) {
                    let answer = way.ask(asked(method, path, who)).await;
                    let status = answer.status.as_u16();
                    let refused = matches!(status, 401 | 403 | 404 | 405 | 429);
                    assert!(
                        refused,
                        "{method} {path} as {who:?} over {transport:?}: {answer:?}"
                    );
                }
            }
        }
    })
    .await;
}

/// Nodes prove themselves behind their door, so nobody is asked for a name in front of it, and
/// nobody gets anything there but the way in.
#[tokio::test(flavor = "multi_thread")]
async fn the_door_of_the_nodes_is_the_same_for_everybody() {
    on_every_way(async |mut way, principals| {
        let transport = way.transport;
        for who in principals.iter().filter(|who| who.comes_by(transport)) {
            for method in METHODS {
                let answer = way.ask(asked(method, "/ws", who)).await;
                let status = answer.status.as_u16();
                let what = format!("{method} as {who:?} over {transport:?}: {answer:?}");
                let comes_in = who.knocks_as_a_node() && method == "GET" && status == 101;
                assert!(comes_in || matches!(status, 403 | 405 | 426), "{what}");
            }
        }
    })
    .await;
}

/// Has everybody try something on every way to a gateway, on all ways at the same time.
async fn on_every_way(trying: impl AsyncFn(Way<'_>, &[Principal])) {
    let houses = House::both().await;
    if !houses[0].is_on_a_network() {
        let why = "this machine is on none, so the router was told of it in place of a socket";
        not_tested("rights at an address of a network", why);
    }
    for house in &houses {
        let principals = Principal::all(house).await;
        join_all(house.ways().map(|way| trying(way, principals.as_slice()))).await;
    }
    shut(houses).await;
}

async fn shut(houses: [House; 2]) {
    for house in houses {
        house.shut().await;
    }
}

/// Tells `cargo xtask test` what could not be done here; it decides whether that is a failure.
fn not_tested(name: &str, why: &str) {
    let Some(list) = std::env::var_os("MOLTIS_NOT_TESTED") else {
        return;
    };
    let mut list = std::fs::File::options().append(true).open(list).unwrap();
    writeln!(list, "{name}: {why}").unwrap();
}

fn asked(method: &str, path: &str, who: &Principal) -> Request<Full<bytes::Bytes>> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let mut asked = request(method, &path.replace("{id}", "nobody"), "");
    who.show(&mut asked);
    asked
}

fn check(
    answer: &Answer,
    fate: &Fate,
    (method, path): (&str, &str),
    (who, over): (&Principal, Transport),
) {
    let status = answer.status.as_u16();
    let what = || format!("{method} {path} as {who:?} over {over:?}: {answer:?}");
    match fate {
        Fate::Served => {
            let refused = matches!(status, 307 | 401 | 403 | 405 | 421 | 429);
            assert!(!refused, "{}", what());
            let text = String::from_utf8_lossy(&answer.body);
            assert!(!text.contains("there is no route"), "{}", what());
        }
        Fate::LedToTls => {
            let to = answer.header("location");
            assert!(status == 307 && to.starts_with("https://"), "{}", what());
        }
        Fate::Refused(_) if method == "HEAD" => {
            assert!(matches!(status, 401 | 403 | 429), "{}", what());
            assert!(answer.body.is_empty(), "{}", what());
        }
        Fate::Refused(codes) => {
            let problem = answer.problem();
            assert!(codes.contains(&problem.code.as_str()), "{}", what());
            if problem.code == Code::ScopeMissing {
                let name = who.called(over.has_a_login());
                assert!(problem.detail.starts_with(&name), "{}", what());
            }
        }
    }
}
