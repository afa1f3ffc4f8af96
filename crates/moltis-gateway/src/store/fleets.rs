//! Requests for many nodes that came under an idempotency key: which nodes each was for.
//!
//! The runs themselves are rows of [`super::runs`]. What stands here only keeps a repeated request
//! from meaning other nodes than the first, and goes when the rows of its time go.

use std::time::Duration;

use jiff::Timestamp;
use moltis_proto::key::Digest;
use moltis_proto::{DeviceId, NodeId, NodeName, RunId};
use serde::{Deserialize, Serialize};

use super::row::{self, Columns};
use super::runs::RunKey;
use super::writer::{Fold, Folded, fold_text};
use super::{Store, StoreError, Written};

/// A request for many nodes, as it was when it first came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetRecord {
    /// Whose key it came under, and which.
    pub key: RunKey,
    /// Of everything that the request says.
    pub digest: Digest,
    /// The nodes that it meant, in the order in which they are asked.
    pub members: Vec<FleetMember>,
    /// When.
    pub created_at: Timestamp,
}

/// A node that was meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetMember {
    /// The node, whatever it is called today.
    pub device_id: DeviceId,
    /// Its id then.
    pub node_id: NodeId,
    /// Its name then.
    pub name: NodeName,
    /// Why it was not asked; `None` where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
}

/// Why a node that was meant got no run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Why, for programs.
    pub because: LeftOutBecause,
    /// Why, in words.
    pub detail: String,
}

/// Why a node that was meant got no run, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOutBecause {
    /// It was not connected.
    Offline,
    /// It was revoked or forgotten while others were asked.
    Revoked,
    /// Its owner does not let a variable in.
    EnvNotAllowed,
    /// It grants less time.
    TimeoutTooLong,
    /// The command does not fit one message to it.
    TooLarge,
    /// One before it did not exit 0.
    FailFast,
    /// The gateway stopped before its turn came.
    ShuttingDown,
    /// The gateway could not start it.
    Failed,
}

/// What became of a [`FleetRecord`].
#[derive(Debug, Clone)]
pub enum FleetCreation {
    /// It is written.
    Created(Written),
    /// A request came under this key before: this is it.
    Existing(Box<FleetRecord>),
    /// The key stands for a request for one node.
    KeyOfRun,
}

impl Store {
    /// Writes for which nodes a request is. Of two requests with one key the second finds the
    /// first's nodes.
    ///
    /// # Errors
    /// Where nothing can be written: then nothing may be started.
    pub async fn create_fleet(&self, fleet: FleetRecord) -> Result<FleetCreation, StoreError> {
        let id = fleet.key.run_id();
        let fold = Fold {
            doing: "write down for which nodes a request is",
            text: fold_text!(
                "INSERT INTO fleets (id, digest, principal, key, members, created_at, created_lived_s) \
                 SELECT ?, ?, ?, ?, ?, ?, (SELECT seconds FROM lived) WHERE NOT EXISTS (SELECT 1 FROM runs WHERE id = ?) \
                 ON CONFLICT DO NOTHING"
            ),
            values: vec![
                id.as_bytes().into(),
                fleet.digest.as_bytes().into(),
                fleet.key.principal.into(),
                fleet.key.key.into(),
                row::json(&fleet.members).into(),
                fleet.created_at.into(),
                id.as_bytes().into(),
            ],
            audit: None,
            then: Vec::new(),
        };
        if let Folded::Changed(written) = self.fold(fold).await? {
            return Ok(FleetCreation::Created(written));
        }
        Ok(match self.fleet(id).await? {
            Some(existing) => FleetCreation::Existing(Box::new(existing)),
            None => FleetCreation::KeyOfRun,
        })
    }

    /// Returns the request whose key makes this id ([`RunKey::run_id`]).
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn fleet(&self, id: RunId) -> Result<Option<FleetRecord>, StoreError> {
        let mut reader = self.reader().await?;
        let row = sqlx::query(
            "SELECT digest, principal, key, members, created_at FROM fleets WHERE id = ?",
        )
        .bind(id.as_bytes().to_vec())
        .fetch_optional(&mut reader)
        .await
        .map_err(|error| self.failed("read for which nodes a request was", error))?;
        let Some(row) = row else { return Ok(None) };
        let columns = Columns::of("fleets", &row);
        Ok(Some(FleetRecord {
            key: RunKey {
                principal: columns.text("principal")?,
                key: columns.text("key")?,
            },
            digest: columns.bytes("digest").map(Digest::from_bytes)?,
            members: columns.json("members")?,
            created_at: columns.time("created_at")?,
        }))
    }

    /// Forgets for which nodes requests were that came when the machine had lived for `until` or less.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn expire_fleets(&self, until: Duration) -> Result<((), Written), StoreError> {
        self.transact(move |tx| {
            Box::pin(async move {
                sqlx::query("DELETE FROM fleets WHERE created_lived_s <= ?")
                    .bind(row::integer(until.as_secs()))
                    .execute(&mut *tx.connection)
                    .await
                    .map(drop)
                    .map_err(|error| tx.failed("forget old requests for many nodes", error))
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{at, live, operator, run, store};
    use crate::store::{NewRun, RunCreation};

    fn key(text: &str) -> RunKey {
        RunKey {
            principal: "operator".to_owned(),
            key: text.to_owned(),
        }
    }

    fn fleet(text: &str, digest: u8) -> FleetRecord {
        let member = |number, left_out| FleetMember {
            device_id: DeviceId::from_bytes([number; 16]),
            node_id: NodeId::new(format!("n{number}")).unwrap(),
            name: NodeName::new("Box").unwrap(),
            left_out,
        };
        let offline = LeftOut {
            because: LeftOutBecause::Offline,
            detail: "it is offline".to_owned(),
        };
        FleetRecord {
            key: key(text),
            digest: Digest::from_bytes([digest; 32]),
            members: vec![member(1, None), member(2, Some(offline))],
            created_at: at(0),
        }
    }

    fn keyed(number: u8, text: &str) -> NewRun {
        let key = key(text);
        NewRun {
            id: key.run_id(),
            key: Some(key),
            ..run(number)
        }
    }

    #[tokio::test]
    async fn the_second_request_with_a_key_finds_the_nodes_of_the_first() {
        let store = store().await;
        let first = store.create_fleet(fleet("k", 1)).await.unwrap();
        assert!(matches!(first, FleetCreation::Created(_)));
        let FleetCreation::Existing(found) = store.create_fleet(fleet("k", 2)).await.unwrap()
        else {
            panic!("it must be there");
        };
        assert_eq!(*found, fleet("k", 1));
        let other = store.create_fleet(fleet("l", 2)).await.unwrap();
        assert!(matches!(other, FleetCreation::Created(_)));
    }

    #[tokio::test]
    async fn one_key_never_stands_for_one_node_and_for_many() {
        let store = store().await;
        store.create_fleet(fleet("k", 1)).await.unwrap();
        let refused = store.create_run(keyed(1, "k"), &operator()).await.unwrap();
        assert!(matches!(refused, RunCreation::KeyOfFleet), "{refused:?}");
        store.create_run(keyed(2, "l"), &operator()).await.unwrap();
        let refused = store.create_fleet(fleet("l", 1)).await.unwrap();
        assert!(matches!(refused, FleetCreation::KeyOfRun), "{refused:?}");
    }

    #[tokio::test]
    async fn a_request_is_forgotten_when_its_time_has_passed() {
        let store = store().await;
        live(&store, 5).await;
        store.create_fleet(fleet("k", 1)).await.unwrap();
        store.expire_fleets(Duration::from_secs(4)).await.unwrap();
        assert!(store.fleet(key("k").run_id()).await.unwrap().is_some());
        store.expire_fleets(Duration::from_secs(5)).await.unwrap();
        assert!(store.fleet(key("k").run_id()).await.unwrap().is_none());
    }

    #[test]
    fn each_node_has_its_own_run_of_a_key() {
        let device = |number| DeviceId::from_bytes([number; 16]);
        let key = key("k");
        assert_eq!(key.member_id(device(1)), key.member_id(device(1)));
        assert_ne!(key.member_id(device(1)), key.member_id(device(2)));
        assert_ne!(key.member_id(device(1)), key.run_id());
    }
}
