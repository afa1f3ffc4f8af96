//! What may answer at an address that a person typed, each told apart from the others.

use std::time::Duration;

use moltis_node::{GatewayUrl, LinkError, Outlook, Step};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::gateway::TestGateway;
use crate::node::{TestNode, config};

/// Dials a server that answers each request with these bytes and hangs up; returns the error and
/// what the node had asked.
async fn answered(scheme: &str, answer: &[u8]) -> (LinkError, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("{scheme}://{}/ws", listener.local_addr().unwrap());
    let mut node = TestNode::add(config(url.parse().unwrap()));
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let len = stream.read(&mut asked).await.unwrap();
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.ok(); // The node may have hung up first.
        stream.read_to_end(&mut Vec::new()).await.ok(); // Likewise.
        String::from_utf8_lossy(&asked[..len]).into_owned()
    };
    let (error, asked) = tokio::join!(node.error(), serve);
    (error, asked)
}

async fn http(head: &str, body: &str) -> LinkError {
    let answer = format!(
        "HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    answered("ws", answer.as_bytes()).await.0
}

#[tokio::test]
async fn the_request_is_that_of_a_node() {
    let (_, asked) = answered("ws", b"HTTP/1.1 404 Not Found\r\n\r\n").await;
    let asked = asked.to_ascii_lowercase();
    assert!(asked.starts_with("get /ws http/1.1\r\n"), "{asked}");
    assert!(
        asked.contains("\r\nsec-websocket-protocol: moltis.node.v1"),
        "{asked}"
    );
    assert!(
        !asked.contains("origin:") && !asked.contains("cookie:"),
        "{asked}"
    );
    assert!(!asked.contains("permessage-deflate"), "{asked}");
}

#[tokio::test]
async fn web_servers_and_proxies_are_told_apart() {
    let page = http("200 OK\r\ncontent-type: text/html", "<html>").await;
    assert!(
        matches!(page, LinkError::WebPage { status: 200, .. }),
        "{page:?}"
    );
    let missing = http("404 Not Found", "no").await;
    assert!(
        matches!(missing, LinkError::NotFound { status: 404, .. }),
        "{missing:?}"
    );
    let moved = http("301 Moved Permanently\r\nlocation: https://x/", "").await;
    assert!(
        matches!(moved, LinkError::WebPage { status: 301, .. }),
        "{moved:?}"
    );
    let secured = http(
        "308 Permanent Redirect\r\nlocation: https://127.0.0.1/ws",
        "",
    )
    .await;
    assert!(
        matches!(secured, LinkError::TlsExpected { .. }),
        "{secured:?}"
    );
    assert!(secured.hint().unwrap().contains("wss://127.0.0.1:"));
    let page = "<center>The plain HTTP request was sent to HTTPS port</center>";
    let nginx = http("400 Bad Request\r\ncontent-type: text/html", page).await;
    assert!(matches!(nginx, LinkError::TlsExpected { .. }), "{nginx:?}");
    let words = "A node connects with one of moltis.node.v1, moltis.node.v1+aes. To join:";
    let stripped = http("426 Upgrade Required", words).await;
    assert!(
        matches!(stripped, LinkError::ProxyWithoutUpgrade { .. }),
        "{stripped:?}"
    );
    let secured = http(
        "308 Permanent Redirect\r\nlocation: https://127.0.0.1/ws",
        "",
    )
    .await;
    assert!(
        matches!(secured, LinkError::TlsExpected { .. }),
        "{secured:?}"
    );
    assert!(secured.hint().unwrap().contains("wss://127.0.0.1:"));
    let page = "<center>The plain HTTP request was sent to HTTPS port</center>";
    let nginx = http("400 Bad Request\r\ncontent-type: text/html", page).await;
    assert!(matches!(nginx, LinkError::TlsExpected { .. }), "{nginx:?}");
    let words = "A node connects with one of moltis.node.v3, moltis.node.v2. To join:";
    let newer = http("426 Upgrade Required", words).await;
    assert!(matches!(newer, LinkError::Version(None)), "{newer:?}");
    let dead = http("502 Bad Gateway\r\ncontent-type: text/html", "<html>").await;
    assert!(
        matches!(dead, LinkError::ProxyWithoutGateway { status: 502, .. }),
        "{dead:?}"
    );
    let other = http("403 Forbidden", "").await;
    assert!(
        matches!(other, LinkError::Answer { status: 403, .. }),
        "{other:?}"
    );
    let hint = missing.hint().unwrap();
    assert!(hint.contains("/ws"), "{hint}");
}

#[tokio::test]
async fn what_is_no_gateway_is_called_so() {
    let (ssh, _) = answered("ws", b"SSH-2.0-OpenSSH_9.2p1\r\n").await;
    assert!(matches!(ssh, LinkError::NotAGateway { .. }), "{ssh:?}");
    let (other, _) = answered(
        "ws",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n",
    )
    .await;
    assert!(matches!(other, LinkError::NotAGateway { .. }), "{other:?}");
    let (silent, _) = answered("ws", b"").await;
    assert!(
        matches!(
            silent,
            LinkError::Hangup {
                during: Some(Step::Upgrade)
            }
        ),
        "{silent:?}"
    );
    let (plain, _) = answered("wss", b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert!(matches!(plain, LinkError::Tls { .. }), "{plain:?}");
    assert!(plain.hint().unwrap().contains("ws://"));
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_refused() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws", free.local_addr().unwrap());
    drop(free);
    let error = TestNode::add(config(url.parse().unwrap())).error().await;
    assert!(
        matches!(error, LinkError::ConnectionRefused { .. }),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains("--listen"));
}

#[tokio::test]
async fn a_host_without_address_is_named() {
    let url: GatewayUrl = "ws://no-such-host.invalid:9090/ws".parse().unwrap();
    let error = TestNode::add(config(url)).error().await;
    assert!(
        matches!(&error, LinkError::Resolve { host, .. } if host == "no-such-host.invalid"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_busy_gateway_is_asked_again_when_it_said() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    let mut node = TestNode::add(config(url.parse().unwrap()));
    let (mut stream, _) = listener.accept().await.unwrap();
    assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(answer).await.unwrap();
    let (error, retry_in) = node.disconnected().await;
    assert!(
        matches!(&*error, LinkError::Busy { retry_after, .. } if retry_after.as_secs() == 3),
        "{error:?}"
    );
    assert!((3..=4).contains(&retry_in.as_secs()), "{retry_in:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    let mut node = TestNode::add(config(url.parse().unwrap()));
    let error = node.error().await;
    assert!(
        matches!(error, LinkError::TimedOut { step: Step::Upgrade, after } if after == Duration::from_secs(10)),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_stops_in_the_handshake_is_given_up() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::add(config(gateway.url()));
    let (_peer, error) = tokio::join!(gateway.noise(), node.error());
    assert!(
        matches!(
            error,
            LinkError::TimedOut {
                step: Step::Handshake,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_service_waits_for_what_a_terminal_gives_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    let mut node = TestNode::run(config(url.parse().unwrap()));
    let (mut stream, _) = listener.accept().await.unwrap();
    stream
        .write_all(b"HTTP/1.1 404 Not Found\r\n\r\n")
        .await
        .unwrap();
    let (error, retry_in) = node.disconnected().await;
    assert_eq!(error.outlook(), Outlook::NeedsPerson);
    assert!((30..=60).contains(&retry_in.as_secs()), "{retry_in:?}");
    node.stop().await;
}
