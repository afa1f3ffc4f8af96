//! `moltis gateway backup`: what it copies can be put back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{Home, eventually};

#[test]
fn a_backup_made_while_commands_run_is_a_gateway_that_knows_its_nodes() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let node = gateway.join(&machine, "box");
    home.ok(["node", "exec", "box", "--", "true"]);
    home.ok(["node", "exec", "box", "--detach", "--shell", "sleep 600"]);

    let file = home.user().join("copy.db");
    let path = file.to_str().unwrap();
    let made = home.json(["gateway", "backup", path, "--json"]);
    assert_eq!(made["path"], path);
    let found = fs::metadata(&file).unwrap();
    assert_eq!(made["bytes"], found.len());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let runs = home.json(["runs", "list", "--json"]);
    assert_eq!(runs.as_array().unwrap().len(), 2);

    let again = home.run(["gateway", "backup", path]);
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("exists already"), "{again:?}");
    assert!(
        again.stderr.contains("hint: name another file"),
        "{again:?}"
    );
    assert_eq!(fs::metadata(&file).unwrap().len(), found.len());
    home.ok(["runs", "cancel", runs[0]["id"].as_str().unwrap()]);
    drop((node, gateway));

    // A machine that has the copy and the key, and nothing else, is the same gateway.
    let other = Home::new();
    other.write("moltis.toml", "");
    for (from, to) in [
        (file, "gateway.db"),
        (home.path().join("gateway_key"), "gateway_key"),
    ] {
        fs::copy(from, other.path().join(to)).unwrap();
    }
    let restored = other.gateway();
    let nodes = other.json(["node", "list", "--all", "--json"]);
    assert_eq!(nodes[0]["name"], "box");
    assert_eq!(nodes[0]["state"], "offline");
    let url = restored.ws();
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(machine.path().join("node.json")).unwrap()).unwrap();
    config["gateway_url"] = url.into();
    machine.write("node.json", &config.to_string());
    let node = machine.start(["node", "run"]);
    eventually("the node to be back", || {
        let nodes = other.json(["node", "list", "--json"]);
        (!nodes.as_array().unwrap().is_empty()).then_some(())
    });
    other.ok(["node", "exec", "box", "--", "true"]);
    drop(node);
}

#[test]
fn a_gateway_that_does_not_run_is_copied_and_one_that_never_ran_is_not() {
    let home = Home::new();
    let file = home.user().join("copy.db");
    let path = file.to_str().unwrap();
    let nothing = home.run(["gateway", "backup", path]);
    assert_eq!(nothing.code, 1, "{nothing:?}");
    assert!(
        nothing.stderr.contains("there is no database in"),
        "{nothing:?}"
    );
    assert!(!file.exists());
    drop(home.gateway());
    let done = home.run(["gateway", "backup", path]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    assert!(
        done.stderr.contains("not in it: the gateway's key"),
        "{done:?}"
    );
    assert!(fs::read(&file).unwrap().starts_with(b"SQLite format 3\0"));
    let elsewhere = home.run(["gateway", "backup", "/no/such/dir/copy.db"]);
    assert_eq!(elsewhere.code, 1, "{elsewhere:?}");
    assert!(
        elsewhere
            .stderr
            .contains("cannot make `/no/such/dir/copy.db`"),
        "{elsewhere:?}"
    );
}
