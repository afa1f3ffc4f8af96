//! The HTTP API of the real gateway, byte for byte: who is let in, long lists, and the examples of
//! its page.

mod page;

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::harness::{Gateway, Home, LONG, Process, meddle};

/// An answer, whole.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON in {self:?}"))
    }

    /// Returns the code of a refusal.
    fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

fn exchange(mut stream: impl std::io::Read + std::io::Write, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    answer(&text)
}

fn answer(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("no status in {text:?}")),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

fn request(line: &str, headers: &[&str]) -> String {
    let mut text = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text + "\r\n"
}

/// Asks over TCP, with these headers and no others.
fn over_tcp(gateway: &Gateway<'_>, line: &str, headers: &[&str]) -> Answer {
    let stream = TcpStream::connect(&gateway.address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    exchange(stream, &request(line, headers))
}

/// Asks for something at the Unix socket.
fn get(home: &Home, path: &str) -> Value {
    let stream = UnixStream::connect(home.path().join("gateway.sock")).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let line = format!("GET /api/v1/{path}");
    let answer = exchange(stream, &request(&line, &["host: localhost"]));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Sends a document to the Unix socket, and returns what is answered.
pub(crate) fn post(home: &Home, path: &str, headers: &[&str], body: &Value) -> Value {
    answer(&try_post(home, path, headers, body)).json()
}

/// Sends a document to the Unix socket, and returns the bytes that come back: none, where the gateway
/// is gone before it has answered.
pub(crate) fn try_post(home: &Home, path: &str, headers: &[&str], body: &Value) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = UnixStream::connect(home.seen().join("gateway.sock")).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let body = body.to_string();
    let length = format!("content-length: {}", body.len());
    let ours = ["host: localhost", "content-type: application/json", &length];
    let line = format!("POST /api/v1/{path}");
    let head = request(&line, &[&ours[..], headers].concat());
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok(); // what has come is told
    text
}

/// Asks over TCP with this bearer token, and returns the status of the answer.
pub(crate) fn status_with(gateway: &Gateway<'_>, line: &str, token: &str) -> u16 {
    over_tcp(gateway, line, &["host: localhost", &bearer(token)]).status
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {}", token.trim())
}

#[test]
fn the_document_of_the_api_is_there_for_everybody_and_nothing_else_is() {
    let home = Home::new();
    let gateway = home.gateway();
    let host = ["host: localhost"];
    let answer = over_tcp(&gateway, "GET /api/v1/openapi.json", &host);
    assert_eq!(answer.status, 200);
    for header in [
        "content-type: application/json",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
        "referrer-policy: no-referrer",
        "cross-origin-resource-policy: same-origin",
        "cross-origin-opener-policy: same-origin",
        "content-security-policy: default-src 'none'; frame-ancestors 'none'",
        "moltis-request-id: ",
    ] {
        assert!(answer.head.contains(header), "{header} in {}", answer.head);
    }
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let public = ["/", "/healthz", "/readyz", "/api/v1/openapi.json"];
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let line = format!("{} {}", method.to_uppercase(), path.replace("{id}", "x"));
            let answer = over_tcp(&gateway, &line, &host);
            if public.contains(&path.as_str()) {
                assert_eq!(answer.status, 200, "{line}: {answer:?}");
            } else {
                assert_eq!(answer.code(), "unauthenticated", "{line}");
                assert!(
                    answer.head.contains("www-authenticate: bearer"),
                    "{answer:?}"
                );
            }
        }
    }
}

#[test]
fn other_names_for_this_machine_are_not_taken_for_it() {
    let home = Home::new();
    let gateway = home.gateway();
    let port = gateway.address.rsplit(':').next().unwrap();
    for (host, status) in [
        (gateway.address.clone(), 200),
        (format!("localhost.:{port}"), 200),
        (format!("LOCALHOST:{port}"), 200),
        (format!("localhost..:{port}"), 421),
        (format!("user@localhost:{port}"), 421),
        (format!("localhost:{port}@evil.example"), 421),
        (format!("rebound.evil.example:{port}"), 421),
        (format!("localhost.evil.example:{port}"), 421),
        (format!("127.0.0.1.nip.io:{port}"), 421),
        (format!("2130706433:{port}"), 421),
        (format!("0.0.0.0:{port}"), 421),
        ("localhost:1".to_owned(), 421),
        (String::new(), 421),
    ] {
        let answer = over_tcp(
            &gateway,
            "GET /api/v1/openapi.json",
            &[&format!("host: {host}")],
        );
        assert_eq!(answer.status, status, "{host}: {answer:?}");
    }
    let line = "GET http://evil.example/api/v1/openapi.json";
    assert_eq!(over_tcp(&gateway, line, &["host: localhost"]).status, 421);
    let lied = ["host: evil.example", "x-forwarded-host: localhost"];
    let answer = over_tcp(&gateway, "GET /api/v1/openapi.json", &lied);
    assert_eq!(answer.status, 421, "{answer:?}");
}

#[test]
fn a_token_in_an_address_lets_nobody_in_and_is_written_nowhere() {
    let home = Home::new();
    let mut command = home.command(["gateway", "--listen", "127.0.0.1:0"]);
    command.env("MOLTIS_LOG", "trace");
    let gateway = Gateway::ready(&home, Process::start(command));
    let token = home.ok(["token", "create", "--name", "me", "--scope", "admin"]);
    let (token, host) = (token.trim(), "host: localhost");
    for name in ["token", "access_token", "api_key", token] {
        for path in ["nodes", "gateway", "runs/00/output"] {
            let line = format!("GET /api/v1/{path}?{name}={token}");
            let answer = over_tcp(&gateway, &line, &[host]);
            assert_eq!(answer.code(), "unauthenticated", "{line}");
            let answer = over_tcp(&gateway, &line, &[host, &bearer(token)]);
            assert_eq!(answer.code(), "bad_request", "{line}: {answer:?}");
            assert!(!answer.body.contains(token), "{answer:?}");
        }
    }
    let in_a_path = format!("GET /api/v1/nodes/{token}");
    let answer = over_tcp(&gateway, &in_a_path, &[host, &bearer(token)]);
    assert_eq!(answer.code(), "node_not_found");
    assert!(!answer.body.contains(token), "{answer:?}");
    let log = gateway.process.stderr.text() + &gateway.process.stdout.text();
    assert!(log.contains("request"), "it is written at all: {log}");
    assert!(!log.contains(token), "{log}");
}

#[test]
fn guesses_are_slowed_down_and_the_good_token_is_not() {
    let home = Home::new();
    let gateway = home.gateway();
    let good = home.ok(["token", "create", "--name", "ci", "--scope", "runs:read"]);
    let ask = |token: &str| {
        over_tcp(
            &gateway,
            "GET /api/v1/runs",
            &["host: localhost", &bearer(token)],
        )
    };
    let refused = (0..30)
        .map(|guess| ask(&format!("moltis_{guess:043}")))
        .find(|answer| answer.status != 401);
    let refused = refused.expect("thirty guesses are too many");
    assert_eq!(refused.code(), "too_many");
    let wait = refused.json()["retry_after_seconds"].as_u64().unwrap();
    assert!((1..=30).contains(&wait), "{refused:?}");
    assert!(refused.head.contains(&format!("retry-after: {wait}")));
    assert_eq!(ask(&good).status, 200);
}

#[test]
fn ten_thousand_runs_are_paged_through_while_new_ones_arrive() {
    let home = Home::new();
    let mut gateway = home.gateway();
    home.ok(["node", "exec", "local", "--", "true"]);
    gateway.crash();
    let columns = "digest, place, shown, requested_by, principal, spec, state, incarnation, \
                   created_at, started_at, ended_at, outcome, exit_code, duration_ms";
    meddle(
        &home,
        format!(
            "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000) \
             INSERT INTO runs (id, {columns}) SELECT randomblob(16), {columns} FROM runs, n \
             WHERE seq = 1"
        ),
    );
    gateway.restart();
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), String::new(), 0);
    loop {
        let page = get(&home, &format!("runs?limit=500{cursor}"));
        pages += 1;
        for run in page["items"].as_array().unwrap() {
            let id = run["id"].as_str().unwrap().to_owned();
            assert!(seen.insert(id), "a run is on two pages: {run}");
        }
        let Some(next) = page["next"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
        if pages % 7 == 0 {
            home.ok(["node", "exec", "local", "--", "true"]);
        }
    }
    assert_eq!((seen.len(), pages), (10_001, 21));
    let all = home.json(["runs", "list", "--limit", "20000", "--json"]);
    assert_eq!(all.as_array().unwrap().len(), 10_003);
}

#[test]
fn ten_thousand_nodes_are_listed_whole_and_a_page_at_a_time() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    drop(gateway.join(&machine, "box"));
    gateway.crash();
    let columns = "labels, platform, claims, paired_at, paired_by, last_seen_at, last_address";
    meddle(
        &home,
        format!(
            "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000) \
             INSERT INTO nodes (device_id, node_key, node_id, name, {columns}) \
             SELECT randomblob(16), randomblob(32), printf('n%05d', i), printf('n%05d', i), \
             {columns} FROM nodes, n WHERE name = 'box'"
        ),
    );
    gateway.restart();
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = get(&home, &format!("nodes{cursor}"));
        pages += 1;
        let items = page["items"].as_array().unwrap();
        seen.extend(
            items
                .iter()
                .map(|node| node["name"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next"].as_str() else {
            break;
        };
        cursor = format!("?cursor={next}");
    }
    let mut expected: Vec<_> = (1..=10_000).map(|number| format!("n{number:05}")).collect();
    expected.insert(0, "box".to_owned());
    assert_eq!(seen, expected);
    assert_eq!(pages, 11);
    let all = home.json(["node", "list", "--all", "--json"]);
    assert_eq!(all.as_array().unwrap().len(), 10_001);
}
