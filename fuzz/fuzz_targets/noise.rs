//! Somebody on the road between the two ends of a Noise channel: frames are left out, repeated, put in
//! another order, changed, cut and made up. Exactly what was sealed opens, once and in its order; after
//! anything else the channel is closed for good. Now and then the handshake itself is what is made up.
#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use moltis_fuzz::Input;
use moltis_identity::noise::{Initiator, NoiseError, Opener, Responder, Sealer};
use moltis_proto::Subprotocol;
use moltis_proto::limits::PLAINTEXT_BYTES_MAX;
use moltis_proto::subprotocol::Negotiated;

/// The keys of a channel, made once: each story begins at its first frame.
struct Keys {
    sealer: Sealer,
    opener: Opener,
}

fn negotiated(subprotocol: Subprotocol) -> Negotiated {
    Negotiated::from_header_values([subprotocol.name()]).expect("it is known")
}

impl Keys {
    fn new(subprotocol: Subprotocol) -> Self {
        let negotiated = negotiated(subprotocol);
        let (initiator, message_1) = Initiator::new(&negotiated).expect("it begins");
        let responder = Responder::new(&negotiated).expect("it begins");
        let (gateway, message_2) = responder.respond(&message_1).expect("it is answered");
        let node = initiator.finish(&message_2).expect("it ends");
        assert_eq!(gateway.binding, node.binding);
        Self {
            sealer: node.sealer,
            opener: gateway.opener,
        }
    }
}

thread_local! {
    static KEYS: [Keys; 2] = [Subprotocol::Postcard, Subprotocol::PostcardAes].map(Keys::new);
}

struct Frame {
    number: u64,
    plaintext: Vec<u8>,
    sealed: Vec<u8>,
}

struct Road {
    sealer: Sealer,
    opener: Opener,
    sealed: u64,
    /// The number of the frame that may open; `None` once the channel is closed.
    next: Option<u64>,
    frames: VecDeque<Frame>,
}

impl Road {
    fn seal(&mut self, input: &mut Input<'_>) {
        let piece = input.piece(256);
        let times = if input.byte() == 255 { 300 } else { 1 };
        let plaintext = piece.repeat(times);
        let mut sealed = b"before".to_vec();
        let result = self.sealer.seal(&plaintext, &mut sealed);
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            assert!(matches!(result, Err(NoiseError::TooLong { .. })));
            assert_eq!(sealed, b"before");
            return;
        }
        assert_eq!(result, Ok(()));
        let sealed = sealed.split_off(6);
        assert_eq!(sealed.len(), plaintext.len() + 16);
        self.frames.push_back(Frame {
            number: self.sealed,
            plaintext,
            sealed,
        });
        self.sealed += 1;
    }

    /// Gives bytes to the other end; `genuine` is the number and the text of what was sealed so.
    fn deliver(&mut self, bytes: &[u8], genuine: Option<(u64, &[u8])>) {
        let mut out = b"before".to_vec();
        let opened = self.opener.open(bytes, &mut out);
        let expected = genuine.filter(|(number, _)| Some(*number) == self.next);
        match expected {
            Some((number, plaintext)) => {
                assert_eq!(opened, Ok(()));
                assert_eq!(&out[6..], plaintext);
                self.next = Some(number + 1);
            }
            None => {
                let error = opened.expect_err("it was never sealed for this place");
                assert_eq!(self.next.is_none(), error == NoiseError::Closed);
                assert_eq!(
                    out, b"before",
                    "something of a frame that does not open is given out"
                );
                self.next = None;
            }
        }
    }
}

/// Makes up the messages of the handshake itself, which costs a hundred times as much.
fn shake(input: &mut Input<'_>) {
    let negotiated = negotiated(Subprotocol::ALL[input.below(3)]);
    let piece = input.piece(64).to_vec();
    if input.flag() {
        let responder = Responder::new(&negotiated).expect("it begins");
        match responder.respond(&piece) {
            Ok((_, message_2)) => assert_eq!((piece.len(), message_2.len()), (32, 48)),
            Err(error) => assert!(matches!(
                error,
                NoiseError::Length { message: 1, .. } | NoiseError::LowOrder
            )),
        }
    } else {
        let (initiator, _) = Initiator::new(&negotiated).expect("it begins");
        let error = initiator.finish(&piece).expect_err("nobody has answered");
        assert!(matches!(
            error,
            NoiseError::Length { message: 2, .. } | NoiseError::LowOrder | NoiseError::Prologue
        ));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    if kind == 255 {
        return shake(&mut input);
    }
    let (sealer, opener) = KEYS.with(|keys| {
        let keys = &keys[usize::from(kind & 1)];
        (keys.sealer.rewound(), keys.opener.rewound())
    });
    let mut road = Road {
        sealer,
        opener,
        sealed: 0,
        next: Some(0),
        frames: VecDeque::new(),
    };
    while !input.is_empty() {
        match input.below(8) {
            0 | 1 => road.seal(&mut input),
            2 | 3 => {
                if let Some(frame) = road.frames.pop_front() {
                    road.deliver(&frame.sealed, Some((frame.number, &frame.plaintext)));
                }
            }
            4 => {
                // Once more, later.
                if let Some(frame) = road.frames.pop_front() {
                    road.deliver(&frame.sealed, Some((frame.number, &frame.plaintext)));
                    road.frames.push_back(frame);
                }
            }
            5 => drop(road.frames.pop_front()),
            6 => {
                if let Some(frame) = road.frames.pop_front() {
                    let mut changed = frame.sealed.clone();
                    let at = usize::from(input.short()) % changed.len();
                    match input.below(3) {
                        0 => changed[at] ^= 1 << input.below(8),
                        1 => changed.truncate(at),
                        _ => changed.push(input.byte()),
                    }
                    road.deliver(&changed, None);
                }
            }
            _ => {
                let made_up = input.piece(300);
                road.deliver(made_up, None);
            }
        }
    }
});
