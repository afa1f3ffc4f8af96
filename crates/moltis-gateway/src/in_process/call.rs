//! One call: from the words of a method to a request, through the router, and back from its answer.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderName, HeaderValue, Method, Request};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tower::ServiceExt as _;

use super::InProcess;
use crate::api::problem::{Code, Problem};
use crate::http::way;
use crate::principal::Vouched;

/// A request that is being put together.
pub(super) struct Call<'a> {
    api: &'a InProcess,
    method: Method,
    path: String,
    query: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    /// Why it is not worth sending.
    wrong: Option<Problem>,
}

impl InProcess {
    /// Begins a call of the operation with this id.
    pub(super) fn call(&self, operation: &'static str) -> Call<'_> {
        let (method, path) = way(operation);
        Call {
            api: self,
            method,
            path: path.to_owned(),
            query: String::new(),
            headers: Vec::new(),
            body: Bytes::new(),
            wrong: None,
        }
    }
}

impl Call<'_> {
    /// Names the thing that it is about.
    pub(super) fn of(mut self, id: &str) -> Self {
        if id.is_empty() {
            let words = "an empty text names nothing".to_owned();
            self.wrong = Some(problem(Code::NotFound, words));
        }
        let mut encoded = String::new();
        encode(id, &mut encoded);
        self.path = self.path.replace("{id}", &encoded);
        self
    }

    /// Adds a query: the fields of a flat object.
    pub(super) fn ask(mut self, query: &impl Serialize) -> Self {
        let Ok(Value::Object(fields)) = serde_json::to_value(query) else {
            return self;
        };
        for (name, value) in fields {
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text,
                other => other.to_string(),
            };
            self.query
                .push(if self.query.is_empty() { '?' } else { '&' });
            encode(&name, &mut self.query);
            self.query.push('=');
            encode(&text, &mut self.query);
        }
        self
    }

    /// Says that it is not worth sending, and why.
    pub(super) fn refused(mut self, why: &str) -> Self {
        self.wrong = Some(problem(Code::Invalid, why.to_owned()));
        self
    }

    /// Adds a header, where there is a value for it.
    pub(super) fn header(mut self, name: &'static str, value: Option<&str>) -> Self {
        match value.map(HeaderValue::try_from) {
            None => {}
            Some(Ok(value)) => self.headers.push((HeaderName::from_static(name), value)),
            Some(Err(_)) => {
                let words = format!("the value for `{name}` is no line of visible characters");
                self.wrong = Some(problem(Code::BadRequest, words));
            }
        }
        self
    }

    /// Adds a body of JSON.
    pub(super) fn json(mut self, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => {
                self.body = body.into();
                self.header(CONTENT_TYPE.as_str(), Some("application/json"))
            }
            Err(error) => {
                let words = format!("the request cannot be written as JSON: {error}");
                self.wrong = Some(problem(Code::Invalid, words));
                self
            }
        }
    }

    /// Adds a body of bytes.
    pub(super) fn bytes(mut self, body: Bytes) -> Self {
        self.body = body;
        self.header(CONTENT_TYPE.as_str(), Some("application/octet-stream"))
    }

    /// Asks, and returns the answer where it is no refusal.
    pub(super) async fn send(self) -> Result<Response, Problem> {
        let response = self.send_anyhow().await?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        Err(parsed(response).await?)
    }

    /// Asks, and returns the answer whatever its status.
    pub(super) async fn send_anyhow(self) -> Result<Response, Problem> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.path + &self.query)
            // The gate asks for one, and nobody can have misled this caller about whom it asks.
            .header(HOST, "localhost")
            .extension(Vouched(self.api.who.clone()))
            .body(Body::from(self.body))
            .map_err(|error| problem(Code::BadRequest, error.to_string()))?;
        request.headers_mut().extend(self.headers);
        let answer = self.api.router.clone().oneshot(request).await;
        Ok(answer.unwrap_or_else(|never| match never {}))
    }

    /// Asks, and reads an answer of JSON.
    pub(super) async fn answer<T: DeserializeOwned>(self) -> Result<T, Problem> {
        parsed(self.send().await?).await
    }

    /// Asks, and reads an answer of text.
    pub(super) async fn text(self) -> Result<String, Problem> {
        let body = read(self.send().await?).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Asks for something to be done that has no answer.
    pub(super) async fn done(self) -> Result<(), Problem> {
        self.send().await.map(drop)
    }
}

/// Reads a whole body, which this process has written.
async fn read(response: Response) -> Result<Bytes, Problem> {
    let body = response.into_body().collect().await;
    let body = body.map_err(|error| problem(Code::ShuttingDown, error.to_string()))?;
    Ok(body.to_bytes())
}

/// Reads a whole body of JSON.
pub(super) async fn parsed<T: DeserializeOwned>(response: Response) -> Result<T, Problem> {
    let body = read(response).await?;
    serde_json::from_slice(&body).map_err(|error| unreadable(&error))
}

/// Says that an answer is not what its type says, which a test of the document would have told.
fn unreadable(error: &serde_json::Error) -> Problem {
    problem(
        Code::Internal,
        format!("an answer of this gateway is not as its type says: {error}"),
    )
}

/// Returns a refusal that no handler has made.
fn problem(code: Code, detail: String) -> Problem {
    Problem {
        code,
        status: code.status(),
        title: code.title().to_owned(),
        detail,
        hint: None,
        candidates: Vec::new(),
        gap: None,
        next_offset: None,
        runs: Vec::new(),
        retry_after_seconds: None,
        request_id: String::new(),
    }
}

/// Writes a text with percent signs (RFC 3986, section 2.1) before all that is not unreserved.
fn encode(text: &str, into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(byte.into());
        } else {
            into.push('%');
            into.push(HEX[usize::from(byte >> 4)].into());
            into.push(HEX[usize::from(byte & 15)].into());
        }
    }
}
