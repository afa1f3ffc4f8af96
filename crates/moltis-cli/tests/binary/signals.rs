//! Ctrl+C, wherever a person may type it. That of `exec` stands in `exec.rs`.

use rustix::process::Signal;

use crate::harness::{Home, code_of, eventually};

#[test]
fn node_add_that_waits_leaves_nothing_but_the_key() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let mut node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    code_of(&node.stdout.wait_for("Connection code"));
    assert!(machine.path().join("node.json").exists());
    node.signal(Signal::INT);
    let done = node.wait();
    assert_eq!(done.code, 130, "{done:?}");
    assert!(!machine.path().join("node.json").exists());
    assert!(machine.path().join("node_key").exists());
}

#[test]
fn a_gateway_stops_and_what_runs_goes_on() {
    let home = Home::new();
    let mut gateway = home.gateway();
    let id = home.ok(["node", "exec", "local", "--detach", "--", "sleep", "600"]);
    gateway.process.signal(Signal::INT);
    let done = gateway.process.wait();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(!home.path().join("gateway.sock").exists(), "{done:?}");
    gateway.restart();
    let run = home.json(["runs", "show", id.trim(), "--json"]);
    assert_eq!(run["state"], "running", "{run}");
}

#[test]
fn node_run_says_goodbye() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    drop(gateway.join(&machine, "box"));
    let mut node = machine.start(["node", "run"]);
    eventually("the node to be online", || {
        let nodes = home.json(["node", "list", "--json"]);
        (!nodes.as_array().unwrap().is_empty()).then_some(())
    });
    node.signal(Signal::INT);
    let done = node.wait();
    assert_eq!(done.code, 0, "{done:?}");
    eventually("the node to be offline", || {
        let nodes = home.json(["node", "list", "--all", "--json"]);
        (nodes[0]["state"] == "offline").then_some(())
    });
}

#[test]
fn runs_attach_cancels_as_exec_does() {
    let home = Home::new();
    let _gateway = home.gateway();
    let script = "echo up; sleep 600";
    let id = home.ok(["node", "exec", "local", "--detach", "--shell", script]);
    let mut attached = home.start(["runs", "attach", id.trim()]);
    attached.stdout.wait_for("up");
    attached.signal(Signal::INT);
    assert_eq!(attached.wait().code, 130);
    let run = home.json(["runs", "show", id.trim(), "--json"]);
    assert_eq!(run["outcome"], "cancelled");
}

#[test]
fn a_followed_output_is_left_and_the_run_goes_on() {
    let home = Home::new();
    let _gateway = home.gateway();
    let script = "echo up; sleep 600";
    let id = home.ok(["node", "exec", "local", "--detach", "--shell", script]);
    let mut output = home.start(["runs", "output", id.trim(), "--follow"]);
    output.stdout.wait_for("up");
    output.signal(Signal::INT);
    let done = output.wait();
    // Nothing of ours is to be put in order, so the signal ends it as it ends `tail -f`.
    assert_eq!(done.code, -Signal::INT.as_raw(), "{done:?}");
    let run = home.json(["runs", "show", id.trim(), "--json"]);
    assert_eq!(run["state"], "running");
}
