//! A proxy before the gateway: what it tells is believed where it is named, and nowhere else.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use crate::harness::{Home, Process};

/// A proxy on this machine that adds these lines to the head of each request, as nginx would.
fn proxy(target: &str, lines: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (target, lines) = (target.to_owned(), lines.to_owned());
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (target, lines) = (target.clone(), lines.clone());
            std::thread::spawn(move || pass(near.unwrap(), &target, &lines));
        }
    });
    address
}

fn pass(near: TcpStream, target: &str, lines: &str) -> Option<()> {
    let far = TcpStream::connect(target).ok()?;
    let (mut to_near, mut from_far) = (near.try_clone().ok()?, far.try_clone().ok()?);
    let back = std::thread::spawn(move || std::io::copy(&mut from_far, &mut to_near).ok());
    let (mut near, mut far) = (BufReader::new(near), far);
    let mut first = String::new();
    near.read_line(&mut first).ok()?;
    far.write_all(format!("{first}{lines}").as_bytes()).ok()?;
    std::io::copy(&mut near, &mut far).ok()?;
    back.join().ok()?.map(drop)
}

/// Returns the address that the operator is shown of a node that asks to pair through a proxy.
fn shown_address(trusted: &str, lines: &str) -> String {
    let (home, machine) = (Home::new(), Home::new());
    home.write(
        "moltis.toml",
        &format!("[gateway]\ntrusted_proxies = {trusted}\n"),
    );
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let host = format!("ws://{}/ws", proxy(&gateway.address, lines));
    let node: Process = machine.start(["node", "add", "--foreground", "--host", &host]);
    node.stdout.wait_for("Connection code");
    let pending = home.json(["node", "pending", "--json"]);
    pending[0]["remote_address"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn the_address_of_a_node_is_the_one_that_a_named_proxy_tells() {
    let line = "X-Forwarded-For: 127.0.0.1, 203.0.113.9\r\n";
    for (trusted, lines, expected) in [
        ("[\"127.0.0.1\"]", line, "203.0.113.9"),
        ("[]", line, "127.0.0.1"),
        ("[\"10.0.0.0/8\"]", line, "127.0.0.1"),
        (
            "[\"127.0.0.1\"]",
            "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 198.51.100.7\r\n",
            "198.51.100.7",
        ),
    ] {
        assert_eq!(shown_address(trusted, lines), expected, "{trusted} {lines}");
    }
    // A lie is nobody's address, and not this machine's.
    let lie = shown_address("[\"127.0.0.1\"]", "X-Forwarded-For: 127.0.0.1\r\n");
    assert!(!lie.contains("127.0.0.1"), "{lie}");
}

#[test]
fn the_line_to_copy_names_the_proxy_and_its_tls() {
    let home = Home::new();
    let config = "[gateway]\ntrusted_proxies = [\"127.0.0.1\"]\nhosts = [\"moltis.example\"]\n";
    home.write("moltis.toml", config);
    let gateway = home.gateway();
    let create = ["token", "create", "--name", "me", "--scope", "nodes:admin"];
    let token = home.ok(create);
    let line = |forwarded: &str| {
        let mut stream = TcpStream::connect(&gateway.address).unwrap();
        let request = format!(
            "GET /api/v1/pairing/command HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
             connection: close\r\n{forwarded}\r\n",
            gateway.address,
            token.trim()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let told = line(
        "x-forwarded-for: 203.0.113.9\r\nx-forwarded-host: moltis.example\r\nx-forwarded-proto: https\r\n",
    );
    assert!(told.contains("--host wss://moltis.example/ws"), "{told}");
    let told = line("");
    assert!(
        told.contains(&format!("--host ws://{}/ws", gateway.address)),
        "{told}"
    );
    let told = line("x-forwarded-for: 203.0.113.9\r\nx-forwarded-host: evil.example\r\n");
    assert!(
        told.contains("421") && told.contains("evil.example"),
        "{told}"
    );
}
