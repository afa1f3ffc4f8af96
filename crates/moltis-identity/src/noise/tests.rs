//! What a channel refuses, with each cipher.

use moltis_proto::limits::{FRAME_BYTES_MAX, PLAINTEXT_BYTES_MAX};

use super::*;
use crate::hex;

/// Every encoding of a point of low order on Curve25519 below 2^255, and what they are with the
/// bit that X25519 ignores (RFC 7748, 5).
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

fn agreed(offers: &str) -> Negotiated {
    Negotiated::from_header_values([offers]).unwrap()
}

fn each_cipher(check: impl Fn(&Negotiated)) {
    check(&agreed("moltis.node.v1"));
    check(&agreed("moltis.node.v1+aes"));
}

/// Node and gateway on one channel.
fn pair(negotiated: &Negotiated) -> (Channel, Channel) {
    let (initiator, message_1) = Initiator::new(negotiated).unwrap();
    let responder = Responder::new(negotiated).unwrap();
    let (gateway, message_2) = responder.respond(&message_1).unwrap();
    (initiator.finish(&message_2).unwrap(), gateway)
}

/// A channel that comes out the same each time: both messages, node, gateway.
pub(crate) fn with_ephemerals(
    negotiated: &Negotiated,
    node: &[u8; 32],
    gateway: &[u8; 32],
) -> (Vec<u8>, Vec<u8>, Channel, Channel) {
    let (initiator, message_1) = Initiator::begin(negotiated, Some(node)).unwrap();
    let responder = Responder::begin(negotiated, Some(gateway)).unwrap();
    let (gateway, message_2) = responder.respond(&message_1).unwrap();
    let node = initiator.finish(&message_2).unwrap();
    (message_1, message_2, node, gateway)
}

fn sealed(sealer: &mut Sealer, plaintext: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    sealer.seal(plaintext, &mut frame).unwrap();
    frame
}

fn opened(opener: &mut Opener, frame: &[u8]) -> Result<Vec<u8>, NoiseError> {
    let mut plaintext = Vec::new();
    opener.open(frame, &mut plaintext)?;
    Ok(plaintext)
}

#[test]
fn both_ends_hold_one_binding_and_no_two_channels_share_one() {
    each_cipher(|negotiated| {
        let (node, gateway) = pair(negotiated);
        assert_eq!(node.binding, gateway.binding);
        assert_eq!(node.binding.subprotocol, negotiated.chosen);
        assert_ne!(node.binding, pair(negotiated).0.binding);
    });
}

#[test]
fn frames_of_every_size_arrive_in_both_directions() {
    each_cipher(|negotiated| {
        let (mut node, mut gateway) = pair(negotiated);
        for length in [0, 1, 15, 16, 17, 61_440, PLAINTEXT_BYTES_MAX] {
            let plaintext = vec![length.to_le_bytes()[0]; length];
            let frame = sealed(&mut node.sealer, &plaintext);
            assert_eq!(frame.len(), length + 16);
            assert_eq!(opened(&mut gateway.opener, &frame).unwrap(), plaintext);
            let frame = sealed(&mut gateway.sealer, &plaintext);
            assert_eq!(opened(&mut node.opener, &frame).unwrap(), plaintext);
        }
    });
}

#[test]
fn both_halves_work_at_once_in_two_threads() {
    let (node, mut gateway) = pair(&agreed("moltis.node.v1"));
    let Channel {
        mut sealer,
        mut opener,
        ..
    } = node;
    std::thread::scope(|scope| {
        let towards: Vec<_> = (0..100)
            .map(|_| sealed(&mut gateway.sealer, b"down"))
            .collect();
        let up = scope.spawn(move || {
            (0..100)
                .map(|_| sealed(&mut sealer, b"up"))
                .collect::<Vec<_>>()
        });
        let down = scope.spawn(move || {
            towards
                .iter()
                .all(|frame| opened(&mut opener, frame).unwrap() == b"down")
        });
        let arrived = up.join().unwrap();
        assert!(
            arrived
                .iter()
                .all(|frame| opened(&mut gateway.opener, frame).unwrap() == b"up")
        );
        assert!(down.join().unwrap());
    });
}

#[test]
fn both_halves_append_and_allocate_nothing_where_there_is_room() {
    let (mut node, mut gateway) = pair(&agreed("moltis.node.v1"));
    let mut frame = Vec::with_capacity(4096);
    let mut plaintext = Vec::with_capacity(4096);
    let places = (frame.as_ptr(), plaintext.as_ptr());
    for _ in 0..100 {
        frame.clear();
        plaintext.clear();
        frame.extend_from_slice(b"head");
        plaintext.extend_from_slice(b"kept");
        node.sealer.seal(&[7; 4000], &mut frame).unwrap();
        gateway.opener.open(&frame[4..], &mut plaintext).unwrap();
        assert_eq!((&frame[..4], &plaintext[..4]), (&b"head"[..], &b"kept"[..]));
        assert_eq!(plaintext[4..], [7; 4000]);
    }
    assert_eq!((frame.as_ptr(), plaintext.as_ptr()), places);
}

#[test]
fn a_changed_frame_is_refused_at_every_bit_and_length() {
    each_cipher(|negotiated| {
        let check = |change: &dyn Fn(&mut Vec<u8>)| {
            let (mut node, mut gateway) = pair(negotiated);
            let mut frame = sealed(&mut node.sealer, b"run");
            change(&mut frame);
            let mut out = b"before".to_vec();
            assert!(gateway.opener.open(&frame, &mut out).is_err());
            assert_eq!(out, b"before");
        };
        for bit in 0..19 * 8 {
            check(&|frame| frame[bit / 8] ^= 1 << (bit % 8));
        }
        for length in 0..19 {
            check(&|frame| frame.truncate(length));
        }
        check(&|frame| frame.push(0));
        check(&|frame| frame.resize(FRAME_BYTES_MAX + 1, 0));
    });
}

#[test]
fn a_frame_repeated_left_out_or_out_of_order_is_refused() {
    each_cipher(|negotiated| {
        for order in [[0, 0], [1, 0], [0, 2]] {
            let (mut node, mut gateway) = pair(negotiated);
            let frames: Vec<_> = (0..3).map(|_| sealed(&mut node.sealer, b"same")).collect();
            let results = order.map(|at| opened(&mut gateway.opener, &frames[at]));
            assert!(results.iter().any(Result::is_err), "{order:?}");
        }
    });
}

#[test]
fn a_channel_that_has_failed_stays_closed() {
    let (mut node, mut gateway) = pair(&agreed("moltis.node.v1"));
    let good = sealed(&mut node.sealer, b"good");
    assert_eq!(
        opened(&mut gateway.opener, &[0; 20]),
        Err(NoiseError::Open { number: 0 })
    );
    assert_eq!(opened(&mut gateway.opener, &good), Err(NoiseError::Closed));
}

#[test]
fn plaintext_that_does_not_fit_is_refused_and_the_channel_goes_on() {
    let (mut node, mut gateway) = pair(&agreed("moltis.node.v1"));
    let mut out = Vec::new();
    let found = PLAINTEXT_BYTES_MAX + 1;
    assert_eq!(
        node.sealer.seal(&vec![0; found], &mut out),
        Err(NoiseError::TooLong { found })
    );
    assert!(out.is_empty());
    let frame = sealed(&mut node.sealer, b"next");
    assert_eq!(opened(&mut gateway.opener, &frame).unwrap(), b"next");
}

#[test]
fn a_frame_led_back_to_its_sender_is_refused() {
    each_cipher(|negotiated| {
        let (mut node, _gateway) = pair(negotiated);
        let frame = sealed(&mut node.sealer, b"echo");
        assert!(opened(&mut node.opener, &frame).is_err());
    });
}

#[test]
fn a_frame_of_another_channel_is_refused() {
    each_cipher(|negotiated| {
        let frame = sealed(&mut pair(negotiated).0.sealer, b"old");
        assert!(opened(&mut pair(negotiated).1.opener, &frame).is_err());
    });
}

#[test]
fn an_ephemeral_key_of_low_order_is_refused_by_both_ends() {
    each_cipher(|negotiated| {
        for text in LOW_ORDER {
            for high_bit in [0, 0x80] {
                let mut weak = hex::decode(text);
                weak[31] |= high_bit;
                let responder = Responder::new(negotiated).unwrap();
                let refused = responder.respond(&weak).map(|_| ());
                assert_eq!(refused, Err(NoiseError::LowOrder), "{text} {high_bit}");

                weak.extend_from_slice(&[0; 16]);
                let (initiator, _) = Initiator::new(negotiated).unwrap();
                let refused = initiator.finish(&weak).map(|_| ());
                assert_eq!(refused, Err(NoiseError::LowOrder), "{text} {high_bit}");
            }
        }
    });
}

#[test]
fn a_noise_message_of_another_length_is_refused() {
    let negotiated = agreed("moltis.node.v1");
    let (_, mut message_1) = Initiator::new(&negotiated).unwrap();
    message_1.push(0); // a payload, which nobody has authenticated
    let refused = Responder::new(&negotiated).unwrap().respond(&message_1);
    assert!(matches!(
        refused,
        Err(NoiseError::Length {
            message: 1,
            found: 33,
            ..
        })
    ));
    for length in (0..100).filter(|length| *length != 48) {
        let (initiator, _) = Initiator::new(&negotiated).unwrap();
        let refused = initiator.finish(&vec![9; length]);
        assert!(
            matches!(refused, Err(NoiseError::Length { message: 2, .. })),
            "{length}"
        );
    }
}

#[test]
fn a_removed_or_changed_offer_breaks_message_2() {
    let offered = agreed("moltis.node.v1+aes,moltis.node.v1");
    let stripped = agreed("moltis.node.v1");
    let swapped = agreed("moltis.node.v1,moltis.node.v1+aes");
    // The node learns the choice from the answer; its offers it knows itself.
    let told = Negotiated {
        chosen: Subprotocol::Postcard,
        ..offered
    };
    for seen_by_gateway in [stripped, swapped] {
        let (initiator, message_1) = Initiator::new(&told).unwrap();
        let responder = Responder::new(&seen_by_gateway).unwrap();
        let (_, message_2) = responder.respond(&message_1).unwrap();
        assert_eq!(
            initiator.finish(&message_2).map(|_| ()),
            Err(NoiseError::Prologue)
        );
    }
}

#[test]
fn the_offers_begin_with_aes_only_where_the_cpu_has_it() {
    let offers = preferred_offers();
    assert!(offers.contains(&Subprotocol::Postcard));
    assert_eq!(offers[0] == Subprotocol::PostcardAes, cpu_has_aes());
}
