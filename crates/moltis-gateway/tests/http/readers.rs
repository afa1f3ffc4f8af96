//! Answers with output, as many as one asker may have, over real connections that nobody reads.

use std::net::SocketAddr;

use hyper::Method;
use moltis_gateway::api::problem::{Code, Problem};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::client::{Client, request};
use crate::gateway::{TestGateway, until_asked};

/// What one asker may have.
const ONE_ASKERS: usize = 512;

/// Bytes of output, of which each reader takes the first few.
const PRINTED: usize = 4_000_000;

/// KiB that an answer may hold which nobody reads: a piece of 256, its head, and what is counted to
/// it by chance.
const KIB_EACH: usize = 400;

/// The ways to read the output of a run, each with a header of its own.
const WAYS: [(&str, &str); 4] = [
    ("output", "accept: */*"),
    ("output?follow=true", "accept: */*"),
    ("output", "range: bytes=10-"),
    ("follow", "accept: */*"),
];

/// Somebody with a token, who asks over TCP.
struct Asker {
    address: SocketAddr,
    token: String,
    run: String,
}

impl Asker {
    /// Asks for output in one of the ways, and takes the first line of the answer and no more.
    async fn ask(&self, way: usize) -> (u16, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        let (what, header) = WAYS[way % WAYS.len()];
        let (run, token) = (&self.run, &self.token);
        let head = format!(
            "GET /api/v1/runs/{run}/{what} HTTP/1.1\r\nhost: localhost\r\n\
             authorization: Bearer {token}\r\nconnection: close\r\n{header}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut line = [0; 12];
        stream.read_exact(&mut line).await.unwrap();
        let status = std::str::from_utf8(&line[9..]).unwrap().parse();
        (status.unwrap(), stream)
    }

    /// Asks once more than is allowed, and returns what is said of it.
    async fn refused(&self) -> Problem {
        let (status, mut stream) = self.ask(0).await;
        assert_eq!(status, 429);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        let (head, body) = rest.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nretry-after: "), "{head}");
        serde_json::from_str(body).unwrap()
    }
}

/// Lets this process hold as many sockets as it may.
fn raise_open_files() {
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: found.maximum,
        maximum: found.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

/// KiB of memory that this process uses; 0 where the system does not tell.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|resident| resident.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0)
}

async fn token(operator: &Client, name: &str) -> String {
    let body = json!({"name": name, "scopes": ["runs:read"]});
    let made = operator.post("tokens", body).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.value()["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_none_of_many_answers_is_refused_more_and_keeps_nobody_else_out() {
    raise_open_files();
    let gateway = TestGateway::start().await;
    let operator = Client::of(&gateway).await;
    let print = format!("head -c {PRINTED} /dev/zero");
    let ran = operator.run(json!({"command": print})).await;
    let run = ran["run_id"].as_str().unwrap().to_owned();
    let asker = async |name: &str| Asker {
        address: gateway.address,
        token: token(&operator, name).await,
        run: run.clone(),
    };
    let (greedy, other) = (asker("greedy").await, asker("other").await);

    let before = memory();
    let mut held = Vec::new();
    while held.len() < ONE_ASKERS {
        let (status, stream) = greedy.ask(held.len()).await;
        assert!(status < 300, "{status} behind {} others", held.len());
        held.push(stream);
    }
    let problem = greedy.refused().await;
    assert_eq!(problem.code, Code::TooMany);
    let said = "`token:greedy` reads 512 answers with output already";
    assert!(problem.detail.starts_with(said), "{problem:?}");
    // Each has 4 MB waiting for it.
    let grown = memory().saturating_sub(before);
    assert!(grown < ONE_ASKERS * KIB_EACH, "{grown} KiB");

    let (status, theirs) = other.ask(0).await;
    assert_eq!(status, 200, "another asker has places of its own");
    let whole = request(Method::GET, &format!("runs/{run}/output"), "");
    let whole = operator.send(whole).await;
    assert_eq!((whole.status.as_u16(), whole.body.len()), (200, PRINTED));

    // A connection that is closed frees its place, and no other.
    held.truncate(ONE_ASKERS - 3);
    while held.len() < ONE_ASKERS {
        let again = until_asked("a place", async || {
            let (status, stream) = greedy.ask(0).await;
            (status == 200).then_some(stream)
        });
        let stream = again.await;
        held.push(stream);
    }
    assert_eq!(greedy.refused().await.code, Code::TooMany);
    drop((held, theirs));
    gateway.shut_down().await;
}
