//! `moltis runs …` and `moltis token …`.

use std::time::SystemTime;

use crate::harness::{Home, eventually, meddle};

#[test]
fn runs_are_listed_and_shown() {
    let home = Home::new();
    let _gateway = home.gateway();
    assert_eq!(home.json(["runs", "list", "--json"]), serde_json::json!([]));
    home.ok(["node", "exec", "local", "--", "echo", "a b"]);
    home.run(["node", "exec", "local", "--shell", "exit 4"]);
    let runs = home.json(["runs", "list", "--json"]);
    assert_eq!(runs[0]["command"], "exit 4", "newest first");
    assert_eq!(runs[0]["exit_code"], 4);
    assert_eq!(runs[1]["argv"], serde_json::json!(["echo", "a b"]));
    let id = runs[1]["id"].as_str().unwrap();
    let run = home.json(["runs", "show", &id[..8], "--json"]);
    for field in [
        "id",
        "node",
        "state",
        "outcome",
        "exit_code",
        "requested_by",
        "started_at",
        "ended_at",
        "stdout_bytes",
        "stderr_bytes",
    ] {
        assert!(!run[field].is_null(), "{field} in {run}");
    }
    assert_eq!(run["requested_by"], "operator");
    let text = home.ok(["runs", "list", "--limit", "1"]);
    assert!(
        text.contains("exited 4") && !text.contains("echo"),
        "{text}"
    );
    let text = home.ok(["runs", "show", id]);
    assert!(
        text.contains("echo 'a b'") && text.contains("exited 0"),
        "{text}"
    );
    assert_eq!(
        home.json(["runs", "list", "--node", "local", "--json"]),
        runs
    );
    let none = home.json(["runs", "list", "--state", "running", "--json"]);
    assert_eq!(none, serde_json::json!([]));
}

#[test]
fn a_run_is_cancelled_from_elsewhere() {
    let home = Home::new();
    let _gateway = home.gateway();
    let mut exec = home.start(["node", "exec", "local", "--shell", "echo up; sleep 600"]);
    exec.stdout.wait_for("up");
    let id = home.json(["runs", "list", "--json"])[0]["id"].clone();
    home.ok(["runs", "cancel", id.as_str().unwrap()]);
    assert_eq!(exec.wait().code, 130);
}

#[test]
fn a_run_that_has_ended_is_not_said_to_be_cancelled() {
    let home = Home::new();
    let _gateway = home.gateway();
    assert_eq!(
        home.run(["node", "exec", "local", "--shell", "exit 3"])
            .code,
        3
    );
    let run = home.json(["runs", "list", "--json"])[0]["id"].clone();
    let done = home.run(["runs", "cancel", run.as_str().unwrap()]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stderr.contains("has ended already: exited 3"),
        "{done:?}"
    );
    for command in ["show", "attach", "cancel", "output", "claim"] {
        let done = home.run(["runs", command, ""]);
        assert_eq!(done.code, 2, "{command}: {done:?}");
        assert!(done.stderr.contains("<RUN>"), "{command}: {done:?}");
    }
}

#[test]
fn what_is_not_there_is_told() {
    let home = Home::new();
    let _gateway = home.gateway();
    for (args, code) in [
        (&["runs", "show", "ffffffff"][..], 1),
        (&["runs", "show", "no-id"], 1),
        (&["runs", "cancel", "ffffffff"], 1),
        (&["runs", "output", "ffffffff"], 1),
        (&["runs", "claim", "ffffffff"], 1),
        (&["runs", "attach", "ffffffff"], 125),
        (&["token", "revoke", "nobody"], 1),
        (&["node", "revoke", "nobody"], 1),
        (&["node", "forget", "nobody"], 1),
    ] {
        let done = home.run(args);
        assert_eq!(done.code, code, "{args:?}: {done:?}");
        assert!(done.stderr.starts_with("error: "), "{args:?}: {done:?}");
        assert_eq!(done.stdout, "", "{args:?}");
    }
}

#[test]
fn who_attaches_while_the_gateway_stays_away_is_told_that_nothing_is_known() {
    let home = Home::new();
    let mut gateway = home.gateway();
    let id = home.ok(["node", "exec", "local", "--detach", "--", "sleep", "600"]);
    gateway.crash();
    let began = SystemTime::now();
    let mut attach = home.start(["runs", "attach", id.trim()]);
    let mut exec = home.start(["node", "exec", "local", "--", "true"]);
    // It may come back: what was here a moment ago is waited for, and that is told.
    for (done, code) in [
        (attach.wait(), 255),
        // What was asked to begin and could not be has not begun.
        (exec.wait(), 125),
    ] {
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
        let said = &done.stderr;
        assert!(said.contains("waiting up to 15 s"), "{done:?}");
        assert!(said.contains("hint: start one: moltis gateway"), "{done:?}");
    }
    let took = began.elapsed().unwrap();
    assert!((15..30).contains(&took.as_secs()), "{took:?}");
}

#[test]
fn output_ends_where_the_run_is_now_though_it_goes_on_printing() {
    let address = quick_printer();
    let home = Home::new();
    let output = ["runs", "output", "0123456789abcdef", "--gateway", &address];
    let done = home.run(output);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "line\nline\n"),
        "{done:?}"
    );
}

/// Answers like a gateway with a run that prints a line between any two requests, and returns where.
fn quick_printer() -> String {
    use std::io::{BufRead as _, BufReader, Write as _};
    let run = serde_json::json!({
        "id": "0123456789abcdef", "node": "local", "node_name": "local", "state": "running",
        "tty": false, "requested_by": "operator", "created_at": "2026-01-02T03:04:05Z",
        "stdout_bytes": 10, "stderr_bytes": 0, "reachable": true, "unclaimed": false,
    })
    .to_string();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            while let Some(request) = lines.next() {
                lines
                    .by_ref()
                    .take_while(|line| !line.is_empty())
                    .for_each(drop);
                let body = if request.contains("/output?") {
                    "line\n"
                } else {
                    &run
                };
                let length = body.len();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                (&stream).write_all(answer.as_bytes()).ok();
            }
        }
    });
    format!("http://{address}")
}

#[test]
fn an_expired_token_opens_nothing() {
    let home = Home::new();
    let mut gateway = home.gateway();
    let create = ["token", "create", "--name", "ci", "--scope", "runs:read"];
    let token = home.ok(create.iter().chain(&["--expires", "1h"]));
    let list = |address: &str| {
        let mut command = home.command(["runs", "list"]);
        command.env("MOLTIS_GATEWAY", format!("http://{address}"));
        command.env("MOLTIS_API_TOKEN", token.trim());
        crate::harness::run(command)
    };
    assert_eq!(list(&gateway.address).code, 0);
    gateway.crash();
    meddle(
        &home,
        "UPDATE tokens SET expires_at = created_at".to_owned(),
    );
    gateway.restart();
    let expired = list(&gateway.address);
    assert_eq!(expired.code, 1, "{expired:?}");
    assert!(expired.stderr.contains("token"), "{expired:?}");
}

#[test]
fn a_run_that_an_older_copy_of_the_store_does_not_know_is_claimed() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    let gate = machine.user().join("gate");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        for file in ["gateway.db", "gateway.db-wal"] {
            std::fs::remove_file(to.join(file)).ok();
            if from.join(file).exists() {
                std::fs::copy(from.join(file), to.join(file)).unwrap();
            }
        }
        std::fs::remove_file(to.join("gateway.db-shm")).ok();
    };
    gateway.crash();
    copy(&home.path(), &home.user());
    gateway.restart();
    eventually("the node to be back", || {
        let nodes = home.json(["node", "list", "--json"]);
        (!nodes.as_array().unwrap().is_empty()).then_some(())
    });
    let script = format!(
        "echo begin; while [ ! -e {} ]; do sleep 0.05; done; echo end; exit 5",
        gate.display()
    );
    let id = home.ok(["node", "exec", "box", "--detach", "--shell", &script]);
    let id = id.trim();
    gateway.crash();
    copy(&home.user(), &home.path());
    gateway.restart();

    let run = eventually("the node to tell of it", || {
        let runs = home.json(["runs", "list", "--json"]);
        runs.as_array()
            .unwrap()
            .iter()
            .find(|run| run["id"] == id)
            .cloned()
    });
    assert_eq!(run["unclaimed"], true, "{run}");
    let listed = home.ok(["runs", "list"]);
    assert!(listed.contains("unclaimed"), "{listed}");
    assert!(listed.contains("(not known here)"), "{listed}");
    for word in ["show", "claim"] {
        let shown = home.ok(["runs", word, id]);
        assert!(shown.contains("not known here: its node has"), "{shown}");
        assert!(shown.contains("Found"), "{shown}");
        // Nothing is told of it that nobody knows.
        assert!(
            !shown.contains("Started in") && !shown.contains("by nobody"),
            "{shown}"
        );
    }
    assert_eq!(
        home.json(["runs", "show", id, "--json"])["unclaimed"],
        false
    );
    std::fs::write(&gate, "").unwrap();
    let done = home.run(["runs", "attach", id]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (5, "begin\nend\n"),
        "{done:?}"
    );
}

#[test]
fn a_token_is_printed_once_alone_and_can_be_revoked() {
    let home = Home::new();
    let gateway = home.gateway();
    let made = home.run(["token", "create", "--name", "ci", "--scope", "runs:read"]);
    assert_eq!(made.code, 0, "{made:?}");
    let token = made.stdout.trim();
    assert!(token.starts_with("moltis_") && !token.contains(char::is_whitespace));
    let listed = home.json(["token", "list", "--json"]);
    assert_eq!(listed[0]["name"], "ci");
    assert!(!listed.to_string().contains(token));
    let url = format!("http://{}", gateway.address);
    let with = |args: &[&str]| {
        let mut command = home.command(args.iter().chain(&["--gateway", url.as_str()]));
        command.env("MOLTIS_API_TOKEN", token);
        crate::harness::run(command)
    };
    assert_eq!(with(&["runs", "list"]).code, 0);
    let lacking = with(&["node", "exec", "local"]);
    assert_eq!(lacking.code, 2, "{lacking:?}");
    let lacking = with(&["node", "pairing", "enable"]);
    assert_eq!(lacking.code, 1, "{lacking:?}");
    assert!(lacking.stderr.contains("nodes:admin"), "{lacking:?}");
    home.ok(["token", "revoke", "ci"]);
    let revoked = with(&["runs", "list"]);
    assert_eq!(revoked.code, 1, "{revoked:?}");
    let unknown = home.run(["token", "create", "--name", "x", "--scope", "everything"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert!(unknown.stderr.contains("nodes:read"), "{unknown:?}");
}
