//! What is killed, and what goes on.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::json;

use crate::api::post;
use crate::harness::{Home, Process, eventually, keepers_of};

/// A command that says a line for each file that appears, so that a test decides its pace.
fn stepwise(home: &Home) -> String {
    let dir = home.user();
    format!(
        "n=0; while [ $n -lt 3 ]; do while [ ! -e {0}/step$n ]; do sleep 0.05; done; echo line $n; n=$((n+1)); done; exit 9",
        dir.display()
    )
}

fn step(home: &Home, number: u32) {
    fs::write(home.user().join(format!("step{number}")), "").unwrap();
}

#[test]
fn exec_goes_on_by_itself_when_the_gateway_is_killed_and_started_again() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let script = stepwise(&machine);
    let mut exec = home.start(["node", "exec", "box", "--shell", &script]);
    step(&machine, 0);
    exec.stdout.wait_for("line 0");
    gateway.crash();
    exec.stderr.wait_for("goes on");
    step(&machine, 1);
    gateway.restart();
    exec.stdout.wait_for("line 1");
    step(&machine, 2);
    let done = exec.wait();
    assert_eq!(done.code, 9, "{done:?}");
    assert_eq!(done.stdout, "line 0\nline 1\nline 2\n", "all of it, once");
    assert_eq!(
        done.stderr.matches("goes on").count(),
        1,
        "said once: {done:?}"
    );
}

#[test]
fn the_first_question_of_a_command_waits_for_a_gateway_that_is_started_again() {
    let home = Home::new();
    let mut gateway = home.gateway();
    let command = ["node", "exec", "local", "--detach", "--", "echo", "here"];
    let id = home.ok(command).trim().to_owned();
    eventually("the run to be over", || {
        let run = home.json(["runs", "show", &id, "--json"]);
        (run["state"] == "ended").then_some(())
    });
    // It dies, and leaves its socket.
    gateway.crash();
    let asked = [
        vec!["runs", "show", &id],
        vec!["runs", "output", &id],
        vec!["runs", "attach", &id],
        vec!["node", "exec", "local", "--", "echo", "here"],
        vec!["node", "exec", "--select", "all", "--dry-run"],
    ];
    let mut asking = asked.map(|words| home.start(words));
    for one in &asking {
        one.stderr.wait_for("waiting up to 15 s");
    }
    gateway.restart();
    let done = asking.each_mut().map(Process::wait);
    for done in &done[..4] {
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stdout.contains("here"), "{done:?}");
        assert_eq!(done.stderr.matches("waiting").count(), 1, "{done:?}");
    }
    // That nobody matches is the gateway's own answer.
    assert!(!done[4].stderr.contains("no gateway runs"), "{:?}", done[4]);
}

#[test]
fn where_there_never_was_a_gateway_nobody_waits() {
    let home = Home::new();
    let began = SystemTime::now();
    for words in [
        &["runs", "show", "00"][..],
        &["node", "exec", "local", "--", "true"],
    ] {
        let done = home.run(words);
        assert!(
            done.stderr.contains("start one: moltis gateway"),
            "{done:?}"
        );
        assert!(!done.stderr.contains("waiting"), "{done:?}");
    }
    assert!(began.elapsed().unwrap() < Duration::from_secs(10));
}

#[test]
fn a_local_run_goes_on_when_the_gateway_is_killed_and_started_again() {
    let home = Home::new();
    let mut gateway = home.gateway();
    let script = stepwise(&home);
    let mut exec = home.start(["node", "exec", "local", "--shell", &script]);
    step(&home, 0);
    exec.stdout.wait_for("line 0");
    gateway.crash_and_restart();
    step(&home, 1);
    step(&home, 2);
    let done = exec.wait();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (9, "line 0\nline 1\nline 2\n"),
        "{done:?}"
    );
}

#[test]
fn a_run_goes_on_when_the_node_is_killed_and_started_again() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let script = stepwise(&machine);
    let mut exec = home.start(["node", "exec", "box", "--shell", &script]);
    step(&machine, 0);
    exec.stdout.wait_for("line 0");
    node.signal(Signal::KILL);
    node.wait();
    step(&machine, 1);
    let node = machine.start(["node", "run"]);
    exec.stdout.wait_for("line 1");
    step(&machine, 2);
    let done = exec.wait();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (9, "line 0\nline 1\nline 2\n"),
        "{done:?}"
    );
    drop(node);
}

#[test]
fn a_killed_exec_leaves_its_run_to_be_attached_to() {
    let home = Home::new();
    let _gateway = home.gateway();
    let script = stepwise(&home);
    let mut exec = home.start(["node", "exec", "local", "--shell", &script]);
    step(&home, 0);
    exec.stdout.wait_for("line 0");
    exec.signal(Signal::KILL);
    exec.wait();
    let id = home.json(["runs", "list", "--json"])[0]["id"].clone();
    step(&home, 1);
    step(&home, 2);
    let done = home.run(["runs", "attach", id.as_str().unwrap()]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (9, "line 0\nline 1\nline 2\n"),
        "{done:?}"
    );
}

#[test]
fn a_killed_keeper_ends_its_runs_as_lost() {
    let home = Home::new();
    let _gateway = home.gateway();
    let mut exec = home.start(["node", "exec", "local", "--shell", "echo up; sleep 600"]);
    exec.stdout.wait_for("up");
    let keepers = keepers_of(&home.path().join("local"));
    let [keeper] = keepers[..] else {
        panic!("expected one keeper, found {keepers:?}");
    };
    rustix::process::kill_process(keeper, Signal::KILL).unwrap();
    let done = exec.wait();
    assert_eq!(done.code, 255, "{done:?}");
    let run = eventually("the run to be lost", || {
        let run = home.json(["runs", "list", "--json"])[0].clone();
        (run["outcome"] == "lost").then_some(run)
    });
    assert_eq!(run["outcome_reason"], "keeper_died");
    assert_eq!(run["duration_ms"], serde_json::Value::Null, "{run:#}");
}

/// Bytes that tell if one is missing, or comes twice.
fn numbered(length: usize) -> Vec<u8> {
    (0..u64::MAX)
        .flat_map(|number| format!("{number}\n").into_bytes())
        .take(length)
        .collect()
}

/// Feeds `exec --stdin -- cat` and kills the gateway while stdin is under way: some of it lies in
/// the gateway, and the command has not read it.
fn stdin_survives_the_gateway(gateway_home: &Home, machine: &Home, target: &str, length: usize) {
    let mut gateway = gateway_home.gateway();
    let node = (target != "local").then(|| gateway.join(machine, target));
    let gate = machine.user().join(format!("gate{length}"));
    let script = format!(
        "echo begun >&2; while [ ! -e {} ]; do sleep 0.05; done; cat",
        gate.display()
    );
    let mut command = gateway_home.command(["node", "exec", target, "--stdin", "--shell", &script]);
    command.stdin(Stdio::piped());
    let mut exec = Process::start(command);
    exec.stderr.wait_for("begun");
    let bytes = numbered(length);
    let written = Arc::new(AtomicUsize::new(0));
    let writer = {
        let (mut stdin, sent, written) = (exec.stdin(), bytes.clone(), Arc::clone(&written));
        std::thread::spawn(move || {
            for piece in sent.chunks(1000) {
                stdin.write_all(piece).unwrap();
                written.fetch_add(piece.len(), Ordering::SeqCst);
            }
        })
    };
    // More than the two pipes and `exec` hold, so that the gateway has taken more than the command.
    let under_way = length.min(600_000);
    eventually("stdin to be under way", || {
        (written.load(Ordering::SeqCst) >= under_way).then_some(())
    });
    gateway.crash();
    exec.stderr.wait_for("goes on");
    gateway.restart();
    fs::write(&gate, "").unwrap();
    let done = exec.wait();
    writer.join().unwrap();
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(!done.stderr.contains("not passed on"), "{}", done.stderr);
    assert_eq!(done.stdout_bytes.len(), length, "all of it, once");
    assert!(done.stdout_bytes == bytes, "the bytes are others");
    drop(node);
}

#[test]
fn stdin_goes_on_when_the_gateway_is_killed_and_started_again() {
    let (home, machine) = (Home::new(), Home::new());
    stdin_survives_the_gateway(&home, &machine, "box", 2_000_000);
}

#[test]
fn stdin_and_its_end_come_again_when_the_gateway_dies_with_them() {
    // All of it fits into the gateway and the pipes: nothing is left to be sent but what was lost.
    let home = Home::new();
    stdin_survives_the_gateway(&home, &home, "local", 200_000);
}

/// Stdin comes with the request, and more of it than a keeper takes before its command reads. Whoever
/// was told of the run does not ask again.
fn stdin_of_a_request_survives_the_gateway(home: &Home, machine: &Home, target: &str) {
    let mut gateway = home.gateway();
    let node = (target != "local").then(|| gateway.join(machine, target));
    let folder = machine.user();
    let text = String::from_utf8(numbered(700_000)).unwrap();
    let script = "echo begun > begun; while [ ! -e gate ]; do sleep 0.05; done; cat > got";
    let asked = json!({"node": target, "command": script, "stdin": text, "cwd": folder});
    let run = post(home, "runs", &[], &asked);
    let id = run["id"].as_str().unwrap().to_owned();
    eventually("the command to run", || {
        folder.join("begun").exists().then_some(())
    });
    let kept = home.path().join("outputs").join(&id);
    assert!(kept.join("stdin").exists(), "it lies beside the output");
    for _ in 0..2 {
        gateway.crash_and_restart();
    }
    fs::write(folder.join("gate"), "").unwrap();
    let ended = eventually("the command to have read all", || {
        let run = home.json(["runs", "show", &id, "--json"]);
        (run["state"] == "ended").then_some(run)
    });
    assert_eq!(ended["exit_code"], 0, "{ended}");
    let got = fs::read_to_string(folder.join("got")).unwrap();
    assert_eq!(got.len(), text.len(), "all of it, once");
    assert!(got == text, "the bytes are others");
    eventually("the kept stdin to be gone", || {
        (!kept.exists()).then_some(())
    });
    drop(node);
}

#[test]
fn stdin_that_came_with_the_request_goes_on_when_the_gateway_is_killed_and_started_again() {
    let (home, machine) = (Home::new(), Home::new());
    stdin_of_a_request_survives_the_gateway(&home, &machine, "box");
    let home = Home::new();
    stdin_of_a_request_survives_the_gateway(&home, &home, "local");
}

#[test]
fn a_pipe_may_hold_the_byte_of_ctrl_c_while_the_gateway_is_away() {
    let home = Home::new();
    let mut gateway = home.gateway();
    let mut command = home.command(["node", "exec", "local", "--stdin", "--", "cat"]);
    command.stdin(Stdio::piped());
    let mut exec = Process::start(command);
    let mut stdin = exec.stdin();
    stdin.write_all(b"a\n").unwrap();
    exec.stdout.wait_for("a");
    gateway.crash();
    exec.stderr.wait_for("goes on");
    stdin.write_all(b"\x03b\n").unwrap();
    drop(stdin);
    gateway.restart();
    let done = exec.wait();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "a\n\x03b\n"),
        "{done:?}"
    );
}
