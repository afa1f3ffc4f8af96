//! Every command that administers a gateway says over https what it says over the socket.

use std::process::Stdio;

use serde_json::Value;

use super::{Gateway, LISTEN};
use crate::harness::{Done, Home, Process, run};

/// What may differ between two answers to one question: times, and ids of what the question made.
const PASSING: [&str; 7] = [
    "last_seen",
    "last_heard_at",
    "last_used_at",
    "telemetry",
    "run_id",
    "duration_ms",
    "expires_at",
];

/// Takes out of a document what passes.
fn lasting(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(lasting),
        Value::Object(fields) => {
            fields.retain(|name, _| !PASSING.contains(&name.as_str()));
            fields.values_mut().for_each(lasting);
        }
        _ => {}
    }
}

/// Takes out of words to a person which run it was.
fn without_ids(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_end_matches([':', '\n']);
        let is_id = bare.len() >= 8 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id {
            word.replace(bare, "…")
        } else {
            word.to_owned()
        }
    };
    text.split_inclusive(' ')
        .map(|part| match part.strip_suffix(' ') {
            Some(bare) => word(bare) + " ",
            None => word(part),
        })
        .collect()
}

fn shown(done: &Done) -> (i32, String, String) {
    let stdout = match serde_json::from_str::<Value>(&done.stdout) {
        Ok(mut document) => {
            lasting(&mut document);
            document.to_string()
        }
        Err(_) => done.stdout.clone(),
    };
    (done.code, stdout, without_ids(&done.stderr))
}

#[test]
fn every_command_says_over_https_what_it_says_over_the_socket() {
    let (home, machine, elsewhere) = (Home::new(), Home::new(), Home::new());
    let args = [LISTEN[0], LISTEN[1], "--tls-generate"];
    let gateway = Gateway::start(&home, &args);
    let own = home.path().join("gateway_tls.pem");
    let _node = gateway.join(&machine, "box", &own);
    home.ok(["node", "pairing", "disable"]);
    let token = gateway.token();
    let ran = home.run([
        "node",
        "exec",
        "box",
        "--json",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 3",
    ]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let ran: Value = serde_json::from_str(&ran.stdout).unwrap();
    let run_id = ran["run_id"].as_str().unwrap();
    let nodes = home.json(["node", "list", "--json"]);
    let id = nodes[0]["id"].as_str().unwrap();
    let list: &[&[&str]] = &[
        &["node", "list"],
        &["node", "list", "--json"],
        &["node", "list", "--all", "--json"],
        &["node", "describe", "nobody"],
        &["node", "pairing", "status"],
        &["node", "pairing", "status", "--json"],
        &["node", "pairing", "disable"],
        &["node", "pairing", "enable", "--for", "20m", "--json"],
        &["node", "pairing", "disable", "--json"],
        &["node", "pending"],
        &["node", "pending", "--json"],
        &["node", "approve", "3f9c", "--yes"],
        &["node", "reject", "3f9c", "--yes"],
        &["node", "rename", id, "crate"],
        &["node", "rename", id, "box"],
        &["node", "label", "box", "gpu=true"],
        &["node", "label", "nobody", "gpu=true"],
        &["node", "revoke", "nobody"],
        &["node", "forget", "box"],
        &[
            "node",
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 7",
        ],
        &["node", "exec", "box", "--json", "--", "echo", "out"],
        &["node", "exec", "box", "--shell", "seq 1 20000"],
        &[
            "node",
            "exec",
            "box",
            "--timeout",
            "1",
            "--",
            "sleep",
            "100",
        ],
        &["node", "exec", "nobody", "--", "true"],
        &["node", "exec", "local", "--", "echo", "here"],
        &["runs", "show", run_id, "--json"],
        &["runs", "output", run_id],
        &["runs", "output", run_id, "--stream", "stderr"],
        &["runs", "attach", run_id],
        &["runs", "cancel", run_id],
        &["runs", "claim", run_id],
        &["runs", "show", "nothing"],
        &["token", "list", "--json"],
        &["token", "revoke", "nothing"],
    ];
    for args in list {
        let here = home.run(*args);
        let there = run(gateway.remote(&elsewhere, &token, &own, args));
        assert_eq!(shown(&there), shown(&here), "{args:?}");
    }
    // Ids of new things differ; that they are made is what counts.
    let created = ["token", "create", "--name", "two", "--scope", "runs:read"];
    let there = run(gateway.remote(&elsewhere, &token, &own, &created));
    assert!(there.stdout.starts_with("moltis_"), "{there:?}");
    let runs = ["runs", "list", "--json"];
    let there = run(gateway.remote(&elsewhere, &token, &own, &runs));
    assert_eq!(shown(&there), shown(&home.run(runs)));
    let doctor = ["doctor", "--json"];
    let there = run(gateway.remote(&elsewhere, &token, &own, &doctor));
    let findings: Value = serde_json::from_str(&there.stdout).unwrap();
    let gateway_finding = &findings.as_array().unwrap()[1];
    let words = gateway_finding["message"].as_str().unwrap();
    assert_eq!(words, format!("the gateway at {} answers", gateway.url()));

    // Both ways at once, more than any buffer holds.
    let input: Vec<u8> = (0..2_000_000_u32)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let exec = ["node", "exec", "box", "--stdin", "--", "cat"];
    let mut command = gateway.remote(&elsewhere, &token, &own, &exec);
    command.stdin(Stdio::piped());
    let mut process = Process::start(command);
    let mut stdin = process.stdin();
    let sent = input.clone();
    let writing = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &sent));
    let done = process.wait();
    writing.join().unwrap().unwrap();
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(
        done.stdout_bytes == input,
        "{} bytes of {}",
        done.stdout_bytes.len(),
        input.len()
    );
}
