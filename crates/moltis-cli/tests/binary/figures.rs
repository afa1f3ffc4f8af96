//! What others lack, shown by the real binary where no other file here does: each test is a row of
//! the table in `docs/reliability.md`.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::harness::{Gateway, Home, Process, eventually, processes_of};

#[test]
fn a_megabyte_on_each_output_comes_whole_and_is_counted() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let script =
        "head -c 1000000 /dev/zero | tr '\\0' o; head -c 1000000 /dev/zero | tr '\\0' e >&2";
    let done = home.run(["node", "exec", "box", "--shell", script]);
    assert_eq!(done.code, 0);
    assert!(
        done.stdout == "o".repeat(1_000_000),
        "{}",
        done.stdout.len()
    );
    assert!(
        done.stderr == "e".repeat(1_000_000),
        "{}",
        done.stderr.len()
    );
    let run = &home.json(["runs", "list", "--json"])[0];
    let bytes = (&run["stdout_bytes"], &run["stderr_bytes"]);
    assert_eq!(bytes, (&1_000_000.into(), &1_000_000.into()));
}

#[test]
fn the_same_request_twice_is_one_run() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let starts = machine.user().join("starts");
    let command = format!("echo start >> {}", starts.display());
    let ask = || {
        let body = serde_json::json!({"node": "box", "command": command});
        crate::api::post(&home, "runs?wait=true", &["idempotency-key: once"], &body)
    };
    let (first, second) = (ask(), ask());
    assert_eq!(first["outcome"], "exited", "{first}");
    assert_eq!(first["run_id"], second["run_id"], "{second}");
    assert_eq!(fs::read_to_string(starts).unwrap(), "start\n");
}

#[test]
fn at_its_timeout_the_whole_group_of_a_command_is_gone_and_its_output_is_kept() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let mark = machine.user().join("mark");
    let script = format!(
        "echo before; (sh -c 'sleep 600; : {0}') & sh -c 'sleep 600; : {0}'",
        mark.display()
    );
    let done = home.run(["node", "exec", "box", "--timeout", "1", "--shell", &script]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (124, "before\n"),
        "{done:?}"
    );
    assert_eq!(processes_of(&mark), [].into(), "some are left");
}

#[test]
fn eight_commands_that_sleep_for_a_second_take_about_one() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    // They begin when all are there: to start eight clients takes longer on a slow machine.
    let gate = machine.user().join("gate");
    let script = format!(
        "echo up; while [ ! -e {} ]; do sleep 0.05; done; date +%s%N; sleep 1; date +%s%N",
        gate.display()
    );
    let start = |_| home.start(["node", "exec", "box", "--shell", &script]);
    let mut all: Vec<Process> = (0..8).map(start).collect();
    for exec in &all {
        exec.stdout.wait_for("up");
    }
    // None of them says anything, and the node goes on to give signs of life.
    let last_seen = || home.json(["node", "list", "--json"])[0]["last_seen"].clone();
    let before = last_seen();
    assert!(before.is_string(), "{before}");
    eventually("a heartbeat beside eight commands", || {
        (last_seen() != before).then_some(())
    });
    fs::write(&gate, "").unwrap();
    let times = all.iter_mut().map(|exec| {
        let done = exec.wait();
        let lines = done.stdout.lines().skip(1);
        let mut lines = lines.map(|line| line.parse::<u64>().unwrap());
        (lines.next().unwrap(), lines.next().unwrap())
    });
    let times: Vec<_> = times.collect();
    // All of them slept in one moment.
    let last_start = times.iter().map(|time| time.0).max().unwrap();
    let first_end = times.iter().map(|time| time.1).min().unwrap();
    assert!(last_start < first_end, "{times:?}");
    let nodes = home.json(["node", "list", "--json"]);
    assert_eq!(nodes[0]["state"], "online");
}

#[test]
fn a_command_sees_nothing_of_the_services_environment() {
    let (home, machine) = (Home::new(), Home::new());
    let secret = "a-secret-of-the-service";
    let with_secrets = |home: &Home, args: &[&str]| {
        let mut command = home.command(args);
        for name in ["OPENAI_API_KEY", "MOLTIS_API_TOKEN", "ANYTHING_ELSE"] {
            command.env(name, secret);
        }
        Process::start(command)
    };
    let process = with_secrets(&home, &["gateway", "--listen", "127.0.0.1:0"]);
    let gateway = Gateway::ready(&home, process);
    drop(gateway.join(&machine, "box"));
    let _node = with_secrets(&machine, &["node", "run"]);
    eventually("the node to be back", || {
        let nodes = home.json(["node", "list", "--json"]);
        (nodes[0]["state"] == "online").then_some(())
    });
    for target in ["box", "local"] {
        let seen = home.ok(["node", "exec", target, "--", "env"]);
        assert!(seen.contains("HOME="), "{seen}");
        assert!(!seen.contains(secret), "{target}: {seen}");
        assert!(!seen.contains("MOLTIS"), "{target}: {seen}");
    }
}

#[test]
fn a_revoked_node_is_gone_within_a_second() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    // From the request on, which no client has to be started for, to the moment in which the node
    // hears of it on its connection.
    let asked = SystemTime::now();
    let closed = std::thread::scope(|scope| {
        let closed = scope.spawn(|| {
            node.stderr.wait_for("this node was revoked");
            SystemTime::now()
        });
        let revoked = crate::api::post(&home, "nodes/box/revoke", &[], &serde_json::json!({}));
        assert_eq!(revoked["state"], "revoked", "{revoked}");
        closed.join().unwrap()
    });
    let took = closed.duration_since(asked).unwrap();
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    eventually("the node to end", || (!node.is_running()).then_some(()));
}
