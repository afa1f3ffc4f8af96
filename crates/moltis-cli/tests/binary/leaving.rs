//! SIGTERM under load: who is asked to end does so within its time, says so to the others, and leaves
//! nothing behind but what runs.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::harness::{Home, LONG, Process, eventually, keepers_of};

/// How long an end may take: the gateway's grace is 10 s, and a node's word is given as long.
const ENDED: Duration = Duration::from_secs(10);

/// A command that prints numbers, more of them each time, for as long as it is let.
fn prints(home: &Home) -> String {
    format!(
        "n=0; while [ ! -e {0}/enough ]; do seq -f %09.0f $((n*1000+1)) $((n*1000+1000)); n=$((n+1)); \
         sleep 0.02; done; exit 4",
        home.user().display()
    )
}

/// Sends SIGTERM, and expects a good end in time.
#[track_caller]
fn ends_in_order(process: &mut Process) {
    let asked = SystemTime::now();
    process.signal(Signal::TERM);
    let done = process.wait();
    let took = asked.elapsed().unwrap();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(took < ENDED, "it took {took:?}: {done:?}");
}

/// Returns the names of what is in a directory.
fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// All that a run has printed is there, once.
#[track_caller]
fn is_whole(home: &Home, id: &str) {
    let run = eventually("the run to be over", || {
        Some(home.json(["runs", "show", id, "--json"])).filter(|run| run["state"] == "ended")
    });
    assert_eq!(run["exit_code"], 4, "{run}");
    let done = home.run(["runs", "output", id]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert_eq!(run["stdout_bytes"], done.stdout.len());
    for (line, number) in done.stdout.lines().zip(1..) {
        assert_eq!(line, format!("{number:09}"));
    }
}

/// Asks at the Unix socket for something that lasts.
fn ask(home: &Home, path: &str) -> UnixStream {
    let mut stream = UnixStream::connect(home.path().join("gateway.sock")).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let head = format!("GET /api/v1/{path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

#[test]
fn a_gateway_under_load_ends_in_its_time_and_its_nodes_come_back_when_they_were_told() {
    let (home, machine, other) = (Home::new(), Home::new(), Home::new());
    let mut gateway = home.gateway();
    let mut nodes = [gateway.join(&machine, "box"), gateway.join(&other, "other")];
    let mut execs = Vec::new();
    for (target, on) in [("box", &machine), ("other", &other), ("local", &home)] {
        let exec = home.start(["node", "exec", target, "--shell", &prints(on)]);
        exec.stdout.wait_for("000005000");
        execs.push(exec);
    }
    let runs = home.json(["runs", "list", "--json"]);
    let ids = runs.as_array().unwrap().iter();
    let ids: Vec<_> = ids.map(|run| run["id"].as_str().unwrap()).collect();
    // One who listens, one who waits for an end, and one who asks for much and reads nothing.
    let mut events = ask(&home, "events");
    let mut waits = ask(&home, &format!("runs/{}/output?follow=true", ids[1]));
    let deaf = ask(&home, &format!("runs/{}/follow", ids[0]));
    let mut text = [0; 64];
    events.read_exact(&mut text).unwrap();
    assert!(text.starts_with(b"HTTP/1.1 200 "), "{text:?}");

    ends_in_order(&mut gateway.process);
    for stream in [&mut events, &mut waits] {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).ok(); // it is cut, or comes to its end
    }
    drop(deaf);
    assert!(TcpStream::connect(&gateway.address).is_err());
    // No socket, no log of a database, and nothing half written.
    let kept = [
        "gateway.db",
        "gateway.lock",
        "gateway_key",
        "local",
        "outputs",
    ];
    assert_eq!(names_in(&home.path()), kept.map(str::to_owned).into());
    assert_eq!(keepers_of(&home.path().join("local")).len(), 1);
    for node in &nodes {
        node.stderr.wait_for("expects to be back in 1 s");
    }
    gateway.restart();
    eventually("both nodes to be back", || {
        let nodes = home.json(["node", "list", "--json"]);
        (nodes.as_array().unwrap().len() == 2).then_some(())
    });
    for node in &mut nodes {
        assert!(node.is_running());
    }
    for on in [&machine, &other, &home] {
        fs::write(on.user().join("enough"), "").unwrap();
    }
    for exec in &mut execs {
        assert_eq!(exec.wait().code, 4);
    }
    for id in &ids {
        is_whole(&home, id);
    }
}

#[test]
fn a_node_under_load_says_goodbye_and_leaves_its_runs_to_the_keeper() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let start = || {
        home.ok([
            "node",
            "exec",
            "box",
            "--detach",
            "--shell",
            &prints(&machine),
        ])
    };
    let ids = [start(), start(), start()].map(|id| id.trim().to_owned());
    // First the one that `node add` became, then `node run`.
    for round in 1..=2 {
        for id in &ids {
            eventually("more to be printed", || {
                let run = home.json(["runs", "show", id, "--json"]);
                (run["stdout_bytes"].as_u64() > Some(round * 50_000)).then_some(())
            });
        }
        let keepers = keepers_of(&machine.path().join("runs"));
        let before = names_in(&machine.path());
        ends_in_order(&mut node);
        // The gateway was told: it does not wait for a silence of 45 s.
        let asked = SystemTime::now();
        eventually("the node to be offline", || {
            let nodes = home.json(["node", "list", "--all", "--json"]);
            (nodes[0]["state"] == "offline").then_some(())
        });
        assert!(asked.elapsed().unwrap() < ENDED);
        assert_eq!(names_in(&machine.path()), before, "round {round}");
        assert_eq!(keepers_of(&machine.path().join("runs")), keepers);
        assert_eq!(keepers.len(), 1);
        node = machine.start(["node", "run"]);
    }
    fs::write(machine.user().join("enough"), "").unwrap();
    for id in &ids {
        is_whole(&home, id);
    }
}
