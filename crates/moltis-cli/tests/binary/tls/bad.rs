//! Certificates that are refused, and files that are none: each is told by what is wrong with it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::certificates::{self, Authority, days, now};
use super::{Gateway, LISTEN, flags, private};
use crate::harness::{Done, Home};

/// Starts a gateway with this certificate, and returns what it warns of, what a node says that joins,
/// and what a command says.
fn tried(pair: &(String, String), ca: &Path) -> [String; 3] {
    let (home, machine) = (Home::new(), Home::new());
    let files = flags(&home.user(), pair);
    let args: Vec<&str> = LISTEN
        .into_iter()
        .chain(files.iter().map(String::as_str))
        .collect();
    let gateway = Gateway::start(&home, &args);
    // `localhost` is a name that no certificate here but one has; the address is in all others.
    let (wss, url, ca) = (gateway.wss(), gateway.url(), ca.to_str().unwrap());
    let add = [
        "node",
        "add",
        "--foreground",
        "--host",
        &wss,
        "--tls-ca",
        ca,
    ];
    let joined = machine.run(add);
    assert_eq!(joined.code, 1, "{joined:?}");
    assert!(
        !machine.path().join("node.json").exists(),
        "it came to nothing"
    );
    let mut list = machine.command(["node", "list", "--gateway", &url, "--tls-ca", ca]);
    list.env("MOLTIS_API_TOKEN", "moltis_secret");
    let asked = crate::harness::run(list);
    assert_eq!(asked.code, 1, "{asked:?}");
    for said in [&joined.stderr, &asked.stderr] {
        assert!(!said.contains("moltis_secret"), "{said}");
        assert!(!said.contains("Gateway key"), "{said}");
    }
    let warned = gateway.process.stderr.text();
    [warned, joined.stderr, asked.stderr]
}

#[track_caller]
fn says(said: &[String], wanted: &[&str]) {
    for said in said {
        for wanted in wanted {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
    }
}

#[test]
fn each_bad_certificate_is_told_apart_from_the_others_and_from_a_refused_key() {
    let home = Home::new();
    let dir = home.user();
    let ours = Authority::new("ours");
    let (ca, other) = (
        ours.write(&dir, "ca.pem"),
        Authority::new("other").write(&dir, "other.pem"),
    );
    let address = ["127.0.0.1"];

    let [warned, said @ ..] = tried(&ours.issue(&address, days(-9, -2)), &ca);
    says(
        &[warned],
        &[
            "has expired on",
            "nodes and commands refuse it",
            "--tls-generate",
        ],
    );
    says(&said, &["its certificate has expired", "date -u"]);

    let [warned, said @ ..] = tried(&ours.issue(&address, days(2, 9)), &ca);
    says(&[warned], &["is not valid before"]);
    says(&said, &["its certificate is not valid yet", "date -u"]);

    let [warned, said @ ..] = tried(&ours.issue(&["gw.example", "192.0.2.7"], now()), &ca);
    assert!(
        !warned.contains("certificate"),
        "it may be right elsewhere: {warned}"
    );
    says(&said, &["not for `127.0.0.1`, but for `gw.example`"]);

    let [_, said @ ..] = tried(&ours.issue(&address, now()), &other);
    says(
        &said,
        &[
            "not signed by anybody whom this machine trusts",
            "--tls-ca <file>",
        ],
    );

    let [warned, said @ ..] = tried(&certificates::of_authority(&address), &ca);
    says(&[warned], &["is that of an authority (`CA:TRUE`)"]);
    says(&said, &["is that of an authority (`CA:TRUE`)"]);
}

#[test]
fn files_that_cannot_be_used_are_told_at_the_start() {
    let home = Home::new();
    let dir = home.user();
    let pair = Authority::new("ours").issue(&["127.0.0.1"], now());
    let other = Authority::new("other").issue(&["127.0.0.1"], now());
    let files = flags(&dir, &pair);
    let start = |files: &[&str]| {
        let args = ["gateway", "--listen", "127.0.0.1:0"];
        home.run(args.iter().chain(files))
    };
    let refused = |done: Done, wanted: &[&str]| {
        assert_eq!(done.code, 1, "{done:?}");
        assert_eq!(done.stdout, "");
        says(&[done.stderr], wanted);
    };
    let [cert_flag, cert, key_flag, key] = files.each_ref().map(String::as_str);
    refused(
        start(&[cert_flag, "/nonexistent.pem", key_flag, key]),
        &[
            "`/nonexistent.pem` cannot be read",
            "hint: is it elsewhere? ls -l /nonexistent.pem",
        ],
    );
    refused(
        start(&[cert_flag, key, key_flag, cert]),
        &["holds no certificate: found a private key", "right order"],
    );
    private(&dir, "other.pem", &other.1);
    let other = dir.join("other.pem");
    refused(
        start(&[cert_flag, cert, key_flag, other.to_str().unwrap()]),
        &["does not belong to the certificate", "openssl x509"],
    );
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(
        start(&[cert_flag, cert, key_flag, key]),
        &["has mode 0644: expected 0600", "chmod 600"],
    );
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();

    home.write("moltis.toml", "[gateway]\ntls_cert = \"/c.pem\"\n");
    refused(
        start(&[]),
        &["`gateway.tls_cert` is set without `gateway.tls_key`"],
    );
    home.write(
        "moltis.toml",
        "[gateway]\ntrusted_proxies = [\"proxy.lan\"]\n",
    );
    refused(
        start(&[]),
        &["`proxy.lan` is no trusted proxy", "10.0.0.0/8"],
    );
    // What the flags say counts, and the same may stand in the file.
    let text = format!("[gateway]\ntls_cert = {cert:?}\ntls_key = {key:?}\n");
    home.write("moltis.toml", &text);
    let gateway = Gateway::start(&home, &LISTEN);
    assert!(!gateway.port().is_empty());
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let home = Home::new();
    for (args, wanted) in [
        (&["gateway", "--tls-cert", "c.pem"][..], "--tls-key"),
        (&["gateway", "--tls-key", "k.pem"], "--tls-cert"),
        (
            &[
                "gateway",
                "--tls-generate",
                "--tls-cert",
                "c.pem",
                "--tls-key",
                "k.pem",
            ],
            "cannot be used with",
        ),
        (
            &["node", "add", "--host", "ws://gw:1/ws", "--tls-ca", "c.pem"],
            "wss://gw:1/ws",
        ),
        (
            &[
                "node",
                "add",
                "--host",
                "wss://gw/ws",
                "--tls-ca",
                "/nonexistent",
            ],
            "`/nonexistent` cannot be read",
        ),
        (
            &[
                "node",
                "list",
                "--gateway",
                "https://gw",
                "--tls-ca",
                "/nonexistent",
            ],
            "`/nonexistent` cannot be read",
        ),
    ] {
        let done = home.run(args);
        assert_eq!(done.code, 2, "{args:?}: {done:?}");
        assert!(done.stderr.contains(wanted), "{args:?}: {done:?}");
    }
}

/// Answers every connection in turn with these bytes, and counts them.
fn answering(answer: Vec<u8>) -> (String, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let asked = stream.read(&mut [0; 4096]);
            assert!(asked.is_ok(), "{asked:?}");
            stream.write_all(&answer).ok(); // nor whether it is heard
        }
    });
    (address, count)
}

#[test]
fn old_versions_of_tls_are_told() {
    // An alert, fatal, `protocol_version` (RFC 8446, 6): all that a server of TLS 1.0 has to say.
    let (address, _) = answering(vec![0x15, 3, 1, 0, 2, 2, 70]);
    let home = Home::new();
    let host = format!("wss://{address}/ws");
    let joined = home.run(["node", "add", "--foreground", "--host", &host]);
    let url = format!("https://{address}");
    let asked = home.run(["node", "list", "--gateway", &url]);
    says(
        &[joined.stderr, asked.stderr],
        &["no version of TLS that is safe"],
    );
}

#[test]
fn a_redirect_is_not_followed_and_a_page_is_no_gateway() {
    let (elsewhere, visits) = answering(Vec::new());
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nlocation: http://{elsewhere}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    let (address, _) = answering(redirect.into_bytes());
    let home = Home::new();
    let ask = |address: &str| {
        let url = format!("http://{address}");
        let mut command = home.command(["node", "list", "--gateway", &url]);
        command.env("MOLTIS_API_TOKEN", "moltis_secret");
        crate::harness::run(command)
    };
    let done = ask(&address);
    assert_eq!(done.code, 1, "{done:?}");
    says(
        &[done.stderr],
        &[
            "302",
            &format!("a redirect to http://{elsewhere}/"),
            "not followed",
        ],
    );
    assert_eq!(visits.load(std::sync::atomic::Ordering::SeqCst), 0);

    let page = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>";
    let (address, _) = answering(page.into());
    let done = ask(&address);
    assert_eq!(done.code, 1, "{done:?}");
    says(&[done.stderr], &["not a gateway's", "a web page"]);
}
