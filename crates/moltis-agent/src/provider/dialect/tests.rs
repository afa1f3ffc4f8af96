//! What each dialect is asked, and how its answers are read, in any pieces.

use std::borrow::Cow;

use proptest::prelude::*;
use serde_json::json;

use super::super::lines::{LINE_BYTES_MAX, Lines};
use super::*;
use crate::message::{Message, ToolResult};
use crate::model::ToolSpec;

const OPENAI: &str = r#"data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}

data: {"choices":[{"delta":{"content":"Let me "}}]}

: a comment
data: {"choices":[{"delta":{"content":"see."}}]}

data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"exec","arguments":""}}]}}]}

data: {"choices":[{"delta":{"tool_calls":[{"index":1,"id":"call_b","type":"function","function":{"name":"nodes_list","arguments":"{}"}}]}}]}

data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"node\":"}}]}}]}

data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"box\"}"}}]}}]}

data: {"choices":[{"delta":{},"finish_reason":"tool_calls"}]}

data: {"choices":[],"usage":{"total_tokens":12}}

data: [DONE]

"#;

const ANTHROPIC: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":3}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: ping
data: {"type":"ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Let me "}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"see."}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"call_a","name":"exec","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"node\":"}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"\"box\"}"}}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"call_b","name":"nodes_list","input":{}}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use"}}

event: message_stop
data: {"type":"message_stop"}

"#;

const OLLAMA: &str = r#"{"message":{"role":"assistant","content":"Let me "},"done":false}
{"message":{"role":"assistant","content":"see."},"done":false}
{"message":{"content":"","tool_calls":[{"function":{"name":"exec","arguments":{"node":"box"}}},{"function":{"name":"nodes_list","arguments":{}}}]},"done":false}
{"message":{"content":""},"done":true,"done_reason":"stop"}
"#;

fn all() -> [(Dialect, &'static str); 3] {
    [
        (Dialect::OpenAi, OPENAI),
        (Dialect::Anthropic, ANTHROPIC),
        (Dialect::Ollama, OLLAMA),
    ]
}

/// Reads an answer in pieces of these lengths.
fn read_in(
    dialect: Dialect,
    answer: &str,
    lengths: &[usize],
) -> Result<(Vec<Said>, bool), NoAnswer> {
    let (mut lines, mut reader, mut said) = (Lines::new(), dialect.reader(), Vec::new());
    let mut rest = answer.as_bytes();
    let mut lengths = lengths.iter().cycle();
    while !rest.is_empty() {
        let length = lengths.next().copied().unwrap_or(rest.len());
        let (piece, more) = rest.split_at(length.clamp(1, rest.len()));
        lines.push(piece, |line| reader.handle_line(line, &mut said))?;
        rest = more;
    }
    lines.finish(|line| reader.handle_line(line, &mut said))?;
    reader.finish(&mut said)?;
    Ok((said, reader.is_over()))
}

/// What was said, and each call by tool and arguments.
fn heard(said: &[Said]) -> (String, Vec<(&str, &Arguments)>) {
    let mut text = String::new();
    let mut calls = Vec::new();
    for said in said {
        match said {
            Said::Text(delta) => text.push_str(delta),
            Said::Call(call) => calls.push((&*call.tool, &call.arguments)),
        }
    }
    (text, calls)
}

proptest! {
    #[test]
    fn an_answer_is_the_same_however_it_is_cut(lengths in prop::collection::vec(1_usize..90, 1..20)) {
        let node = Arguments::parse(r#"{"node":"box"}"#);
        let nothing = Arguments::parse("{}");
        for (dialect, answer) in all() {
            for answer in [answer.to_owned(), answer.replace('\n', "\r\n")] {
                let (said, is_over) = read_in(dialect, &answer, &lengths).unwrap();
                let (text, calls) = heard(&said);
                prop_assert_eq!(text, "Let me see.");
                prop_assert_eq!(calls, [("exec", &node), ("nodes_list", &nothing)]);
                prop_assert!(is_over);
            }
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_never_whole_and_calls_nothing(cut in 0.0_f64..1.0) {
        for (dialect, answer) in all() {
            // What stands behind the last word belongs to no answer.
            let end = match dialect {
                Dialect::OpenAi => answer.find("data: {\"choices\":[{\"delta\":{},\"finish").unwrap(),
                Dialect::Anthropic => answer.rfind("data:").unwrap(),
                Dialect::Ollama => answer.rfind("{\"message\":{\"content\":\"\"},\"done\":true").unwrap(),
            };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a part of a short text")]
            let at = (end as f64 * cut) as usize;
            let read = read_in(dialect, &answer[..at], &[7]);
            // Half a line is no JSON.
            let called = |said: &[Said]| said.iter().any(|said| matches!(said, Said::Call(_)));
            prop_assert!(read.is_err() || read.is_ok_and(|(said, is_over)| !is_over && !called(&said)));
        }
    }

    #[test]
    fn whatever_comes_is_read_or_refused(noise in "\\PC{0,400}", lengths in prop::collection::vec(1_usize..50, 1..9)) {
        for (dialect, answer) in all() {
            for noise in [noise.clone(), format!("data: {noise}\n\n"), format!("{answer}{noise}")] {
                read_in(dialect, &noise, &lengths).ok(); // it must not panic
            }
            dialect.read_list(noise.as_bytes()).ok();
        }
    }
}

#[test]
fn servers_that_number_no_calls_or_end_without_a_word_are_understood() {
    let answer = r#"data: {"choices":[{"delta":{"tool_calls":[{"id":"a","function":{"name":"x","arguments":"{}"}},{"function":{"name":"y","arguments":"[1]"}}]},"finish_reason":"stop"}]}"#;
    let (said, is_over) = read_in(Dialect::OpenAi, answer, &[]).unwrap();
    let (_, calls) = heard(&said);
    assert_eq!(calls[0], ("x", &Arguments::parse("{}")));
    assert_eq!(calls[1].0, "y");
    assert!(matches!(calls[1].1, Arguments::Broken { .. }));
    assert!(is_over);
    let ids = said.iter().map(|said| match said {
        Said::Call(call) => &*call.id,
        Said::Text(_) => "",
    });
    assert_eq!(ids.collect::<Vec<_>>(), ["a", "call_1"]);
}

#[test]
fn a_failure_in_the_middle_is_one_and_nonsense_another() {
    let failing = [
        (
            Dialect::OpenAi,
            "data: {\"error\":{\"message\":\"busy\"}}\n\n",
        ),
        (
            Dialect::Anthropic,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"busy\"}}\n\n",
        ),
        (Dialect::Ollama, "{\"error\":\"busy\"}\n"),
    ];
    for (dialect, answer) in failing {
        let no = read_in(dialect, answer, &[]).unwrap_err();
        assert!(
            matches!(&no, NoAnswer::Failed(words) if words.contains("busy")),
            "{no:?}"
        );
        let no = read_in(dialect, "data: <html>\n\n", &[]).unwrap_err();
        assert!(matches!(no, NoAnswer::Unreadable { .. }));
    }
}

#[test]
fn an_answer_that_was_cut_for_its_length_is_none() {
    let cut = [
        (
            Dialect::OpenAi,
            OPENAI.replace("\"tool_calls\"}", "\"length\"}"),
        ),
        (
            Dialect::Anthropic,
            ANTHROPIC.replace("\"tool_use\"}}", "\"max_tokens\"}}"),
        ),
        (Dialect::Ollama, OLLAMA.replace("\"stop\"", "\"length\"")),
    ];
    for (dialect, answer) in cut {
        let no = read_in(dialect, &answer, &[]).unwrap_err();
        assert!(matches!(no, NoAnswer::TooMuch(_)), "{no:?}");
    }
}

#[test]
fn a_line_and_the_calls_of_an_answer_have_a_bound() {
    let mut lines = Lines::new();
    let piece = vec![b'x'; 64 * 1024];
    let pushed =
        (0..=LINE_BYTES_MAX / piece.len()).try_for_each(|_| lines.push(&piece, |_| Ok(())));
    assert!(matches!(pushed, Err(NoAnswer::TooMuch(_))));
    let call = |index: u64| {
        let piece = json!({"index": index, "function": {"name": "x"}});
        format!(
            "data: {}\n\n",
            json!({"choices": [{"delta": {"tool_calls": [piece]}}]})
        )
    };
    // A number says nothing of how many there are.
    let far: String = [0, u64::MAX].into_iter().map(call).collect();
    assert!(read_in(Dialect::OpenAi, &far, &[]).is_ok());
    let many: String = (0..=CALLS_MAX as u64).map(call).collect();
    assert!(read_in(Dialect::OpenAi, &many, &[]).is_err());
}

#[test]
fn a_question_is_written_as_each_of_them_reads_it() {
    let broken = Arguments::parse("{oops");
    let calls = [
        ("a", "exec", Arguments::parse(r#"{"node":"box"}"#)),
        ("b", "fly", broken),
    ];
    let calls = calls.map(|(id, tool, arguments)| ToolCall {
        id: id.to_owned(),
        tool: tool.to_owned(),
        arguments,
    });
    let messages = [
        Message::User {
            text: "see".to_owned(),
        },
        Message::Assistant {
            text: String::new(),
            calls: calls.into(),
        },
        Message::Results {
            results: vec![
                ("a".to_owned(), ToolResult::done("Linux")),
                ("b".to_owned(), ToolResult::failed("no such tool")),
            ],
        },
    ];
    let tools = [ToolSpec {
        name: "exec".to_owned(),
        description: "runs".to_owned(),
        parameters: json!({"type": "object"}),
    }];
    let request = Request {
        instructions: "be kind",
        messages: messages.iter().map(Cow::Borrowed).collect(),
        tools: &tools,
    };
    let ask = Ask {
        model: "small",
        tokens_max: 8192,
        request: &request,
    };
    for (dialect, name) in [
        (Dialect::OpenAi, "openai"),
        (Dialect::Anthropic, "anthropic"),
        (Dialect::Ollama, "ollama"),
    ] {
        let body: Value = serde_json::from_slice(&dialect.write_ask(&ask)).unwrap();
        insta::assert_snapshot!(name, format!("{body:#}"));
    }
}

#[test]
fn a_list_of_models_is_read_and_anything_else_is_told() {
    let openai = br#"{"object":"list","data":[{"id":"small"},{"id":"large"},{"no":1}]}"#;
    assert_eq!(
        Dialect::OpenAi.read_list(openai).unwrap(),
        ["small", "large"]
    );
    let ollama = br#"{"models":[{"name":"llama3:8b"}]}"#;
    assert_eq!(Dialect::Ollama.read_list(ollama).unwrap(), ["llama3:8b"]);
    for other in [&b"<html>"[..], b"[]", b"{}"] {
        assert!(Dialect::Anthropic.read_list(other).is_err());
    }
}
