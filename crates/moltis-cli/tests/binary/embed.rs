//! The example of a program that embeds the gateway, driven as its users do: a browser with its
//! login, a stranger, and a node that joins below the prefix.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Home, LONG, Process, code_of, eventually};

const USERS: &str = "\
alice:wonderland:nodes:read,nodes:admin,runs:read,runs:write
bob:builder:nodes:read
";

/// The example, as cargo builds it beside the binary.
fn example() -> PathBuf {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_moltis"));
    let example = binary.parent().unwrap().join("examples/embed");
    let words = "is missing: build the whole workspace";
    assert!(example.exists(), "{} {words}", example.display());
    example
}

/// The program that embeds, and where it listens.
struct Portal {
    process: Process,
    address: String,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.unwrap_or_else(|| panic!("no {name} in {self:?}")).1
    }
}

impl Portal {
    fn start(home: &Home) -> Self {
        let users = home.write("users.txt", USERS);
        let mut command = Command::new(example());
        command
            .arg("127.0.0.1:0")
            .arg(home.path().join("portal"))
            .arg(users)
            .env_clear();
        let process = Process::start(command);
        let line = process.stdout.wait_for("listening on http://");
        let address = line.trim().rsplit('/').next().unwrap().to_owned();
        Self { process, address }
    }

    /// Sends a request. Its version has no chunks: a body ends with its connection.
    fn open(&self, method: &str, path: &str, headers: &[&str], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let length = format!("content-length: {}", body.len());
        let host = format!("host: {}", self.address);
        let head = [&[host.as_str(), length.as_str()], headers].concat();
        let head = head.join("\r\n");
        let request = format!("{method} {path} HTTP/1.0\r\n{head}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let mut answer = String::new();
        let mut stream = self.open(method, path, headers, body);
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    fn get(&self, path: &str, headers: &[&str]) -> Answer {
        self.ask("GET", path, headers, "")
    }

    fn form(&self, path: &str, headers: &[&str], body: &str) -> Answer {
        self.ask("POST", path, &[&[FORM], headers].concat(), body)
    }

    /// Asks the gateway below the prefix.
    fn api(&self, who: &str, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [who, "content-type: application/json"];
        let path = format!("/moltis/api/v1/{path}");
        self.ask(method, &path, &headers, &body.to_string())
    }

    /// Logs in, and returns the header that shows it.
    fn log_in(&self, name: &str, password: &str) -> String {
        let answer = self.form("/login", &[], &format!("name={name}&password={password}"));
        assert_eq!((answer.status, answer.header("location")), (303, "/"));
        let cookie = answer.header("set-cookie").split(';').next().unwrap();
        format!("cookie: {cookie}")
    }

    /// Joins a machine by what the nested API says.
    fn join(&self, who: &str, machine: &Home, name: &str) -> Process {
        let opened = self.api(who, "PUT", "pairing", &json!({"enabled": true}));
        assert_eq!(opened.status, 200, "{opened:?}");
        let line = self.api(who, "GET", "pairing/command", &json!({})).json();
        let url = line["url"].as_str().unwrap();
        assert_eq!(url, format!("ws://{}/moltis/ws", self.address));
        let node = machine.start(["node", "add", "--foreground", "--host", url, "--name", name]);
        let code = code_of(&node.stdout.wait_for("Connection code"));
        let requests = self.api(who, "GET", "pairing/requests", &json!({})).json();
        let request = &requests["items"][0];
        assert_eq!(request["connection_code"], code);
        let approve = format!(
            "pairing/requests/{}/approve",
            request["id"].as_str().unwrap()
        );
        let seen = json!({"fingerprint": request["fingerprint"], "connection_code": code});
        let approved = self.api(who, "POST", &approve, &seen);
        assert_eq!(approved.status, 200, "{approved:?}");
        node.stdout.wait_for("Approved.");
        eventually("the node online", || {
            let nodes = self.api(who, "GET", "nodes", &json!({})).json();
            (nodes["items"][0]["state"] == "online").then_some(())
        });
        node
    }
}

const FORM: &str = "content-type: application/x-www-form-urlencoded";

#[test]
fn a_program_with_its_own_login_embeds_the_gateway_below_a_prefix() {
    let (home, machine) = (Home::new(), Home::new());
    let portal = Portal::start(&home);
    let alice = portal.log_in("alice", "wonderland");
    let _node = portal.join(&alice, &machine, "box");

    // A page of its own, which asks in-process, and the API below the prefix: one user.
    let page = portal.get("/", &[&alice]);
    assert!(page.body.contains("<option>box</option>"), "{page:?}");
    let command = "node=box&command=printf+hello%3B+exit+3";
    let ran = portal.form("/run", &[&alice], command);
    assert_eq!(ran.body, "hello\n-- Exited with 3 --\n");
    assert_eq!(ran.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(ran.header("x-content-type-options"), "nosniff");
    let run = json!({"node": "box", "argv": ["echo", "hi"]});
    let ran = portal.api(&alice, "POST", "runs?wait=true", &run);
    assert_eq!(ran.json()["stdout"], "hi\n", "{ran:?}");
    let runs = portal.api(&alice, "GET", "runs", &json!({})).json();
    let askers = runs["items"].as_array().unwrap().iter();
    let askers: Vec<_> = askers.map(|run| run["requested_by"].clone()).collect();
    assert_eq!(askers, ["user:alice", "user:alice"]);

    // Another user may do less, everywhere alike.
    let bob = portal.log_in("bob", "builder");
    assert_eq!(portal.get("/", &[&bob]).status, 200);
    let refused = portal.api(&bob, "POST", "runs", &run);
    assert_eq!(refused.json()["code"], "scope_missing", "{refused:?}");
    assert!(refused.body.contains("`user:bob`"), "{refused:?}");
    assert_eq!(portal.form("/run", &[&bob], command).status, 403);

    // A login is worth nothing to a page of another site, and nothing once it has ended.
    let elsewhere = format!("{alice}\r\norigin: http://evil.example");
    let refused = portal.api(&elsewhere, "POST", "runs", &run);
    assert_eq!(refused.json()["code"], "csrf", "{refused:?}");
    assert_eq!(portal.form("/logout", &[&alice], "").status, 303);
    assert_eq!(portal.api(&alice, "GET", "runs", &json!({})).status, 401);
}

#[test]
fn a_stranger_is_refused_and_no_header_makes_it_somebody() {
    let home = Home::new();
    let portal = Portal::start(&home);
    assert_eq!(portal.get("/", &[]).header("location"), "/login");
    assert_eq!(
        portal
            .form("/login", &[], "name=alice&password=guess")
            .status,
        403
    );
    assert_eq!(portal.get("/moltis/healthz", &[]).status, 200);
    for header in [
        "x-none: 1",
        "vouched: alice",
        "x-forwarded-user: alice",
        "remote-user: alice",
        "cookie: workshop=alice",
        "authorization: Basic YWxpY2U6d29uZGVybGFuZA==",
        "authorization: Bearer moltis_guess",
    ] {
        let answer = portal.get("/moltis/api/v1/nodes", &[header]);
        assert_eq!(answer.status, 401, "{header}: {answer:?}");
        assert_eq!(answer.json()["code"], "unauthenticated");
    }
    let page = portal.get("/moltis", &[]);
    assert!(page.body.contains("/moltis/api/v1"), "{page:?}");
    let other = portal.get("/moltis/nothing", &[]).json();
    assert!(
        other["hint"].as_str().unwrap().contains("/moltis/api/v1"),
        "{other}"
    );
    let words = portal.get("/moltis/ws", &[]).body;
    assert!(words.contains("/moltis/ws"), "{words}");
}

#[test]
fn a_program_that_stops_ends_what_lasts_and_no_run() {
    let (home, machine) = (Home::new(), Home::new());
    let mut portal = Portal::start(&home);
    let alice = portal.log_in("alice", "wonderland");
    let mut node = portal.join(&alice, &machine, "box");
    let marker = machine.user().join("done");
    let command = format!(
        "node=box&command=echo+begun%3B+until+test+-e+{0}.go%3B+do+sleep+0.1%3B+done%3B+touch+{0}",
        marker.display()
    );
    let stream = portal.open("POST", "/run", &[FORM, &alice], &command);
    let mut followed = BufReader::new(stream).lines();
    assert!(followed.any(|line| line.unwrap() == "begun"));
    portal.process.signal(Signal::TERM);
    let rest: Vec<String> = followed.map_while(Result::ok).collect();
    assert!(rest.iter().all(|line| !line.contains("Exited")), "{rest:?}");
    let done = portal.process.wait();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.ends_with("stopped\n"), "{done:?}");
    assert!(node.is_running());
    std::fs::write(format!("{}.go", marker.display()), "").unwrap();
    eventually("the run's own end", || marker.exists().then_some(()));
}
