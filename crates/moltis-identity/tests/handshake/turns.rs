//! Every message at every wrong moment closes the machine for good.

use moltis_identity::StrictVerifier;
use moltis_proto::handshake::gateway::GatewayHandshake;
use moltis_proto::handshake::node::{Decision, NodeHandshake};
use moltis_proto::handshake::{GatewayProof, HandshakeError, Introduction, NodeProof, Verdict};
use moltis_proto::{Refusal, RequestId, Subprotocol};

use crate::meeting::{Meeting, accepted, introduction, nonce};

/// Both machines, each waiting for its first message.
struct Ends {
    meeting: Meeting,
    gateway: GatewayHandshake,
    challenge: GatewayProof,
    node: NodeHandshake,
}

fn ends() -> Ends {
    let meeting = Meeting::new(Subprotocol::Postcard);
    let (channel, _) = meeting.channels();
    let (gateway, challenge) = GatewayHandshake::new(
        channel.binding,
        &meeting.gateway,
        &StrictVerifier,
        meeting.gateway_ledgers,
        nonce(),
        nonce(),
    );
    let node = NodeHandshake::new(channel.binding, meeting.claim(), meeting.pin);
    Ends {
        meeting,
        gateway,
        challenge,
        node,
    }
}

impl Ends {
    fn prove(&mut self) -> Result<NodeProof, HandshakeError> {
        let challenge = self.challenge.clone();
        self.node
            .handle_gateway_proof(challenge, &self.meeting.node, &StrictVerifier, nonce())
    }

    fn decide(&mut self, verdict: Verdict) -> Result<Decision, HandshakeError> {
        self.node.handle_verdict(verdict, &StrictVerifier)
    }
}

/// Puts one thing into an introduction that does not belong there.
type Spoil = fn(&mut Introduction);

fn refused(code: Refusal) -> Verdict {
    Verdict::Refused { code }
}

fn out_of_turn<T: std::fmt::Debug>(result: Result<T, HandshakeError>, awaited: &str) {
    match result {
        Err(HandshakeError::OutOfTurn { awaited: found, .. }) => assert_eq!(found, awaited),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_introduction_before_the_proof_closes_the_gateways_machine() {
    let mut ends = ends();
    let proof = ends.prove().unwrap();
    out_of_turn(
        ends.gateway.handle_introduction(introduction()),
        "a `NodeProof`",
    );
    // Even the right message does not open it again.
    out_of_turn(
        ends.gateway.handle_proof(proof, &StrictVerifier),
        "nothing more",
    );
    out_of_turn(
        ends.gateway.handle_introduction(introduction()),
        "nothing more",
    );
}

#[test]
fn a_second_proof_closes_the_gateways_machine() {
    let mut ends = ends();
    let proof = ends.prove().unwrap();
    ends.gateway
        .handle_proof(proof.clone(), &StrictVerifier)
        .unwrap();
    out_of_turn(
        ends.gateway.handle_proof(proof, &StrictVerifier),
        "an `Introduction`",
    );
    out_of_turn(
        ends.gateway.handle_introduction(introduction()),
        "nothing more",
    );
}

#[test]
fn a_second_introduction_is_one_too_many() {
    let mut ends = ends();
    let proof = ends.prove().unwrap();
    ends.gateway.handle_proof(proof, &StrictVerifier).unwrap();
    ends.gateway.handle_introduction(introduction()).unwrap();
    out_of_turn(
        ends.gateway.handle_introduction(introduction()),
        "nothing more",
    );
}

#[test]
fn a_failed_proof_gives_no_second_try() {
    let mut ends = ends();
    let good = ends.prove().unwrap();
    let mut bad = good.clone();
    bad.nonce_n = nonce();
    ends.gateway.handle_proof(bad, &StrictVerifier).unwrap_err();
    out_of_turn(
        ends.gateway.handle_proof(good, &StrictVerifier),
        "nothing more",
    );
}

#[test]
fn a_verdict_before_the_proof_closes_the_nodes_machine() {
    let mut ends = ends();
    out_of_turn(ends.decide(refused(Refusal::Unknown)), "a `GatewayProof`");
    out_of_turn(ends.prove(), "nothing more");
    assert_eq!(ends.node.gateway_key(), None);
}

#[test]
fn a_second_gateway_proof_is_not_answered() {
    let mut ends = ends();
    ends.prove().unwrap();
    out_of_turn(ends.prove(), "a `Verdict`");
    out_of_turn(ends.decide(refused(Refusal::Unknown)), "nothing more");
}

#[test]
fn after_pending_one_decision_comes_and_no_more() {
    for last in [Refusal::Rejected, Refusal::Expired] {
        let mut ends = ends();
        let proof = ends.prove().unwrap();
        ends.gateway.handle_proof(proof, &StrictVerifier).unwrap();
        let verified = ends.gateway.handle_introduction(introduction()).unwrap();
        let pending = verified.pending(RequestId::from_bytes([1; 16]), 5);
        assert!(matches!(ends.decide(pending), Ok(Decision::Pending { .. })));
        assert_eq!(ends.decide(refused(last)), Ok(Decision::Refused(last)));
        out_of_turn(ends.decide(accepted(&verified)), "nothing more");
    }
}

#[test]
fn a_person_may_let_a_waiting_node_in() {
    let mut ends = ends();
    let proof = ends.prove().unwrap();
    ends.gateway.handle_proof(proof, &StrictVerifier).unwrap();
    let verified = ends.gateway.handle_introduction(introduction()).unwrap();
    ends.decide(verified.pending(RequestId::from_bytes([1; 16]), 5))
        .unwrap();
    assert!(matches!(
        ends.decide(accepted(&verified)),
        Ok(Decision::Accepted { .. })
    ));
}

#[test]
fn a_waiting_node_hears_the_same_code_as_a_sign_of_life() {
    let mut ends = ends();
    let proof = ends.prove().unwrap();
    ends.gateway.handle_proof(proof, &StrictVerifier).unwrap();
    let verified = ends.gateway.handle_introduction(introduction()).unwrap();
    for left_ms in [3000, 2000, 1000] {
        let pending = verified.pending(RequestId::from_bytes([1; 16]), left_ms);
        match ends.decide(pending).unwrap() {
            Decision::Pending {
                expires_in_ms,
                code,
                ..
            } => {
                assert_eq!(expires_in_ms, left_ms);
                assert_eq!(&code, verified.connection_code());
            }
            other => panic!("{other:?}"),
        }
    }
    let another_code = Verdict::Pending {
        request_id: RequestId::from_bytes([1; 16]),
        expires_in_ms: 500,
        code_reveal: nonce(),
    };
    assert_eq!(ends.decide(another_code), Err(HandshakeError::Commitment));
    out_of_turn(ends.decide(accepted(&verified)), "nothing more");
}

#[test]
fn an_introduction_that_could_deceive_is_refused_by_field() {
    let cases: [(&str, Spoil); 9] = [
        ("version", |it| it.version = "1\u{1b}[2J".to_owned()),
        ("user", |it| it.user = "ro\u{202e}ot".to_owned()),
        ("platform.hostname", |it| {
            it.platform.hostname = "a\nb".to_owned();
        }),
        ("platform.kernel", |it| it.platform.kernel = "k".repeat(257)),
        ("working_dir", |it| it.working_dir = "home".to_owned()),
        ("working_dir", |it| it.working_dir = "/tmp/\0".to_owned()),
        ("env_allow", |it| it.env_allow = vec![String::new(); 65]),
        ("env_allow", |it| it.env_allow = vec!["A\u{7f}".to_owned()]),
        ("capabilities", |it| it.capabilities = vec!["c".repeat(257)]),
    ];
    for (field, spoil) in cases {
        let mut ends = ends();
        let proof = ends.prove().unwrap();
        ends.gateway.handle_proof(proof, &StrictVerifier).unwrap();
        let mut words = introduction();
        spoil(&mut words);
        match ends.gateway.handle_introduction(words) {
            Err(HandshakeError::Introduction { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
        out_of_turn(
            ends.gateway.handle_introduction(introduction()),
            "nothing more",
        );
    }
}
