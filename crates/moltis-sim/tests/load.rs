//! Some hundred nodes on a real gateway: what `cargo xtask load` measures with ten thousand, as a
//! test of what must hold.
//!
//! The gateway is the binary of this workspace, which a build of the workspace puts beside ours.

#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests end the test where they cannot go on"
)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const NODES: u64 = 300;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// What a node may cost the gateway that has just accepted it, in KiB: twice of what it does in a
/// build for tests. One buffer of a library's default size is more.
const NODE_KIB_MAX: u64 = 40;

/// A program that is ended with its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok(); // it has ended by itself
        self.0.wait().ok(); // likewise
    }
}

struct Gateway {
    running: Ended,
    home: TempDir,
    address: String,
}

impl Gateway {
    /// Starts a gateway that knows the nodes of `NODES`.
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let seeded = Command::new(sim())
            .args(["load", "seed", "--nodes", &NODES.to_string(), "--home"])
            .arg(home.path())
            .status();
        assert!(seeded.unwrap().success());
        let (running, address) = run(home.path(), "127.0.0.1:0");
        Self {
            running,
            home,
            address,
        }
    }

    /// Ends it and starts it again, at the same address.
    fn restart(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.running.0), signal).unwrap();
        self.running.0.wait().unwrap();
        (self.running, _) = run(self.home.path(), &self.address);
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.0.id()));
        let status = status.unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse().unwrap()
    }

    /// Runs a command on a node and returns its exit code.
    fn exec(&self, node: &str, command: &str) -> i32 {
        let mut exec = moltis(self.home.path());
        exec.args(["node", "exec", node, "--", command]);
        let output = exec.output().unwrap();
        output.status.code().unwrap_or_else(|| panic!("{output:?}"))
    }
}

fn run(home: &Path, listen: &str) -> (Ended, String) {
    let mut command = moltis(home);
    command.args(["gateway", "--listen", listen]);
    let running = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut running = Ended(running.unwrap());
    let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    let address = lines
        .find_map(|line| Some(line.strip_prefix("listening on http://")?.to_owned()))
        .expect("the gateway says where it listens");
    (running, address)
}

fn sim() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_moltis-sim"))
}

fn moltis(home: &Path) -> Command {
    let binary = sim().with_file_name("moltis");
    assert!(
        binary.exists(),
        "build the workspace: {} is not there",
        binary.display()
    );
    let mut command = Command::new(binary);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home)
        .env("MOLTIS_HOME", home)
        .env("MOLTIS_LOG", "warn")
        .stdin(Stdio::null());
    command
}

/// A running `moltis-sim load`, and what it told last.
struct Sim {
    _running: Ended,
    told: Arc<Mutex<Value>>,
}

impl Sim {
    fn start(what: &[&str], gateway: &Gateway) -> Self {
        let running = Command::new(sim())
            .arg("load")
            .args(what)
            .args(["--gateway", &gateway.address])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut running = Ended(running.unwrap());
        let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let told = Arc::new(Mutex::new(Value::Null));
        let newest = Arc::clone(&told);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *newest.lock().unwrap() = serde_json::from_str(&line).unwrap();
            }
        });
        Self {
            _running: running,
            told,
        }
    }

    fn nodes(gateway: &Gateway) -> Self {
        Self::start(&["nodes", "--nodes", &NODES.to_string()], gateway)
    }

    fn count(&self, name: &str) -> u64 {
        self.told.lock().unwrap()[name].as_u64().unwrap_or(0)
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let since = tokio::time::Instant::now();
        while !is_so(self) {
            let told = self.told.lock().unwrap().clone();
            assert!(since.elapsed() < LIMIT, "{what}: not yet, but {told}");
            std::thread::sleep(Duration::from_millis(10)); // the counts come ten times a second
        }
    }

    /// Waits until all nodes are connected for the so-many-th time, and looks that none has failed.
    fn wait_for_all(&self, times: u64) {
        self.wait("all are connected", |sim| {
            sim.count("accepted") >= times * NODES && sim.count("connected") == NODES
        });
        for failure in ["broken", "refused", "closed"] {
            assert_eq!(self.count(failure), 0, "{failure}, at time {times}");
        }
    }
}

#[test]
fn all_nodes_come_back_after_a_kill_and_after_a_goodbye_and_none_fails() {
    let mut gateway = Gateway::start();
    let before = gateway.resident_kib();
    let nodes = Sim::nodes(&gateway);
    nodes.wait_for_all(1);
    let each = (gateway.resident_kib() - before) / NODES;
    assert!(each <= NODE_KIB_MAX, "a node takes {each} KiB");

    gateway.restart(Signal::KILL);
    nodes.wait_for_all(2);
    assert_eq!(nodes.count("goodbyes"), 0);

    gateway.restart(Signal::TERM);
    nodes.wait_for_all(3);
    assert_eq!(nodes.count("goodbyes"), NODES);
    // The more there are, the longer they are spread.
    let longest = nodes.count("back_in_max_ms");
    assert!((1060..=1400).contains(&longest), "{longest} ms");
    assert_eq!(gateway.exec("sim-00123", "exit 7"), 7);
}

#[test]
fn strangers_cost_no_honest_node_its_connection_and_keep_none_away() {
    let mut gateway = Gateway::start();
    let nodes = Sim::nodes(&gateway);
    nodes.wait_for_all(1);
    let strangers = Sim::start(&["strangers"], &gateway);
    let have_come = |sim: &Sim| sim.count("strangers") > 500 && sim.count("refused") > 50;
    strangers.wait("strangers have come", have_come);
    for number in 0..5 {
        let node = format!("sim-{number:05}");
        assert_eq!(gateway.exec(&node, "exit 3"), 3, "{node}");
    }
    assert_eq!(nodes.count("lost"), 0);

    gateway.restart(Signal::KILL);
    nodes.wait("all are back", |sim| {
        sim.count("accepted") >= 2 * NODES && sim.count("connected") == NODES
    });
    assert_eq!((nodes.count("refused"), nodes.count("closed")), (0, 0));
    assert_eq!(gateway.exec("sim-00299", "exit 5"), 5);
}
