//! What happens, as a raw client of the gateway's socket or of TCP sees it: no library stands
//! between the test and the bytes.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Gateway, Home, Printed};

/// A stream of events that is read.
struct Stream {
    head_and_body: Printed,
}

/// One event as it was read.
#[derive(Debug, Clone)]
struct Seen {
    id: String,
    name: String,
    data: Value,
}

impl Stream {
    /// Opens one as the operator.
    fn open(home: &Home, path: &str, last: Option<&str>) -> Self {
        let socket = UnixStream::connect(home.path().join("gateway.sock")).unwrap();
        let reader = socket.try_clone().unwrap();
        Self::ask(socket, reader, path, &header("Last-Event-ID", last))
    }

    /// Opens one over TCP with a token.
    fn open_with(gateway: &Gateway<'_>, token: &str, path: &str) -> Self {
        let socket = TcpStream::connect(&gateway.address).unwrap();
        let reader = socket.try_clone().unwrap();
        let bearer = header("Authorization", Some(&format!("Bearer {token}")));
        Self::ask(socket, reader, path, &bearer)
    }

    fn ask(
        mut socket: impl Write,
        reader: impl Read + Send + 'static,
        path: &str,
        headers: &str,
    ) -> Self {
        let head = format!("GET /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        let stream = Self {
            head_and_body: Printed::of(reader),
        };
        // Nothing that happens from here on is missed.
        stream.head_and_body.wait_for("retry: ");
        stream
    }

    /// Waits for an event that `wanted` knows.
    fn wait_for(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let find = |text: &str| events(text).into_iter().find(|event| wanted(event));
        let text = self
            .head_and_body
            .wait_until(what, |text| find(text).is_some());
        find(&text).unwrap()
    }

    fn wait_for_name(&self, name: &str) -> Seen {
        self.wait_for(name, |event| event.name == name)
    }

    /// Waits until the gateway has closed it, and returns what it has told.
    fn wait_for_end(&self) -> (Vec<Seen>, String) {
        self.head_and_body.wait_for_end();
        let text = self.head_and_body.text();
        (events(&text), text)
    }
}

fn header(name: &str, value: Option<&str>) -> String {
    value.map_or_else(String::new, |value| format!("{name}: {value}\r\n"))
}

/// Reads the events of a body as it came; each lies within one chunk.
fn events(text: &str) -> Vec<Seen> {
    let mut seen = Vec::new();
    for block in text.split("\n\n") {
        let field = |name: &str| {
            let mut lines = block.lines();
            lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
        };
        let data = field("data").and_then(|data| serde_json::from_str(&data).ok());
        if let (Some(id), Some(name), Some(data)) = (field("id"), field("event"), data) {
            seen.push(Seen { id, name, data });
        }
    }
    seen
}

#[test]
fn the_life_of_a_node_is_seen_from_its_first_knock_until_it_is_forgotten() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let stream = Stream::open(&home, "events", None);
    let node = gateway.join(&machine, "Build Server");

    let opened = stream.wait_for_name("pairing.changed");
    assert_eq!(opened.data["enabled"], true);
    let request = stream.wait_for_name("pairing.request").data;
    assert_eq!(request["name"], "Build Server");
    let printed = node.stdout.text();
    assert!(printed.contains(request["connection_code"].as_str().unwrap()));
    let decided = stream.wait_for_name("pairing.decided").data;
    assert_eq!(
        (&decided["id"], &decided["decision"], &decided["decided_by"]),
        (&request["id"], &"approved".into(), &"operator".into())
    );
    let online = stream.wait_for_name("node.online").data;
    assert_eq!(
        (&online["name"], &online["state"], &online["fingerprint"]),
        (&request["name"], &"online".into(), &request["fingerprint"])
    );
    let id = online["id"].as_str().unwrap();
    let sample = stream.wait_for_name("telemetry").data;
    assert_eq!(sample["id"], id);
    assert!(sample["telemetry"]["memory_total_bytes"].as_u64() > Some(0));

    home.ok(["node", "rename", id, "bench"]);
    let renamed = |event: &Seen| event.name == "node.changed" && event.data["name"] == "bench";
    assert_eq!(stream.wait_for("the name", renamed).data["id"], id);
    let state = |name: &'static str, state: &'static str| {
        move |event: &Seen| event.name == name && event.data["state"] == state
    };
    node.signal(Signal::TERM);
    let offline = stream.wait_for("offline", state("node.offline", "offline"));
    drop(node);
    let node = machine.start(["node", "run"]);
    let is_newer = |event: &Seen| event.name == "node.online" && number(event) > number(&offline);
    stream.wait_for("the node to be back", is_newer);

    home.ok(["node", "revoke", id, "--yes"]);
    stream.wait_for("revoked", state("node.changed", "revoked"));
    stream.wait_for("revoked and gone", state("node.offline", "revoked"));
    home.ok(["node", "forget", id, "--yes"]);
    let forgotten = stream.wait_for_name("node.forgotten").data;
    assert_eq!(
        (&forgotten["id"], &forgotten["name"]),
        (&id.into(), &"bench".into())
    );

    // The same again for who comes late, in the same order, each once.
    let all = events(&stream.head_and_body.text());
    let late = Stream::open(&home, "events", Some(&all[0].id));
    let last = all.last().unwrap().id.clone();
    late.wait_for("the last", |event| event.id == last);
    let ids = |events: &[Seen]| {
        events
            .iter()
            .map(|event| event.id.clone())
            .collect::<Vec<_>>()
    };
    let again = events(&late.head_and_body.text());
    assert_eq!(ids(&again)[..all.len() - 1], ids(&all)[1..]);
    drop(node);
}

/// Returns an event's number in its process.
fn number(event: &Seen) -> u64 {
    event.id.split_once('-').unwrap().1.parse().unwrap()
}

#[test]
fn a_token_sees_runs_and_nothing_else_until_it_is_revoked() {
    let home = Home::new();
    let gateway = home.gateway();
    let token = home.ok(["token", "create", "--name", "ci", "--scope", "runs:read"]);
    let stream = Stream::open_with(&gateway, token.trim(), "events");
    home.ok(["node", "pairing", "enable"]);
    let done = home.run(["node", "exec", "local", "--shell", "exit 3"]);
    assert_eq!(done.code, 3, "{done:?}");
    let started = stream.wait_for_name("run.started").data;
    let ended = stream.wait_for_name("run.ended").data;
    assert_eq!(started["id"], ended["id"]);
    assert_eq!(
        (&ended["outcome"], &ended["exit_code"], &ended["node"]),
        (&"exited".into(), &3.into(), &"local".into())
    );
    let path = format!("runs/{}/events", ended["id"].as_str().unwrap());
    let told = Stream::open_with(&gateway, token.trim(), &path);
    let (told, _) = {
        told.wait_for_name("ended");
        (events(&told.head_and_body.text()), told)
    };
    let names: Vec<_> = told.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["started", "ended"]);

    home.ok(["token", "revoke", "ci"]);
    let (seen, text) = stream.wait_for_end();
    assert!(!text.ends_with("0\r\n\r\n"), "it is cut, not ended");
    assert!(
        seen.iter().all(|event| event.name.starts_with("run.")),
        "{seen:?}"
    );
}

#[test]
fn after_a_crash_all_events_begin_anew_and_those_of_a_run_go_on_at_the_byte() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let gate = machine.user().join("gate");
    let script = format!(
        "seq 1 20000; until test -e {}; do sleep 0.05; done; echo end; echo err >&2",
        gate.display()
    );
    let run = home.ok(["node", "exec", "box", "--detach", "--shell", &script]);
    let path = format!("runs/{}/events", run.trim());
    let global = Stream::open(&home, "events", None);
    let (before, last) = {
        let stream = Stream::open(&home, &path, None);
        let whole: usize = (1..=20_000)
            .map(|number: u32| number.to_string().len() + 1)
            .sum();
        let is_last = |event: &Seen| event.id == format!("{whole}-0");
        let last = stream.wait_for("all that is there", is_last);
        (
            bytes(&events(&stream.head_and_body.text()), "stdout"),
            last.id,
        )
    };
    home.ok(["node", "pairing", "enable"]);
    let known = global.wait_for_name("pairing.changed").id;
    gateway.crash_and_restart();

    let global = Stream::open(&home, "events", Some(&known));
    let first = global.wait_for("the first event", |_| true);
    assert_eq!(
        (first.name.as_str(), &first.data["reason"]),
        ("reset", &"restarted".into())
    );
    let stream = Stream::open(&home, &path, Some(&last));
    fs::write(gate, "").unwrap();
    let ended = stream.wait_for_name("ended");
    assert_eq!(ended.data["outcome"], "exited");
    let seen = events(&stream.head_and_body.text());
    assert_eq!(bytes(&seen, "stdout"), b"end\n", "and nothing again");
    assert_eq!(bytes(&seen, "stderr"), b"err\n");
    assert_eq!(seen.len(), 3, "{seen:?}");
    let ended_at = home.ok(["runs", "output", run.trim()]);
    assert_eq!(ended_at.as_bytes(), [&before[..], b"end\n"].concat());
    global.wait_for("the end", |event| {
        event.name == "run.ended" && event.data["id"] == run.trim()
    });
}

/// Puts one output together. Offsets continue.
fn bytes(events: &[Seen], stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut next = None;
    for event in events.iter().filter(|event| event.data["stream"] == stream) {
        let offset = event.data["offset"].as_u64().unwrap();
        assert_eq!(next.unwrap_or(offset), offset);
        let piece = STANDARD
            .decode(event.data["data"].as_str().unwrap())
            .unwrap();
        next = Some(offset + piece.len() as u64);
        bytes.extend(piece);
    }
    bytes
}

#[test]
fn a_gateway_that_stops_ends_streams_in_good_order_and_waits_for_no_reader() {
    let home = Home::new();
    let mut gateway = home.gateway();
    let stream = Stream::open(&home, "events", None);
    // This one is never read.
    let mut stuck = UnixStream::connect(home.path().join("gateway.sock")).unwrap();
    stuck
        .write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    home.ok(["node", "pairing", "enable"]);
    stream.wait_for_name("pairing.changed");
    gateway.process.signal(Signal::TERM);
    let (_, text) = stream.wait_for_end();
    assert!(text.ends_with("0\r\n\r\n"), "the body is whole: {text}");
    let done = gateway.process.wait();
    assert_eq!(done.code, 0, "{done:?}");
}
