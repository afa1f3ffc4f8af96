//! Golden bytes of every message in both codecs, `tests/vectors/messages.json`, and bytes that are
//! none, `refused.json`.
//!
//! The files are the contract with nodes written in other languages: for each message its type, how
//! it reads as JSON, and its postcard bytes. `cargo xtask bless` writes them anew; without it a
//! difference is a failure. Whole handshakes are beside them, in `handshake.json`.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail like the test")]

#[path = "vectors/refused.rs"]
mod refused;
#[path = "vectors/samples.rs"]
mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use moltis_proto::code::{CloseCode, GoodbyeReason};
use moltis_proto::handshake::{Intent, PolicyMode, Verdict};
use moltis_proto::run::{
    Command, ExitStatus, GapReason, Outcome, Reason, RunState, StdinMode, Stream,
};
use moltis_proto::telemetry::ProviderKind;
use moltis_proto::{
    Codec, CodecError, FromKeeper, Refusal, RunRefusal, ToGateway, ToKeeper, ToNode,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use refused::Refused;
use samples::Message;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Vectors {
    about: Vec<String>,
    messages: Vec<Vector>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Vector {
    name: String,
    r#type: String,
    json: Value,
    postcard: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct RefusedVectors {
    about: Vec<String>,
    refused: Vec<Refused>,
}

const ABOUT_REFUSED: [&str; 3] = [
    "What must not be read as a message of the Moltis node protocol; see docs/protocol.md.",
    "type is what the receiver reads, as in messages.json. Whoever receives one of these ends the connection.",
    "Where postcard is there, it is the hexadecimal digits of a plaintext in moltis.node.v1; where json is there, it is the text of one in moltis.node.v1+json. why is for a person.",
];

const ABOUT: [&str; 4] = [
    "Every message of the Moltis node protocol; see docs/protocol.md.",
    "type is what the receiver reads: to_node and to_gateway after `accepted`, the others in the handshake.",
    "json is the message in the subprotocol moltis.node.v1+json (the order of fields is free), postcard the hexadecimal digits of the same in the others.",
    "to_keeper is spoken on a keeper's socket alone and is never seen between gateway and node.",
];

impl Message {
    fn kind(&self) -> &'static str {
        match self {
            Self::GatewayProof(_) => "gateway_proof",
            Self::NodeProof(_) => "node_proof",
            Self::Introduction(_) => "introduction",
            Self::Verdict(_) => "verdict",
            Self::ToNode(_) => "to_node",
            Self::ToGateway(_) => "to_gateway",
            Self::ToKeeper(_) => "to_keeper",
        }
    }

    fn encode(&self, codec: Codec) -> Vec<u8> {
        match self {
            Self::GatewayProof(message) => codec.encode(message),
            Self::NodeProof(message) => codec.encode(message),
            Self::Introduction(message) => codec.encode(message),
            Self::Verdict(message) => codec.encode(message),
            Self::ToNode(message) => codec.encode(message),
            Self::ToGateway(message) => codec.encode(message),
            Self::ToKeeper(message) => codec.encode(message),
        }
        .unwrap()
    }

    fn decode(kind: &str, codec: Codec, bytes: &[u8]) -> Result<Self, CodecError> {
        Ok(match kind {
            "gateway_proof" => Self::GatewayProof(codec.decode(bytes)?),
            "node_proof" => Self::NodeProof(codec.decode(bytes)?),
            "introduction" => Self::Introduction(Box::new(codec.decode(bytes)?)),
            "verdict" => Self::Verdict(codec.decode(bytes)?),
            "to_node" => Self::ToNode(codec.decode(bytes)?),
            "to_gateway" => Self::ToGateway(codec.decode(bytes)?),
            "to_keeper" => Self::ToKeeper(codec.decode(bytes)?),
            other => unreachable!("{other}"),
        })
    }
}

fn path(file: &str) -> std::path::PathBuf {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    vectors.join(file)
}

fn read_file<T: DeserializeOwned>(file: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(path(file)).unwrap()).unwrap()
}

/// Writes a file anew where that is asked for.
fn bless(file: &str, content: &impl Serialize) {
    if std::env::var_os("MOLTIS_BLESS").is_some() {
        let mut text = serde_json::to_string_pretty(content).unwrap();
        text.push('\n');
        std::fs::write(path(file), text).unwrap();
    }
}

fn stored() -> Vectors {
    read_file("messages.json")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn messages_are_byte_for_byte_those_of_the_vectors() {
    let vector = |(name, message): (String, Message)| Vector {
        name,
        r#type: message.kind().to_owned(),
        json: serde_json::from_slice(&message.encode(Codec::Json)).unwrap(),
        postcard: hex(&message.encode(Codec::Postcard)),
    };
    let vectors = Vectors {
        about: ABOUT.map(ToOwned::to_owned).to_vec(),
        messages: samples::all().into_iter().map(vector).collect(),
    };
    bless("messages.json", &vectors);
    let stored = stored();
    for (stored, now) in stored.messages.iter().zip(&vectors.messages) {
        assert_eq!(
            stored, now,
            "the wire has changed: a struct that has been on the wire never changes, and a new \
             variant needs a number in the ledger; `cargo xtask bless` writes the vectors anew"
        );
    }
    assert_eq!(
        stored, vectors,
        "`cargo xtask bless` writes the vectors anew"
    );
}

#[test]
fn what_is_no_message_is_refused() {
    let vectors = RefusedVectors {
        about: ABOUT_REFUSED.map(ToOwned::to_owned).to_vec(),
        refused: refused::all(),
    };
    bless("refused.json", &vectors);
    let stored: RefusedVectors = read_file("refused.json");
    assert_eq!(
        stored, vectors,
        "`cargo xtask bless` writes the vectors anew"
    );
    for vector in stored.refused {
        let read = match (&vector.postcard, &vector.json) {
            (Some(digits), None) => {
                Message::decode(&vector.r#type, Codec::Postcard, &unhex(digits))
            }
            (None, Some(text)) => Message::decode(&vector.r#type, Codec::Json, text.as_bytes()),
            _ => panic!("{}: one of the two codecs", vector.name),
        };
        assert!(read.is_err(), "{}: {read:?}", vector.name);
    }
}

#[test]
fn every_vector_is_read_back_in_both_codecs() {
    let samples = samples::all();
    for (vector, (name, message)) in stored().messages.iter().zip(samples) {
        assert_eq!(vector.name, name);
        let read = |codec, bytes: &[u8]| Message::decode(&vector.r#type, codec, bytes).unwrap();
        assert_eq!(read(Codec::Postcard, &unhex(&vector.postcard)), message);
        let json = serde_json::to_vec(&vector.json).unwrap();
        assert_eq!(read(Codec::Json, &json), message);
    }
}

#[test]
fn names_are_given_once() {
    let names: BTreeSet<String> = samples::all().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), samples::all().len());
    let names: BTreeSet<String> = refused::all().into_iter().map(|it| it.name).collect();
    assert_eq!(names.len(), refused::all().len());
}

#[test]
fn every_variant_of_every_enum_has_a_vector_where_it_may_stand() {
    let mut said = BTreeMap::new();
    for vector in stored().messages {
        words(&vector.r#type, &vector.json, &mut said);
    }
    let check = |place: &str, variants: Vec<String>| {
        for variant in variants {
            let is_said = said
                .get(place)
                .is_some_and(|words| words.contains(&variant));
            assert!(is_said, "no vector says `{variant}` at `{place}`");
        }
    };
    let shared = |variants: Vec<String>| {
        let apart = ["attach", "leave"];
        let shared = variants.into_iter();
        shared.filter(|name| !apart.contains(&&**name)).collect()
    };
    check("to_node", variants::<ToNode>());
    check("to_gateway", variants::<ToGateway>());
    check("to_node/run", shared(variants::<ToKeeper>()));
    check("to_gateway/run", variants::<FromKeeper>());
    check("verdict", variants::<Verdict>());
    check("verdict/refused/code", variants::<Refusal>());
    check("to_gateway/run/refused/code", variants::<RunRefusal>());
    for side in ["to_node", "to_gateway"] {
        check(&format!("{side}/close/code"), variants::<CloseCode>());
        check(
            &format!("{side}/goodbye/reason"),
            variants::<GoodbyeReason>(),
        );
    }
    check("node_proof/intent", variants::<Intent>());
    check("introduction/policy", variants::<PolicyMode>());
    let start = "to_node/run/start/spec";
    check(&format!("{start}/command"), variants::<Command>());
    check(&format!("{start}/stdin"), variants::<StdinMode>());
    check("to_gateway/run/output/stream", variants::<Stream>());
    check("to_gateway/run/gap/reason", variants::<GapReason>());
    let ending = "to_gateway/run/ended/ending";
    check(&format!("{ending}/outcome"), variants::<Outcome>());
    check(&format!("{ending}/reason"), variants::<Reason>());
    check(&format!("{ending}/status"), variants::<ExitStatus>());
    check("to_gateway/run/runs/runs/state", variants::<RunState>());
    check(
        "to_gateway/telemetry/providers/kind",
        variants::<ProviderKind>(),
    );
}

#[test]
fn every_option_is_there_once_and_missing_once() {
    let mut said = BTreeMap::new();
    for vector in stored().messages {
        words(&vector.r#type, &vector.json, &mut said);
    }
    for place in [
        "to_node/run/start/spec/cwd",
        "to_node/run/start/spec/timeout_ms",
        "to_node/run/start/spec/tty",
        "to_gateway/run/ended/ending/reason",
        "to_gateway/run/ended/ending/status",
        "to_gateway/telemetry/cpu_usage_percent",
        "to_gateway/telemetry/providers/variable",
    ] {
        let words = &said[place];
        assert!(words.contains("null"), "`{place}` is never empty");
        assert!(words.len() > 1, "`{place}` is always empty");
    }
}

/// Returns the names of an enum's variants, as its reader lists them when it is given another one.
fn variants<T: DeserializeOwned>() -> Vec<String> {
    let error = serde_json::from_str::<T>("{\"?\":null}")
        .err()
        .unwrap()
        .to_string();
    let names: Vec<String> = error
        .split('`')
        .skip(3) // "unknown variant ", "?", ", expected one of "
        .step_by(2)
        .map(ToOwned::to_owned)
        .collect();
    assert!(names.len() > 1, "{error}");
    names
}

/// Collects what stands at each place: the names of an object's fields, or a value itself. Lists
/// are no place of their own.
fn words(place: &str, json: &Value, said: &mut BTreeMap<String, BTreeSet<String>>) {
    let mut say = |word: String| {
        said.entry(place.to_owned()).or_default().insert(word);
    };
    match json {
        Value::Null => say("null".to_owned()),
        Value::String(text) => say(text.clone()),
        Value::Bool(value) => say(value.to_string()),
        Value::Number(number) => say(number.to_string()),
        Value::Array(items) => items.iter().for_each(|item| words(place, item, said)),
        Value::Object(fields) => {
            fields.keys().for_each(|name| say(name.clone()));
            for (name, value) in fields {
                words(&format!("{place}/{name}"), value, said);
            }
        }
    }
}

#[test]
fn a_message_cut_or_lengthened_anywhere_is_none() {
    for vector in stored().messages {
        let refuse = |codec, bytes: &[u8]| {
            let read = Message::decode(&vector.r#type, codec, bytes);
            assert!(read.is_err(), "{}: {read:?}", vector.name);
        };
        let postcard = unhex(&vector.postcard);
        for length in 0..postcard.len() {
            refuse(Codec::Postcard, &postcard[..length]);
        }
        refuse(Codec::Postcard, &[&postcard[..], &[0]].concat());
        let json = serde_json::to_vec(&vector.json).unwrap();
        for length in 0..json.len() {
            refuse(Codec::Json, &json[..length]);
        }
        refuse(Codec::Json, &[&json[..], b"{}"].concat());
    }
}

#[test]
fn an_unknown_doubled_or_missing_field_makes_json_no_message() {
    for vector in stored().messages {
        let text = serde_json::to_string(&vector.json).unwrap();
        let refuse = |changed: String| {
            let read = Message::decode(&vector.r#type, Codec::Json, changed.as_bytes());
            assert!(read.is_err(), "{changed}");
        };
        // Every object of a message but the two maps has a fixed set of fields.
        for (at, _) in text.match_indices('{') {
            let before = &text[..at];
            if before.ends_with("\"env\":") || before.ends_with("\"labels\":") {
                continue;
            }
            let comma = if text[at + 1..].starts_with('}') {
                ""
            } else {
                ","
            };
            refuse(format!(
                "{before}{{\"role\":\"operator\"{comma}{}",
                &text[at + 1..]
            ));
        }
        for (at, _) in text.match_indices("\":") {
            let key = text[..at].rfind('"').unwrap();
            refuse(format!(
                "{}{}\":null,{}",
                &text[..key],
                &text[key..at],
                &text[key..]
            ));
        }
    }
}

#[test]
fn the_codecs_are_not_taken_for_each_other() {
    for vector in stored().messages {
        let json = serde_json::to_vec(&vector.json).unwrap();
        assert!(Message::decode(&vector.r#type, Codec::Json, &unhex(&vector.postcard)).is_err());
        assert!(Message::decode(&vector.r#type, Codec::Postcard, &json).is_err());
    }
}
