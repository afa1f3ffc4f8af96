//! How long the machine of this store has lived, by clocks that nobody turns, and what is counted by
//! it: the age of rows that go (ADR 72).

use moltis_proto::{BootId, RunId};
use std::time::Duration;

use super::row::{self, Columns, integer};
use super::{Store, StoreError, Written};

/// What is counted of a machine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lived {
    /// So far, in whole seconds.
    pub(crate) total: Duration,
    /// The boot in which that was counted, where it was known.
    pub(crate) boot_id: Option<BootId>,
    /// What the clock of that boot showed then.
    pub(crate) boottime: Duration,
}

impl Store {
    /// Returns what is counted of the life of its machine.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub(crate) async fn lived(&self) -> Result<Lived, StoreError> {
        let mut reader = self.reader().await?;
        let row = sqlx::query("SELECT seconds, boot_id, boottime_s FROM lived")
            .fetch_one(&mut reader)
            .await
            .map_err(|error| self.failed("read how long the machine has lived", error))?;
        let columns = Columns::of("lived", &row);
        Ok(Lived {
            total: Duration::from_secs(columns.count("seconds")?),
            boot_id: columns.optional_bytes("boot_id")?.map(BootId::from_bytes),
            boottime: Duration::from_secs(columns.count("boottime_s")?),
        })
    }

    /// Writes down what is counted of the life of its machine. From here on rows are stamped with it.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub(crate) async fn set_lived(&self, lived: Lived) -> Result<((), Written), StoreError> {
        self.transact(move |tx| {
            Box::pin(async move {
                sqlx::query("UPDATE lived SET seconds = ?, boot_id = ?, boottime_s = ?")
                    .bind(integer(lived.total.as_secs()))
                    .bind(lived.boot_id.map(|boot_id| boot_id.as_bytes().to_vec()))
                    .bind(integer(lived.boottime.as_secs()))
                    .execute(&mut *tx.connection)
                    .await
                    .map(drop)
                    .map_err(|error| tx.failed("write how long the machine has lived", error))
            })
        })
        .await
    }

    /// Notes which of these runs have no row, each from the first time on that it is found so, and
    /// forgets of those that have one.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub(crate) async fn note_orphans(&self, stored: &[RunId]) -> Result<((), Written), StoreError> {
        let ids: Vec<_> = stored.iter().map(ToString::to_string).collect();
        let ids = row::json(&ids);
        self.transact(move |tx| {
            Box::pin(async move {
                for statement in [
                    "INSERT INTO orphans (id, since_s) \
                     SELECT unhex(value), (SELECT seconds FROM lived) FROM json_each(?) \
                     WHERE NOT EXISTS (SELECT 1 FROM runs WHERE id = unhex(value)) \
                     ON CONFLICT DO NOTHING",
                    "DELETE FROM orphans WHERE id IN (SELECT unhex(value) FROM json_each(?)) \
                     AND EXISTS (SELECT 1 FROM runs WHERE runs.id = orphans.id)",
                ] {
                    sqlx::query(statement)
                        .bind(ids.clone())
                        .execute(&mut *tx.connection)
                        .await
                        .map_err(|error| tx.failed("note files without a run", error))?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Returns the runs of which it has been known since `until` or longer that they have files and no
    /// row.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub(crate) async fn orphans(&self, until: Duration) -> Result<Vec<RunId>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query("SELECT id FROM orphans WHERE since_s <= ?")
            .bind(integer(until.as_secs()))
            .fetch_all(&mut reader)
            .await
            .map_err(|error| self.failed("list files without a run", error))?;
        let id = |row| Columns::of("orphans", row).bytes("id");
        rows.iter()
            .map(|row| id(row).map(RunId::from_bytes))
            .collect()
    }

    /// Forgets that a run has files and no row.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub(crate) async fn forget_orphan(&self, id: RunId) -> Result<((), Written), StoreError> {
        self.transact(move |tx| {
            Box::pin(async move {
                sqlx::query("DELETE FROM orphans WHERE id = ?")
                    .bind(id.as_bytes().to_vec())
                    .execute(&mut *tx.connection)
                    .await
                    .map(drop)
                    .map_err(|error| tx.failed("forget files without a run", error))
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{operator, run, store};

    fn at(seconds: u64) -> Lived {
        Lived {
            total: Duration::from_secs(seconds),
            boot_id: Some(BootId::from_bytes([1; 16])),
            boottime: Duration::from_secs(7),
        }
    }

    #[tokio::test]
    async fn a_new_store_has_not_lived_and_what_is_counted_is_read_back() {
        let store = store().await;
        let new = store.lived().await.unwrap();
        assert_eq!((new.total, new.boot_id), (Duration::ZERO, None));
        store.set_lived(at(5)).await.unwrap();
        assert_eq!(store.lived().await.unwrap(), at(5));
    }

    #[tokio::test]
    async fn files_without_a_run_are_known_from_the_first_look_on_until_it_has_a_row() {
        let store = store().await;
        let [with, without] = [1, 2].map(|number| run(number).id);
        store.create_run(run(1), &operator()).await.unwrap();
        for seconds in [5, 9] {
            store.set_lived(at(seconds)).await.unwrap();
            store.note_orphans(&[with, without]).await.unwrap();
        }
        let until = async |seconds| store.orphans(Duration::from_secs(seconds)).await.unwrap();
        assert_eq!(until(4).await, []);
        assert_eq!(until(5).await, [without]);
        store.create_run(run(2), &operator()).await.unwrap();
        store.note_orphans(&[with, without]).await.unwrap();
        assert_eq!(until(9).await, []);
        store.note_orphans(&[run(3).id]).await.unwrap();
        store.forget_orphan(run(3).id).await.unwrap();
        assert_eq!(until(9).await, []);
    }
}
