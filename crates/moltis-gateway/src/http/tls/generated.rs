//! A certificate that the gateway makes for itself, in two files of its directory.
//!
//! It signs itself and is no authority: who trusts it trusts this gateway and nobody else. The key
//! stays the same when the certificate is renewed, and so does its subject; Moltis's own clients, which
//! take a certificate for a name and a key, go on with the file that they were given once.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::ServerName;

use super::certificate::{Loaded, OWNER_ALONE, PairFiles, TlsError, content, read};

/// The certificate's file below the gateway's directory.
const CERTIFICATE: &str = "gateway_tls.pem";

/// Its key's.
pub(crate) const KEY: &str = "gateway_tls_key.pem";

/// Who it says that it is. The same in each: see the front page.
const SUBJECT: &str = "Moltis gateway";

/// Days that it holds: what browsers take.
const DAYS: i64 = 365;

/// It is made anew this long before its end.
const RENEW_BEFORE: Duration = Duration::from_hours(30 * 24);

/// Names in one certificate.
const NAMES_MAX: usize = 64;

/// A certificate that is made when it is needed.
#[derive(Debug)]
pub(super) struct Generated {
    files: PairFiles,
    names: Vec<String>,
}

impl Generated {
    /// Names the files in `dir` and the names that have to be in the certificate; loopback always
    /// is. What is no host's name or address is left out.
    pub(super) fn new(dir: &Path, names: impl IntoIterator<Item = String>) -> Self {
        let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut all: Vec<String> = Vec::new();
        for name in loopback.into_iter().chain(names) {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let is_name = ServerName::try_from(name.as_str()).is_ok();
            if is_name && !all.contains(&name) && all.len() < NAMES_MAX {
                all.push(name);
            }
        }
        Self {
            files: PairFiles {
                certificate: dir.join(CERTIFICATE),
                key: dir.join(KEY),
            },
            names: all,
        }
    }

    pub(super) fn files(&self) -> &PairFiles {
        &self.files
    }

    /// Returns the certificate that is there, or a new one where there is none, where it lacks a
    /// name, or where its time is nearly over.
    pub(super) fn provide(&self, now: Timestamp) -> Result<Loaded, TlsError> {
        let key = self.key()?;
        match self.files.load() {
            Ok(loaded) if self.fits(&loaded, now) => Ok(loaded),
            // What cannot be used holds nothing that is worth keeping: the key is another file.
            Ok(_) | Err(_) => {
                self.make(&key, now)?;
                self.files.load()
            }
        }
    }

    /// Returns whether a certificate that was made here should be made anew.
    pub(super) fn is_due(&self, loaded: &Loaded, now: Timestamp) -> bool {
        !self.fits(loaded, now)
    }

    fn fits(&self, loaded: &Loaded, now: Timestamp) -> bool {
        let renew_at = loaded.about.not_after.saturating_sub(RENEW_BEFORE);
        let in_time = loaded.about.not_before <= now && renew_at.is_ok_and(|then| now < then);
        in_time && self.names.iter().all(|name| loaded.covers(name))
    }

    /// Reads the key, or makes it where there is none.
    fn key(&self) -> Result<KeyPair, TlsError> {
        let path = &self.files.key;
        match read(path, Some(OWNER_ALONE)) {
            Ok(text) => {
                let text = String::from_utf8(text);
                let text = text.map_err(|error| content("private key", path, error))?;
                KeyPair::from_pem(&text).map_err(|error| content("private key", path, error))
            }
            Err(TlsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(|error| self.not_made(error))?;
                write(path, key.serialize_pem().as_bytes())?;
                Ok(key)
            }
            Err(error) => Err(error),
        }
    }

    fn make(&self, key: &KeyPair, now: Timestamp) -> Result<(), TlsError> {
        let made = self.params(now).and_then(|params| params.self_signed(key));
        let made = made.map_err(|error| self.not_made(error))?;
        write(&self.files.certificate, made.pem().as_bytes())?;
        tracing::info!(
            path = %self.files.certificate.display(),
            names = self.names.join(" "),
            "a certificate was made"
        );
        Ok(())
    }

    fn params(&self, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
        let today = now.to_zoned(TimeZone::UTC).date();
        // Clocks differ, and a machine that is a little behind shall not refuse it.
        let from = today.saturating_sub(1.day());
        let until = today.saturating_add(DAYS.days());
        let date = |day: jiff::civil::Date| {
            let part = |part: i8| part.unsigned_abs();
            rcgen::date_time_ymd(day.year().into(), part(day.month()), part(day.day()))
        };
        let mut params = CertificateParams::new(self.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, SUBJECT);
        (params.not_before, params.not_after) = (date(from), date(until));
        // Browsers refuse two certificates of one issuer with one number.
        let serial: [u8; 16] = moltis_identity::random::bytes();
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params)
    }

    fn not_made(&self, error: rcgen::Error) -> TlsError {
        TlsError::Make {
            names: self.names.join(", "),
            source: error.into(),
        }
    }
}

/// Writes a file whole or not at all, mode 0600.
fn write(path: &Path, text: &[u8]) -> Result<(), TlsError> {
    let beside = path.with_extension("new");
    let written = || {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let options = &mut File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        // The name has to survive a power cut too: clients that were given a copy know this key alone.
        path.parent()
            .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    written().map_err(|source| TlsError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn generated(dir: &Path, names: &[&str]) -> Generated {
        Generated::new(dir, names.iter().map(|&name| name.to_owned()))
    }

    #[test]
    fn what_fits_is_used_again_and_what_does_not_is_made_anew_under_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let now = at("2026-01-02T03:04:05Z");
        let first = generated(dir.path(), &["192.0.2.5", "Gw.Lan.", "not a name"]);
        let made = first.provide(now).unwrap();
        for name in ["localhost", "127.0.0.1", "::1", "192.0.2.5", "gw.lan"] {
            assert!(made.covers(name), "{name}");
        }
        assert!(!made.covers("192.0.2.6") && !made.covers("evil.example"));
        assert_eq!(made.about.not_before, at("2026-01-01T00:00:00Z"));
        assert_eq!(made.about.not_after, at("2027-01-02T00:00:00Z"));
        assert_eq!(made.about.problem(now), None);
        for file in [CERTIFICATE, KEY] {
            let mode = fs::metadata(dir.path().join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o7777, 0o600, "{file}");
        }
        let key = || fs::read(dir.path().join(KEY)).unwrap();
        let key_before = key();

        let again = first.provide(at("2026-11-02T00:00:00Z")).unwrap();
        assert_eq!(again.about, made.about, "it fits");
        let renewed = first.provide(at("2026-12-20T00:00:00Z")).unwrap();
        assert_ne!(renewed.about.fingerprint, made.about.fingerprint, "it ends");
        let wider = generated(dir.path(), &["192.0.2.6"]);
        let wider = wider.provide(at("2026-12-20T00:00:00Z")).unwrap();
        assert_ne!(wider.about.fingerprint, renewed.about.fingerprint, "a name");
        assert!(wider.covers("192.0.2.6"));
        assert_eq!(key(), key_before);
    }

    #[test]
    fn a_damaged_certificate_is_made_anew_and_a_damaged_key_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let now = at("2026-01-02T03:04:05Z");
        let ours = generated(dir.path(), &[]);
        let made = ours.provide(now).unwrap();
        fs::write(dir.path().join(CERTIFICATE), "x").unwrap();
        let again = ours.provide(now).unwrap();
        assert_ne!(again.about.fingerprint, made.about.fingerprint);

        fs::write(dir.path().join(KEY), "mine").unwrap();
        let error = ours.provide(now).unwrap_err();
        assert!(error.to_string().contains(KEY), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join(KEY)).unwrap(), "mine");
        fs::set_permissions(dir.path().join(KEY), fs::Permissions::from_mode(0o640)).unwrap();
        let error = ours.provide(now).unwrap_err();
        assert!(
            matches!(error, TlsError::Mode { mode: 0o640, .. }),
            "{error}"
        );
    }
}
