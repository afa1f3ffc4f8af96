//! The client of the gateway's HTTP API: over `gateway.sock`, or with `--gateway` over TCP and TLS.
//!
//! The words are those of [`moltis_gateway::api`]; here is how they travel, and what a person is
//! told when they do not. Every wait has a deadline.

pub(crate) mod address;
mod cut;
mod error;
mod tls;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use moltis_gateway::api::runs::StartRun;
use moltis_gateway::api::tokens::TOKEN_PREFIX;
use moltis_gateway::api::{self, IDEMPOTENCY_KEY_HEADER, List, RUN_ID_HEADER};
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use self::address::{Address, Scheme};
pub(crate) use self::cut::Cut;
pub(crate) use self::error::ApiError;
use self::tls::Tls;
use crate::args::Remote;
use crate::failure::Failure;
use crate::output::Output;
use crate::paths::Home;
use crate::settings::{Secret, Settings};

/// How long a gateway may take to take a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long a gateway may take to begin its answer.
const ANSWER_TIME: Duration = Duration::from_mins(1);

/// The same, where it is asked whether the gateway answers.
pub(crate) const LOOK_TIME: Duration = Duration::from_secs(10);

/// How long a person waits for an answer without a word.
const QUIET_TIME: Duration = Duration::from_secs(2);

/// Bytes of an answer that is read whole.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Speaks to one gateway.
#[derive(Debug)]
pub(crate) struct Client {
    address: Address,
    token: Option<Secret>,
    /// Bytes that a connection reads ahead; `None` is as many as the library likes.
    read_ahead_max: Option<usize>,
    /// How long an answer may take to begin, and then to end.
    answer_time: Duration,
    output: Output,
    /// A wait that is long is told, which is done once.
    tells: AtomicBool,
    tls: Tls,
    idle: Mutex<Option<Connection>>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    way: Way,
}

/// What is between us and the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing that leaves this machine, or TLS: a token may be shown.
    Private,
    /// Whatever others can read.
    Open,
}

/// The body of a request.
#[derive(Debug, Clone, Default)]
pub(crate) enum Body {
    /// None.
    #[default]
    Empty,
    /// JSON.
    Json(Bytes),
    /// Bytes as they are.
    Raw(Bytes),
}

impl Client {
    /// Finds the gateway: `--gateway`, `MOLTIS_GATEWAY`, else the socket of this machine. Touches
    /// nothing.
    ///
    /// # Errors
    /// The address is none, or what `--tls-ca` names holds no certificate.
    pub(crate) fn new(
        settings: &Settings,
        remote: &Remote,
        output: Output,
    ) -> Result<Self, Failure> {
        let url = remote.gateway.as_deref().filter(|url| !url.is_empty());
        let (address, token) = match url {
            Some(url) => (Address::parse(url)?, settings.api_token.clone()),
            None => (Address::local(Home::find(settings)?), None),
        };
        let tls = Tls::new(&address, remote.tls_ca.as_deref())?;
        Ok(Self {
            address,
            token,
            read_ahead_max: None,
            answer_time: ANSWER_TIME,
            output,
            tells: AtomicBool::new(true),
            tls,
            idle: Mutex::new(None),
            tasks: TaskTracker::new(),
        })
    }

    /// The same, for many connections at once: each reads only so many bytes ahead, at least 8 KiB.
    pub(crate) fn reading_ahead(mut self, bytes_max: usize) -> Self {
        self.read_ahead_max = Some(bytes_max);
        self
    }

    /// The same, for a command that would rather say that there is no answer than wait for it.
    pub(crate) fn answered_within(mut self, time: Duration) -> Self {
        self.answer_time = time;
        self
    }

    /// From now on somebody else says what is waited for.
    pub(crate) fn waits_in_silence(&self) {
        self.tells.store(false, Ordering::Relaxed);
    }

    /// Returns the home whose socket is asked; `None` for a gateway at an address.
    pub(crate) fn home(&self) -> Option<&Home> {
        match &self.address {
            Address::Local { home } => Some(home),
            Address::Remote { .. } => None,
        }
    }

    /// Returns whether the gateway is asked over the network, if only that of this machine.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.address, Address::Remote { .. })
    }

    /// Asks for one thing.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.ask(Method::GET, path, Body::Empty).await
    }

    /// Asks for all pages of a list, up to `limit` items.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: usize,
    ) -> Result<Vec<T>, ApiError> {
        self.list_on(path, self.get(path).await?, limit).await
    }

    /// As [`list`](Self::list), with the first page at hand.
    pub(crate) async fn list_on<T: DeserializeOwned>(
        &self,
        path: &str,
        first: List<T>,
        limit: usize,
    ) -> Result<Vec<T>, ApiError> {
        let List {
            mut items,
            mut next,
        } = first;
        let mark = if path.contains('?') { '&' } else { '?' };
        while let Some(cursor) = next
            && items.len() < limit
        {
            let page = format!("{path}{mark}cursor={}", address::escape(&cursor));
            let page: List<T> = self.get(&page).await?;
            items.extend(page.items);
            next = page.next;
        }
        items.truncate(limit);
        Ok(items)
    }

    /// Sends JSON and reads JSON.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        self.ask(method, path, json(body)).await
    }

    /// Sends JSON; the answer does not matter beyond its status.
    pub(crate) async fn tell(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(), ApiError> {
        let answer = self.request(method, path, json(body), None).await?;
        self.read_whole(answer).await.map(drop)
    }

    /// Sends bytes and reads JSON.
    pub(crate) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        bytes: Bytes,
    ) -> Result<T, ApiError> {
        self.ask(Method::POST, path, Body::Raw(bytes)).await
    }

    /// Sends JSON under an idempotency key, so that it may be sent again after a cut.
    pub(crate) async fn send_once<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        key: &str,
    ) -> Result<T, ApiError> {
        let answer = self
            .request(Method::POST, path, json(body), Some(key))
            .await?;
        self.decode(answer).await
    }

    /// Begins to read an answer that comes in pieces.
    pub(crate) async fn open(&self, path: &str) -> Result<Pieces, ApiError> {
        let answer = self.request(Method::GET, path, Body::Empty, None).await?;
        self.pieces(answer).await
    }

    /// Starts a run under an idempotency key; returns its id, and its frames from the beginning.
    pub(crate) async fn start_and_follow(
        &self,
        request: &StartRun,
        key: &str,
    ) -> Result<(String, Pieces), ApiError> {
        let path = "runs?follow=true";
        let answer = self
            .request(Method::POST, path, json(request), Some(key))
            .await?;
        let run_id = answer.headers().get(RUN_ID_HEADER);
        let run_id = run_id.and_then(|id| id.to_str().ok()).map(str::to_owned);
        let pieces = self.pieces(answer).await?;
        let run_id = run_id.ok_or(ApiError::NotAGateway {
            status: StatusCode::OK,
            found: error::Found::Nothing,
        })?;
        Ok((run_id, pieces))
    }

    async fn pieces(&self, answer: Response<Incoming>) -> Result<Pieces, ApiError> {
        let status = answer.status();
        let found = error::Found::of(&answer);
        if status.is_success() {
            return Ok(Pieces {
                body: answer.into_body(),
            });
        }
        let bytes = self.collect(answer).await?;
        Err(ApiError::from_answer(status, found, &bytes))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<T, ApiError> {
        let answer = self.request(method, path, body, None).await?;
        self.decode(answer).await
    }

    async fn decode<T: DeserializeOwned>(&self, answer: Response<Incoming>) -> Result<T, ApiError> {
        let (status, found) = (answer.status(), error::Found::of(&answer));
        let bytes = self.read_whole(answer).await?;
        serde_json::from_slice(&bytes).map_err(|error| match found {
            error::Found::Nothing => ApiError::Strange(error),
            found => ApiError::NotAGateway { status, found },
        })
    }

    async fn read_whole(&self, answer: Response<Incoming>) -> Result<Bytes, ApiError> {
        let status = answer.status();
        let found = error::Found::of(&answer);
        let bytes = self.collect(answer).await?;
        if status.is_success() {
            Ok(bytes)
        } else {
            Err(ApiError::from_answer(status, found, &bytes))
        }
    }

    async fn collect(&self, answer: Response<Incoming>) -> Result<Bytes, ApiError> {
        let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        match timeout(self.answer_time, body.collect()).await {
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err(ApiError::TooLong(ANSWER_BYTES_MAX))
            }
            Ok(Err(_)) => Err(ApiError::Cut(Cut::torn())),
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> ApiError {
        ApiError::Cut(self.silent_for(self.answer_time))
    }

    /// Returns how it is told that nothing came for so long.
    pub(crate) fn silent_for(&self, time: Duration) -> Cut {
        Cut::silent(self.address.place(), time)
    }

    /// Sends a request and waits for the head of its answer. Says so where that takes long.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Body,
        key: Option<&str>,
    ) -> Result<Response<Incoming>, ApiError> {
        let mut answer = pin!(self.request_quietly(method, path, body, key));
        if let Ok(answer) = timeout(QUIET_TIME, &mut answer).await {
            return answer;
        }
        if self.tells.swap(false, Ordering::Relaxed) {
            self.output.note(&format!(
                "the gateway at {} does not answer yet; waiting for it for up to {} s",
                self.address.place(),
                self.answer_time.as_secs()
            ));
        }
        answer.await
    }

    async fn request_quietly(
        &self,
        method: Method,
        path: &str,
        body: Body,
        key: Option<&str>,
    ) -> Result<Response<Incoming>, ApiError> {
        let (mut connection, reused) = self.connection().await?;
        let request = self.head(&connection, &method, path, &body, key)?;
        let answer = match self.answer(&mut connection, request).await {
            // A gateway may close an idle connection at the moment we use it. What was not sent, or
            // only asks, is sent again.
            Err(NoAnswer { sent, .. }) if reused && (!sent || method == Method::GET) => {
                connection = self.connect().await?;
                let request = self.head(&connection, &method, path, &body, key)?;
                self.answer(&mut connection, request).await
            }
            other => other,
        };
        let answer = answer.map_err(|no_answer| match no_answer.why {
            Why::NoHttp => ApiError::NoHttp,
            Why::Cut => ApiError::Cut(Cut::unanswered(&method)),
            Why::Late => ApiError::Cut(self.silent_for(self.answer_time).of(&method)),
        })?;
        *self.idle.lock().await = Some(connection);
        Ok(answer)
    }

    async fn connection(&self) -> Result<(Connection, bool), ApiError> {
        let idle = self.idle.lock().await.take();
        match idle {
            Some(connection) if connection.sender.is_ready() => Ok((connection, true)),
            _ => Ok((self.connect().await?, false)),
        }
    }

    async fn connect(&self) -> Result<Connection, ApiError> {
        let not_reached = |source| ApiError::not_reached(&self.address, source);
        let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        match &self.address {
            Address::Local { home, .. } => {
                let stream = timeout(CONNECT_TIME, UnixStream::connect(home.gateway_socket()))
                    .await
                    .map_err(|_| not_reached(late()))?
                    .map_err(not_reached)?;
                self.shake_hands(stream, Way::Private).await
            }
            Address::Remote {
                url,
                scheme,
                host,
                port,
                ..
            } => {
                let stream = timeout(CONNECT_TIME, TcpStream::connect((host.as_str(), *port)))
                    .await
                    .map_err(|_| not_reached(late()))?
                    .map_err(not_reached)?;
                tune(&stream).map_err(not_reached)?;
                if *scheme == Scheme::Https {
                    let opening = timeout(CONNECT_TIME, self.tls.open(stream, url, host));
                    let stream = opening.await.map_err(|_| not_reached(late()))??;
                    return self.shake_hands(stream, Way::Private).await;
                }
                let peer = stream.peer_addr().map_err(not_reached)?;
                let is_here = peer.ip().to_canonical().is_loopback();
                let way = if is_here { Way::Private } else { Way::Open };
                self.shake_hands(stream, way).await
            }
        }
    }

    async fn shake_hands(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        way: Way,
    ) -> Result<Connection, ApiError> {
        let mut builder = http1::Builder::new();
        if let Some(bytes) = self.read_ahead_max {
            builder.max_buf_size(bytes);
        }
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| ApiError::Cut(Cut::unopened()))?;
        self.tasks.spawn(async move {
            connection.await.ok(); // whoever waits for an answer is told by the sender
        });
        Ok(Connection { sender, way })
    }

    fn head(
        &self,
        connection: &Connection,
        method: &Method,
        path: &str,
        body: &Body,
        key: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, ApiError> {
        let uri = format!("{}{}/{path}", self.address.prefix(), api::PREFIX);
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, self.address.host_header());
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_KEY_HEADER, key);
        }
        if let Some(token) = &self.token {
            if connection.way == Way::Open {
                return Err(ApiError::TokenInTheClear);
            }
            let token = token.expose();
            if !token.starts_with(TOKEN_PREFIX) {
                return Err(ApiError::BadToken);
            }
            let mut value =
                HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| ApiError::BadToken)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let bytes = match body {
            Body::Empty => Bytes::new(),
            Body::Json(bytes) => {
                request = request.header(CONTENT_TYPE, "application/json");
                bytes.clone()
            }
            Body::Raw(bytes) => {
                request = request.header(CONTENT_TYPE, "application/octet-stream");
                bytes.clone()
            }
        };
        request.body(Full::new(bytes)).map_err(ApiError::Unaskable)
    }

    async fn answer(
        &self,
        connection: &mut Connection,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let ready = connection.sender.ready().await;
        ready.map_err(|_| NoAnswer {
            why: Why::Cut,
            sent: false,
        })?;
        let answer = connection.sender.try_send_request(request);
        match timeout(self.answer_time, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(mut error)) => Err(NoAnswer {
                sent: error.take_message().is_none(),
                why: if error.error().is_parse() {
                    Why::NoHttp
                } else {
                    Why::Cut
                },
            }),
            Err(_) => Err(NoAnswer {
                why: Why::Late,
                sent: true,
            }),
        }
    }
}

/// Who follows an output says nothing and may hear nothing for hours: the kernel finds out when the
/// other end is gone.
fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

fn json(body: &impl Serialize) -> Body {
    let bytes = serde_json::to_vec(body).expect("API types have string keys only");
    Body::Json(bytes.into())
}

/// Why no answer came.
struct NoAnswer {
    why: Why,
    /// The request may have arrived.
    sent: bool,
}

enum Why {
    /// The connection broke.
    Cut,
    /// Nothing came in time.
    Late,
    /// What came is no answer in HTTP.
    NoHttp,
}

/// An answer that comes in pieces.
#[derive(Debug)]
pub(crate) struct Pieces {
    body: Incoming,
}

impl Pieces {
    /// Returns the next piece; `None` at the end.
    ///
    /// # Cancel safety
    /// No piece is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|_| ApiError::Cut(Cut::torn()))?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}
