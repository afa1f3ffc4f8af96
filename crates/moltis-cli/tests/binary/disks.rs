//! Disks that are full: commands go on, what is refused is told, and nothing that was there breaks.
//!
//! A home is a small file system of its own, in a mount namespace that nobody else sees.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::harness::{Done, Home, eventually, keepers_of, not_tested};

/// A home on a small disk, or a word that there can be none.
fn small(mib: u32, name: &str) -> Option<Home> {
    let home = Home::on_a_disk(mib);
    if home.is_none() {
        not_tested(name, "no small file system may be mounted here");
    }
    home
}

/// A file that takes what is left of a home's disk, until it is dropped.
struct Filler(PathBuf);

impl Filler {
    /// Takes all that is free but so many bytes.
    fn all_but(home: &Home, bytes: u64) -> Self {
        use std::io::Write as _;
        let filler = Self(home.seen().join(format!("filler-{bytes}")));
        let mut file = fs::File::create(&filler.0).unwrap();
        let disk = rustix::fs::statvfs(home.seen()).unwrap();
        let wanted = (disk.f_bavail * disk.f_frsize).saturating_sub(bytes);
        file.write_all(&vec![0; wanted.try_into().unwrap()])
            .unwrap();
        filler
    }

    /// Takes all there is.
    fn all(home: &Home) -> Self {
        Self::all_but(home, 0)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok(); // a test that has failed may have lost its disk
    }
}

/// Names and contents of the files of a home.
fn everything_in(home: &Home) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(home.seen()).unwrap().flatten();
    let mut all: Vec<_> = entries
        .map(|entry| (entry.path(), fs::read(entry.path()).unwrap_or_default()))
        .collect();
    all.sort();
    all
}

fn show(home: &Home, run: &str) -> Value {
    home.json(["runs", "show", run, "--json"])
}

fn ended(home: &Home, run: &str) -> Value {
    eventually("the end of a run", || {
        let run = show(home, run);
        (run["state"] == "ended").then_some(run)
    })
}

/// A command that prints so many bytes, and then makes a file.
fn prints(bytes: u32, done: &Path) -> String {
    format!(
        "echo $$ >&2; head -c {bytes} /dev/zero | tr '\\0' x; : > {}",
        done.display()
    )
}

fn refused(done: &Done, code: i32) {
    assert_eq!(done.code, code, "{done:?}");
    assert!(
        done.stderr
            .contains("the disk that holds the gateway's store is full")
            && done.stderr.contains("hint: free some space"),
        "{done:?}"
    );
}

#[test]
fn output_that_fills_the_gateways_disk_waits_and_all_of_it_comes() {
    let Some(home) = small(8, "a full disk under a gateway") else {
        return;
    };
    let machine = Home::new();
    let mut gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    home.ok(["node", "exec", "local", "--", "true"]);
    let filler = Filler::all_but(&home, 3_000_000);
    let done = machine.user().join("done");
    let script = prints(5_000_000, &done);
    let run = home.ok(["node", "exec", "box", "--detach", "--shell", &script]);
    let run = run.trim();
    let waiting = eventually("output that waits", || {
        let run = show(&home, run);
        run["output_waits"].is_string().then_some(run)
    });
    let words = waiting["output_waits"].as_str().unwrap();
    assert!(words.contains("is full: free some space"), "{words}");
    assert_eq!(waiting["state"], "running");
    assert!(home.ok(["runs", "show", run]).contains(words));

    // Output leaves room for the store: what would free the disk can be run.
    let other = home.run(["node", "exec", "box", "--", "echo", "other"]);
    assert_eq!(
        (other.code, other.stdout.as_str()),
        (0, "other\n"),
        "{other:?}"
    );

    // Somebody else takes the rest. The store's log has room of its own, which may become free again.
    let rest = Filler::all(&home);
    let runs = || home.json(["runs", "list", "--json"]);
    let is_refused = |args: &[&str], code| {
        eventually("the store to be full", || {
            let before = runs();
            let done = home.run(args);
            if done.code == 0 {
                return None;
            }
            refused(&done, code);
            assert_eq!(
                runs().as_array().map(Vec::len),
                before.as_array().map(Vec::len),
                "what is refused is no run"
            );
            Some(())
        });
    };
    is_refused(&["node", "exec", "box", "--", "true"], 125);
    is_refused(&["node", "exec", "local", "--", "true"], 125);
    is_refused(&["node", "pairing", "enable"], 1);
    assert!(gateway.process.is_running() && node.is_running());

    drop(rest);
    drop(filler);
    let run = ended(&home, run);
    assert_eq!(
        (&run["outcome"], &run["exit_code"]),
        (&"exited".into(), &0.into())
    );
    assert_eq!(
        (&run["stdout_bytes"], &run["output_waits"]),
        (&5_000_000.into(), &Value::Null)
    );
    let output = home.run(["runs", "output", run["id"].as_str().unwrap()]);
    assert_eq!(output.stdout_bytes.len(), 5_000_000, "{}", output.stderr);
    assert!(output.stdout_bytes.iter().all(|byte| *byte == b'x'));
    assert!(done.exists());
    home.ok(["node", "exec", "box", "--", "true"]);
    gateway.crash_and_restart();
    let after = show(&home, run["id"].as_str().unwrap());
    assert_eq!(
        (&after["outcome"], &after["stdout_bytes"]),
        (&run["outcome"], &run["stdout_bytes"])
    );
}

#[test]
fn a_run_that_fills_the_gateways_disk_can_be_cancelled() {
    let Some(home) = small(8, "a full disk under a gateway") else {
        return;
    };
    let _gateway = home.gateway();
    let filler = Filler::all_but(&home, 3_000_000);
    let script = "echo pid $$ >&2; exec cat /dev/zero";
    let mut exec = home.start(["node", "exec", "local", "--shell", script]);
    let said = exec.stderr.wait_for("pid ");
    let pid = said.lines().find_map(|line| line.strip_prefix("pid "));
    let stat = format!("/proc/{}/stat", pid.unwrap());
    let run = home.json(["runs", "list", "--json"])[0]["id"].clone();
    let run = run.as_str().unwrap();
    eventually("output that waits", || {
        show(&home, run)["output_waits"].is_string().then_some(())
    });
    // With no room at all a cancel cannot be written down. It acts all the same.
    let rest = Filler::all(&home);
    exec.signal(Signal::INT);
    eventually("the end of the command", || {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    drop(rest);
    // Its last bytes still wait for room.
    assert_eq!(show(&home, run)["state"], "running");
    drop(filler);
    let done = exec.wait();
    assert_eq!(done.code, 130, "{}", done.stderr);
    assert_eq!(ended(&home, run)["outcome"], "cancelled");
}

#[test]
fn a_gateway_on_a_full_disk_says_so_and_leaves_no_half_of_a_file() {
    let Some(home) = small(2, "a full disk under a gateway") else {
        return;
    };
    let filler = Filler::all(&home);
    let before = everything_in(&home);
    for args in [
        &["node", "fingerprint"][..],
        &[
            "node",
            "add",
            "--foreground",
            "--host",
            "ws://127.0.0.1:1/ws",
        ],
    ] {
        let done = home.run(args);
        assert_eq!(done.code, 1, "{args:?}: {done:?}");
        assert!(
            done.stderr.contains("node_key") && done.stderr.contains("No space left"),
            "{args:?}: {done:?}"
        );
    }
    let done = home.run(["gateway", "--listen", "127.0.0.1:0"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("is full: free some space"), "{done:?}");
    let is_ours = |(path, bytes): &(PathBuf, Vec<u8>)| *path != filler.0 && !bytes.is_empty();
    let left: Vec<_> = everything_in(&home).into_iter().filter(is_ours).collect();
    assert!(left.is_empty(), "{left:?} beside {} files", before.len());
    drop(filler);
    let gateway = home.gateway();
    home.ok(["node", "exec", "local", "--", "true"]);
    drop(gateway);
}

#[test]
fn a_node_whose_keeper_has_no_room_to_begin_says_so_and_comes_back_when_there_is() {
    let Some(machine) = small(2, "a keeper that begins on a full disk") else {
        return;
    };
    let home = Home::new();
    let gateway = home.gateway();
    let node = gateway.join(&machine, "box");
    drop(node);
    for keeper in keepers_of(&machine.path().join("runs")) {
        kill_process(keeper, Signal::KILL).unwrap();
    }
    let filler = Filler::all(&machine);
    let node = machine.start(["node", "run"]);
    node.stderr.wait_for("nothing can be written there");
    node.stderr.wait_for("No space left on device");
    drop(filler);
    eventually("the node", || {
        let nodes = home.json(["node", "list", "--json"]);
        (nodes[0]["state"] == "online").then_some(())
    });
    home.ok(["node", "exec", "box", "--", "true"]);
}

#[test]
fn a_nodes_files_are_whole_on_a_full_disk() {
    let Some(machine) = small(2, "a full disk under a node") else {
        return;
    };
    let home = Home::new();
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let filler = Filler::all(&machine);
    let files = ["node.json", "node_key"];
    let read = || files.map(|name| fs::read(machine.seen().join(name)).unwrap());
    let before = read();
    let done = machine.run(["node", "policy", "off"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.contains("node.json` cannot be written")
            && done.stderr.contains("No space left"),
        "{done:?}"
    );
    assert!(before == read(), "the old files stay");
    assert!(node.is_running());

    // A node that is started anew is there, so that somebody can look.
    node.signal(Signal::TERM);
    node.wait();
    let done = machine.run([
        "node",
        "add",
        "--foreground",
        "--host",
        &gateway.ws(),
        "--timeout",
        "60",
    ]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.contains("node.json` cannot be written"),
        "{done:?}"
    );
    assert!(before == read(), "the old files stay");
    let node = machine.start(["node", "run"]);
    eventually("the node", || {
        let nodes = home.json(["node", "list", "--json"]);
        (nodes[0]["state"] == "online").then_some(())
    });
    let status = machine.json(["node", "status", "--json"]);
    assert_eq!(
        status["fingerprint"],
        home.json(["node", "list", "--json"])[0]["fingerprint"]
    );
    drop(filler);
    home.ok(["node", "exec", "box", "--", "true"]);
    drop(node);
}

#[test]
fn a_run_on_a_node_whose_disk_is_full_goes_on_and_its_gap_is_told() {
    let Some(machine) = small(4, "a full disk under a node") else {
        return;
    };
    let home = Home::new();
    let mut gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let gate = machine.user().join("gate");
    let done = machine.user().join("done");
    let script = format!(
        "echo begun >&2; while [ ! -e {} ]; do sleep 0.05; done; {}; exit 7",
        gate.display(),
        prints(20_000_000, &done)
    );
    let mut exec = home.start(["node", "exec", "box", "--shell", &script]);
    exec.stderr.wait_for("begun");
    gateway.crash();
    exec.stderr.wait_for("goes on");
    fs::write(&gate, "").unwrap();
    eventually("the end of the command", || done.exists().then_some(()));
    assert!(node.is_running());
    gateway.restart();
    let done = exec.wait();
    assert_eq!(done.code, 7, "{}", done.stderr);
    let gaps: Vec<u64> = done
        .stderr
        .lines()
        .filter(|line| line.ends_with("of standard output are gone: the disk was full"))
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            words[3].parse::<u64>().unwrap() - words[1].parse::<u64>().unwrap()
        })
        .collect();
    assert!(!gaps.is_empty(), "{}", done.stderr);
    let here = done.stdout_bytes.len() as u64;
    assert_eq!(
        here + gaps.iter().sum::<u64>(),
        20_000_000,
        "{}",
        done.stderr
    );
    let run = home.json(["runs", "list", "--json"])[0].clone();
    assert_eq!(
        (&run["outcome"], &run["exit_code"]),
        (&"exited".into(), &7.into())
    );
    // The spool has left room for the journal.
    home.ok(["node", "exec", "box", "--", "true"]);
    let rest = Filler::all(&machine);
    let long = "x".repeat(10_000);
    let refused = home.run(["node", "exec", "box", "--", "true", &long]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(
        refused.stderr.contains("the node cannot write its journal"),
        "{refused:?}"
    );
    drop(rest);
    home.ok(["node", "exec", "box", "--", "true", &long]);
}
