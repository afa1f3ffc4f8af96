//! TLS to a gateway elsewhere: set up when the first connection needs it, and then for all of them.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use moltis_node::tls::{ExtraRoots, TlsError, client_config};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::{Address, Scheme};
use super::{ApiError, Cut};
use crate::failure::{Failure, usage};

/// Whom a client trusts.
#[derive(Debug)]
pub(super) struct Tls {
    roots: Option<ExtraRoots>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// Reads the certificates of `--tls-ca`, where the gateway at `address` is asked by TLS.
    ///
    /// # Errors
    /// The file cannot be read, or holds none.
    pub(super) fn new(address: &Address, file: Option<&Path>) -> Result<Self, Failure> {
        let is_used = matches!(
            address,
            Address::Remote {
                scheme: Scheme::Https,
                ..
            }
        );
        let file = file.filter(|file| is_used && !file.as_os_str().is_empty());
        let roots = file.map(ExtraRoots::read).transpose();
        let roots = roots.map_err(|error| usage("--tls-ca cannot be used").because(error))?;
        Ok(Self {
            roots,
            config: OnceLock::new(),
        })
    }

    /// Makes a TLS connection to `host`, the host of `url`, of a TCP connection.
    ///
    /// # Errors
    /// [`ApiError::Tls`], and [`ApiError::Cut`] where the connection ended.
    pub(super) async fn open(
        &self,
        stream: TcpStream,
        url: &str,
        host: &str,
    ) -> Result<TlsStream<TcpStream>, ApiError> {
        let failed = |source| ApiError::Tls {
            url: url.to_owned(),
            source,
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            failed(TlsError::WrongName {
                host: host.to_owned(),
                names: Vec::new(),
            })
        })?;
        let config = if let Some(config) = self.config.get() {
            config
        } else {
            let made = client_config(self.roots.as_ref()).map_err(failed)?;
            self.config.get_or_init(|| made)
        };
        let connector = TlsConnector::from(Arc::clone(config));
        connector
            .connect(name, stream)
            .await
            .map_err(|error| match TlsError::find(&error, host) {
                Some(source) => failed(source),
                None => ApiError::Cut(Cut::unopened()),
            })
    }
}
