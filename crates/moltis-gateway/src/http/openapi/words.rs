//! What the document says in words.

use axum::http::Method;
use serde_json::{Value, json};

use crate::api::tokens::Scope;

/// What stands at the top.
pub(super) const ABOUT: &str = "\
The HTTP API of a Moltis gateway: nodes, pairing, runs and their output, and tokens.

Everything below `/api/v1` needs a bearer token with the scope that the operation names, except this \
document. On the gateway's own Unix socket its owner needs none. A token goes into the \
`Authorization` header and nowhere else: a query parameter that an operation does not know is \
refused, whatever its name.

Lists answer `{\"items\": [...], \"next\": null}`; where `next` is a string, the same request with it \
as `cursor` gives the next page. Times are RFC 3339 in UTC. Objects of an answer may grow fields, \
and words that stand for a state or a reason may become more; fields of a request that are not \
known are refused by name.

Every answer has a `Moltis-Request-Id`, under which the gateway's log speaks of the request. What \
fails answers with problem details (RFC 9457) whose `code` is for programs and whose `detail` and \
`hint` are for people. Beside what the operations say, a method that a path does not have is 405 \
`method_not_allowed` with `Allow`, and a path that is not here 404 `not_found`. A head that is \
longer than 16 KiB, or has more than 64 headers, is answered 431, and one that does not end within \
ten seconds is given up.

Nodes connect to `/ws`, which speaks a protocol of its own and takes no token.
";

/// What a token is.
pub(super) const SECURITY: &str = "\
A token `moltis_...`, made by `moltis token create` or `POST /api/v1/tokens`. The scope that an \
operation needs stands beside it; `admin` has all of them.";

/// Returns which scopes an operation needs.
pub(super) fn needs(any_of: &[Scope]) -> String {
    let names: Vec<_> = any_of.iter().map(|scope| format!("`{scope}`")).collect();
    match &names[..] {
        [one] => format!("Needs the scope {one}."),
        several => format!("Needs one of the scopes {}.", several.join(", ")),
    }
}

/// Returns what may stand for `{id}` in a path: more of it where something is changed.
pub(super) fn id_in(method: &Method, path: &str) -> &'static str {
    let (room, _) = path.split_once("/{id}").unwrap_or((path, ""));
    match room.rsplit('/').next() {
        Some("nodes") if method == Method::GET => {
            "A node's id, a unique beginning of it, its name, or its fingerprint."
        }
        Some("nodes") => "A node's id, its name, or its fingerprint.",
        Some("requests") => "A request's id, or its first 8 digits at least.",
        Some("runs") if method == Method::GET => "A run's id, or a unique beginning of it.",
        Some("runs") => "A run's id, or its first 8 digits at least.",
        Some("tokens") => "A token's id, or its name.",
        _ => "Its id.",
    }
}

/// Returns the header that every answer has.
pub(super) fn request_id() -> Value {
    json!({
        "description": "The id under which the gateway's log speaks of this request.",
        "schema": { "type": "string" },
    })
}

/// Returns the header that every refusal with this status has beside it.
pub(super) fn header_of(status: u16) -> Option<(&'static str, Value)> {
    let (name, words, schema) = match status {
        401 => (
            "WWW-Authenticate",
            "`Bearer realm=\"moltis\"`",
            json!({ "type": "string" }),
        ),
        429 => (
            "Retry-After",
            "Seconds to wait.",
            json!({ "type": "integer", "minimum": 1 }),
        ),
        _ => return None,
    };
    Some((
        name,
        json!({ "description": words, "required": true, "schema": schema }),
    ))
}

/// Rewrites every description from the words of Rust's documentation to those of JSON: links to
/// items become their names, `None` is null, and a paragraph is one line.
pub(super) fn for_json(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(for_json),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "description" => *text = plain(text),
                    value => for_json(value),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        plain.push_str(before);
        let Some((name, after)) = link.split_once("`]") else {
            plain.push_str("[`");
            rest = link;
            continue;
        };
        plain.push('`');
        plain.push_str(name);
        plain.push('`');
        rest = match after
            .strip_prefix('(')
            .and_then(|path| path.split_once(')'))
        {
            Some((_, behind)) => behind,
            None => after,
        };
    }
    plain.push_str(rest);
    let plain = plain.replace("`None`", "null");
    let paragraphs: Vec<String> = plain
        .split("\n\n")
        .map(|paragraph| paragraph.trim().replace('\n', " "))
        .collect();
    paragraphs.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_rust_become_words_of_json() {
        for (text, wanted) in [
            ("With a [`RunResult`].", "With a `RunResult`."),
            ("[`ID`](super::ID) and [`B`].", "`ID` and `B`."),
            ("`None` before the first.", "null before the first."),
            ("`argv[0]`, [`open", "`argv[0]`, [`open"),
            ("one\nline\n\nanother", "one line\n\nanother"),
        ] {
            assert_eq!(plain(text), wanted);
        }
    }
}
