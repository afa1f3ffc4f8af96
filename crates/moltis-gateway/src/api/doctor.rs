//! What the doctor finds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One finding: an item of `GET doctor`, and of `moltis doctor --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// What was looked at: `database`, `disk`, … A newer gateway may look at more.
    pub check: String,
    /// How it stands.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to type or to do next; `None` where there is nothing to do.
    pub hint: Option<String>,
}

/// How something stands, the best first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should.
    Ok,
    /// It works, and somebody should look at it.
    Warning,
    /// It does not work.
    Error,
}

impl Level {
    /// Returns the word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}
