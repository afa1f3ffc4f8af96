//! Connections that are cut in the middle of a long output, as a gateway does with a reader who takes
//! nothing for long, and proxies with many.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use crate::harness::{Home, run};

/// Bytes of answers that a connection carries.
const CARRIED: u64 = 700_000;

/// A way to a gateway on which every connection is cut after [`CARRIED`] bytes.
fn cutting(target: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let target = target.to_owned();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let target = target.clone();
            std::thread::spawn(move || carry(&near.unwrap(), &target));
        }
    });
    format!("http://{address}")
}

fn carry(mut near: &TcpStream, target: &str) -> std::io::Result<()> {
    let far = TcpStream::connect(target)?;
    let (mut asks, mut asked) = (near.try_clone()?, far.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut asks, &mut asked));
    std::io::copy(&mut (&far).take(CARRIED), &mut near)?;
    near.shutdown(std::net::Shutdown::Both)?;
    far.shutdown(std::net::Shutdown::Both)
}

fn numbers() -> String {
    let all: Vec<_> = (1..=400_000)
        .map(|number: u32| number.to_string())
        .collect();
    all.join("\n") + "\n"
}

/// Runs a command over such a way, and expects all numbers and not a word.
#[track_caller]
fn is_whole_and_quiet(mut command: Command, url: &str, token: &str) {
    command
        .env("MOLTIS_GATEWAY", url)
        .env("MOLTIS_API_TOKEN", token.trim());
    let done = run(command);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert!(done.stdout == numbers(), "{} bytes", done.stdout.len());
}

#[test]
fn output_goes_on_at_the_byte_without_a_word_behind_cuts() {
    let home = Home::new();
    // What is carried asks for the port of who carries it.
    home.write("moltis.toml", "[gateway]\nhosts = [\"127.0.0.1\"]\n");
    let gateway = home.gateway();
    let token = home.ok(["token", "create", "--name", "me", "--scope", "admin"]);
    let url = cutting(&gateway.address);
    let elsewhere = Home::new();
    let exec = elsewhere.command(["node", "exec", "local", "--", "seq", "1", "400000"]);
    is_whole_and_quiet(exec, &url, &token);
    let id = home.json(["runs", "list", "--json"])[0]["id"].clone();
    let id = id.as_str().unwrap();
    for args in [
        &["runs", "attach", id][..],
        &["runs", "output", id],
        &["runs", "output", id, "--follow"],
    ] {
        is_whole_and_quiet(elsewhere.command(args), &url, &token);
    }
}
