//! Who the nodes are: keys and names from a number, and their rows in a store.
//!
//! The keys are no secret. They must never be known to a gateway that is used for anything else.

use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use moltis_gateway::audit::Actor;
use moltis_gateway::store::{Claims, NodeRecord, Store};
use moltis_identity::SecretKey;
use moltis_proto::handshake::{Introduction, PolicyMode};
use moltis_proto::telemetry::Platform;
use moltis_proto::{DeviceId, Labels, NodeId, NodeName};

use super::Who;

/// Nodes that are written at once.
const BATCH: usize = 1000;

/// Returns a node's key.
pub(super) fn key(who: Who, number: u32) -> SecretKey {
    let mut seed = *b"moltis-sim: everybody knows this";
    seed[..8].copy_from_slice(&who.seed.to_be_bytes());
    seed[8..12].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_seed(seed)
}

/// Returns a node's device: scattered, as random ones are.
pub(super) fn device(who: Who, number: u32) -> DeviceId {
    let scattered = u64::from(number)
        .wrapping_add(who.seed)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&scattered.to_be_bytes());
    bytes[8..12].copy_from_slice(&number.to_be_bytes());
    DeviceId::from_bytes(bytes)
}

/// Returns what a node says of itself: about as much as a real one.
pub(super) fn introduction(number: u32) -> anyhow::Result<Introduction> {
    let name = format!("sim-{number:05}");
    let labels = [
        (
            "role",
            if number.is_multiple_of(2) {
                "web"
            } else {
                "batch"
            },
        ),
        (
            "zone",
            if number.is_multiple_of(3) {
                "north"
            } else {
                "south"
            },
        ),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Ok(Introduction {
        node_id: NodeId::new(name.clone())?,
        labels: Labels::new(labels.into())?,
        platform: Platform {
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            version: "Debian 12".to_owned(),
            kernel: "6.1.0-28-amd64".to_owned(),
            hostname: name.clone(),
        },
        name: NodeName::new(name)?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        user: "deploy".to_owned(),
        working_dir: "/home/deploy".to_owned(),
        timeout_ms: 300_000,
        policy: PolicyMode::Full,
        env_allow: Vec::new(),
        capabilities: Vec::new(),
    })
}

/// Writes the nodes into the store in `home`, which no gateway may hold meanwhile.
pub(super) async fn write(home: &Path, who: Who) -> anyhow::Result<()> {
    let store = Store::open(home).await.context("opening the store")?;
    let now = Timestamp::now();
    let by = Actor::operator();
    let mut numbers = 0..who.nodes;
    loop {
        let batch = numbers.by_ref().take(BATCH);
        let nodes = batch.map(|number| record(who, number, now));
        let nodes = nodes.collect::<anyhow::Result<Vec<_>>>()?;
        if nodes.is_empty() {
            break;
        }
        let written = store.import_nodes(nodes, now, &by).await;
        written.context("writing the nodes into the store")?;
    }
    store.close().await;
    Ok(())
}

fn record(who: Who, number: u32, now: Timestamp) -> anyhow::Result<NodeRecord> {
    let said = introduction(number)?;
    Ok(NodeRecord {
        device_id: device(who, number),
        node_key: key(who, number).public_key(),
        claims: Claims::from(&said),
        node_id: said.node_id,
        name: said.name,
        labels: said.labels,
        platform: said.platform,
        paired_at: now,
        paired_by: "moltis-sim".to_owned(),
        last_seen_at: None,
        last_address: None,
        revoked_at: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Who = Who { nodes: 10, seed: 7 };

    #[test]
    fn the_same_number_is_the_same_node_and_another_is_another() {
        let other = Who { seed: 8, ..WHO };
        assert_eq!(key(WHO, 3).public_key(), key(WHO, 3).public_key());
        assert_ne!(key(WHO, 3).public_key(), key(WHO, 4).public_key());
        assert_ne!(key(WHO, 3).public_key(), key(other, 3).public_key());
        assert_ne!(device(WHO, 3), device(WHO, 4));
    }

    #[tokio::test]
    async fn what_is_written_is_found_again() {
        let home = tempfile::tempdir().unwrap();
        write(home.path(), WHO).await.unwrap();
        let store = Store::open(home.path()).await.unwrap();
        let nodes = store.nodes().await.unwrap();
        assert_eq!(nodes.len(), 10);
        assert!(
            nodes
                .iter()
                .any(|node| **node == record(WHO, 9, node.paired_at).unwrap())
        );
    }
}
