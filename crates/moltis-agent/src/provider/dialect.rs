//! What three kinds of providers are sent, and how they are understood. Pure: bytes in, values out.

mod anthropic;
mod ollama;
mod openai;
mod sse;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use self::sse::Events;
use crate::message::{Arguments, ToolCall};
use crate::model::{Request, Said};

/// Calls in one answer.
const CALLS_MAX: usize = 128;
/// Names of models in one list.
const MODELS_MAX: usize = 10_000;

/// What a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `POST {base_url}/chat/completions`, of `OpenAI` and of most servers that run models.
    OpenAi,
    /// `POST {base_url}/messages`, of Anthropic.
    Anthropic,
    /// `POST {base_url}/api/chat`, of Ollama.
    Ollama,
}

/// A question to one model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) model: &'a str,
    pub(super) tokens_max: usize,
    pub(super) request: &'a Request<'a>,
}

/// What a provider sends in the place of an answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    /// It cannot be understood.
    #[error("expected {expected}, found `{found}`")]
    Unreadable {
        /// What would have been.
        expected: String,
        /// What came, whole.
        found: String,
    },
    /// It is more than is taken, or than the model may say at once.
    #[error("{0}")]
    TooMuch(String),
    /// It says itself that it failed.
    #[error("{0}")]
    Failed(String),
}

impl Dialect {
    /// Returns the path of a question, below the base address.
    pub(super) fn ask_path(self) -> &'static [&'static str] {
        match self {
            Self::OpenAi => &["chat", "completions"],
            Self::Anthropic => &["messages"],
            Self::Ollama => &["api", "chat"],
        }
    }

    /// Returns the path of the list of models.
    pub(super) fn list_path(self) -> &'static [&'static str] {
        match self {
            Self::OpenAi | Self::Anthropic => &["models"],
            Self::Ollama => &["api", "tags"],
        }
    }

    /// Returns what makes the list long enough.
    pub(super) fn list_query(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Anthropic => Some(("limit", "1000")),
            Self::OpenAi | Self::Ollama => None,
        }
    }

    /// Returns the headers of each request.
    pub(super) fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Anthropic => &[("anthropic-version", "2023-06-01")],
            Self::OpenAi | Self::Ollama => &[],
        }
    }

    /// Returns the header that carries a key, and what stands before it there.
    pub(super) fn key_header(self) -> (&'static str, &'static str) {
        match self {
            Self::OpenAi | Self::Ollama => ("authorization", "Bearer "),
            Self::Anthropic => ("x-api-key", ""),
        }
    }

    /// Returns what an answer comes in.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::OpenAi | Self::Anthropic => "text/event-stream",
            Self::Ollama => "application/x-ndjson",
        }
    }

    /// Returns whether an answer may come in this.
    pub(super) fn takes(self, media: &str) -> bool {
        let essence = media.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case(self.media_type())
    }

    /// Returns the body of a question.
    pub(super) fn write_ask(self, ask: &Ask<'_>) -> Vec<u8> {
        let body = match self {
            Self::OpenAi => openai::write(ask),
            Self::Anthropic => anthropic::write(ask),
            Self::Ollama => ollama::write(ask),
        };
        body.to_string().into_bytes()
    }

    /// Returns who reads an answer.
    pub(super) fn reader(self) -> Reader {
        match self {
            Self::OpenAi => Reader::OpenAi(Events::default(), openai::Reader::default()),
            Self::Anthropic => Reader::Anthropic(Events::default(), anthropic::Reader::default()),
            Self::Ollama => Reader::Ollama(ollama::Reader::default()),
        }
    }

    /// Reads a list of models.
    pub(super) fn read_list(self, body: &[u8]) -> Result<Vec<String>, NoAnswer> {
        let (list, name) = match self {
            Self::OpenAi | Self::Anthropic => ("data", "id"),
            Self::Ollama => ("models", "name"),
        };
        let text = String::from_utf8_lossy(body);
        let body: Value = read(&text)?;
        let items = body.get(list).and_then(Value::as_array);
        let items = items.ok_or_else(|| unexpected(&format!("a list `{list}`"), &text))?;
        let names = items.iter().filter_map(|item| item.get(name)?.as_str());
        Ok(names.take(MODELS_MAX).map(str::to_owned).collect())
    }
}

/// Reads one answer, line by line.
#[derive(Debug)]
pub(super) enum Reader {
    OpenAi(Events, openai::Reader),
    Anthropic(Events, anthropic::Reader),
    /// Each line is one on its own.
    Ollama(ollama::Reader),
}

impl Reader {
    /// Takes a line, and adds what it says.
    pub(super) fn handle_line(&mut self, line: &str, said: &mut Vec<Said>) -> Result<(), NoAnswer> {
        match self {
            Self::OpenAi(events, reader) => match events.handle_line(line) {
                Some(event) => reader.handle_event(&event, said),
                None => Ok(()),
            },
            Self::Anthropic(events, reader) => match events.handle_line(line) {
                Some(event) => reader.handle_event(&event, said),
                None => Ok(()),
            },
            Self::Ollama(reader) => reader.handle_line(line, said),
        }
    }

    /// Nothing more comes: adds what only shows then.
    pub(super) fn finish(&mut self, said: &mut Vec<Said>) -> Result<(), NoAnswer> {
        match self {
            Self::OpenAi(events, reader) => {
                let last = events.take();
                last.map_or(Ok(()), |event| reader.handle_event(&event, said))?;
                reader.finish(said);
                Ok(())
            }
            Self::Anthropic(events, reader) => {
                let last = events.take();
                last.map_or(Ok(()), |event| reader.handle_event(&event, said))
            }
            Self::Ollama(_) => Ok(()),
        }
    }

    /// Returns whether the answer is whole.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::OpenAi(_, reader) => reader.is_over(),
            Self::Anthropic(_, reader) => reader.is_over(),
            Self::Ollama(reader) => reader.is_over(),
        }
    }
}

/// Calls that come in pieces.
#[derive(Debug, Default)]
struct Drafts(Vec<Draft>);

#[derive(Debug)]
struct Draft {
    /// The provider's number for it.
    index: u64,
    id: String,
    tool: String,
    arguments: String,
}

impl Drafts {
    /// Returns the call of this number, which may be new.
    fn at(&mut self, index: u64) -> Result<&mut Draft, NoAnswer> {
        let known = self.0.iter().position(|draft| draft.index == index);
        let at = match known {
            Some(at) => at,
            None if self.0.len() == CALLS_MAX => {
                return Err(too_many_calls());
            }
            None => {
                self.0.push(Draft {
                    index,
                    id: String::new(),
                    tool: String::new(),
                    arguments: String::new(),
                });
                self.0.len() - 1
            }
        };
        Ok(&mut self.0[at])
    }

    /// Returns the number of the newest call.
    fn newest(&self) -> Option<u64> {
        self.0.last().map(|draft| draft.index)
    }

    /// Takes them all out, whole, in the order in which they began.
    fn finish(&mut self, said: &mut Vec<Said>) {
        for (number, draft) in std::mem::take(&mut self.0).into_iter().enumerate() {
            let id = if draft.id.is_empty() {
                format!("call_{number}")
            } else {
                draft.id
            };
            said.push(Said::Call(ToolCall {
                id,
                tool: draft.tool,
                arguments: Arguments::parse(&draft.arguments),
            }));
        }
    }
}

/// Returns the tools as functions, as two of the dialects have them.
fn functions(ask: &Ask<'_>) -> Value {
    let tools = ask.request.tools.iter();
    let functions = tools.map(|tool| {
        json!({"type": "function", "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        }})
    });
    functions.collect()
}

/// Returns arguments as an object, which every provider wants back. What was none is shown as it came.
fn object_of(arguments: &Arguments) -> Map<String, Value> {
    match arguments {
        Arguments::Object(map) => map.clone(),
        Arguments::Broken { text, .. } => {
            Map::from_iter([("unreadable_arguments".to_owned(), json!(text))])
        }
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, NoAnswer> {
    serde_json::from_str(text).map_err(|error| unexpected(&format!("JSON ({error})"), text))
}

fn unexpected(expected: &str, found: &str) -> NoAnswer {
    NoAnswer::Unreadable {
        expected: expected.to_owned(),
        found: found.to_owned(),
    }
}

fn too_many_calls() -> NoAnswer {
    NoAnswer::TooMuch(format!("it calls more than {CALLS_MAX} tools at once"))
}

/// The answer was cut where the model may say no more: half of it is none.
fn too_long() -> NoAnswer {
    NoAnswer::TooMuch("its answer is longer than it may say at once".to_owned())
}

#[cfg(test)]
mod tests;
