//! One command on many nodes: `node exec --select`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Done, Gateway, Home, Process, eventually, processes_of};
use crate::terminal::OnTerminal;

/// Machines `a`, `b`, `c` and so on: the homes of their nodes.
fn machines(number: usize) -> Vec<Home> {
    (0..number).map(|_| Home::new()).collect()
}

/// Joins each machine under its letter, with this label.
fn join(gateway: &Gateway<'_>, machines: &[Home], labels: &[&str]) -> Vec<Process> {
    let each = machines.iter().zip(["a", "b", "c", "d", "e"]).zip(labels);
    each.map(|((machine, name), label)| {
        gateway.join_with(
            machine,
            &["--name", name, "--node-id", name, "--label", label],
        )
    })
    .collect()
}

/// Runs a shell line on all nodes, with these flags.
fn on_all(home: &Home, flags: &[&str], line: &str) -> Done {
    home.run(all(flags, line))
}

fn all<'a>(flags: &[&'a str], line: &'a str) -> Vec<&'a str> {
    let mut args = vec!["node", "exec", "--select", "all"];
    args.extend(flags);
    args.extend(["--shell", line]);
    args
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// A command that says in files of `dir` that it has begun, and how many of its kind run beside it,
/// and goes on when there is a file `gate`.
fn gated(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "mkdir -p {dir}/here; touch {dir}/here/$$; ls {dir}/here | wc -l >> {dir}/beside; \
         echo begun >> {dir}/begun; while [ ! -e {dir}/gate ]; do sleep 0.02; done; rm {dir}/here/$$"
    )
}

fn lines_in(file: &PathBuf) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn begun(dir: &Path, number: usize) {
    eventually("commands to have begun", || {
        (lines_in(&dir.join("begun")).len() == number).then_some(())
    });
}

fn is_offline(home: &Home, name: &str) {
    eventually("the node to be offline", || {
        let nodes = home.json(["node", "list", "--all", "--json"]);
        let mut nodes = nodes.as_array().unwrap().iter();
        let node = nodes.find(|node| node["name"] == name)?;
        (node["state"] == "offline").then_some(())
    });
}

#[test]
fn each_line_begins_with_the_name_of_its_node() {
    let (home, machines) = (Home::new(), machines(3));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["role=web", "role=db", "role=web"]);
    home.ok(["node", "rename", "c", "a longer name"]);
    let line = "echo one; printf 'two without end'; echo err >&2";
    let done = home.run(["node", "exec", "--select", "role=web", "--shell", line]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(
        sorted(&done.stdout),
        [
            "a             | one",
            "a             | two without end",
            "a longer name | one",
            "a longer name | two without end",
        ]
    );
    assert!(done.stdout.ends_with('\n'));
    assert_eq!(
        sorted(&done.stderr),
        [
            "2 nodes: 2 exited 0",
            "a             | err",
            "a longer name | err"
        ]
    );
    // Bytes are those of the command, and the lines of each node are in their order.
    let line =
        "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done; printf '\\033[31m\\377\\r\\n'";
    let done = on_all(&home, &[], line);
    let mut expected: Vec<u8> = (0..300)
        .flat_map(|i| format!("b             | {i}\n").into_bytes())
        .collect();
    expected.extend(b"b             | \x1b[31m\xff\r\n");
    let of_b: Vec<u8> = done
        .stdout_bytes
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(b"b "))
        .flatten()
        .copied()
        .collect();
    assert!(of_b == expected, "{}", String::from_utf8_lossy(&of_b));
    assert_eq!(done.stdout.lines().count(), 3 * 301);
}

#[test]
fn one_that_fails_is_named_and_counts() {
    let (home, machines) = (Home::new(), machines(3));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["role=web", "role=db", "role=web"]);
    let marker = home.user().join("first");
    let line = format!("mkdir {} 2>/dev/null || exit 7", marker.display());
    let done = on_all(&home, &["--parallel", "1"], &line);
    assert_eq!(done.code, 1, "{done:?}");
    assert_eq!(
        done.stderr,
        "3 nodes: 1 exited 0, 2 exited 7\n  b, c: exited 7\n"
    );
    let done = home.run(["node", "exec", "--select", "all", "--", "/no/such/program"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr
            .starts_with("3 nodes: 0 exited 0, 3 failed to start\n"),
        "{done:?}"
    );
    let done = on_all(&home, &["--timeout", "1"], "sleep 600");
    assert!(done.stderr.contains("3 timed out"), "{done:?}");
    // As JSON: one object a node, in the order of their names.
    let done = on_all(&home, &["--json"], "echo out; echo err >&2; exit 3");
    assert_eq!(done.code, 1, "{done:?}");
    let each: Value = serde_json::from_str(&done.stdout).unwrap();
    let each = each.as_array().unwrap();
    assert_eq!(each.len(), 3);
    for (object, name) in each.iter().zip(["a", "b", "c"]) {
        assert_eq!(object["node"], name);
        assert_eq!(object["outcome"], "exited");
        assert_eq!(object["exit_code"], 3);
        assert_eq!(
            (&object["stdout"], &object["stderr"]),
            (&"out\n".into(), &"err\n".into())
        );
        assert_eq!(object["error"], Value::Null);
        home.ok(["runs", "show", object["run_id"].as_str().unwrap()]);
    }
}

#[test]
fn who_is_offline_is_named_and_counts() {
    let (home, machines) = (Home::new(), machines(2));
    let gateway = home.gateway();
    let mut nodes = join(&gateway, &machines, &["role=web", "role=db"]);
    drop(nodes.pop());
    is_offline(&home, "b");
    let done = on_all(&home, &[], "echo here");
    assert_eq!(done.code, 1, "{done:?}");
    assert_eq!(done.stdout, "a | here\n");
    assert_eq!(
        done.stderr,
        "2 nodes: 1 exited 0, 1 offline\n  b: offline\n"
    );
    let done = on_all(&home, &["--json"], "true");
    let each: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((done.code, &each[1]["outcome"]), (1, &Value::Null));
    assert_eq!(each[1]["error"]["code"], "node_offline");
    let done = home.run(["node", "exec", "--select", "state=online", "--", "true"]);
    assert_eq!(
        (done.code, done.stderr.as_str()),
        (0, "1 node: 1 exited 0\n")
    );
    let done = on_all(&home, &["--detach"], "true");
    assert_eq!((done.code, done.stdout.trim().len()), (1, 32), "{done:?}");
    assert_eq!(done.stderr, "b: not started: the node `b` is offline\n");
    let done = on_all(&home, &["--detach", "--json"], "true");
    let each: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(each[0]["run_id"].as_str().unwrap().len(), 32);
    assert_eq!(
        (&each[1]["run_id"], &each[1]["node"]),
        (&Value::Null, &"b".into())
    );
}

#[test]
fn nobody_is_never_everybody() {
    let (home, machines) = (Home::new(), machines(1));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["role=web"]);
    let with = |select: &str, more: &[&str]| {
        let mut args = vec!["node", "exec", "--select", select];
        args.extend(more);
        home.run(args)
    };
    for more in [
        &["--", "true"][..],
        &["--dry-run"],
        &["--detach", "--", "true"],
    ] {
        let done = with("gpu=true", more);
        assert_eq!(done.code, 125, "{done:?}");
        assert!(
            done.stderr.contains("no node matches `gpu=true`"),
            "{done:?}"
        );
    }
    let done = home.run(["node", "list", "--select", "platfrom=linux"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("did you mean `platform`?"), "{done:?}");
    for (select, words) in [
        ("", "the selector is empty"),
        ("role==web", "at character 6: found `=web`"),
        ("role=web,", "found the end, expected a key"),
    ] {
        let done = with(select, &["--", "true"]);
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains(words), "{done:?}");
    }
    for wrong in [
        &["node", "exec", "a", "--select", "all", "--", "true"][..],
        &["node", "exec", "--select", "all", "--tty", "--", "true"],
        &[
            "node",
            "exec",
            "--select",
            "all",
            "--parallel",
            "0",
            "--",
            "true",
        ],
        &["node", "exec", "--select", "all"],
        &["node", "exec", "--parallel", "2", "a", "--", "true"],
        &["node", "exec", "--", "true"],
    ] {
        let done = home.run(wrong);
        assert_eq!(done.code, 2, "{wrong:?}: {done:?}");
    }
    assert_eq!(home.json(["runs", "list", "--json"]), serde_json::json!([]));
}

#[test]
fn a_dry_run_and_a_list_show_who_matches() {
    let (home, machines) = (Home::new(), machines(3));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["role=web", "role=db", "role=web"]);
    let named = |args: &[&str]| -> Vec<String> {
        let nodes = home.json(args);
        let nodes = nodes.as_array().unwrap().iter();
        nodes
            .map(|node| node["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let dry = |select| named(&["node", "exec", "--select", select, "--dry-run", "--json"]);
    assert_eq!(dry("role=web"), ["a", "c"]);
    assert_eq!(dry("role!=web"), ["b"]);
    let labelled = home.run(["node", "label", "c", "role-", "gpu=true", "platform=shop"]);
    assert!(
        labelled.stderr.contains("this label is `label:platform`"),
        "{labelled:?}"
    );
    assert_eq!(dry("label:platform=shop"), ["c"]);
    assert_eq!(dry("role=web"), ["a"]);
    assert_eq!(dry("role!=web"), ["b", "c"]);
    assert_eq!(dry("gpu,platform=linux"), ["c"]);
    assert_eq!(named(&["node", "list", "--select", "gpu", "--json"]), ["c"]);
    let table = home.ok([
        "node",
        "exec",
        "--select",
        "name=b",
        "--dry-run",
        "--",
        "true",
    ]);
    assert!(
        table.contains("STATE") && table.contains("role=db"),
        "{table}"
    );
    let none = home.run(["node", "list", "--select", "x=y"]);
    assert_eq!((none.code, none.stdout.as_str()), (0, ""));
    assert!(
        none.stderr.contains("no connected node matches `x=y`"),
        "{none:?}"
    );
    assert_eq!(home.json(["runs", "list", "--json"]), serde_json::json!([]));
}

#[test]
fn at_most_so_many_run_at_a_time() {
    let (home, machines) = (Home::new(), machines(4));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"; 4]);
    let dir = home.user();
    let line = gated(&dir);
    let mut exec = home.start(all(&["--parallel", "2"], &line));
    begun(&dir, 2);
    let runs = home.json(["runs", "list", "--json"]);
    assert_eq!(runs.as_array().unwrap().len(), 2, "the third waits: {runs}");
    fs::write(dir.join("gate"), "").unwrap();
    let done = exec.wait();
    assert_eq!(
        (done.code, done.stderr.as_str()),
        (0, "4 nodes: 4 exited 0\n")
    );
    for beside in lines_in(&dir.join("beside")) {
        assert!(beside == "1" || beside == "2", "{beside} at a time");
    }
}

#[test]
fn behind_a_failure_no_more_are_started() {
    let (home, machines) = (Home::new(), machines(4));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"; 4]);
    let marker = home.user().join("marker");
    let line = format!("echo x >> {0}; [ $(wc -l < {0}) -ne 2 ]", marker.display());
    for flags in [&["--fail-fast"][..], &["--fail-fast", "--parallel", "1"]] {
        let done = on_all(&home, flags, &line);
        assert_eq!(done.code, 1, "{done:?}");
        assert_eq!(
            done.stderr,
            "4 nodes: 1 exited 0, 1 exited 1, 2 not started\n  b: exited 1\n  c, d: not started\n"
        );
        assert_eq!(lines_in(&marker).len(), 2);
        fs::remove_file(&marker).unwrap();
    }
}

#[test]
fn ctrl_c_ends_all_of_them_and_holds_back_the_rest() {
    let (home, machines) = (Home::new(), machines(3));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"; 3]);
    let marker = home.user().join("marker");
    fs::write(&marker, "").unwrap();
    let line = format!("echo up; exec tail -f /dev/null {}", marker.display());
    let mut exec = home.start(all(&["--parallel", "2"], &line));
    exec.stdout.wait_until("two to be up", |text| {
        text.contains("a | up") && text.contains("b | up")
    });
    exec.signal(Signal::INT);
    let done = exec.wait();
    assert_eq!(done.code, 130, "{done:?}");
    assert!(done.stderr.contains("cancelling 2 runs"), "{done:?}");
    assert!(
        done.stderr.ends_with(
            "3 nodes: 0 exited 0, 2 cancelled, 1 not started\n  a, b: cancelled\n  c: not started\n"
        ),
        "{done:?}"
    );
    eventually("their groups to be gone", || {
        processes_of(&marker).is_empty().then_some(())
    });
}

#[test]
fn a_second_ctrl_c_leaves_and_names_the_runs() {
    let (home, machines) = (Home::new(), machines(2));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"; 2]);
    let line = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let mut exec = home.start(all(&[], line));
    exec.stdout
        .wait_until("two lines", |text| text.lines().count() == 2);
    exec.signal(Signal::INT);
    exec.stderr.wait_for("cancelling 2 runs");
    exec.signal(Signal::INT);
    let done = exec.wait();
    assert_eq!(done.code, 130, "{done:?}");
    let runs = home.json(["runs", "list", "--json"]);
    for run in runs.as_array().unwrap() {
        let (id, name) = (
            &run["id"].as_str().unwrap()[..8],
            run["node_name"].as_str().unwrap(),
        );
        assert!(done.stderr.contains(&format!("{id} on {name}")), "{done:?}");
    }
}

#[test]
fn a_gateway_that_begins_anew_cuts_no_output() {
    let (home, machines) = (Home::new(), machines(2));
    let mut gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"; 2]);
    let gate = home.user().join("gate");
    let line = format!(
        "echo before; printf half; while [ ! -e {} ]; do sleep 0.02; done; echo ' and half'; echo after",
        gate.display()
    );
    let mut exec = home.start(all(&[], &line));
    exec.stdout
        .wait_until("two lines", |text| text.lines().count() == 2);
    gateway.crash_and_restart();
    fs::write(&gate, "").unwrap();
    let done = exec.wait();
    assert_eq!(done.code, 0, "{done:?}");
    let mut expected = vec![];
    for name in ["a", "b"] {
        for line in ["after", "before", "half and half"] {
            expected.push(format!("{name} | {line}"));
        }
    }
    assert_eq!(sorted(&done.stdout), expected);
    let said = done.stderr.matches("the runs go on").count();
    assert_eq!(said, 1, "a cut is said once: {done:?}");
}

#[test]
fn stdin_goes_to_each_of_them() {
    let (home, machines) = (Home::new(), machines(2));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"; 2]);
    let feed = |bytes: &[u8]| {
        let mut command = home.command(["node", "exec", "--select", "all", "--stdin", "--", "cat"]);
        command.stdin(Stdio::piped());
        let mut exec = Process::start(command);
        exec.stdin().write_all(bytes).ok(); // it may refuse in the middle
        exec.wait()
    };
    let done = feed(b"the same\n");
    assert_eq!(
        sorted(&done.stdout),
        ["a | the same", "b | the same"],
        "{done:?}"
    );
    let done = feed(&vec![b'x'; 600_000]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("more than 524288 bytes"), "{done:?}");
}

#[test]
fn a_closed_pipe_cancels_all_of_them() {
    let (home, machines) = (Home::new(), machines(2));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"; 2]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = home.command(["node", "exec", "--select", "all", "--", "yes"]);
    command.stdout(writer).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    for run in home.json(["runs", "list", "--json"]).as_array().unwrap() {
        assert_eq!(run["outcome"], "cancelled", "{run}");
    }
}

#[test]
fn a_terminal_shows_names_in_colour_and_is_not_acted_upon() {
    let (home, machines) = (Home::new(), machines(1));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"]);
    let args = all(&[], "printf '\\033[2Jx\\n'");
    for (colours, expected) in [(true, "ma\u{1b}[0m | ␛[2Jx"), (false, "a | ␛[2Jx")] {
        let mut command = home.command(&args);
        command.env("TERM", "xterm-256color");
        if colours {
            command.env_remove("NO_COLOR");
        }
        let mut on = OnTerminal::of(&command);
        on.screen.wait_for("1 node: 1 exited 0");
        assert_eq!(on.wait(), 0);
        let text = on.screen.text();
        assert!(text.contains(expected), "{text:?}");
        assert!(!text.contains("\u{1b}[2J"), "{text:?}");
        assert_eq!(text.contains("\u{1b}["), colours, "{text:?}");
    }
}

#[test]
fn a_token_that_may_run_may_run_on_many_and_never_here() {
    let (home, machines) = (Home::new(), machines(2));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"; 2]);
    let token = |scopes: &[&str]| {
        let name = scopes.join("+");
        let mut args = vec!["token", "create", "--name", &name];
        args.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
        home.ok(args)
    };
    let with = |token: &str, args: &[&str]| {
        let mut command = home.command(args);
        command
            .env("MOLTIS_GATEWAY", format!("http://{}", gateway.address))
            .env("MOLTIS_API_TOKEN", token.trim());
        Process::start(command).wait()
    };
    let may_run = token(&["runs:write", "nodes:read"]);
    let done = with(&may_run, &all(&[], "echo here"));
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(sorted(&done.stdout), ["a | here", "b | here"]);
    let sees_nobody = token(&["runs:write"]);
    let done = with(&sees_nobody, &all(&[], "echo here"));
    assert_eq!(done.code, 125, "{done:?}");
    assert!(done.stderr.contains("nodes:read"), "{done:?}");
    let may_look = token(&["runs:read", "nodes:read"]);
    let done = with(&may_look, &all(&[], "echo here"));
    assert_eq!(done.code, 125, "{done:?}");
    assert!(done.stderr.contains("runs:write"), "{done:?}");
}

/// Starts the binary where it may hold so many files open.
fn with_open_files(home: &Home, limits: &str, args: &[&str]) -> Command {
    let command = home.command(args);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{limits}; exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(home.environment())
        .current_dir(home.user())
        .stdin(Stdio::null());
    shell
}

#[test]
fn a_gateway_may_hold_many_files_and_its_commands_no_more_than_before() {
    let home = Home::new();
    let args = ["gateway", "--listen", "127.0.0.1:0"];
    let gateway = Process::start(with_open_files(&home, "ulimit -S -n 256", &args));
    let gateway = Gateway::ready(&home, gateway);
    let limits = format!("/proc/{}/limits", gateway.process.pid().as_raw_pid());
    let hard = home.ok(["node", "exec", "local", "--shell", "ulimit -H -n"]);
    if let Ok(limits) = fs::read_to_string(limits) {
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .unwrap();
        assert_eq!(line.split_whitespace().nth(3), Some(hard.trim()), "{line}");
    }
    let soft = home.ok(["node", "exec", "local", "--shell", "ulimit -S -n"]);
    assert_eq!(soft, "256\n");
}

#[test]
fn where_few_files_may_be_open_nodes_wait_for_their_turn() {
    let (home, machines) = (Home::new(), machines(3));
    let gateway = home.gateway();
    let _nodes = join(&gateway, &machines, &["a=b"; 3]);
    let exec = with_open_files(&home, "ulimit -n 66", &all(&[], "echo here"));
    let done = Process::start(exec).wait();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stderr.contains("at most 2 nodes at a time"),
        "{done:?}"
    );
    assert_eq!(sorted(&done.stdout), ["a | here", "b | here", "c | here"]);
}
