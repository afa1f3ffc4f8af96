//! TLS by the roots that the system trusts. No switch turns the check off.

use std::io;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// Returns a configuration that trusts the system's roots; read anew for each connection, so that
/// they take no memory while it stands.
pub(super) fn config() -> io::Result<Arc<ClientConfig>> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let words = match found.errors.first() {
            Some(error) => format!("this system's root certificates cannot be read: {error}"),
            None => "this system has no root certificates: install `ca-certificates`".to_owned(),
        };
        return Err(io::Error::new(io::ErrorKind::NotFound, words));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
