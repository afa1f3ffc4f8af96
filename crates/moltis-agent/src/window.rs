//! A conversation within what a model reads at once.
//!
//! Whole exchanges go first, the oldest before the others: a call without its result, or a result
//! without its call, is refused by every provider. Where the newest exchange alone is too long, the
//! results in it are cut, again the oldest first: what they said can be read again by `run_output`.

use std::borrow::Cow;

use crate::excerpt::excerpt;
use crate::message::{Message, ToolResult};

/// Bytes that are taken for one token. English has some four, code and other scripts have fewer: a
/// model that is given too little is better than one that refuses.
pub const BYTES_PER_TOKEN: usize = 3;

/// What is left of a result that had to be cut.
const CUT_RESULT_BYTES: usize = 400;

/// What of a conversation is given to a model.
#[derive(Debug, PartialEq, Eq)]
pub struct Fitted<'a> {
    /// The newest messages, the oldest of them first.
    pub messages: Vec<Cow<'a, Message>>,
    /// Messages before these that are not given.
    pub left_out: usize,
}

/// Why a conversation cannot be given to a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the last message alone has about {tokens} tokens: this model reads {tokens_max} at once, what it is told of its tools included"
)]
pub struct TooLong {
    /// As they are counted here.
    pub tokens: usize,
    /// What there is room for.
    pub tokens_max: usize,
}

/// Chooses what fits into so many tokens.
///
/// # Errors
/// [`TooLong`] where the newest exchange does not, however much of its results is cut.
pub fn fit(messages: &[Message], tokens_max: usize) -> Result<Fitted<'_>, TooLong> {
    let bytes_max = tokens_max.saturating_mul(BYTES_PER_TOKEN);
    let begins = |at: &usize| matches!(messages[*at], Message::User { .. });
    let mut from = messages.len();
    let mut bytes = 0;
    for begin in (0..messages.len()).rev().filter(begins) {
        let exchange = messages[begin..from]
            .iter()
            .map(Message::bytes)
            .sum::<usize>();
        if bytes + exchange > bytes_max {
            break;
        }
        (from, bytes) = (begin, bytes + exchange);
    }
    if from < messages.len() || messages.is_empty() {
        return Ok(Fitted {
            messages: messages[from..].iter().map(Cow::Borrowed).collect(),
            left_out: from,
        });
    }
    let newest = (0..messages.len()).rev().find(begins).unwrap_or(0);
    let mut shown: Vec<_> = messages[newest..].iter().map(Cow::Borrowed).collect();
    let mut bytes: usize = shown.iter().map(|message| message.bytes()).sum();
    for message in &mut shown {
        if bytes <= bytes_max {
            break;
        }
        if let Message::Results { results } = &**message {
            let cut = Message::Results {
                results: results.iter().map(cut_result).collect(),
            };
            bytes = bytes - message.bytes() + cut.bytes();
            *message = Cow::Owned(cut);
        }
    }
    if bytes > bytes_max {
        return Err(TooLong {
            tokens: bytes.div_ceil(BYTES_PER_TOKEN),
            tokens_max,
        });
    }
    Ok(Fitted {
        messages: shown,
        left_out: newest,
    })
}

fn cut_result((id, result): &(String, ToolResult)) -> (String, ToolResult) {
    let cut = ToolResult {
        text: excerpt(&result.text, CUT_RESULT_BYTES).into_owned(),
        is_error: result.is_error,
    };
    (id.clone(), cut)
}

#[cfg(test)]
mod tests {
    use crate::message::{Arguments, ToolCall};

    use super::*;

    fn said(text: &str) -> Message {
        Message::User {
            text: text.to_owned(),
        }
    }

    fn answer(text: &str) -> Message {
        Message::Assistant {
            text: text.to_owned(),
            calls: Vec::new(),
        }
    }

    fn exec(result: usize) -> [Message; 2] {
        let call = ToolCall {
            id: "1".to_owned(),
            tool: "exec".to_owned(),
            arguments: Arguments::parse(""),
        };
        let calls = Message::Assistant {
            text: String::new(),
            calls: vec![call],
        };
        let result = ToolResult::done("x".repeat(result));
        let results = Message::Results {
            results: vec![("1".to_owned(), result)],
        };
        [calls, results]
    }

    #[test]
    fn the_oldest_exchange_goes_first_and_goes_whole() {
        let mut all = vec![said("one")];
        all.extend(exec(300));
        all.extend([answer("done"), said("two"), answer("yes"), said("three")]);
        let fitted = |tokens_max| fit(&all, tokens_max).map(|fitted| fitted.left_out);
        assert_eq!(fitted(1000), Ok(0));
        assert_eq!(fitted(100), Ok(4), "the first exchange does not fit");
        assert_eq!(fitted(3), Ok(6), "only the newest does");
        assert_eq!(
            fitted(1),
            Err(TooLong {
                tokens: 2,
                tokens_max: 1
            })
        );
        assert_eq!(fit(&[], 1).unwrap().messages, []);
    }

    #[test]
    fn results_of_the_newest_exchange_are_cut_before_it_is_refused() {
        let mut all = vec![said("old"), answer("old"), said("new")];
        all.extend(exec(30_000));
        all.extend(exec(2_000));
        let fitted = fit(&all, 1000).unwrap();
        assert_eq!(fitted.left_out, 2);
        let bytes: Vec<_> = fitted.messages.iter().map(|one| one.bytes()).collect();
        assert_eq!(bytes[1..], [7, 401, 7, 2001], "the older one is enough");
        let Message::Results { results } = &*fitted.messages[2] else {
            panic!("the results stay where they are");
        };
        assert!(results[0].1.text.contains("bytes left out"));
    }
}
