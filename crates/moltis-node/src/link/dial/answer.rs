//! What answers where a gateway was expected, told apart by what a person has to mend.

use std::io;
use std::time::Duration;

use moltis_proto::Subprotocol;
use tokio_tungstenite::tungstenite::error::{ProtocolError, SubProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::header;
use tokio_tungstenite::tungstenite::{self, Error};

use crate::error::{LinkError, Step};
use crate::tls::TlsError;
use crate::url::GatewayUrl;

/// When to come back to a busy gateway that does not say.
const BUSY_TIME: Duration = Duration::from_secs(5);

/// Turns a failed upgrade into words.
pub(super) fn classify(url: &GatewayUrl, offers: &[Subprotocol], error: Error) -> LinkError {
    let url = url.clone();
    let not_a_gateway = |url, found: &str| LinkError::NotAGateway {
        url,
        found: found.to_owned(),
    };
    match error {
        Error::Http(response) => status(url, offers, &response),
        Error::Io(source) if let Some(source) = TlsError::find(&source, url.host()) => {
            LinkError::Tls { url, source }
        }
        Error::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => LinkError::Hangup {
            during: Some(Step::Upgrade),
        },
        Error::Io(source) => LinkError::Broken(source),
        Error::Tls(tungstenite::error::TlsError::Rustls(source)) => LinkError::Tls {
            source: TlsError::of(*source, url.host()),
            url,
        },
        Error::Protocol(ProtocolError::HandshakeIncomplete) => LinkError::Hangup {
            during: Some(Step::Upgrade),
        },
        Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(
            SubProtocolError::NoSubProtocol | SubProtocolError::InvalidSubProtocol,
        )) => not_a_gateway(url, "it accepts WebSockets, but none that a node speaks"),
        Error::Protocol(ProtocolError::HttparseError(_)) => {
            not_a_gateway(url, "it does not speak HTTP")
        }
        other => LinkError::NotAGateway {
            url,
            found: format!("its answer to the upgrade is wrong ({other})"),
        },
    }
}

fn status(url: GatewayUrl, offers: &[Subprotocol], response: &Response) -> LinkError {
    let status = response.status().as_u16();
    match status {
        300..=400 if !url.is_tls() && wants_tls(&url, response) => LinkError::TlsExpected { url },
        404 | 410 => LinkError::NotFound { url, status },
        426 if speaks_only_others(response, offers) => LinkError::Version(None),
        426 => LinkError::ProxyWithoutUpgrade { url },
        429 | 503 => LinkError::Busy {
            url,
            retry_after: retry_after(response).unwrap_or(BUSY_TIME),
        },
        502 | 504 => LinkError::ProxyWithoutGateway { url, status },
        200..=399 => LinkError::WebPage { url, status },
        _ if is_page(response) => LinkError::WebPage { url, status },
        _ => LinkError::Answer { url, status },
    }
}

/// A gateway answers 426 with the names that it speaks. Where none of ours is among them it is too
/// old or too new; else the request has lost its upgrade on the way. The body is there as far as it
/// came with the head.
fn speaks_only_others(response: &Response, offers: &[Subprotocol]) -> bool {
    let body = response.body().as_deref().unwrap_or_default();
    let words = String::from_utf8_lossy(body);
    let mut names = words
        .split(|c: char| c.is_whitespace() || c == ',')
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| word.starts_with("moltis.node."))
        .peekable();
    names.peek().is_some() && !names.any(|name| offers.iter().any(|offer| offer.name() == name))
}

fn is_page(response: &Response) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"))
}

/// A server that leads to https at the same host, or that says by its own words (nginx, Go) that plain HTTP reached a
/// port of TLS.
fn wants_tls(url: &GatewayUrl, response: &Response) -> bool {
    let location = response.headers().get(header::LOCATION);
    let location = location.and_then(|to| to.to_str().ok());
    let location = location.and_then(|to| to.strip_prefix("https://"));
    let body = response.body().as_deref().unwrap_or_default();
    location.is_some_and(|to| to.trim_start_matches('[').starts_with(url.host()))
        || (response.status() == 400 && String::from_utf8_lossy(body).contains("HTTPS"))
}

/// Seconds; a date (RFC 9110, 10.2.3) is left to the default.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?;
    let seconds = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
