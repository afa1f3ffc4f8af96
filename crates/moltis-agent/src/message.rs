//! What a conversation is made of, as it is stored and as a provider is given it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One entry of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// What a person said.
    User {
        /// In their words.
        text: String,
    },
    /// What the model said, and which tools it called in the same breath.
    Assistant {
        /// May be empty where it only calls.
        text: String,
        /// In the order in which it asked.
        calls: Vec<ToolCall>,
    },
    /// What the calls of the message before came to, in their order.
    Results {
        /// One for each call, with its id.
        results: Vec<(String, ToolResult)>,
    },
}

impl Message {
    /// Returns the bytes of text in it: by these the size of a conversation is judged.
    pub fn bytes(&self) -> usize {
        match self {
            Self::User { text } => text.len(),
            Self::Assistant { text, calls } => {
                let calls = calls.iter();
                text.len() + calls.map(ToolCall::bytes).sum::<usize>()
            }
            Self::Results { results } => {
                let results = results.iter();
                results
                    .map(|(id, result)| id.len() + result.text.len())
                    .sum()
            }
        }
    }
}

/// A tool that the model wants called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// Of the provider, or made up for one that gives none; unique within its message.
    pub id: String,
    /// The name of the tool. The model may have invented it.
    pub tool: String,
    /// What the tool is given.
    pub arguments: Arguments,
}

impl ToolCall {
    pub(crate) fn bytes(&self) -> usize {
        let arguments = match &self.arguments {
            Arguments::Object(map) => Value::Object(map.clone()).to_string().len(),
            Arguments::Broken { text, .. } => text.len(),
        };
        self.id.len() + self.tool.len() + arguments
    }
}

/// What a model gave a tool: a JSON object, or what it wrote instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arguments {
    /// Any object; the tool reads it by its own schema.
    Object(Map<String, Value>),
    /// No JSON, or no object.
    Broken {
        /// As it came.
        text: String,
        /// Why it is not one.
        reason: String,
    },
}

impl Arguments {
    /// Reads what a provider sent, whole. Nothing at all stands for an empty object, as some models
    /// mean it so.
    pub fn parse(text: &str) -> Self {
        if text.trim().is_empty() {
            return Self::Object(Map::new());
        }
        let broken = |reason: String| Self::Broken {
            text: text.to_owned(),
            reason,
        };
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Self::Object(map),
            Ok(other) => broken(format!("expected a JSON object, found {}", kind(&other))),
            Err(error) => broken(format!("expected a JSON object: {error}")),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// What a tool call came to, as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolResult {
    /// JSON or words.
    pub text: String,
    /// The tool did not do what it was asked; the text says why and what to do.
    pub is_error: bool,
}

impl ToolResult {
    /// What was done.
    pub fn done(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_error: false,
        }
    }

    /// Why it was not done.
    pub fn failed(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_error: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_an_object_or_told_as_broken() {
        assert_eq!(Arguments::parse("  "), Arguments::Object(Map::new()));
        let Arguments::Object(map) = Arguments::parse(r#"{"node":"box"}"#) else {
            panic!("an object is one");
        };
        assert_eq!(map["node"], "box");
        for (text, reason) in [
            ("[1]", "expected a JSON object, found an array"),
            ("7", "expected a JSON object, found a number"),
            (
                r#"{"node": "#,
                "expected a JSON object: EOF while parsing a value at line 1 column 9",
            ),
        ] {
            let broken = Arguments::Broken {
                text: text.to_owned(),
                reason: reason.to_owned(),
            };
            assert_eq!(Arguments::parse(text), broken);
        }
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let all = [
            Message::User {
                text: "hello".to_owned(),
            },
            Message::Assistant {
                text: String::new(),
                calls: vec![ToolCall {
                    id: "1".to_owned(),
                    tool: "exec".to_owned(),
                    arguments: Arguments::parse("{"),
                }],
            },
            Message::Results {
                results: vec![("1".to_owned(), ToolResult::failed("no"))],
            },
        ];
        for message in all {
            let text = serde_json::to_string(&message).unwrap();
            assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
        }
    }
}
