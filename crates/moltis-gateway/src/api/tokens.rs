//! API tokens and what they may do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Timestamp, number};

/// The longest that a token may work: 10 years.
pub const LIFE_SECONDS_MAX: u64 = 3650 * 24 * 3600;

/// Characters of a token's name.
pub const NAME_CHARS_MAX: usize = 64;

/// Tokens of one page, at the most and where nothing is said.
pub const PAGE_MAX: u32 = 1000;

/// How every token begins, so that one found in a wrong place is known for what it is.
pub const TOKEN_PREFIX: &str = "moltis_";

macro_rules! scopes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal;)*) => {
        /// One thing that a token may be allowed to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum Scope {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Scope {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the scope as it is written.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl std::str::FromStr for Scope {
            type Err = UnknownScope;

            fn from_str(text: &str) -> Result<Self, UnknownScope> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(UnknownScope { found: text.chars().take(64).collect() }),
                }
            }
        }
    };
}

scopes! {
    /// See nodes.
    NodesRead = "nodes:read";
    /// Pair, approve, reject, rename, label, revoke.
    NodesAdmin = "nodes:admin";
    /// See runs and their output.
    RunsRead = "runs:read";
    /// Start, feed and cancel runs.
    RunsWrite = "runs:write";
    /// Chats.
    Chats = "chats";
    /// The MCP server.
    Mcp = "mcp";
    /// SSH targets and keys.
    SshAdmin = "ssh:admin";
    /// The vault.
    VaultAdmin = "vault:admin";
    /// The audit log.
    AuditRead = "audit:read";
    /// Metrics.
    Metrics = "metrics";
    /// Tokens, each with no more scopes than its maker has.
    TokensAdmin = "tokens:admin";
    /// Everything but answering approvals.
    Admin = "admin";
}

/// A text is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a scope: there are {}", list())]
pub struct UnknownScope {
    found: String,
}

fn list() -> String {
    let all: Vec<_> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
    all.join(", ")
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One token, without its secret: an item of `GET tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// What its maker called it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends to work.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
}

/// Answer of `POST tokens`: the only time that the secret is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewToken {
    /// Its id.
    pub id: String,
    /// What its maker called it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The secret: `moltis_…`.
    pub token: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends to work.
    pub expires_at: Option<Timestamp>,
}

/// Body of `POST tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What to call it: 1 to 64 visible characters, not in use.
    #[schemars(length(min = 1, max = NAME_CHARS_MAX))]
    pub name: String,
    /// What it may do: at least one, and none that its maker lacks.
    #[schemars(length(min = 1))]
    pub scopes: Vec<Scope>,
    /// How long it works, in seconds: at least 1, at most 10 years; 90 days when left out.
    #[serde(
        default,
        deserialize_with = "number::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = LIFE_SECONDS_MAX))]
    pub expires_in_seconds: Option<u64>,
}

/// Query of `GET tokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListTokens {
    /// At most so many: 1 to 1000, 1000 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = PAGE_MAX))]
    pub limit: Option<u32>,
    /// `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_the_same_word_everywhere() {
        for scope in Scope::ALL {
            assert_eq!(
                serde_json::to_string(scope).unwrap(),
                format!("\"{scope}\"")
            );
            assert_eq!(scope.as_str().parse(), Ok(*scope));
        }
    }

    #[test]
    fn an_unknown_scope_is_answered_with_the_list() {
        let error = "nodes:write".parse::<Scope>().unwrap_err().to_string();
        assert!(
            error.starts_with("`nodes:write` is not a scope: there are nodes:read"),
            "{error}"
        );
    }
}
