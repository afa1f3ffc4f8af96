//! Authorities and certificates of these tests.

use std::path::{Path, PathBuf};

use jiff::{Timestamp, ToSpan as _};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Somebody who signs certificates.
pub(super) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// When a certificate holds: the first and the last day.
pub(super) type Days = (Timestamp, Timestamp);

/// From yesterday, for long enough that nobody warns.
pub(super) fn now() -> Days {
    days(-1, 30)
}

/// From so many days after today to so many others; negative ones are past.
pub(super) fn days(from: i64, until: i64) -> Days {
    let day = |days: i64| Timestamp::now() + (24 * days).hours();
    (day(from), day(until))
}

fn params(names: &[&str], (from, until): Days) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = std::time::SystemTime::from(from).into();
    params.not_after = std::time::SystemTime::from(until).into();
    params
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params(&[], days(-30, 30));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// Returns a certificate for these names and its key, in PEM.
    pub(super) fn issue(&self, names: &[&str], days: Days) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names, days).signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes its own certificate.
    pub(super) fn write(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, &self.pem).unwrap();
        path
    }
}

/// Returns what `openssl req -x509` makes by default: an authority's certificate that names a server.
pub(super) fn of_authority(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = params(names, now());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, key.serialize_pem())
}
