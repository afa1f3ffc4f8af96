//! Two versions meet.

use moltis_identity::StrictVerifier;
use moltis_proto::handshake::gateway::GatewayHandshake;
use moltis_proto::handshake::node::Decision;
use moltis_proto::handshake::{GatewayProof, HandshakeError, Verdict};
use moltis_proto::version::{Ledger, LedgerRange};
use moltis_proto::{Refusal, Subprotocol};

use crate::meeting::{Answer, Layer, Meeting, Step, nonce};
use crate::middle::lie;

fn range(min: u16, max: u16) -> LedgerRange {
    LedgerRange {
        min: Ledger(min),
        max: Ledger(max),
    }
}

fn meeting(subprotocol: Subprotocol, gateway: (u16, u16), node: (u16, u16)) -> Meeting {
    let mut meeting = Meeting::new(subprotocol);
    meeting.gateway_ledgers = range(gateway.0, gateway.1);
    meeting.node_ledgers = range(node.0, node.1);
    meeting.answer = Answer::Accept;
    meeting
}

#[test]
fn neighbouring_versions_agree_on_the_highest_common_number() {
    for subprotocol in Subprotocol::ALL {
        for (gateway, node, agreed) in [
            ((1, 1), (1, 1), 1),
            ((1, 2), (1, 1), 1),
            ((1, 1), (1, 2), 1),
            ((2, 5), (1, 3), 3),
            ((1, 3), (2, 5), 3),
            ((0, u16::MAX), (7, 7), 7),
        ] {
            let met = meeting(subprotocol, gateway, node).honest().unwrap();
            assert_eq!(met.verified.ledger(), Ledger(agreed));
            match met.decision {
                Decision::Accepted { ledger, .. } => assert_eq!(ledger, Ledger(agreed)),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn versions_that_do_not_meet_say_which_end_to_update() {
    for (gateway, node, words) in [
        (
            (1, 1),
            (2, 3),
            "the gateway speaks protocol 1, this node 2 to 3: update the gateway",
        ),
        (
            (2, 3),
            (1, 1),
            "the gateway speaks protocol 2 to 3, this node 1: update the node",
        ),
    ] {
        let broken = meeting(Subprotocol::Postcard, gateway, node)
            .honest()
            .unwrap_err();
        assert_eq!(broken.step, Step::GatewayProof);
        assert_eq!(broken.error.to_string(), words);
    }
}

#[test]
fn a_range_that_is_upside_down_is_refused() {
    let broken = meeting(Subprotocol::Postcard, (3, 1), (1, 3))
        .honest()
        .unwrap_err();
    assert_eq!(broken.step, Step::GatewayProof);
}

#[test]
fn a_number_that_the_gateway_did_not_offer_is_refused_as_version() {
    let meeting = meeting(Subprotocol::Postcard, (2, 3), (2, 3));
    for ledger in [0, 1, 4, u16::MAX] {
        let (_, channel) = meeting.channels();
        let (mut gateway, challenge) = GatewayHandshake::new(
            channel.binding,
            &meeting.gateway,
            &StrictVerifier,
            meeting.gateway_ledgers,
            nonce(),
            nonce(),
        );
        let proof = lie(
            &meeting,
            channel.binding,
            &challenge,
            [6; 32],
            Ledger(ledger),
        );
        let refused = gateway.handle_proof(proof, &StrictVerifier).unwrap_err();
        assert!(
            matches!(refused, HandshakeError::LedgerNotOffered { .. }),
            "{refused}"
        );
        assert_eq!(refused.refusal(), Some(Refusal::Version));
    }
}

#[test]
fn nobody_on_the_way_can_lower_the_version() {
    for subprotocol in Subprotocol::ALL {
        let meeting = meeting(subprotocol, (1, 3), (1, 3));
        let codec = subprotocol.codec();
        let result = meeting.run(&mut |step, layer, bytes| {
            if (step, layer) == (Step::GatewayProof, Layer::Plain) {
                let mut proof: GatewayProof = codec.decode(bytes).unwrap();
                proof.ledger_max = Ledger(1);
                *bytes = codec.encode(&proof).unwrap();
            }
        });
        assert_eq!(result.unwrap_err().step, Step::GatewayProof);
        // A gateway that forgets what was agreed is stopped by the node.
        let result = meeting.run(&mut |step, layer, bytes| {
            if (step, layer) == (Step::Verdict, Layer::Plain) {
                let mut verdict: Verdict = codec.decode(bytes).unwrap();
                if let Verdict::Accepted { ledger, .. } = &mut verdict {
                    *ledger = Ledger(1);
                }
                *bytes = codec.encode(&verdict).unwrap();
            }
        });
        let broken = result.unwrap_err();
        assert_eq!(
            broken.error.to_string(),
            "the gateway accepted protocol 1, but 3 was agreed"
        );
    }
}
