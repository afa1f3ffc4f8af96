//! A node and a gateway as services of a real systemd user manager.

mod again;
mod doctor;
mod gateway;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::harness::{Done, Gateway, Home, Process, code_of, eventually};
use crate::systemd::UserManager;
use crate::terminal::OnTerminal;

const NODE: &str = "moltis-node.service";

/// Pairs the machine as the documentation shows it; returns what `node add` printed.
fn join(gateway: &Gateway<'_>, manager: &UserManager<'_>, args: &[&str]) -> Done {
    gateway.home.ok(["node", "pairing", "enable"]);
    let mut add = start_add(gateway, manager, args);
    approve(gateway, &add);
    let done = add.wait();
    assert_eq!(done.code, 0, "{done:?}");
    done
}

fn start_add(gateway: &Gateway<'_>, manager: &UserManager<'_>, args: &[&str]) -> Process {
    let ws = gateway.ws();
    let mut words = vec!["node", "add", "--host", &ws, "--name", "box"];
    words.extend(args);
    manager.start_moltis(words)
}

fn approve(gateway: &Gateway<'_>, add: &Process) {
    let code = code_of(&add.stdout.wait_for("Connection code"));
    let id = gateway.request_with(&code);
    gateway.home.ok(["node", "approve", &id, "--yes"]);
}

fn status(manager: &UserManager<'_>) -> Value {
    manager.json(["node", "status", "--json"])
}

fn wait_until_connected(manager: &UserManager<'_>) {
    eventually("the service to be connected", || {
        let status = status(manager);
        (status["service"] == "running" && status["connected"] == true).then_some(())
    });
}

fn echo(home: &Home) {
    let said = home.ok(["node", "exec", "box", "--", "echo", "here"]);
    assert_eq!(said, "here\n");
}

#[test]
fn a_machine_joins_for_ever() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let added = join(&gateway, &manager, &[]);
    let last = added.stdout.lines().last().unwrap();
    assert_eq!(
        last,
        "Approved. Service installed and running (~/.config/systemd/user/moltis-node.service)."
    );
    assert!(
        added
            .stderr
            .contains("hint: so that it starts with the machine: loginctl enable-linger root"),
        "no lingering here, and the exact command is printed: {added:?}"
    );
    echo(&home);
    let before = status(&manager);
    assert_eq!(before["service"], "running");
    assert_eq!(before["connected"], true);
    assert_eq!(before["last_error"], Value::Null);
    assert_eq!(manager.property(NODE, "StatusText"), "connected");
    assert_eq!(manager.property(NODE, "UnitFileState"), "enabled");
    let mode = fs::metadata(manager.unit(NODE))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);

    // A crash: it comes back, and a command that ran meanwhile has lost nothing.
    let run = home.ok([
        "node",
        "exec",
        "box",
        "--detach",
        "--shell",
        "until [ -e go ]; do sleep 0.05; done; echo went",
    ]);
    let run = run.trim();
    let pid = before["pid"].to_string();
    assert_eq!(manager.shell(&format!("kill -9 {pid}")).code, 0);
    eventually("another process", || {
        let now = status(&manager);
        (now["connected"] == true && now["pid"] != before["pid"]).then_some(())
    });
    assert_eq!(manager.property(NODE, "NRestarts"), "1");
    manager.systemctl(["restart", NODE]);
    wait_until_connected(&manager);
    fs::write(machine.user().join("go"), "").unwrap();
    let attached = home.run(["runs", "attach", run]);
    assert_eq!(
        (attached.code, &*attached.stdout),
        (0, "went\n"),
        "{attached:?}"
    );

    // The machine goes down and comes up again: nobody types anything.
    manager.shut_down();
    fs::write(
        machine.user().parent().unwrap().join("boot_id"),
        "11111111-2222-4333-8444-555555555555\n",
    )
    .unwrap();
    let manager = UserManager::start(&machine).unwrap();
    wait_until_connected(&manager);
    echo(&home);

    let removed = manager.json(["node", "remove", "--json"]);
    assert_eq!(removed["service_removed"], true);
    assert_eq!(removed["config_removed"], true);
    assert!(!manager.unit(NODE).exists());
    assert!(!machine.path().join("node.json").exists());
    assert_eq!(manager.property(NODE, "LoadState"), "not-found");
    assert_eq!(status(&manager)["service"], "not_installed");
    let twice = manager.run(["node", "remove"]);
    assert_eq!(twice.code, 0, "{twice:?}");
    assert!(twice.stderr.contains("nothing to remove"), "{twice:?}");
}

#[test]
fn without_a_user_manager_nothing_is_asked_and_the_other_way_is_named() {
    let machine = Home::new();
    for command in [
        vec!["node", "add", "--host", "ws://127.0.0.1:1/ws"],
        vec!["gateway", "install"],
    ] {
        let done = machine.run(&command);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("no service manager"), "{done:?}");
        assert!(!machine.path().exists(), "nothing was touched");
    }
    let done = machine.run(["node", "add", "--host", "ws://127.0.0.1:1/ws"]);
    assert!(done.stderr.contains("--foreground"), "{done:?}");
}

/// Names that mean something to systemd, to a shell, or to both.
const ODD_HOME: &str = r#"m 'q' "%h" $X c\d"#;
const ODD_USER: &str = r#"it's "ada" 100% $HOME %n"#;

#[test]
fn a_home_with_spaces_quotes_percents_and_dollars_survives_every_quoting() {
    let home = Home::new();
    let machine = Home::named(ODD_HOME, ODD_USER);
    let gateway = home.gateway();
    let Some(mut manager) = UserManager::start(&machine) else {
        return;
    };
    // The program lies in such a place as well.
    let program = machine.user().join("moltis");
    fs::copy(env!("CARGO_BIN_EXE_moltis"), &program).unwrap();
    manager.program = program.clone();
    join(&gateway, &manager, &[]);
    echo(&home);
    manager.systemctl(["restart", NODE]);
    wait_until_connected(&manager);
    let shown = home.ok(["node", "exec", "box", "--", "pwd"]);
    assert_eq!(shown.trim(), machine.user().to_str().unwrap());
    let pid = manager.property(NODE, "MainPID");
    let argv = manager.shell(&format!("cat /proc/{pid}/cmdline"));
    let argv: Vec<_> = argv.stdout.split('\0').collect();
    assert_eq!(argv, [program.to_str().unwrap(), "node", "run", ""]);
    let removed = manager.json(["node", "remove", "--json"]);
    assert_eq!(removed["service_removed"], true);
}

#[test]
fn a_command_sees_nothing_of_the_service_that_it_came_by() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    join(&gateway, &manager, &[]);
    let printed = home.ok(["node", "exec", "box", "--", "env"]);
    let mut names: Vec<_> = printed
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["HOME", "LOGNAME", "PATH", "SHELL", "TMPDIR", "USER"]
    );
}

#[test]
fn a_service_that_may_not_start_is_told_before_anybody_is_asked() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    manager.systemctl(["mask", NODE]);
    let masked = start_add(&gateway, &manager, &[]).wait();
    assert_eq!(masked.code, 1, "{masked:?}");
    assert!(
        masked
            .stderr
            .contains("systemctl --user unmask moltis-node.service"),
        "{masked:?}"
    );
    let removed = manager.run(["node", "remove"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    assert_eq!(
        manager.property(NODE, "LoadState"),
        "masked",
        "the owner's word stays"
    );
    manager.systemctl(["unmask", NODE]);

    let units = manager.unit("");
    let units = units.to_str().unwrap();
    let read_only = format!("mkdir -p '{units}' && mount -t tmpfs -o ro tmpfs '{units}'");
    assert_eq!(manager.shell(&read_only).code, 0);
    let refused = start_add(&gateway, &manager, &[]).wait();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("systemd/user` cannot be written to"),
        "{refused:?}"
    );
    let pending = home.json(["node", "pending", "--json"]);
    assert_eq!(pending, serde_json::json!([]), "nobody was asked");
    assert!(!machine.path().exists());
}

#[test]
fn two_who_join_one_machine_at_once_do_not_disturb_each_other() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let mut first = start_add(&gateway, &manager, &[]);
    first.stdout.wait_for("Connection code");
    let second = start_add(&gateway, &manager, &[]).wait();
    assert_eq!(second.code, 1, "{second:?}");
    assert!(
        second.stderr.contains("a node runs on this home already"),
        "{second:?}"
    );
    approve(&gateway, &first);
    assert_eq!(first.wait().code, 0);
    wait_until_connected(&manager);

    // Another home of the same user has another node, and there is one service.
    let mut other = manager.moltis(["node", "add", "--host", &gateway.ws()]);
    other.env("MOLTIS_HOME", machine.user().join("other"));
    let other = crate::harness::run(other);
    assert_eq!(other.code, 1, "{other:?}");
    assert!(other.stderr.contains("belongs to the home"), "{other:?}");
    assert!(other.stderr.contains("moltis node remove"), "{other:?}");
    echo(&home);
}

#[test]
fn adding_again_updates_in_place_and_follows_the_program() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(mut manager) = UserManager::start(&machine) else {
        return;
    };
    let (bin, opt) = (machine.user().join("bin"), machine.user().join("opt"));
    fs::create_dir(&bin).unwrap();
    fs::create_dir(&opt).unwrap();
    manager.program = bin.join("moltis");
    fs::copy(env!("CARGO_BIN_EXE_moltis"), &manager.program).unwrap();
    join(&gateway, &manager, &[]);
    let running = |manager: &UserManager<'_>| {
        let pid = manager.property(NODE, "MainPID");
        let exe = manager.shell(&format!("readlink /proc/{pid}/exe"));
        exe.stdout.trim().to_owned()
    };
    assert_eq!(running(&manager), manager.program.to_str().unwrap());

    // An upgrade puts another file in its place.
    let newer = machine.user().join("newer");
    fs::copy(env!("CARGO_BIN_EXE_moltis"), &newer).unwrap();
    fs::rename(&newer, &manager.program).unwrap();
    assert!(running(&manager).ends_with(" (deleted)"));
    echo(&home);
    let updated = start_add(&gateway, &manager, &["--timeout", "77"]).wait();
    assert_eq!(updated.code, 0, "{updated:?}");
    assert!(
        updated
            .stdout
            .contains("Updated. Service installed and running"),
        "{updated:?}"
    );
    assert_eq!(running(&manager), manager.program.to_str().unwrap());
    let node = home.json(["node", "describe", "box", "--json"]);
    assert_eq!(node["timeout_seconds"], 77);

    // It moves: the service cannot start any more and says why, until it is added from there.
    let moved = opt.join("moltis");
    fs::rename(&manager.program, &moved).unwrap();
    manager.program = moved.clone();
    let pid = manager.property(NODE, "MainPID");
    assert_eq!(manager.shell(&format!("kill -9 {pid}")).code, 0);
    eventually("the reason in words", || {
        let status = manager.ok(["node", "status"]);
        status.contains("203/EXEC").then_some(())
    });
    assert_eq!(status(&manager)["service"], "stopped");
    let followed = start_add(&gateway, &manager, &[]).wait();
    assert_eq!(followed.code, 0, "{followed:?}");
    assert_eq!(running(&manager), moved.to_str().unwrap());

    // A person has changed the unit: what they wrote is kept, and a drop-in is not touched.
    let unit = manager.unit(NODE);
    let text = fs::read_to_string(&unit).unwrap();
    let edited = text.replace("RestartSec=2", "RestartSec=30");
    fs::write(&unit, &edited).unwrap();
    let shown = manager.ok(["node", "status"]);
    assert!(shown.contains("daemon-reload"), "{shown}");
    let drop_in = manager.unit("moltis-node.service.d");
    fs::create_dir(&drop_in).unwrap();
    fs::write(drop_in.join("nice.conf"), "[Service]\nNice=5\n").unwrap();
    let again = start_add(&gateway, &manager, &[]).wait();
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.stderr.contains("was changed by hand"), "{again:?}");
    let kept = manager.unit("moltis-node.service.kept");
    assert_eq!(fs::read_to_string(kept).unwrap(), edited);
    assert_eq!(fs::read_to_string(&unit).unwrap(), text);
    assert_eq!(manager.property(NODE, "Nice"), "5");
    echo(&home);
}

#[test]
fn settings_that_go_bad_under_a_service_are_told_and_mended_without_it() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    join(&gateway, &manager, &[]);
    let file = machine.path().join("node.json");
    let sound = fs::read_to_string(&file).unwrap();
    let status_text = |wanted: &str| {
        eventually("the service's own words", || {
            let text = manager.property(NODE, "StatusText");
            (text.contains(wanted) && !text.contains("not connected")).then_some(())
        });
    };
    for bad in [Some("{\n  \"gateway_url\": 7"), None] {
        if let Some(text) = bad {
            machine.write("node.json", text);
        } else {
            fs::remove_file(&file).unwrap();
        }
        let restarted = manager.systemctl(["restart", NODE]);
        assert_eq!(restarted.code, 0, "{restarted:?}");
        status_text("node.json");
        let shown = manager.run(["node", "status"]);
        let all = format!("{}{}", shown.stdout, shown.stderr);
        assert!(all.contains("running (process"), "{all}");
        assert_eq!(manager.property(NODE, "ActiveState"), "active");
        assert_eq!(manager.property(NODE, "NRestarts"), "0");
        machine.write("node.json", &sound);
        status_text("connected");
        echo(&home);
    }
    let log = fs::read_to_string(machine.path().join("node.log")).unwrap();
    assert!(log.contains("cannot be a node as it is set up"), "{log}");
}

#[test]
fn a_machine_that_starts_before_its_gateway_waits_for_it() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    join(&gateway, &manager, &[]);
    manager.shut_down();
    gateway.crash();
    let manager = UserManager::start(&machine).unwrap();
    let down = eventually("an attempt", || {
        let status = status(&manager);
        status["last_error"].is_string().then_some(status)
    });
    assert_eq!(down["service"], "running");
    assert_eq!(down["connected"], false);
    let error = down["last_error"].as_str().unwrap();
    assert!(error.contains("nothing listens at"), "{error}");
    gateway.restart();
    wait_until_connected(&manager);
    echo(&home);
}

#[test]
fn whoever_does_not_wait_leaves_a_service_that_does() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let added = start_add(&gateway, &manager, &["--no-wait"]).wait();
    assert_eq!(added.code, 0, "{added:?}");
    let code = code_of(&added.stdout);
    let waiting = status(&manager);
    assert_eq!(waiting["service"], "running");
    assert_eq!(waiting["connected"], false);
    assert_eq!(waiting["connection_code"], Value::String(code.clone()));
    // A restart of the service takes the request up again; each connection has its own code.
    manager.systemctl(["restart", NODE]);
    let code = eventually("the request to be taken up", || {
        let now = status(&manager)["connection_code"].as_str()?.to_owned();
        (now != code).then_some(now)
    });
    home.ok(["node", "approve", &gateway.request_with(&code), "--yes"]);
    wait_until_connected(&manager);
    echo(&home);
    // It asks once: a gateway that forgets this node is not asked again by a service.
    let config = fs::read_to_string(machine.path().join("node.json")).unwrap();
    assert!(!config.contains("\"pair\""), "{config}");
}

#[test]
fn ctrl_c_while_it_waits_asks_whether_a_service_shall() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let ws = gateway.ws();
    let line = ["node", "add", "--host", &ws, "--name", "box"];
    let asked = |answer: &str| {
        let mut on = OnTerminal::of(&manager.moltis(line));
        on.screen.wait_for("Waiting for approval");
        on.type_in("\x03");
        on.screen.wait_until("the question", |shown| {
            shown.contains("wait for the answer? [y/N]")
        });
        on.type_in(answer);
        on.wait()
    };
    assert_eq!(asked("n\r"), 130);
    assert_eq!(asked("\x03"), 130);
    assert_eq!(status(&manager)["service"], "not_installed");
    assert!(!machine.path().join("node.json").exists());
    assert_eq!(asked("y\r"), 0);
    let code = status(&manager)["connection_code"]
        .as_str()
        .unwrap()
        .to_owned();
    home.ok(["node", "approve", &gateway.request_with(&code), "--yes"]);
    wait_until_connected(&manager);
    echo(&home);

    // Where nobody can be asked, nothing is left behind, and the flag is named.
    manager.ok(["node", "remove", "--delete-key"]);
    let mut add = manager.start_moltis(line);
    add.stderr.wait_for("Waiting for approval");
    manager.shell("pkill -INT -f 'moltis node add'");
    let done = add.wait();
    assert_eq!(done.code, 130, "{done:?}");
    assert!(done.stderr.contains("--no-wait"), "{done:?}");
    assert_eq!(status(&manager)["service"], "not_installed");
}

#[test]
fn a_node_that_was_turned_away_joins_again_by_the_same_line() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    join(&gateway, &manager, &[]);
    home.ok(["node", "revoke", "box", "--yes"]);
    let error = eventually("the service to know", || {
        status(&manager)["last_error"].as_str().map(str::to_owned)
    });
    assert!(error.contains("revoked"), "{error}");
    // Revoked for good: the line says so, and the service is there as before.
    let refused = start_add(&gateway, &manager, &[]).wait();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("revoked"), "{refused:?}");
    eventually("the service to run as before", || {
        (status(&manager)["service"] == "running").then_some(())
    });
    home.ok(["node", "forget", "box", "--yes"]);
    join(&gateway, &manager, &[]);
    echo(&home);
}

#[test]
fn a_user_who_lingers_is_not_told_how_to() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let linger = "mkdir -p /var/lib/systemd/linger && touch /var/lib/systemd/linger/root";
    assert_eq!(manager.shell(linger).code, 0);
    let added = join(&gateway, &manager, &[]);
    assert!(!added.stderr.contains("linger"), "{added:?}");
}

#[test]
fn what_is_half_installed_is_removed() {
    let machine = Home::new();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let wants = manager.unit("default.target.wants");
    fs::create_dir_all(&wants).unwrap();
    std::os::unix::fs::symlink(manager.unit(NODE), wants.join(NODE)).unwrap();
    let removed = manager.json(["node", "remove", "--json"]);
    assert_eq!(removed["service_removed"], true);
    assert_eq!(fs::read_dir(&wants).unwrap().count(), 0);

    // A file that systemd never read, and a manager that is gone.
    fs::write(manager.unit(NODE), "[Service]\nExecStart=/bin/true\n").unwrap();
    drop(manager);
    let removed = machine.run(["node", "remove"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    assert!(removed.stderr.contains("could not be asked"), "{removed:?}");
    assert_eq!(removed.stderr.matches("warning:").count(), 1, "{removed:?}");
}
