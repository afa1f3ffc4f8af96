//! Anthropic's messages (<https://docs.anthropic.com/en/api/messages-streaming>).

use serde::Deserialize;
use serde_json::{Value, json};

use super::sse::Event;
use super::{Ask, Drafts, NoAnswer, object_of, read, too_long};
use crate::message::Message;
use crate::model::Said;

/// Tokens of one answer. The dialect wants a bound; models that are spoken to so allow as many.
const ANSWER_TOKENS_MAX: u32 = 8192;

/// Returns the body of a question.
pub(super) fn write(ask: &Ask<'_>) -> Value {
    let messages = ask.request.messages.iter();
    let messages = messages.filter_map(|message| written(message));
    let tools = ask.request.tools.iter();
    let tools = tools.map(|tool| {
        json!({
            "name": tool.name,
            "description": tool.description,
            "input_schema": tool.parameters,
        })
    });
    json!({
        "model": ask.model,
        "stream": true,
        "max_tokens": ANSWER_TOKENS_MAX,
        "system": ask.request.instructions,
        "messages": messages.collect::<Vec<_>>(),
        "tools": tools.collect::<Vec<_>>(),
    })
}

/// Returns a message; `None` where it has nothing in it, which is refused.
fn written(message: &Message) -> Option<Value> {
    let (role, content): (_, Vec<_>) = match message {
        Message::User { text } => ("user", said(text).into_iter().collect()),
        Message::Assistant { text, calls } => {
            let calls = calls.iter().map(|call| {
                json!({
                    "type": "tool_use",
                    "id": call.id,
                    "name": call.tool,
                    "input": object_of(&call.arguments),
                })
            });
            ("assistant", said(text).into_iter().chain(calls).collect())
        }
        Message::Results { results } => {
            let results = results.iter().map(|(id, result)| {
                json!({
                    "type": "tool_result",
                    "tool_use_id": id,
                    "content": result.text,
                    "is_error": result.is_error,
                })
            });
            ("user", results.collect())
        }
    };
    (!content.is_empty()).then(|| json!({"role": role, "content": content}))
}

/// Text without a letter in it is refused.
fn said(text: &str) -> Option<Value> {
    (!text.trim().is_empty()).then(|| json!({"type": "text", "text": text}))
}

/// Reads one answer.
#[derive(Debug, Default)]
pub(in crate::provider) struct Reader {
    drafts: Drafts,
    is_over: bool,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Data {
    ContentBlockStart {
        index: u64,
        content_block: Block,
    },
    ContentBlockDelta {
        index: u64,
        delta: Delta,
    },
    MessageDelta {
        delta: Change,
    },
    MessageStop,
    Error {
        error: Failure,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        #[serde(default)]
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Change {
    stop_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    #[serde(default)]
    message: String,
}

impl Reader {
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(super) fn handle_event(
        &mut self,
        event: &Event,
        said: &mut Vec<Said>,
    ) -> Result<(), NoAnswer> {
        if self.is_over {
            return Ok(());
        }
        match read(&event.data)? {
            Data::ContentBlockStart {
                index,
                content_block,
            } => match content_block {
                Block::Text { text } if !text.is_empty() => said.push(Said::Text(text)),
                Block::ToolUse { id, name } => {
                    let draft = self.drafts.at(index)?;
                    (draft.id, draft.tool) = (id, name);
                }
                Block::Text { .. } | Block::Other => {}
            },
            Data::ContentBlockDelta { index, delta } => match delta {
                Delta::Text { text } => said.push(Said::Text(text)),
                Delta::InputJson { partial_json } => {
                    self.drafts.at(index)?.arguments.push_str(&partial_json);
                }
                Delta::Other => {}
            },
            Data::MessageDelta { delta } => {
                if delta.stop_reason.as_deref() == Some("max_tokens") {
                    return Err(too_long());
                }
            }
            Data::MessageStop => {
                self.is_over = true;
                self.drafts.finish(said);
            }
            Data::Error { error } => {
                return Err(NoAnswer::Failed(error.message));
            }
            Data::Other => {}
        }
        Ok(())
    }
}
