//! `moltis doctor`: every check appears, what is wrong is named with what to type, and nothing is
//! changed.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Home, eventually, meddle, not_tested, run};

const CHECKS: [&str; 12] = [
    "config",
    "gateway",
    "listen",
    "pairing_window",
    "nodes",
    "clock",
    "file_modes",
    "service",
    "lingering",
    "database",
    "disk",
    "exec_route",
];

/// What the doctor said, and what it ended with.
#[derive(Debug)]
struct Visit {
    code: i32,
    findings: Vec<Value>,
}

impl Visit {
    fn of(command: Command) -> Self {
        let done = run(command);
        assert_eq!(done.stderr, "", "{done:?}");
        let findings: Vec<Value> = serde_json::from_str(&done.stdout).unwrap();
        let names: Vec<_> = findings.iter().map(|found| &found["check"]).collect();
        assert_eq!(names, CHECKS);
        for found in &findings {
            let fields: Vec<_> = found.as_object().unwrap().keys().collect();
            assert_eq!(fields, ["check", "hint", "level", "message"]);
        }
        let is_wrong = findings.iter().any(|found| found["level"] == "error");
        assert_eq!(done.code, i32::from(is_wrong), "{findings:#?}");
        Self {
            code: done.code,
            findings,
        }
    }

    fn at(home: &Home) -> Self {
        Self::of(home.command(["doctor", "--json"]))
    }

    fn level(&self, check: &str) -> &str {
        self.found(check)["level"].as_str().unwrap()
    }

    fn found(&self, check: &str) -> &Value {
        let found = self.findings.iter().find(|found| found["check"] == check);
        found.unwrap()
    }

    #[track_caller]
    fn says(&self, check: &str, level: &str, message: &str, hint: &str) {
        let found = self.found(check);
        assert_eq!(found["level"], level, "{found:#}");
        let text = |name: &str| found[name].as_str().unwrap_or_default();
        assert!(text("message").contains(message), "{found:#}");
        assert!(text("hint").contains(hint), "{found:#}");
        assert_eq!(text("hint").is_empty(), hint.is_empty(), "{found:#}");
    }

    /// Everything is well, but for these and the room that this machine's disk happens to have.
    #[track_caller]
    fn is_well_but_for(&self, but: &[&str]) {
        for found in &self.findings {
            let check = found["check"].as_str().unwrap();
            if check != "disk" && !but.contains(&check) {
                assert_eq!(found["level"], "ok", "{found:#}");
            }
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_gateway_with_its_node_is_well_and_so_is_the_node() {
    let home = Home::new();
    let machine = Home::new();
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    home.ok(["node", "pairing", "disable"]);
    home.ok([
        "node",
        "exec",
        "local",
        "--",
        "head",
        "-c",
        "3000000",
        "/dev/zero",
    ]);
    let visit = Visit::at(&home);
    visit.is_well_but_for(&[]);
    visit.says("listen", "ok", &gateway.address, "--listen 0.0.0.0:");
    visit.says("nodes", "ok", "1 of 1 connected: box", "");
    visit.says("exec_route", "ok", "`local`", "");
    visit.says("database", "ok", "sound", "");

    let done = home.run(["doctor"]);
    let lines: Vec<_> = done.stdout.lines().collect();
    let checks = lines.iter().filter(|line| !line.starts_with(' '));
    let checks = checks.map(|line| line.split_whitespace().nth(1).unwrap());
    assert!(checks.eq(CHECKS), "{done:?}");
    assert!(
        lines[0].starts_with("ok       config          "),
        "{done:?}"
    );
    let hint = "         hint: so that they can: moltis gateway --listen";
    assert!(lines.iter().any(|line| line.starts_with(hint)), "{done:?}");

    let visit = Visit::at(&machine);
    visit.is_well_but_for(&[]);
    visit.says(
        "gateway",
        "ok",
        &format!("a node of {}, connected", gateway.ws()),
        "",
    );
    let besides = "; its keeper runs; no gateway is set up on this machine";
    visit.says("gateway", "ok", besides, "");
    visit.says("nodes", "ok", "no gateway is set up on this machine", "");
    visit.says("database", "ok", "none here", "");
}

#[test]
fn where_nothing_runs_it_says_what_to_type_and_makes_nothing() {
    let home = Home::new();
    let visit = Visit::at(&home);
    visit.is_well_but_for(&["gateway"]);
    visit.says("gateway", "error", "no gateway runs here", "moltis gateway");
    visit.says("file_modes", "ok", "there is no", "");
    assert!(!home.path().exists());
}

#[test]
fn a_gateway_that_ran_and_a_node_that_is_cut_off_are_told() {
    let home = Home::new();
    let machine = Home::new();
    let mut gateway = home.gateway();
    let node = gateway.join(&machine, "box");
    gateway.crash();
    let visit = Visit::at(&home);
    visit.says("gateway", "error", "no gateway runs here", "moltis gateway");
    visit.says("nodes", "warning", "not known", "");
    visit.says("database", "ok", "sound", "");
    let visit = eventually("the node to notice", || {
        let visit = Visit::at(&machine);
        (visit.level("gateway") == "error").then_some(visit)
    });
    visit.says("gateway", "error", "is not connected: ", "moltis doctor");
    drop(node);
    let visit = Visit::at(&machine);
    visit.says(
        "gateway",
        "warning",
        "no node process runs",
        "moltis node run",
    );
    assert_eq!(visit.code, 0);

    gateway.restart();
    let visit = Visit::at(&home);
    visit.says(
        "nodes",
        "warning",
        "1 of 1 offline: `box` (last heard of",
        "forget",
    );
    visit.is_well_but_for(&["nodes"]);
}

#[test]
fn a_window_left_open_is_told_with_its_time() {
    let home = Home::new();
    let _gateway = home.gateway();
    home.ok(["node", "pairing", "enable", "--for", "5m"]);
    let visit = Visit::at(&home);
    visit.says(
        "pairing_window",
        "warning",
        "another 4 min",
        "pairing disable",
    );
    home.ok(["node", "pairing", "disable"]);
    Visit::at(&home).says("pairing_window", "ok", "closed", "");
}

#[test]
fn a_configuration_that_is_wrong_or_was_changed_is_told() {
    let home = Home::new();
    home.write("moltis.toml", "[gateway]\n");
    let _gateway = home.gateway();
    let path = home.path().join("moltis.toml");
    Visit::at(&home).says("config", "ok", "as the gateway read it", "");
    home.write("moltis.toml", "[runs]\nkeep_days = 7\n");
    let visit = Visit::at(&home);
    visit.says(
        "config",
        "warning",
        "has changed since",
        "restart the gateway",
    );
    visit.is_well_but_for(&["config"]);
    home.write("moltis.toml", "[runs]\nkeep_days = 0\n");
    let line = format!("{}:2: `runs.keep_days` is 0: expected", path.display());
    let visit = Visit::at(&home);
    let found = visit.found("config");
    assert_eq!(found["level"], "error", "{found:#}");
    assert!(
        found["message"].as_str().unwrap().contains(&line),
        "{found:#}"
    );
    fs::remove_file(&path).unwrap();
    Visit::at(&home).says("config", "warning", "has changed since", "restart");
}

#[test]
fn a_configured_route_is_looked_up() {
    let home = Home::new();
    home.write(
        "moltis.toml",
        "[tools.exec]\nhost = \"node\"\nnode = \"box\"\n",
    );
    let machine = Home::new();
    let gateway = home.gateway();
    let visit = Visit::at(&home);
    visit.says(
        "exec_route",
        "error",
        "no node is called `box`",
        "node list",
    );
    let mut node = gateway.join(&machine, "box");
    Visit::at(&home).says("exec_route", "ok", "runs on the node `box`", "");
    node.signal(rustix::process::Signal::TERM);
    node.wait();
    let visit = eventually("the node to be gone", || {
        let visit = Visit::at(&home);
        (visit.level("nodes") == "warning").then_some(visit)
    });
    visit.says("exec_route", "error", "which is offline", "moltis doctor");
}

#[test]
fn settings_of_a_node_that_cannot_be_read_are_told() {
    let home = Home::new();
    home.write("node.json", "{ \"gateway_url\": 7 }");
    let visit = Visit::at(&home);
    visit.says("config", "error", "node.json` line 1", "moltis node remove");
    // Nobody has said that this machine should be a gateway.
    visit.says("gateway", "ok", "no gateway is set up on this machine", "");
}

#[test]
fn modes_that_let_others_in_are_told_and_left() {
    let home = Home::new();
    let _gateway = home.gateway();
    let config = home.write("moltis.toml", "");
    set_mode(&config, 0o644);
    let path = config.display().to_string();
    let visit = Visit::at(&home);
    let chmod = format!("chmod 600 {path}");
    visit.says("file_modes", "warning", "has mode 0644", &chmod);
    let key = home.path().join("gateway_key");
    set_mode(&key, 0o640);
    let visit = Visit::at(&home);
    let line = format!("chmod 600 {} {path}", key.display());
    visit.says("file_modes", "error", "gateway_key` has mode 0640", &line);
    assert_eq!((mode(&config), mode(&key)), (0o644, 0o640));
    // What was said to type is what mends it.
    let mended = Command::new("sh").arg("-c").arg(line).status().unwrap();
    assert!(mended.success());
    Visit::at(&home).says("file_modes", "ok", "their owner's alone", "");
}

#[test]
fn outputs_that_lie_elsewhere_are_told() {
    let home = Home::new();
    home.write("moltis.toml", "");
    symlink(home.user(), home.path().join("outputs")).unwrap();
    let visit = Visit::at(&home);
    visit.says("file_modes", "warning", "outputs` is a link to", "ls -ld");
}

#[test]
fn a_damaged_database_is_found_while_the_gateway_runs_and_when_it_cannot() {
    let home = Home::new();
    let gateway = home.gateway();
    drop(gateway);
    // Long enough that the damage lies where a gateway does not look at its start.
    let long = "INSERT INTO settings (name, value) VALUES ('long', hex(zeroblob(1000000)))";
    meddle(&home, long.to_owned());
    let gateway = home.gateway();
    Visit::at(&home).says("database", "ok", "sound", "");
    let file = fs::File::options()
        .write(true)
        .open(home.path().join("gateway.db"));
    let page = 4096;
    let length = fs::metadata(home.path().join("gateway.db")).unwrap().len();
    assert!(length > 100 * page, "{length}");
    let file = file.unwrap();
    file.write_all_at(&[0xff; 4096], 90 * page).unwrap();
    drop(file);
    let visit = Visit::at(&home);
    visit.says("database", "error", "is damaged", "restore a backup");
    drop(gateway);
    let refused = home.run(["gateway", "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let visit = Visit::at(&home);
    visit.says("database", "error", "is damaged", "restore a backup");
    fs::write(home.path().join("gateway.db"), "a letter").unwrap();
    let visit = Visit::at(&home);
    visit.says("database", "error", "is not a database", "restore a backup");
}

#[test]
fn a_full_disk_is_told() {
    let home = Home::new();
    home.write("moltis.toml", "");
    // In a namespace of mounts of its own: it goes with the process.
    let script = "mount -t tmpfs -o size=1m,mode=0700 tmpfs \"$MOLTIS_HOME\" && \
                  head -c 950000 /dev/zero > \"$MOLTIS_HOME/fill\" && exec \"$0\" doctor --json";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_moltis")])
        .env_clear()
        .envs(home.environment());
    let is_possible = Command::new("unshare")
        .args(["--mount", "sh", "-c"])
        .arg("mount -t tmpfs tmpfs /mnt")
        .output();
    if !is_possible.is_ok_and(|output| output.status.success()) {
        not_tested(
            "a full disk at the doctor's",
            "no file system may be mounted here",
        );
        return;
    }
    let visit = Visit::of(command);
    visit.says("disk", "error", "of 1.0 MiB free for", "du -xhd1");
}

#[test]
fn a_gateway_elsewhere_is_asked_with_a_token_that_may() {
    let home = Home::new();
    let gateway = home.gateway();
    let elsewhere = Home::new();
    let url = format!("http://{}", gateway.address);
    let token = |scope: &str| home.ok(["token", "create", "--name", scope, "--scope", scope]);
    let visit = |token: &str| {
        let mut command = elsewhere.command(["doctor", "--json", "--gateway", &url]);
        command.env("MOLTIS_API_TOKEN", token.trim());
        Visit::of(command)
    };
    let admin = token("admin");
    let well = visit(&admin);
    well.is_well_but_for(&[]);
    well.says(
        "gateway",
        "ok",
        &format!("the gateway at {url} answers"),
        "",
    );
    let denied = visit(&token("nodes:admin"));
    denied.says(
        "gateway",
        "error",
        "lacks the scope `admin`",
        "token create",
    );
    denied.says("nodes", "warning", "not known", "");
    elsewhere.write("moltis.toml", "");
    set_mode(&elsewhere.path().join("moltis.toml"), 0o604);
    let here = visit(&admin);
    here.says("file_modes", "warning", "on this machine: ", "chmod 600");
}
