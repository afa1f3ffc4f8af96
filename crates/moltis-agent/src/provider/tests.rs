//! Providers over real sockets, which answer what a test tells them.

use std::borrow::Cow;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;
use crate::message::Message;

const SECRET: &str = "sk-very-secret";

struct Server {
    url: String,
    told: mpsc::Receiver<String>,
    /// It ends with this.
    _serving: JoinSet<()>,
}

/// Answers each request with the next of these, and tells what was asked.
async fn server(answers: Vec<String>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel(8);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            tell.send(request_of(&mut stream).await).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    Server {
        url: format!("http://{address}/v1"),
        told,
        _serving: serving,
    }
}

async fn request_of(stream: &mut tokio::net::TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.unwrap();
        request.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse().unwrap())
        });
        if body.len() >= length.unwrap_or(0) {
            return text;
        }
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

fn streams(body: &str) -> String {
    answer(
        "200 OK",
        "Content-Type: text/event-stream; charset=utf-8\r\n",
        body,
    )
}

/// Nobody is trusted: nothing here speaks TLS.
fn tls() -> rustls::ClientConfig {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

fn provider(url: &str) -> Provider {
    let key = Key::new(SECRET, "the variable LAB_API_KEY").unwrap();
    let client = client(tls()).build().unwrap();
    Provider::new("lab", Dialect::OpenAi, url, Some(key), client).unwrap()
}

async fn asked(provider: &Provider) -> Vec<Result<Said, ModelFailure>> {
    let model = provider.model("small", 1000);
    let message = Message::User {
        text: "hello".to_owned(),
    };
    let request = Request {
        instructions: "be kind",
        messages: vec![Cow::Owned(message)],
        tools: &[],
    };
    model.ask(request).collect().await
}

async fn failure(answers: Vec<String>) -> ModelFailure {
    let server = server(answers).await;
    let mut said = asked(&provider(&server.url)).await;
    said.pop().unwrap().unwrap_err()
}

const HELLO: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"lo\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

#[tokio::test]
async fn a_model_is_asked_with_its_key_and_says_what_it_says() {
    for slash in ["", "/"] {
        let mut server = server(vec![streams(HELLO)]).await;
        let said = asked(&provider(&format!("{}{slash}", server.url))).await;
        let text = |text: &str| Ok(Said::Text(text.to_owned()));
        assert_eq!(said, [text("Hel"), text("lo")]);
        let request = server.told.recv().await.unwrap();
        assert!(
            request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.contains(&format!("authorization: Bearer {SECRET}")),
            "{request}"
        );
        assert!(request.contains("hello"), "{request}");
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do_and_hides_the_key() {
    let body = format!("{{\"error\":{{\"message\":\"no such key: {SECRET}\"}}}}");
    let wrong = failure(vec![answer("401 Unauthorized", "", &body)]).await;
    assert!(!wrong.passes);
    assert!(
        wrong
            .words
            .contains("401 Unauthorized: no such key: (the key)"),
        "{}",
        wrong.words
    );
    assert!(wrong.words.contains("LAB_API_KEY"), "{}", wrong.words);
    assert!(
        wrong
            .words
            .starts_with("the model `lab/small` at http://127.0.0.1:")
    );
    // Where it is cut no part of it stays.
    let long = format!("data: {}{SECRET}\n\n", "x".repeat(390));
    let long = failure(vec![streams(&long)]).await;
    assert!(!long.words.contains("sk-"), "{}", long.words);
    let busy = failure(vec![answer(
        "429 Too Many Requests",
        "Retry-After: 7\r\n",
        "slowly",
    )])
    .await;
    assert!(busy.passes);
    assert_eq!(busy.retry_after, Some(Duration::from_secs(7)));
    let gone = failure(vec![answer("404 Not Found", "Retry-After: 7\r\n", "")]).await;
    assert_eq!((gone.passes, gone.retry_after), (false, None));
    assert!(gone.words.contains("moltis models"), "{}", gone.words);
}

#[tokio::test]
async fn a_key_follows_no_redirect() {
    let mut elsewhere = server(vec![streams(HELLO)]).await;
    let moved = answer(
        "307 Temporary Redirect",
        &format!("Location: {}\r\n", elsewhere.url),
        "",
    );
    let failure = failure(vec![moved]).await;
    assert!(failure.words.contains("not followed"), "{}", failure.words);
    assert!(elsewhere.told.try_recv().is_err());
}

#[tokio::test]
async fn what_is_no_answer_is_told_as_what_it_is() {
    let page = answer(
        "200 OK",
        "Content-Type: text/html\r\n",
        "<html>Log in</html>",
    );
    let page = failure(vec![page]).await;
    assert!(
        page.words.contains("`text/html`") && page.words.contains("Log in"),
        "{}",
        page.words
    );
    let noise = failure(vec![streams("data: {]\n\n")]).await;
    assert!(noise.words.contains("expected JSON"), "{}", noise.words);
    assert!(!page.passes && !noise.passes);
    // Its length says that there is more.
    let cut = streams(HELLO).replace("Content-Length: ", "Content-Length: 9");
    let cut = cut
        .replace("data: [DONE]\n\n", "")
        .replace(",\"finish_reason\":\"stop\"", "");
    let server = server(vec![cut]).await;
    let said = asked(&provider(&server.url)).await;
    assert_eq!(said.len(), 3, "{said:?}");
    let cut = said[2].clone().unwrap_err();
    assert!(
        cut.passes && cut.words.contains("breaks off"),
        "{}",
        cut.words
    );
}

#[tokio::test]
async fn nobody_there_is_told_with_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let said = asked(&provider(&url)).await;
    let failure = said[0].clone().unwrap_err();
    assert!(
        failure.passes && failure.words.contains(&url),
        "{}",
        failure.words
    );
    assert!(failure.words.contains("refused"), "{}", failure.words);
}

#[tokio::test]
async fn models_are_listed() {
    let list = "{\"data\":[{\"id\":\"small\"},{\"id\":\"large\"}]}";
    let mut server = server(vec![answer("200 OK", "", list), answer("200 OK", "", "[]")]).await;
    let provider = provider(&server.url);
    assert_eq!(provider.models().await.unwrap(), ["small", "large"]);
    assert!(
        server
            .told
            .recv()
            .await
            .unwrap()
            .starts_with("GET /v1/models ")
    );
    let failure = provider.models().await.unwrap_err();
    assert!(
        failure.words.starts_with("the provider `lab`"),
        "{}",
        failure.words
    );
}

#[test]
fn an_address_or_a_key_that_cannot_be_one_is_refused_and_no_key_is_shown() {
    for url in [
        "127.0.0.1:11434",
        "ftp://x",
        "http://me:secret@x/",
        "",
        "data:x",
    ] {
        let made = Provider::new(
            "x",
            Dialect::Ollama,
            url,
            None,
            client(tls()).build().unwrap(),
        );
        assert!(matches!(made, Err(ProviderError::Url { .. })), "{url}");
    }
    for key in ["", " ", "a\nb", "a b"] {
        assert!(Key::new(key, "the file `key`").is_err(), "{key:?}");
    }
    let key = Key::new(&format!("{SECRET}\n"), "the file `key`").unwrap();
    assert!(!format!("{key:?}").contains(SECRET));
    assert!(!format!("{:?}", provider("http://x/v1")).contains(SECRET));
}
