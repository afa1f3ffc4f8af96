//! Gateways that are played: what a command does where a real one would have to be met in the
//! right moment.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use moltis_gateway::api::RUN_ID_HEADER;
use moltis_gateway::api::follow::Frame;
use moltis_gateway::api::runs::Stream;
use serde_json::{Value, json};

use crate::harness::{Home, Process};

const RUN: &str = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

/// A request that has come.
struct Asked {
    stream: TcpStream,
    /// Behind `/api/v1/`.
    path: String,
    body: Vec<u8>,
}

impl Asked {
    fn read(stream: TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut first = String::new();
        reader.read_line(&mut first).ok()?;
        let path = first.split(' ').nth(1)?;
        let path = path.trim_start_matches("/api/v1/").to_owned();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(Self { stream, path, body })
    }

    fn json(mut self, status: u16, value: &Value) {
        let body = value.to_string();
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(head.as_bytes()).ok(); // who is left to hear it does not matter
    }

    fn problem(self, status: u16, code: &str, more: &Value) {
        let mut problem = json!({
            "code": code, "status": status, "title": "x", "detail": "it cannot be said", "request_id": ""
        });
        let fields = more.as_object().unwrap().clone();
        problem.as_object_mut().unwrap().extend(fields);
        self.json(status, &problem);
    }

    /// Begins a body that has no length.
    fn begin(mut self) -> Self {
        let head =
            format!("HTTP/1.1 200 OK\r\n{RUN_ID_HEADER}: {RUN}\r\nconnection: close\r\n\r\n");
        self.stream.write_all(head.as_bytes()).ok();
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.stream.write_all(bytes).ok();
        self
    }

    fn frame(self, frame: Frame) -> Self {
        let (head, bytes) = frame.encode();
        self.bytes(&head).bytes(&bytes)
    }

    fn output(self, offset: u64, bytes: &[u8]) -> Self {
        self.frame(Frame::Output {
            stream: Stream::Stdout,
            offset,
            bytes: bytes.to_vec().into(),
        })
    }

    fn ended(self) {
        let run = serde_json::from_value(run("ended")).unwrap();
        self.frame(Frame::Ended(run));
    }
}

/// The run as it is shown.
fn run(state: &str) -> Value {
    json!({
        "id": RUN, "node": "local", "node_name": "local", "state": state, "outcome": "exited",
        "exit_code": 0, "tty": false, "requested_by": "operator",
        "created_at": "2026-01-02T03:04:05Z", "stdout_bytes": 0, "stderr_bytes": 0,
        "reachable": true, "unclaimed": false,
    })
}

/// Has every request answered by a thread of its own, and returns the address.
fn gateway(answer: impl Fn(Asked) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = answer.clone();
            std::thread::spawn(move || Asked::read(stream.unwrap()).map(answer));
        }
    });
    url
}

#[test]
fn what_was_received_is_printed_though_the_rest_cannot_be_had() {
    const PIECE: usize = 50_000;
    const PIECES: usize = 12;
    let (gone, is_gone) = mpsc::channel();
    let url = gateway(move |asked| {
        if asked.path.ends_with("follow?stdout=0&stderr=0") {
            let mut asked = asked.begin();
            for piece in 0..PIECES {
                asked = asked.output((piece * PIECE) as u64, &vec![b'x'; PIECE]);
            }
        } else if asked.path.contains("/follow") {
            asked.problem(404, "not_found", &json!({}));
            gone.send(()).ok(); // it is asked once
        } else {
            asked.json(200, &run("running"));
        }
    });
    let home = Home::new();
    let mut command = home.command(["runs", "attach", RUN]);
    command.env("MOLTIS_GATEWAY", url);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody has read a byte until then, and whoever leaves now leaves it unprinted.
    is_gone.recv().unwrap();
    let stays = (0..30).all(|_| {
        std::thread::sleep(Duration::from_millis(10));
        child.try_wait().unwrap().is_none()
    });
    assert!(stays, "it left behind what it had received");
    let mut stdout = child.stdout.take().unwrap();
    let mut read = vec![0; PIECE];
    let mut length = 0;
    loop {
        match stdout.read(&mut read).unwrap() {
            0 => break,
            bytes => length += bytes,
        }
    }
    assert_eq!(length, PIECES * PIECE);
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(255), "{done:?}");
}

#[test]
fn a_gateway_that_cannot_read_for_a_moment_is_waited_for() {
    for line in ["runs attach", "runs output --follow"] {
        let failures = Arc::new(AtomicUsize::new(0));
        let url = gateway({
            let failures = Arc::clone(&failures);
            move |asked| {
                let path = asked.path.clone();
                if path.contains("/follow?stdout=0") {
                    asked.begin().output(0, b"one\n");
                } else if path.contains("/output?") && path.contains("offset=0") {
                    asked.begin().bytes(b"one\n");
                } else if !path.contains("/follow") && !path.contains("/output") {
                    asked.json(200, &run("running"));
                } else if failures.fetch_add(1, Ordering::Relaxed) < 3 {
                    asked.problem(500, "internal", &json!({}));
                } else if path.contains("/follow?stdout=4") {
                    asked.begin().output(4, b"two\n").ended();
                } else if path.contains("offset=4") {
                    asked.begin().bytes(b"two\n");
                } else {
                    asked.begin();
                }
            }
        });
        let home = Home::new();
        let mut command = home.command(line.split(' ').chain([RUN]));
        command.env("MOLTIS_GATEWAY", url);
        let done = Process::start(command).wait();
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (0, "one\ntwo\n"),
            "{done:?}"
        );
        let told = done.stderr.matches("taken up again").count();
        assert_eq!(told, 1, "{done:?}");
    }
}

/// The stdin that one process of a gateway has.
#[derive(Default)]
struct Stdin {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stdin {
    fn is_whole(&self) -> bool {
        self.bytes == b"hello" && self.ended
    }

    /// Answers `POST runs/{id}/stdin`.
    fn take(&mut self, asked: Asked) {
        let query = asked.path.split("offset=").nth(1).unwrap();
        let (offset, eof) = query.split_once("&eof=").unwrap();
        let (offset, here): (usize, _) = (offset.parse().unwrap(), self.bytes.len());
        if offset > here {
            return asked.problem(422, "invalid", &json!({"next_offset": here}));
        }
        self.bytes.truncate(offset);
        self.bytes.extend(&asked.body);
        self.ended |= eof == "true";
        let accepted = self.bytes.len();
        asked.json(200, &json!({"accepted": accepted}));
    }
}

#[test]
fn a_gateway_that_began_anew_unnoticed_is_given_again_what_it_lacks_of_stdin() {
    let shared = Arc::new((Mutex::new(Stdin::default()), Condvar::new()));
    let url = gateway(move |asked| {
        let (stdin, changed) = &*shared;
        let whole = || {
            let stdin = stdin.lock().unwrap();
            changed
                .wait_while(stdin, |stdin| !stdin.is_whole())
                .unwrap()
        };
        if asked.path.starts_with("runs?") {
            let asked = asked.begin().output(0, b"one\n");
            // It dies with all that it was given; the next one is there before anybody notices.
            *whole() = Stdin::default();
            drop(asked);
        } else if asked.path.contains("/stdin?") {
            stdin.lock().unwrap().take(asked);
            changed.notify_all();
        } else {
            let asked = asked.begin();
            drop(whole());
            asked.output(4, b"two\n").ended();
        }
    });
    let home = Home::new();
    let mut command = home.command(["node", "exec", "--stdin", "local", "--", "reader"]);
    command.env("MOLTIS_GATEWAY", url).stdin(Stdio::piped());
    let mut exec = Process::start(command);
    exec.stdin().write_all(b"hello").unwrap();
    let done = exec.wait();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "one\ntwo\n"),
        "{done:?}"
    );
    assert_eq!(done.stderr, "", "nobody heard of it");
}
