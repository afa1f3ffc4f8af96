//! `moltis node exec`: output as it comes, exit codes, signals, pipes, stdin.
//!
//! Most of these run on `local`, the keeper of the gateway's machine: the same code as on a node,
//! with fewer processes around it.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use rustix::process::Signal;

use crate::harness::{Home, Process, eventually, not_tested, processes_of, run};

fn exec(home: &Home, args: &[&str]) -> crate::harness::Done {
    let mut all = vec!["node", "exec", "local"];
    all.extend(args);
    home.run(all)
}

#[test]
fn both_outputs_come_while_the_command_runs() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let gate = machine.user().join("gate");
    let script = format!(
        "echo out; echo err >&2; while [ ! -e {} ]; do sleep 0.05; done; echo end",
        gate.display()
    );
    let mut exec = home.start(["node", "exec", "box", "--shell", &script]);
    exec.stdout.wait_for("out");
    exec.stderr.wait_for("err");
    assert!(exec.is_running());
    std::fs::write(&gate, "").unwrap();
    let done = exec.wait();
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stdout, "out\nend\n");
    assert_eq!(done.stderr, "err\n");
}

#[test]
fn the_exit_code_is_that_of_the_command_or_says_what_happened() {
    let home = Home::new();
    let _gateway = home.gateway();
    let file = home.user().join("plain");
    std::fs::write(&file, "no program").unwrap();
    let plain = file.to_str().unwrap();
    for (args, code) in [
        (&["--", "true"][..], 0),
        (&["--shell", "exit 7"], 7),
        (&["--shell", "exit 255"], 255),
        (&["--shell", "kill -9 $$"], 137),
        (&["--shell", "kill -TERM $$"], 143),
        (&["--", "/nonexistent/program"], 127),
        (&["--", "no-such-program-here"], 127),
        (&["--", plain], 126),
        (&["--timeout", "1", "--", "sleep", "600"], 124),
        (&["--cwd", "/nonexistent", "--", "true"], 125),
        (&["--env", "LD_PRELOAD=x", "--", "true"], 125),
        (&["--env", "PATH=/x", "--", "true"], 125),
    ] {
        let done = exec(&home, args);
        assert_eq!(done.code, code, "{args:?}: {done:?}");
        if (124..=127).contains(&code) {
            assert!(!done.stderr.is_empty(), "{args:?} says why");
        }
    }
    let nobody = home.run(["node", "exec", "nobody", "--", "true"]);
    assert_eq!(nobody.code, 125, "{nobody:?}");
    assert!(nobody.stderr.contains("nobody"), "{nobody:?}");
}

#[test]
fn a_variable_that_may_not_pass_is_refused_by_its_name() {
    let home = Home::new();
    let _gateway = home.gateway();
    let done = exec(&home, &["--env", "MY_SECRET=1", "--", "true"]);
    assert_eq!(done.code, 125);
    assert!(done.stderr.contains("MY_SECRET"), "{done:?}");
    let done = exec(
        &home,
        &["--env", "LC_ALL=C", "--env", "NO_COLOR=1", "--", "env"],
    );
    assert!(done.stdout.contains("LC_ALL=C\n"), "{done:?}");
    let names: Vec<_> = done
        .stdout
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    assert!(
        !names.iter().any(|name| name.starts_with("MOLTIS")),
        "{names:?}"
    );
}

#[test]
fn the_first_ctrl_c_cancels_and_waits_and_the_code_is_130() {
    let home = Home::new();
    let _gateway = home.gateway();
    let mut exec = home.start([
        "node",
        "exec",
        "local",
        "--shell",
        "echo up; sleep 600; echo no",
    ]);
    exec.stdout.wait_for("up");
    exec.signal(Signal::INT);
    let done = exec.wait();
    assert_eq!(done.code, 130, "{done:?}");
    assert!(!done.stdout.contains("no"));
    let run = &home.json(["runs", "list", "--json"])[0];
    assert_eq!(run["outcome"], "cancelled");
}

#[test]
fn the_second_ctrl_c_leaves_at_once_and_names_the_run() {
    let home = Home::new();
    let _gateway = home.gateway();
    let script = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let mut exec = home.start(["node", "exec", "local", "--shell", script]);
    exec.stdout.wait_for("up");
    exec.signal(Signal::INT);
    exec.stderr.wait_for("cancelling");
    exec.signal(Signal::INT);
    let done = exec.wait();
    assert_eq!(done.code, 130, "{done:?}");
    let run = &home.json(["runs", "list", "--json"])[0];
    let id = run["id"].as_str().unwrap();
    assert!(done.stderr.contains(id), "{done:?}");
    eventually("the run to be killed after its grace", || {
        let run = home.json(["runs", "show", id, "--json"]);
        (run["outcome"] == "cancelled").then_some(())
    });
}

#[test]
fn ctrl_c_is_heard_while_nobody_reads_our_output() {
    let home = Home::new();
    let _gateway = home.gateway();
    let mut command = home.command(["node", "exec", "local", "--", "yes"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // One read, and then never again: the pipe is full and the writer sleeps.
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1024]).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let id = home.json(["runs", "list", "--json"])[0]["id"].clone();
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    eventually("the run to be cancelled", || {
        let run = home.json(["runs", "show", id.as_str().unwrap(), "--json"]);
        (run["outcome"] == "cancelled").then_some(())
    });
    rustix::process::kill_process(pid, Signal::INT).ok();
    eventually("exec to leave", || child.try_wait().unwrap());
}

#[test]
fn a_closed_pipe_cancels_the_run() {
    let home = Home::new();
    let _gateway = home.gateway();
    let mut command = home.command(["node", "exec", "local", "--", "yes"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 4096]).unwrap();
    drop(stdout);
    let status = eventually("exec to end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(141));
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "");
    let run = &home.json(["runs", "list", "--json"])[0];
    assert_eq!(run["outcome"], "cancelled");
}

#[test]
fn a_list_into_a_closed_pipe_ends_without_a_word() {
    let home = Home::new();
    let _gateway = home.gateway();
    let mut command = home.command(["runs", "list", "--json"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn ten_megabytes_of_stdin_arrive_whole() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let mut command = home.command(["node", "exec", "box", "--stdin", "--", "cat"]);
    command.stdin(Stdio::piped());
    let mut exec = Process::start(command);
    let bytes: Vec<u8> = (0..10 * 1024 * 1024_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let sent = bytes.clone();
    let mut stdin = exec.stdin();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let done = exec.wait();
    writer.join().unwrap();
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(done.stdout_bytes.len(), bytes.len());
    assert!(done.stdout_bytes == bytes, "the bytes are others");
}

#[test]
fn a_command_that_does_not_read_stdin_ends_all_the_same() {
    let home = Home::new();
    let _gateway = home.gateway();
    let mut command = home.command(["node", "exec", "local", "--stdin", "--", "true"]);
    command.stdin(Stdio::piped());
    let mut exec = Process::start(command);
    let mut stdin = exec.stdin();
    let writer = std::thread::spawn(move || stdin.write_all(&vec![0; 4 << 20]));
    let done = exec.wait();
    assert_eq!(done.code, 0, "{done:?}");
    writer.join().unwrap().unwrap_err();
}

#[test]
fn without_stdin_the_command_reads_nothing() {
    let home = Home::new();
    let _gateway = home.gateway();
    let mut command = home.command(["node", "exec", "local", "--", "cat"]);
    command.stdin(Stdio::piped());
    let mut exec = Process::start(command);
    let _open = exec.stdin();
    let done = exec.wait();
    assert_eq!((done.code, done.stdout.as_str()), (0, ""));
}

#[test]
fn with_json_there_is_one_object_at_the_end() {
    let home = Home::new();
    let _gateway = home.gateway();
    let done = exec(
        &home,
        &["--json", "--shell", "printf 'a\\377'; echo e >&2; exit 3"],
    );
    assert_eq!(done.code, 3);
    let object: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(object["outcome"], "exited");
    assert_eq!(object["exit_code"], 3);
    assert_eq!(object["stdout"], "a\u{fffd}");
    assert_eq!(object["stderr"], "e\n");
    assert_eq!(object["stdout_bytes"], 2);
    assert_eq!(object["truncated"], false);
    assert_eq!(object["node"], "local");
    for field in ["run_id", "signal", "stderr_bytes", "duration_ms"] {
        assert!(object.get(field).is_some(), "{field}");
    }
    let long = exec(&home, &["--json", "--shell", "head -c 3000000 /dev/zero"]);
    let object: serde_json::Value = serde_json::from_str(&long.stdout).unwrap();
    assert_eq!(object["truncated"], true);
    assert_eq!(object["stdout_bytes"], 3_000_000);
    assert!(
        object["stdout"]
            .as_str()
            .unwrap()
            .contains("… 1951424 bytes left out …")
    );
}

#[test]
fn a_detached_run_is_attached_to_later() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let gate = machine.user().join("gate");
    let script = format!(
        "echo begin; while [ ! -e {} ]; do sleep 0.05; done; echo end; exit 5",
        gate.display()
    );
    let started = home.run(["node", "exec", "box", "--detach", "--shell", &script]);
    assert_eq!(started.code, 0, "{started:?}");
    let id = started.stdout.trim();
    assert_eq!(id.len(), 32, "the id stands alone: {started:?}");
    let mut attached = home.start(["runs", "attach", &id[..8]]);
    attached.stdout.wait_for("begin");
    std::fs::write(&gate, "").unwrap();
    let done = attached.wait();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (5, "begin\nend\n"),
        "{done:?}"
    );
    assert_eq!(home.ok(["runs", "output", id]), "begin\nend\n");
    assert_eq!(home.ok(["runs", "output", id, "--offset", "6"]), "end\n");
    assert_eq!(home.ok(["runs", "output", id, "--stream", "stderr"]), "");
    let again = home.run(["runs", "attach", id]);
    assert_eq!((again.code, again.stdout.as_str()), (5, "begin\nend\n"));
}

#[test]
fn a_detached_run_is_named_as_any_other_in_json() {
    let home = Home::new();
    let _gateway = home.gateway();
    let run = home.json(["node", "exec", "local", "--detach", "--json", "--", "true"]);
    assert_eq!(run["run_id"].as_str().unwrap().len(), 32, "{run}");
    assert_eq!(run["node"], "local");
    home.ok(["runs", "show", run["run_id"].as_str().unwrap()]);
}

#[test]
fn an_output_that_cannot_be_written_cancels_the_run_and_says_so() {
    let home = Home::new();
    let _gateway = home.gateway();
    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else {
        not_tested("a full disk under `exec`", "there is no /dev/full");
        return;
    };
    let mut command = home.command(["node", "exec", "local", "--", "yes"]);
    command.stdout(full).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{said}");
    let run = &home.json(["runs", "list", "--json"])[0];
    assert_eq!(run["outcome"], "cancelled");
    let id = &run["id"].as_str().unwrap()[..8];
    for wanted in [
        "cannot write to stdout: No space left",
        &format!("the run {id} cancelled"),
        &format!("moltis runs output {id}"),
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

#[test]
fn binary_output_passes_unchanged_where_nobody_looks() {
    let home = Home::new();
    let _gateway = home.gateway();
    let done = exec(&home, &["--shell", "printf '\\033[31m\\000\\377\\r\\n'"]);
    assert_eq!(done.stdout_bytes, b"\x1b[31m\x00\xff\r\n");
}

#[test]
fn nothing_of_a_command_is_left_when_it_was_cancelled() {
    let home = Home::new();
    let _gateway = home.gateway();
    let marker = home.user().join("marker-of-this-test");
    let script = format!(
        "echo up; sleep 600 & exec tail -f /dev/null {}",
        marker.display()
    );
    std::fs::write(&marker, "").unwrap();
    let mut exec = home.start(["node", "exec", "local", "--shell", &script]);
    exec.stdout.wait_for("up");
    exec.signal(Signal::TERM);
    let done = exec.wait();
    assert_eq!(
        done.code, 143,
        "a signal ends us as it would end a command: {done:?}"
    );
    eventually("the group to be gone", || {
        processes_of(&marker).is_empty().then_some(())
    });
}

#[test]
fn two_commands_run_side_by_side() {
    let home = Home::new();
    let _gateway = home.gateway();
    let fifo = home.user().join("fifo");
    run({
        let mut command = std::process::Command::new("mkfifo");
        command.arg(&fifo);
        command
    });
    let fifo = fifo.to_str().unwrap();
    let mut reader = home.start(["node", "exec", "local", "--", "cat", fifo]);
    let writer = exec(&home, &["--shell", &format!("echo hello > {fifo}")]);
    assert_eq!(writer.code, 0);
    assert_eq!(reader.wait().stdout, "hello\n");
}
