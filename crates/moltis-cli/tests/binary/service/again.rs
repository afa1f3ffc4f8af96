//! The same line again, in every state that a machine can be in, and what disturbs it.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;

use rustix::process::Signal;

use super::{NODE, approve, echo, join, start_add, status, wait_until_connected};
use crate::harness::{Home, eventually};
use crate::systemd::UserManager;

#[test]
fn a_node_that_waits_keeps_what_its_owner_said_whatever_becomes_of_the_next_line() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let first = start_add(&gateway, &manager, &["--no-wait", "--timeout", "60"]).wait();
    assert_eq!(first.code, 0, "{first:?}");
    manager.ok(["node", "policy", "off"]);
    let file = machine.path().join("node.json");
    let before = fs::read_to_string(&file).unwrap();
    let other_key = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let wrong = start_add(&gateway, &manager, &["--gateway-key", other_key]).wait();
    assert_eq!(wrong.code, 1, "the key that was shown is pinned: {wrong:?}");
    let nowhere = manager.run(["node", "add", "--host", "ws://127.0.0.1:1/ws"]);
    assert_eq!(nowhere.code, 1, "{nowhere:?}");
    let mut cancelled = start_add(&gateway, &manager, &[]);
    cancelled.stderr.wait_for("Waiting for approval");
    manager.shell("pkill -INT -f 'moltis node add'");
    assert_eq!(cancelled.wait().code, 130);
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    let code = eventually("the service to wait again", || {
        status(&manager)["connection_code"]
            .as_str()
            .map(str::to_owned)
    });
    home.ok(["node", "approve", &gateway.request_with(&code), "--yes"]);
    wait_until_connected(&manager);
    let refused = home.run(["node", "exec", "box", "--", "true"]);
    assert_eq!(refused.code, 125, "the policy is off: {refused:?}");
    let node = home.json(["node", "describe", "box", "--json"]);
    assert_eq!(node["timeout_seconds"], 60);
}

#[test]
fn a_node_that_its_gateway_forgot_joins_again_without_waiting() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    join(&gateway, &manager, &[]);
    manager.systemctl(["stop", NODE]);
    home.ok(["node", "forget", "box", "--yes"]);
    let added = start_add(&gateway, &manager, &["--no-wait"]).wait();
    assert_eq!(added.code, 0, "{added:?}");
    let code = crate::harness::code_of(&added.stdout);
    home.ok(["node", "approve", &gateway.request_with(&code), "--yes"]);
    wait_until_connected(&manager);

    // What only that gateway could prove is not kept while it is away.
    let file = machine.path().join("node.json");
    let before = fs::read_to_string(&file).unwrap();
    gateway.crash();
    manager.systemctl(["restart", NODE]);
    let other_key = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let unproven = ["--gateway-key", other_key, "--repin"];
    let refused = start_add(&gateway, &manager, &unproven).wait();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    gateway.restart();
    wait_until_connected(&manager);
}

#[test]
fn what_holds_of_an_approved_node_is_told_when_it_is_updated_in_place() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    join(&gateway, &manager, &[]);
    let ws = gateway.ws();
    let updated = manager.run(["node", "add", "--host", &ws, "--name", "Other"]);
    assert_eq!(updated.code, 0, "{updated:?}");
    assert!(updated.stderr.contains("moltis node rename"), "{updated:?}");
    let shown = manager.json(["node", "status", "--json"]);
    assert_eq!(shown["name"], "box", "as it was approved");
}

#[test]
fn commands_belong_to_the_service_and_not_to_the_terminal_of_whoever_joined() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    join(&gateway, &manager, &[]);
    let cgroup = home.ok(["node", "exec", "box", "--", "cat", "/proc/self/cgroup"]);
    assert!(cgroup.contains(NODE), "{cgroup}");
}

#[test]
fn a_gateway_that_is_away_hinders_no_update() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let Some(mut manager) = UserManager::start(&machine) else {
        return;
    };
    join(&gateway, &manager, &[]);
    gateway.crash();
    let moved = machine.user().join("moltis");
    fs::copy(&manager.program, &moved).unwrap();
    manager.program = moved.clone();
    let updated = start_add(&gateway, &manager, &["--timeout", "99"]).wait();
    assert_eq!(updated.code, 0, "{updated:?}");
    assert!(
        updated.stderr.contains("it is not connected"),
        "{updated:?}"
    );
    let unit = fs::read_to_string(manager.unit(NODE)).unwrap();
    assert!(unit.contains(moved.to_str().unwrap()), "{unit}");
    gateway.restart();
    wait_until_connected(&manager);
    let node = home.json(["node", "describe", "box", "--json"]);
    assert_eq!(node["timeout_seconds"], 99);
}

#[test]
fn a_service_that_made_room_for_nothing_is_started_again() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let waits = start_add(&gateway, &manager, &["--no-wait"]).wait();
    assert_eq!(waits.code, 0, "{waits:?}");
    gateway.crash();
    // It ends again and again: its program is a directory.
    let drop_in = manager.unit("moltis-node.service.d");
    fs::create_dir(&drop_in).unwrap();
    fs::write(
        drop_in.join("a.conf"),
        "[Service]\nExecStart=\nExecStart=/tmp\n",
    )
    .unwrap();
    manager.systemctl(["daemon-reload"]);
    manager.systemctl(["restart", NODE]);
    let failed = start_add(&gateway, &manager, &[]).wait();
    assert_eq!(failed.code, 1, "{failed:?}");
    let state = manager.property(NODE, "ActiveState");
    assert_ne!(state, "inactive", "systemd goes on trying");
}

#[test]
fn ctrl_c_while_the_service_starts_leaves_at_once_and_says_what_is_left() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    // A program that never says that it is ready.
    let drop_in = manager.unit("moltis-node.service.d");
    fs::create_dir_all(&drop_in).unwrap();
    let never = "[Service]\nExecStart=\nExecStart=/bin/sleep 1000\n";
    fs::write(drop_in.join("a.conf"), never).unwrap();
    let mut add = start_add(&gateway, &manager, &[]);
    approve(&gateway, &add);
    eventually("the service to be started", || {
        (manager.property(NODE, "ActiveState") == "activating").then_some(())
    });
    manager.shell("pkill -INT -f 'moltis node add'");
    let done = add.wait();
    assert_eq!(done.code, 130, "{done:?}");
    assert!(done.stderr.contains("installed and goes on"), "{done:?}");
    assert_eq!(manager.property(NODE, "UnitFileState"), "enabled");
    // The same line mends it.
    fs::remove_file(drop_in.join("a.conf")).unwrap();
    let again = start_add(&gateway, &manager, &[]).wait();
    assert_eq!(again.code, 0, "{again:?}");
    echo(&home);
}

#[test]
fn an_add_that_was_killed_has_joined_nothing_and_lets_nobody_trust_a_stranger() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let mut add = start_add(&gateway, &manager, &[]);
    add.stderr.wait_for("Waiting for approval");
    manager.shell("pkill -KILL -f 'moltis node add'");
    add.wait();
    // Nothing is pinned: no service may trust the first gateway that answers.
    let run = manager.start_moltis(["node", "run"]);
    let error = eventually("the reason", || {
        status(&manager)["last_error"].as_str().map(str::to_owned)
    });
    assert!(error.contains("no gateway's key is pinned"), "{error}");
    drop(run);
    manager.shell("pkill -KILL -f 'moltis node run'");
    // Another gateway may be named, since none was joined.
    let other = Home::new();
    let elsewhere = other.gateway();
    join(&elsewhere, &manager, &[]);
    echo(&other);
}

#[test]
fn a_second_home_leaves_without_touching_the_service_of_the_first() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    join(&gateway, &manager, &[]);
    let second = machine.user().join("second");
    let mut shown = manager.moltis(["node", "status", "--json"]);
    shown.env("MOLTIS_HOME", &second);
    let shown = crate::harness::run(shown);
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["service"], "not_installed");
    let mut removed = manager.moltis(["node", "remove"]);
    removed.env("MOLTIS_HOME", &second);
    let removed = crate::harness::run(removed);
    assert_eq!(removed.code, 0, "{removed:?}");
    assert!(removed.stderr.contains("left alone"), "{removed:?}");
    echo(&home);
}

#[test]
fn what_is_no_file_where_one_should_be_is_told_at_once() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let pipe = |path: &std::path::Path| {
        let made = manager.shell(&format!("mkfifo '{}'", path.display()));
        assert_eq!(made.code, 0, "{made:?}");
    };
    fs::create_dir_all(manager.unit("")).unwrap();
    pipe(&manager.unit(NODE));
    for line in [
        vec!["node", "remove"],
        vec!["node", "add", "--host", "ws://127.0.0.1:1/ws"],
    ] {
        let done = manager.run(&line);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("no ordinary file"), "{done:?}");
    }
    fs::remove_file(manager.unit(NODE)).unwrap();
    join(&gateway, &manager, &[]);
    // A log that cannot be opened keeps no service from its work.
    let log = machine.path().join("node.log");
    fs::remove_file(&log).unwrap();
    fs::DirBuilder::new().mode(0o700).create(&log).unwrap();
    manager.systemctl(["restart", NODE]);
    wait_until_connected(&manager);
    echo(&home);
    let file = machine.path().join("node.json");
    fs::remove_file(&file).unwrap();
    pipe(&file);
    let done = manager.run(["node", "status"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("it is a FIFO"), "{done:?}");
    assert!(done.stdout.contains("running (process"), "{done:?}");
}

#[test]
fn two_services_that_are_installed_at_once_wait_for_each_other() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let add = start_add(&gateway, &manager, &[]);
    add.stderr.wait_for("Waiting for approval");
    let install = manager.moltis(["gateway", "install", "--listen", "127.0.0.1:0"]);
    let mut installs = Vec::new();
    approve(&gateway, &add);
    installs.push(add);
    installs.push(crate::harness::Process::start(install));
    for mut process in installs {
        let done = process.wait();
        assert_eq!(done.code, 0, "{done:?}");
    }
    echo(&home);
    manager.ok(["gateway", "uninstall"]);
    let node = status(&manager);
    assert_eq!(node["service"], "running");
    manager.shell(&format!("kill -{} {}", Signal::TERM.as_raw(), node["pid"]));
    wait_until_connected(&manager);
}

#[test]
fn a_home_that_no_service_can_have_is_told_before_anybody_is_asked() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let ws = gateway.ws();
    // The manager looks into the home directory of whoever started it.
    let elsewhere = machine.user().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let mut add = manager.moltis(["node", "add", "--host", &ws]);
    add.env("HOME", &elsewhere);
    let done = crate::harness::run(add);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("does not read"), "{done:?}");
    assert!(done.stderr.contains("XDG_CONFIG_HOME"), "{done:?}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    // A home of Moltis that cannot be written.
    let read_only = machine.path();
    let mount = format!(
        "mkdir -m 700 '{0}' && mount -t tmpfs -o ro,mode=700 tmpfs '{0}'",
        read_only.display()
    );
    assert_eq!(manager.shell(&mount).code, 0);
    let done = manager.run(["node", "add", "--host", &ws]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.contains("cannot write to the home directory"),
        "{done:?}"
    );
    let pending = home.json(["node", "pending", "--json"]);
    assert_eq!(pending, serde_json::json!([]), "nobody was asked");
    assert!(!manager.unit(NODE).exists());
}
