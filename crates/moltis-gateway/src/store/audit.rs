//! Rows of the audit log: appended by the writer, read in pages, walked to verify the chain.

use std::path::Path;

use moltis_proto::key::Digest;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Sqlite, SqliteConnection};

use super::connection::Connection;
use super::row::{Columns, integer};
use super::{Store, StoreError};
use crate::audit::{Head, Line};

/// Rows read at once while the chain is walked.
const PAGE: i64 = 1000;

/// What a walk over the whole chain found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Rows in the log.
    pub entries: u64,
    /// Number of the first row that is not what was appended, or that is missing.
    pub first_bad: Option<u64>,
}

impl Store {
    /// Returns lines of the log, newest first, from below `before` where that is given.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn audit_lines(
        &self,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Line>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(
            "SELECT seq, at, actor, source, action, subject, detail FROM audit \
             WHERE seq < ? ORDER BY seq DESC LIMIT ?",
        )
        .bind(before.map_or(i64::MAX, integer))
        .bind(i64::from(limit))
        .fetch_all(&mut reader)
        .await
        .map_err(|error| self.failed("read the audit log", error))?;
        rows.iter().map(line).collect()
    }

    /// Walks the whole chain.
    ///
    /// # Errors
    /// Where the database cannot be read. A broken chain is an answer, not an error.
    pub async fn verify_audit(&self) -> Result<Verdict, StoreError> {
        let mut reader = self.reader().await?;
        let mut head = Head::EMPTY;
        let mut verdict = Verdict {
            entries: 0,
            first_bad: None,
        };
        loop {
            let rows = sqlx::query(
                "SELECT seq, at, actor, source, action, subject, detail, hash FROM audit \
                 WHERE seq > ? ORDER BY seq LIMIT ?",
            )
            .bind(integer(head.seq))
            .bind(PAGE)
            .fetch_all(&mut reader)
            .await
            .map_err(|error| self.failed("read the audit log", error))?;
            if rows.is_empty() {
                return Ok(verdict);
            }
            for row in &rows {
                let line = line(row)?;
                let hash: [u8; 32] = Columns::of("audit", row).bytes("hash")?;
                let expected = head.after(&line);
                let broken = line.seq != head.seq + 1 || expected.hash != hash;
                if broken && verdict.first_bad.is_none() {
                    verdict.first_bad = Some(head.seq + 1);
                }
                verdict.entries += 1;
                head = Head {
                    seq: line.seq,
                    hash,
                };
            }
        }
    }
}

/// Returns the end of the chain.
pub(super) async fn head(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<Head, StoreError> {
    let row = sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        .fetch_optional(connection)
        .await
        .map_err(|error| StoreError::from_sqlx("read the audit log", path, error))?;
    let Some(row) = row else {
        return Ok(Head::EMPTY);
    };
    let columns = Columns::of("audit", &row);
    Ok(Head {
        seq: columns.count("seq")?,
        hash: columns.bytes("hash")?,
    })
}

/// Appends a row in the transaction of `connection`.
pub(super) async fn append(
    connection: &mut Connection,
    line: &Line,
    after: &Head,
) -> Result<(), sqlx::Error> {
    let query = sqlx::query(
        "INSERT INTO audit (seq, at, actor, source, action, subject, detail, hash) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    );
    bind(query, line.clone(), after)
        .execute(connection)
        .await
        .map(drop)
}

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// Binds the columns of a row in their order.
pub(super) fn bind<'q>(query: Query<'q>, line: Line, after: &Head) -> Query<'q> {
    query
        .bind(integer(line.seq))
        .bind(line.at_ms)
        .bind(line.actor)
        .bind(line.source)
        .bind(line.action)
        .bind(line.subject)
        .bind(line.detail)
        .bind(Digest::from_bytes(after.hash).as_bytes().to_vec())
}

fn line(row: &sqlx::sqlite::SqliteRow) -> Result<Line, StoreError> {
    let columns = Columns::of("audit", row);
    Ok(Line {
        seq: columns.count("seq")?,
        at_ms: columns.integer("at")?,
        actor: columns.text("actor")?,
        source: columns.optional_text("source")?,
        action: columns.text("action")?,
        subject: columns.text("subject")?,
        detail: columns.text("detail")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Action;
    use crate::store::testing::{entry, store};

    #[tokio::test]
    async fn lines_come_newest_first_in_pages() {
        let store = store().await;
        for _ in 0..5 {
            store.note(entry(Action::PairingOpen)).await.unwrap();
        }
        let seqs = |lines: Vec<Line>| lines.iter().map(|line| line.seq).collect::<Vec<_>>();
        assert_eq!(seqs(store.audit_lines(None, 2).await.unwrap()), [5, 4]);
        assert_eq!(
            seqs(store.audit_lines(Some(4), 10).await.unwrap()),
            [3, 2, 1]
        );
        assert!(store.audit_lines(Some(1), 10).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_chain_longer_than_a_page_is_walked_to_its_end() {
        let store = store().await;
        let notes = (0..2100).map(|_| store.note(entry(Action::PairingOpen)));
        for note in futures_util::future::join_all(notes).await {
            note.unwrap();
        }
        let verdict = store.verify_audit().await.unwrap();
        assert_eq!((verdict.entries, verdict.first_bad), (2100, None));
    }
}
