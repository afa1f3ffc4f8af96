//! Runs that have had their days go, with their output, and nothing else does.

use crate::harness::{Home, eventually, meddle};

/// Bytes that are more than a row holds, so that there is a file of them.
const BYTES: &str = "200000";

/// Has the machine lived for so many hours more, as far as its gateway knows, which does not run.
fn live_on(home: &Home, hours: u32) {
    let seconds = hours * 3600;
    meddle(
        home,
        format!("UPDATE lived SET seconds = seconds + {seconds}"),
    );
}

#[test]
fn a_run_goes_with_its_output_when_its_machine_has_lived_for_its_days() {
    let home = Home::new();
    home.write("moltis.toml", "[runs]\nkeep_days = 1\n");
    let mut gateway = home.gateway();
    let start = |words: &[&str]| {
        let line = ["node", "exec", "local", "--detach", "--"];
        let id = home.ok(line.iter().chain(words));
        id.trim().to_owned()
    };
    let (old, living) = (
        start(&["head", "-c", BYTES, "/dev/zero"]),
        start(&["sleep", "600"]),
    );
    let show = |id: &str| home.run(["runs", "show", id]);
    eventually("the first run to be over", || {
        show(&old).stdout.contains("exited 0").then_some(())
    });
    let files = home.path().join("outputs").join(&old);
    assert!(files.exists());
    gateway.crash();
    live_on(&home, 23);
    gateway.restart();
    let young = start(&["true"]);
    assert_eq!(show(&old).code, 0, "its day is not over");
    gateway.crash();
    live_on(&home, 2);
    gateway.restart();
    let gone = eventually("the old run to go", || {
        let shown = show(&old);
        (shown.code != 0).then_some(shown)
    });
    assert!(gone.stderr.contains("no run"), "{gone:?}");
    assert!(!files.exists(), "its output stayed");
    assert_eq!(show(&young).code, 0, "it is two hours old");
    let running = home.json(["runs", "show", &living, "--json"]);
    assert_eq!(running["state"], "running", "what lives has no age");
    home.ok(["runs", "cancel", &living]);
}
