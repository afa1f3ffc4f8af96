//! The gateway as a service, and the logs of both.

use std::fs;

use crate::harness::Home;
use crate::systemd::UserManager;

#[test]
fn the_log_is_followed_through_its_turning_over() {
    let machine = Home::new();
    let path = machine.path().join("node.log");
    let printed = machine.ok(["node", "logs"]);
    assert_eq!(printed.trim(), path.to_str().unwrap(), "before any line");
    let printed = machine.json(["node", "logs", "--json"]);
    assert_eq!(printed["path"], path.to_str().unwrap());
    machine.write("node.log", "one\n");
    let mut following = machine.start(["node", "logs", "-f"]);
    following.stdout.wait_for("one");
    fs::rename(&path, machine.path().join("node.log.1")).unwrap();
    machine.write("node.log", "two\n");
    following.stdout.wait_for("two");
    following.signal(rustix::process::Signal::INT);
    let done = following.wait();
    assert_eq!((done.code, &*done.stdout), (130, "one\ntwo\n"), "{done:?}");
}

const GATEWAY: &str = "moltis-gateway.service";

#[test]
fn a_gateway_is_a_service_too() {
    let machine = Home::new();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let before = manager.json(["gateway", "status", "--json"]);
    assert_eq!(before["service"], "not_installed");
    assert_eq!(before["running"], false);
    assert_eq!(before["addresses"], serde_json::json!([]));

    // What would not start is not left to try for ever in silence.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let in_use = manager.run(["gateway", "install", "--listen", &address]);
    assert_eq!(in_use.code, 1, "{in_use:?}");
    assert!(in_use.stderr.contains("the port is in use"), "{in_use:?}");
    assert!(
        in_use.stderr.contains("moltis gateway uninstall"),
        "{in_use:?}"
    );
    drop(taken);

    let secured = [
        "--tls-generate",
        "--insecure-http",
        "--listen",
        "127.0.0.1:0",
    ];
    let installed = manager.ok(["gateway", "install"].iter().chain(&secured));
    assert!(
        installed.contains("listening on https://127.0.0.1:"),
        "{installed}"
    );
    let unit = machine.user().join(".config/systemd/user").join(GATEWAY);
    let unit = fs::read_to_string(unit).unwrap();
    assert!(unit.contains("--tls-generate") && unit.contains("--insecure-http"));
    let installed = manager.ok(["gateway", "install", "--listen", "127.0.0.1:0"]);
    assert!(
        installed.contains(
            "Service installed and running (~/.config/systemd/user/moltis-gateway.service)."
        ),
        "{installed}"
    );
    assert!(
        installed.contains("listening on http://127.0.0.1:"),
        "{installed}"
    );
    let status = manager.json(["gateway", "status", "--json"]);
    assert_eq!(status["service"], "running");
    assert_eq!(status["running"], true);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        status["fingerprint"]
            .as_str()
            .unwrap()
            .starts_with("SHA256:")
    );
    let address = status["addresses"][0].as_str().unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert!(manager.property(GATEWAY, "StatusText").contains(address));

    // A command on this machine runs through a restart of the service.
    let run = manager.ok([
        "node",
        "exec",
        "local",
        "--detach",
        "--shell",
        "until [ -e go ]; do sleep 0.05; done; echo went",
    ]);
    assert_eq!(manager.systemctl(["restart", GATEWAY]).code, 0);
    fs::write(machine.user().join("go"), "").unwrap();
    let attached = manager.run(["runs", "attach", run.trim()]);
    assert_eq!(
        (attached.code, &*attached.stdout),
        (0, "went\n"),
        "{attached:?}"
    );
    let log = manager.ok(["gateway", "logs"]);
    assert!(fs::metadata(log.trim()).unwrap().len() > 0);

    let removed = manager.json(["gateway", "uninstall", "--json"]);
    assert_eq!(removed["service_removed"], true);
    assert_eq!(
        manager.json(["gateway", "status", "--json"])["running"],
        false
    );
    let twice = manager.run(["gateway", "uninstall"]);
    assert_eq!(twice.code, 0, "{twice:?}");
    assert!(twice.stderr.contains("nothing to remove"), "{twice:?}");

    // One that runs in a terminal is not fought with.
    let terminal = manager.start_moltis(["gateway", "--listen", "127.0.0.1:0"]);
    terminal.stdout.wait_for("listening on");
    let refused = manager.run(["gateway", "install"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("not as a service"), "{refused:?}");
    assert!(!manager.unit(GATEWAY).exists());
}

#[test]
fn a_gateway_that_is_installed_again_loses_neither_its_work_nor_its_reasons() {
    let machine = Home::new();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let installed = manager.run(["gateway", "install", "--listen", "127.0.0.1:0"]);
    assert_eq!(installed.code, 0, "{installed:?}");
    assert!(
        installed.stderr.contains("other machines cannot reach it")
            && installed
                .stderr
                .contains("moltis gateway install --listen 0.0.0.0:"),
        "{installed:?}"
    );
    // What would not start does not take the place of what runs.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = manager.run(["gateway", "install", "--listen", &address]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("the port is in use"), "{refused:?}");
    assert!(
        refused.stderr.contains("as it was installed before"),
        "{refused:?}"
    );
    let status = manager.json(["gateway", "status", "--json"]);
    assert_eq!(status["running"], true);
    // Other flags are taken, and what was there before is told.
    let config = "[gateway]\nlisten = [\"127.0.0.1:0\"]\n";
    machine.write("moltis.toml", config);
    let plain = manager.run(["gateway", "install"]);
    assert_eq!(plain.code, 0, "{plain:?}");
    assert!(
        plain
            .stderr
            .contains("it was installed before as: moltis gateway --listen 127.0.0.1:0"),
        "{plain:?}"
    );
    // A configuration that goes bad is named where people are sent to look.
    machine.write("moltis.toml", "listen = 3\n");
    manager.systemctl(["restart", GATEWAY]);
    let log = fs::read_to_string(machine.path().join("gateway.log")).unwrap();
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    assert!(last.contains("moltis.toml"), "{last}");
}
