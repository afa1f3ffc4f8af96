//! A certificate and its key, from two files in PEM: read, checked against each other, and judged.
//!
//! When a certificate holds, and whether clients will take it, is asked of the verifier that clients
//! use. So there is no second reader of X.509 here that could be of another opinion.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use sha2::{Digest as _, Sha256};

use super::provider;

/// Bytes of one file: a long chain has some ten thousand.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// A certificate that ends sooner than this is worth a warning: certbot renews 30 days before.
const ENDS_SOON: Duration = Duration::from_hours(14 * 24);

/// Why there is no HTTPS. Each names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("`{}` cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("`{}` cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read the key, or change it.
    #[error("the key `{}` has mode {mode:04o}: expected {expected}", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The modes that are taken.
        expected: &'static str,
    },
    /// A file holds no certificate.
    #[error("`{}` holds no certificate: found {found}, expected PEM (`-----BEGIN CERTIFICATE-----`)", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// A file holds no private key.
    #[error("`{}` holds no private key that can be used: found {found}, expected PEM (`-----BEGIN PRIVATE KEY-----`) without a passphrase", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// A certificate or a key is damaged, or of a kind that TLS does not know.
    #[error("the {what} in `{}` cannot be used", path.display())]
    Content {
        /// `certificate` or `private key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What was wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The key is another certificate's.
    #[error("the key `{}` does not belong to the certificate `{}`", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("a certificate for {names} cannot be made")]
    Make {
        /// For which names.
        names: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl TlsError {
    /// Returns what to type or to look at next, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Mode { path, .. } => format!("chmod 600 {}", path.display()),
            Self::Read { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                format!(
                    "the gateway's user has to be allowed to read it: ls -l {}",
                    path.display()
                )
            }
            Self::Read { path, source } if source.kind() == io::ErrorKind::NotFound => format!(
                "is it elsewhere? ls -l {}; a certificate of its own: --tls-generate",
                path.display()
            ),
            Self::NoKey { path, found } if *found == LOCKED => format!(
                "nobody is there to type it when the gateway starts; without it: (umask 77; openssl pkey -in {} -out <new file>)",
                path.display()
            ),
            Self::NoKey { found, .. } if *found == OF_SSH => {
                "TLS takes the key that the certificate was made with; a certificate of its own: --tls-generate"
                    .to_owned()
            }
            Self::NoCertificate { .. } | Self::NoKey { .. } => {
                "are the two files in the right order? --tls-cert <certificate chain> --tls-key <private key>"
                    .to_owned()
            }
            Self::Mismatch { certificate, .. } => format!(
                "compare: openssl x509 -noout -pubkey -in {}, and openssl pkey -pubout -in <key>",
                certificate.display()
            ),
            Self::Content { what: "private key", path, .. } => format!(
                "look at it: openssl pkey -noout -text -in {}",
                path.display()
            ),
            Self::Content { path, .. } => format!(
                "look at it: openssl x509 -noout -text -in {}",
                path.display()
            ),
            Self::Read { .. } | Self::Write { .. } | Self::Make { .. } => return None,
        };
        Some(hint)
    }
}

/// What is known of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Certificate {
    /// Its file.
    pub path: PathBuf,
    /// SHA-256 of it as browsers and `openssl x509 -fingerprint -sha256` show it: `AB:CD:…`.
    pub fingerprint: String,
    /// When its time begins.
    pub not_before: Timestamp,
    /// When its time ends.
    pub not_after: Timestamp,
    /// Why nodes, and other clients that look as closely, refuse it whatever the time is: it is that
    /// of an authority, or not made for servers.
    pub objection: Option<String>,
}

/// How a certificate stands at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Its time has not begun.
    NotYet,
    /// It holds.
    Holds,
    /// It holds for less than 14 days.
    EndsSoon,
    /// Its time is over.
    Expired,
}

impl Certificate {
    /// Returns how it stands at this moment.
    pub fn validity(&self, now: Timestamp) -> Validity {
        let soon = now.saturating_add(ENDS_SOON).unwrap_or(Timestamp::MAX);
        if now < self.not_before {
            Validity::NotYet
        } else if now > self.not_after {
            Validity::Expired
        } else if soon > self.not_after {
            Validity::EndsSoon
        } else {
            Validity::Holds
        }
    }

    /// Returns why clients refuse it at this moment, in words; `None` where they do not for what it
    /// says itself.
    pub fn problem(&self, now: Timestamp) -> Option<String> {
        let path = self.path.display();
        match self.validity(now) {
            Validity::NotYet => Some(format!(
                "the certificate `{path}` is not valid before {}",
                seconds(self.not_before)
            )),
            Validity::Expired => Some(format!(
                "the certificate `{path}` has expired on {}",
                seconds(self.not_after)
            )),
            Validity::Holds | Validity::EndsSoon => self
                .objection
                .as_ref()
                .map(|objection| format!("the certificate `{path}` {objection}")),
        }
    }
}

/// A moment without the parts of its second.
fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// A certificate that can be shown.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) about: Certificate,
    pub(super) key: Arc<CertifiedKey>,
}

/// Two files in PEM: a certificate with its chain, the server's first, and its private key.
#[derive(Debug, Clone)]
pub(super) struct PairFiles {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// What tells one state of two files from another without reading them. Links are followed: certbot
/// turns one over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamps([Option<(u64, u64, SystemTime)>; 2]);

impl PairFiles {
    /// Reads and checks both.
    pub(super) fn load(&self) -> Result<Loaded, TlsError> {
        let chain = self.chain()?;
        let key = rustls::crypto::ring::sign::any_supported_type(&self.private_key()?)
            .map_err(|source| content("private key", &self.key, source))?;
        let leaf = chain[0].clone();
        let bad = |source| content("certificate", &self.certificate, source);
        ParsedCertificate::try_from(&leaf).map_err(bad)?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            // A kind of key that does not tell its public half cannot be compared.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => {
                return Err(TlsError::Mismatch {
                    certificate: self.certificate.clone(),
                    key: self.key.clone(),
                });
            }
        }
        let about = judge(&self.certificate, &leaf).map_err(bad)?;
        Ok(Loaded {
            about,
            key: Arc::new(certified),
        })
    }

    /// Returns how both files are now.
    pub(super) fn stamps(&self) -> Stamps {
        let stamp = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.ino(), found.size(), found.modified().ok()?))
        };
        Stamps([stamp(&self.certificate), stamp(&self.key)])
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let text = read(&self.certificate, None)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let chain = chain.map_err(|source| content("certificate", &self.certificate, source))?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate {
                path: self.certificate.clone(),
                found: found_in(&text),
            });
        }
        Ok(chain)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let text = read(&self.key, Some(GROUP_MAY_READ))?;
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            let found = found_in(&text);
            match error {
                rustls::pki_types::pem::Error::NoItemsFound => {}
                // The headers of a locked key are no base64.
                _ if found == LOCKED => {}
                source => return content("private key", &self.key, source),
            }
            TlsError::NoKey {
                path: self.key.clone(),
                found,
            }
        })
    }
}

/// Bits of a mode that a private key must not have, and the modes that are expected instead.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyMode {
    forbidden: u32,
    expected: &'static str,
}

/// A key that somebody else manages: some distributions let a group of servers read them all.
const GROUP_MAY_READ: KeyMode = KeyMode {
    forbidden: 0o027,
    expected: "0600, or 0640 where a group of its own reads it",
};

/// A key of ours.
pub(super) const OWNER_ALONE: KeyMode = KeyMode {
    forbidden: 0o077,
    expected: "0600",
};

/// Reads a file whole; of a key only where its mode keeps others out.
pub(super) fn read(path: &Path, mode: Option<KeyMode>) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    // A pipe is opened without waiting for whoever writes to it, and then refused.
    let file = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        let words = "it is no ordinary file";
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, words)));
    }
    if let Some(allowed) = mode.filter(|allowed| found.mode() & allowed.forbidden != 0) {
        return Err(TlsError::Mode {
            path: path.to_owned(),
            mode: found.mode() & 0o7777,
            expected: allowed.expected,
        });
    }
    let mut text = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text);
    read.map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let words = format!("more than {FILE_BYTES_MAX} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, words)));
    }
    Ok(text)
}

pub(super) fn content<E>(what: &'static str, path: &Path, source: E) -> TlsError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    TlsError::Content {
        what,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// What a key is that nobody unlocks.
const LOCKED: &str = "a private key that a passphrase protects";

/// What a key is that `ssh-keygen` made.
const OF_SSH: &str = "a private key of SSH";

/// Says what a file holds in place of what was looked for.
fn found_in(text: &[u8]) -> &'static str {
    let has = |words: &str| {
        let words = words.as_bytes();
        text.windows(words.len()).any(|found| found == words)
    };
    if text.is_empty() {
        return "nothing";
    }
    // PKCS #8 (RFC 5958), and what OpenSSL wrote before (RFC 1421, 4.6.1.1).
    if has("-----BEGIN ENCRYPTED PRIVATE KEY-----") || has("\nProc-Type: 4,ENCRYPTED") {
        return LOCKED;
    }
    if has("-----BEGIN OPENSSH PRIVATE KEY-----") {
        return OF_SSH;
    }
    match <(SectionKind, Vec<u8>)>::pem_slice_iter(text).next() {
        Some(Ok((SectionKind::Certificate, _))) => "a certificate",
        Some(Ok((
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey,
            _,
        ))) => "a private key",
        Some(Ok((SectionKind::Csr, _))) => "a request for a certificate",
        Some(_) => "something else in PEM",
        None => "no PEM",
    }
}

/// Asks the verifier of clients when a certificate holds, and what it has against it.
fn judge(path: &Path, leaf: &CertificateDer<'static>) -> Result<Certificate, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(leaf.clone())?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let name = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
    let at = |time| {
        let verdict = verifier.verify_server_cert(leaf, &[], &name, &[], time);
        match verdict {
            Err(rustls::Error::InvalidCertificate(error)) => Ok(Some(error)),
            Err(error) => Err(error),
            Ok(_) => Ok(None),
        }
    };
    let first = UnixTime::since_unix_epoch(Duration::ZERO);
    let not_before = match at(first)? {
        Some(CertificateError::NotValidYetContext { not_before, .. }) => not_before,
        Some(CertificateError::BadEncoding) => return Err(CertificateError::BadEncoding.into()),
        _ => first,
    };
    // Later than any date that a certificate can hold (RFC 5280, 4.1.2.5: the year 9999).
    let last = UnixTime::since_unix_epoch(Duration::from_secs(1 << 40));
    let not_after = match at(last)? {
        Some(CertificateError::ExpiredContext { not_after, .. }) => not_after,
        Some(error) => return Err(error.into()),
        None => last,
    };
    let objection = at(not_after)?.and_then(|error| match error {
        // Who issued it, and for whom, is for clients to judge.
        CertificateError::UnknownIssuer
        | CertificateError::NotValidForName
        | CertificateError::NotValidForNameContext { .. }
        | CertificateError::BadSignature => None,
        CertificateError::Other(error) if error.to_string().contains("CaUsedAsEndEntity") => {
            Some("is that of an authority (`CA:TRUE`), which no server may show itself".to_owned())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            Some("is not made for servers (`extendedKeyUsage`)".to_owned())
        }
        other => Some(format!("is refused by clients: {other}")),
    });
    Ok(Certificate {
        path: path.to_owned(),
        fingerprint: fingerprint(leaf),
        not_before: timestamp(not_before),
        not_after: timestamp(not_after),
        objection,
    })
}

fn timestamp(time: UnixTime) -> Timestamp {
    let seconds = i64::try_from(time.as_secs()).ok();
    let moment = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    moment.unwrap_or(Timestamp::MAX)
}

fn fingerprint(certificate: &[u8]) -> String {
    let digest = Sha256::digest(certificate);
    let bytes: Vec<_> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests;
