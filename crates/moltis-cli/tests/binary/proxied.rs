//! A proxy that answers in the gateway's place while that is away, as nginx and Caddy do.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use rustix::process::Signal;

use crate::harness::{Home, Process, eventually};

/// What it says then, and a page for people.
const AWAY: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\
                    connection: close\r\n\r\n<html>";

/// Starts one before this gateway and returns its address; each request that has come is told.
fn proxy(target: &str) -> (String, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, came) = mpsc::channel();
    let target = target.to_owned();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (target, tell) = (target.clone(), tell.clone());
            std::thread::spawn(move || pass(&near.unwrap(), &target, &tell));
        }
    });
    (url, came)
}

/// Passes one connection on. One of which nothing came back is answered here.
fn pass(mut near: &TcpStream, target: &str, tell: &mpsc::Sender<()>) -> io::Result<()> {
    let Ok(mut far) = TcpStream::connect(target) else {
        let _asked = near.read(&mut vec![0; 65_536])?; // a connection with unread bytes would be reset
        return refuse(near);
    };
    let (mut asks, mut asked) = (near.try_clone()?, far.try_clone()?);
    let tell = tell.clone();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        while let Ok(length @ 1..) = asks.read(&mut bytes) {
            if asked.write_all(&bytes[..length]).is_err() {
                return;
            }
            tell.send(()).ok(); // nobody has to count them
        }
    });
    let mut bytes = vec![0; 65_536];
    let mut is_answered = false;
    while let Ok(length @ 1..) = far.read(&mut bytes) {
        is_answered = true;
        near.write_all(&bytes[..length])?;
    }
    if !is_answered {
        return refuse(near);
    }
    near.shutdown(Shutdown::Both)
}

fn refuse(mut near: &TcpStream) -> io::Result<()> {
    near.write_all(AWAY.as_bytes())?;
    near.shutdown(Shutdown::Both)
}

/// A command of somebody elsewhere who knows the proxy alone.
fn elsewhere(home: &Home, url: &str, token: &str, line: &[&str]) -> Process {
    let mut command: Command = home.command(line);
    command
        .env("MOLTIS_GATEWAY", url)
        .env("MOLTIS_API_TOKEN", token.trim())
        .stdin(Stdio::piped());
    Process::start(command)
}

#[test]
fn a_request_that_a_proxy_answers_for_a_gateway_that_dies_is_asked_again_and_runs_once() {
    let (home, away) = (Home::new(), Home::new());
    home.write("moltis.toml", "[gateway]\nhosts = [\"127.0.0.1\"]\n");
    let mut gateway = home.gateway();
    let token = home.ok(["token", "create", "--name", "me", "--scope", "admin"]);
    let (url, came) = proxy(&gateway.address);
    let words = ["node", "exec", "local", "--", "echo", "once"];
    // It has the request, and dies before it says a word.
    gateway.process.signal(Signal::STOP);
    let mut exec = elsewhere(&away, &url, &token, &words);
    came.recv().unwrap();
    gateway.crash();
    gateway.restart();
    let done = exec.wait();
    assert_eq!((done.code, done.stdout.as_str()), (0, "once\n"), "{done:?}");
    let runs = home.json(["runs", "list", "--json"]);
    assert_eq!(runs.as_array().map(Vec::len), Some(1), "{runs}");
}

#[test]
fn followers_stdin_and_a_cancel_go_on_behind_a_proxy_when_the_gateway_is_back() {
    let (home, away) = (Home::new(), Home::new());
    home.write("moltis.toml", "[gateway]\nhosts = [\"127.0.0.1\"]\n");
    let mut gateway = home.gateway();
    let token = home.ok(["token", "create", "--name", "me", "--scope", "admin"]);
    let (url, _came) = proxy(&gateway.address);
    let start = |line: &[&str]| elsewhere(&away, &url, &token, line);
    let script = "echo up; read line; echo got $line; sleep 600";
    let mut exec = start(&["node", "exec", "local", "--stdin", "--shell", script]);
    let mut stdin = exec.stdin();
    exec.stdout.wait_for("up");
    let id = home.json(["runs", "list", "--json"])[0]["id"].clone();
    let mut output = start(&["runs", "output", id.as_str().unwrap(), "--follow"]);
    output.stdout.wait_for("up");
    gateway.crash();
    exec.stderr.wait_for("goes on");
    stdin.write_all(b"hello\n").unwrap();
    gateway.restart();
    exec.stdout.wait_for("got hello");
    output.stdout.wait_for("got hello");
    gateway.crash();
    // It is said again until somebody hears it.
    exec.signal(Signal::INT);
    gateway.restart();
    let done = exec.wait();
    assert_eq!(done.code, 130, "{done:?}");
    assert_eq!(done.stdout, "up\ngot hello\n", "{done:?}");
    assert_eq!(output.wait().stdout, "up\ngot hello\n");
    let run = eventually("the run to be over", || {
        let run = home.json(["runs", "list", "--json"])[0].clone();
        (run["state"] == "ended").then_some(run)
    });
    assert_eq!(run["outcome"], "cancelled", "{run}");
}

#[test]
fn a_proxy_that_never_reaches_the_gateway_is_told_of_at_once_and_can_be_left() {
    let away = Home::new();
    // Nobody listens behind it.
    let (url, _came) = proxy("127.0.0.1:1");
    let words = ["node", "exec", "local", "--", "true"];
    let mut exec = elsewhere(&away, &url, "moltis_x", &words);
    exec.stderr
        .wait_for("the gateway cannot be reached through the proxy");
    assert!(exec.is_running(), "{}", exec.stderr.text());
    let said = exec.stderr.text();
    assert!(said.contains("502 Bad Gateway; trying again"), "{said}");
    exec.signal(Signal::INT);
    exec.stderr.wait_for("once more leaves at once");
    exec.signal(Signal::INT);
    let done = exec.wait();
    assert_eq!((done.code, done.stdout.as_str()), (130, ""), "{done:?}");
    assert_eq!(done.stderr.matches("trying again").count(), 1, "{done:?}");
    assert!(done.stderr.contains("may have been started"), "{done:?}");
}
