//! Errors as problem details (RFC 9457): one shape, one list of codes.
//!
//! Called by the server's `ApiError` and by whoever reads an answer that is no success.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::follow::GapReason;

/// The body of every answer from 400 on, with media type `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// What went wrong, for programs.
    pub code: Code,
    /// The status of the answer.
    pub status: u16,
    /// The code in words, the same for each occurrence.
    pub title: String,
    /// What happened here: which thing, what was found, what was expected.
    pub detail: String,
    /// What to do or type next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whom an ambiguous name could mean; empty for every other code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
    /// With `output_gap`: the bytes that are gone.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub gap: Option<GapRange>,
    /// Where bytes for stdin do not go on where the run's stdin does: the offset of the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<u64>,
    /// Ids of runs that this request has made all the same, and that go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<String>,
    /// With `too_many`: seconds to wait, as in `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// The id under which the gateway's log speaks of this request.
    #[serde(default)]
    pub request_id: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

/// One of several things that a name could mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// Its id, which is never ambiguous.
    pub id: String,
    /// Its display name; for a run the command, cut short.
    pub name: String,
}

/// Bytes of a stream that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GapRange {
    /// Offset of the first byte that is gone.
    pub from: u64,
    /// Offset behind the last one.
    pub to: u64,
    /// Why; an older gateway does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<GapReason>,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// What went wrong, for programs. Each code has one status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
            /// A code of a newer gateway; never sent.
            #[serde(other, rename = "unrecognised")]
            #[schemars(skip)]
            Unrecognised,
        }

        impl Code {
            /// Every code that a gateway sends.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the code as it stands in the body.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Unrecognised => "unrecognised",
                }
            }

            /// Returns the status that goes with it.
            pub fn status(self) -> u16 {
                match self {
                    $(Self::$variant => $status,)*
                    Self::Unrecognised => 500,
                }
            }

            /// Returns the code in words.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => $title,)*
                    Self::Unrecognised => "an error of a newer gateway",
                }
            }
        }
    };
}

codes! {
    /// The request cannot be read.
    BadRequest = "bad_request", 400, "the request cannot be read";
    /// No token, or one that is not known here, expired or revoked.
    Unauthenticated = "unauthenticated", 401, "who asks is not known";
    /// The token may not do this.
    ScopeMissing = "scope_missing", 403, "the token lacks a scope";
    /// This address has no TLS and is not loopback.
    TlsRequired = "tls_required", 403, "this address needs TLS";
    /// The request comes from another site.
    Csrf = "csrf", 403, "the request comes from another site";
    /// The password is wrong.
    WrongPassword = "wrong_password", 403, "the password is wrong";
    /// There is no such thing.
    NotFound = "not_found", 404, "there is no such thing";
    /// There is no such node.
    NodeNotFound = "node_not_found", 404, "there is no such node";
    /// The route does not know the method.
    MethodNotAllowed = "method_not_allowed", 405, "the method is not allowed here";
    /// A name that several things have, and none of them is a node.
    Ambiguous = "ambiguous", 409, "the id could mean several things";
    /// The name or prefix means several nodes.
    NodeAmbiguous = "node_ambiguous", 409, "the name could mean several nodes";
    /// The node is not connected.
    NodeOffline = "node_offline", 409, "the node is not connected";
    /// The node was revoked.
    NodeRevoked = "node_revoked", 409, "the node was revoked";
    /// The same idempotency key came with another body.
    IdempotencyConflict = "idempotency_conflict", 409, "the key was used for another request";
    /// The pairing request is not what the person saw.
    RequestChanged = "request_changed", 409, "the request has changed";
    /// The pairing request waited too long.
    RequestExpired = "request_expired", 409, "the request has expired";
    /// Somebody has answered already.
    AlreadyAnswered = "already_answered", 409, "the request was answered already";
    /// Another one has this name or id.
    NameInUse = "name_in_use", 409, "the name is in use";
    /// The key is needed by something.
    KeyInUse = "key_in_use", 409, "the key is in use";
    /// The node is connected.
    NodeOnline = "node_online", 409, "the node is connected";
    /// The output that was asked for is gone.
    OutputGap = "output_gap", 409, "this part of the output is gone";
    /// The run is over, or its stdin is closed.
    RunEnded = "run_ended", 409, "the run does not take this any more";
    /// A turn of this chat runs already.
    TurnRunning = "turn_running", 409, "a turn is running";
    /// The body is too long.
    TooLarge = "too_large", 413, "the request is too large";
    /// The body is not of the type that this route reads.
    UnsupportedMediaType = "unsupported_media_type", 415, "the media type is not supported";
    /// The offset lies behind the end.
    RangeNotSatisfiable = "range_not_satisfiable", 416, "the range lies behind the end";
    /// The Host is not one of ours.
    WrongHost = "wrong_host", 421, "the host is not served here";
    /// A value is out of its bounds.
    Invalid = "invalid", 422, "a value is not valid";
    /// The variable may not be set by a request.
    EnvNotAllowed = "env_not_allowed", 422, "the environment variable is not allowed";
    /// More time than the node grants.
    TimeoutTooLong = "timeout_too_long", 422, "the timeout is too long";
    /// The target has no pinned host key.
    HostKeyUnpinned = "host_key_unpinned", 422, "the host key is not pinned";
    /// The vault is locked.
    VaultLocked = "vault_locked", 423, "the vault is locked";
    /// Later.
    TooMany = "too_many", 429, "too many requests";
    /// Something failed inside; the log knows more.
    Internal = "internal", 500, "something failed inside the gateway";
    /// A model provider failed.
    ProviderFailed = "provider_failed", 502, "a provider failed";
    /// The store cannot be written.
    StoreReadOnly = "store_read_only", 503, "the store cannot be written";
    /// The gateway is stopping.
    ShuttingDown = "shutting_down", 503, "the gateway is stopping";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_the_same_word_in_the_body_and_in_the_program() {
        for code in Code::ALL {
            let text = format!("\"{code}\"");
            assert_eq!(serde_json::to_string(code).unwrap(), text);
            assert_eq!(serde_json::from_str::<Code>(&text).unwrap(), *code);
            assert!((400..=599).contains(&code.status()), "{code}");
        }
    }

    #[test]
    fn a_code_of_a_newer_gateway_can_still_be_read() {
        let body = r#"{"code":"moon_phase","status":409,"title":"t","detail":"d","new":1}"#;
        let problem: Problem = serde_json::from_str(body).unwrap();
        assert_eq!(problem.code, Code::Unrecognised);
        assert_eq!(problem.gap, None);
    }

    #[test]
    fn a_gap_names_its_bytes_beside_the_code() {
        let body = r#"{"code":"output_gap","status":409,"title":"t","detail":"d","from":3,"to":9}"#;
        let problem: Problem = serde_json::from_str(body).unwrap();
        let (from, to, reason) = (3, 9, None);
        assert_eq!(problem.gap, Some(GapRange { from, to, reason }));
        let again = serde_json::to_value(&problem).unwrap();
        assert_eq!((&again["from"], &again["to"]), (&3.into(), &9.into()));
    }
}
