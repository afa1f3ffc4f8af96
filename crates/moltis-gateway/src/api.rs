//! The shapes of the HTTP API: every request and every answer under `/api/v1`, as serde types.
//!
//! The server writes them and the command line reads them, so both directions are derived. They are
//! a vocabulary of their own: wire messages and stored rows become these in explicit conversions
//! (in [`crate::http`]), and each may change without the others. A request refuses fields it does
//! not know; an answer may grow fields, and its reader skips what it does not know.
//!
//! Here is no handler, no status line and no route.

pub mod doctor;
pub mod events;
pub mod fleet;
pub mod follow;
pub mod gateway;
pub mod nodes;
mod number;
pub mod pairing;
pub mod problem;
pub mod runs;
pub mod telemetry;
pub mod tokens;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use jiff::Timestamp;

/// The prefix of all routes but `/ws`, the health checks and the front page.
pub const PREFIX: &str = "/api/v1";

/// Header of an answer with output: the offset of the first byte behind it.
pub const NEXT_OFFSET_HEADER: &str = "moltis-next-offset";

/// Header that makes `POST runs` safe to repeat: 1 to 128 visible ASCII characters.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";

/// Header of the answer to `POST runs?follow=true`: the id of the run.
pub const RUN_ID_HEADER: &str = "moltis-run-id";

/// Header of every answer: the id under which the gateway's log speaks of this request.
pub const REQUEST_ID_HEADER: &str = "moltis-request-id";

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ListOf{T}")]
pub struct List<T> {
    /// The page, in the list's order.
    pub items: Vec<T>,
    /// What to send as `cursor` for the next page; `None` on the last one.
    pub next: Option<String>,
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self { items, next: None }
    }
}

/// The body of a request that needs none: `{}`, or nothing at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// Answer of `/healthz` and `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Whether all is well.
    pub ok: bool,
    /// What is not, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
