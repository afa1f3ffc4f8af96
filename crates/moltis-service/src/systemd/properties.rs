//! What `systemctl show` prints, as a [`Status`].

use std::collections::BTreeMap;
use std::path::Path;

use crate::status::{State, Status};

/// What is asked for (org.freedesktop.systemd1(5)).
pub(super) const ASKED: &[&str] = &[
    "LoadState",
    "FragmentPath",
    "ActiveState",
    "UnitFileState",
    "MainPID",
    "NRestarts",
    "Result",
    "ExecMainStatus",
    "NeedDaemonReload",
];

/// Returns the file that the unit was read from; `None` where it has none.
pub(super) fn file(printed: &str) -> Option<&Path> {
    let mut lines = printed.lines();
    let path = lines.find_map(|line| line.strip_prefix("FragmentPath="))?;
    Some(Path::new(path)).filter(|path| path.is_absolute())
}

/// Reads `NAME=value` lines. What is missing counts as empty.
pub(super) fn status(printed: &str) -> Status {
    let all: BTreeMap<_, _> = printed
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let get = |name: &str| all.get(name).copied().unwrap_or_default();
    let number = |name: &str| get(name).parse().ok();
    let enabled = matches!(get("UnitFileState"), "enabled" | "enabled-runtime");
    Status {
        state: state(&get, number("MainPID")),
        enabled,
        restarts: number("NRestarts"),
        is_outdated: get("NeedDaemonReload") == "yes",
    }
}

fn state<'a>(get: &impl Fn(&str) -> &'a str, pid: Option<u32>) -> State {
    let because = because(get("Result"), get("ExecMainStatus"));
    match (get("LoadState"), get("ActiveState"), pid) {
        // Also a unit whose file went while it runs.
        (_, "active" | "reloading", Some(pid)) if pid > 0 => State::Running { pid },
        ("masked", ..) => State::Masked,
        ("not-found" | "", ..) => State::NotInstalled,
        (_, "activating", _) => State::Starting { because },
        ("loaded", ..) => State::Stopped { because },
        // `bad-setting` and `error`: a file that cannot be used.
        (load, ..) => State::Stopped {
            because: Some(format!("systemd cannot use its unit file ({load})")),
        },
    }
}

/// Puts a result (systemd.exec(5), Process Exit Codes) into words; `None` for a good end.
fn because(result: &str, status: &str) -> Option<String> {
    Some(match (result, status) {
        ("success" | "", _) => return None,
        ("exit-code", "203") => "its program cannot be run (203/EXEC)".to_owned(),
        ("exit-code", status) => format!("exit code {status}"),
        ("signal" | "core-dump", status) => format!("signal {status}"),
        ("timeout", _) => "it did not become ready in time".to_owned(),
        ("oom-kill", _) => "the kernel was out of memory".to_owned(),
        (other, _) => other.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_runs() {
        let printed = "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\n\
                       MainPID=812\nNRestarts=2\nResult=success\nExecMainStatus=0\n\
                       NeedDaemonReload=no\n";
        let expected = Status {
            state: State::Running { pid: 812 },
            enabled: true,
            restarts: Some(2),
            is_outdated: false,
        };
        assert_eq!(status(printed), expected);
    }

    #[test]
    fn the_states_are_told_apart() {
        let check = |printed: &str, expected: State| assert_eq!(status(printed).state, expected);
        let stopped = |because: Option<&str>| State::Stopped {
            because: because.map(str::to_owned),
        };
        check(
            "LoadState=not-found\nActiveState=inactive\nMainPID=0",
            State::NotInstalled,
        );
        check("", State::NotInstalled);
        check(
            "LoadState=not-found\nActiveState=active\nMainPID=7",
            State::Running { pid: 7 },
        );
        check(
            "LoadState=masked\nActiveState=inactive\nMainPID=0",
            State::Masked,
        );
        check(
            "LoadState=loaded\nActiveState=inactive\nResult=success",
            stopped(None),
        );
        check(
            "LoadState=loaded\nActiveState=failed\nResult=signal\nExecMainStatus=9",
            stopped(Some("signal 9")),
        );
        check(
            "LoadState=bad-setting\nActiveState=inactive",
            stopped(Some("systemd cannot use its unit file (bad-setting)")),
        );
        check(
            "LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\nExecMainStatus=203",
            State::Starting {
                because: Some("its program cannot be run (203/EXEC)".to_owned()),
            },
        );
    }
}
