//! Known nodes and their pins.
//!
//! A pin is the pair of key and device id. Nothing here ever changes one: a node is approved,
//! revoked, and forgotten. What a node claims of itself is kept apart from what a person approved.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use jiff::Timestamp;
use moltis_identity::Fingerprint;
use moltis_proto::handshake::{Introduction, PolicyMode};
use moltis_proto::telemetry::Platform;
use moltis_proto::{DeviceId, Labels, NodeId, NodeName, PublicKey};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::sqlite::SqliteRow;

use super::row::{self, Columns};
use super::writer::{BATCH_MAX, Fold, Folded, Tx, fold_text};
use super::{Store, StoreError, Written};
use crate::audit::{Action, Actor, Entry};

/// One known node: what a person approved, and what the node last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its device: what everything else is keyed by.
    pub device_id: DeviceId,
    /// Its pinned key.
    pub node_key: PublicKey,
    /// Its id as people write it; unique among nodes that are not revoked.
    pub node_id: NodeId,
    /// Its display name; need not be unique.
    pub name: NodeName,
    /// Its labels.
    pub labels: Labels,
    /// What its machine is, as it last said.
    pub platform: Platform,
    /// What else it last said of itself.
    pub claims: Claims,
    /// When it was approved.
    pub paired_at: Timestamp,
    /// Who approved it.
    pub paired_by: String,
    /// When it was last connected; written in slices, so up to a minute old.
    pub last_seen_at: Option<Timestamp>,
    /// The address that it was last connected from.
    pub last_address: Option<String>,
    /// When its key was refused for good.
    pub revoked_at: Option<Timestamp>,
}

/// What a node said of itself in its last introduction, names aside. Shown; never a right.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Version of its software.
    pub version: String,
    /// The account that commands run as.
    pub user: String,
    /// Where commands start.
    pub working_dir: String,
    /// Longest time of a command in milliseconds; 0 is no limit.
    pub timeout_ms: u64,
    /// What its owner lets run.
    pub policy: PolicyMode,
    /// Names of variables that its owner lets in.
    pub env_allow: Vec<String>,
    /// What else it can do.
    pub capabilities: Vec<String>,
}

impl From<&Introduction> for Claims {
    fn from(said: &Introduction) -> Self {
        Self {
            version: said.version.clone(),
            user: said.user.clone(),
            working_dir: said.working_dir.clone(),
            timeout_ms: said.timeout_ms,
            policy: said.policy,
            env_allow: said.env_allow.clone(),
            capabilities: said.capabilities.clone(),
        }
    }
}

/// When and from where a node was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The node.
    pub device_id: DeviceId,
    /// When.
    pub at: Timestamp,
    /// From where.
    pub address: String,
}

impl Store {
    /// Returns all known nodes, revoked ones too, in the order of their approval.
    ///
    /// # Errors
    /// Where the database cannot be read, or a row is not what was written.
    pub async fn nodes(&self) -> Result<Vec<Arc<NodeRecord>>, StoreError> {
        let mut reader = self.reader().await?;
        // One row after the other: all at once would need several times the room of the records.
        let rows = sqlx::query("SELECT * FROM nodes ORDER BY paired_at, device_id")
            .fetch(&mut reader)
            .map_err(|error| self.failed("list the nodes", error))
            .and_then(|row| std::future::ready(record(&row).map(Arc::new)));
        rows.try_collect().await
    }

    /// Pins nodes that were approved elsewhere: all of them, or none. A gateway that runs does not
    /// see them before it is started again.
    ///
    /// # Errors
    /// Where nothing can be written, or a key, device or node id is known.
    pub async fn import_nodes(
        &self,
        nodes: Vec<NodeRecord>,
        at: Timestamp,
        by: &Actor,
    ) -> Result<Written, StoreError> {
        let by = by.clone();
        let done = self.transact(move |tx| {
            Box::pin(async move {
                for node in &nodes {
                    insert(tx, node).await?;
                    let detail = json!({
                        "node": node.node_id,
                        "name": node.name,
                        "fingerprint": Fingerprint::of(&node.node_key).to_string(),
                    });
                    let entry = Entry::new(at, &by, Action::NodeImport, &node.device_id, detail);
                    tx.audit(&entry).await?;
                }
                Ok(())
            })
        });
        done.await.map(|((), written)| written)
    }

    /// Gives a node another display name; `None` where it is not known.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn rename_node(
        &self,
        device_id: DeviceId,
        name: &NodeName,
        at: Timestamp,
        by: &Actor,
    ) -> Result<Option<Written>, StoreError> {
        let detail = json!({ "name": name });
        let fold = Fold {
            doing: "rename the node",
            text: fold_text!("UPDATE nodes SET name = ? WHERE device_id = ?", audited),
            values: vec![name.as_str().into(), device_id.as_bytes().into()],
            audit: Some(Entry::new(at, by, Action::NodeRename, &device_id, detail)),
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Gives a node other labels, in place of those it has; `None` where it is not known.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn relabel_node(
        &self,
        device_id: DeviceId,
        labels: &Labels,
        at: Timestamp,
        by: &Actor,
    ) -> Result<Option<Written>, StoreError> {
        let detail = json!({ "labels": labels });
        let fold = Fold {
            doing: "label the node",
            text: fold_text!("UPDATE nodes SET labels = ? WHERE device_id = ?", audited),
            values: vec![row::json(labels).into(), device_id.as_bytes().into()],
            audit: Some(Entry::new(at, by, Action::NodeRelabel, &device_id, detail)),
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Refuses a node's key for good; `None` where it is not known, or revoked already. From this
    /// transaction on no run is written for it.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn revoke_node(
        &self,
        device_id: DeviceId,
        at: Timestamp,
        by: &Actor,
    ) -> Result<Option<Written>, StoreError> {
        let fold = Fold {
            doing: "revoke the node",
            text: fold_text!(
                "UPDATE nodes SET revoked_at = ? WHERE device_id = ? AND revoked_at IS NULL",
                audited
            ),
            values: vec![at.into(), device_id.as_bytes().into()],
            audit: Some(Entry::new(
                at,
                by,
                Action::NodeRevoke,
                &device_id,
                json!({}),
            )),
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Deletes a node's record with its telemetry and its mismatches; `None` where it is not known.
    /// Its runs stay.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn forget_node(
        &self,
        device_id: DeviceId,
        at: Timestamp,
        by: &Actor,
    ) -> Result<Option<Written>, StoreError> {
        let fold = Fold {
            doing: "forget the node",
            text: fold_text!("DELETE FROM nodes WHERE device_id = ?", audited),
            values: vec![device_id.as_bytes().into()],
            audit: Some(Entry::new(
                at,
                by,
                Action::NodeForget,
                &device_id,
                json!({}),
            )),
            then: Vec::new(),
        };
        self.fold(fold).await.map(Folded::written)
    }

    /// Keeps what a node says of itself.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn set_claims(
        &self,
        device_id: DeviceId,
        platform: &Platform,
        claims: &Claims,
    ) -> Result<(), StoreError> {
        let fold = Fold {
            doing: "keep what a node says of itself",
            text: fold_text!("UPDATE nodes SET platform = ?, claims = ? WHERE device_id = ?"),
            values: vec![
                row::json(platform).into(),
                row::json(claims).into(),
                device_id.as_bytes().into(),
            ],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(drop)
    }

    /// Keeps when nodes were seen. Other writes overtake these, so a slice of any length holds nobody
    /// up.
    ///
    /// # Errors
    /// Where nothing can be written; the rest of the slice is then left out.
    pub async fn touch_nodes(&self, sightings: Vec<Sighting>) -> Result<(), StoreError> {
        let touched = sightings.into_iter().map(|seen| {
            let fold = Fold {
                doing: "note when a node was seen",
                text: fold_text!(
                    "UPDATE nodes SET last_seen_at = ?, last_address = ? WHERE device_id = ?"
                ),
                values: vec![
                    seen.at.into(),
                    seen.address.into(),
                    seen.device_id.as_bytes().into(),
                ],
                audit: None,
                then: Vec::new(),
            };
            self.fold_later(fold).map_ok(drop)
        });
        // As many at once as become one transaction.
        futures_util::stream::iter(touched)
            .buffer_unordered(BATCH_MAX)
            .try_collect()
            .await
    }
}

/// Pins a node. A device or key that is known already is an error: pins are never overwritten.
pub(super) async fn insert(tx: &mut Tx<'_>, node: &NodeRecord) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO nodes (device_id, node_key, node_id, name, labels, platform, claims, \
         paired_at, paired_by, last_seen_at, last_address, revoked_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(node.device_id.as_bytes().to_vec())
    .bind(node.node_key.as_bytes().to_vec())
    .bind(node.node_id.as_str().to_owned())
    .bind(node.name.as_str().to_owned())
    .bind(row::json(&node.labels))
    .bind(row::json(&node.platform))
    .bind(row::json(&node.claims))
    .bind(node.paired_at.as_millisecond())
    .bind(node.paired_by.clone())
    .bind(node.last_seen_at.map(Timestamp::as_millisecond))
    .bind(node.last_address.clone())
    .bind(node.revoked_at.map(Timestamp::as_millisecond))
    .execute(&mut *tx.connection)
    .await
    .map(drop)
    .map_err(|error| tx.failed("pin the node", error))
}

fn record(row: &SqliteRow) -> Result<NodeRecord, StoreError> {
    let columns = Columns::of("nodes", row);
    Ok(NodeRecord {
        device_id: DeviceId::from_bytes(columns.bytes("device_id")?),
        node_key: PublicKey::from_bytes(columns.bytes("node_key")?),
        node_id: columns.parsed("node_id")?,
        name: columns.parsed("name")?,
        labels: columns.json("labels")?,
        platform: columns.json("platform")?,
        claims: columns.json("claims")?,
        paired_at: columns.time("paired_at")?,
        paired_by: columns.text("paired_by")?,
        last_seen_at: columns.optional_time("last_seen_at")?,
        last_address: columns.optional_text("last_address")?,
        revoked_at: columns.optional_time("revoked_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::pairings::tests::pin;
    use crate::store::testing::{at, introduction, node, operator, store};

    async fn only(store: &Store) -> NodeRecord {
        let nodes = store.nodes().await.unwrap();
        assert_eq!(nodes.len(), 1);
        nodes[0].as_ref().clone()
    }

    #[tokio::test]
    async fn a_pinned_node_is_read_back_as_it_was() {
        let store = store().await;
        assert!(store.nodes().await.unwrap().is_empty());
        pin(&store, node(1)).await;
        assert_eq!(only(&store).await, node(1));
    }

    #[tokio::test]
    async fn an_import_is_whole_or_not_at_all() {
        let store = store().await;
        let by = operator();
        let import = |numbers: &[u8]| {
            let nodes = numbers.iter().copied().map(node).collect();
            store.import_nodes(nodes, at(1), &by)
        };
        import(&[1, 2]).await.unwrap();
        assert!(import(&[3, 2]).await.is_err());
        let nodes = store.nodes().await.unwrap();
        assert_eq!(nodes.len(), 2, "the third came with one that is known");
        let lines = store.audit_lines(None, 10).await.unwrap();
        assert_eq!(lines.len(), 2);
    }

    #[tokio::test]
    async fn nodes_come_in_the_order_of_their_approval() {
        let store = store().await;
        for (number, paired_at) in [(1, 30), (2, 10), (3, 20)] {
            let paired_at = at(paired_at);
            pin(
                &store,
                NodeRecord {
                    paired_at,
                    ..node(number)
                },
            )
            .await;
        }
        let nodes = store.nodes().await.unwrap();
        let numbers: Vec<_> = nodes
            .iter()
            .map(|node| node.device_id.as_bytes()[0])
            .collect();
        assert_eq!(numbers, [2, 3, 1]);
    }

    #[tokio::test]
    async fn a_node_is_renamed_and_relabelled() {
        let store = store().await;
        pin(&store, node(1)).await;
        let id = node(1).device_id;
        let name = NodeName::new("Büro 2").unwrap();
        let labels = Labels::default();
        let by = operator();
        assert!(
            store
                .rename_node(id, &name, at(1), &by)
                .await
                .unwrap()
                .is_some()
        );
        assert!(
            store
                .relabel_node(id, &labels, at(1), &by)
                .await
                .unwrap()
                .is_some()
        );
        let found = only(&store).await;
        assert_eq!((found.name, found.labels), (name.clone(), labels.clone()));
        let unknown = node(2).device_id;
        assert!(
            store
                .rename_node(unknown, &name, at(1), &by)
                .await
                .unwrap()
                .is_none()
        );
        assert!(
            store
                .relabel_node(unknown, &labels, at(1), &by)
                .await
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_node_is_revoked_once_and_its_id_is_free() {
        let store = store().await;
        pin(&store, node(1)).await;
        let by = operator();
        let id = node(1).device_id;
        assert!(store.revoke_node(id, at(9), &by).await.unwrap().is_some());
        assert!(store.revoke_node(id, at(10), &by).await.unwrap().is_none());
        assert_eq!(only(&store).await.revoked_at, Some(at(9)));
        let node_id = node(1).node_id;
        pin(&store, NodeRecord { node_id, ..node(2) }).await;
        assert_eq!(store.nodes().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_forgotten_node_is_gone_and_may_come_again() {
        let store = store().await;
        pin(&store, node(1)).await;
        let by = operator();
        let id = node(1).device_id;
        store.put_telemetry_hour(id, 5, vec![1]).await.unwrap();
        assert!(store.forget_node(id, at(9), &by).await.unwrap().is_some());
        assert!(store.forget_node(id, at(9), &by).await.unwrap().is_none());
        assert!(store.nodes().await.unwrap().is_empty());
        assert!(store.telemetry_hours(id, 0).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_a_node_says_and_when_it_was_seen_is_kept() {
        let store = store().await;
        pin(&store, node(1)).await;
        let id = node(1).device_id;
        let mut said = introduction("box-1");
        said.version = "9".to_owned();
        said.platform.kernel = "7".to_owned();
        let claims = Claims::from(&said);
        store.set_claims(id, &said.platform, &claims).await.unwrap();
        let seen = Sighting {
            device_id: id,
            at: at(77),
            address: "10.0.0.1".to_owned(),
        };
        store.touch_nodes(vec![seen]).await.unwrap();
        let found = only(&store).await;
        assert_eq!((found.platform, found.claims), (said.platform, claims));
        assert_eq!(found.last_seen_at, Some(at(77)));
        assert_eq!(found.last_address.as_deref(), Some("10.0.0.1"));
    }
}
