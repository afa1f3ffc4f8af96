//! HTTPS by the real binary: a gateway with a certificate of its own or with files, nodes over `wss://`,
//! administration over `https://`, and everything that can be wrong with a certificate.

mod bad;
mod certificates;
mod commands;
mod proxy;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use self::certificates::Authority;
use crate::harness::{Done, Home, Process, code_of, eventually, not_tested, run};
use crate::remote::own_address;

/// A gateway that serves TLS.
struct Gateway<'a> {
    home: &'a Home,
    process: Process,
    /// `127.0.0.1:41233`
    address: String,
}

impl<'a> Gateway<'a> {
    fn start(home: &'a Home, args: &[&str]) -> Self {
        let process = home.start(["gateway"].iter().chain(args));
        let line = process.stdout.wait_for("listening on https://");
        let address = line
            .lines()
            .find_map(|line| line.strip_prefix("listening on https://"));
        Self {
            home,
            address: address.unwrap().trim().to_owned(),
            process,
        }
    }

    fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap()
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn wss(&self) -> String {
        format!("wss://{}/ws", self.address)
    }

    /// Lets a machine join over wss, and waits until it has.
    fn join(&self, machine: &Home, name: &str, ca: &Path) -> Process {
        self.home.ok(["node", "pairing", "enable"]);
        let (ca, wss) = (ca.to_str().unwrap(), self.wss());
        let node = machine.start([
            "node",
            "add",
            "--foreground",
            "--name",
            name,
            "--host",
            &wss,
            "--tls-ca",
            ca,
        ]);
        let code = code_of(&node.stdout.wait_for("Connection code"));
        let pending = self.home.json(["node", "pending", "--json"]);
        let mut requests = pending.as_array().unwrap().iter();
        let request = requests.find(|one| one["connection_code"].as_str() == Some(&code));
        let id = request.unwrap()["id"].as_str().unwrap().to_owned();
        self.home.ok(["node", "approve", &id, "--yes"]);
        node.stdout.wait_for("Approved.");
        node
    }

    fn token(&self) -> String {
        let create = ["token", "create", "--name", "me", "--scope", "admin"];
        self.home.ok(create).trim().to_owned()
    }

    /// A command of another machine that administers this gateway.
    fn remote(&self, home: &Home, token: &str, ca: &Path, args: &[&str]) -> Command {
        let mut command = home.command(args);
        command
            .env("MOLTIS_GATEWAY", self.url())
            .env("MOLTIS_API_TOKEN", token)
            .env("MOLTIS_TLS_CA", ca);
        command
    }
}

/// Writes two files in PEM as a person would have them, and returns the flags that name them.
fn flags(dir: &Path, (certificate, key): &(String, String)) -> [String; 4] {
    let certificate = private(dir, "cert.pem", certificate);
    let key = private(dir, "key.pem", key);
    let shown = |path: PathBuf| path.to_str().unwrap().to_owned();
    [
        "--tls-cert".to_owned(),
        shown(certificate),
        "--tls-key".to_owned(),
        shown(key),
    ]
}

fn private(dir: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

const LISTEN: [&str; 2] = ["--listen", "127.0.0.1:0"];

#[test]
fn a_certificate_that_the_gateway_makes_is_enough_for_nodes_and_administration() {
    let (home, machine, elsewhere) = (Home::new(), Home::new(), Home::new());
    let gateway = Gateway::start(&home, &["--listen", "127.0.0.1:0", "--tls-generate"]);
    let own = home.path().join("gateway_tls.pem");
    let told = gateway.process.stderr.wait_for("--tls-ca");
    assert!(
        told.contains("gateway_tls.pem") && told.contains("SHA-256"),
        "{told}"
    );
    let line = home.ok(["node", "pairing", "enable"]);
    let expected = format!("--host {}", gateway.wss());
    assert!(
        line.contains(&expected) && line.contains("--tls-ca gateway_tls.pem"),
        "{line}"
    );

    // What travelled is a copy, which may be gone once the node has joined.
    let copy = machine.user().join("copy.pem");
    std::fs::copy(&own, &copy).unwrap();
    let node = gateway.join(&machine, "box", &copy);
    std::fs::remove_file(&copy).unwrap();
    let token = gateway.token();
    let ran = run(gateway.remote(
        &elsewhere,
        &token,
        &own,
        &["node", "exec", "box", "--", "echo", "hi"],
    ));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "hi\n"), "{ran:?}");

    // The same certificate after a restart, and the node comes back by itself.
    let listen = gateway.address.clone();
    let shown = |home: &Home| {
        home.json(["gateway", "status", "--json"])["certificate"]["fingerprint"].clone()
    };
    let before = shown(&home);
    assert!(before.is_string());
    gateway.process.signal(Signal::TERM);
    drop(gateway);
    let gateway = Gateway::start(&home, &["--listen", &listen, "--tls-generate"]);
    assert_eq!(shown(&home), before);
    eventually("the node to be back", || {
        let nodes = home.json(["node", "list", "--json"]);
        (nodes[0]["state"] == "online").then_some(())
    });
    node.stderr.wait_for("connected again");
    let ran = run(gateway.remote(
        &elsewhere,
        &token,
        &own,
        &["node", "exec", "box", "--", "true"],
    ));
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn a_node_that_joined_in_the_clear_goes_on_and_moves_to_tls_without_a_new_approval() {
    let (home, machine) = (Home::new(), Home::new());
    let plain = home.gateway();
    let node = plain.join(&machine, "box");
    let listen = plain.address.clone();
    plain.process.signal(Signal::TERM);
    drop(plain);
    let gateway = Gateway::start(&home, &["--listen", &listen, "--tls-generate"]);
    node.stderr.wait_for("connected again");
    node.signal(Signal::INT);
    drop(node);
    let own = home.path().join("gateway_tls.pem");
    let wss = gateway.wss();
    let moved = machine.start([
        "node",
        "add",
        "--foreground",
        "--host",
        &wss,
        "--tls-ca",
        own.to_str().unwrap(),
    ]);
    moved.stdout.wait_for(&format!("Connected to {wss}"));
    eventually("the node to be there", || {
        let nodes = home.json(["node", "list", "--all", "--json"]);
        assert_eq!(nodes.as_array().unwrap().len(), 1, "{nodes}");
        (nodes[0]["state"] == "online").then_some(())
    });
}

#[test]
fn a_new_certificate_is_taken_up_while_nodes_stay_connected() {
    let (home, machine, elsewhere) = (Home::new(), Home::new(), Home::new());
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let dir = home.user();
    let names = ["127.0.0.1"];
    let files = flags(&dir, &old.issue(&names, certificates::now()));
    let args: Vec<&str> = LISTEN
        .into_iter()
        .chain(files.iter().map(String::as_str))
        .collect();
    let gateway = Gateway::start(&home, &args);
    let (old_ca, new_ca) = (old.write(&dir, "old.pem"), new.write(&dir, "new.pem"));
    let _node = gateway.join(&machine, "box", &old_ca);
    let token = gateway.token();
    let ask = |ca: &Path| run(gateway.remote(&elsewhere, &token, ca, &["node", "list", "--json"]));
    let since = || home.json(["node", "describe", "box", "--json"])["connected_since"].clone();
    let connected = since();
    let listen = || {
        let findings = home.run(["doctor", "--json"]).stdout;
        let findings: serde_json::Value = serde_json::from_str(&findings).unwrap();
        let all = findings.as_array().unwrap();
        all.iter()
            .find(|one| one["check"] == "listen")
            .unwrap()
            .clone()
    };
    assert_eq!(listen()["level"], "ok");

    private(&dir, "cert.pem", "half a certi");
    eventually("the doctor to complain", || {
        (listen()["level"] == "error").then_some(())
    });
    assert!(
        listen()["message"]
            .as_str()
            .unwrap()
            .contains("holds no certificate")
    );
    gateway
        .process
        .stderr
        .wait_for("the new certificate cannot be used");
    assert_eq!(ask(&old_ca).code, 0, "the old one is in use");

    flags(&dir, &new.issue(&names, certificates::now()));
    eventually("the new one", || (ask(&new_ca).code == 0).then_some(()));
    let refused = ask(&old_ca);
    assert!(
        refused.stderr.contains("not signed by anybody"),
        "{refused:?}"
    );
    assert_eq!(listen()["level"], "ok");
    assert_eq!(since(), connected, "the node has not noticed");
    let nodes: serde_json::Value = serde_json::from_str(&ask(&new_ca).stdout).unwrap();
    assert_eq!(nodes[0]["state"], "online");
}

#[test]
fn on_an_address_of_the_network_tls_opens_the_whole_site() {
    let Some(address) = own_address() else {
        not_tested(
            "TLS on an address that is not loopback",
            "this machine has none, so the binary served loopback alone",
        );
        return;
    };
    let (home, elsewhere) = (Home::new(), Home::new());
    let gateway = Gateway::start(&home, &["--listen", "0.0.0.0:0", "--tls-generate"]);
    let own = home.path().join("gateway_tls.pem");
    let token = gateway.token();
    let at = format!("{address}:{}", gateway.port());
    let ask = |scheme: &str| {
        let mut command = gateway.remote(&elsewhere, &token, &own, &["node", "list"]);
        command.env("MOLTIS_GATEWAY", format!("{scheme}://{at}"));
        run(command)
    };
    let done = ask("https");
    assert_eq!(done.code, 0, "{done:?}");
    let done = ask("http");
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.contains("MOLTIS_API_TOKEN was not sent"),
        "{done:?}"
    );
    assert!(done.stderr.contains("https://"), "{done:?}");
    let line = home.ok(["node", "pairing", "enable"]);
    assert!(line.contains(&format!("--host wss://{at}/ws")), "{line}");

    let answer = plain(&at, "GET /settings/nodes");
    assert!(answer.starts_with("HTTP/1.1 307"), "{answer}");
    assert!(
        answer.contains(&format!("location: https://{at}/settings/nodes")),
        "{answer}"
    );
    let answer = plain(&at, "GET /api/v1/nodes");
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("tls_required"),
        "{answer}"
    );
    assert!(plain(&at, "GET /healthz").starts_with("HTTP/1.1 200"));
}

/// The answer to a request without TLS.
fn plain(address: &str, what: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("{what} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn plain_http_and_tls_meet_at_the_wrong_port_and_are_told() {
    let home = Home::new();
    let gateway = home.gateway();
    let says = |done: Done, wanted: &[&str]| {
        assert_ne!(done.code, 0, "{done:?}");
        for wanted in wanted {
            assert!(done.stderr.contains(wanted), "{wanted}: {done:?}");
        }
        assert!(
            !done.stderr.contains("key"),
            "it is no matter of keys: {done:?}"
        );
    };
    let machine = Home::new();
    let host = format!("wss://{}/ws", gateway.address);
    let done = machine.run(["node", "add", "--foreground", "--host", &host]);
    says(done, &["does not speak TLS", &gateway.ws()]);
    let url = format!("https://{}", gateway.address);
    let done = machine.run(["node", "list", "--gateway", &url]);
    says(
        done,
        &["does not speak TLS", &format!("http://{}", gateway.address)],
    );
}
