//! Two who mean well meet.

use moltis_identity::Fingerprint;
use moltis_proto::handshake::node::{Decision, Pin};
use moltis_proto::{BootId, InstanceId, Refusal, Subprotocol};

use crate::meeting::{Answer, Meeting, introduction};

#[test]
fn both_ends_know_each_other_and_show_one_code_in_every_subprotocol() {
    for subprotocol in Subprotocol::ALL {
        let meeting = Meeting::new(subprotocol);
        let met = meeting.honest().unwrap();
        assert_eq!(met.node.gateway_key(), Some(meeting.gateway.public_key()));
        match met.decision {
            Decision::Pending { code, .. } => assert_eq!(&code, met.verified.connection_code()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_verified_node_carries_what_was_signed() {
    let meeting = Meeting::new(Subprotocol::Postcard);
    let verified = meeting.honest().unwrap().verified;
    assert_eq!(verified.node_key(), meeting.node.public_key());
    assert_eq!(verified.device_id(), meeting.device_id);
    assert_eq!(verified.instance_id(), InstanceId::from_bytes([2; 16]));
    assert_eq!(verified.boot_id(), BootId::from_bytes([3; 16]));
    assert_eq!(verified.intent(), meeting.intent);
    assert_eq!(verified.ledger(), meeting.node_ledgers.max);
    assert_eq!(verified.introduction(), &introduction());
}

#[test]
fn the_other_decisions_arrive_too() {
    let mut meeting = Meeting::new(Subprotocol::Json);
    meeting.answer = Answer::Accept;
    let decision = meeting.honest().unwrap().decision;
    assert!(
        matches!(decision, Decision::Accepted { .. }),
        "{decision:?}"
    );
    meeting.answer = Answer::Refuse(Refusal::RateLimited { retry_ms: 500 });
    let decision = meeting.honest().unwrap().decision;
    assert_eq!(
        decision,
        Decision::Refused(Refusal::RateLimited { retry_ms: 500 })
    );
}

#[test]
fn every_kind_of_pin_fits_the_right_key() {
    let mut meeting = Meeting::new(Subprotocol::Postcard);
    let key = meeting.gateway.public_key();
    for pin in [
        Pin::Key(key),
        Pin::Fingerprint(*Fingerprint::of(&key).as_digest()),
        Pin::FirstUse,
    ] {
        meeting.pin = pin;
        assert_eq!(meeting.honest().unwrap().node.gateway_key(), Some(key));
    }
}

#[test]
fn no_two_connections_show_the_same_code() {
    let meeting = Meeting::new(Subprotocol::Postcard);
    let code = || meeting.honest().unwrap().verified.connection_code().clone();
    assert_ne!(code(), code());
}
