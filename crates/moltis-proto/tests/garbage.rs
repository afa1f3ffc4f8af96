//! Bytes that nobody meant as a message: random ones, spoiled ones, and lies in good form.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail like the test")]

#[path = "vectors/samples.rs"]
mod samples;

use std::fmt::Debug;

use moltis_proto::handshake::{GatewayProof, Introduction, NodeProof, Verdict};
use moltis_proto::limits::PLAINTEXT_BYTES_MAX;
use moltis_proto::{Codec, CodecError, FromKeeper, Labels, ToGateway, ToKeeper, ToNode};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use samples::Message;

const CODECS: [Codec; 2] = [Codec::Postcard, Codec::Json];

/// Reads the bytes as every type of the wire. None may panic, and what does read is a message that
/// survives being written and read again.
fn read_as_everything(bytes: &[u8]) {
    for codec in CODECS {
        read::<GatewayProof>(codec, bytes);
        read::<NodeProof>(codec, bytes);
        read::<Introduction>(codec, bytes);
        read::<Verdict>(codec, bytes);
        read::<ToNode>(codec, bytes);
        read::<ToGateway>(codec, bytes);
        read::<ToKeeper>(codec, bytes);
        read::<FromKeeper>(codec, bytes);
    }
}

fn read<T: Serialize + DeserializeOwned + Debug>(codec: Codec, bytes: &[u8]) {
    let Ok(message) = codec.decode::<T>(bytes) else {
        return;
    };
    let written = codec.encode(&message).unwrap();
    let again = codec.decode::<T>(&written).unwrap();
    // Compared as bytes: a number that is none does not equal itself.
    assert_eq!(codec.encode(&again).unwrap(), written, "{message:?}");
}

fn encoded(message: &Message, codec: Codec) -> Vec<u8> {
    match message {
        Message::GatewayProof(message) => codec.encode(message),
        Message::NodeProof(message) => codec.encode(message),
        Message::Introduction(message) => codec.encode(message),
        Message::Verdict(message) => codec.encode(message),
        Message::ToNode(message) => codec.encode(message),
        Message::ToGateway(message) => codec.encode(message),
        Message::ToKeeper(message) => codec.encode(message),
    }
    .unwrap()
}

fn a_sample() -> impl Strategy<Value = Vec<u8>> {
    let codec = prop_oneof![Just(Codec::Postcard), Just(Codec::Json)];
    (prop::sample::select(samples::all()), codec)
        .prop_map(|((_, message), codec)| encoded(&message, codec))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn bytes_that_begin_like_a_message_never_panic(
        start in prop::collection::vec(0..10_u8, 0..4),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        read_as_everything(&[start, rest].concat());
    }

    #[test]
    fn spoiled_messages_never_panic(
        sample in a_sample(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = sample;
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_as_everything(&bytes);
    }

    #[test]
    fn messages_with_pieces_of_others_never_panic(
        one in a_sample(),
        other in a_sample(),
        cut in any::<prop::sample::Index>(),
        join in any::<prop::sample::Index>(),
    ) {
        let bytes = [&one[..cut.index(one.len())], &other[join.index(other.len())..]].concat();
        read_as_everything(&bytes);
    }
}

#[test]
fn a_length_that_lies_is_refused() {
    // Every varint there is room for, as the length of the first string, list or chunk.
    for length in [0x7f_u64, 0x3fff, 1 << 32, u64::MAX >> 1, u64::MAX] {
        let varint = postcard::to_stdvec(&length).unwrap();
        for index in 0..10_u8 {
            for inner in 0..10_u8 {
                let bytes = [&[index, inner][..], &[0; 17], &varint, &[1; 20]].concat();
                read_as_everything(&bytes);
                read_as_everything(&[&varint[..], &[b'a'; 30]].concat());
            }
        }
    }
}

#[test]
fn json_without_end_is_refused_and_does_not_exhaust_the_stack() {
    for piece in ["[", "{\"run\":", "{\"a\":", "\""] {
        let bytes = piece.repeat(PLAINTEXT_BYTES_MAX / piece.len());
        read_as_everything(bytes.as_bytes());
    }
}

#[test]
fn more_than_a_frame_is_refused_before_it_is_read() {
    let bytes = vec![b' '; PLAINTEXT_BYTES_MAX + 1];
    for codec in CODECS {
        let read = codec.decode::<ToGateway>(&bytes);
        assert!(matches!(read, Err(CodecError::TooLong { .. })), "{read:?}");
    }
}

#[test]
fn a_map_that_names_a_key_twice_is_refused() {
    let start = |env: &str| {
        format!(
            r#"{{"run":{{"start":{{"run_id":"{}","digest":"{}=","spec":{{"command":{{"argv":["x"]}},"cwd":null,"env":{env},"timeout_ms":null,"grace_ms":1,"stdin":"empty","tty":null}}}}}}}}"#,
            "0".repeat(32),
            "A".repeat(43),
        )
    };
    let read = |text: String| Codec::Json.decode::<ToNode>(text.as_bytes());
    read(start(r#"{"LANG":"C"}"#)).unwrap();
    let refused = read(start(r#"{"LANG":"C","TERM":"a","LANG":"D"}"#));
    assert!(refused.is_err(), "{refused:?}");
    let labels = |text: &str| Codec::Json.decode::<Labels>(text.as_bytes());
    labels(r#"{"gpu":"true"}"#).unwrap();
    labels(r#"{"gpu":"true","gpu":"false"}"#).unwrap_err();
    let labels = |bytes: &[u8]| Codec::Postcard.decode::<Labels>(bytes);
    labels(b"\x02\x01a\x00\x01b\x00").unwrap();
    labels(b"\x02\x01a\x00\x01a\x00").unwrap_err();
}

/// A node that has been let in can say what `ToGateway` says and nothing else: what an operator, a
/// gateway or another protocol of this kind would say is no message.
#[test]
fn a_nodes_message_that_imitates_an_operator_is_none() {
    let run_id = "0".repeat(32);
    let imitations = [
        r#"{"role":"operator"}"#.to_owned(),
        r#"{"approve":{"request_id":"3f9c"}}"#.to_owned(),
        r#"{"run":{"approve":{"request_id":"3f9c"}}}"#.to_owned(),
        r#"{"pairing":{"enabled":true,"for_seconds":600}}"#.to_owned(),
        r#"{"exec":{"node":"other","argv":["id"]}}"#.to_owned(),
        r#"{"method":"node.invoke","params":{"command":"system.run"}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#.to_owned(),
        r#"{"token":{"create":{"scopes":["admin"]}}}"#.to_owned(),
        format!(r#"{{"run":{{"cancel":{{"run_id":"{run_id}","grace_ms":0}}}}}}"#),
        format!(r#"{{"run":{{"forget":{{"run_id":"{run_id}"}}}}}}"#),
        r#"{"run":"leave"}"#.to_owned(),
        r#""sample""#.to_owned(),
        r#"{"ping":{"number":1,"role":"operator"}}"#.to_owned(),
        r#"{"ping":{"number":1},"role":"operator"}"#.to_owned(),
        r#"["ping",{"number":1}]"#.to_owned(),
        r#"{"accepted":{}}"#.to_owned(),
        "null".to_owned(),
    ];
    for text in imitations {
        let read = Codec::Json.decode::<ToGateway>(text.as_bytes());
        assert!(read.is_err(), "{text} was read as {read:?}");
    }
    Codec::Json
        .decode::<ToGateway>(br#"{"ping":{"number":1}}"#)
        .unwrap();
}

#[test]
fn no_message_of_a_gateway_is_one_of_a_node_but_what_both_say() {
    for (name, message) in samples::all() {
        let Message::ToNode(said) = &message else {
            continue;
        };
        let both = matches!(
            said,
            ToNode::Ping { .. }
                | ToNode::Pong { .. }
                | ToNode::Goodbye { .. }
                | ToNode::Close { .. }
        );
        let read = Codec::Json.decode::<ToGateway>(&encoded(&message, Codec::Json));
        assert_eq!(read.is_ok(), both, "{name}");
    }
}
