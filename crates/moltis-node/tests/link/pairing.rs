//! Keys, pins and people: who is trusted, who waits, and who is turned away.

use std::os::unix::fs::PermissionsExt as _;

use moltis_identity::{Fingerprint, SecretKey};
use moltis_node::{ConfigFile, LinkError, LinkEvent, Trust};
use moltis_proto::code::Refusal;
use moltis_proto::handshake::{Intent, Verdict};
use moltis_proto::version::{Ledger, LedgerRange};
use moltis_proto::{DeviceId, ToGateway, ToNode};

use crate::gateway::{TestGateway, accepted, pending};
use crate::node::{TestNode, config};

pub(crate) fn file_for(gateway: &TestGateway) -> (tempfile::TempDir, ConfigFile) {
    let dir = tempfile::tempdir().unwrap();
    let file = ConfigFile::new(dir.path().join("node.json"));
    file.save(&config(gateway.url())).unwrap();
    (dir, file)
}

async fn key_event(node: &mut TestNode) -> (Fingerprint, Trust) {
    loop {
        if let LinkEvent::GatewayKey { fingerprint, trust } = node.event().await {
            return (fingerprint, trust);
        }
    }
}

#[tokio::test]
async fn the_first_key_is_pinned_with_the_first_acceptance() {
    let gateway = TestGateway::bind().await;
    let (_dir, file) = file_for(&gateway);
    let mut node = TestNode::add(file.clone());
    let (mut peer, verified) = gateway.prove().await;
    assert_eq!(verified.intent(), Intent::Pair);
    assert_eq!(
        key_event(&mut node).await,
        (gateway.fingerprint(), Trust::FirstUse)
    );
    assert_eq!(
        file.load().unwrap().gateway_key,
        None,
        "not before the acceptance"
    );
    peer.send(&accepted(peer.codec)).await;
    let _keeper = node.idle_keeper().await;
    assert_eq!(
        file.load().unwrap().gateway_key,
        Some(gateway.fingerprint())
    );
    let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    drop(peer);
    let (_peer, verified) = gateway.prove().await;
    assert_eq!(
        verified.intent(),
        Intent::Connect,
        "an accepted node asks for nothing more"
    );
    assert_eq!(
        key_event(&mut node).await,
        (gateway.fingerprint(), Trust::Pinned)
    );
}

#[tokio::test]
async fn a_changed_gateway_key_stops_before_the_node_shows_anything() {
    let mut gateway = TestGateway::bind().await;
    let (_dir, file) = file_for(&gateway);
    let mut pinned = file.load().unwrap();
    let old = Fingerprint::of(&SecretKey::generate().public_key());
    pinned.gateway_key = Some(old);
    file.save(&pinned).unwrap();
    gateway.secret = SecretKey::generate();
    let mut node = TestNode::add(file);
    let mut peer = gateway.noise().await;
    assert!(
        gateway.challenge(&mut peer).await.is_err(),
        "no proof comes"
    );
    let error = node.error().await;
    assert!(
        matches!(&error, LinkError::GatewayKeyChanged { pinned, found, .. } if *pinned == old && *found == gateway.fingerprint()),
        "{error:?}"
    );
    let words = error.to_string();
    assert!(words.contains(&old.to_string()) && words.contains(&gateway.fingerprint().to_string()));
    let repair = format!(
        "moltis node add --host {} --gateway-key {} --repin",
        gateway.url(),
        gateway.fingerprint()
    );
    assert!(error.hint().unwrap().contains(&repair));
}

#[tokio::test]
async fn a_request_waits_for_a_person_and_both_sides_show_one_code() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::add(config(gateway.url()));
    let (mut peer, verified) = gateway.prove().await;
    let introduction = verified.introduction();
    assert_eq!(introduction.name.as_str(), "Build Server");
    assert_eq!(introduction.node_id.as_str(), "box-1");
    assert_eq!(introduction.timeout_ms, 300_000);
    for _ in 0..5 {
        peer.send(&pending(&verified)).await; // A sign of life, again and again.
    }
    let code = loop {
        if let LinkEvent::Pending {
            code, expires_in, ..
        } = node.event().await
        {
            assert_eq!(expires_in.as_secs(), 3600);
            break code;
        }
    };
    assert_eq!(code, *verified.connection_code());
    peer.send(&accepted(peer.codec)).await;
    let _keeper = node.idle_keeper().await;
    assert!(matches!(
        node.event().await,
        LinkEvent::Accepted { approved: true, .. }
    ));
    assert!(matches!(peer.hear().await, ToGateway::Run(_)));
}

#[tokio::test]
async fn a_waiting_node_takes_its_request_up_again_after_a_restart_of_the_gateway() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::add(config(gateway.url()));
    let mut devices: Vec<DeviceId> = Vec::new();
    for _ in 0..3 {
        let (mut peer, verified) = gateway.prove().await;
        assert_eq!(verified.intent(), Intent::Pair);
        devices.push(verified.device_id());
        peer.send(&pending(&verified)).await;
        while !matches!(node.event().await, LinkEvent::Pending { .. }) {}
    }
    devices.dedup();
    assert_eq!(devices.len(), 1, "it is the same node each time");
    let mut peer = gateway.admit().await;
    let _keeper = node.idle_keeper().await;
    peer.hear().await;
}

#[tokio::test]
async fn another_key_during_the_wait_is_a_hard_stop() {
    let mut gateway = TestGateway::bind().await;
    let first = gateway.fingerprint();
    let mut node = TestNode::add(config(gateway.url()));
    let (mut peer, verified) = gateway.prove().await;
    peer.send(&pending(&verified)).await;
    while !matches!(node.event().await, LinkEvent::Pending { .. }) {}
    drop(peer);
    gateway.secret = SecretKey::generate();
    let mut peer = gateway.noise().await;
    assert!(gateway.challenge(&mut peer).await.is_err());
    let error = node.error().await;
    assert!(
        matches!(&error, LinkError::GatewayKeyChanged { pinned, .. } if *pinned == first),
        "{error:?}"
    );
}

#[tokio::test]
async fn every_refusal_has_its_own_words_and_a_way_on() {
    let refusals = [
        Refusal::PairingOff,
        Refusal::PendingFull,
        Refusal::Rejected,
        Refusal::Revoked,
        Refusal::KeyMismatch,
        Refusal::Unknown,
        Refusal::NodeIdInUse,
        Refusal::OwnKey,
        Refusal::Expired,
    ];
    let mut words = std::collections::BTreeSet::new();
    for refusal in refusals {
        let gateway = TestGateway::bind().await;
        let mut node = TestNode::add(config(gateway.url()));
        let (mut peer, _) = gateway.prove().await;
        peer.send(&Verdict::Refused { code: refusal }).await;
        let error = node.error().await;
        assert!(
            matches!(error, LinkError::Refused(found) if found == refusal),
            "{error:?}"
        );
        assert!(error.hint().is_some(), "{refusal:?}");
        words.insert(error.to_string());
    }
    assert_eq!(words.len(), refusals.len());
}

#[tokio::test]
async fn a_rejection_reaches_a_node_that_waits() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::add(config(gateway.url()));
    let (mut peer, verified) = gateway.prove().await;
    peer.send(&pending(&verified)).await;
    peer.send(&Verdict::Refused {
        code: Refusal::Rejected,
    })
    .await;
    assert!(matches!(
        node.error().await,
        LinkError::Refused(Refusal::Rejected)
    ));
}

#[tokio::test]
async fn too_many_attempts_are_waited_out() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::add(config(gateway.url()));
    let (mut peer, _) = gateway.prove().await;
    peer.send(&Verdict::Refused {
        code: Refusal::RateLimited { retry_ms: 2000 },
    })
    .await;
    let (_, retry_in) = node.disconnected().await;
    assert!(
        (2.0..=3.0).contains(&retry_in.as_secs_f64()),
        "{retry_in:?}"
    );
}

#[tokio::test]
async fn ends_that_are_too_far_apart_say_which_is_older() {
    for (min, max, older) in [(3, 9, "update the node"), (0, 0, "update the gateway")] {
        let mut gateway = TestGateway::bind().await;
        gateway.ledgers = LedgerRange {
            min: Ledger(min),
            max: Ledger(max),
        };
        let mut node = TestNode::add(config(gateway.url()));
        let mut peer = gateway.noise().await;
        assert!(gateway.challenge(&mut peer).await.is_err());
        let error = node.error().await;
        let LinkError::Version(Some(source)) = &error else {
            panic!("{error:?}");
        };
        assert!(source.to_string().contains(older), "{source}");
    }
}

#[tokio::test]
async fn a_newer_gateway_that_still_speaks_our_ledger_is_fine() {
    let mut gateway = TestGateway::bind().await;
    gateway.ledgers = LedgerRange {
        min: Ledger(1),
        max: Ledger(7),
    };
    let mut node = TestNode::add(config(gateway.url()));
    let (mut peer, verified) = gateway.prove().await;
    assert_eq!(verified.ledger(), LedgerRange::CURRENT.max);
    peer.send(&accepted(peer.codec)).await;
    let _keeper = node.idle_keeper().await;
    peer.hear().await;
    peer.say(ToNode::Ping { number: 1 }).await;
    assert_eq!(peer.hear().await, ToGateway::Pong { number: 1 });
}
