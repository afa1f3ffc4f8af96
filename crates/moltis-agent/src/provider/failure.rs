//! What went wrong with a provider, in the words of a person.

use std::borrow::Cow;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use super::dialect::NoAnswer;
use super::{Provider, ProviderError};
use crate::turn::ModelFailure;

/// Characters of what a provider said that are told: its beginning, far from where a body is cut.
const TOLD_CHARS: usize = 400;

/// Longer than this nobody waits because a provider says so.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// Who is asked for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doing<'a> {
    pub(super) provider: &'a Provider,
    pub(super) model: Option<&'a str>,
}

impl Doing<'_> {
    pub(super) fn cannot_ask(self, error: &ProviderError) -> ModelFailure {
        self.fails(&format!("cannot be asked: {error}"))
    }

    pub(super) fn cannot_reach(self, error: &reqwest::Error) -> ModelFailure {
        let why = deepest(error);
        let words =
            format!("cannot be reached ({why}): is it running, and is its `base_url` right?");
        self.fails_for_now(&words)
    }

    /// It says no, by a status.
    pub(super) fn is_refused(
        self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
    ) -> ModelFailure {
        let said = self.said(body);
        let next = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => match &self.provider.key {
                Some(key) => format!(". Is the key in {} right?", key.source),
                None => ". It wants a key: set `api_key_env` or `api_key_file`".to_owned(),
            },
            StatusCode::NOT_FOUND if self.model.is_some() => {
                ". Is that model there (`moltis models`), and is the `base_url` right?".to_owned()
            }
            StatusCode::NOT_FOUND => ". Is the `base_url` right?".to_owned(),
            status if status.is_redirection() => {
                ". Redirects are not followed: give the address that it leads to".to_owned()
            }
            _ => String::new(),
        };
        let passes = matches!(
            status.as_u16(),
            408 | 425 | 429 | 500 | 502 | 503 | 504 | 529
        );
        ModelFailure {
            passes,
            retry_after: retry_after(headers).filter(|_| passes),
            ..self.fails(&format!("answers {status}{said}{next}"))
        }
    }

    /// It answers in something else than its dialect.
    pub(super) fn answers_in(self, media: &str, body: &[u8]) -> ModelFailure {
        let expected = self.provider.dialect.media_type();
        let (media, said) = (self.told(media), self.said(body));
        let words =
            format!("answers in `{media}`, expected `{expected}`{said}. Is its `base_url` right?");
        self.fails(&words)
    }

    pub(super) fn has_no_answer(self, no: &NoAnswer) -> ModelFailure {
        match no {
            NoAnswer::Unreadable { expected, found } => {
                let found = self.told(found);
                self.fails(&format!(
                    "says what cannot be read: expected {expected}, found `{found}`"
                ))
            }
            NoAnswer::TooMuch(words) => self.fails(&format!("says too much: {words}")),
            // An overloaded one says so when it has begun.
            NoAnswer::Failed(words) => {
                let words = self.told(words);
                self.fails_for_now(&format!("fails in the middle of its answer: {words}"))
            }
        }
    }

    pub(super) fn breaks_off(self, error: Option<&reqwest::Error>) -> ModelFailure {
        let why = error.map(|error| format!(" ({})", deepest(error)));
        let why = why.unwrap_or_default();
        self.fails_for_now(&format!("breaks off in the middle of its answer{why}"))
    }

    pub(super) fn is_silent(self, time: Duration) -> ModelFailure {
        let seconds = time.as_secs();
        self.fails_for_now(&format!("has said nothing for {seconds} s"))
    }

    pub(super) fn has_no_end(self, bytes_max: usize) -> ModelFailure {
        let mib = bytes_max / (1024 * 1024);
        self.fails(&format!("has not come to an end within {mib} MiB"))
    }

    /// It may be asked again.
    fn fails_for_now(self, what: &str) -> ModelFailure {
        ModelFailure {
            passes: true,
            ..self.fails(what)
        }
    }

    fn fails(self, what: &str) -> ModelFailure {
        let Provider { name, base_url, .. } = self.provider;
        let who = match self.model {
            Some(model) => format!("the model `{name}/{model}`"),
            None => format!("the provider `{name}`"),
        };
        ModelFailure {
            passes: false,
            retry_after: None,
            words: format!("{who} at {base_url} {what}"),
        }
    }

    /// Returns what it said, as the end of a sentence.
    fn said(self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        let text = message_of(&text).unwrap_or_else(|| text.trim().to_owned());
        if text.is_empty() {
            return String::new();
        }
        format!(": {}", self.told(&text))
    }

    /// Returns the beginning of what it said, in one line. Some providers repeat the key that they were
    /// given: it goes before anything is cut, or a part of it would stay.
    fn told(self, text: &str) -> String {
        let text = match &self.provider.key {
            Some(key) => Cow::Owned(text.replace(key.secret.as_str(), "(the key)")),
            None => Cow::Borrowed(text),
        };
        let mut all = text.chars();
        let shown = all.by_ref().take(TOLD_CHARS);
        let mut shown: String = shown
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        if all.next().is_some() {
            shown.push('…');
        }
        shown
    }
}

/// Returns the words of a refusal as all three dialects have them: `error.message`, or `error`.
fn message_of(text: &str) -> Option<String> {
    let body: serde_json::Value = serde_json::from_str(text).ok()?;
    let error = body.get("error")?;
    let message = error.get("message").unwrap_or(error);
    Some(message.as_str()?.to_owned())
}

/// Returns how long it asks to be left alone (RFC 9110, 10.2.3), where it says so in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let milliseconds = number("retry-after-ms").map(Duration::from_millis);
    let asked = milliseconds.or_else(|| number("retry-after").map(Duration::from_secs));
    asked.map(|asked| asked.min(RETRY_AFTER_MAX))
}

/// Returns the cause that says most: reqwest's own words repeat the address.
fn deepest(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
