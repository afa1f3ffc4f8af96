//! Joining, as two people at two machines see it.

use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Home, Process, code_of, eventually, meddle};

#[test]
fn a_machine_joins_by_the_story_of_the_readme() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();

    let done = home.run(["node", "pairing", "enable"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.stdout
            .starts_with("New nodes may ask to pair for 10 minutes. On the other machine:"),
        "{done:?}"
    );
    let line = done.stdout.lines().nth(1).unwrap();
    assert!(line.starts_with("  moltis node add --host ws://"), "{line}");
    let gateway_key = line.split("--gateway-key ").nth(1).unwrap().trim();
    let status = home.json(["node", "pairing", "status", "--json"]);
    assert_eq!(status["enabled"], true);
    assert!(status["expires_at"].is_string());

    let ws = gateway.ws();
    let mut node = machine.start([
        "node",
        "add",
        "--foreground",
        "--host",
        &ws,
        "--name",
        "Build Server",
        "--label",
        "gpu=true",
    ]);
    let printed = node.stdout.wait_for("Connection code");
    let lines: Vec<_> = printed.lines().collect();
    let own_key = machine.ok(["node", "fingerprint"]);
    assert!(
        lines[0].starts_with(&format!("Gateway key      {gateway_key}")),
        "{printed}"
    );
    assert!(
        lines[0].ends_with("(pinned on this first connection)"),
        "{printed}"
    );
    assert_eq!(lines[1], format!("This node's key  {}", own_key.trim()));
    assert!(
        lines[2].ends_with("(the same code is shown where you approve)"),
        "{printed}"
    );
    node.stderr.wait_for("Waiting for approval …");

    let code = code_of(&printed);
    let pending = home.ok(["node", "pending"]);
    assert!(
        pending.contains(&code) && pending.contains(own_key.trim()),
        "{pending}"
    );
    let requests = home.json(["node", "pending", "--json"]);
    let request = &requests.as_array().unwrap()[0];
    for field in [
        "id",
        "name",
        "platform",
        "fingerprint",
        "connection_code",
        "remote_address",
        "requested_at",
        "expires_at",
    ] {
        assert!(!request[field].is_null(), "{field} in {request}");
    }
    let id = request["id"].as_str().unwrap();
    let approved = home.run(["node", "approve", &id[..4], "--yes"]);
    assert_eq!(approved.code, 0, "{approved:?}");
    assert!(
        approved.stderr.contains(&code),
        "what is approved is shown: {approved:?}"
    );
    node.stdout.wait_for("Approved.");

    let nodes = home.json(["node", "list", "--json"]);
    let listed = &nodes.as_array().unwrap()[0];
    assert_eq!(listed["name"], "Build Server");
    assert_eq!(listed["state"], "online");
    assert_eq!(listed["fingerprint"], own_key.trim());
    assert_eq!(listed["labels"]["gpu"], "true");
    let status = machine.json(["node", "status", "--json"]);
    assert_eq!(status["gateway_url"], ws);
    assert_eq!(status["gateway_fingerprint"], gateway_key);
    assert_eq!(status["connected"], true);
    assert_eq!(status["service"], "not_installed");
    assert_eq!(status["node_id"], listed["id"]);
    let text = home.ok(["node", "list"]);
    assert!(
        text.contains("Build Server") && text.contains("online"),
        "{text}"
    );

    let uname = home.run(["node", "exec", "Build Server", "--", "uname", "-s"]);
    let here = std::process::Command::new("uname").arg("-s").output();
    let here = String::from_utf8(here.unwrap().stdout).unwrap();
    assert_eq!((uname.code, &uname.stdout), (0, &here), "{uname:?}");

    node.signal(Signal::INT);
    assert_eq!(node.wait().code, 0, "Ctrl+C disconnects");
    eventually("the node to be offline", || {
        let nodes = home.json(["node", "list", "--all", "--json"]);
        (nodes[0]["state"] == "offline").then_some(())
    });
    let offline = home.run(["node", "exec", "Build Server", "--", "true"]);
    assert_eq!(offline.code, 125, "{offline:?}");
    assert!(offline.stderr.contains("Build Server"), "{offline:?}");
}

/// Types a line as it was printed, in a shell whose PATH knows the binary.
fn pasted(home: &Home, line: &str) -> Process {
    let programs = Path::new(env!("CARGO_BIN_EXE_moltis")).parent();
    let mut shell = std::process::Command::new("/bin/sh");
    shell
        .args(["-c", &format!("exec {} --foreground", line.trim())])
        .env_clear()
        .envs(home.environment())
        .env(
            "PATH",
            format!("{}:/usr/bin:/bin", programs.unwrap().display()),
        )
        .current_dir(home.user())
        .stdin(std::process::Stdio::null());
    Process::start(shell)
}

#[test]
fn the_line_that_pairing_enable_prints_works_when_it_is_pasted() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let printed = home.ok(["node", "pairing", "enable"]);
    let node = pasted(&machine, printed.lines().nth(1).unwrap());
    let code = code_of(&node.stdout.wait_for("Connection code"));
    home.ok(["node", "approve", &gateway.request_with(&code), "--yes"]);
    node.stdout.wait_for("Approved.");
}

#[test]
fn while_pairing_is_off_node_add_names_the_command_that_turns_it_on() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let done = machine.run(["node", "add", "--foreground", "--host", &gateway.ws()]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.contains("moltis node pairing enable"),
        "{done:?}"
    );
    assert!(
        !machine.path().join("node.json").exists(),
        "nothing was joined"
    );
    assert!(machine.path().join("node_key").exists(), "the key stays");
}

#[test]
fn a_rejected_node_is_told_so() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let mut node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let id = gateway.request_with(&code_of(&node.stdout.wait_for("Connection code")));
    home.ok(["node", "reject", &id, "--yes"]);
    let done = node.wait();
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("rejected"), "{done:?}");
    let again = home.run(["node", "approve", &id, "--yes"]);
    assert_eq!(
        again.code, 1,
        "an answered request cannot be approved: {again:?}"
    );
    assert!(again.stderr.contains("hint:"), "{again:?}");
}

#[test]
fn requests_that_are_unknown_or_ambiguous_are_told_apart() {
    let (home, machine, other) = (Home::new(), Home::new(), Home::new());
    let mut gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let machine = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let other = other.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let first = gateway.request_with(&code_of(&machine.stdout.wait_for("Connection code")));
    let second = gateway.request_with(&code_of(&other.stdout.wait_for("Connection code")));
    for id in ["zzzz", "ffffffffffffffffffffffffffffffff", ""] {
        let done = home.run(["node", "approve", id, "--yes"]);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("moltis node pending"), "{done:?}");
    }
    gateway.crash();
    let renamed = |id: &str, to: &str| {
        let sql =
            format!("UPDATE pairing_requests SET id = x'{to}' WHERE hex(id) = upper('{id}');");
        meddle(&home, sql);
    };
    let both = ["abc0".repeat(8), "abc1".repeat(8)];
    renamed(&first, &both[0]);
    renamed(&second, &both[1]);
    gateway.restart();
    let done = home.run(["node", "approve", "ABC", "--yes"]);
    assert_eq!(done.code, 1, "{done:?}");
    for id in &both {
        assert!(done.stderr.contains(id), "{done:?}");
    }
    let [first, _] = both;
    let wrong = format!("SHA256:{}", "A".repeat(43));
    let done = home.run(["node", "approve", &first, "--yes", "--fingerprint", &wrong]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("and you named"), "{done:?}");
}

#[test]
fn of_two_who_answer_at_once_one_is_told_that_it_was_answered() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let id = gateway.request_with(&code_of(&node.stdout.wait_for("Connection code")));
    let mut both = [0, 1].map(|_| home.start(["node", "approve", &id, "--yes"]));
    let mut done = both.each_mut().map(Process::wait);
    done.sort_by_key(|done| done.code);
    // Whoever comes a moment later finds it answered, or finds no request at all.
    assert_eq!([done[0].code, done[1].code], [0, 1], "{done:?}");
    assert_eq!(
        home.json(["node", "list", "--json"])
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let later = home.run(["node", "approve", &id, "--yes"]);
    assert_eq!(later.code, 1, "{later:?}");
    assert!(later.stderr.contains("already approved"), "{later:?}");
}

#[test]
fn a_waiting_node_survives_a_restart_of_the_gateway_with_a_new_code() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let old = code_of(&node.stdout.wait_for("Connection code"));
    gateway.crash_and_restart();
    let printed = node.stdout.wait_until("a second code", |printed| {
        printed.matches("Connection code").count() == 2 && printed.ends_with('\n')
    });
    let new = code_of(&printed);
    assert_ne!(old, new);
    let id = gateway.request_with(&new);
    home.ok(["node", "approve", &id, "--yes"]);
    node.stdout.wait_for("Approved.");
}

#[test]
fn a_revoked_node_is_cut_off_and_comes_back_only_after_forget() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    home.ok(["node", "revoke", "box"]);
    let done = node.wait();
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("revoked"), "{done:?}");
    assert!(done.stderr.contains("moltis node forget"), "{done:?}");
    let twice = home.run(["node", "revoke", "box"]);
    assert_eq!(twice.code, 0, "{twice:?}");
    assert!(twice.stderr.contains("was revoked already"), "{twice:?}");
    assert_eq!(home.json(["node", "list", "--json"]), serde_json::json!([]));
    let all = home.json(["node", "list", "--all", "--json"]);
    assert_eq!(all[0]["state"], "revoked");
    home.ok(["node", "pairing", "enable"]);
    let again = machine.run(["node", "add", "--foreground", "--host", &gateway.ws()]);
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("revoked"), "{again:?}");
    home.ok(["node", "forget", "box"]);
    assert_eq!(
        home.json(["node", "list", "--all", "--json"]),
        serde_json::json!([])
    );
    drop(gateway.join(&machine, "box"));
}

#[test]
fn a_node_is_renamed_and_labelled_from_the_gateway() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join(&machine, "box");
    home.ok(["node", "rename", "box", "Build Server"]);
    home.ok(["node", "label", "Build Server", "gpu=true", "room=cellar"]);
    home.ok(["node", "label", "Build Server", "room-"]);
    let node = home.json(["node", "describe", "Build Server", "--json"]);
    assert_eq!(node["name"], "Build Server");
    assert_eq!(node["labels"], serde_json::json!({ "gpu": "true" }));
    for field in [
        "working_dir",
        "timeout_seconds",
        "policy",
        "connected_since",
        "remote_address",
        "paired_at",
        "recent_runs",
    ] {
        assert!(!node[field].is_null(), "{field} in {node}");
    }
    let text = home.ok(["node", "describe", "Build Server"]);
    assert!(text.contains("gpu=true"), "{text}");
    for name in ["local", "ssh:x", "", "a\u{202e}b"] {
        let done = home.run(["node", "rename", "Build Server", name]);
        assert_eq!(done.code, 1, "{name:?}: {done:?}");
    }
    let unknown = home.run(["node", "describe", "nobody"]);
    assert_eq!(unknown.code, 1, "{unknown:?}");
    assert!(unknown.stderr.contains("nobody"), "{unknown:?}");
}

#[test]
fn an_ambiguous_name_is_refused_with_the_candidates() {
    let (home, one, two) = (Home::new(), Home::new(), Home::new());
    let gateway = home.gateway();
    let _one = gateway.join_with(&one, &["--name", "twin", "--node-id", "first"]);
    let _two = gateway.join_with(&two, &["--name", "twin", "--node-id", "second"]);
    let done = home.run(["node", "exec", "twin", "--", "true"]);
    assert_eq!(done.code, 125, "{done:?}");
    assert!(
        done.stderr.matches("first").count() == 1 && done.stderr.matches("second").count() == 1,
        "each is named, once: {done:?}"
    );
    assert_eq!(home.run(["node", "exec", "first", "--", "true"]).code, 0);
    assert_eq!(home.run(["node", "exec", "sec", "--", "true"]).code, 0);
    // A name that is the beginning of another's id takes nothing away from it.
    assert_eq!(home.run(["node", "rename", "first", "sec"]).code, 0);
    let done = home.run(["node", "exec", "sec", "--", "true"]);
    assert_eq!(done.code, 125, "{done:?}");
    assert_eq!(home.run(["node", "exec", "second", "--", "true"]).code, 0);
}

#[test]
fn node_add_for_the_same_gateway_updates_and_for_another_is_refused() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    node.signal(Signal::INT);
    node.wait();
    let ws = gateway.ws();
    let node = machine.start([
        "node",
        "add",
        "--foreground",
        "--host",
        &ws,
        "--timeout",
        "7",
    ]);
    node.stdout.wait_for("Connected to");
    let detail = home.json(["node", "describe", "box", "--json"]);
    assert_eq!(detail["timeout_seconds"], 7);
    drop(node);
    let done = machine.run([
        "node",
        "add",
        "--foreground",
        "--host",
        "ws://127.0.0.1:1/ws",
    ]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("moltis node remove"), "{done:?}");
}

#[test]
fn a_changed_gateway_key_is_a_hard_stop_with_the_way_out() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    node.signal(Signal::INT);
    node.wait();
    gateway.process.signal(Signal::TERM);
    gateway.process.wait();
    for file in [
        "gateway_key",
        "gateway.db",
        "gateway.db-wal",
        "gateway.db-shm",
    ] {
        std::fs::remove_file(home.path().join(file)).ok();
    }
    let address = gateway.address.clone();
    gateway.process = home.start(["gateway", "--listen", &address]);
    gateway.process.stdout.wait_for("listening on http://");
    let ws = gateway.ws();
    let done = machine.run(["node", "add", "--foreground", "--host", &ws]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("--repin"), "{done:?}");
    let new_key = done
        .stderr
        .split("--gateway-key ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap();
    home.ok(["node", "pairing", "enable"]);
    let without = machine.run([
        "node",
        "add",
        "--foreground",
        "--host",
        &ws,
        "--gateway-key",
        new_key,
    ]);
    assert_eq!(without.code, 1, "{without:?}");
    assert!(without.stderr.contains("--repin"), "{without:?}");
    let line = done.stderr.split("moltis node add").nth(1).unwrap();
    let node = pasted(&machine, &format!("moltis node add{line}"));
    node.stdout.wait_for("Connection code");
}

#[test]
fn a_wrong_url_is_told_apart_from_a_refused_key() {
    let machine = Home::new();
    let closed = machine.run([
        "node",
        "add",
        "--foreground",
        "--host",
        "ws://127.0.0.1:1/ws",
    ]);
    assert_eq!(closed.code, 1, "{closed:?}");
    assert!(closed.stderr.contains("nothing listens"), "{closed:?}");

    let page = WebServer::answering("200 OK", "<html>hello</html>");
    let done = machine.run(["node", "add", "--foreground", "--host", &page.ws()]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("web page"), "{done:?}");

    let missing = WebServer::answering("404 Not Found", "nothing here");
    let done = machine.run(["node", "add", "--foreground", "--host", &missing.ws()]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("404"), "{done:?}");
}

/// Answers every request with one page.
struct WebServer(std::net::SocketAddr);

impl WebServer {
    fn answering(status: &'static str, body: &'static str) -> Self {
        use std::io::{BufRead as _, BufReader, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(&stream).lines();
                while lines
                    .next()
                    .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
                {}
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: {length}\r\n\r\n"
                );
                (&stream).write_all(head.as_bytes()).ok();
                (&stream).write_all(body.as_bytes()).ok();
            }
        });
        Self(address)
    }

    fn ws(&self) -> String {
        format!("ws://{}/ws", self.0)
    }
}

#[test]
fn a_key_is_said_to_be_pinned_only_where_a_request_is_heard_and_one_that_is_left_is_told() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let ws = gateway.ws();
    let words = ["node", "add", "--foreground", "--host", &ws];
    let off = machine.run(words);
    assert_eq!(off.code, 1, "{off:?}");
    assert!(off.stdout.contains("(not pinned: "), "{off:?}");
    assert!(!off.stdout.contains("(pinned"), "{off:?}");
    assert!(!machine.path().join("node.json").exists());

    home.ok(["node", "pairing", "enable"]);
    let mut node = machine.start(words);
    let code = code_of(&node.stdout.wait_for("Connection code"));
    let request = gateway.request_with(&code);
    node.signal(Signal::INT);
    let left = node.wait();
    assert_eq!(left.code, 130, "{left:?}");
    assert!(left.stdout.contains("(pinned on this first"), "{left:?}");
    assert!(left.stderr.contains("takes it up again"), "{left:?}");
    let again = machine.start(words);
    let code = code_of(&again.stdout.wait_for("Connection code"));
    assert_eq!(gateway.request_with(&code), request, "the same request");
}

#[test]
fn a_later_name_or_label_is_told_that_it_holds_no_more() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let ws = gateway.ws();
    let add = |more: &[&str]| {
        let words = ["node", "add", "--foreground", "--host", &ws];
        let mut node = machine.start(words.iter().chain(more));
        node.stdout.wait_for("Connected to");
        node.signal(Signal::INT);
        node.wait()
    };
    let named = ["--name", "box", "--label", "gpu=true"];
    drop(gateway.join_with(&machine, &named));

    let again = add(&named);
    assert!(!again.stderr.contains("no more"), "{again:?}");
    let renamed = add(&[
        "--name",
        "Big Box",
        "--label",
        "gpu=false",
        "--timeout",
        "7",
    ]);
    let id = machine.json(["node", "status", "--json"])["node_id"].clone();
    let id = id.as_str().unwrap();
    for wanted in [
        "--name and --label hold no more".to_owned(),
        format!("moltis node rename {id} 'Big Box'"),
        format!("moltis node label {id} gpu=false"),
    ] {
        assert!(renamed.stderr.contains(&wanted), "{wanted}: {renamed:?}");
    }
    assert_eq!(machine.json(["node", "status", "--json"])["name"], "box");
    let node = home.json(["node", "describe", "box", "--json"]);
    assert_eq!(node["labels"], serde_json::json!({ "gpu": "true" }));
    assert_eq!(node["timeout_seconds"], 7, "the rest of the line counts");

    // Without node.json nobody here knows what was approved, so it is told as well.
    machine.ok(["node", "remove"]);
    let renamed = add(&["--name", "Big Box"]);
    assert!(
        renamed.stderr.contains("--name holds no more"),
        "{renamed:?}"
    );
}

#[test]
fn a_node_id_that_is_taken_is_refused_with_the_way_out() {
    let (home, one, two) = (Home::new(), Home::new(), Home::new());
    let gateway = home.gateway();
    let _one = gateway.join_with(&one, &["--node-id", "first"]);
    let ws = gateway.ws();
    let add = ["node", "add", "--foreground", "--host", &ws, "--node-id"];
    let done = two.run(add.iter().chain(&["first"]));
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("choose another one"), "{done:?}");
    assert!(!two.path().join("node.json").exists());
    let node = two.start(add.iter().chain(&["second"]));
    node.stdout.wait_for("Connection code");
}

#[test]
fn an_expired_request_is_told_as_that() {
    let (home, machine) = (Home::new(), Home::new());
    let mut gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let mut node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let id = gateway.request_with(&code_of(&node.stdout.wait_for("Connection code")));
    node.signal(Signal::KILL);
    node.wait();
    gateway.crash();
    meddle(
        &home,
        "UPDATE pairing_requests SET answer = 'expired', answered_at = last_seen_at".to_owned(),
    );
    gateway.restart();
    let done = home.run(["node", "approve", &id, "--yes"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("has expired"), "{done:?}");
    assert!(done.stderr.contains("moltis node pending"), "{done:?}");
}
