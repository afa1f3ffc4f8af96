//! Messages of an older connection of the same two ends, played again.

use std::collections::HashMap;

use moltis_proto::Subprotocol;

use crate::meeting::{Answer, Layer, Meeting, Step};

type Record = HashMap<(Step, Layer), Vec<u8>>;

fn record(meeting: &Meeting) -> Record {
    let mut record = Record::new();
    meeting
        .run(&mut |step, layer, bytes| {
            record.insert((step, layer), bytes.clone());
        })
        .unwrap();
    record
}

fn meeting(subprotocol: Subprotocol) -> Meeting {
    let mut meeting = Meeting::new(subprotocol);
    meeting.answer = Answer::Accept;
    meeting
}

#[test]
fn no_old_message_fits_into_a_new_connection() {
    for subprotocol in Subprotocol::ALL {
        let meeting = meeting(subprotocol);
        let old = record(&meeting);
        for step in Step::ALL {
            let result = meeting.run(&mut |at, layer, bytes| {
                if (at, layer) == (step, Layer::Wire) {
                    bytes.clone_from(&old[&(at, layer)]);
                }
            });
            assert!(
                result.is_err(),
                "{subprotocol:?}: {step:?} of an older connection"
            );
        }
    }
}

#[test]
fn no_old_proof_fits_into_a_new_connection_even_inside_of_the_channel() {
    for subprotocol in Subprotocol::ALL {
        let meeting = meeting(subprotocol);
        let old = record(&meeting);
        for step in [Step::GatewayProof, Step::NodeProof] {
            let result = meeting.run(&mut |at, layer, bytes| {
                if (at, layer) == (step, Layer::Plain) {
                    bytes.clone_from(&old[&(at, layer)]);
                }
            });
            let broken = result.expect_err("an old proof was accepted");
            assert_eq!(broken.step, step);
            let words = broken.error.to_string();
            assert!(
                words.contains("not signed by its key for this connection"),
                "{words}"
            );
        }
    }
}

#[test]
fn a_whole_old_connection_played_to_a_gateway_ends_at_the_first_frame() {
    let meeting = meeting(Subprotocol::Postcard);
    let old = record(&meeting);
    let result = meeting.run(&mut |step, layer, bytes| {
        if layer == Layer::Wire
            && matches!(step, Step::Message1 | Step::NodeProof | Step::Introduction)
        {
            bytes.clone_from(&old[&(step, layer)]);
        }
    });
    assert!(result.is_err());
}
