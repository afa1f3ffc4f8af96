//! What may be said on which connection: in the clear or by TLS, from here or from elsewhere, through
//! a proxy or straight. And TLS on a real socket: what is no TLS, what never ends, what is slow.

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::HeaderMap;
use axum::http::header::LOCATION;
use http_body_util::BodyExt as _;
use rustls::pki_types::pem::PemObject as _;
use tower::ServiceExt as _;

use super::*;
use crate::config::TlsConfig;
use crate::http::peer::Peer;

/// Returns a gateway with a certificate that it made, on loopback.
async fn with_tls(dir: &Path, change: impl FnOnce(&mut GatewayConfig)) -> Gateway {
    let mut config = GatewayConfig::new(dir.join("home"));
    config.hosts = vec!["moltis.example".to_owned()];
    config.tls = Some(TlsConfig::Generated { names: Vec::new() });
    change(&mut config);
    Gateway::builder(config).build().await.unwrap()
}

fn lan(local: &str) -> Peer {
    Peer::Tcp {
        remote: "192.0.2.9:7".parse().unwrap(),
        local: local.parse().unwrap(),
    }
}

/// Status, headers and body of the answer to a request of this peer.
async fn ask(
    gateway: &Gateway,
    peer: Peer,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
) -> (u16, HeaderMap, String) {
    let mut asked = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        asked = asked.header(*name, *value);
    }
    let mut asked = asked.body(Body::empty()).unwrap();
    asked.extensions_mut().insert(ConnectInfo(peer));
    let answer = gateway.router().oneshot(asked).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    (head.status.as_u16(), head.headers, body)
}

#[tokio::test]
async fn with_tls_the_whole_site_is_served_to_other_machines() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = with_tls(dir.path(), |_| {}).await;
    let host = [("host", "192.0.2.1:9090")];
    let local = "192.0.2.1:9090";
    let over_tls = lan(local).over_tls();
    let (status, headers, _) = ask(&gateway, over_tls, ("GET", "/readyz"), &host).await;
    assert_eq!(status, 200);
    assert!(
        !headers.contains_key("strict-transport-security"),
        "a certificate of its own would lock a browser out"
    );
    let (status, ..) = ask(&gateway, over_tls, ("GET", "/api/v1/nodes"), &host).await;
    assert_eq!(status, 401, "a token is asked for");
    let foreign = [("host", "evil.example")];
    let (status, ..) = ask(&gateway, over_tls, ("GET", "/readyz"), &foreign).await;
    assert_eq!(status, 421);
    gateway.shutdown().await;
}

#[tokio::test]
async fn in_the_clear_a_browser_is_led_to_tls_and_a_program_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = with_tls(dir.path(), |_| {}).await;
    let plain = lan("192.0.2.1:9090");
    let host = [("host", "192.0.2.1:9090")];
    let (status, headers, _) =
        ask(&gateway, plain, ("GET", "/settings/nodes?tab=all"), &host).await;
    assert_eq!(status, 307);
    assert_eq!(
        headers[LOCATION],
        "https://192.0.2.1:9090/settings/nodes?tab=all"
    );
    for (method, path) in [
        ("GET", "/api/v1/nodes"),
        ("POST", "/api/v1/runs"),
        ("POST", "/login"),
    ] {
        let (status, headers, body) = ask(&gateway, plain, (method, path), &host).await;
        assert_eq!(status, 403, "{path}");
        assert!(!headers.contains_key(LOCATION), "{path}");
        assert!(
            body.contains("tls_required") && body.contains("https://"),
            "{body}"
        );
    }
    // A scraper that sends its token in the clear has to hear of it, not to be led past it.
    let token = [host[0], ("authorization", "Bearer moltis_x")];
    let (status, headers, _) = ask(&gateway, plain, ("GET", "/metrics"), &token).await;
    assert_eq!((status, headers.contains_key(LOCATION)), (403, false));
    // Nobody is led to a host that is not ours, nor out of the address.
    for (path, host) in [("/", "evil.example"), ("//evil.example/", "192.0.2.1:9090")] {
        let (_, headers, _) = ask(&gateway, plain, ("GET", path), &[("host", host)]).await;
        assert!(!headers.contains_key(LOCATION), "{path} {host}");
    }
    for (path, expected) in [("/healthz", 200), ("/ws", 426)] {
        assert_eq!(ask(&gateway, plain, ("GET", path), &host).await.0, expected);
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn without_tls_every_way_out_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = with_tls(dir.path(), |config| config.tls = None).await;
    let host = [("host", "192.0.2.1:9090")];
    let (status, _, body) = ask(&gateway, lan("192.0.2.1:9090"), ("GET", "/"), &host).await;
    assert_eq!(status, 403);
    for way in [
        "ssh -L 9090:127.0.0.1:9090",
        "--tls-cert <file> --tls-key <file>",
        "--tls-generate",
        "--insecure-http",
    ] {
        assert!(body.contains(way), "{way}: {body}");
    }
    gateway.shutdown().await;
    let dir = tempfile::tempdir().unwrap();
    let gateway = with_tls(dir.path(), |config| {
        config.tls = None;
        config.insecure_http = true;
    })
    .await;
    let (status, ..) = ask(&gateway, lan("192.0.2.1:9090"), ("GET", "/readyz"), &host).await;
    assert_eq!(status, 200);
    gateway.shutdown().await;
}

#[tokio::test]
async fn what_a_proxy_tells_takes_rights_away_and_gives_none() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = with_tls(dir.path(), |config| {
        config.trusted_proxies = vec!["127.0.0.1".to_owned(), "192.0.2.9".to_owned()];
    })
    .await;
    let here = Peer::Tcp {
        remote: "127.0.0.1:7".parse().unwrap(),
        local: "127.0.0.1:9090".parse().unwrap(),
    };
    let status = async |peer, headers: &[(&str, &str)]| {
        ask(&gateway, peer, ("GET", "/readyz"), headers).await.0
    };
    let host = ("host", "127.0.0.1:9090");
    let client = ("x-forwarded-for", "203.0.113.9");
    for (headers, expected) in [
        (&[host, client][..], 200),
        (&[host, client, ("x-forwarded-proto", "https")], 200),
        (&[host, client, ("x-forwarded-proto", "http")], 403),
        (&[host, client, ("x-forwarded-proto", "https, http")], 403),
        (&[host, client, ("x-forwarded-host", "moltis.example")], 200),
        (&[host, client, ("x-forwarded-host", "evil.example")], 421),
        (
            &[
                host,
                client,
                ("x-forwarded-host", "moltis.example, evil.example"),
            ],
            421,
        ),
        (&[host, client, ("x-forwarded-host", "a b")], 421),
        (
            &[
                ("host", "evil.example"),
                client,
                ("x-forwarded-host", "moltis.example"),
            ],
            421,
        ),
    ] {
        assert_eq!(status(here, headers).await, expected, "{headers:?}");
    }
    // The way from a proxy on another machine is in the clear, whatever is outside of it.
    let far = lan("192.0.2.1:9090");
    let host = ("host", "192.0.2.1:9090");
    let tells = [host, client, ("x-forwarded-proto", "https")];
    assert_eq!(status(far, &tells).await, 403);
    assert_eq!(status(far.over_tls(), &tells).await, 200);
    // And who is no proxy of ours tells nothing.
    let stranger = Peer::Tcp {
        remote: "192.0.2.77:7".parse().unwrap(),
        local: "127.0.0.1:9090".parse().unwrap(),
    };
    let lies = [
        ("host", "127.0.0.1:9090"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "http"),
    ];
    assert_eq!(status(stranger, &lies).await, 200);
    gateway.shutdown().await;
}

/// A gateway with TLS on a real socket.
struct Served {
    gateway: Gateway,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
    _dir: tempfile::TempDir,
}

impl Served {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gateway = with_tls(dir.path(), |_| {}).await;
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let serving = gateway.clone();
        let until = stop.clone();
        tasks.spawn(async move { serving.serve(listener, &until).await });
        Self {
            gateway,
            address,
            stop,
            tasks,
            _dir: dir,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Asks by TLS, where the gateway's own certificate is trusted.
    async fn https(&self) -> String {
        let mut roots = rustls::RootCertStore::empty();
        let path = self.gateway.tls().unwrap().certificate.path;
        let pem = std::fs::read(path).unwrap();
        roots
            .add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = "localhost".try_into().unwrap();
        let stream = connector.connect(name, self.connect().await).await.unwrap();
        exchange(stream, &request("GET", "/readyz", &["host: localhost"])).await
    }

    async fn shut(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.gateway.shutdown().await;
    }
}

/// Reads until the gateway closes, with a reset or without.
async fn until_closed(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer));
    ended.await.expect("the gateway closes").ok();
}

#[tokio::test]
async fn tls_and_plain_http_are_told_apart_on_one_port() {
    let served = Served::open().await;
    let answer = served.https().await;
    assert_eq!(status(&answer), 200, "{answer}");
    let plain = request("GET", "/readyz", &["host: localhost"]);
    let answer = exchange(served.connect().await, &plain).await;
    assert_eq!(
        status(&answer),
        200,
        "loopback keeps the whole site: {answer}"
    );
    served.shut().await;
}

#[tokio::test]
async fn handshakes_that_never_end_hold_nobody_up_and_are_closed_at_the_stop() {
    let served = Served::open().await;
    let mut waiting = Vec::new();
    for begin in [
        &b""[..],
        b"\x16",
        b"\x16\x03\x01\x02\x00\x01",
        b"\x16\x03\x01\x00\x05hello",
    ] {
        for _ in 0..16 {
            let mut stream = served.connect().await;
            stream.write_all(begin).await.unwrap();
            waiting.push(stream);
        }
    }
    for _ in 0..3 {
        assert_eq!(status(&served.https().await), 200);
    }
    served.shut().await;
    for mut stream in waiting {
        until_closed(&mut stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let config = TlsConfig::Generated { names: Vec::new() };
    let now = NOW.parse().unwrap();
    let tls = Tls::open(&config, dir.path(), [], now).unwrap();
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().unwrap();
    let stop = CancellationToken::new();
    let reception = serve::Reception {
        tls: Some(tls),
        ..serve::Reception::default()
    };
    let serving = TaskTracker::new().spawn(serve::serve(
        listener,
        Router::new(),
        reception,
        stop.clone(),
    ));
    let began = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"\x16\x03\x01").await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.ok(); // with a reset or without
    assert!(
        began.elapsed() >= Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn garbage_ends_its_own_connection_alone() {
    let served = Served::open().await;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..200 {
        // xorshift64: the same bytes on each run.
        let mut bytes = Vec::new();
        while bytes.len() < 1 + round * 5 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_be_bytes());
        }
        if round % 2 == 0 {
            // A record of a handshake, as long as it says, with nonsense in it.
            let len = u16::try_from(bytes.len() - 8).unwrap_or(0);
            bytes[..3].copy_from_slice(&[0x16, 3, 1]);
            bytes[3..5].copy_from_slice(&(len + 3).to_be_bytes());
            bytes[5] = 1;
        }
        let mut stream = served.connect().await;
        stream.write_all(&bytes).await.ok(); // it may be closed already
        stream.shutdown().await.ok();
        until_closed(&mut stream).await;
    }
    assert_eq!(status(&served.https().await), 200);
    served.shut().await;
}

#[tokio::test]
async fn a_new_certificate_is_in_use_soon_and_a_broken_one_never_is() {
    let dir = tempfile::tempdir().unwrap();
    let generated = TlsConfig::Generated { names: Vec::new() };
    let clock = Clock::manual(NOW.parse().unwrap());
    let made = |name: &str| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let tls = Tls::open(&generated, &dir, [], clock.now()).unwrap();
        (dir, tls.status().certificate.fingerprint)
    };
    let (first, second) = (made("first"), made("second"));
    let files = TlsConfig::Files {
        certificate: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    let put = |from: &Path| {
        for (file, to) in [
            ("gateway_tls.pem", "cert.pem"),
            ("gateway_tls_key.pem", "key.pem"),
        ] {
            std::fs::copy(from.join(file), dir.path().join(to)).unwrap();
        }
    };
    put(&first.0);
    let tls = Tls::open(&files, dir.path(), [], clock.now()).unwrap();
    let stop = CancellationToken::new();
    let watching = TaskTracker::new().spawn(tls.clone().keep_up(clock, stop.clone()));
    let until = async |what: &str, holds: &dyn Fn(&tls::TlsStatus) -> bool| {
        let looking = async {
            while !holds(&tls.status()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let looked = tokio::time::timeout(Duration::from_secs(30), looking).await;
        looked.unwrap_or_else(|_| panic!("waited for {what}: {:?}", tls.status()));
    };
    assert_eq!(tls.status().certificate.fingerprint, first.1);
    std::fs::write(dir.path().join("cert.pem"), "half a certi").unwrap();
    until("a complaint", &|status| status.trouble.is_some()).await;
    assert_eq!(tls.status().certificate.fingerprint, first.1);
    assert!(
        tls.status()
            .trouble
            .unwrap()
            .contains("holds no certificate")
    );
    // A sound pair of files that every client would refuse is none for today.
    let over = dir.path().join("over");
    std::fs::create_dir(&over).unwrap();
    Tls::open(
        &generated,
        &over,
        [],
        "2020-01-02T03:04:05Z".parse().unwrap(),
    )
    .unwrap();
    put(&over);
    until("another complaint", &|status| {
        let trouble = status.trouble.as_deref().unwrap_or_default();
        trouble.contains("has expired")
    })
    .await;
    assert_eq!(tls.status().certificate.fingerprint, first.1);
    put(&second.0);
    until("the second", &|status| {
        status.certificate.fingerprint == second.1
    })
    .await;
    assert_eq!(tls.status().trouble, None);
    stop.cancel();
    watching.await.unwrap();
}
