//! Models behind HTTP: three dialects, one way to ask.
//!
//! A [`Provider`] is an address, what it speaks, and perhaps a key; [`Provider::model`] is one of its
//! models, which can be asked as any [`Model`]. What is sent and what an answer means is thought out in
//! [`dialect`], which knows no socket; here it is carried.
//!
//! Nobody at the other end is trusted: a provider may be a machine of somebody else, or a node. Every
//! line, answer and error has a bound, no redirect is followed, and a key goes to the address that it
//! was given for and nowhere else.

mod dialect;
mod failure;
mod lines;

use std::fmt;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, Url};
use zeroize::Zeroizing;

pub use self::dialect::Dialect;
use self::dialect::{Ask, Reader};
use self::failure::Doing;
use self::lines::Lines;
use crate::model::{Model, Request, Said};
use crate::turn::ModelFailure;

/// How long it may take until a connection stands.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How long a model may think, or load its weights, before its first word.
const FIRST_WORD_TIME: Duration = Duration::from_mins(5);
/// How long it may be silent in the middle of an answer.
const SILENCE_TIME: Duration = Duration::from_mins(2);
/// How long a list of models may take.
const LIST_TIME: Duration = Duration::from_secs(10);
/// Bytes of an answer, as it is sent. Above it the answer has failed.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a list of models.
const LIST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a refusal that are read.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

/// Where models are, and how they are spoken to.
#[derive(Debug, Clone)]
pub struct Provider {
    name: String,
    dialect: Dialect,
    base_url: Url,
    key: Option<Key>,
    client: Client,
}

/// A key of a provider. It is shown nowhere.
#[derive(Clone)]
pub struct Key {
    secret: Zeroizing<String>,
    /// Where it was read, for a person whose key is wrong: `the variable LAB_API_KEY`.
    source: String,
}

/// A provider that cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The address is none.
    #[error("`{url}` is no address of a provider: expected one like `http://127.0.0.1:11434`")]
    Url {
        /// As it was given.
        url: String,
    },
    /// The key has characters that no header takes.
    #[error("{key_source} holds no key: it has control characters or line breaks in it")]
    Key {
        /// Where it was read.
        key_source: String,
    },
}

impl Key {
    /// A key, and where it was read: `the variable LAB_API_KEY`.
    ///
    /// # Errors
    /// [`ProviderError::Key`] where no header can carry it.
    pub fn new(secret: &str, source: impl Into<String>) -> Result<Self, ProviderError> {
        let (secret, source) = (Zeroizing::new(secret.trim().to_owned()), source.into());
        let is_visible = |byte: u8| (0x21..0x7f).contains(&byte);
        if secret.is_empty() || !secret.bytes().all(is_visible) {
            return Err(ProviderError::Key { key_source: source });
        }
        Ok(Self { secret, source })
    }

    fn header(&self, prefix: &str) -> Result<HeaderValue, ProviderError> {
        let value = Zeroizing::new(format!("{prefix}{}", *self.secret));
        let value = HeaderValue::from_str(&value);
        let mut value = value.map_err(|_| ProviderError::Key {
            key_source: self.source.clone(),
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Returns how to build a client for providers: it follows no redirect, asks no proxy, and gives up
/// on what does not answer. The caller may add the socket of a tunnel.
pub fn client(tls: rustls::ClientConfig) -> ClientBuilder {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIME)
        .user_agent(concat!("moltis/", env!("CARGO_PKG_VERSION")))
}

impl Provider {
    /// A provider of this name. `base_url` is what its documentation calls so, with or without a
    /// slash at its end: `https://api.openai.com/v1`, `http://127.0.0.1:11434`.
    ///
    /// # Errors
    /// The address is none that can be asked.
    pub fn new(
        name: impl Into<String>,
        dialect: Dialect,
        base_url: &str,
        key: Option<Key>,
        client: Client,
    ) -> Result<Self, ProviderError> {
        let no_address = || ProviderError::Url {
            url: base_url.to_owned(),
        };
        let base_url: Url = base_url.trim().parse().map_err(|_| no_address())?;
        let is_http = matches!(base_url.scheme(), "http" | "https");
        // A password in an address would stand in each error.
        let has_user = !base_url.username().is_empty() || base_url.password().is_some();
        if !is_http || has_user || base_url.cannot_be_a_base() {
            return Err(no_address());
        }
        Ok(Self {
            name: name.into(),
            dialect,
            base_url,
            key,
            client,
        })
    }

    /// Returns its name, which the names of its models begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns one of its models. It reads `tokens_max` tokens at once, its answer not included.
    pub fn model(&self, name: impl Into<String>, tokens_max: usize) -> ProviderModel {
        ProviderModel {
            provider: self.clone(),
            name: name.into(),
            tokens_max,
        }
    }

    /// Asks which models there are. Returns their names, as the provider gives them.
    ///
    /// # Errors
    /// It cannot be reached, refuses, or says something else than a list.
    pub async fn models(&self) -> Result<Vec<String>, ModelFailure> {
        let doing = Doing {
            provider: self,
            model: None,
        };
        let list = async {
            let url = self.url(self.dialect.list_path());
            let mut request = self.client.get(url);
            if let Some(query) = self.dialect.list_query() {
                request = request.query(&[query]);
            }
            let response = self.send(request, doing).await?;
            let body = body_of(response, LIST_BYTES_MAX, doing).await?;
            let names = self.dialect.read_list(&body);
            names.map_err(|no| doing.has_no_answer(&no))
        };
        match tokio::time::timeout(LIST_TIME, list).await {
            Ok(listed) => listed,
            Err(_elapsed) => Err(doing.is_silent(LIST_TIME)),
        }
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base_url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    /// Sends a request, and returns an answer that is none of refusal.
    async fn send(
        &self,
        request: RequestBuilder,
        doing: Doing<'_>,
    ) -> Result<Response, ModelFailure> {
        let headers = self.headers().map_err(|error| doing.cannot_ask(&error))?;
        let response = request.headers(headers).send().await;
        let response = response.map_err(|error| doing.cannot_reach(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, headers) = (response.status(), response.headers().clone());
        // What it says is of use only to explain; a refusal without words is one too.
        let body = body_of(response, REFUSAL_BYTES_MAX, doing).await;
        Err(doing.is_refused(status, &headers, &body.unwrap_or_default()))
    }

    fn headers(&self) -> Result<HeaderMap, ProviderError> {
        let mut headers = HeaderMap::new();
        for (name, value) in self.dialect.headers() {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        if let Some(key) = &self.key {
            let (name, prefix) = self.dialect.key_header();
            headers.insert(name, key.header(prefix)?);
        }
        Ok(headers)
    }
}

/// A model of a provider.
#[derive(Debug, Clone)]
pub struct ProviderModel {
    provider: Provider,
    name: String,
    tokens_max: usize,
}

impl ProviderModel {
    /// Sends a question, and returns the answer to read.
    async fn begin(&self, body: Vec<u8>) -> Result<Answer, ModelFailure> {
        let (provider, doing) = (&self.provider, self.doing());
        let url = provider.url(provider.dialect.ask_path());
        let request = provider
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, provider.dialect.media_type())
            .body(body);
        let sent = tokio::time::timeout(FIRST_WORD_TIME, provider.send(request, doing));
        let response = match sent.await {
            Ok(response) => response?,
            Err(_elapsed) => return Err(doing.is_silent(FIRST_WORD_TIME)),
        };
        let media = response.headers().get(CONTENT_TYPE);
        let media = media.and_then(|media| media.to_str().ok());
        if let Some(media) = media.filter(|media| !provider.dialect.takes(media)) {
            let media = media.to_owned();
            let body = body_of(response, REFUSAL_BYTES_MAX, doing).await;
            return Err(doing.answers_in(&media, &body.unwrap_or_default()));
        }
        Ok(Answer {
            bytes: response.bytes_stream().boxed(),
            received: 0,
            lines: Lines::new(),
            reader: provider.dialect.reader(),
            has_begun: false,
        })
    }

    fn doing(&self) -> Doing<'_> {
        Doing {
            provider: &self.provider,
            model: Some(&self.name),
        }
    }
}

impl Model for ProviderModel {
    fn ask<'a>(&'a self, request: Request<'a>) -> BoxStream<'a, Result<Said, ModelFailure>> {
        let ask = Ask {
            model: &self.name,
            tokens_max: self.tokens_max,
            request: &request,
        };
        let body = self.provider.dialect.write_ask(&ask);
        let begins = stream::once(self.begin(body));
        begins
            .flat_map(move |answer| match answer {
                Ok(answer) => answer.said(self.doing()).boxed(),
                Err(failure) => stream::iter([Err(failure)]).boxed(),
            })
            .boxed()
    }

    fn tokens_max(&self) -> usize {
        self.tokens_max
    }
}

/// An answer that comes.
struct Answer {
    bytes: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    received: usize,
    lines: Lines,
    reader: Reader,
    has_begun: bool,
}

impl Answer {
    /// Returns what is said, piece by piece. It ends behind the first failure.
    fn said(
        self,
        doing: Doing<'_>,
    ) -> impl futures_util::Stream<Item = Result<Said, ModelFailure>> {
        let pieces = stream::unfold(Some(self), move |answer| async move {
            let mut answer = answer?;
            match answer.next(doing).await {
                Ok(Some(said)) => Some((said.into_iter().map(Ok).collect(), Some(answer))),
                Ok(None) => None,
                Err((said, failure)) => {
                    let said = said.into_iter().map(Ok);
                    Some((said.chain([Err(failure)]).collect::<Vec<_>>(), None))
                }
            }
        });
        pieces.flat_map(stream::iter)
    }

    /// Reads what comes next; `None` when the answer is whole. A failure comes with what was said
    /// before it in the same piece.
    async fn next(
        &mut self,
        doing: Doing<'_>,
    ) -> Result<Option<Vec<Said>>, (Vec<Said>, ModelFailure)> {
        if self.reader.is_over() {
            return Ok(None);
        }
        let time = if self.has_begun {
            SILENCE_TIME
        } else {
            FIRST_WORD_TIME
        };
        let mut said = Vec::new();
        let piece = match tokio::time::timeout(time, self.bytes.next()).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(error))) => return Err((said, doing.breaks_off(Some(&error)))),
            Ok(None) => {
                let read = self
                    .lines
                    .finish(|line| self.reader.handle_line(line, &mut said));
                return match read.and_then(|()| self.reader.finish(&mut said)) {
                    Ok(()) if self.reader.is_over() => Ok(Some(said)),
                    Ok(()) => Err((said, doing.breaks_off(None))),
                    Err(no) => Err((said, doing.has_no_answer(&no))),
                };
            }
            Err(_elapsed) => return Err((said, doing.is_silent(time))),
        };
        self.has_begun = true;
        self.received += piece.len();
        if self.received > ANSWER_BYTES_MAX {
            return Err((said, doing.has_no_end(ANSWER_BYTES_MAX)));
        }
        let reader = &mut self.reader;
        let read = self
            .lines
            .push(&piece, |line| reader.handle_line(line, &mut said));
        match read {
            Ok(()) => Ok(Some(said)),
            Err(no) => Err((said, doing.has_no_answer(&no))),
        }
    }
}

/// Reads a body, as far as this.
async fn body_of(
    response: Response,
    bytes_max: usize,
    doing: Doing<'_>,
) -> Result<Vec<u8>, ModelFailure> {
    let mut pieces = response.bytes_stream();
    let mut body = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| doing.breaks_off(Some(&error)))?;
        body.extend_from_slice(&piece);
        if body.len() > bytes_max {
            body.truncate(bytes_max);
            break;
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
