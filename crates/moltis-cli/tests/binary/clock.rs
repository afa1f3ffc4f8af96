//! A wall clock that jumps while everything runs: nothing that waits, ends or is measured goes by it.
//!
//! libfaketime gives a process another time of day, from a file that the test rewrites.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::harness::{Gateway, Home, Process, code_of, eventually, keepers_of, not_tested};

/// The time of day of the processes that were started under it.
struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// The right time; `None`, with a word, where no process can be given another one.
    fn new(home: &Home) -> Option<Self> {
        let places = ["x86_64", "aarch64", "arm", "i386", "riscv64"]
            .map(|arch| format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1"));
        let Some(library) = places.iter().map(PathBuf::from).find(|path| path.exists()) else {
            not_tested("a clock that jumps", "there is no libfaketime");
            return None;
        };
        let clock = Self {
            library,
            file: home.user().join("time"),
        };
        clock.set("+0");
        Some(clock)
    }

    /// Turns it to so far from the right time, as `+2h` or `-1d`.
    fn set(&self, offset: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{offset}\n")).unwrap();
        fs::rename(&new, &self.file).unwrap();
    }

    /// Starts a command that goes by this clock.
    fn start(&self, home: &Home, args: &[&str]) -> Process {
        let mut command = home.command(args);
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
        Process::start(command)
    }

    fn gateway<'a>(&self, home: &'a Home) -> Gateway<'a> {
        let process = self.start(home, &["gateway", "--listen", "127.0.0.1:0"]);
        Gateway::ready(home, process)
    }
}

/// A command that says what its own clock says when a file appears, and ends when another does.
fn waits_for(gate: &Path) -> String {
    let gate = gate.display();
    format!("echo up; while [ ! -e {gate} ]; do sleep 0.05; done; echo end; exit 4")
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

/// Asserts that a run whose clock has jumped is measured and ended as any other.
fn ended_in_order(run: &Value) {
    assert_eq!(
        (&run["outcome"], &run["exit_code"]),
        (&"exited".into(), &4.into()),
        "{run}"
    );
    let took = run["duration_ms"].as_u64().unwrap();
    let longest = Duration::from_mins(2).as_millis();
    assert!(u128::from(took) < longest, "{run}");
}

#[test]
fn nothing_on_the_gateway_goes_by_a_wall_clock_that_jumps() {
    let (home, machine, other) = (Home::new(), Home::new(), Home::new());
    let Some(clock) = Clock::new(&home) else {
        return;
    };
    let gateway = clock.gateway(&home);
    let mut node = gateway.join(&machine, "box");
    let gate = machine.user().join("gate");
    let mut exec = home.start(["node", "exec", "box", "--shell", &waits_for(&gate)]);
    exec.stdout.wait_for("up");
    let since =
        |home: &Home| home.json(["node", "describe", "box", "--json"])["connected_since"].clone();
    let connected_since = since(&home);
    home.ok(["node", "pairing", "enable", "--for", "10m"]);
    let ws = gateway.ws();
    let asking = other.start([
        "node",
        "add",
        "--foreground",
        "--name",
        "other",
        "--host",
        &ws,
    ]);
    let code = code_of(&asking.stdout.wait_for("Connection code"));
    let request = gateway.request_with(&code);
    home.ok([
        "token",
        "create",
        "--name",
        "day",
        "--scope",
        "runs:read",
        "--expires",
        "1d",
    ]);

    for offset in ["+2h", "-1d", "+2h", "+0"] {
        clock.set(offset);
        // The jump is really there: what is stamped now says so.
        let run = home.json(["node", "exec", "local", "--json", "--", "true"]);
        let run = home.json(["runs", "show", run["run_id"].as_str().unwrap(), "--json"]);
        let away = time(&run["created_at"]).duration_since(Timestamp::now());
        let wanted = match offset {
            "+2h" => SignedDuration::from_hours(2),
            "-1d" => SignedDuration::from_hours(-24),
            _ => SignedDuration::ZERO,
        };
        assert!(
            (away - wanted).abs() < SignedDuration::from_mins(2),
            "{offset}: {away:?}"
        );
        assert!(
            run["duration_ms"].as_u64().unwrap() < 120_000,
            "{offset}: {run}"
        );

        assert!(node.is_running());
        assert_eq!(
            since(&home),
            connected_since,
            "{offset}: the connection stands"
        );
        let done = home.run(["node", "exec", "box", "--", "echo", offset]);
        assert_eq!((done.code, done.stdout.trim()), (0, offset), "{done:?}");
        let running = home.json(["runs", "list", "--state", "running", "--json"]);
        assert_eq!(
            running.as_array().map(Vec::len),
            Some(1),
            "{offset}: {running}"
        );

        // Ten minutes are ten minutes, and what is shown says so by the clock of now.
        let window = home.json(["node", "pairing", "status", "--json"]);
        assert_eq!(window["enabled"], true, "{offset}");
        let left = |shown: &Value| time(shown).duration_since(Timestamp::now()) - wanted;
        let open = left(&window["expires_at"]);
        assert!(
            open > SignedDuration::from_mins(8) && open < SignedDuration::from_mins(11),
            "{offset}: the window is said to close in {open:?}"
        );
        assert_eq!(
            gateway.request_with(&code),
            request,
            "{offset}: the request waits"
        );
        let waits = left(&home.json(["node", "pending", "--json"])[0]["expires_at"]);
        assert!(
            waits > SignedDuration::from_mins(58) && waits < SignedDuration::from_mins(61),
            "{offset}: the request is said to wait for {waits:?}"
        );
    }
    // A token goes by the time of day: that is what its owner was told.
    assert!(home.ok(["token", "list"]).contains("day"));
    fs::write(&gate, "").unwrap();
    let done = exec.wait();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (4, "up\nend\n"),
        "{done:?}"
    );
    home.ok(["node", "approve", &request, "--yes"]);
    asking.stdout.wait_for("Approved.");
    for run in home.json(["runs", "list", "--json"]).as_array().unwrap() {
        assert_eq!(run["state"], "ended", "{run}");
        if run["exit_code"] == 4 {
            ended_in_order(run);
        }
    }
}

#[test]
fn nothing_on_a_node_goes_by_a_wall_clock_that_jumps() {
    let (home, machine) = (Home::new(), Home::new());
    let Some(clock) = Clock::new(&machine) else {
        return;
    };
    let mut gateway = home.gateway();
    drop(gateway.join(&machine, "box"));
    // The keeper that the joined node had started goes by the right clock: another takes its place.
    for keeper in keepers_of(&machine.path().join("runs")) {
        kill_process(keeper, Signal::KILL).unwrap();
    }
    let runs = machine.path().join("runs");
    let _keeper = clock.start(&machine, &["keeper", "--dir", runs.to_str().unwrap()]);
    let mut node = clock.start(&machine, &["node", "run"]);
    let gate = machine.user().join("gate");
    let online = || {
        let nodes = home.json(["node", "list", "--json"]);
        (nodes[0]["state"] == "online").then_some(())
    };
    eventually("the node", online);
    let mut exec = home.start([
        "node",
        "exec",
        "box",
        "--timeout",
        "300",
        "--shell",
        &waits_for(&gate),
    ]);
    exec.stdout.wait_for("up");
    let since = || home.json(["node", "describe", "box", "--json"])["connected_since"].clone();
    let connected_since = since();
    for offset in ["+2h", "-1d", "+0"] {
        clock.set(offset);
        let done = home.run(["node", "exec", "box", "--", "echo", offset]);
        assert_eq!((done.code, done.stdout.trim()), (0, offset), "{done:?}");
        assert!(node.is_running());
        assert_eq!(since(), connected_since, "{offset}: the connection stands");
    }
    // The jump is really there: what is stamped now says so. And a cut is mended under it.
    clock.set("+2h");
    gateway.crash_and_restart();
    let stamped = eventually("the node to be connected again", || {
        let status = machine.json(["node", "status", "--json"]);
        let since: Timestamp = status["connected_since"].as_str()?.parse().ok()?;
        let away = since.duration_since(Timestamp::now());
        (away > SignedDuration::from_mins(110)).then_some(away)
    });
    assert!(stamped < SignedDuration::from_mins(121), "{stamped:?}");
    fs::write(&gate, "").unwrap();
    let done = exec.wait();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (4, "up\nend\n"),
        "{done:?}"
    );
    let runs = home.json(["runs", "list", "--json"]);
    let long = runs
        .as_array()
        .unwrap()
        .iter()
        .find(|run| run["exit_code"] == 4);
    ended_in_order(long.unwrap());
}
