//! The fingerprint of a key is the one that OpenSSH prints for it.

use std::io::Write as _;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use moltis_identity::{Fingerprint, SecretKey};

/// Tells `cargo xtask test` what could not be done here; it decides whether that is a failure.
fn not_tested(name: &str, why: &str) {
    let Some(list) = std::env::var_os("MOLTIS_NOT_TESTED") else {
        return;
    };
    let line = format!("{name}: {why}\n");
    let list = std::fs::File::options().append(true).open(list);
    list.and_then(|mut list| list.write_all(line.as_bytes()))
        .expect("the list of what was not tested takes a line");
}

#[test]
fn a_fingerprint_equals_that_of_ssh_keygen() {
    if Command::new("ssh-keygen").arg("-?").output().is_err() {
        not_tested(
            "ssh-keygen",
            "it is not installed, so no fingerprint was compared with its own",
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for seed in [[0; 32], [1; 32], [0xff; 32]] {
        let key = SecretKey::from_seed(seed).public_key();
        let path = dir.path().join("key.pub");
        let line = format!(
            "ssh-ed25519 {} somebody",
            STANDARD.encode(key.to_ssh_wire())
        );
        std::fs::write(&path, line).unwrap();

        let output = Command::new("ssh-keygen")
            .arg("-lf")
            .arg(&path)
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        // 256 SHA256:… somebody (ED25519)
        assert!(
            printed.starts_with("256 ") && printed.ends_with("(ED25519)\n"),
            "{printed}"
        );
        let theirs = printed.split(' ').nth(1).unwrap();
        assert_eq!(Fingerprint::of(&key).to_string(), theirs);
    }
}
