//! `cargo xtask` around a cargo that hangs, fails, or cannot build what is asked of it.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests end the test where they cannot go on"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

const LONG: Duration = Duration::from_mins(1);

/// A folder with a cargo that says where it builds, and does this with everything else.
fn cargo_that(does: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let cargo = dir.path().join("cargo");
    let script = format!(
        "#!/bin/sh\ncase $1 in metadata) echo '{{\"target_directory\":\"{}\"}}'; exit;; esac\n{does}\n",
        dir.path().display()
    );
    fs::write(&cargo, script).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    (dir, cargo)
}

fn deny(cargo: &Path) -> Child {
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.arg("deny").env("CARGO", cargo).stdin(Stdio::null());
    xtask.stdout(Stdio::piped()).spawn().unwrap()
}

fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(since.elapsed() < LONG, "waited for {what} in vain");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn ctrl_c_ends_the_cargo_that_we_wait_for() {
    let (dir, cargo) = cargo_that(
        "echo $$ > \"${0%/*}/pid.new\"; mv \"${0%/*}/pid.new\" \"${0%/*}/pid\"; exec sleep 600",
    );
    let mut xtask = deny(&cargo);
    let pid: i32 = eventually("cargo to run", || {
        let pid = fs::read_to_string(dir.path().join("pid")).ok()?;
        pid.trim().parse().ok()
    });
    kill_process(Pid::from_child(&xtask), Signal::INT).unwrap();
    let status = eventually("the end", || xtask.try_wait().unwrap());
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(test_kill_process(Pid::from_raw(pid).unwrap()).is_err());
}

#[test]
fn a_check_that_could_not_be_made_is_no_success() {
    let (_dir, cargo) = cargo_that("exit 101");
    let output = deny(&cargo).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("NOT TESTED  cargo-deny"), "{said}");
}

#[test]
fn the_last_lines_of_a_part_that_failed_end_the_log() {
    let (_dir, cargo) = cargo_that(
        "[ $1 = fmt ] || exit 0; i=0; while [ $((i += 1)) -le 200 ]; do echo line $i; done; \
         echo it is too long >&2; exit 1",
    );
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.args(["test", "fmt", "doctest"]).env("CARGO", &cargo);
    let output = xtask.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let (live, end) = said.split_once("\nsummary\n").expect("a summary");
    assert!(live.contains("line 1\n"), "as it came: {live}");
    let (_, lines) = end
        .split_once("\nthe last lines of fmt\n")
        .expect("its lines");
    let mut wanted: Vec<_> = (143..=200).map(|line| format!("  line {line}")).collect();
    wanted.push("  it is too long".to_owned());
    wanted.push("  error: `cargo fmt --all --check` ended with exit status: 1".to_owned());
    assert_eq!(lines.lines().collect::<Vec<_>>(), wanted);
    assert!(!end.contains("the last lines of doctest"), "{end}");
}
