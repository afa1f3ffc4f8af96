//! A gateway that is there and says nothing, as one that was stopped; and one that breaks off.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Home, Process};

/// What is said of a gateway that lets a command wait.
const WAITS: &str = "does not answer yet; waiting";

#[test]
fn who_waits_for_a_gateway_that_is_stopped_is_told_and_doctor_and_status_do_not_wait_for_long() {
    let home = Home::new();
    let gateway = home.gateway();
    gateway.process.signal(Signal::STOP);
    let mut doctor = home.start(["doctor", "--json"]);
    let mut status = home.start(["gateway", "status"]);
    let mut as_json = home.start(["gateway", "status", "--json"]);
    let mut list = home.start(["runs", "list"]);
    let mut unread = shell(&home, r#"exec "$0" runs list 2>&-"#);
    for process in [&doctor, &status, &as_json, &list] {
        process.stderr.wait_for(WAITS);
    }
    let silent = "takes connections and gave no answer within 10 s";
    let done = doctor.wait();
    assert_eq!(done.code, 1, "{done:?}");
    let findings: Value = serde_json::from_str(&done.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    let found = findings.iter().find(|found| found["check"] == "gateway");
    let found = found.unwrap();
    assert_eq!(found["level"], "error", "{found:#}");
    assert!(
        found["message"].as_str().unwrap().contains(silent),
        "{found:#}"
    );
    assert!(found["hint"].is_string(), "{found:#}");
    let done = status.wait();
    assert_eq!(done.code, 1, "{done:?}");
    let running = "yes, and it does not answer";
    assert!(done.stdout.contains(running), "{done:?}");
    assert!(done.stderr.contains(silent), "{done:?}");
    let done = as_json.wait();
    let document: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(document["running"], true, "{document:#}");
    assert_eq!(document["answers"], false, "{document:#}");
    // The others wait on, and say no more.
    assert!(list.is_running() && unread.is_running());
    gateway.process.signal(Signal::CONT);
    let done = list.wait();
    assert_eq!(
        (done.code, done.stderr.matches(WAITS).count()),
        (0, 1),
        "{done:?}"
    );
    assert_eq!(unread.wait().code, 0);
}

/// A shell that runs the binary, which is its `$0`.
fn shell(home: &Home, script: &str) -> Process {
    let plain = home.command([""; 0]);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(plain.get_program());
    command.env_clear().envs(home.environment());
    command.stdin(Stdio::null());
    Process::start(command)
}

/// Takes one connection after the other, reads a request, and answers with these bytes.
fn answering(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = vec![0; 65_536];
            let _what_is_asked_does_not_matter = stream.read(&mut request);
            stream.write_all(bytes).ok(); // nor who is left to hear it
        }
    });
    url
}

#[test]
fn a_connection_that_breaks_is_told_in_a_plain_sentence_with_what_to_type_next() {
    let home = Home::new();
    let torn = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n[";
    for (bytes, line, said, hint) in [
        (
            &b""[..],
            "token list",
            "broke before it answered\n",
            "ask again",
        ),
        (
            b"",
            "runs claim 0123456789abcdef0123456789abcdef",
            "broke before it answered; whether it has done what it was asked for is not known\n",
            "look before you type it again",
        ),
        (
            torn,
            "token list",
            "broke in the middle of its answer\n",
            "ask again",
        ),
        (
            b"SSH-2.0-x\r\n",
            "token list",
            "does not speak HTTP\n",
            "does something else",
        ),
    ] {
        let mut command = home.command(line.split(' '));
        command.env("MOLTIS_GATEWAY", answering(bytes));
        let done = Process::start(command).wait();
        assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:?}");
        assert!(done.stderr.contains(said), "{done:?}");
        assert!(done.stderr.contains(&format!("hint: {hint}")), "{done:?}");
        for jargon in [
            "os error",
            "connection error",
            "incomplete",
            "parse",
            "body",
        ] {
            assert!(!done.stderr.contains(jargon), "{done:?}");
        }
    }
}

#[test]
fn what_is_too_long_to_be_asked_for_is_said_at_once() {
    let home = Home::new();
    let _gateway = home.gateway();
    let done = home.run(["runs", "show", &"x".repeat(70_000)]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("this cannot be asked for"), "{done:?}");
    assert!(!done.stderr.contains("waiting"), "{done:?}");
}
