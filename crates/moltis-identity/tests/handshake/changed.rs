//! Messages changed on the way: every bit, every length, outside and inside of the channel.

use std::collections::HashMap;

use moltis_proto::Subprotocol;
use moltis_proto::limits::{HANDSHAKE_FRAME_BYTES_MAX, PLAINTEXT_BYTES_MAX};

use crate::meeting::{Answer, Layer, Meeting, Step};

/// The messages that are signed. The others stand in the channel of two ends that have proven
/// themselves, and nobody sits between those.
const SIGNED: [Step; 2] = [Step::GatewayProof, Step::NodeProof];

/// Returns the length of each message, by an honest run.
fn lengths(meeting: &Meeting) -> HashMap<(Step, Layer), usize> {
    let mut lengths = HashMap::new();
    meeting
        .run(&mut |step, layer, bytes| {
            lengths.insert((step, layer), bytes.len());
        })
        .unwrap();
    lengths
}

/// Runs with one message changed, and asserts that it went no further than the next one: a changed
/// message 1 is noticed by message 2, which holds its hash.
fn refused(meeting: &Meeting, at: (Step, Layer), what: &str, change: impl Fn(&mut Vec<u8>)) {
    let result = meeting.run(&mut |step, layer, bytes| {
        if (step, layer) == at {
            let before = bytes.clone();
            change(bytes);
            assert_ne!(&before, bytes, "nothing was changed");
        }
    });
    match result {
        Ok(_) => panic!("{at:?} was accepted with {what}"),
        Err(broken) if at.0 == Step::Message1 => assert!(broken.step <= Step::Message2),
        Err(broken) => assert_eq!(broken.step, at.0, "{what}: {}", broken.error),
    }
}

fn every_bit(meeting: &Meeting, at: (Step, Layer)) {
    for bit in 0..lengths(meeting)[&at] * 8 {
        refused(meeting, at, &format!("bit {bit} flipped"), |bytes| {
            bytes[bit / 8] ^= 1 << (bit % 8);
        });
    }
}

fn every_length(meeting: &Meeting, at: (Step, Layer)) {
    let length = lengths(meeting)[&at];
    for shorter in 0..length {
        refused(
            meeting,
            at,
            &format!("{shorter} of {length} bytes"),
            |bytes| {
                bytes.truncate(shorter);
            },
        );
    }
    for more in [1, 2, 16, 64, 1024] {
        for byte in [0, 1, 0xff, b'}', b'1'] {
            refused(
                meeting,
                at,
                &format!("{more} times {byte} behind it"),
                |bytes| {
                    bytes.resize(length + more, byte);
                },
            );
            refused(
                meeting,
                at,
                &format!("{more} times {byte} before it"),
                |bytes| {
                    bytes.splice(..0, vec![byte; more]);
                },
            );
        }
    }
}

fn meeting(subprotocol: Subprotocol) -> Meeting {
    let mut meeting = Meeting::new(subprotocol);
    meeting.answer = Answer::Accept;
    meeting
}

#[test]
fn no_flipped_bit_on_the_wire_gets_through() {
    for step in Step::ALL {
        every_bit(&meeting(Subprotocol::Postcard), (step, Layer::Wire));
    }
}

#[test]
fn no_flipped_bit_on_the_wire_gets_through_with_aes() {
    for step in Step::ALL {
        every_bit(&meeting(Subprotocol::PostcardAes), (step, Layer::Wire));
    }
}

#[test]
fn no_shorter_or_longer_message_on_the_wire_gets_through() {
    for subprotocol in [Subprotocol::Postcard, Subprotocol::PostcardAes] {
        for step in Step::ALL {
            every_length(&meeting(subprotocol), (step, Layer::Wire));
        }
    }
}

#[test]
fn no_flipped_bit_in_a_signed_message_gets_through() {
    for step in SIGNED {
        every_bit(&meeting(Subprotocol::Postcard), (step, Layer::Plain));
    }
}

#[test]
fn no_flipped_bit_in_a_signed_message_of_json_gets_through() {
    for step in SIGNED {
        every_bit(&meeting(Subprotocol::Json), (step, Layer::Plain));
    }
}

#[test]
fn no_message_has_a_second_length_in_either_codec() {
    for subprotocol in [Subprotocol::Postcard, Subprotocol::Json] {
        for step in [
            Step::GatewayProof,
            Step::NodeProof,
            Step::Introduction,
            Step::Verdict,
        ] {
            every_length(&meeting(subprotocol), (step, Layer::Plain));
        }
    }
}

#[test]
fn an_oversized_message_is_refused_before_it_is_opened() {
    for step in [
        Step::GatewayProof,
        Step::NodeProof,
        Step::Introduction,
        Step::Verdict,
    ] {
        let meeting = meeting(Subprotocol::Json);
        for length in [HANDSHAKE_FRAME_BYTES_MAX - 15, PLAINTEXT_BYTES_MAX] {
            let result = meeting.run(&mut |at, layer, bytes| {
                if (at, layer) == (step, Layer::Plain) {
                    // White space behind a JSON message changes nothing but its length.
                    bytes.resize(length, b' ');
                }
            });
            let broken = result.expect_err("an oversized message was accepted");
            assert_eq!(broken.step, step);
            assert!(
                broken
                    .error
                    .to_string()
                    .contains("too long before acceptance")
            );
        }
    }
}
