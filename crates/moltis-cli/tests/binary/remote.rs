//! A gateway on another machine, by `--gateway` and a token.

use crate::harness::{Home, not_tested, run};

#[test]
fn a_gateway_is_administered_over_tcp_with_a_token() {
    let home = Home::new();
    let gateway = home.gateway();
    let token = home.ok([
        "token",
        "create",
        "--name",
        "me",
        "--scope",
        "admin",
        "--expires",
        "1h",
    ]);
    let elsewhere = Home::new();
    let url = format!("http://{}", gateway.address);
    let mut command = elsewhere.command(["node", "exec", "local", "--", "echo", "hello"]);
    command
        .env("MOLTIS_GATEWAY", &url)
        .env("MOLTIS_API_TOKEN", token.trim());
    let done = run(command);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "hello\n"),
        "{done:?}"
    );
    let run_by = &home.json(["runs", "list", "--json"])[0]["requested_by"];
    assert_eq!(run_by, "token:me");

    let without = elsewhere.run(["runs", "list", "--gateway", &url]);
    assert_eq!(without.code, 1, "{without:?}");
    assert!(without.stderr.contains("MOLTIS_API_TOKEN"), "{without:?}");
    let mut command = elsewhere.command(["node", "exec", "local", "--gateway", &url, "--", "true"]);
    command.env("MOLTIS_API_TOKEN", "moltis_wrong");
    assert_eq!(run(command).code, 125);
    for no_token in ["garbage", "moltis_\u{1}", "Bearer moltis_x"] {
        let mut command = elsewhere.command(["node", "list", "--gateway", &url]);
        command.env("MOLTIS_API_TOKEN", no_token);
        let done = run(command);
        assert_eq!(done.code, 1, "{done:?}");
        for words in ["MOLTIS_API_TOKEN holds no token", "moltis token create"] {
            assert!(done.stderr.contains(words), "{done:?}");
        }
        assert!(!done.stderr.contains("garbage"), "{done:?}");
    }
}

#[test]
fn addresses_that_do_not_work_yet_or_never_are_told() {
    let home = Home::new();
    for (url, code, wanted) in [
        ("https://127.0.0.1:1", 1, "cannot be reached"),
        ("gw:9090", 2, "http://"),
        ("ws://gw:9090/ws", 2, "where nodes dial"),
        ("http://u:hunter2@gw:9090", 2, "MOLTIS_API_TOKEN"),
        ("http://127.0.0.1:1", 1, "cannot be reached"),
    ] {
        let done = home.run(["runs", "list", "--gateway", url]);
        assert_eq!(done.code, code, "{url}: {done:?}");
        assert!(done.stderr.contains(wanted), "{url}: {done:?}");
        assert!(!done.stderr.contains("hunter2"));
    }
    let done = home.run([
        "node",
        "exec",
        "box",
        "--gateway",
        "http://127.0.0.1:1",
        "--",
        "true",
    ]);
    assert_eq!(done.code, 125, "{done:?}");
}

#[test]
fn without_a_gateway_here_the_way_to_one_is_named() {
    let home = Home::new();
    let done = home.run(["node", "list"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("no gateway runs here"), "{done:?}");
    assert!(done.stderr.contains("--gateway"), "{done:?}");
    assert_eq!(home.run(["node", "exec", "box", "--", "true"]).code, 125);

    let (gateway_home, machine) = (Home::new(), Home::new());
    let gateway = gateway_home.gateway();
    let _node = gateway.join(&machine, "box");
    let done = machine.run(["node", "pending"]);
    assert_eq!(done.code, 1);
    let wanted = format!("this machine is a node of {}", gateway.ws());
    assert!(done.stderr.contains(&wanted), "{done:?}");
    assert!(
        done.stderr
            .contains("type this on the gateway, or pass --gateway"),
        "{done:?}"
    );
}

#[test]
fn an_address_that_is_not_loopback_serves_nodes_and_nothing_else() {
    let home = Home::new();
    let gateway = home.gateway_with(&["--listen", "0.0.0.0:0"]);
    let port = gateway.address.rsplit(':').next().unwrap();
    let Some(address) = own_address() else {
        not_tested(
            "an address that is not loopback",
            "this machine has none, so the gate was not tried by the binary",
        );
        return;
    };
    let done = home.run([
        "runs",
        "list",
        "--gateway",
        &format!("http://{address}:{port}"),
    ]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("TLS"), "{done:?}");
}

/// An address of this machine that is not loopback. Nothing is sent.
pub(crate) fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[test]
fn whoever_may_not_run_here_may_not_touch_what_runs_here() {
    let home = Home::new();
    let gateway = home.gateway();
    let run = home.ok(["node", "exec", "local", "--detach", "--shell", "sleep 600"]);
    let run = run.trim();
    let token = home.ok([
        "token",
        "create",
        "--name",
        "writer",
        "--scope",
        "runs:write",
        "--scope",
        "runs:read",
    ]);
    let mut cancel = home.command(["runs", "cancel", run]);
    cancel
        .env("MOLTIS_GATEWAY", format!("http://{}", gateway.address))
        .env("MOLTIS_API_TOKEN", token.trim());
    let refused = crate::harness::run(cancel);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("lacks the scope `admin`"),
        "{refused:?}"
    );
    let shown = home.json(["runs", "show", run, "--json"]);
    assert_eq!(shown["cancel_requested_at"], serde_json::Value::Null);
    home.ok(["runs", "cancel", run]);
}
