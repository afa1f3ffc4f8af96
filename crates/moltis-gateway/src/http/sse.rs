//! Server-sent events as text (HTML standard, 9.2), and the head of an answer that is made of them.

use std::fmt::Display;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde::Serialize;

use crate::api::events::{LAST_EVENT_ID_HEADER, MEDIA_TYPE, RESET, Reset, ResetReason};

/// A stream that has nothing to say says so this often: proxies close what is silent for a minute.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The wait of a reader before it comes back.
const RETRY: Duration = Duration::from_secs(2);

/// An id that no stream gives, in place of one that is not even text.
const NO_TEXT: &str = "?";

/// Returns one event. JSON has no line breaks, so its data is one line.
pub(super) fn event(id: impl Display, name: impl Display, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("answers have string keys only");
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n").into()
}

/// Returns the event that says that others were missed.
pub(super) fn reset(id: impl Display, reason: ResetReason) -> Bytes {
    event(id, RESET, &Reset { reason })
}

/// Returns how a stream begins: when to come back, and where it begins, so that who is cut off
/// before the first event has an id too. It is no event: it has no data.
pub(super) fn opening(id: Option<&dyn Display>) -> Bytes {
    let retry = RETRY.as_millis();
    match id {
        Some(id) => format!("retry: {retry}\nid: {id}\n\n").into(),
        None => format!("retry: {retry}\n\n").into(),
    }
}

/// Returns a sign of life, and where the stream stands, where nothing that is not for its reader
/// has moved it on.
pub(super) fn keep_alive(id: Option<&dyn Display>) -> Bytes {
    match id {
        Some(id) => format!(": keep-alive\nid: {id}\n\n").into(),
        None => Bytes::from_static(b": keep-alive\n\n"),
    }
}

/// Returns the id of the last event that a reader has: from its header, else from its query. An
/// empty one is none.
pub(super) fn last_id(headers: &HeaderMap, query: Option<String>) -> Option<String> {
    let header = headers.get(LAST_EVENT_ID_HEADER);
    let header = header.map(|id| id.to_str().unwrap_or(NO_TEXT).to_owned());
    header.or(query).filter(|id| !id.is_empty())
}

/// Answers with events as they come.
pub(super) fn answer(body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A proxy that gathers before it passes on would make live events look dead.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_with_line_breaks_is_one_line_of_data() {
        let text = event("1-2", "output", &"a\nb\r\u{2028}");
        let text = std::str::from_utf8(&text).unwrap();
        assert_eq!(
            text,
            "id: 1-2\nevent: output\ndata: \"a\\nb\\r\u{2028}\"\n\n"
        );
    }

    #[test]
    fn the_header_goes_before_the_query_and_an_empty_id_is_none() {
        let headers = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(
                LAST_EVENT_ID_HEADER,
                HeaderValue::from_bytes(value).unwrap(),
            );
            headers
        };
        let query = || Some("q".to_owned());
        assert_eq!(last_id(&headers(b"h"), query()).as_deref(), Some("h"));
        assert_eq!(last_id(&HeaderMap::new(), query()).as_deref(), Some("q"));
        assert_eq!(last_id(&headers(b""), None), None);
        assert_eq!(last_id(&headers(b"\xff"), None).as_deref(), Some("?"));
    }
}
