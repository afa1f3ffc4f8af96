//! A few facts about the store itself.

use sqlx::SqliteConnection;

use super::StoreError;
use super::writer::Tx;

/// Writes what stands there already: it shows whether the disk takes any.
pub(super) async fn touch(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    sqlx::query("UPDATE settings SET value = value WHERE name = 'openings'")
        .execute(&mut *tx.connection)
        .await
        .map(drop)
        .map_err(|error| tx.failed("write to the database", error))
}

/// Counts the openings. The write shows at once whether the disk takes any, and makes the `-wal`
/// file, whose descriptor the syncing thread needs.
pub(super) async fn count_opening(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO settings (name, value) VALUES ('openings', '1') \
         ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + 1",
    )
    .execute(connection)
    .await
    .map(drop)
}
