//! Outputs whose reader has gone. `exec`'s own stdout stands in `exec.rs`.

use std::io::Read as _;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::harness::{Gateway, Home, Process, eventually};

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Starts a command whose outputs nobody reads.
fn started(mut command: Command) -> Process {
    command.stdout(closed()).stderr(closed());
    Process::unread(&mut command)
}

/// Runs a command whose stdout nobody reads, to its end.
fn unread(home: &Home, args: &[&str]) -> Output {
    let mut command = home.command(args);
    command.stdout(closed()).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().unwrap()
}

#[track_caller]
fn ends_without_a_word(output: &Output) {
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn tables_documents_and_ids_end_without_a_word() {
    let home = Home::new();
    let _gateway = home.gateway();
    home.ok(["node", "exec", "local", "--", "echo", "one"]);
    let id = home.json(["runs", "list", "--json"])[0]["id"].clone();
    let id = id.as_str().unwrap();
    for args in [
        &["runs", "list"][..],
        &["runs", "show", id],
        &["runs", "output", id],
        &["runs", "attach", id],
        &["node", "pairing", "enable"],
        &["node", "exec", "local", "--json", "--", "true"],
    ] {
        ends_without_a_word(&unread(&home, args));
    }
}

#[test]
fn a_detached_run_goes_on_though_nobody_reads_its_id() {
    let home = Home::new();
    let _gateway = home.gateway();
    let detach = ["node", "exec", "local", "--detach", "--", "sleep", "600"];
    ends_without_a_word(&unread(&home, &detach));
    let run = &home.json(["runs", "list", "--json"])[0];
    assert_eq!(run["outcome"], serde_json::Value::Null, "{run}");
}

#[test]
fn an_attached_run_is_cancelled_when_nobody_reads_it_any_more() {
    let home = Home::new();
    let _gateway = home.gateway();
    let id = home.ok(["node", "exec", "local", "--detach", "--", "yes"]);
    ends_without_a_word(&unread(&home, &["runs", "attach", id.trim()]));
    let run = home.json(["runs", "show", id.trim(), "--json"]);
    assert_eq!(run["outcome"], "cancelled");
}

#[test]
fn a_followed_output_leaves_the_run_alone() {
    let home = Home::new();
    let _gateway = home.gateway();
    let script = "while :; do echo line; sleep 0.05; done";
    let id = home.ok(["node", "exec", "local", "--detach", "--shell", script]);
    ends_without_a_word(&unread(&home, &["runs", "output", id.trim(), "--follow"]));
    let run = home.json(["runs", "show", id.trim(), "--json"]);
    assert_eq!(run["state"], "running");
}

#[test]
fn a_closed_stderr_cancels_the_run_that_writes_there() {
    let home = Home::new();
    let _gateway = home.gateway();
    let script = "echo up; while :; do echo err >&2; sleep 0.05; done";
    let mut command = home.command(["node", "exec", "local", "--shell", script]);
    command.stdout(Stdio::piped()).stderr(closed());
    let mut child = command.spawn().unwrap();
    let status = eventually("exec to end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(141));
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "up\n");
    let run = &home.json(["runs", "list", "--json"])[0];
    assert_eq!(run["outcome"], "cancelled");
}

#[test]
fn a_gateway_and_a_node_work_where_nobody_reads_them() {
    let (home, machine) = (Home::new(), Home::new());
    // Its address stands nowhere, so it has to be one that we choose.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    drop(port);
    let gateway = started(home.command(["gateway", "--listen", &address]));
    eventually("the gateway to answer", || {
        (home.run(["runs", "list"]).code == 0).then_some(())
    });
    let gateway = Gateway {
        home: &home,
        process: gateway,
        address,
    };
    home.ok(["node", "pairing", "enable"]);
    let ws = gateway.ws();
    let add = [
        "node",
        "add",
        "--foreground",
        "--name",
        "box",
        "--host",
        &ws,
    ];
    let mut node = started(machine.command(add));
    let code = eventually("the request", || {
        let pending = home.json(["node", "pending", "--json"]);
        Some(pending[0]["connection_code"].as_str()?.to_owned())
    });
    home.ok(["node", "approve", &gateway.request_with(&code), "--yes"]);
    let echo = home.run(["node", "exec", "box", "--", "echo", "hello"]);
    assert_eq!(
        (echo.code, echo.stdout.as_str()),
        (0, "hello\n"),
        "{echo:?}"
    );
    node.signal(Signal::INT);
    assert_eq!(node.wait().code, 0);
}
