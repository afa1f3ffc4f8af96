//! HTTPS left out: the same words as with the feature `tls`, for a certificate that cannot be.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::TlsConfig;

/// The certificate of this gateway; there is none.
#[derive(Debug, Clone)]
pub struct Tls(Infallible);

/// Why there is no HTTPS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// This program was built without it.
    #[error("a certificate is configured, and this program was built without HTTPS")]
    NotBuilt,
}

impl TlsError {
    /// Returns what to do next.
    pub fn hint(&self) -> Option<String> {
        Some("build it with the feature `tls` of moltis-gateway".to_owned())
    }
}

/// How HTTPS stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsStatus {
    /// The certificate in use.
    pub certificate: Certificate,
    /// The gateway made it itself.
    pub is_own: bool,
    /// Why a newer one is not in use, in words.
    pub trouble: Option<String>,
}

/// What is known of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Certificate {
    /// Its file.
    pub path: PathBuf,
    /// SHA-256 of it.
    pub fingerprint: String,
    /// When its time begins.
    pub not_before: Timestamp,
    /// When its time ends.
    pub not_after: Timestamp,
    /// Why clients refuse it whatever the time is.
    pub objection: Option<String>,
    never: Infallible,
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

/// What a peer turned out to speak.
#[derive(Debug)]
#[expect(dead_code, reason = "nobody opens a connection without a certificate")]
pub(crate) enum Opened {
    /// Plain HTTP.
    Plain(TcpStream),
    /// TLS.
    Tls(Box<TcpStream>),
}

impl Certificate {
    /// Returns how it stands at this moment.
    pub fn validity(&self, _now: Timestamp) -> Validity {
        match self.never {}
    }

    /// Returns why clients refuse it at this moment.
    pub fn problem(&self, _now: Timestamp) -> Option<String> {
        match self.never {}
    }
}

impl Tls {
    pub(crate) fn open(
        _config: &TlsConfig,
        _dir: &Path,
        _hosts: impl IntoIterator<Item = String>,
        _now: Timestamp,
    ) -> Result<Self, TlsError> {
        Err(TlsError::NotBuilt)
    }

    /// Returns how it stands.
    pub fn status(&self) -> TlsStatus {
        match self.0 {}
    }

    /// Returns whether the certificate names this host.
    pub fn covers(&self, _host: &str) -> bool {
        match self.0 {}
    }

    #[expect(clippy::unused_async, reason = "the same words as with the feature")]
    pub(crate) async fn open_connection(&self, _stream: TcpStream) -> io::Result<Opened> {
        match self.0 {}
    }

    #[expect(clippy::unused_async, reason = "the same words as with the feature")]
    pub(crate) async fn keep_up(self, _clock: Clock, _stop: CancellationToken) {
        match self.0 {}
    }
}
