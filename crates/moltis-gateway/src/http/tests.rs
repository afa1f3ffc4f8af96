//! The door on real sockets: hosts, origins, transports, methods, and heads that are too long or
//! never end. What routes do is tested in `tests/http_api.rs`, with a real node behind them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listen::Listener;
use super::*;

/// Two listeners, TCP and Unix, on one router.
struct Door {
    address: SocketAddr,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Door {
    async fn open(hosts: &[&str], bind: &str) -> Self {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let config = DoorConfig {
            hosts: Hosts::new(&hosts).unwrap(),
            insecure_http: false,
            owner_uid: rustix::process::geteuid().as_raw(),
        };
        let state = ApiState::new(config, Box::new(|_| Box::pin(async { Ok(None) })), 0);
        let router = router(state);
        let dir = tempfile::tempdir().unwrap();
        let tcp = Listener::tcp(bind.parse().unwrap()).unwrap();
        let address = tcp.address().unwrap();
        let unix = Listener::unix(&dir.path().join("g.sock")).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for listener in [tcp, unix] {
            tasks.spawn(serve::serve(listener, router.clone(), stop.clone()));
        }
        Self {
            address,
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

    async fn shut(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        assert!(!Path::new(&self.socket()).exists());
    }
}

/// Sends a request as it stands and reads until the gateway closes.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(30), read).await;
    read.expect("the gateway answers and closes").unwrap();
    String::from_utf8(answer).unwrap()
}

fn request(method: &str, path: &str, headers: &[&str]) -> String {
    let headers: String = headers
        .iter()
        .map(|header| format!("{header}\r\n"))
        .collect();
    format!("{method} {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n")
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
    assert_eq!(code(&door.tcp(&line).await), "wrong_host");
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

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_given_up() {
    let door = Door::open(&[], "127.0.0.1:0").await;
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
        for way_out in ["ssh -L", "--tls-cert", "--tls-generate", "--insecure-http"] {
            assert!(answer.contains(way_out), "{way_out}");
        }
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
