//! `moltis runs …` and `moltis token …`.

use crate::harness::Home;

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
