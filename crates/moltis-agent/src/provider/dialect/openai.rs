//! `OpenAI`'s chat completions, which most servers of models speak too
//! (<https://platform.openai.com/docs/api-reference/chat>).

use serde::Deserialize;
use serde_json::{Value, json};

use super::sse::Event;
use super::{Ask, Drafts, NoAnswer, functions, object_of, read, too_long};
use crate::message::{Message, ToolCall};
use crate::model::Said;

/// Returns the body of a question.
pub(super) fn write(ask: &Ask<'_>) -> Value {
    let instructions = json!({"role": "system", "content": ask.request.instructions});
    let messages = ask.request.messages.iter();
    let messages = messages.flat_map(|message| written(message));
    let mut body = json!({
        "model": ask.model,
        "stream": true,
        "messages": std::iter::once(instructions).chain(messages).collect::<Vec<_>>(),
    });
    // An empty list is refused.
    if !ask.request.tools.is_empty() {
        body["tools"] = functions(ask);
    }
    body
}

fn written(message: &Message) -> Vec<Value> {
    match message {
        Message::User { text } => vec![json!({"role": "user", "content": text})],
        Message::Assistant { text, calls } => {
            let mut said = json!({"role": "assistant", "content": text});
            if !calls.is_empty() {
                said["tool_calls"] = calls.iter().map(called).collect();
            }
            vec![said]
        }
        Message::Results { results } => {
            let results = results.iter().map(
                |(id, result)| json!({"role": "tool", "tool_call_id": id, "content": result.text}),
            );
            results.collect()
        }
    }
}

fn called(call: &ToolCall) -> Value {
    let arguments = Value::Object(object_of(&call.arguments)).to_string();
    json!({
        "id": call.id,
        "type": "function",
        "function": {"name": call.tool, "arguments": arguments},
    })
}

/// Reads one answer.
#[derive(Debug, Default)]
pub(in crate::provider) struct Reader {
    drafts: Drafts,
    /// It was said why the answer ends: what is still to come are figures.
    has_reason: bool,
    is_over: bool,
}

#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    content: Option<String>,
    tool_calls: Option<Vec<Piece>>,
}

#[derive(Debug, Deserialize)]
struct Piece {
    index: Option<u64>,
    id: Option<String>,
    #[serde(default)]
    function: Function,
}

#[derive(Debug, Default, Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

impl Reader {
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Nothing more comes. Servers that leave out `[DONE]` have said why they end.
    pub(super) fn finish(&mut self, said: &mut Vec<Said>) {
        if self.has_reason && !self.is_over {
            self.end(said);
        }
    }

    pub(super) fn handle_event(
        &mut self,
        event: &Event,
        said: &mut Vec<Said>,
    ) -> Result<(), NoAnswer> {
        if self.is_over {
            return Ok(());
        }
        if event.data.trim() == "[DONE]" {
            self.end(said);
            return Ok(());
        }
        let chunk: Chunk = read(&event.data)?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let message = error.get("message").unwrap_or(&error);
            let words = message
                .as_str()
                .map_or_else(|| message.to_string(), str::to_owned);
            return Err(NoAnswer::Failed(words));
        }
        // One answer is asked for.
        let Some(Choice {
            delta,
            finish_reason,
        }) = chunk.choices.into_iter().next()
        else {
            return Ok(());
        };
        if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
            said.push(Said::Text(text));
        }
        for piece in delta.tool_calls.into_iter().flatten() {
            self.add(piece)?;
        }
        if finish_reason.as_deref() == Some("length") {
            return Err(too_long());
        }
        self.has_reason |= finish_reason.is_some();
        Ok(())
    }

    fn add(&mut self, piece: Piece) -> Result<(), NoAnswer> {
        // Servers that number no calls send each of them whole.
        let next = || {
            self.drafts
                .newest()
                .map_or(0, |newest| newest.saturating_add(1))
        };
        let index = piece.index.unwrap_or_else(next);
        let draft = self.drafts.at(index)?;
        if let Some(id) = piece.id.filter(|id| !id.is_empty()) {
            draft.id = id;
        }
        let Function { name, arguments } = piece.function;
        // Some servers repeat the name with each piece.
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            draft.tool = name;
        }
        draft.arguments.push_str(&arguments.unwrap_or_default());
        Ok(())
    }

    fn end(&mut self, said: &mut Vec<Said>) {
        self.is_over = true;
        self.drafts.finish(said);
    }
}
