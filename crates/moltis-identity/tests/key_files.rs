//! Key files: made whole, read only when nobody else can have read or written them.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail like the test")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use moltis_identity::{GatewayIdentity, KeyFileError, NodeIdentity};
use moltis_proto::NodeId;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn node_id(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

/// A folder with a node's key file in it.
fn node_file() -> (TempDir, PathBuf, NodeIdentity) {
    let dir = folder();
    let path = dir.path().join("node_key");
    let identity = NodeIdentity::create(&path, node_id("box")).unwrap();
    (dir, path, identity)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// What a person reads: the error and what to do.
fn words(error: &KeyFileError) -> String {
    let words = error.to_string();
    assert!(words.contains("node_key"), "the file is not named: {words}");
    words
}

#[test]
fn a_node_is_the_same_after_its_file_is_read_again() {
    let (dir, path, made) = node_file();
    let read = NodeIdentity::load(&path).unwrap();
    assert_eq!(read.secret.public_key(), made.secret.public_key());
    assert_eq!(read.device_id, made.device_id);
    assert_eq!(read.node_id, made.node_id);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(names(dir.path()), ["node_key"]);
}

#[test]
fn a_gateway_is_the_same_after_its_file_is_read_again() {
    let dir = folder();
    let path = dir.path().join("gateway_key");
    let made = GatewayIdentity::load_or_create(&path).unwrap();
    let read = GatewayIdentity::load_or_create(&path).unwrap();
    assert_eq!(read.fingerprint(), made.fingerprint());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn no_two_new_nodes_are_alike() {
    let (_dir_a, _, a) = node_file();
    let (_dir_b, _, b) = node_file();
    assert_ne!(a.fingerprint(), b.fingerprint());
    assert_ne!(a.device_id, b.device_id);
}

#[test]
fn a_missing_file_is_told_from_an_unfit_one() {
    let dir = folder();
    let error = NodeIdentity::load(&dir.path().join("node_key")).unwrap_err();
    assert!(matches!(error, KeyFileError::Missing { .. }), "{error}");
}

#[test]
fn a_key_is_never_overwritten() {
    let (_dir, path, made) = node_file();
    let error = NodeIdentity::create(&path, node_id("other")).unwrap_err();
    assert!(matches!(error, KeyFileError::Exists { .. }), "{error}");
    assert_eq!(NodeIdentity::load(&path).unwrap().device_id, made.device_id);
}

#[test]
fn many_that_create_at_once_get_one_node() {
    let dir = folder();
    let path = dir.path().join("node_key");
    let devices: Vec<_> = std::thread::scope(|scope| {
        let create = || {
            NodeIdentity::load_or_create(&path, || node_id("box"))
                .unwrap()
                .device_id
        };
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(create)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(devices.iter().all(|device| *device == devices[0]));
    assert_eq!(names(dir.path()), ["node_key"]);
}

#[test]
fn a_file_with_a_wider_mode_is_refused_and_the_remedy_named() {
    let (_dir, path, _) = node_file();
    for mode in [
        0o604, 0o640, 0o644, 0o620, 0o602, 0o700, 0o610, 0o1600, 0o666,
    ] {
        set_mode(&path, mode);
        let error = NodeIdentity::load(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::TooOpen { mode: found, .. } if found == mode));
        assert!(words(&error).contains("chmod 600"), "{error}");
        assert!(words(&error).contains(&format!("{mode:04o}")), "{error}");
    }
    for mode in [0o600, 0o400] {
        set_mode(&path, mode);
        NodeIdentity::load(&path).unwrap();
    }
}

#[test]
fn a_symbolic_link_is_refused_even_to_a_good_file() {
    let (dir, path, _) = node_file();
    let link = dir.path().join("node_key.link");
    symlink(&path, &link).unwrap();
    let error = NodeIdentity::load(&link).unwrap_err();
    assert!(matches!(error, KeyFileError::Symlink { .. }), "{error}");
    // Nor is anything written through one, wherever it points.
    let dangling = dir.path().join("node_key.dangling");
    symlink(dir.path().join("elsewhere"), &dangling).unwrap();
    NodeIdentity::load_or_create(&dangling, || node_id("box")).unwrap_err();
    let error = NodeIdentity::create(&dangling, node_id("box")).unwrap_err();
    assert!(matches!(error, KeyFileError::Exists { .. }), "{error}");
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn a_directory_a_pipe_and_a_device_are_refused_without_waiting() {
    let dir = folder();
    let pipe = dir.path().join("node_key");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for path in [&pipe, dir.path(), Path::new("/dev/null")] {
        let error = NodeIdentity::load(path).unwrap_err();
        assert!(matches!(error, KeyFileError::NotAFile { .. }), "{error}");
    }
}

#[test]
fn a_changed_file_is_refused_at_every_bit_and_length() {
    let (_dir, path, _) = node_file();
    let good = fs::read(&path).unwrap();
    let refuse = |content: &[u8], what: &str| {
        fs::write(&path, content).unwrap();
        match NodeIdentity::load(&path) {
            Ok(_) => panic!("{what} was accepted"),
            Err(error) => assert!(words(&error).len() < 400),
        }
    };
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            refuse(&bad, &format!("bit {bit} of byte {at}"));
        }
        refuse(&good[..at], &format!("a file of {at} bytes"));
    }
    for more in [&b"\n"[..], b"\0", b" ", b"check = ", &vec![b'#'; 100_000]] {
        refuse(&[&good, more].concat(), "a longer file");
        refuse(&[more, &good].concat(), "a file with something before it");
    }
    refuse(&good.repeat(2), "a file twice");
    fs::write(&path, &good).unwrap();
    NodeIdentity::load(&path).unwrap();
}

#[test]
fn the_key_files_of_node_and_gateway_are_not_taken_for_each_other() {
    let (_dir, path, _) = node_file();
    let error = GatewayIdentity::load(&path).unwrap_err();
    assert!(
        words(&error).contains("is a node's key file, but a gateway's"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    GatewayIdentity::create(&path).unwrap();
    let error = NodeIdentity::load(&path).unwrap_err();
    assert!(
        words(&error).contains("is a gateway's key file, but a node's"),
        "{error}"
    );
}

#[test]
fn a_file_of_a_newer_version_says_so() {
    let (_dir, path, _) = node_file();
    let content = fs::read_to_string(&path).unwrap();
    fs::write(&path, content.replacen("key 1", "key 2", 1)).unwrap();
    let error = NodeIdentity::load(&path).unwrap_err();
    assert!(matches!(error, KeyFileError::Newer { .. }), "{error}");
}

#[test]
fn files_that_never_were_key_files_are_refused() {
    let (_dir, path, _) = node_file();
    for content in [
        "",
        "\n",
        "{}",
        "\u{0}",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n",
        "moltis node key",
    ] {
        fs::write(&path, content).unwrap();
        let error = NodeIdentity::load(&path).unwrap_err();
        assert!(
            matches!(error, KeyFileError::Corrupt { .. }),
            "{content:?}: {error}"
        );
    }
    fs::write(&path, [0xff; 40]).unwrap();
    NodeIdentity::load(&path).unwrap_err();
}

#[test]
fn another_node_id_keeps_key_and_device() {
    let (dir, path, mut identity) = node_file();
    let before = (identity.fingerprint(), identity.device_id);
    identity.change_node_id(&path, node_id("other")).unwrap();
    let read = NodeIdentity::load(&path).unwrap();
    assert_eq!((read.fingerprint(), read.device_id), before);
    assert_eq!(read.node_id, node_id("other"));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(names(dir.path()), ["node_key"]);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let dir = folder();
    let path = dir.path().join("missing").join("node_key");
    let error = NodeIdentity::create(&path, node_id("box")).unwrap_err();
    assert!(matches!(error, KeyFileError::Io { .. }), "{error}");
    assert!(words(&error).contains("could not create"), "{error}");
    let error = NodeIdentity::create(Path::new("/"), node_id("box")).unwrap_err();
    assert!(matches!(error, KeyFileError::Exists { .. }), "{error}");
}

#[test]
fn an_unusual_umask_neither_opens_nor_locks_the_file() {
    // The umask belongs to the whole process: a child sets its own.
    let (_dir, path, _) = node_file();
    fs::remove_file(&path).unwrap();
    if let Some(target) = std::env::var_os("MOLTIS_TEST_UMASK_FILE") {
        let mask = std::env::var_os("MOLTIS_TEST_UMASK")
            .unwrap()
            .into_string()
            .unwrap();
        let mask = rustix::fs::Mode::from_raw_mode(mask.parse().unwrap());
        rustix::process::umask(mask);
        NodeIdentity::create(Path::new(&target), node_id("box")).unwrap();
        return;
    }
    for mask in [0o000_u32, 0o777] {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "an_unusual_umask_neither_opens_nor_locks_the_file",
            ])
            .env("MOLTIS_TEST_UMASK_FILE", &path)
            .env("MOLTIS_TEST_UMASK", mask.to_string())
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        NodeIdentity::load(&path).unwrap();
        fs::remove_file(&path).unwrap();
    }
}
