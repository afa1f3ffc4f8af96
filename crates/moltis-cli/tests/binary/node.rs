//! A machine as a node: run, remove, policy.

use std::path::Path;

use crate::harness::{Home, Process, eventually, processes_of};

#[test]
fn remove_leaves_the_key_so_that_no_second_approval_is_needed() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let removed = machine.run(["node", "remove"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    assert_eq!(node.wait().code, 0, "remove ends the node process");
    assert!(!machine.path().join("node.json").exists());
    assert!(machine.path().join("node_key").exists());
    let again = machine.run(["node", "remove"]);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.stderr.contains("nothing to remove"), "{again:?}");

    home.ok(["node", "pairing", "disable"]);
    let node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    node.stdout.wait_for("Connected to");
    home.ok(["node", "exec", "box", "--detach", "--shell", "sleep 600"]);
    // Nobody fetches any more how that ends.
    drop(gateway);
    drop(node);
    let runs = machine.path().join("runs");
    assert!(runs.exists());
    let removed = machine.json(["node", "remove", "--delete-key", "--json"]);
    assert_eq!(removed["runs_removed"], true, "{removed}");
    assert!(!machine.path().join("node_key").exists());
    assert!(!runs.exists());
    eventually("all of it to be gone", || {
        processes_of(&runs).is_empty().then_some(())
    });
}

#[test]
fn remove_ends_every_keeper_of_this_machine() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let runs = machine.path().join("runs");
    let _node = gateway.join(&machine, "box");
    let detach = ["node", "exec", "box", "--detach", "--shell", "sleep 600"];
    home.ok(detach);
    // What stays of an update: keepers of other versions, each with runs of its own.
    let older = ["0.0.1", "0.0.2"].map(|version| older_keeper(&runs, version));
    machine.ok(["node", "remove"]);
    for mut keeper in older {
        assert_eq!(keeper.wait().code, 0);
    }
    eventually("all of it to be gone", || {
        processes_of(&runs).is_empty().then_some(())
    });
}

/// Starts a keeper of another version: this test program again, which becomes one.
fn older_keeper(dir: &Path, version: &str) -> Process {
    let before = sockets(dir);
    let mut itself = std::process::Command::new(std::env::current_exe().unwrap());
    itself
        .args(["--exact", "node::becomes_an_older_keeper_when_asked"])
        .env(OLDER_KEEPER, format!("{version} {}", dir.display()))
        .stdin(std::process::Stdio::null());
    let process = Process::start(itself);
    eventually("its socket", || (sockets(dir) > before).then_some(()));
    process
}

/// Asks this test program to be a keeper: version and directory.
const OLDER_KEEPER: &str = "MOLTIS_TEST_OLDER_KEEPER";

#[test]
fn becomes_an_older_keeper_when_asked() {
    use moltis_node::keeper::{self, KeeperConfig, Policy, Rules};
    let Some(asked) = std::env::var_os(OLDER_KEEPER) else {
        return; // an ordinary run of all tests
    };
    let asked = asked.into_string().unwrap();
    let (version, dir) = asked.split_once(' ').unwrap();
    let rules = Rules {
        policy: Policy::Full,
        env_allow: Vec::new(),
        timeout_max: None,
        timeout_default: None,
        working_dir: "/".into(),
        base_env: std::collections::BTreeMap::new(),
    };
    let boot_id = moltis_telemetry::boot_id().unwrap();
    let config = KeeperConfig::new(dir, std::sync::Arc::new(rules), boot_id, version);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = keeper::serve(config, tokio_util::sync::CancellationToken::new());
    runtime.unwrap().block_on(served).unwrap();
}

/// Returns how many sockets of keepers there are.
fn sockets(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().flatten();
    names
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "sock"))
        .count()
}

#[test]
fn node_run_connects_as_node_json_says() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    drop(gateway.join(&machine, "box"));
    let node = machine.start(["node", "run"]);
    eventually("the node to be back", || {
        let nodes = home.json(["node", "list", "--json"]);
        (nodes[0]["name"] == "box").then_some(())
    });
    let second = machine.run(["node", "run"]);
    assert_eq!(second.code, 1, "{second:?}");
    assert!(
        second.stderr.contains("a node runs on this home already"),
        "{second:?}"
    );
    drop(node);
    let nowhere = Home::new().run(["node", "run"]);
    assert_eq!(nowhere.code, 1, "{nowhere:?}");
    assert!(nowhere.stderr.contains("moltis node add"), "{nowhere:?}");
}

#[test]
fn the_owner_of_a_machine_says_what_may_run_on_it() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let runs = |command: &[&str]| {
        let mut args = vec!["node", "exec", "box", "--"];
        args.extend(command);
        home.run(args).code
    };
    machine.ok(["node", "policy", "off"]);
    let done = home.run(["node", "exec", "box", "--", "/bin/true"]);
    assert_eq!(done.code, 125, "{done:?}");
    assert!(done.stderr.contains("hint: what may run there"), "{done:?}");
    assert!(done.stderr.contains("moltis node policy"), "{done:?}");
    for program in ["./echo", "bin/echo"] {
        let done = machine.run(["node", "policy", "allow", "--", program, "..."]);
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains("its absolute path"), "{done:?}");
    }
    machine.ok(["node", "policy", "allow", "--", "/bin/echo", "..."]);
    machine.ok(["node", "policy", "allow-list"]);
    assert_eq!(runs(&["/bin/echo", "a", "b"]), 0);
    assert_eq!(runs(&["/bin/true"]), 125);
    let policy = machine.json(["node", "policy", "show", "--json"]);
    assert_eq!(policy["mode"], "allow-list");
    assert_eq!(policy["allow"], serde_json::json!([["/bin/echo", "..."]]));
    machine.ok(["node", "policy", "full"]);
    assert_eq!(runs(&["/bin/true"]), 0);
}
