//! What an agent needs of a model, whoever provides it.

use std::borrow::Cow;

use futures_util::stream::BoxStream;
use serde_json::Value;

use crate::message::{Message, ToolCall};
use crate::turn::ModelFailure;

/// A model that can be asked.
pub trait Model: Send + Sync {
    /// Asks, and returns what it says as it says it. The answer is whole when the stream ends without
    /// an error; whoever drops the stream has the provider stop.
    fn ask<'a>(&'a self, request: Request<'a>) -> BoxStream<'a, Result<Said, ModelFailure>>;

    /// Returns how many tokens it reads at once, its answer not included.
    fn tokens_max(&self) -> usize;
}

/// What a model is given.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// What it is told before the conversation.
    pub instructions: &'a str,
    /// The conversation, the newest message last.
    pub messages: Vec<Cow<'a, Message>>,
    /// What it may call.
    pub tools: &'a [ToolSpec],
}

/// A tool, as a model is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    /// The name by which it is called.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// JSON schema of its arguments: an object.
    pub parameters: Value,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The next piece of text.
    Text(String),
    /// A call, whole.
    Call(ToolCall),
}
