//! Files that cannot be used, each told by what is wrong with it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use super::*;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Two files with this content.
    fn pair(&self, certificate: &str, key: &str) -> PairFiles {
        PairFiles {
            certificate: self.write("cert.pem", certificate),
            key: self.write("key.pem", key),
        }
    }
}

/// A certificate for `gw.example`, changed as wanted, and its key.
fn made(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["gw.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 3, 1);
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn sound() -> (String, String) {
    made(|_| {})
}

#[track_caller]
fn refused(files: &PairFiles, message: &str) -> String {
    let error = files.load().unwrap_err();
    assert!(error.to_string().contains(message), "{error}");
    error.hint().unwrap_or_default()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn a_certificate_tells_when_it_holds() {
    let dir = Dir::new();
    let (certificate, key) = sound();
    let about = dir.pair(&certificate, &key).load().unwrap().about;
    assert_eq!(about.not_before, at("2026-01-01T00:00:00Z"));
    assert_eq!(about.not_after, at("2026-03-01T00:00:00Z"));
    assert_eq!(about.objection, None);
    assert_eq!(about.fingerprint.len(), 32 * 3 - 1);
    for (now, validity) in [
        ("2025-12-31T23:59:59Z", Validity::NotYet),
        ("2026-01-01T00:00:00Z", Validity::Holds),
        ("2026-02-14T23:59:00Z", Validity::Holds),
        ("2026-02-15T00:01:00Z", Validity::EndsSoon),
        ("2026-03-01T00:00:00Z", Validity::EndsSoon),
        ("2026-03-01T00:00:01Z", Validity::Expired),
    ] {
        assert_eq!(about.validity(at(now)), validity, "{now}");
    }
    let expired = about.problem(at("2026-04-01T00:00:00Z")).unwrap();
    assert!(
        expired.ends_with("has expired on 2026-03-01T00:00:00Z"),
        "{expired}"
    );
    let early = about.problem(at("2025-04-01T00:00:00Z")).unwrap();
    assert!(
        early.ends_with("is not valid before 2026-01-01T00:00:00Z"),
        "{early}"
    );
    assert_eq!(about.problem(at("2026-02-20T00:00:00Z")), None);
}

#[test]
fn a_certificate_that_every_client_refuses_is_told_though_its_files_are_sound() {
    let now = at("2026-02-01T00:00:00Z");
    let problem = |change: fn(&mut CertificateParams)| {
        let (certificate, key) = made(change);
        let loaded = Dir::new().pair(&certificate, &key).load().unwrap();
        loaded.about.problem(now).unwrap_or_default()
    };
    let authority = problem(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(authority.contains("is that of an authority"), "{authority}");
    let client = problem(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    assert!(client.contains("is not made for servers"), "{client}");
    assert_eq!(problem(|params| params.is_ca = IsCa::ExplicitNoCa), "");
}

#[test]
fn files_that_cannot_be_used_are_told_apart() {
    let dir = Dir::new();
    let (certificate, key) = sound();
    let (_, other_key) = sound();
    let hint = refused(
        &dir.pair(&key, &certificate),
        "cert.pem` holds no certificate: found a private key",
    );
    assert!(hint.contains("right order"), "{hint}");
    refused(
        &dir.pair(&certificate, &certificate),
        "key.pem` holds no private key that can be used: found a certificate",
    );
    refused(&dir.pair("", &key), "found nothing");
    refused(&dir.pair("DER or a page", &key), "found no PEM");
    let pem = |kind: &str, text: &str| {
        format!("-----BEGIN {kind} PRIVATE KEY-----\n{text}\n-----END {kind} PRIVATE KEY-----\n")
    };
    let of_openssl = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,7DAF\n\nAAAA";
    for locked in [pem("ENCRYPTED", "AAAA"), pem("RSA", of_openssl)] {
        let hint = refused(
            &dir.pair(&certificate, &locked),
            "found a private key that a passphrase protects",
        );
        assert!(hint.contains("openssl pkey -in "), "{hint}");
    }
    let hint = refused(
        &dir.pair(&certificate, &pem("OPENSSH", "AAAA")),
        "found a private key of SSH",
    );
    assert!(hint.contains("--tls-generate"), "{hint}");
    refused(
        &dir.pair(&certificate, &other_key),
        "does not belong to the certificate",
    );
    let broken = certificate.replace("MII", "AAA");
    refused(&dir.pair(&broken, &key), "the certificate in");
    let cut = &certificate[..certificate.len() / 2];
    refused(&dir.pair(cut, &key), "cert.pem");
    let broken = key.replace("MIG", "AAA");
    refused(&dir.pair(&certificate, &broken), "the private key in");
    refused(
        &dir.pair(&"x".repeat(300_000), &key),
        "cert.pem` cannot be read",
    );
    let mut missing = dir.pair(&certificate, &key);
    missing.key = dir.0.path().join("none.pem");
    let hint = refused(&missing, "none.pem` cannot be read");
    assert!(hint.contains("ls -l "), "{hint}");
    missing.key = dir.0.path().to_owned();
    refused(&missing, "cannot be read");
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_and_nobody_waits_for_its_writer() {
    let dir = Dir::new();
    let (certificate, key) = sound();
    let files = dir.pair(&certificate, &key);
    fs::remove_file(&files.certificate).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(&files.certificate)
        .status();
    assert!(made.unwrap().success());
    let error = files.load().unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "it is no ordinary file");
}

#[test]
fn a_key_that_everybody_may_read_is_refused_and_one_for_a_group_is_not() {
    let dir = Dir::new();
    let (certificate, key) = sound();
    let files = dir.pair(&certificate, &key);
    let mode = |mode| fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
    for sound in [0o600, 0o400, 0o640, 0o440] {
        mode(sound);
        files.load().unwrap();
    }
    for (open, shown) in [
        (0o644, "0644"),
        (0o604, "0604"),
        (0o660, "0660"),
        (0o622, "0622"),
    ] {
        mode(open);
        let hint = refused(&files, &format!("has mode {shown}: expected 0600, or 0640"));
        assert!(hint.starts_with("chmod 600 "), "{hint}");
    }
}
