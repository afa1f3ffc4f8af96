//! What a handler takes from a request: a JSON body, raw bytes, a query, a path, and the prefix that
//! an embedder gave all of them. Each says what is wrong with it by name.

use std::convert::Infallible;
use std::time::Duration;

use axum::RequestPartsExt as _;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, NestedPath, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::api::problem::Code;
use crate::api::runs::OFFSET_MAX;

/// Bytes of a body. A longer one is answered 413.
pub(crate) const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a body that is too long that are read before the connection is cut.
const DISCARDED_BYTES_MAX: usize = 8 * BODY_BYTES_MAX;

/// How long a body may take to arrive.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// A JSON body. An empty one reads as `{}`, so that a type without required fields needs none.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

/// A body of bytes that mean nothing to us.
#[derive(Debug)]
pub(crate) struct Raw(pub(crate) Bytes);

/// The query, read into a type.
#[derive(Debug)]
pub(crate) struct Asked<T>(pub(crate) T);

/// The path under which an embedder has put the whole router: `/moltis`; empty at the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prefix(String);

impl Prefix {
    /// Finds that of a request.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        let path = extensions.get::<NestedPath>();
        let path = path.map(|path| path.as_str().trim_end_matches('/').to_owned());
        Self(path.unwrap_or_default())
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Prefix {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

/// The one variable part of a path.
#[derive(Debug)]
pub(crate) struct Id(pub(crate) String);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = collect(body).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(Self);
        }
        let json = |media: &str| media == "application/json" || media.ends_with("+json");
        if !media_type(&parts.headers).is_some_and(|media| json(&media)) {
            return Err(
                ApiError::new(Code::UnsupportedMediaType, "this route reads JSON")
                    .hint("send `content-type: application/json`"),
            );
        }
        parse(&bytes).map(Self)
    }
}

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let media = media_type(&parts.headers);
        if media.is_some_and(|media| media != "application/octet-stream") {
            return Err(ApiError::new(
                Code::UnsupportedMediaType,
                "this route reads bytes as they are",
            )
            .hint("send `content-type: application/octet-stream`"));
        }
        collect(body).await.map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => {
                let why = deepest(&rejection);
                Err(ApiError::new(
                    Code::BadRequest,
                    format!("the query cannot be read: {why}"),
                ))
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Path(id) = parts.extract::<Path<String>>().await.map_err(|_| {
            ApiError::new(
                Code::BadRequest,
                "the path is not UTF-8 behind its percent signs",
            )
        })?;
        Ok(Self(id))
    }
}

/// Refuses an offset that not every reader of JSON could read.
pub(crate) fn check_offset(name: &str, offset: u64) -> Result<(), ApiError> {
    if offset > OFFSET_MAX {
        return Err(ApiError::invalid(format!(
            "`{name}`: {offset} is more than {OFFSET_MAX}"
        )));
    }
    Ok(())
}

/// Digits that the beginning of an id needs to stand for it where something is changed.
const BEGINNING_DIGITS_MIN: usize = 8;

/// Refuses so short a beginning of an id that a slip could mean another `what`.
pub(super) fn check_beginning(what: &str, id: &str) -> Result<(), ApiError> {
    if id.len() >= BEGINNING_DIGITS_MIN {
        return Ok(());
    }
    Err(ApiError::new(
        Code::NotFound,
        format!("there is no {what} `{id}`, and so few digits of an id change none"),
    )
    .hint(format!(
        "name it by its whole id, or by at least {BEGINNING_DIGITS_MIN} digits"
    )))
}

/// Refuses every parameter in front of a handler that reads none: one that is not known, or a
/// token in the wrong place, is not passed over in silence.
pub(super) async fn refuse_query(request: Request, next: Next) -> Response {
    let names = match request.uri().query() {
        None | Some("") => return next.run(request).await,
        Some(query) => query.split('&').map(|one| one.split('=').next()),
    };
    let name = names.flatten().next().unwrap_or_default();
    ApiError::new(
        Code::BadRequest,
        format!("the query cannot be read: unknown field `{name}`, there are no fields"),
    )
    .into_response()
}

/// Reads a whole body within its limits. What is too long is read on for a while and thrown away:
/// a sender that is cut off while it writes never sees why.
async fn collect(mut body: Body) -> Result<Bytes, ApiError> {
    let mut bytes = BytesMut::new();
    let mut length = 0;
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            length += data.len();
            if length <= BODY_BYTES_MAX {
                bytes.extend_from_slice(&data);
            } else if length > DISCARDED_BYTES_MAX {
                break;
            }
        }
        Ok::<_, axum::Error>(())
    };
    match tokio::time::timeout(BODY_TIME_MAX, read).await {
        Ok(Ok(())) if length <= BODY_BYTES_MAX => Ok(bytes.freeze()),
        Ok(Ok(())) => {
            let more = if length > DISCARDED_BYTES_MAX {
                "more than "
            } else {
                ""
            };
            Err(ApiError::new(
                Code::TooLarge,
                format!("the body has {more}{length} bytes: at most {BODY_BYTES_MAX} are read"),
            )
            .hint("send long input to the command's stdin, in pieces"))
        }
        Ok(Err(error)) => {
            Err(ApiError::new(Code::BadRequest, "the body ended too early").because(error))
        }
        Err(_) => Err(ApiError::new(
            Code::BadRequest,
            format!(
                "the body did not arrive within {} s",
                BODY_TIME_MAX.as_secs()
            ),
        )),
    }
}

/// Parses JSON. What is no JSON is a bad request; JSON that does not fit is invalid, and the
/// answer names the field.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // serde reads a list as a struct too, field by field; nobody means that.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::invalid(
            "the body is a JSON array: expected an object",
        ));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() {
            let place = if path == "." {
                String::new()
            } else {
                format!("`{path}`: ")
            };
            ApiError::invalid(format!("{place}{inner}"))
        } else {
            ApiError::new(Code::BadRequest, format!("the body is not JSON: {inner}"))
        }
    })?;
    reader.end().map_err(|error| {
        ApiError::new(
            Code::BadRequest,
            format!("the body is not one JSON value: {error}"),
        )
    })?;
    Ok(value)
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().unwrap_or("?");
    let media = value.split(';').next().unwrap_or_default();
    Some(media.trim().to_ascii_lowercase())
}

fn deepest(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => deepest(cause),
        None => error.to_string(),
    }
}
