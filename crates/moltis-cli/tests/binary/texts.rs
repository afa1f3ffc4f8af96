//! What a person reads when something is wrong, as reviewed. What varies is replaced.

use crate::harness::{Done, Home};

/// Replaces what differs from run to run.
fn redacted(home: &Home, done: &Done) -> String {
    let text = format!(
        "exit {}\n--- stdout\n{}--- stderr\n{}",
        done.code, done.stdout, done.stderr
    );
    let path = home.path().to_str().unwrap().to_owned();
    text.replace(&path, "<home>")
        .replace(home.user().to_str().unwrap(), "<user>")
}

fn said(home: &Home, args: &[&str]) -> String {
    let done = home.run(args);
    format!("$ moltis {}\n{}", args.join(" "), redacted(home, &done))
}

#[test]
fn errors_read_as_reviewed() {
    let home = Home::new();
    let all = [
        &["node", "list"][..],
        &["node", "exec", "box", "--", "true"],
        &["node", "exec", "box", "--"],
        &["node", "exec", "box", "--timeout", "abc", "--", "true"],
        &["node", "pairing", "enable", "--for", "soon"],
        &["node", "add", "--host", "ws://gw:9090/ws"],
        &["node", "add", "--foreground", "--host", "http://gw:9090"],
        &[
            "node",
            "add",
            "--foreground",
            "--host",
            "ws://gw:9090/ws",
            "--repin",
        ],
        &["node", "run"],
        &["node", "status"],
        &["node", "remove"],
        &["node", "policy", "off"],
        &["node", "shell", "box"],
        &["node", "frobnicate"],
        &["runs", "list", "--state", "sleeping"],
        &["runs", "list", "--gateway", "https://gw:0"],
        &["token", "create", "--name", "x", "--scope", "all"],
    ]
    .map(|args| said(&home, args));
    insta::assert_snapshot!("errors", all.join("\n\n"));
}
