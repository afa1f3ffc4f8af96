//! What a handler fails with: words for the peer, and a private cause for the log.
//!
//! A handler returns [`ApiError`]; [`super::envelope`] writes its body, with the request's id, and
//! logs its cause once. Each door's own error becomes one of these in [`super::convert`].

use std::error::Error;
use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use moltis_proto::RunId;

use crate::api::follow::GapReason;
use crate::api::problem::{Candidate, Code, GapRange, Problem};
use crate::api::tokens::TOKEN_PREFIX;

/// The result of a handler.
pub type ApiResult<T> = Result<T, ApiError>;

/// A request that failed.
#[derive(Debug)]
#[must_use]
pub struct ApiError(Box<Failure>);

#[derive(Debug)]
struct Failure {
    code: Code,
    detail: String,
    hint: Option<String>,
    candidates: Vec<Candidate>,
    gap: Option<GapRange>,
    next_offset: Option<u64>,
    runs: Vec<String>,
    retry_after_seconds: Option<u64>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

/// Characters of a detail: a request may be a megabyte, its echo may not.
const DETAIL_CHARS_MAX: usize = 800;

/// Characters behind the prefix of a token from which on it is taken for one: 20 are 120 bits.
const SECRET_CHARS_MIN: usize = 20;

impl ApiError {
    /// A failure with words for the peer.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Box::new(Failure {
            code,
            detail: cut(without_tokens(detail.into())),
            hint: None,
            candidates: Vec::new(),
            gap: None,
            next_offset: None,
            runs: Vec::new(),
            retry_after_seconds: None,
            cause: None,
        }))
    }

    /// A value of the request that is out of its bounds.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::Invalid, detail)
    }

    /// A failure of ours: the peer learns what we were doing, the log learns why it failed.
    pub fn internal(doing: &str, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Code::Internal, format!("the gateway could not {doing}"))
            .hint("the gateway's log has the cause, under the request id of this answer")
            .because(cause)
    }

    /// Adds what to do or type next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds whom an ambiguous name could mean.
    pub fn candidates(mut self, candidates: Vec<Candidate>) -> Self {
        self.0.candidates = candidates;
        self
    }

    /// Adds the bytes that are gone.
    pub fn gap(mut self, from: u64, to: u64, reason: GapReason) -> Self {
        let reason = Some(reason);
        self.0.gap = Some(GapRange { from, to, reason });
        self
    }

    /// Adds the offset of the byte that is expected.
    pub fn next_offset(mut self, offset: u64) -> Self {
        self.0.next_offset = Some(offset);
        self
    }

    /// Adds the runs that were made all the same.
    pub fn runs(mut self, runs: &[RunId]) -> Self {
        self.0.runs = runs.iter().map(ToString::to_string).collect();
        self
    }

    /// Adds when to come back.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_seconds = Some(seconds);
        self
    }

    /// Adds the private cause.
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Returns the body of the answer.
    pub(super) fn problem(&self, request_id: String) -> Problem {
        let failure = &self.0;
        Problem {
            code: failure.code,
            status: failure.code.status(),
            title: failure.code.title().to_owned(),
            detail: failure.detail.clone(),
            hint: failure.hint.clone(),
            candidates: failure.candidates.clone(),
            gap: failure.gap,
            next_offset: failure.next_offset,
            runs: failure.runs.clone(),
            retry_after_seconds: failure.retry_after_seconds,
            request_id,
        }
    }

    /// Returns the private cause and its causes, joined by colons; empty when there is none.
    pub(super) fn chain(&self) -> String {
        let mut words = Vec::new();
        let mut next = self.0.cause.as_deref().map(|cause| cause as &dyn Error);
        while let Some(cause) = next {
            words.push(cause.to_string());
            next = cause.source();
        }
        words.join(": ")
    }
}

/// Blackens tokens: one in the wrong place is echoed, and written into a log, no more than one in
/// the right place.
pub(super) fn without_tokens(detail: String) -> String {
    if !detail.contains(TOKEN_PREFIX) {
        return detail;
    }
    let mut parts = detail.split(TOKEN_PREFIX);
    let mut words = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        words.push_str(TOKEN_PREFIX);
        let is_secret = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let end = part.find(|c| !is_secret(c)).unwrap_or(part.len());
        if end < SECRET_CHARS_MIN {
            words.push_str(part);
        } else {
            words.push('…');
            words.push_str(&part[end..]);
        }
    }
    words
}

fn cut(detail: String) -> String {
    match detail.char_indices().nth(DETAIL_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &detail[..at]),
        None => detail,
    }
}

impl IntoResponse for ApiError {
    /// Leaves itself in the answer's extensions: only the envelope knows the request's id.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status())
            .expect("the table of codes holds statuses of three digits");
        let mut response = status.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_of_a_long_request_is_cut() {
        let error = ApiError::invalid("é".repeat(5000));
        assert_eq!(error.0.detail.chars().count(), DETAIL_CHARS_MAX + 1);
    }

    #[test]
    fn a_token_in_the_wrong_place_is_not_echoed() {
        let token = format!("moltis_{}", "aB-_".repeat(11));
        let error = ApiError::invalid(format!("`{token}` and `{token}` are no nodes"));
        assert_eq!(error.0.detail, "`moltis_…` and `moltis_…` are no nodes");
        let error = ApiError::invalid("there is no node `moltis_box`");
        assert_eq!(error.0.detail, "there is no node `moltis_box`");
    }

    #[test]
    fn the_cause_is_for_the_log_alone() {
        let disk = std::io::Error::other("disk gone");
        let error = ApiError::internal("read the run", disk);
        assert_eq!(error.chain(), "disk gone");
        let body = serde_json::to_string(&error.problem("r1".to_owned())).unwrap();
        assert!(!body.contains("disk"), "{body}");
    }
}
