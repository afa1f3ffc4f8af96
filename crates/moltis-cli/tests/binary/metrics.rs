//! `GET /metrics`: sound for a strict reader, moved by what happens, and for whom it is.

mod exposition;

use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use self::exposition::Exposition;
use crate::harness::{Gateway, Home, LONG, code_of, eventually};

/// Asks for a path and returns the whole answer.
fn get(mut stream: impl std::io::Read + std::io::Write, path: &str, headers: &str) -> String {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn over_tcp(gateway: &Gateway<'_>, path: &str, headers: &str) -> String {
    let stream = TcpStream::connect(&gateway.address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    get(stream, path, headers)
}

fn scrape(home: &Home) -> Exposition {
    let stream = UnixStream::connect(home.path().join("gateway.sock")).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let answer = get(stream, "/metrics", "");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    Exposition::read(body).unwrap()
}

/// Scrapes until a series has this value.
fn wait_for(home: &Home, series: &str, value: f64) -> Exposition {
    eventually(series, || {
        let found = scrape(home);
        found
            .value(series)
            .total_cmp(&value)
            .is_eq()
            .then_some(found)
    })
}

#[track_caller]
fn same(found: f64, expected: f64) {
    assert!(
        found.total_cmp(&expected).is_eq(),
        "{found}, not {expected}"
    );
}

#[test]
fn what_happens_moves_the_numbers_and_each_name_stands_in_the_docs() {
    let home = Home::new();
    let gateway = home.gateway();
    let before = scrape(&home);
    for still in [
        "moltis_nodes{state=\"online\"}",
        "moltis_handshakes_accepted_total",
        "moltis_runs_created_total",
        "moltis_runs_ended_total{outcome=\"exited\"}",
        "moltis_output_received_bytes_total",
        "moltis_pairing_window_open",
    ] {
        same(before.value(still), 0.0);
    }
    assert!(before.value("moltis_start_time_seconds") > 1.7e9);
    assert!(before.value("moltis_disk_size_bytes{disk=\"home\"}") > 0.0);

    let machine = Home::new();
    let _node = gateway.join(&machine, "box");
    let joined = wait_for(&home, "moltis_nodes{state=\"online\"}", 1.0);
    same(joined.value("moltis_node_connections"), 1.0);
    assert!(joined.value("moltis_handshakes_accepted_total") >= 1.0);
    same(joined.value("moltis_pairing_window_open"), 1.0);

    home.ok(["node", "exec", "box", "--", "printf", "hello"]);
    let ran = wait_for(&home, "moltis_runs_ended_total{outcome=\"exited\"}", 1.0);
    for once in [
        "moltis_runs_created_total",
        "moltis_runs_started_total",
        "moltis_run_start_seconds_count",
        "moltis_run_seconds_count",
        "moltis_run_overhead_seconds_count",
    ] {
        same(ran.value(once), 1.0);
    }
    for bytes in [
        "moltis_output_received_bytes_total",
        "moltis_output_stored_bytes_total",
    ] {
        same(ran.value(bytes), 5.0);
    }
    same(ran.value("moltis_output_waiting_bytes"), 0.0);
    assert!(ran.value("moltis_store_commit_seconds_count") >= 2.0);
    let started = ran.sum(
        "moltis_http_request_seconds_count",
        "method=\"POST\",route=\"/api/v1/runs\",status=\"2xx\"",
    );
    same(started, 1.0);

    let sleeper = home.start(["node", "exec", "box", "--", "sleep", "600"]);
    wait_for(&home, "moltis_runs_open{state=\"running\"}", 1.0);
    let run = home.json(["runs", "list", "--json"])[0]["id"].clone();
    home.ok(["runs", "cancel", run.as_str().unwrap()]);
    let all = wait_for(&home, "moltis_runs_ended_total{outcome=\"cancelled\"}", 1.0);
    drop(sleeper);

    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operating.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    for name in &all.families {
        assert!(docs.contains(&format!("`{name}")), "{name} is in no docs");
    }
}

#[test]
fn connections_that_come_to_nothing_are_counted_by_reason() {
    let home = Home::new();
    let gateway = home.gateway();
    let refused = |reason: &str| format!("moltis_handshakes_refused_total{{reason=\"{reason}\"}}");
    over_tcp(&gateway, "/ws", "");
    over_tcp(&gateway, "/ws", "origin: http://evil.example\r\n");
    let found = scrape(&home);
    same(found.value(&refused("not_a_node")), 1.0);
    same(found.value(&refused("browser")), 1.0);

    // A stranger while the window is closed.
    let machine = Home::new();
    let ws = gateway.ws();
    let add = [
        "node",
        "add",
        "--foreground",
        "--name",
        "box",
        "--host",
        &ws,
    ];
    let stranger = machine.start(add);
    eventually("a stranger that is turned away", || {
        (scrape(&home).value(&refused("pairing_off")) >= 1.0).then_some(())
    });
    drop(stranger);

    // One whom a person turns away.
    home.ok(["node", "pairing", "enable"]);
    let stranger = machine.start(add);
    let code = code_of(&stranger.stdout.wait_for("Connection code"));
    let id = gateway.request_with(&code);
    same(scrape(&home).value("moltis_pairing_requests_waiting"), 1.0);
    home.ok(["node", "reject", &id, "--yes"]);
    wait_for(&home, &refused("rejected"), 1.0);
    let found = wait_for(&home, "moltis_pairing_requests_waiting", 0.0);
    same(found.value("moltis_handshakes_accepted_total"), 0.0);
    drop(stranger);
}

#[test]
fn metrics_are_for_who_has_their_scope_and_that_scope_is_for_nothing_else() {
    let home = Home::new();
    let gateway = home.gateway();
    let token = |name: &str, scope: &str| {
        let token = home.ok(["token", "create", "--name", name, "--scope", scope]);
        format!("authorization: Bearer {}\r\n", token.trim())
    };
    let (scraper, reader) = (
        token("prometheus", "metrics"),
        token("reader", "nodes:read"),
    );
    for (headers, path, status) in [
        ("", "/metrics", "401"),
        (reader.as_str(), "/metrics", "403"),
        (scraper.as_str(), "/metrics", "200"),
        (scraper.as_str(), "/api/v1/nodes", "403"),
    ] {
        let answer = over_tcp(&gateway, path, headers);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{path}: {answer}"
        );
    }
    let answer = over_tcp(&gateway, "/metrics", &reader);
    assert!(answer.contains("\"scope_missing\""), "{answer}");
    let (_, body) = over_tcp(&gateway, "/metrics", &scraper)
        .split_once("\r\n\r\n")
        .map(|(head, body)| (head.to_owned(), body.to_owned()))
        .unwrap();
    let found = Exposition::read(&body).unwrap();
    let none = "method=\"GET\",route=\"/metrics\",status=\"4xx\"";
    same(found.sum("moltis_http_request_seconds_count", none), 3.0);
}
