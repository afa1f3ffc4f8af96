//! Statements that let old runs go: their output first, then their rows.

use std::time::Duration;

use jiff::Timestamp;
use moltis_proto::RunId;

use crate::store::row::{Columns, integer};
use crate::store::{Store, StoreError, Written};

impl Store {
    /// Returns ended runs behind the row `after`, oldest first, each with its row: those that ended
    /// when the machine had lived for `until` or less or, where that is `None`, any whose output is still
    /// there.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn oldest_ended(
        &self,
        until: Option<Duration>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<(u64, RunId)>, StoreError> {
        let mut reader = self.reader().await?;
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let query = match until {
            Some(until) => sqlx::query(
                "SELECT seq, id FROM runs WHERE state = 'ended' AND seq > ? \
                 AND ended_lived_s <= ? ORDER BY seq LIMIT ?",
            )
            .bind(after)
            .bind(integer(until.as_secs())),
            None => sqlx::query(
                "SELECT seq, id FROM runs WHERE state = 'ended' AND seq > ? \
                 AND output_freed_at IS NULL ORDER BY seq LIMIT ?",
            )
            .bind(after),
        };
        let rows = query
            .bind(i64::from(limit))
            .fetch_all(&mut reader)
            .await
            .map_err(|error| self.failed("list old runs", error))?;
        rows.iter()
            .map(|row| {
                let columns = Columns::of("runs", row);
                let id = columns.bytes("id").map(RunId::from_bytes)?;
                Ok((columns.count("seq")?, id))
            })
            .collect()
    }

    /// Notes that the output of these ended runs is deleted, and deletes what rows hold of it.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn free_output(
        &self,
        ids: Vec<RunId>,
        at: Timestamp,
    ) -> Result<((), Written), StoreError> {
        self.transact(move |tx| {
            Box::pin(async move {
                for id in ids {
                    sqlx::query(
                        "DELETE FROM run_heads WHERE seq = (SELECT seq FROM runs WHERE id = ?)",
                    )
                    .bind(id.as_bytes().to_vec())
                    .execute(&mut *tx.connection)
                    .await
                    .map_err(|error| tx.failed("delete the output of a run", error))?;
                    sqlx::query(
                        "UPDATE runs SET output_freed_at = ? WHERE id = ? AND state = 'ended'",
                    )
                    .bind(at.as_millisecond())
                    .bind(id.as_bytes().to_vec())
                    .execute(&mut *tx.connection)
                    .await
                    .map_err(|error| tx.failed("note that output is deleted", error))?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Deletes the rows of ended runs.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn delete_runs(&self, ids: Vec<RunId>) -> Result<((), Written), StoreError> {
        self.transact(move |tx| {
            Box::pin(async move {
                for id in ids {
                    sqlx::query("DELETE FROM runs WHERE id = ? AND state = 'ended'")
                        .bind(id.as_bytes().to_vec())
                        .execute(&mut *tx.connection)
                        .await
                        .map_err(|error| tx.failed("delete an old run", error))?;
                }
                Ok(())
            })
        })
        .await
    }
}
