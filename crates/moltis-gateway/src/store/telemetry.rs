//! Rows of telemetry history: one for a node and hour, its samples as a blob of eight bytes each.
//! What the bytes mean is in [`crate::telemetry`].

use std::time::Duration;

use futures_util::TryStreamExt as _;
use moltis_proto::DeviceId;

use super::row::{Columns, integer};
use super::writer::{Fold, fold_text};
use super::{Store, StoreError, Written};
use crate::telemetry::HourRow;

impl Store {
    /// Writes the samples of an hour over what stands there. Where the node has been forgotten
    /// meanwhile, nothing happens.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn put_telemetry_hour(
        &self,
        device_id: DeviceId,
        hour: i64,
        samples: Vec<u8>,
    ) -> Result<(), StoreError> {
        let fold = Fold {
            doing: "write telemetry",
            text: fold_text!(
                "INSERT INTO telemetry_hours (device_id, hour, samples, lived_s) \
                 SELECT device_id, ?, ?, (SELECT seconds FROM lived) FROM nodes WHERE device_id = ? \
                 ON CONFLICT (device_id, hour) DO UPDATE \
                 SET samples = excluded.samples, lived_s = excluded.lived_s"
            ),
            values: vec![hour.into(), samples.into(), device_id.as_bytes().into()],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(drop)
    }

    /// Returns the hours of a node from `since` on, oldest first, with their samples.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn telemetry_hours(
        &self,
        device_id: DeviceId,
        since: i64,
    ) -> Result<Vec<(i64, Vec<u8>)>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(
            "SELECT hour, samples FROM telemetry_hours \
             WHERE device_id = ? AND hour >= ? ORDER BY hour",
        )
        .bind(device_id.as_bytes().to_vec())
        .bind(since)
        .fetch_all(&mut reader)
        .await
        .map_err(|error| self.failed("read telemetry", error))?;
        rows.iter()
            .map(|row| {
                let columns = Columns::of("telemetry_hours", row);
                Ok((columns.integer("hour")?, columns.blob("samples")?))
            })
            .collect()
    }

    /// Returns what is written of one hour, of all nodes.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn telemetry_of_hour(&self, hour: i64) -> Result<Vec<HourRow>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query("SELECT device_id, samples FROM telemetry_hours WHERE hour = ?")
            .bind(hour)
            .fetch(&mut reader)
            .map_err(|error| self.failed("read telemetry", error))
            .and_then(|row| {
                let columns = Columns::of("telemetry_hours", &row);
                let read = || {
                    Ok(HourRow {
                        device_id: DeviceId::from_bytes(columns.bytes("device_id")?),
                        hour,
                        samples: columns.blob("samples")?,
                    })
                };
                std::future::ready(read())
            });
        rows.try_collect().await
    }

    /// Deletes all hours that were last written when the machine had lived for `until` or less. Returns
    /// how many.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn expire_telemetry(&self, until: Duration) -> Result<(u64, Written), StoreError> {
        self.transact(move |tx| {
            Box::pin(async move {
                sqlx::query("DELETE FROM telemetry_hours WHERE lived_s <= ?")
                    .bind(integer(until.as_secs()))
                    .execute(&mut *tx.connection)
                    .await
                    .map(|done| done.rows_affected())
                    .map_err(|error| tx.failed("delete old telemetry", error))
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::store::pairings::tests::pin;
    use crate::store::testing::{live, node, store};

    #[tokio::test]
    async fn an_hour_is_written_over_and_read_in_order() {
        let store = store().await;
        pin(&store, node(1)).await;
        let id = node(1).device_id;
        for (hour, samples) in [(7, vec![1]), (6, vec![2]), (7, vec![1, 3])] {
            store.put_telemetry_hour(id, hour, samples).await.unwrap();
        }
        let all = store.telemetry_hours(id, 0).await.unwrap();
        assert_eq!(all, [(6, vec![2]), (7, vec![1, 3])]);
        assert_eq!(store.telemetry_hours(id, 7).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_node_that_was_forgotten_meanwhile_gets_no_row() {
        let store = store().await;
        let id = node(1).device_id;
        store.put_telemetry_hour(id, 7, vec![1]).await.unwrap();
        assert!(store.telemetry_hours(id, 0).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn old_hours_go() {
        let store = store().await;
        pin(&store, node(1)).await;
        let id = node(1).device_id;
        for hour in 0..10 {
            live(&store, u64::try_from(hour).unwrap()).await;
            store.put_telemetry_hour(id, hour, vec![1]).await.unwrap();
        }
        assert_eq!(
            store
                .expire_telemetry(Duration::from_secs(6))
                .await
                .unwrap()
                .0,
            7
        );
        assert_eq!(store.telemetry_hours(id, 0).await.unwrap().len(), 3);
    }
}
