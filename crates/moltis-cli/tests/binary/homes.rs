//! Homes, files and ports that are not as they should be: a clear error, and nothing is harmed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Done, Home, meddle, not_tested, run};

fn fails(home: &Home, args: &[&str], wanted: &[&str]) -> Done {
    let done = home.run(args);
    assert_eq!(done.code, 1, "{args:?}: {done:?}");
    for wanted in wanted {
        assert!(
            done.stderr.contains(wanted),
            "{wanted:?} in {args:?}: {}",
            done.stderr
        );
    }
    done
}

#[test]
fn a_relative_or_too_long_home_is_refused() {
    let home = Home::new();
    let long = format!("/tmp/{}", "x".repeat(100));
    for (value, wanted) in [
        ("here/moltis", "relative"),
        (long.as_str(), "105 bytes long"),
    ] {
        for args in [
            &["gateway"][..],
            &["node", "list"],
            &["node", "fingerprint"],
        ] {
            let mut command = home.command(args);
            command.env("MOLTIS_HOME", value);
            let done = run(command);
            assert_eq!(done.code, 1, "{done:?}");
            assert!(done.stderr.contains(wanted), "{done:?}");
            assert!(done.stderr.contains("hint: set MOLTIS_HOME"), "{done:?}");
        }
    }
    assert!(!home.user().join("here").exists());
}

#[test]
fn a_home_that_cannot_be_made_is_told() {
    let home = Home::new();
    let file = home.user().join("file");
    fs::write(&file, "").unwrap();
    let mut command = home.command(["gateway"]);
    command.env("MOLTIS_HOME", file.join("below"));
    let done = run(command);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.stderr.contains("cannot make the home directory"),
        "{done:?}"
    );
}

/// The user and group `nobody` of Linux, who owns nothing of anybody's.
const NOBODY: u32 = 65_534;

/// The binary as a user whom permissions hold back: nobody where we are root, who passes them all.
/// `None` where that cannot be.
fn held_back(home: &Home, args: &[&str]) -> Option<Command> {
    if !rustix::process::geteuid().is_root() {
        return Some(home.command(args));
    }
    // The binary may lie where nobody but root may go.
    let copy = home.user().join("moltis");
    if !copy.exists() {
        fs::copy(env!("CARGO_BIN_EXE_moltis"), &copy).unwrap();
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .env_clear()
        .envs(home.environment())
        .current_dir("/")
        .stdin(Stdio::null());
    let known = Command::new("setpriv").arg("--version").output();
    command.arg(copy).args(args);
    known.is_ok().then_some(command)
}

/// Gives a directory and what is in it to whom [`held_back`] runs as, with this mode.
fn give(dir: &Path, mode: u32) {
    if rustix::process::geteuid().is_root() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            chown(entry.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
}

/// Names and contents below a directory.
fn everything_in(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let mut all: Vec<_> = entries
        .map(|entry| (entry.path(), fs::read(entry.path()).unwrap_or_default()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_home_that_may_not_be_written_is_told_and_left_alone() {
    let home = Home::new();
    let above = home.user().parent().unwrap().to_owned();
    fs::set_permissions(&above, fs::Permissions::from_mode(0o755)).unwrap();
    home.ok(["node", "fingerprint"]);
    home.write(
        "node.json",
        r#"{"gateway_url": "ws://127.0.0.1:1/ws", "name": "box", "working_dir": "/", "path": "/bin"}"#,
    );
    give(&home.path(), 0o500);
    let before = everything_in(&home.path());
    let closed = above.join("closed");
    fs::create_dir(&closed).unwrap();
    give(&closed, 0o500);
    let below = closed.join("m");
    let join = [
        "node",
        "add",
        "--foreground",
        "--host",
        "ws://127.0.0.1:1/ws",
    ];
    let all: [&[&str]; 5] = [
        &["gateway", "--listen", "127.0.0.1:0"],
        &join,
        &["node", "fingerprint"],
        &["node", "run"],
        &["node", "policy", "off"],
    ];
    for args in all {
        let Some(command) = held_back(&home, args) else {
            return not_tested("a home that may not be written", "there is no setpriv");
        };
        let done = run(command);
        let (path, said) = (home.path(), &done.stderr);
        let path = path.display();
        assert_eq!(done.code, 1, "{args:?}: {done:?}");
        assert!(
            said.contains(&format!(
                "cannot write to the home directory `{path}`: its mode is 0500"
            )) && said.contains(&format!("hint: chmod 700 {path}")),
            "{args:?}: {said}"
        );
        assert!(before == everything_in(&home.path()), "{args:?}");
    }
    for args in &all[..3] {
        let mut command = held_back(&home, args).unwrap();
        command.env("MOLTIS_HOME", &below);
        let done = run(command);
        let said = &done.stderr;
        assert_eq!(done.code, 1, "{args:?}: {done:?}");
        assert!(
            said.contains(&format!(
                "cannot make the home directory `{}`",
                below.display()
            )) && said.contains("hint: set MOLTIS_HOME to a directory that you may write to"),
            "{args:?}: {said}"
        );
        assert!(everything_in(&closed).is_empty(), "{args:?}");
    }
    give(&home.path(), 0o700);
    let fingerprint = run(held_back(&home, &["node", "fingerprint"]).unwrap());
    assert_eq!(
        fingerprint.code, 0,
        "the home is as good as before: {fingerprint:?}"
    );
}

#[test]
fn a_home_that_others_may_write_to_is_refused() {
    let home = Home::new();
    home.write("moltis.toml", "");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fails(
        &home,
        &["gateway"],
        &["its mode is 0777, expected 0700", "chmod 700"],
    );
}

#[test]
fn everything_below_a_home_is_its_owners_alone() {
    let home = Home::new();
    let gateway = home.gateway();
    let _node = gateway.join(&home, "box");
    home.ok(["node", "exec", "box", "--", "true"]);
    home.ok(["node", "exec", "local", "--", "true"]);
    let mut directories = vec![home.path()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", directory.display());
        for entry in fs::read_dir(&directory).unwrap().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                directories.push(entry.path());
            } else {
                let mode = meta.permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{}", entry.path().display());
                seen += 1;
            }
        }
    }
    assert!(seen >= 8, "{seen} files");
}

#[test]
fn a_gateway_and_a_node_share_one_home() {
    let home = Home::new();
    let gateway = home.gateway();
    let _node = gateway.join(&home, "box");
    for target in ["box", "local"] {
        let done = home.run(["node", "exec", target, "--", "echo", target]);
        assert_eq!((done.code, done.stdout.trim()), (0, target), "{done:?}");
    }
}

#[test]
fn mistakes_in_the_configuration_are_told_by_line_and_key() {
    let home = Home::new();
    home.write("moltis.toml", "[gateway]\n\nlisen = [\"127.0.0.1:0\"]\n");
    fails(
        &home,
        &["gateway"],
        &[
            "moltis.toml:3",
            "unknown key `gateway.lisen`",
            "`gateway.listen`",
        ],
    );
    home.write("moltis.toml", "[gateway]\nlisten = \"x\"\n");
    fails(
        &home,
        &["gateway"],
        &["moltis.toml:2", "`gateway.listen`", "expected a list"],
    );
    home.write("moltis.toml", "[gateway\n");
    fails(&home, &["gateway"], &["moltis.toml:1"]);
    home.write("moltis.toml", "[gateway]\nlisten = [\"127.0.0.1:0\"]\n");
    let gateway = home.gateway_with(&[]);
    assert!(!gateway.address.ends_with(":0"), "{}", gateway.address);
}

#[test]
fn a_corrupt_node_json_is_told_and_left_alone() {
    let home = Home::new();
    home.write("node.json", "{ \"gateway_url\": \"ws://gw:1/ws\", oops");
    for args in [
        &["node", "run"][..],
        &["node", "status"],
        &["node", "policy"],
    ] {
        fails(&home, args, &["node.json", "hint:"]);
    }
    let text = fs::read_to_string(home.path().join("node.json")).unwrap();
    assert!(text.ends_with("oops"));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let home = Home::new();
    home.ok(["node", "fingerprint"]);
    let key = home.path().join("node_key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    for args in [
        &["node", "fingerprint"][..],
        &[
            "node",
            "add",
            "--foreground",
            "--host",
            "ws://127.0.0.1:1/ws",
        ],
    ] {
        fails(&home, args, &["node_key", "0644"]);
    }
    let home = Home::new();
    drop(home.gateway());
    let key = home.path().join("gateway_key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    fails(
        &home,
        &["gateway", "--listen", "127.0.0.1:0"],
        &["gateway_key", "0640"],
    );
}

#[test]
fn a_database_that_is_none_or_of_a_newer_version_is_told_and_left_alone() {
    let home = Home::new();
    let path = home.write("gateway.db", &"this is no database\n".repeat(1000));
    fails(
        &home,
        &["gateway", "--listen", "127.0.0.1:0"],
        &["gateway.db"],
    );
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("this is no database"));

    let home = Home::new();
    drop(home.gateway());
    let later = "INSERT INTO _sqlx_migrations VALUES (99, 'later', 0, 1, x'00', 0)";
    meddle(&home, later.to_owned());
    let before = fs::read(home.path().join("gateway.db")).unwrap();
    fails(
        &home,
        &["gateway", "--listen", "127.0.0.1:0"],
        &["gateway.db", "newer"],
    );
    assert!(before == fs::read(home.path().join("gateway.db")).unwrap());
}

#[test]
fn a_port_in_use_is_told_with_the_way_out() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    fails(
        &home,
        &["gateway", "--listen", &address],
        &[&address, "in use", "--listen"],
    );
}

#[test]
fn a_second_gateway_on_one_home_is_refused() {
    let home = Home::new();
    let gateway = home.gateway();
    fails(&home, &["gateway", "--listen", "127.0.0.1:0"], &["already"]);
    assert_eq!(
        home.run(["runs", "list"]).code,
        0,
        "the first one is unharmed"
    );
    drop(gateway);
    home.gateway();
}

#[test]
fn a_second_node_on_one_home_is_refused() {
    let (home, machine) = (Home::new(), Home::new());
    let gateway = home.gateway();
    let mut node = gateway.join(&machine, "box");
    let done = fails(
        &machine,
        &["node", "add", "--foreground", "--host", &gateway.ws()],
        &["a node runs on this home already"],
    );
    assert!(done.stderr.contains("hint:"), "{done:?}");
    assert!(node.is_running());
}
