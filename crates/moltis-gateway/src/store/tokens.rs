//! API tokens: never their secret, only its SHA-256.
//!
//! A secret has 256 random bits, so a plain hash is as good as a slow one. What a scope means is
//! not known here.

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::row::{self, Columns};
use super::writer::{Fold, fold_text};
use super::{Store, StoreError, Written};
use crate::audit::{Action, Actor, Entry};

/// SHA-256 of a token's whole text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Returns the hash under which `token` is stored.
    pub fn of(token: &str) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(token).into())
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// One token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its id.
    pub id: Uuid,
    /// What its maker called it; unique among those not revoked.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ends to work.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl TokenRecord {
    /// Returns whether the token works at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewTokenRecord {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// SHA-256 of its secret.
    pub hash: TokenHash,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Now.
    pub created_at: Timestamp,
    /// When it ends to work; `None` is never.
    pub expires_at: Option<Timestamp>,
}

/// What became of a [`NewTokenRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenCreation {
    /// It is there.
    Created(Written),
    /// Another token that is not revoked has this name.
    NameInUse,
}

impl Store {
    /// Makes a token.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn create_token(
        &self,
        token: NewTokenRecord,
        by: &Actor,
    ) -> Result<TokenCreation, StoreError> {
        let detail = json!({ "name": token.name, "scopes": token.scopes });
        let fold = Fold {
            doing: "create the token",
            text: fold_text!(
                "INSERT INTO tokens (id, name, hash, scopes, created_at, created_by, expires_at) \
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
                audited
            ),
            values: vec![
                token.id.as_bytes().into(),
                token.name.into(),
                (&token.hash.0).into(),
                row::json(&token.scopes).into(),
                token.created_at.into(),
                by.name.clone().into(),
                token.expires_at.into(),
            ],
            audit: Some(Entry::new(
                token.created_at,
                by,
                Action::TokenCreate,
                &token.id,
                detail,
            )),
            then: Vec::new(),
        };
        match self.fold(fold).await {
            Ok(folded) => Ok(TokenCreation::Created(folded.expect_changed())),
            Err(StoreError::Unique { constraint, .. }) if constraint.contains("tokens.name") => {
                Ok(TokenCreation::NameInUse)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns all tokens that are not revoked, oldest first.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query(
            "SELECT id, name, scopes, created_at, created_by, expires_at, last_used_at, revoked_at \
             FROM tokens WHERE revoked_at IS NULL ORDER BY created_at, id",
        )
        .fetch_all(&mut *reader)
        .await
        .map_err(|error| self.failed("list the tokens", error))?;
        rows.iter().map(token).collect()
    }

    /// Returns the token whose secret has this hash, revoked and expired ones too.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn token(&self, hash: TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        let mut reader = self.reader().await?;
        let row = sqlx::query(
            "SELECT id, name, scopes, created_at, created_by, expires_at, last_used_at, revoked_at \
             FROM tokens WHERE hash = ?",
        )
        .bind(hash.0.to_vec())
        .fetch_optional(&mut *reader)
        .await
        .map_err(|error| self.failed("look up a token", error))?;
        row.as_ref().map(token).transpose()
    }

    /// Notes that a token was used. Called at most once a minute for each.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn touch_token(&self, id: Uuid, now: Timestamp) -> Result<(), StoreError> {
        let fold = Fold {
            doing: "note the use of a token",
            text: fold_text!("UPDATE tokens SET last_used_at = ? WHERE id = ?"),
            values: vec![now.into(), id.as_bytes().into()],
            audit: None,
            then: Vec::new(),
        };
        self.fold(fold).await.map(drop)
    }

    /// Revokes a token; `None` where there is none with this id, or it is revoked already.
    ///
    /// # Errors
    /// Where nothing can be written.
    pub async fn revoke_token(
        &self,
        id: Uuid,
        now: Timestamp,
        by: &Actor,
    ) -> Result<Option<Written>, StoreError> {
        let fold = Fold {
            doing: "revoke the token",
            text: fold_text!(
                "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                audited
            ),
            values: vec![now.into(), id.as_bytes().into()],
            audit: Some(Entry::new(now, by, Action::TokenRevoke, &id, json!({}))),
            then: Vec::new(),
        };
        self.fold(fold).await.map(super::writer::Folded::written)
    }
}

fn token(row: &sqlx::sqlite::SqliteRow) -> Result<TokenRecord, StoreError> {
    let columns = Columns::of("tokens", row);
    Ok(TokenRecord {
        id: Uuid::from_bytes(columns.bytes("id")?),
        name: columns.text("name")?,
        scopes: columns.json("scopes")?,
        created_at: columns.time("created_at")?,
        created_by: columns.text("created_by")?,
        expires_at: columns.optional_time("expires_at")?,
        last_used_at: columns.optional_time("last_used_at")?,
        revoked_at: columns.optional_time("revoked_at")?,
    })
}
