//! The door on real sockets: hosts, origins, transports, methods, and heads that are too long or
//! never end. What routes do is tested in `tests/http/`, with a real node behind them.

mod itself;
mod readers;
mod streams;
#[cfg(feature = "tls")]
mod transport;
mod trouble;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listen::Listener;
use super::*;
use crate::{Gateway, GatewayConfig};

/// A gateway without nodes on two listeners, TCP and Unix.
struct Door {
    gateway: Gateway,
    address: SocketAddr,
    clock: Clock,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What the clock of these tests says.
const NOW: &str = "2026-01-02T03:04:05Z";

impl Door {
    async fn open(hosts: &[&str], bind: &str) -> Self {
        Self::open_in(tempfile::tempdir().unwrap(), hosts, bind).await
    }

    /// Opens one with what `before` has put into its directory.
    async fn open_after(before: impl AsyncFnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        before(&dir.path().join("home")).await;
        Self::open_in(dir, &[], "127.0.0.1:0").await
    }

    async fn open_in(dir: tempfile::TempDir, hosts: &[&str], bind: &str) -> Self {
        let mut config = GatewayConfig::new(dir.path().join("home"));
        config.hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        let clock = Clock::manual(NOW.parse().unwrap());
        let gateway = Gateway::builder(config)
            .clock(clock.clone())
            .build()
            .await
            .unwrap();
        let tcp = Listener::tcp(bind.parse().unwrap()).unwrap();
        let address = tcp.address().unwrap();
        let unix = Listener::unix(&dir.path().join("g.sock")).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for listener in [tcp, unix] {
            let (gateway, stop) = (gateway.clone(), stop.clone());
            tasks.spawn(async move { gateway.serve(listener, &stop).await });
        }
        Self {
            gateway,
            address,
            clock,
            dir,
            stop,
            tasks,
        }
    }

    async fn tcp(&self, request: &str) -> String {
        exchange(TcpStream::connect(self.address).await.unwrap(), request).await
    }

    async fn unix(&self, request: &str) -> String {
        let socket = self.socket();
        exchange(UnixStream::connect(socket).await.unwrap(), request).await
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("g.sock")
    }

    /// Makes a token at the Unix socket.
    async fn token(&self, name: &str, scope: &str) -> String {
        let body = format!(r#"{{"name":"{name}","scopes":["{scope}"],"expires_in_seconds":60}}"#);
        let headers = ["host: localhost", "content-type: application/json"];
        let answer = self
            .unix(&send("POST", "/api/v1/tokens", &headers, &body))
            .await;
        assert_eq!(status(&answer), 201, "{answer}");
        json(&answer)["token"].as_str().unwrap().to_owned()
    }

    async fn with_token(&self, token: &str, method: &str, path: &str) -> String {
        let bearer = format!("authorization: Bearer {token}");
        self.tcp(&request(method, path, &["host: localhost", &bearer]))
            .await
    }

    async fn shut(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        assert!(!Path::new(&self.socket()).exists());
        self.gateway.shutdown().await;
    }
}

/// Sends a request as it stands and reads until the gateway closes. Of a stream of events, which
/// does not end, the beginning is the answer.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        while stream.read_buf(&mut answer).await.unwrap() > 0 {
            let text = String::from_utf8_lossy(&answer);
            if text.contains("text/event-stream") && text.contains("\r\n\r\n") {
                break;
            }
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(30), read).await;
    read.expect("the gateway answers and closes");
    String::from_utf8(answer).unwrap()
}

fn request(method: &str, path: &str, headers: &[&str]) -> String {
    send(method, path, headers, "")
}

fn send(method: &str, path: &str, headers: &[&str], body: &str) -> String {
    let head = [
        format!("{method} {path} HTTP/1.1"),
        "connection: close".to_owned(),
    ]
    .into_iter()
    .chain(headers.iter().map(|&header| header.to_owned()))
    .chain([format!("content-length: {}", body.len())]);
    let head: Vec<String> = head.collect();
    format!("{}\r\n\r\n{body}", head.join("\r\n"))
}

fn json(answer: &str) -> serde_json::Value {
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON in {answer:?}"))
}

fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).unwrap_or_default();
    status
        .parse()
        .unwrap_or_else(|_| panic!("no status in {answer:?}"))
}

fn code(answer: &str) -> String {
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let problem: crate::api::problem::Problem =
        serde_json::from_str(body).unwrap_or_else(|_| panic!("no problem in {answer:?}"));
    assert_eq!(problem.status, status(answer));
    assert!(!problem.request_id.is_empty());
    problem.code.to_string()
}

#[tokio::test]
async fn a_request_for_another_host_is_misdirected_and_a_node_is_never_asked() {
    let door = Door::open(&["gateway.lan"], "127.0.0.1:0").await;
    let port = door.address.port();
    for (host, expected) in [
        (format!("127.0.0.1:{port}"), 200),
        (format!("LOCALHOST.:{port}"), 200),
        ("gateway.lan".to_owned(), 200),
        ("localhost".to_owned(), 200),
        (format!("evil.example:{port}"), 421),
        (format!("user@127.0.0.1:{port}"), 421),
        ("127.0.0.1:1".to_owned(), 421),
        (format!("0.0.0.0:{port}"), 421),
        (String::new(), 421),
    ] {
        let host = format!("host: {host}");
        assert_eq!(
            status(&door.tcp(&request("GET", "/", &[&host])).await),
            expected,
            "{host}"
        );
        assert_eq!(
            status(&door.tcp(&request("GET", "/healthz", &[&host])).await),
            200,
            "{host}"
        );
    }
    let two = ["host: localhost", "host: evil.example"];
    assert_eq!(
        code(&door.tcp(&request("GET", "/", &two)).await),
        "bad_request"
    );
    assert_eq!(
        code(&door.tcp(&request("GET", "/", &[])).await),
        "bad_request"
    );
    let line = request("GET", "http://evil.example/", &["host: localhost"]);
    let answer = door.tcp(&line).await;
    assert_eq!(code(&answer), "wrong_host");
    let words =
        "the request line asks for the host `evil.example`, its Host header for `localhost`";
    assert!(answer.contains(words), "{answer}");
    door.shut().await;
}

#[tokio::test]
async fn a_change_from_a_page_of_another_site_is_refused() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let own = format!("origin: http://{}", door.address);
    for (header, refused) in [
        (own.as_str(), false),
        ("x-none: 1", false),
        ("sec-fetch-site: same-origin", false),
        ("origin: null", true),
        ("origin: http://evil.example", true),
        ("origin: http://127.0.0.1:1", true),
        ("sec-fetch-site: cross-site", true),
        ("sec-fetch-site: same-site", true),
    ] {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let answer = door
                .tcp(&request(method, "/nothing", &["host: localhost", header]))
                .await;
            let expected = if refused { "csrf" } else { "not_found" };
            assert_eq!(code(&answer), expected, "{method} {header}");
        }
        let answer = door
            .tcp(&request("GET", "/", &["host: localhost", header]))
            .await;
        assert_eq!(status(&answer), 200, "a GET changes nothing: {header}");
    }
    door.shut().await;
}

#[tokio::test]
async fn what_is_no_route_and_no_method_is_a_problem_too() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let host = "host: localhost";
    assert_eq!(
        code(&door.tcp(&request("GET", "/api/v1/nothing", &[host])).await),
        "not_found"
    );
    let answer = door.tcp(&request("POST", "/healthz", &[host])).await;
    assert_eq!(code(&answer), "method_not_allowed");
    assert!(answer.contains("allow: GET"), "{answer}");
    let answer = door.unix(&request("GET", "/", &[host])).await;
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("moltis-request-id: "), "{answer}");
    assert!(answer.contains("cache-control: no-store"), "{answer}");
    door.shut().await;
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let long = format!("x: {}", "y".repeat(20_000));
    let answer = door
        .tcp(&request("GET", "/", &["host: localhost", &long]))
        .await;
    assert_eq!(status(&answer), 431);
    let many = vec!["a: b"; 100];
    assert_eq!(status(&door.tcp(&request("GET", "/", &many)).await), 431);
    assert_eq!(status(&door.tcp("hello?\r\n\r\n").await), 400);
    door.shut().await;
}

#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    let answer = door.tcp("GET / HTTP/1.1\r\nhost: localhost\r\n").await;
    assert!(answer.is_empty() || status(&answer) == 408, "{answer}");
    assert!(started.elapsed() >= Duration::from_secs(9));
    door.shut().await;
}

#[tokio::test]
async fn a_stop_closes_idle_connections_and_removes_the_socket() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let mut idle = TcpStream::connect(door.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    door.shut().await;
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
}

/// Needs an address of this machine that is not loopback; passes over where there is none.
#[tokio::test]
async fn on_a_network_address_only_nodes_and_health_are_answered() {
    let Some(lan) = lan_address() else {
        return;
    };
    let door = Door::open(&[], "0.0.0.0:0").await;
    let port = door.address.port();
    let ask = async |path: &str| {
        let stream = TcpStream::connect((lan, port)).await.unwrap();
        exchange(
            stream,
            &request("GET", path, &[&format!("host: {lan}:{port}")]),
        )
        .await
    };
    for path in ["/", "/readyz", "/api/v1/nodes", "/api/v1/runs", "/nothing"] {
        let answer = ask(path).await;
        assert_eq!(code(&answer), "tls_required", "{path}");
        assert!(answer.contains("ssh -L"), "{answer}");
        assert!(answer.contains("--tls-generate"), "{answer}");
    }
    assert_eq!(status(&ask("/healthz").await), 200);
    let loopback = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let answer = exchange(loopback, &request("GET", "/", &["host: localhost"])).await;
    assert_eq!(status(&answer), 200, "loopback keeps the whole site");
    door.shut().await;
}

fn lan_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[tokio::test]
async fn a_token_works_until_it_expires_or_is_revoked_and_nowhere_else() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let tokens = "/api/v1/tokens";
    let token = door.token("ci", "tokens:admin").await;
    let answer = door.with_token(&token, "GET", tokens).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let id = json(&answer)["items"][0]["id"].as_str().unwrap().to_owned();
    let other = Door::open(&[], "127.0.0.1:0").await;
    assert_eq!(
        code(&other.with_token(&token, "GET", tokens).await),
        "unauthenticated"
    );
    other.shut().await;
    let brief = door.token("brief", "tokens:admin").await;
    door.clock.set("2026-01-02T03:05:05Z".parse().unwrap());
    let answer = door.with_token(&brief, "GET", tokens).await;
    assert_eq!(code(&answer), "unauthenticated", "it expired");
    assert!(answer.contains("www-authenticate: Bearer"), "{answer}");
    door.clock.set("2026-01-02T03:04:05Z".parse().unwrap());
    let revoke = request("DELETE", &format!("{tokens}/{id}"), &["host: localhost"]);
    assert_eq!(status(&door.unix(&revoke).await), 204);
    assert_eq!(code(&door.unix(&revoke).await), "not_found");
    assert_eq!(
        code(&door.with_token(&token, "GET", tokens).await),
        "unauthenticated"
    );
    assert_eq!(
        code(
            &door
                .tcp(&request("GET", tokens, &["host: localhost"]))
                .await
        ),
        "unauthenticated"
    );
    door.shut().await;
}

#[tokio::test]
async fn a_token_may_only_do_and_give_away_what_it_may_itself() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let reader = door.token("reader", "runs:read").await;
    let answer = door.with_token(&reader, "GET", "/api/v1/tokens").await;
    assert_eq!(code(&answer), "scope_missing");
    assert!(answer.contains("tokens:admin"), "{answer}");
    let maker = door.token("maker", "tokens:admin").await;
    let bearer = format!("authorization: Bearer {maker}");
    let headers = ["host: localhost", "content-type: application/json", &bearer];
    let body = r#"{"name":"more","scopes":["tokens:admin","runs:write"]}"#;
    let answer = door
        .tcp(&send("POST", "/api/v1/tokens", &headers, body))
        .await;
    assert_eq!(code(&answer), "scope_missing");
    door.shut().await;
}

#[tokio::test]
async fn only_an_operators_token_runs_anything_on_the_gateways_own_machine() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let writer = door.token("writer", "runs:write").await;
    let admin = door.token("admin", "admin").await;
    for body in [
        r#"{"node":"local","argv":["id"]}"#,
        // Nobody named is `local` by default.
        r#"{"argv":["id"]}"#,
    ] {
        for (token, may) in [(&writer, false), (&admin, true)] {
            let bearer = format!("authorization: Bearer {token}");
            let headers = ["host: localhost", "content-type: application/json", &bearer];
            let answer = door
                .tcp(&send("POST", "/api/v1/runs", &headers, body))
                .await;
            assert_eq!(code(&answer) != "scope_missing", may, "{answer}");
        }
    }
    door.shut().await;
}

#[tokio::test]
async fn guesses_are_throttled_and_a_good_token_passes_all_the_same() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let good = door.token("good", "tokens:admin").await;
    let mut last = String::new();
    for n in 0..11 {
        last = door
            .with_token(&format!("moltis_{n}"), "GET", "/api/v1/tokens")
            .await;
    }
    assert_eq!(code(&last), "too_many");
    assert!(last.contains("retry-after: "), "{last}");
    assert_eq!(
        status(&door.with_token(&good, "GET", "/api/v1/tokens").await),
        200
    );
    door.shut().await;
}

#[tokio::test]
async fn a_header_that_is_no_token_is_named() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    for header in [
        "authorization: Basic bW9sdGlz",
        "authorization: Bearer",
        "authorization: Bearer abc",
        "authorization: moltis_abc",
    ] {
        let answer = door
            .tcp(&request(
                "GET",
                "/api/v1/tokens",
                &["host: localhost", header],
            ))
            .await;
        assert_eq!(code(&answer), "unauthenticated", "{header}");
        assert!(answer.contains("Bearer moltis_"), "{answer}");
    }
    door.shut().await;
}

#[tokio::test]
async fn bad_bodies_are_named() {
    let door = Door::open(&[], "127.0.0.1:0").await;
    let ok = r#"{"name":"a","scopes":["runs:read"]}"#;
    let json_type = "content-type: application/json";
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(2 * 1024 * 1024));
    for (media, body, expected, words) in [
        (json_type, "{", "bad_request", "not JSON"),
        (json_type, "[]", "invalid", "expected an object"),
        (json_type, "7", "invalid", "invalid type: integer `7`"),
        (
            json_type,
            &format!("{ok} {ok}"),
            "bad_request",
            "not one JSON value",
        ),
        (json_type, "", "invalid", "missing field `name`"),
        (
            json_type,
            r#"{"name":"a","scopes":[],"colour":1}"#,
            "invalid",
            "unknown field `colour`",
        ),
        (
            json_type,
            r#"{"name":7,"scopes":[]}"#,
            "invalid",
            "`name`: invalid type: integer `7`",
        ),
        (
            json_type,
            r#"{"name":"a","scopes":["all"]}"#,
            "invalid",
            "`scopes[0]`: unknown variant `all`",
        ),
        (
            json_type,
            r#"{"name":"a","scopes":[]}"#,
            "invalid",
            "at least one",
        ),
        (
            json_type,
            r#"{"name":"a\n","scopes":["runs:read"]}"#,
            "201",
            "",
        ),
        (
            json_type,
            r#"{"name":"a\u202eb","scopes":["runs:read"]}"#,
            "invalid",
            "visible",
        ),
        (
            json_type,
            r#"{"name":"b","scopes":["runs:read"],"expires_in_seconds":-1}"#,
            "invalid",
            "`expires_in_seconds`: invalid value: integer `-1`",
        ),
        (
            json_type,
            r#"{"name":"b","scopes":["runs:read"],"expires_in_seconds":0}"#,
            "invalid",
            "not between 1 and",
        ),
        (json_type, &long, "too_large", "2097"),
        (
            "content-type: text/plain",
            ok,
            "unsupported_media_type",
            "application/json",
        ),
        (
            "x-none: 1",
            ok,
            "unsupported_media_type",
            "application/json",
        ),
    ] {
        let headers = ["host: localhost", media];
        let answer = door
            .unix(&send("POST", "/api/v1/tokens", &headers, body))
            .await;
        let short: String = body.chars().take(80).collect();
        if let Ok(expected) = expected.parse::<u16>() {
            assert_eq!(status(&answer), expected, "{short}");
            continue;
        }
        assert_eq!(code(&answer), expected, "{short}: {answer}");
        assert!(
            answer.contains(&words.replace('"', "\\\"")),
            "{short}: {answer}"
        );
        assert!(answer.len() < 4096, "an echo is cut");
    }
    door.shut().await;
}
