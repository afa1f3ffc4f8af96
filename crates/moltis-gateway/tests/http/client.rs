//! A client of the Unix socket that hides nothing of an answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use moltis_gateway::api::problem::Problem;
use moltis_gateway::http::listen::Listener;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::gateway::TestGateway;

/// The operator, at the socket of a gateway.
#[derive(Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    /// Where the socket lies.
    dir: Arc<TempDir>,
}

/// An answer, whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Client {
    /// Has the gateway listen on a Unix socket, and returns a client of it.
    pub(crate) async fn of(gateway: &TestGateway) -> Self {
        let dir = Arc::new(TempDir::new().unwrap());
        let socket = dir.path().join("g.sock");
        let listener = Listener::unix(&socket).await.unwrap();
        let gateway = gateway.gateway.clone();
        tokio::spawn(async move { gateway.serve(listener, &CancellationToken::new()).await });
        Self { socket, dir }
    }

    /// Returns a directory that lives as long as this.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends a request on a connection of its own; the body of the answer is still to come.
    pub(crate) async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    /// Sends a request and reads the whole answer, or of events, which do not end, the beginning.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        Answer::of(self.open(request).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, Bytes::new())).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(request(Method::DELETE, path, Bytes::new())).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.json(Method::POST, path, body).await
    }

    pub(crate) async fn json(&self, method: Method, path: &str, body: Value) -> Answer {
        let mut request = request(method, path, body.to_string());
        let json = "application/json".parse().unwrap();
        request.headers_mut().insert(CONTENT_TYPE, json);
        self.send(request).await
    }

    /// Starts a run and returns its id.
    pub(crate) async fn start(&self, body: Value) -> String {
        let answer = self.post("runs", body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.value()["id"].as_str().unwrap().to_owned()
    }

    /// Runs something to its end.
    pub(crate) async fn run(&self, body: Value) -> Value {
        let answer = self.post("runs?wait=true", body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.value()
    }
}

impl Answer {
    /// Reads an answer, as [`Client::send`].
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (parts, mut body) = response.into_parts();
        let media = parts.headers.get(CONTENT_TYPE);
        let body = if media.is_some_and(|media| media == "text/event-stream") {
            let first = body.frame().await.map(|first| first.unwrap());
            first.map_or_else(Bytes::new, |first| first.into_data().unwrap())
        } else {
            body.collect().await.unwrap().to_bytes()
        };
        Self {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub(crate) fn value(&self) -> Value {
        self.read()
    }

    pub(crate) fn read<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON in {self:?}"))
    }

    pub(crate) fn problem(&self) -> Problem {
        let problem: Problem = self.read();
        assert_eq!(problem.status, self.status.as_u16());
        problem
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .unwrap_or_else(|| panic!("no {name} in {self:?}"))
            .to_str()
            .unwrap()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(2000)]);
        write!(f, "{} {:?} {body}", self.status, self.headers)
    }
}

/// Makes a request; a path without a slash at its beginning lies below `/api/v1`.
pub(crate) fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/api/v1/{path}")
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .body(Full::new(body.into()))
        .unwrap()
}
