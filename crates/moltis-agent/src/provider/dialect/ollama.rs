//! Ollama's chat (<https://docs.ollama.com/api/chat>).

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Ask, CALLS_MAX, NoAnswer, functions, object_of, read, too_long, too_many_calls};
use crate::message::{Arguments, Message, ToolCall};
use crate::model::Said;

/// Returns the body of a question.
pub(super) fn write(ask: &Ask<'_>) -> Value {
    let instructions = json!({"role": "system", "content": ask.request.instructions});
    let mut messages = vec![instructions];
    let mut called: &[ToolCall] = &[];
    for message in &ask.request.messages {
        match message.as_ref() {
            Message::User { text } => messages.push(json!({"role": "user", "content": text})),
            Message::Assistant { text, calls } => {
                called = calls;
                messages.push(assistant(text, calls));
            }
            Message::Results { results } => {
                // It knows calls by the names of their tools.
                messages.extend(results.iter().map(|(id, result)| {
                    let tool = called.iter().find(|call| call.id == *id);
                    json!({
                        "role": "tool",
                        "tool_name": tool.map(|call| &call.tool),
                        "content": result.text,
                    })
                }));
            }
        }
    }
    json!({
        "model": ask.model,
        "stream": true,
        "messages": messages,
        "tools": functions(ask),
        // It cuts without a word what is longer than it was told to read, which is little.
        "options": {"num_ctx": ask.tokens_max},
    })
}

fn assistant(text: &str, calls: &[ToolCall]) -> Value {
    let mut said = json!({"role": "assistant", "content": text});
    if !calls.is_empty() {
        let calls = calls.iter().map(|call| {
            json!({"function": {"name": call.tool, "arguments": object_of(&call.arguments)}})
        });
        said["tool_calls"] = calls.collect();
    }
    said
}

/// Reads one answer: each line is JSON.
#[derive(Debug, Default)]
pub(in crate::provider) struct Reader {
    /// They are made when the answer is whole.
    calls: Vec<ToolCall>,
    is_over: bool,
}

#[derive(Debug, Deserialize)]
struct Line {
    message: Option<Answer>,
    #[serde(default)]
    done: bool,
    done_reason: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    content: String,
    tool_calls: Option<Vec<Call>>,
}

#[derive(Debug, Deserialize)]
struct Call {
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: Map<String, Value>,
}

impl Reader {
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(super) fn handle_line(&mut self, line: &str, said: &mut Vec<Said>) -> Result<(), NoAnswer> {
        if self.is_over || line.trim().is_empty() {
            return Ok(());
        }
        let line: Line = read(line)?;
        if let Some(error) = line.error {
            return Err(NoAnswer::Failed(error));
        }
        if let Some(Answer {
            content,
            tool_calls,
        }) = line.message
        {
            if !content.is_empty() {
                said.push(Said::Text(content));
            }
            for Call { function } in tool_calls.into_iter().flatten() {
                if self.calls.len() == CALLS_MAX {
                    return Err(too_many_calls());
                }
                self.calls.push(ToolCall {
                    id: format!("call_{}", self.calls.len()),
                    tool: function.name,
                    arguments: Arguments::Object(function.arguments),
                });
            }
        }
        if line.done && line.done_reason.as_deref() == Some("length") {
            return Err(too_long());
        }
        if line.done {
            self.is_over = true;
            said.extend(self.calls.drain(..).map(Said::Call));
        }
        Ok(())
    }
}
