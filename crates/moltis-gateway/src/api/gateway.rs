//! The gateway itself: what it is and where it listens.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Answer of `GET gateway`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gateway {
    /// Its version.
    pub version: String,
    /// `SHA256:…` of its key.
    pub fingerprint: String,
    /// Addresses and ports that it listens on, as `127.0.0.1:9090`; none while it serves only its
    /// Unix socket.
    pub addresses: Vec<String>,
    /// The certificate of HTTPS; `None` where all is plain HTTP.
    pub certificate: Option<Certificate>,
    /// Since when it runs.
    pub started_at: Timestamp,
}

/// The certificate that its addresses show by TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Certificate {
    /// SHA-256 of it, as browsers show it: `AB:CD:…`.
    pub fingerprint: String,
    /// When its time ends.
    pub expires_at: Timestamp,
}
