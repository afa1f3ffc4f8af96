//! Arguments that are wrong: each gets a clear error and exit code 2, and nothing is touched.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use crate::harness::{Done, Home};

fn refused(args: &[&str]) -> Done {
    let home = Home::new();
    let done = home.run(args);
    assert_eq!(done.code, 2, "{args:?}: {done:?}");
    assert_eq!(done.stdout, "", "{args:?}");
    assert!(!home.path().exists(), "{args:?} made the home");
    done
}

#[track_caller]
fn says(args: &[&str], wanted: &str) {
    let done = refused(args);
    assert!(done.stderr.contains(wanted), "{args:?}: {}", done.stderr);
}

#[test]
fn an_address_of_a_gateway_is_checked_before_anything_is_touched() {
    let add = |host| ["node", "add", "--foreground", "--host", host];
    for (host, wanted) in [
        ("http://gw:9090/ws", "ws://gw:9090/ws"),
        ("ws://gw/ws", "names no port"),
        ("ws://u:hunter2@gw:9090/ws", "user name or password"),
        ("ws://gw:9090/ws?a=b", "no query"),
        (
            "ws://gw:9090/other",
            "`/other` is not where a gateway takes nodes",
        ),
        ("gw:9090", "ws://gw:9090"),
        ("", "--host"),
    ] {
        says(&add(host), wanted);
    }
    assert!(
        !refused(&add("ws://u:hunter2@gw:9090/ws"))
            .stderr
            .contains("hunter2")
    );
}

#[test]
fn timeouts_that_are_none_are_refused_by_their_value() {
    for value in ["-1", "abc", "1000000000000", "1.5"] {
        says(
            &["node", "exec", "box", "--timeout", value, "--", "true"],
            value,
        );
        says(
            &[
                "node",
                "add",
                "--foreground",
                "--host",
                "ws://gw:1/ws",
                "--timeout",
                value,
            ],
            value,
        );
    }
    says(
        &["node", "exec", "box", "--timeout", "0", "--", "true"],
        "at least 1 second",
    );
}

#[test]
fn a_window_that_cannot_be_opened_is_refused() {
    for value in ["0", "61m", "soon", "-5m"] {
        says(&["node", "pairing", "enable", "--for", value], value);
    }
}

#[test]
fn there_must_be_something_to_run() {
    for args in [
        &["node", "exec", "box", "--"][..],
        &["node", "exec", "box"],
        &["node", "exec", "box", "--", ""],
        &["node", "exec", "box", "--shell", " "],
    ] {
        says(args, "there is nothing to run");
    }
    says(
        &["node", "exec", "box", "--shell", "true", "--", "true"],
        "cannot be used with",
    );
    says(
        &["node", "exec", "box", "--cwd", "here", "--", "true"],
        "absolute path on the node",
    );
}

#[test]
fn two_megabytes_of_arguments_are_refused_with_their_size() {
    let home = Home::new();
    let long = "x".repeat(100_000);
    let mut args = vec!["node", "exec", "box", "--", "echo"];
    args.extend(std::iter::repeat_n(long.as_str(), 20));
    let done = home.run(args);
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(
        done.stderr.contains("the command has 2000025 bytes"),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("--stdin"), "{}", done.stderr);
}

#[test]
fn bytes_that_are_not_text_are_refused_by_their_place() {
    let home = Home::new();
    let bad = OsString::from_vec(b"caf\xe9".to_vec());
    let mut args: Vec<OsString> = ["node", "exec", "box", "--", "echo"].map(Into::into).into();
    args.push(bad);
    let done = home.run(args);
    assert_eq!(done.code, 2);
    assert!(
        done.stderr.contains("argument 2 after `--` is not UTF-8"),
        "{}",
        done.stderr
    );
}

#[test]
fn other_words_that_are_not_text_are_refused_too() {
    let (home, gateway_home) = (Home::new(), Home::new());
    let gateway = gateway_home.gateway();
    drop(gateway.join(&home, "box"));
    let bad = OsString::from_vec(b"/caf\xe9".to_vec());
    for words in [
        &["node", "exec", "box", "--shell"][..],
        &["node", "exec", "box", "--shell", "true", "--cwd"],
        &["node", "policy", "allow", "--"],
    ] {
        let mut args: Vec<OsString> = words.iter().map(Into::into).collect();
        args.push(bad.clone());
        let done = home.run(&args);
        assert_eq!(done.code, 2, "{args:?}: {done:?}");
        assert!(done.stderr.contains("not UTF-8"), "{args:?}: {done:?}");
    }
}

#[test]
fn help_shows_no_value_of_the_environment() {
    let home = Home::new();
    let names = ["MOLTIS_GATEWAY_URL", "MOLTIS_GATEWAY", "MOLTIS_API_TOKEN"];
    for args in [
        &["node", "add", "--help"][..],
        &["runs", "list", "--help"],
        &["token", "create", "--help"],
    ] {
        let mut command = home.command(args);
        command.envs(names.map(|name| (name, "ws://hunter2@gw:1/ws")));
        let done = crate::harness::run(command);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(
            !done.stdout.contains("hunter2"),
            "{args:?}: {}",
            done.stdout
        );
    }
}

#[test]
fn names_ids_and_labels_of_a_node_are_checked() {
    let long = "x".repeat(10_000);
    for (flag, value, wanted) in [
        ("--name", "", "must not be empty"),
        ("--name", long.as_str(), "too long"),
        ("--name", "a\u{202e}b", "must not hold"),
        ("--name", "local", "routes"),
        ("--name", "ssh:x", "routes"),
        ("--node-id", "a b", "must not hold"),
        ("--node-id", "a/b", "must not hold"),
        ("--label", "gpu", "key=value"),
        (
            "--label",
            "g u=1",
            "a label's key must not hold a space: it is made of letters",
        ),
        ("--gateway-key", "MD5:aa", "is not a fingerprint"),
    ] {
        says(
            &[
                "node",
                "add",
                "--foreground",
                "--host",
                "ws://gw:1/ws",
                flag,
                value,
            ],
            wanted,
        );
    }
}

#[test]
fn a_working_directory_must_be_one() {
    let home = Home::new();
    let file = home.user().join("file");
    std::fs::write(&file, "").unwrap();
    for (path, wanted) in [
        (home.user().join("missing"), "is not there"),
        (file, "is not a directory"),
    ] {
        let path = path.to_str().unwrap();
        let done = home.run([
            "node",
            "add",
            "--foreground",
            "--host",
            "ws://gw:1/ws",
            "--working-dir",
            path,
        ]);
        assert_eq!(done.code, 2, "{}", done.stderr);
        assert!(done.stderr.contains(wanted), "{}", done.stderr);
    }
}

#[test]
fn a_question_without_a_terminal_names_the_flag() {
    let home = Home::new();
    let gateway = home.gateway();
    home.ok(["node", "pairing", "enable"]);
    let machine = Home::new();
    let node = machine.start(["node", "add", "--foreground", "--host", &gateway.ws()]);
    let code = crate::harness::code_of(&node.stdout.wait_for("Connection code"));
    let id = gateway.request_with(&code);
    for verb in ["approve", "reject"] {
        let done = home.run(["node", verb, &id]);
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains("--yes"), "{}", done.stderr);
    }
}

#[test]
fn whoever_leaves_the_dashes_out_is_told_where_they_go() {
    says(
        &["node", "exec", "box", "uname"],
        "moltis node exec <node> -- uname -a",
    );
}

#[test]
fn a_gateway_that_is_named_too_early_is_told_its_place() {
    says(
        &["--gateway", "http://127.0.0.1:1", "node", "list"],
        "moltis node list --gateway <url>",
    );
}

#[test]
fn what_comes_later_is_said_to_come_later() {
    says(&["chat"], "`chat` comes with a later release");
    says(
        &["gateway", "set-password"],
        "`set-password` comes with a later release",
    );
    let done = refused(&["node", "lst"]);
    assert!(!done.stderr.contains("later release"), "{}", done.stderr);
}
