//! What the doctor says of a service.

use std::fs;

use serde_json::Value;

use super::{NODE, join};
use crate::harness::Home;
use crate::systemd::UserManager;

#[test]
fn the_doctor_tells_how_the_service_stands() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let Some(manager) = UserManager::start(&machine) else {
        return;
    };
    let visit = || {
        let done = manager.run(["doctor", "--json"]);
        let findings: Vec<Value> = serde_json::from_str(&done.stdout).unwrap();
        move |check: &str| {
            let found = findings.iter().find(|found| found["check"] == check);
            found.unwrap().clone()
        }
    };
    let says = |check: &str, level: &str, message: &str, hint: &str| {
        let found = visit()(check);
        assert_eq!(found["level"], level, "{found:#}");
        assert!(
            found["message"].as_str().unwrap().contains(message),
            "{found:#}"
        );
        let found_hint = found["hint"].as_str().unwrap_or_default();
        assert!(found_hint.contains(hint), "{found:#}");
    };
    says("service", "ok", "nothing is installed", "");
    says("lingering", "ok", "not needed", "");
    join(&gateway, &manager, &[]);
    says("service", "ok", "`moltis-node.service` runs", "");
    says(
        "lingering",
        "warning",
        "when the user logs in",
        "loginctl enable-linger",
    );
    says("gateway", "ok", "connected", "");
    manager.systemctl(["disable", NODE]);
    says(
        "service",
        "warning",
        "does not start by itself",
        "systemctl --user enable moltis-node.service",
    );
    manager.systemctl(["enable", NODE]);
    manager.systemctl(["stop", NODE]);
    says("service", "warning", "does not run", "moltis node logs");
    let unit = manager.unit(NODE);
    let text = fs::read_to_string(&unit).unwrap();
    let moved = text.replace(manager.program.to_str().unwrap(), "/nowhere/moltis");
    assert_ne!(moved, text);
    fs::write(&unit, moved).unwrap();
    says(
        "service",
        "error",
        "`/nowhere/moltis`, which is not there",
        "moltis node add",
    );
}
