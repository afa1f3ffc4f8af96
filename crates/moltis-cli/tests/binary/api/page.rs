//! The examples of `docs/api.md`, word for word as a person types them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::harness::{Home, run};

/// What stands between the outputs of two commands.
const END: &str = "\n--- the end of an example\n";

/// A command, and what the page says that it prints.
struct Example {
    typed: String,
    printed: String,
}

/// Reads the examples up to the part about streams that never end.
fn examples(page: &str) -> Vec<Example> {
    let (page, _) = page.split_once("\n## Events\n").unwrap();
    let mut examples: Vec<Example> = Vec::new();
    let mut is_inside = false;
    for line in page.lines() {
        let Some(text) = line.strip_prefix("    ") else {
            is_inside = false;
            continue;
        };
        if let Some(typed) = text.strip_prefix("$ ") {
            examples.push(Example {
                typed: typed.to_owned(),
                printed: String::new(),
            });
            is_inside = true;
        } else if let Some(example) = examples.last_mut().filter(|_| is_inside) {
            if example.typed.ends_with('\\') {
                write!(example.typed, "\n{text}").unwrap();
            } else {
                writeln!(example.printed, "{text}").unwrap();
            }
        }
    }
    examples
}

/// Returns whether a text is what the page shows, where `…` stands for anything.
fn fits(shown: &str, found: &str) -> bool {
    let mut parts = shown.trim().split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = found.trim().strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

#[test]
fn what_the_page_shows_is_what_a_person_gets() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");
    let examples = examples(&std::fs::read_to_string(page).unwrap());
    assert!(examples.len() >= 8, "{}", examples.len());
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let _node = gateway.join_with(&machine, &["--name", "box", "--node-id", "box"]);

    let mut script = "set -e\n".to_owned();
    for example in &examples {
        let typed = example.typed.replace("127.0.0.1:9090", &gateway.address);
        write!(script, "{typed}\nprintf '%s' '{END}'\n").unwrap();
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_moltis")).parent().unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &script]).env_clear();
    shell.envs(home.environment());
    shell.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
    let done = run(shell);
    assert_eq!(done.code, 0, "{done:?}");
    let printed: Vec<_> = done.stdout.split(END).collect();
    for (example, found) in examples.iter().zip(printed) {
        let shown = &example.printed;
        assert!(
            fits(shown, found),
            "{}\nshown: {shown}\nfound: {found}",
            example.typed
        );
    }
}
