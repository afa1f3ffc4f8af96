//! A node whose settings change while it works.

use moltis_node::{LinkError, NodeConfig};
use moltis_proto::code::CloseCode;
use moltis_proto::handshake::PolicyMode;
use moltis_proto::{ToGateway, ToNode};

use crate::gateway::{TestGateway, accepted};
use crate::node::TestNode;
use crate::pairing::file_for;

#[tokio::test]
async fn a_changed_policy_makes_the_connection_anew() {
    let gateway = TestGateway::bind().await;
    let (_dir, file) = file_for(&gateway);
    let mut node = TestNode::run(file.clone());
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    let mut config = file.load().unwrap();
    config.policy.mode = PolicyMode::Off;
    file.save(&config).unwrap();
    assert_eq!(
        peer.hear().await,
        ToGateway::Close {
            code: CloseCode::Settings
        }
    );
    let (error, retry_in) = node.disconnected().await;
    assert!(matches!(&*error, LinkError::SettingsChanged));
    assert!(retry_in.is_zero());
    let (mut peer, verified) = gateway.prove().await;
    assert_eq!(verified.introduction().policy, PolicyMode::Off);
    peer.send(&accepted(peer.codec)).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_leaves_the_connection_alone() {
    let gateway = TestGateway::bind().await;
    let (_dir, file) = file_for(&gateway);
    let mut node = TestNode::run(file.clone());
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    let sound = std::fs::read(file.path()).unwrap();
    std::fs::write(file.path(), "{").unwrap();
    // More than one look at the file goes by.
    tokio::time::pause();
    for number in 1..3 {
        assert_eq!(peer.hear().await, ToGateway::Ping { number });
        peer.say(ToNode::Pong { number }).await;
    }
    tokio::time::resume();
    drop(peer);
    let (error, _) = node.disconnected().await;
    assert!(
        matches!(&*error, LinkError::Hangup { .. } | LinkError::Broken(_)),
        "{error:?}"
    );
    // Without a connection the file is what counts: nothing is dialled by guess.
    let (error, _) = node.disconnected().await;
    assert!(matches!(&*error, LinkError::Config(_)), "{error:?}");
    std::fs::write(file.path(), sound).unwrap();
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_mins(1)).await;
    tokio::time::resume();
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
}

#[tokio::test]
async fn a_node_whose_file_is_gone_is_no_node() {
    let gateway = TestGateway::bind().await;
    let (_dir, file) = file_for(&gateway);
    let mut node = TestNode::add(file.clone());
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    std::fs::remove_file(file.path()).unwrap();
    peer.closed().await;
    let error = node.error().await;
    assert!(matches!(error, LinkError::Config(_)), "{error:?}");
}

#[tokio::test]
async fn an_introduction_that_no_gateway_takes_is_said_at_home() {
    let gateway = TestGateway::bind().await;
    let labels = (0..32).map(|number| (format!("{number:063}"), "v".repeat(63)));
    let config = NodeConfig {
        labels: moltis_proto::Labels::new(labels.collect()).unwrap(),
        ..crate::node::config(gateway.url())
    };
    let mut node = TestNode::add(config);
    let mut peer = gateway.noise().await;
    assert!(gateway.challenge(&mut peer).await.is_err());
    let error = node.error().await;
    assert!(matches!(error, LinkError::Introduction(_)), "{error:?}");
}
