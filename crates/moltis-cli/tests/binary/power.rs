//! The power of a gateway's machine goes: its disk has what was synced, and nothing else.

use std::fs;

use serde_json::json;

use crate::api::{post, try_post};
use crate::harness::{Home, eventually, not_tested};

/// Names a request that waits for its run, under a key.
const ONCE: (&str, [&str; 1]) = ("runs?wait=true", ["idempotency-key: once"]);

/// Lines of each half of an output: more than its gateway keeps in the row.
const LINES: u32 = 400_000;

/// A gateway's home whose power can be cut, where there can be one.
fn home() -> Option<Home> {
    let home = Home::on_a_disk_with_a_switch();
    if home.is_none() {
        not_tested(
            "a power cut of a gateway",
            "no file system may be mounted from a file here",
        );
    }
    home
}

#[test]
fn output_of_a_node_goes_on_behind_a_power_cut_of_its_gateway_and_what_is_gone_is_marked() {
    let (Some(home), machine) = (home(), Home::new()) else {
        return;
    };
    let mut gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let gate = machine.user().join("gate");
    // Half of it before the power cut, and half behind it.
    let script = format!(
        "seq {LINES}; while [ ! -e {gate} ]; do sleep 0.02; done; seq {LINES}; exit 7",
        gate = gate.display()
    );
    let id = home.ok(["node", "exec", "box", "--detach", "--shell", &script]);
    let id = id.trim();
    let half = numbers();
    eventually("half of the output", || {
        let run = home.json(["runs", "show", id, "--json"]);
        (run["stdout_bytes"] == half.len()).then_some(())
    });
    gateway.cut_power();
    gateway.restart();
    fs::write(&gate, "").unwrap();
    let run = eventually("the run to be over", || {
        let run = home.json(["runs", "show", id, "--json"]);
        (run["state"] == "ended").then_some(run)
    });
    assert_eq!(run["exit_code"], 7, "{run}");
    assert_eq!(run["stdout_bytes"], 2 * half.len(), "{run}");
    let read = home.run(["runs", "output", id]);
    assert_eq!(read.code, 0, "{}", read.stderr);
    let whole = format!("{half}{half}").into_bytes();
    if read.stderr.is_empty() {
        return assert!(read.stdout_bytes == whole, "other bytes");
    }
    // The newest bytes that no sync had covered yet: one gap, which says so.
    let told: Vec<_> = read.stderr.lines().collect();
    let [gap] = told[..] else {
        panic!("expected one gap: {told:?}");
    };
    // Where no file of it was on the disk yet, the gateway asks for all, and the node tells why not.
    let reasons = ["lost its power", "a gateway that does not have them"];
    assert!(reasons.iter().any(|reason| gap.contains(reason)), "{gap}");
    let (_, rest) = gap.split_once("bytes ").unwrap();
    let numbers = rest.split_whitespace().filter_map(|word| word.parse().ok());
    let bounds: Vec<usize> = numbers.collect();
    let [from, to, ..] = bounds[..] else {
        panic!("no bounds in {gap:?}");
    };
    assert!(to <= half.len(), "{gap}: nothing behind the cut is gone");
    let kept = [&whole[..from], &whole[to..]].concat();
    assert!(read.stdout_bytes == kept, "other bytes around {gap:?}");
}

fn numbers() -> String {
    let all: Vec<_> = (1..=LINES).map(|number| number.to_string()).collect();
    all.join("\n") + "\n"
}

#[test]
fn a_request_that_comes_again_after_a_power_cut_starts_nothing_again() {
    let Some(home) = home() else {
        return;
    };
    let mut gateway = home.gateway();
    // Whoever leaves is told of a run that is on the disk, and so is all before it.
    home.ok(["node", "exec", "local", "--detach", "--", "true"]);
    // What the command does to the world outlives the power cut.
    let starts = home.user().join("starts");
    let starts = || fs::read_to_string(&starts).unwrap_or_default();
    let script = format!(
        "cd {} && echo start >> starts && [ -e again ] || exec sleep 600",
        home.user().display()
    );
    let body = json!({ "node": "local", "command": script });
    std::thread::scope(|scope| {
        // It hears nothing, for nobody is there any more to answer.
        scope.spawn(|| try_post(&home, ONCE.0, &ONCE.1, &body));
        eventually("the start of the command", || {
            (!starts().is_empty()).then_some(())
        });
        gateway.cut_power();
    });
    fs::write(home.user().join("again"), "").unwrap();
    gateway.restart();
    let run = post(&home, ONCE.0, &ONCE.1, &body);
    assert_eq!(starts(), "start\n", "{run}");
    assert_eq!(
        (&run["outcome"], &run["outcome_reason"]),
        (&"lost".into(), &"node_rebooted".into()),
        "{run}"
    );
    home.ok(["node", "exec", "local", "--", "true"]);
}
