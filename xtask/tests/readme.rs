//! The README's commands work, word for word.
//!
//! The first command runs here out of the file, in an empty home, as somebody types it after cloning.
//! The second one runs this test; that continuous integration runs it, and nothing else, is checked.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns the commands in the README's blocks of shell.
fn commands() -> Vec<String> {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    let mut commands = Vec::new();
    for block in readme.split("```sh\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a block of shell ends");
        commands.extend(block.lines().map(str::to_owned));
    }
    commands
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a crate lies in a repository")
}

#[test]
fn the_two_commands_are_the_first_two() {
    assert_eq!(commands(), ["cargo xtask quickstart", "cargo xtask test"]);
}

#[test]
fn ci_runs_the_second_command() {
    let ci = fs::read_to_string(root().join(".ci/run")).expect("there is a .ci/run");
    let second = &commands()[1];
    assert!(
        ci.ends_with(&format!("\nexport CI=1\nexec {second}\n")),
        "{ci}"
    );
}

/// `cargo xtask test` runs this one apart, because it builds.
#[test]
fn the_first_command_works_word_for_word_in_an_empty_home() {
    let dir = tempfile::tempdir().expect("a folder for the home");
    let (home, temporary) = (dir.path().join("home"), dir.path().join("tmp"));
    for dir in [&home, &temporary] {
        fs::create_dir(dir).expect("a fresh folder takes another");
    }
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &commands()[0]]).current_dir(root());
    // What cargo told this test about itself is no part of somebody's home; what tells cargo and
    // rustup where they keep things is.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let is_ours = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "NEXTEST",
            "MOLTIS_",
        ];
        if is_ours.iter().any(|prefix| text.starts_with(prefix)) || text == "CARGO" {
            shell.env_remove(&name);
        }
    }
    shell.env("HOME", &home).env("TMPDIR", &temporary);
    shell.env("CARGO_HOME", kept("CARGO_HOME", ".cargo"));
    shell.env("RUSTUP_HOME", kept("RUSTUP_HOME", ".rustup"));

    let status = shell
        .stdin(Stdio::null())
        .status()
        .expect("there is a shell");
    assert!(status.success(), "`{}` ended with {status}", commands()[0]);
    for dir in [&home, &temporary] {
        let left: Vec<_> = fs::read_dir(dir).expect("it is there").collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
    assert_eq!(still_running(), Vec::<String>::new());
}

/// Returns where cargo or rustup keeps its things, which an empty home would hide.
fn kept(variable: &str, folder: &str) -> PathBuf {
    env::var_os(variable).map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(folder),
        PathBuf::from,
    )
}

/// Returns the command lines of the processes that name a stage of the quickstart, in their words or,
/// where Linux shows it, in their environment.
fn still_running() -> Vec<String> {
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let stage = target.join("stage-").display().to_string();
    let listed = Command::new("ps")
        .args(["-axww", "-o", "pid=,command="])
        .output();
    let listed = listed.expect("there is a `ps`").stdout;
    let lines = String::from_utf8_lossy(&listed).into_owned();
    let names_it = |line: &&str| {
        let pid = line.split_whitespace().next().unwrap_or_default();
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        line.contains(&stage) || String::from_utf8_lossy(&environment).contains(&stage)
    };
    lines.lines().filter(names_it).map(str::to_owned).collect()
}
