//! From columns to values: a row that cannot be what it claims is an error with its place.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::StoreError;
use crate::clock;

/// Reads the columns of one row of `table` by name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<'r> {
    row: &'r SqliteRow,
    table: &'static str,
}

impl<'r> Columns<'r> {
    pub(super) fn of(table: &'static str, row: &'r SqliteRow) -> Self {
        Self { row, table }
    }

    pub(super) fn bad(&self, column: &'static str, detail: &dyn std::fmt::Display) -> StoreError {
        StoreError::BadRow {
            table: self.table,
            column,
            detail: detail.to_string(),
        }
    }

    fn get<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        self.row
            .try_get(column)
            .map_err(|error| self.bad(column, &error))
    }

    pub(super) fn integer(&self, column: &'static str) -> Result<i64, StoreError> {
        self.get(column)
    }

    pub(super) fn count(&self, column: &'static str) -> Result<u64, StoreError> {
        self.number(column)
    }

    /// Reads an integer into a narrower type.
    pub(super) fn number<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        T: TryFrom<i64, Error: std::fmt::Display>,
    {
        let number = self.integer(column)?;
        T::try_from(number).map_err(|error| self.bad(column, &format!("{number}: {error}")))
    }

    pub(super) fn optional_number<T>(&self, column: &'static str) -> Result<Option<T>, StoreError>
    where
        T: TryFrom<i64, Error: std::fmt::Display>,
    {
        let number: Option<i64> = self.get(column)?;
        number
            .map(|number| {
                T::try_from(number).map_err(|error| self.bad(column, &format!("{number}: {error}")))
            })
            .transpose()
    }

    pub(super) fn text(&self, column: &'static str) -> Result<String, StoreError> {
        self.get(column)
    }

    pub(super) fn optional_text(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        self.get(column)
    }

    pub(super) fn blob(&self, column: &'static str) -> Result<Vec<u8>, StoreError> {
        self.get(column)
    }

    pub(super) fn bytes<const N: usize>(
        &self,
        column: &'static str,
    ) -> Result<[u8; N], StoreError> {
        let bytes: &[u8] = self.get(column)?;
        self.sized(column, bytes)
    }

    pub(super) fn optional_bytes<const N: usize>(
        &self,
        column: &'static str,
    ) -> Result<Option<[u8; N]>, StoreError> {
        let bytes: Option<&[u8]> = self.get(column)?;
        bytes.map(|bytes| self.sized(column, bytes)).transpose()
    }

    fn sized<const N: usize>(
        &self,
        column: &'static str,
        bytes: &[u8],
    ) -> Result<[u8; N], StoreError> {
        bytes
            .try_into()
            .map_err(|_| self.bad(column, &format!("{} bytes instead of {N}", bytes.len())))
    }

    pub(super) fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        self.integer(column).map(clock::from_millis)
    }

    pub(super) fn optional_time(
        &self,
        column: &'static str,
    ) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> = self.get(column)?;
        Ok(at.map(clock::from_millis))
    }

    /// Reads a text by a type's own parser.
    pub(super) fn parsed<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        let text: &str = self.get(column)?;
        text.parse().map_err(|error| self.bad(column, &error))
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        let text: &str = self.get(column)?;
        serde_json::from_str(text).map_err(|error| self.bad(column, &error))
    }

    pub(super) fn optional_json<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let text: Option<&str> = self.get(column)?;
        text.map(|text| serde_json::from_str(text).map_err(|error| self.bad(column, &error)))
            .transpose()
    }

    /// Reads a word that serde knows as a variant: `running`.
    pub(super) fn word<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        let text: &str = self.get(column)?;
        from_word(text).map_err(|error| self.bad(column, &error))
    }

    pub(super) fn optional_word<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let text: Option<&str> = self.get(column)?;
        text.map(|text| from_word(text).map_err(|error| self.bad(column, &error)))
            .transpose()
    }
}

/// Writes a value as JSON. Our own types always can.
pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("a stored type has string keys and no failing parts")
}

/// Writes a variant without data as its serde word.
pub(super) fn word<T: Serialize>(value: &T) -> String {
    let quoted = json(value);
    quoted.trim_matches('"').to_owned()
}

fn from_word<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(serde_json::Value::from(text))
}

/// Returns a time in milliseconds as SQLite's signed integer.
pub(super) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Returns a count as SQLite's signed integer. No count of ours comes near the edge: protocols
/// carry at most 2^53 - 1.
pub(super) fn integer(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
