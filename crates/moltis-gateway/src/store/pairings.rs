//! Requests to pair, and mismatches of keys.
//!
//! [`crate::pairing`] decides; what is here writes its decisions, each with its audit line in one
//! transaction. The unique indexes say once more what the rule book says: one waiting request for a
//! key, one for a device, and no pin twice.

use std::net::IpAddr;

use jiff::Timestamp;
use moltis_proto::handshake::{ConnectionCode, Introduction};
use moltis_proto::{DeviceId, InstanceId, PublicKey, RequestId};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;

use super::row::{self, Columns};
use super::writer::{Fold, Tx, fold_text};
use super::{NodeRecord, Store, StoreError, Written, nodes};
use crate::audit::Entry;

/// A node that asks to be let in, or has asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairingRequest {
    /// Its id.
    pub id: RequestId,
    /// The key that the node proved to hold.
    pub node_key: PublicKey,
    /// The device that goes with the key.
    pub device_id: DeviceId,
    /// The node's process that asked last.
    pub instance_id: InstanceId,
    /// What the node last said of itself: claims.
    pub introduction: Introduction,
    /// Where it last asked from.
    pub address: IpAddr,
    /// The code of its last connection.
    pub code: ConnectionCode,
    /// Counts its connections, from 1.
    pub revision: u32,
    /// When it first asked.
    pub first_seen_at: Timestamp,
    /// When it last asked.
    pub last_seen_at: Timestamp,
    /// What became of it; `None` while it waits.
    pub answer: Option<Answer>,
    /// When it was answered, or was found to have expired.
    pub answered_at: Option<Timestamp>,
    /// Who answered.
    pub answered_by: Option<String>,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The key is pinned.
    Approved,
    /// A person said no.
    Rejected,
    /// Nobody said anything in time.
    Expired,
}

/// A known device that came with another key, or a known key that came with another device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMismatch {
    /// The known node.
    pub device_id: DeviceId,
    /// The key that was shown last.
    pub shown_key: PublicKey,
    /// The device id that was shown last.
    pub shown_device: DeviceId,
    /// Where it last came from.
    pub address: IpAddr,
    /// When it was first seen.
    pub first_seen_at: Timestamp,
    /// When it was last written down.
    pub last_seen_at: Timestamp,
    /// How often it was seen.
    pub times: u64,
}

impl Store {
    /// Returns the requests that wait, and those answered since `since`, oldest first.
    ///
    /// # Errors
    /// Where the database cannot be read, or a row is not what was written.
    pub async fn pairing_requests(
        &self,
        since: Timestamp,
    ) -> Result<Vec<PairingRequest>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(
            "SELECT * FROM pairing_requests WHERE answer IS NULL OR answered_at >= ? \
             ORDER BY first_seen_at, id",
        )
        .bind(since.as_millisecond())
        .fetch_all(&mut reader)
        .await
        .map_err(|error| self.failed("list the requests to pair", error))?;
        rows.iter().map(record).collect()
    }

    /// Writes a new request.
    ///
    /// # Errors
    /// Where nothing can be written, or a request of this key or device waits already.
    pub async fn add_request(
        &self,
        request: &PairingRequest,
        audit: Entry,
    ) -> Result<Written, StoreError> {
        let fold = Fold {
            doing: "write the request to pair",
            text: fold_text!(
                "INSERT INTO pairing_requests (id, node_key, device_id, instance_id, introduction, \
                 address, code, revision, first_seen_at, last_seen_at) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                audited
            ),
            values: vec![
                request.id.as_bytes().into(),
                request.node_key.as_bytes().into(),
                request.device_id.as_bytes().into(),
                request.instance_id.as_bytes().into(),
                row::json(&request.introduction).into(),
                request.address.to_string().into(),
                request.code.as_str().into(),
                i64::from(request.revision).into(),
                request.first_seen_at.into(),
                request.last_seen_at.into(),
            ],
            audit: Some(audit),
            then: Vec::new(),
        };
        self.fold(fold)
            .await
            .map(super::writer::Folded::expect_changed)
    }

    /// Writes what is new about a request whose node has come again.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn reattach_request(&self, request: &PairingRequest) -> Result<(), StoreError> {
        let fold = Fold {
            doing: "write the request to pair",
            text: fold_text!(
                "UPDATE pairing_requests SET instance_id = ?, introduction = ?, address = ?, \
                 code = ?, revision = ?, last_seen_at = ? WHERE id = ? AND answer IS NULL"
            ),
            values: vec![
                request.instance_id.as_bytes().into(),
                row::json(&request.introduction).into(),
                request.address.to_string().into(),
                request.code.as_str().into(),
                i64::from(request.revision).into(),
                request.last_seen_at.into(),
                request.id.as_bytes().into(),
            ],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(drop)
    }

    /// Pins a node and answers its request, in one transaction.
    ///
    /// # Errors
    /// Where nothing can be written, the request is answered already, or the key, device or node id
    /// is known. Nothing is changed then.
    pub async fn approve_request(
        &self,
        id: RequestId,
        node: NodeRecord,
        audit: Entry,
    ) -> Result<Written, StoreError> {
        let by = audit.actor.name.clone();
        let done = self.transact(move |tx| {
            Box::pin(async move {
                nodes::insert(tx, &node).await?;
                answer(tx, id, Answer::Approved, audit.at, &by).await?;
                tx.audit(&audit).await
            })
        });
        done.await.map(|((), written)| written)
    }

    /// Answers a request with no.
    ///
    /// # Errors
    /// Where nothing can be written, or the request is answered already.
    pub async fn reject_request(&self, id: RequestId, audit: Entry) -> Result<Written, StoreError> {
        let by = audit.actor.name.clone();
        let done = self.transact(move |tx| {
            Box::pin(async move {
                answer(tx, id, Answer::Rejected, audit.at, &by).await?;
                tx.audit(&audit).await
            })
        });
        done.await.map(|((), written)| written)
    }

    /// Notes that requests got no answer in time, and deletes those answered before `before`.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn expire_requests(
        &self,
        ids: Vec<RequestId>,
        at: Timestamp,
        before: Timestamp,
    ) -> Result<Written, StoreError> {
        let done = self.transact(move |tx| {
            Box::pin(async move {
                for id in ids {
                    answer(tx, id, Answer::Expired, at, "gateway").await?;
                }
                sqlx::query("DELETE FROM pairing_requests WHERE answered_at < ?")
                    .bind(before.as_millisecond())
                    .execute(&mut *tx.connection)
                    .await
                    .map(drop)
                    .map_err(|error| tx.failed("delete old requests to pair", error))
            })
        });
        done.await.map(|((), written)| written)
    }

    /// Returns all mismatches, the newest first.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn key_mismatches(&self) -> Result<Vec<KeyMismatch>, StoreError> {
        let mut reader = self.reader().await?;
        let rows =
            sqlx::query("SELECT * FROM key_mismatches ORDER BY last_seen_at DESC, device_id")
                .fetch_all(&mut reader)
                .await
                .map_err(|error| self.failed("list the key mismatches", error))?;
        rows.iter().map(mismatch).collect()
    }

    /// Writes a mismatch over the last one of its node, with an audit line where one is due.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn put_mismatch(
        &self,
        mismatch: KeyMismatch,
        audit: Option<Entry>,
    ) -> Result<Written, StoreError> {
        let done = self.transact(move |tx| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO key_mismatches (device_id, shown_key, shown_device, address, \
                     first_seen_at, last_seen_at, times) VALUES (?, ?, ?, ?, ?, ?, ?) \
                     ON CONFLICT (device_id) DO UPDATE SET shown_key = excluded.shown_key, \
                     shown_device = excluded.shown_device, address = excluded.address, \
                     last_seen_at = excluded.last_seen_at, times = excluded.times",
                )
                .bind(mismatch.device_id.as_bytes().to_vec())
                .bind(mismatch.shown_key.as_bytes().to_vec())
                .bind(mismatch.shown_device.as_bytes().to_vec())
                .bind(mismatch.address.to_string())
                .bind(mismatch.first_seen_at.as_millisecond())
                .bind(mismatch.last_seen_at.as_millisecond())
                .bind(row::integer(mismatch.times))
                .execute(&mut *tx.connection)
                .await
                .map_err(|error| tx.failed("write a key mismatch", error))?;
                match audit {
                    Some(audit) => tx.audit(&audit).await,
                    None => Ok(()),
                }
            })
        });
        done.await.map(|((), written)| written)
    }

    /// Writes an audit line by itself, for what changes no row: the pairing window.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn note(&self, audit: Entry) -> Result<Written, StoreError> {
        let done = self.transact(move |tx| Box::pin(async move { tx.audit(&audit).await }));
        done.await.map(|((), written)| written)
    }
}

async fn answer(
    tx: &mut Tx<'_>,
    id: RequestId,
    answer: Answer,
    at: Timestamp,
    by: &str,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE pairing_requests SET answer = ?, answered_at = ?, answered_by = ? \
         WHERE id = ? AND answer IS NULL",
    )
    .bind(row::word(&answer))
    .bind(at.as_millisecond())
    .bind(by.to_owned())
    .bind(id.as_bytes().to_vec())
    .execute(&mut *tx.connection)
    .await
    .map_err(|error| tx.failed("answer the request to pair", error))?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    Err(StoreError::Unique {
        doing: "answer the request to pair",
        constraint: format!("request {id} is answered"),
    })
}

fn record(row: &SqliteRow) -> Result<PairingRequest, StoreError> {
    let columns = Columns::of("pairing_requests", row);
    Ok(PairingRequest {
        id: RequestId::from_bytes(columns.bytes("id")?),
        node_key: PublicKey::from_bytes(columns.bytes("node_key")?),
        device_id: DeviceId::from_bytes(columns.bytes("device_id")?),
        instance_id: InstanceId::from_bytes(columns.bytes("instance_id")?),
        introduction: columns.json("introduction")?,
        address: columns.parsed("address")?,
        code: columns.parsed("code")?,
        revision: columns.number("revision")?,
        first_seen_at: columns.time("first_seen_at")?,
        last_seen_at: columns.time("last_seen_at")?,
        answer: columns.optional_word("answer")?,
        answered_at: columns.optional_time("answered_at")?,
        answered_by: columns.optional_text("answered_by")?,
    })
}

fn mismatch(row: &SqliteRow) -> Result<KeyMismatch, StoreError> {
    let columns = Columns::of("key_mismatches", row);
    Ok(KeyMismatch {
        device_id: DeviceId::from_bytes(columns.bytes("device_id")?),
        shown_key: PublicKey::from_bytes(columns.bytes("shown_key")?),
        shown_device: DeviceId::from_bytes(columns.bytes("shown_device")?),
        address: columns.parsed("address")?,
        first_seen_at: columns.time("first_seen_at")?,
        last_seen_at: columns.time("last_seen_at")?,
        times: columns.count("times")?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::audit::Action;
    use crate::store::testing::{at, entry, introduction, node, store};

    pub(crate) fn request(number: u8) -> PairingRequest {
        PairingRequest {
            id: RequestId::from_bytes([number; 16]),
            node_key: PublicKey::from_bytes([number; 32]),
            device_id: DeviceId::from_bytes([number; 16]),
            instance_id: InstanceId::from_bytes([number; 16]),
            introduction: introduction(&format!("box-{number}")),
            address: Ipv4Addr::LOCALHOST.into(),
            code: "7Q4M-2XKD-P9VA".parse().unwrap(),
            revision: 1,
            first_seen_at: at(0),
            last_seen_at: at(0),
            answer: None,
            answered_at: None,
            answered_by: None,
        }
    }

    /// Makes `node` known without a request of its own making.
    pub(crate) async fn pin(store: &Store, node: NodeRecord) {
        let request = PairingRequest {
            node_key: node.node_key,
            device_id: node.device_id,
            id: RequestId::from_bytes(*node.device_id.as_bytes()),
            ..request(1)
        };
        store
            .add_request(&request, entry(Action::PairingRequest))
            .await
            .unwrap();
        let approve = store.approve_request(request.id, node, entry(Action::PairingApprove));
        store.synced(approve.await.unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn a_request_is_written_once_and_read_back() {
        let store = store().await;
        store
            .add_request(&request(1), entry(Action::PairingRequest))
            .await
            .unwrap();
        assert_eq!(store.pairing_requests(at(0)).await.unwrap(), [request(1)]);
        let same_key = PairingRequest {
            node_key: request(1).node_key,
            ..request(2)
        };
        let same_device = PairingRequest {
            device_id: request(1).device_id,
            ..request(2)
        };
        for other in [same_key, same_device] {
            let refused = store
                .add_request(&other, entry(Action::PairingRequest))
                .await;
            assert!(
                matches!(refused, Err(StoreError::Unique { .. })),
                "{refused:?}"
            );
        }
        assert_eq!(store.verify_audit().await.unwrap().entries, 1);
    }

    #[tokio::test]
    async fn a_node_that_comes_again_changes_its_request_while_it_waits() {
        let store = store().await;
        store
            .add_request(&request(1), entry(Action::PairingRequest))
            .await
            .unwrap();
        let again = PairingRequest {
            instance_id: InstanceId::from_bytes([9; 16]),
            address: Ipv4Addr::new(10, 0, 0, 1).into(),
            code: "0000-0000-0000".parse().unwrap(),
            revision: 2,
            last_seen_at: at(5),
            ..request(1)
        };
        store.reattach_request(&again).await.unwrap();
        assert_eq!(
            store.pairing_requests(at(0)).await.unwrap(),
            std::slice::from_ref(&again)
        );
        store
            .reject_request(again.id, entry(Action::PairingReject))
            .await
            .unwrap();
        store.reattach_request(&request(1)).await.unwrap();
        assert_eq!(store.pairing_requests(at(0)).await.unwrap()[0].revision, 2);
    }

    #[tokio::test]
    async fn a_request_is_answered_once() {
        let store = store().await;
        for number in [1, 2] {
            store
                .add_request(&request(number), entry(Action::PairingRequest))
                .await
                .unwrap();
        }
        let approve =
            || store.approve_request(request(1).id, node(1), entry(Action::PairingApprove));
        let (one, other) = tokio::join!(approve(), approve());
        assert!(one.is_ok() != other.is_ok());
        assert!(approve().await.is_err());
        assert!(
            store
                .reject_request(request(1).id, entry(Action::PairingReject))
                .await
                .is_err()
        );
        let found = store.pairing_requests(at(0)).await.unwrap();
        assert_eq!(found[0].answer, Some(Answer::Approved));
        assert_eq!(found[0].answered_by.as_deref(), Some("operator"));
        assert_eq!(found[1].answer, None);
        assert_eq!(store.nodes().await.unwrap().len(), 1);
        // Two requests and one answer: what failed is not in the log.
        let verdict = store.verify_audit().await.unwrap();
        assert_eq!((verdict.entries, verdict.first_bad), (3, None));
    }

    #[tokio::test]
    async fn requests_expire_and_old_answers_are_deleted() {
        let store = store().await;
        for number in [1, 2] {
            store
                .add_request(&request(number), entry(Action::PairingRequest))
                .await
                .unwrap();
        }
        store
            .expire_requests(vec![request(1).id], at(10), at(0))
            .await
            .unwrap();
        let found = store.pairing_requests(at(0)).await.unwrap();
        assert_eq!(found[0].answer, Some(Answer::Expired));
        store
            .expire_requests(Vec::new(), at(100), at(50))
            .await
            .unwrap();
        let found = store.pairing_requests(at(0)).await.unwrap();
        assert_eq!(
            found.iter().map(|r| r.id).collect::<Vec<_>>(),
            [request(2).id]
        );
    }

    #[tokio::test]
    async fn one_row_holds_all_mismatches_of_a_node_and_goes_with_it() {
        let store = store().await;
        pin(&store, node(1)).await;
        let seen = |times| KeyMismatch {
            device_id: node(1).device_id,
            shown_key: PublicKey::from_bytes([8; 32]),
            shown_device: node(1).device_id,
            address: Ipv4Addr::LOCALHOST.into(),
            first_seen_at: at(0),
            last_seen_at: at(0),
            times,
        };
        store
            .put_mismatch(seen(1), Some(entry(Action::KeyMismatch)))
            .await
            .unwrap();
        store.put_mismatch(seen(20), None).await.unwrap();
        assert_eq!(store.key_mismatches().await.unwrap(), [seen(20)]);
        let by = crate::audit::Actor::operator();
        store
            .forget_node(node(1).device_id, at(0), &by)
            .await
            .unwrap()
            .unwrap();
        assert!(store.key_mismatches().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_note_stands_in_the_log() {
        let store = store().await;
        store.note(entry(Action::PairingOpen)).await.unwrap();
        let lines = store.audit_lines(None, 10).await.unwrap();
        assert_eq!(lines[0].action, "pairing.open");
    }
}
