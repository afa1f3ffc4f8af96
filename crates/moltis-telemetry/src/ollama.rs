//! Which models an Ollama on this machine has: one request over HTTP, with a deadline.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use moltis_proto::telemetry::{Provider, ProviderKind};
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::text::clean;

/// How long Ollama may take to list its models.
const DEADLINE: Duration = Duration::from_secs(2);

/// Bytes of the list, at the most. A thousand models need about half a megabyte.
const LIST_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Models that are looked at.
const MODELS_MAX: usize = 1000;

const PORT: u16 = 11434;

/// What `GET /api/tags` answers, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Tags {
    models: Vec<Tag>,
}

#[derive(Debug, Deserialize)]
struct Tag {
    name: String,
}

/// Returns Ollama and its models; `None` when none answers in time.
pub(crate) async fn ask(host: Option<&str>) -> Option<Provider> {
    let (host, port) = address(host.unwrap_or(""))?;
    let tags = tokio::time::timeout(DEADLINE, list(&host, port))
        .await
        .ok()??;
    let names = tags.models.into_iter().take(MODELS_MAX);
    Some(Provider {
        name: "ollama".to_owned(),
        kind: ProviderKind::Ollama,
        models: names.filter_map(|tag| clean(&tag.name)).collect(),
        variable: None,
    })
}

async fn list(host: &str, port: u16) -> Option<Tags> {
    let stream = TcpStream::connect((host, port)).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .ok()?;
    let authority = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let request = Request::get("/api/tags")
        .header(hyper::header::HOST, authority)
        .body(Empty::<Bytes>::new())
        .ok()?;
    let exchange = async {
        let response = sender.send_request(request).await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let body = Limited::new(response.into_body(), LIST_BYTES_MAX);
        serde_json::from_slice(&body.collect().await.ok()?.to_bytes()).ok()
    };
    // The connection has to be polled for the exchange to go on; when it ends first, what it has
    // delivered is still there.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        tags = &mut exchange => tags,
        _ = connection => exchange.await,
    }
}

/// Reads what `OLLAMA_HOST` may hold: `host`, `host:port`, `:port`, `http://host:port`, `[::1]`.
/// An address to listen on everywhere means this machine. `None` for what cannot be asked: `https`.
fn address(text: &str) -> Option<(String, u16)> {
    let text = text.trim().trim_end_matches('/');
    let (rest, port) = match text.split_once("://") {
        None => (text, PORT),
        Some(("http", rest)) => (rest, 80),
        Some(_) => return None,
    };
    let authority = rest.split('/').next().unwrap_or("");
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        match after.strip_prefix(':') {
            Some(digits) => (host, digits.parse().ok()?),
            None => (host, port),
        }
    } else {
        match authority.split_once(':') {
            Some((_, digits)) if digits.contains(':') => (authority, port),
            Some((host, digits)) => (host, digits.parse().ok()?),
            None => (authority, port),
        }
    };
    let host = match host {
        "" | "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    Some((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn every_form_of_ollamas_address_is_understood() {
        let check = |text: &str, host: &str, port: u16| {
            assert_eq!(address(text), Some((host.to_owned(), port)), "{text}");
        };
        check("", "127.0.0.1", 11434);
        check("0.0.0.0", "127.0.0.1", 11434);
        check("0.0.0.0:8080", "127.0.0.1", 8080);
        check(":8080", "127.0.0.1", 8080);
        check("gpu.lan", "gpu.lan", 11434);
        check("http://gpu.lan:1234/", "gpu.lan", 1234);
        check("http://gpu.lan", "gpu.lan", 80);
        check("[::1]:99", "::1", 99);
        check("[::]", "::1", 11434);
        check("::1", "::1", 11434);
        for text in ["https://x", "x:port", "[::1", "x:99999", "[::1]:y"] {
            assert_eq!(address(text), None, "{text}");
        }
    }

    /// Answers one request with these bytes, over real TCP, and then waits to be left.
    async fn asked(answer: Vec<u8>) -> Option<Provider> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let len = stream.read(&mut request).await.unwrap();
            assert!(request[..len].starts_with(b"GET /api/tags HTTP/1.1\r\n"));
            stream.write_all(&answer).await.ok(); // It may have hung up in the middle.
            let rest = stream.read_to_end(&mut request).await;
            rest.ok(); // It may have been reset.
        };
        let (provider, ()) = tokio::join!(ask(Some(&address)), serve);
        provider
    }

    fn http(body: &str) -> Vec<u8> {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    #[tokio::test]
    async fn the_models_of_an_ollama_are_listed() {
        let body =
            r#"{"models":[{"name":"llama3:8b","size":1,"details":{}},{"name":"qwen\u001b2"}]}"#;
        let provider = asked(http(body)).await.unwrap();
        assert_eq!(provider.models, ["llama3:8b", "qwen2"]);
        assert_eq!(provider.kind, ProviderKind::Ollama);
    }

    #[tokio::test]
    async fn what_is_no_ollama_is_left_out() {
        assert_eq!(asked(http("<html>")).await, None);
        assert_eq!(asked(http(r#"{"models":7}"#)).await, None);
        assert_eq!(asked(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()).await, None);
        assert_eq!(
            asked(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec()).await,
            None
        );
        let huge = format!("{{\"models\":[{}]}}", " ".repeat(3 * 1024 * 1024));
        assert_eq!(asked(http(&huge)).await, None);
        assert_eq!(ask(Some("127.0.0.1:1")).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ollama_that_says_nothing_is_left_out_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let begun = tokio::time::Instant::now();
        assert_eq!(ask(Some(&address)).await, None);
        assert!(begun.elapsed() <= DEADLINE + Duration::from_millis(10));
    }
}
