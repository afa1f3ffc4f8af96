//! HTTPS on the addresses that are listened on: the certificate, and the first bytes of a connection.
//!
//! With a certificate an address speaks TLS and plain HTTP on one port, told apart by the first byte
//! that a peer sends: what may be said in the clear is decided per connection, by the door. All of
//! rustls in this crate is in this file and below. [`certificate`] reads files, [`generated`] makes
//! them, [`watch`] takes up new ones while the gateway runs. Called by [`super::serve`].

mod certificate;
mod generated;
mod watch;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use self::certificate::{Certificate, TlsError, Validity};
use self::certificate::{Loaded, PairFiles, Stamps};
use self::generated::Generated;
use crate::config::TlsConfig;

/// The first byte of every TLS connection: a record of type handshake (RFC 8446, 5.1). No request of
/// HTTP begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Bytes that wait encrypted for the kernel, for each connection: two records.
const BUFFER_BYTES_MAX: usize = 32 * 1024;

/// The certificate in use, and the way to the next. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    acceptor: Acceptor,
    current: Arc<Current>,
    /// The files as they were before the first certificate was read.
    stamps: Stamps,
    trouble: Mutex<Option<String>>,
}

/// Where certificates come from.
#[derive(Debug)]
enum Source {
    Files(PairFiles),
    Generated(Generated),
}

/// The certificate that new connections are shown.
#[derive(Debug)]
struct Current(RwLock<Arc<Loaded>>);

struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// How HTTPS stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsStatus {
    /// The certificate in use.
    pub certificate: Certificate,
    /// The gateway made it itself: who shall trust it needs its file.
    pub is_own: bool,
    /// Why a newer one is not in use, in words.
    pub trouble: Option<String>,
}

/// What a peer turned out to speak.
#[derive(Debug)]
pub(crate) enum Opened {
    /// Plain HTTP, or something that is neither.
    Plain(TcpStream),
    /// TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Tls {
    /// Reads the certificate, or makes it. `dir` is the gateway's, `hosts` are further names for a
    /// certificate that is made here. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`TlsError`], by the file that cannot be used. A certificate whose time is not now is no
    /// error: [`Certificate::problem`] tells it.
    pub(crate) fn open(
        config: &TlsConfig,
        dir: &Path,
        hosts: impl IntoIterator<Item = String>,
        now: Timestamp,
    ) -> Result<Self, TlsError> {
        let source = match config {
            TlsConfig::Files { certificate, key } => Source::Files(PairFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            TlsConfig::Generated { names } => {
                let names = names.iter().cloned().chain(hosts);
                Source::Generated(Generated::new(dir, names))
            }
        };
        let stamps = source.files().stamps();
        let current = Arc::new(Current(RwLock::new(Arc::new(source.load(now)?))));
        Ok(Self(Arc::new(Inner {
            source,
            acceptor: Acceptor(TlsAcceptor::from(server(Arc::clone(&current) as _))),
            current,
            stamps,
            trouble: Mutex::default(),
        })))
    }

    /// Returns how it stands.
    pub fn status(&self) -> TlsStatus {
        TlsStatus {
            certificate: self.0.current.get().about.clone(),
            is_own: matches!(self.0.source, Source::Generated(_)),
            trouble: self.trouble().clone(),
        }
    }

    /// Returns whether the certificate names this host: a name, or an IP address without brackets.
    pub fn covers(&self, host: &str) -> bool {
        self.0.current.get().covers(host)
    }

    /// Waits for the first byte of a connection, and where that begins TLS, for the handshake. The
    /// caller sets the deadline.
    ///
    /// # Errors
    /// The connection ended, or the handshake failed.
    pub(crate) async fn open_connection(&self, stream: TcpStream) -> io::Result<Opened> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first != [TLS_HANDSHAKE] {
            return Ok(Opened::Plain(stream));
        }
        let shaking = self.0.acceptor.0.accept_with(stream, |session| {
            session.set_buffer_limit(Some(BUFFER_BYTES_MAX));
        });
        Ok(Opened::Tls(Box::new(shaking.await?)))
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        let locked = self.0.trouble.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn load(&self, now: Timestamp) -> Result<Loaded, TlsError> {
        match self {
            Self::Files(files) => files.load(),
            Self::Generated(generated) => generated.provide(now),
        }
    }

    fn files(&self) -> &PairFiles {
        match self {
            Self::Files(files) => files,
            Self::Generated(generated) => generated.files(),
        }
    }
}

impl Current {
    fn get(&self) -> Arc<Loaded> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, loaded: Loaded) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.get().key))
    }
}

impl Loaded {
    fn covers(&self, host: &str) -> bool {
        let named = ServerName::try_from(host).ok();
        let leaf = self.key.end_entity_cert().ok();
        let leaf = leaf.and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        let both = leaf.zip(named);
        both.is_some_and(|(leaf, named)| verify_server_name(&leaf, &named).is_ok())
    }
}

fn server(certificates: Arc<dyn ResolvesServerCert>) -> Arc<ServerConfig> {
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has ciphers for TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(server)
}

/// TLS by ring alone, whatever another crate of the program made the default of the process.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
