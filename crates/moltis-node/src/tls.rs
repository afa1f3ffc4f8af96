//! TLS towards a gateway, as nodes and administration commands speak it: who is trusted, and what went
//! wrong, told apart by what a person does next.
//!
//! The system's roots are trusted, and those of one file that a person names. No switch turns the
//! check off.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moltis_identity::files;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore};
use serde::{Deserialize, Serialize};

/// Bytes of a file of roots, and of what is kept of it.
const ROOTS_BYTES_MAX: usize = 64 * 1024;

/// Certificates that are trusted beside the system's roots: text in PEM, one at least, at most 64 KiB.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExtraRoots {
    pem: String,
    count: usize,
}

/// Why a text or a file holds no roots.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// The file cannot be read.
    #[error("`{}` cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is none in it.
    #[error("no certificate in it: expected PEM (`-----BEGIN CERTIFICATE-----`)")]
    None,
    /// More than a few certificates.
    #[error("{found} bytes: at most {ROOTS_BYTES_MAX}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// A private key: that has to stay where it was made.
    #[error("a private key is in it: expected certificates alone")]
    PrivateKey,
    /// One of them is damaged.
    #[error("a certificate in it is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ExtraRoots {
    /// Reads the certificates of a file in PEM. What stands between them is left out.
    ///
    /// # Errors
    /// [`RootsError`].
    pub fn read(path: &Path) -> Result<Self, RootsError> {
        let failed = |source| RootsError::Read {
            path: path.to_owned(),
            source,
        };
        let file = files::open(path, File::options().read(true)).map_err(failed)?;
        let mut text = Vec::new();
        let most = ROOTS_BYTES_MAX as u64 + 1;
        file.take(most).read_to_end(&mut text).map_err(failed)?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    /// Takes the certificates out of a text.
    ///
    /// # Errors
    /// [`RootsError`], but for [`RootsError::Read`].
    pub fn parse(text: &str) -> Result<Self, RootsError> {
        if text.len() > ROOTS_BYTES_MAX {
            return Err(RootsError::TooLong { found: text.len() });
        }
        if text.contains("PRIVATE KEY-----") {
            return Err(RootsError::PrivateKey);
        }
        let roots = Self {
            count: 0,
            pem: certificates(text),
        };
        let mut store = RootCertStore::empty();
        for certificate in roots.certificates() {
            let certificate = certificate.map_err(|error| RootsError::Damaged(error.into()))?;
            let added = store.add(certificate);
            added.map_err(|error| RootsError::Damaged(error.into()))?;
        }
        match store.len() {
            0 => Err(RootsError::None),
            count => Ok(Self { count, ..roots }),
        }
    }

    fn certificates(
        &self,
    ) -> impl Iterator<Item = Result<CertificateDer<'static>, rustls::pki_types::pem::Error>> {
        CertificateDer::pem_slice_iter(self.pem.as_bytes())
    }
}

/// Returns the lines of a text that belong to certificates.
fn certificates(text: &str) -> String {
    let mut kept = String::new();
    let mut is_inside = false;
    for line in text.lines().map(str::trim) {
        is_inside |= line == "-----BEGIN CERTIFICATE-----";
        if is_inside {
            kept.push_str(line);
            kept.push('\n');
        }
        is_inside &= line != "-----END CERTIFICATE-----";
    }
    kept
}

impl fmt::Debug for ExtraRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExtraRoots({} certificates)", self.count)
    }
}

impl TryFrom<String> for ExtraRoots {
    type Error = RootsError;

    fn try_from(text: String) -> Result<Self, RootsError> {
        Self::parse(&text)
    }
}

impl From<ExtraRoots> for String {
    fn from(roots: ExtraRoots) -> Self {
        roots.pem
    }
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The certificate is another host's.
    #[error("its certificate is not for `{host}`{}", for_others(names))]
    WrongName {
        /// The host that was dialled.
        host: String,
        /// What the certificate names.
        names: Vec<String>,
    },
    /// The certificate's time is over.
    #[error("its certificate has expired")]
    Expired,
    /// The certificate's time has not begun.
    #[error("its certificate is not valid yet")]
    NotYetValid,
    /// Nobody whom this machine trusts has issued the certificate.
    #[error("its certificate is not signed by anybody whom this machine trusts")]
    UnknownIssuer,
    /// An authority's own certificate where that of a server belongs.
    #[error("its certificate is that of an authority (`CA:TRUE`), which no server may show itself")]
    Authority,
    /// Anything else that is wrong with the certificate.
    #[error("its certificate is not accepted: {0}")]
    Certificate(CertificateError),
    /// Something without TLS answers.
    #[error("what answers there does not speak TLS")]
    NotTls,
    /// Versions before 1.2.
    #[error("it speaks no version of TLS that is safe: expected 1.2 or 1.3")]
    OldVersion,
    /// This system has no roots, and none were named.
    #[error("this system's root certificates cannot be used: {0}")]
    NoRoots(String),
    /// Anything else.
    #[error("the TLS handshake failed: {0}")]
    Handshake(rustls::Error),
}

impl TlsError {
    /// Finds the TLS error in what a connection failed with; `None` where it is another one. `host`
    /// is the host that was dialled.
    pub fn find(error: &io::Error, host: &str) -> Option<Self> {
        let found = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(Self::of(found.clone(), host))
    }

    /// Sorts an error of TLS.
    pub fn of(error: rustls::Error, host: &str) -> Self {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(error) => Self::of_certificate(error, host),
            E::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::MessageTooLarge,
            ) => Self::NotTls,
            E::AlertReceived(AlertDescription::ProtocolVersion)
            | E::InvalidMessage(InvalidMessage::UnknownProtocolVersion)
            | E::PeerIncompatible(_) => Self::OldVersion,
            other => Self::Handshake(other),
        }
    }

    fn of_certificate(error: CertificateError, host: &str) -> Self {
        match error {
            CertificateError::NotValidForName => Self::WrongName {
                host: host.to_owned(),
                names: Vec::new(),
            },
            CertificateError::NotValidForNameContext { presented, .. } => Self::WrongName {
                host: host.to_owned(),
                names: presented.iter().map(|name| bare(name)).collect(),
            },
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::Other(error) if error.to_string().contains("CaUsedAsEndEntity") => {
                Self::Authority
            }
            other => Self::Certificate(other),
        }
    }

    /// Returns what to type or to look at next. `instead` is the same address without TLS.
    pub fn hint(&self, instead: &str) -> Option<String> {
        let hint = match self {
            Self::WrongName { .. } => {
                "dial a name that is in it, or have a certificate made that names this one".to_owned()
            }
            Self::Expired => {
                "have it renewed there; and is the clock of this machine right? date -u".to_owned()
            }
            Self::NotYetValid => "is the clock of this machine right? date -u".to_owned(),
            Self::UnknownIssuer => {
                "if the gateway made it itself, or an authority of your own did: copy the certificate here and add --tls-ca <file>".to_owned()
            }
            Self::Authority => {
                "have one made for the server, not for an authority (`CA:FALSE`); moltis gateway --tls-generate makes a good one".to_owned()
            }
            Self::NotTls => format!("check host and port; for a gateway without TLS: {instead}"),
            Self::OldVersion => "bring what answers there up to date".to_owned(),
            Self::NoRoots(_) => {
                "install `ca-certificates`, or name a certificate: --tls-ca <file>".to_owned()
            }
            Self::Certificate(_) | Self::Handshake(_) => return None,
        };
        Some(hint)
    }
}

fn for_others(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let shown: Vec<_> = names
        .iter()
        .take(5)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = if names.len() > shown.len() {
        ", …"
    } else {
        ""
    };
    format!(", but for {}{more}", shown.join(", "))
}

/// Takes a name out of how the verifier shows it: `DnsName("gw.lan")`, `IpAddress(192.0.2.1)`. A
/// stranger wrote it, and it is printed.
fn bare(shown: &str) -> String {
    let inner = shown.split_once('(').map_or(shown, |(_, rest)| rest);
    let inner = inner.strip_suffix(')').unwrap_or(inner).trim_matches('"');
    inner
        .chars()
        .take(80)
        .flat_map(char::escape_debug)
        .collect()
}

/// Returns a configuration that trusts the system's roots, and `extra`. It lives as long as a connection
/// that was made by it, and takes some 200 KiB where a system has 150 roots.
///
/// # Errors
/// [`TlsError::NoRoots`] where there are none at all.
pub fn client_config(extra: Option<&ExtraRoots>) -> Result<Arc<ClientConfig>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if let Some(extra) = extra {
        roots.add_parsable_certificates(extra.certificates().flatten());
    }
    if roots.is_empty() {
        let words = match found.errors.first() {
            Some(error) => error.to_string(),
            None => "there are none".to_owned(),
        };
        return Err(TlsError::NoRoots(words));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Handshake)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl req -x509`, for `gw.example`; its key was thrown away.
    const CERTIFICATE: &str = include_str!("tls/example.pem");

    #[test]
    fn certificates_are_taken_out_of_a_text_and_nothing_else_is() {
        let text = format!("who made it\r\n{CERTIFICATE}\nand\n{CERTIFICATE}");
        let roots = ExtraRoots::parse(&text).unwrap();
        assert_eq!(roots.count, 2);
        assert_eq!(String::from(roots.clone()), CERTIFICATE.repeat(2));
        assert_eq!(format!("{roots:?}"), "ExtraRoots(2 certificates)");
        let json = serde_json::to_string(&roots).unwrap();
        assert_eq!(serde_json::from_str::<ExtraRoots>(&json).unwrap(), roots);
    }

    #[test]
    fn what_holds_no_roots_is_told() {
        let said = |text: &str| ExtraRoots::parse(text).unwrap_err().to_string();
        assert!(said("").contains("no certificate in it"));
        assert!(said("<html>").contains("no certificate in it"));
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(said(&format!("{CERTIFICATE}{key}")).contains("private key"));
        assert!(said(&CERTIFICATE.replace("MII", "AAA")).contains("damaged"));
        assert!(said(&"x".repeat(70_000)).contains("at most 65536"));
        let missing = ExtraRoots::read(Path::new("/nonexistent.pem")).unwrap_err();
        assert_eq!(missing.to_string(), "`/nonexistent.pem` cannot be read");
        assert!(ExtraRoots::read(Path::new("/")).is_err());
    }

    #[test]
    fn errors_are_sorted_by_what_a_person_mends() {
        let said = |error: rustls::Error| TlsError::of(error, "gw.lan").to_string();
        let certificate = |error| said(rustls::Error::InvalidCertificate(error));
        assert!(certificate(CertificateError::Expired).contains("has expired"));
        assert!(certificate(CertificateError::NotValidYet).contains("not valid yet"));
        assert!(certificate(CertificateError::UnknownIssuer).contains("trusts"));
        assert!(certificate(CertificateError::Revoked).contains("not accepted"));
        assert!(certificate(CertificateError::NotValidForName).contains("not for `gw.lan`"));
        let old = rustls::Error::AlertReceived(AlertDescription::ProtocolVersion);
        assert!(said(old).contains("no version of TLS"));
        let plain = InvalidMessage::InvalidContentType.into();
        assert!(said(plain).contains("does not speak TLS"));
        for (shown, name) in [
            ("DnsName(\"gw.lan\")", "gw.lan"),
            ("IpAddress(192.0.2.1)", "192.0.2.1"),
            ("DnsName(\"a\u{1b}[2Jb\")", "a\\u{1b}[2Jb"),
        ] {
            assert_eq!(bare(shown), name);
        }
    }
}
