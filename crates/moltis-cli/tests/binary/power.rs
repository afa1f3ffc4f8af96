//! The power of a gateway's machine goes: its disk has what was synced, and nothing else.

use std::fs;

use serde_json::json;

use crate::api::{post, try_post};
use crate::harness::{Home, eventually, not_tested};

/// Names a request that waits for its run, under a key.
const ONCE: (&str, [&str; 1]) = ("runs?wait=true", ["idempotency-key: once"]);

#[test]
fn a_request_that_comes_again_after_a_power_cut_starts_nothing_again() {
    let Some(home) = Home::on_a_disk_with_a_switch() else {
        return not_tested(
            "a power cut of a gateway",
            "no file system may be mounted from a file here",
        );
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
