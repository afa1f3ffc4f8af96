//! What must not be read as a message, and why: `tests/vectors/refused.json`.

use serde::{Deserialize, Serialize};

/// Bytes that are no message of a type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) name: String,
    pub(crate) r#type: String,
    /// Hexadecimal digits, where it would be postcard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) postcard: Option<String>,
    /// Text, where it would be JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) json: Option<String>,
    pub(crate) why: String,
}

fn postcard(name: &str, kind: &str, digits: &str, why: &str) -> Refused {
    Refused {
        name: format!("postcard, {name}"),
        r#type: kind.to_owned(),
        postcard: Some(digits.replace(' ', "")),
        json: None,
        why: why.to_owned(),
    }
}

fn json(name: &str, kind: &str, text: &str, why: &str) -> Refused {
    Refused {
        name: format!("JSON, {name}"),
        r#type: kind.to_owned(),
        postcard: None,
        json: Some(text.to_owned()),
        why: why.to_owned(),
    }
}

/// A run id in each codec.
const RUN: &str = "00112233445566778899aabbccddeeff";

/// Returns every one. Names are unique.
pub(crate) fn all() -> Vec<Refused> {
    let mut all = in_postcard();
    all.extend(in_json());
    all
}

fn in_postcard() -> Vec<Refused> {
    let nine = "ff ".repeat(9);
    vec![
        postcard("no bytes", "to_node", "", "there is no message"),
        postcard(
            "a variant too high",
            "to_node",
            "06 01",
            "there are six kinds, 0 to 5",
        ),
        postcard(
            "a kind that no node says",
            "to_gateway",
            "07 01",
            "there are seven kinds, 0 to 6",
        ),
        postcard(
            "a run message that there is not",
            "to_node",
            &format!("00 0a {RUN}"),
            "there are ten kinds, 0 to 9",
        ),
        postcard(
            "a byte left over",
            "to_node",
            "01 00",
            "`sample` is one byte",
        ),
        postcard(
            "a message cut short",
            "to_node",
            "02",
            "a ping has a number",
        ),
        postcard(
            "an integer that does not end",
            "to_node",
            &format!("02 {nine} ff"),
            "a varint of 64 bits has ten bytes at most",
        ),
        postcard(
            "an integer of more than 64 bits",
            "to_node",
            &format!("02 {nine} 02"),
            "the tenth byte has one bit",
        ),
        postcard(
            "an integer of more than 16 bits",
            "to_node",
            &format!("00 05 {RUN} 80 80 04 18"),
            "`cols` has 16 bits",
        ),
        postcard(
            "a bool that is neither",
            "to_node",
            &format!("00 04 {RUN} 00 00 02"),
            "`eof` is 00 or 01",
        ),
        postcard(
            "an option that is neither",
            "to_node",
            &format!("00 01 {RUN} {} 01 02 6c 73 02", "0d".repeat(32)),
            "an option is 00 or 01",
        ),
        postcard(
            "a string that is no UTF-8",
            "to_node",
            &format!(
                "00 01 {RUN} {} 01 02 ff fe 00 00 00 00 00 00",
                "0d".repeat(32)
            ),
            "text is UTF-8",
        ),
        postcard(
            "bytes that are not all there",
            "to_node",
            &format!("00 04 {RUN} 00 05 61 62"),
            "five bytes are announced",
        ),
        postcard(
            "a list longer than the frame",
            "to_node",
            &format!("00 01 {RUN} {} 00 ff ff ff ff 0f", "0d".repeat(32)),
            "its length is believed only as far as there are bytes",
        ),
        postcard(
            "a variable named twice",
            "to_node",
            &format!(
                "00 01 {RUN} {} 01 02 6c 73 00 02 01 41 01 31 01 41 01 32 00 00 00 00",
                "0d".repeat(32)
            ),
            "a map names each key once",
        ),
        postcard(
            "a reason that there is not",
            "to_gateway",
            "04 02 00",
            "there are two reasons, 0 and 1",
        ),
        postcard(
            "a list of runs cut short",
            "to_gateway",
            &format!("00 00 {} 01", "08".repeat(16)),
            "one journal is announced",
        ),
        postcard(
            "JSON",
            "to_node",
            "7b 22 70 69 6e 67 22 3a 7b 7d 7d",
            "the codecs are not taken for each other",
        ),
    ]
}

fn in_json() -> Vec<Refused> {
    let run = |rest: &str| format!(r#"{{"run":{rest}}}"#);
    let start = |env: &str| {
        run(&format!(
            r#"{{"start":{{"run_id":"{RUN}","digest":"{}=","spec":{{"command":{{"shell":"ls"}},"cwd":null,"env":{env},"timeout_ms":null,"grace_ms":0,"stdin":"empty","tty":null}}}}}}"#,
            "A".repeat(43)
        ))
    };
    let ack = |id: &str| {
        run(&format!(
            r#"{{"ack":{{"run_id":"{id}","stdout":0,"stderr":0}}}}"#
        ))
    };
    let stdin = |bytes: &str| {
        run(&format!(
            r#"{{"stdin":{{"run_id":"{RUN}","offset":0,"bytes":"{bytes}","eof":false}}}}"#
        ))
    };
    vec![
        json("no text", "to_node", "", "there is no message"),
        json(
            "null",
            "to_node",
            "null",
            "a message is a string or an object",
        ),
        json(
            "a variant that there is not",
            "to_node",
            r#"{"dance":{"number":1}}"#,
            "no ledger has it",
        ),
        json(
            "a variant of the other side",
            "to_node",
            r#"{"clock":{"unix_ms":1}}"#,
            "only a node says it",
        ),
        json(
            "two variants",
            "to_node",
            r#"{"ping":{"number":1},"pong":{"number":1}}"#,
            "a frame holds one message",
        ),
        json(
            "two messages",
            "to_node",
            r#"{"ping":{"number":1}}{"ping":{"number":2}}"#,
            "a frame holds one message",
        ),
        json(
            "a field too many",
            "to_node",
            r#"{"ping":{"number":1,"role":"operator"}}"#,
            "unknown fields are errors",
        ),
        json(
            "a field twice",
            "to_node",
            r#"{"ping":{"number":1,"number":2}}"#,
            "duplicate fields are errors",
        ),
        json(
            "a field too few",
            "to_node",
            r#"{"ping":{}}"#,
            "every field is there",
        ),
        json(
            "null where no option is",
            "to_node",
            r#"{"ping":{"number":null}}"#,
            "`number` is an integer",
        ),
        json(
            "an integer as text",
            "to_node",
            r#"{"ping":{"number":"1"}}"#,
            "`number` is an integer",
        ),
        json(
            "an integer below zero",
            "to_node",
            r#"{"ping":{"number":-1}}"#,
            "`number` is 0 or more",
        ),
        json(
            "an integer with a fraction",
            "to_node",
            r#"{"ping":{"number":1.5}}"#,
            "`number` is an integer",
        ),
        json(
            "an integer of more than 64 bits",
            "to_node",
            r#"{"ping":{"number":18446744073709551616}}"#,
            "`number` has 64 bits",
        ),
        json(
            "a variant without fields as an object",
            "to_node",
            r#"{"sample":{}}"#,
            "a variant without fields is a string",
        ),
        json(
            "a variant with fields as a string",
            "to_node",
            r#""ping""#,
            "a variant with fields is an object",
        ),
        json(
            "an id in capitals",
            "to_node",
            &ack(&RUN.to_uppercase()),
            "an id has lower-case digits",
        ),
        json(
            "an id too short",
            "to_node",
            &ack(&RUN[1..]),
            "an id has 32 digits",
        ),
        json(
            "an id with dashes",
            "to_node",
            &ack("00112233-4455-6677-8899-aabbccddeeff"),
            "an id has 32 digits",
        ),
        json(
            "base64 without padding",
            "to_node",
            &stdin("YQ"),
            "base64 has its padding",
        ),
        json(
            "base64 for addresses",
            "to_node",
            &stdin("_-8="),
            "base64 has `+` and `/` (RFC 4648, 4)",
        ),
        json(
            "base64 with a line end",
            "to_node",
            &stdin("YWFh\\nYWFh"),
            "base64 is one word",
        ),
        json(
            "base64 with bits left over",
            "to_node",
            &stdin("YR=="),
            "the bits behind the last byte are zero",
        ),
        json(
            "a key too short",
            "to_node",
            &start("{}").replace(&"A".repeat(43), &"A".repeat(39)),
            "a digest has 32 bytes",
        ),
        json(
            "a variable named twice",
            "to_node",
            &start(r#"{"LANG":"C","LANG":"D"}"#),
            "a map names each key once",
        ),
        json(
            "a variable that is no text",
            "to_node",
            &start(r#"{"LANG":1}"#),
            "a value is text",
        ),
        json(
            "a comma too many",
            "to_node",
            r#"{"ping":{"number":1,}}"#,
            "JSON is that of RFC 8259",
        ),
        json(
            "a comment",
            "to_node",
            "{\"ping\":{\"number\":1}} // hello",
            "JSON is that of RFC 8259",
        ),
        json(
            "a byte order mark",
            "to_node",
            "\u{feff}{\"ping\":{\"number\":1}}",
            "JSON has none (RFC 8259, 8.1)",
        ),
        json(
            "half of a pair",
            "to_node",
            &start(r#"{"LANG":"\ud800"}"#),
            "text is Unicode",
        ),
        json(
            "a policy that there is not",
            "introduction",
            "\"everything\"",
            "an introduction is an object",
        ),
        json(
            "an outcome that there is not",
            "to_gateway",
            &run(
                r#"{"ended":{"run_id":"00112233445566778899aabbccddeeff","ending":{"outcome":"finished","reason":null,"status":null,"detail":"","duration_ms":0,"descendants_may_survive":false},"totals":{"stdout":0,"stderr":0}}}"#,
            ),
            "there are seven outcomes",
        ),
        json(
            "a verdict that there is not",
            "verdict",
            r#"{"welcome":{}}"#,
            "there are three verdicts",
        ),
        json(
            "a refusal without its wait",
            "verdict",
            r#"{"refused":{"code":"rate_limited"}}"#,
            "`rate_limited` has a field",
        ),
    ]
}
