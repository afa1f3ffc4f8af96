//! A gateway that is reached in every way that there is, each with its own sockets.
//!
//! Two are told to the router in place of a socket, for what no test can have everywhere: another
//! user at the Unix socket, and an address of the network on a machine that has none.

mod proxy;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::ConnectInfo;
use axum::middleware::Next;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body as AnyBody;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use moltis_gateway::clock::Clock;
use moltis_gateway::config::TlsConfig;
use moltis_gateway::http::listen::{Listener, lan_address};
use moltis_gateway::http::peer::Peer;
use moltis_gateway::{Gateway, GatewayConfig, Principal, Vouched};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::principals;
use crate::client::Answer;

/// A way to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// TCP to an address of loopback, in the clear.
    Loopback,
    /// The same with TLS.
    LoopbackByTls,
    /// TCP to this machine's address on its network, in the clear.
    Network,
    /// The same with TLS.
    NetworkByTls,
    /// A proxy on this machine, which is named, and was asked by https.
    Proxy,
    /// The same, asked by http.
    ProxyInTheClear,
    /// A proxy on this machine that nobody has named, asked by http.
    UnnamedProxy,
    /// The Unix socket, by the gateway's own user.
    UnixSocket,
    /// The Unix socket, by another user. The router is told of it: to be somebody else, a test would
    /// have to be root, and root is let in.
    SocketOfAnother,
    /// TCP to an embedder's own server on loopback, with a login around the router.
    Embedder,
    /// No connection at all, with the same login, as `Gateway::on_behalf_of` asks.
    InProcess,
}

impl Transport {
    /// Returns whether more than health and the nodes' door is answered there.
    pub(super) fn serves_the_site(self) -> bool {
        !matches!(self, Self::Network | Self::ProxyInTheClear)
    }

    /// Returns whether a browser that asks for a page is sent to TLS.
    pub(super) fn leads_to_tls(self) -> bool {
        self == Self::Network
    }

    /// Returns whether an embedder says who asks.
    pub(super) fn has_a_login(self) -> bool {
        matches!(self, Self::Embedder | Self::InProcess)
    }

    /// Returns whether the system says who asks, and that it is the owner; `None` where it says
    /// nothing, and tokens count.
    pub(super) fn is_the_owner(self) -> Option<bool> {
        match self {
            Self::UnixSocket => Some(true),
            Self::SocketOfAnother => Some(false),
            Self::Loopback
            | Self::LoopbackByTls
            | Self::Network
            | Self::NetworkByTls
            | Self::Proxy
            | Self::ProxyInTheClear
            | Self::UnnamedProxy
            | Self::Embedder
            | Self::InProcess => None,
        }
    }
}

/// The name by which proxies are asked.
const NAME: &str = "moltis.example";

/// Where the router is told that it was dialled, on a machine that is on no network.
const ON_A_NETWORK: &str = "192.0.2.1:9090";

/// A gateway without nodes, with a certificate that it made.
pub(super) struct House {
    gateway: Gateway,
    clock: Clock,
    transports: &'static [Transport],
    loopback: SocketAddr,
    network: Option<SocketAddr>,
    proxies: [SocketAddr; 2],
    embedder: SocketAddr,
    tls: TlsConnector,
    dir: TempDir,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl House {
    /// Opens one that names the proxies of its machine, and one that names none.
    pub(super) async fn both() -> [Self; 2] {
        use Transport as T;
        let ways = &[
            T::Loopback,
            T::LoopbackByTls,
            T::Network,
            T::NetworkByTls,
            T::Proxy,
            T::ProxyInTheClear,
            T::UnixSocket,
            T::SocketOfAnother,
            T::Embedder,
            T::InProcess,
        ];
        [
            Self::open(&["127.0.0.1"], ways).await,
            Self::open(&[], &[T::UnnamedProxy]).await,
        ]
    }

    async fn open(trusted: &[&str], transports: &'static [Transport]) -> Self {
        let dir = TempDir::new().unwrap();
        // Its certificate holds by the time of whoever looks at it.
        let clock = Clock::manual(Clock::system().now());
        let ip = lan_address();
        let mut config = GatewayConfig::new(dir.path().join("home"));
        config.hosts = vec![NAME.to_owned()];
        config.trusted_proxies = trusted.iter().map(|&ip| ip.to_owned()).collect();
        let names = ip.iter().map(IpAddr::to_string).collect();
        config.tls = Some(TlsConfig::Generated { names });
        let gateway = Gateway::builder(config).clock(clock.clone()).build();
        let gateway = gateway.await.unwrap();

        let tcp = |ip| Listener::tcp(SocketAddr::new(ip, 0)).unwrap();
        let (loopback, network) = (tcp([127, 0, 0, 1].into()), ip.map(tcp));
        let address = |listener: &Listener| listener.address().unwrap();
        let (at_loopback, at_network) = (address(&loopback), network.as_ref().map(address));
        let unix = Listener::unix(&dir.path().join("g.sock")).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for listener in [Some(loopback), network, Some(unix)].into_iter().flatten() {
            let (gateway, stop) = (gateway.clone(), stop.clone());
            tasks.spawn(async move { gateway.serve(listener, &stop).await });
        }

        let (embedder, by_tls, in_the_clear) = (bind().await, bind().await, bind().await);
        let at = |listener: &TcpListener| listener.local_addr().unwrap();
        let at_embedder = at(&embedder);
        let proxies = [at(&by_tls), at(&in_the_clear)];
        tasks.spawn(proxy::serve(by_tls, at_loopback, "https", stop.clone()));
        tasks.spawn(proxy::serve(
            in_the_clear,
            at_loopback,
            "http",
            stop.clone(),
        ));
        tasks.spawn(embed(gateway.clone(), embedder, stop.clone()));
        Self {
            tls: trusting(&gateway),
            gateway,
            clock,
            transports,
            loopback: at_loopback,
            network: at_network,
            proxies,
            embedder: at_embedder,
            dir,
            stop,
            tasks,
        }
    }

    /// Returns the ways to it.
    pub(super) fn ways(&self) -> impl Iterator<Item = Way<'_>> {
        self.transports.iter().map(|transport| self.way(*transport))
    }

    /// Returns one way to it.
    pub(super) fn way(&self, transport: Transport) -> Way<'_> {
        Way {
            house: self,
            transport,
            kept: None,
        }
    }

    /// Turns the clock on, so far that every token until now has expired.
    pub(super) fn later(&self) {
        self.clock
            .set(self.clock.now() + SignedDuration::from_secs(61));
    }

    /// Returns whether this machine has an address on a network.
    pub(super) fn is_on_a_network(&self) -> bool {
        self.network.is_some()
    }

    /// Returns who sends a request of this way, where the router is told so in place of a socket.
    fn told(&self, transport: Transport) -> Option<Peer> {
        let remote = "192.0.2.9:50000".parse().unwrap();
        let local = ON_A_NETWORK.parse().unwrap();
        match transport {
            Transport::Network if self.network.is_none() => Some(Peer::Tcp { remote, local }),
            Transport::NetworkByTls if self.network.is_none() => Some(Peer::Tls { remote, local }),
            Transport::SocketOfAnother => {
                let uid = rustix::process::geteuid().as_raw() + 1000;
                Some(Peer::Unix { uid, pid: None })
            }
            Transport::InProcess => Some(Peer::Unknown),
            _ => None,
        }
    }

    /// Returns the host that is asked for.
    fn host(&self, transport: Transport) -> String {
        match transport {
            Transport::Loopback | Transport::LoopbackByTls => self.loopback.to_string(),
            Transport::Network | Transport::NetworkByTls => match self.network {
                Some(address) => address.to_string(),
                None => ON_A_NETWORK.to_owned(),
            },
            Transport::Proxy | Transport::ProxyInTheClear | Transport::UnnamedProxy => {
                NAME.to_owned()
            }
            Transport::Embedder => self.embedder.to_string(),
            Transport::UnixSocket | Transport::SocketOfAnother | Transport::InProcess => {
                "localhost".to_owned()
            }
        }
    }

    async fn connect(&self, transport: Transport) -> SendRequest<Full<Bytes>> {
        let [by_tls, in_the_clear] = self.proxies;
        let address = match transport {
            Transport::Loopback | Transport::LoopbackByTls => self.loopback,
            Transport::Network | Transport::NetworkByTls => self.network.unwrap(),
            Transport::Proxy => by_tls,
            Transport::ProxyInTheClear | Transport::UnnamedProxy => in_the_clear,
            Transport::Embedder => self.embedder,
            Transport::UnixSocket => {
                let socket = self.dir.path().join("g.sock");
                return shake_hands(UnixStream::connect(socket).await.unwrap()).await;
            }
            Transport::SocketOfAnother | Transport::InProcess => panic!("{transport:?} has none"),
        };
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        if matches!(
            transport,
            Transport::LoopbackByTls | Transport::NetworkByTls
        ) {
            let name = address.ip().into();
            return shake_hands(self.tls.connect(name, stream).await.unwrap()).await;
        }
        shake_hands(stream).await
    }

    pub(super) async fn shut(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.gateway.shutdown().await;
    }
}

/// One way to a gateway, with the connection that was made last.
pub(super) struct Way<'a> {
    house: &'a House,
    pub(super) transport: Transport,
    kept: Option<SendRequest<Full<Bytes>>>,
}

impl Way<'_> {
    /// Sends a request and reads the whole answer; of one that would go on for ever, the head.
    pub(super) async fn ask(&mut self, mut request: Request<Full<Bytes>>) -> Answer {
        let host = self.house.host(self.transport);
        request.headers_mut().insert(HOST, host.parse().unwrap());
        if let Some(peer) = self.house.told(self.transport) {
            return read(self.tell(request, peer).await).await.0;
        }
        let mut sender = match still_open(self.kept.take()).await {
            Some(sender) => sender,
            None => self.house.connect(self.transport).await,
        };
        let answer = sender.send_request(request).await.unwrap();
        let (answer, is_whole) = read(answer).await;
        if is_whole && !answer.headers.contains_key(CONNECTION) {
            self.kept = Some(sender);
        }
        answer
    }

    /// Hands a request to the router, with these words of who sent it.
    async fn tell(&self, request: Request<Full<Bytes>>, peer: Peer) -> Response<axum::body::Body> {
        let mut request = request.map(axum::body::Body::new);
        if peer != Peer::Unknown {
            request.extensions_mut().insert(ConnectInfo(peer));
        }
        if self.transport.has_a_login() {
            log_in(&mut request);
        }
        let router = self.house.gateway.router();
        router.oneshot(request).await.unwrap()
    }
}

async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// Serves the router as an embedder does who has users of its own.
async fn embed(gateway: Gateway, listener: TcpListener, stop: CancellationToken) {
    let app = gateway.router().layer(axum::middleware::from_fn(vouch));
    let app = app.into_make_service_with_connect_info::<Peer>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned());
    serving.await.unwrap();
}

async fn vouch(mut request: axum::extract::Request, next: Next) -> axum::response::Response {
    log_in(&mut request);
    next.run(request).await
}

fn log_in<B>(request: &mut Request<B>) {
    if let Some(user) = principals::logged_in(request.headers()) {
        let vouched = Vouched(Principal::User(user));
        request.extensions_mut().insert(vouched);
    }
}

/// Makes a client of TLS that trusts the certificate of this gateway and no other.
fn trusting(gateway: &Gateway) -> TlsConnector {
    let certificate = gateway.tls().unwrap().certificate.path;
    let certificate = CertificateDer::from_pem_file(certificate).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Waits until a connection takes another request; `None` where it is closed.
async fn still_open<B>(kept: Option<SendRequest<B>>) -> Option<SendRequest<B>> {
    let mut kept = kept?;
    kept.ready().await.ok()?;
    Some(kept)
}

async fn shake_hands<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> SendRequest<B>
where
    B: AnyBody<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Reads an answer, and returns whether all of it.
async fn read<B: AnyBody<Error: std::fmt::Debug>>(response: Response<B>) -> (Answer, bool) {
    let (parts, body) = response.into_parts();
    let media = parts.headers.get(CONTENT_TYPE);
    let is_whole = media.is_none_or(|media| media != "text/event-stream");
    let body = if is_whole {
        body.collect().await.unwrap().to_bytes()
    } else {
        Bytes::new()
    };
    let answer = Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    };
    (answer, is_whole)
}
