//! API tokens: never their secret, only its SHA-256.
//!
//! A secret has 256 random bits, so a plain hash is as good as a slow one. What a scope means is
//! not known here.

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::row::{self, Columns};
use super::writer::{Fold, Folded, fold_text};
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
        .fetch_all(&mut reader)
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
        .fetch_optional(&mut reader)
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
        // In a task, so that the bell rings for every revocation that is done, whoever still waits.
        let (told, done) = oneshot::channel();
        let store = self.clone();
        self.0.system.spawn(async move {
            let written = store.fold(fold).await.map(Folded::written);
            if matches!(written, Ok(Some(_))) {
                store.0.revocations.send_modify(|count| *count += 1);
            }
            told.send(written).ok(); // the asker has gone
        });
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Counts tokens that were revoked. Whoever goes on doing something on a token's word looks at
    /// the token again whenever this moves.
    pub fn token_revocations(&self) -> watch::Receiver<u64> {
        self.0.revocations.subscribe()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{at, operator, store};

    fn new(number: u8, name: &str) -> NewTokenRecord {
        NewTokenRecord {
            id: Uuid::from_bytes([number; 16]),
            name: name.to_owned(),
            hash: TokenHash::of(&format!("moltis_{number}")),
            scopes: vec!["nodes:read".to_owned(), "runs:write".to_owned()],
            created_at: at(0),
            expires_at: Some(at(100)),
        }
    }

    #[tokio::test]
    async fn a_token_is_found_by_its_hash_only() {
        let store = store().await;
        let made = store.create_token(new(1, "ci"), &operator()).await.unwrap();
        assert!(matches!(made, TokenCreation::Created(_)));
        let found = store
            .token(TokenHash::of("moltis_1"))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(found.id, new(1, "ci").id);
        assert_eq!(found.scopes, new(1, "ci").scopes);
        assert_eq!(found.created_by, "operator");
        assert!(
            store
                .token(TokenHash::of("moltis_2"))
                .await
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn a_name_is_free_again_once_its_token_is_revoked() {
        let store = store().await;
        let by = operator();
        store.create_token(new(1, "ci"), &by).await.unwrap();
        let taken = store.create_token(new(2, "ci"), &by).await.unwrap();
        assert_eq!(taken, TokenCreation::NameInUse);
        let id = new(1, "ci").id;
        assert!(store.revoke_token(id, at(5), &by).await.unwrap().is_some());
        assert!(store.revoke_token(id, at(6), &by).await.unwrap().is_none());
        let made = store.create_token(new(2, "ci"), &by).await.unwrap();
        assert!(matches!(made, TokenCreation::Created(_)));
        let listed = store.tokens().await.unwrap();
        assert_eq!(
            listed.iter().map(|token| token.id).collect::<Vec<_>>(),
            [new(2, "ci").id]
        );
        let revoked = store
            .token(TokenHash::of("moltis_1"))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(revoked.revoked_at, Some(at(5)));
        // Made, made, revoked; what was refused is not in the log.
        assert_eq!(store.verify_audit().await.unwrap().entries, 3);
    }

    #[tokio::test]
    async fn a_token_lives_until_it_expires_or_is_revoked() {
        let store = store().await;
        store.create_token(new(1, "ci"), &operator()).await.unwrap();
        let token = store
            .token(TokenHash::of("moltis_1"))
            .await
            .unwrap()
            .unwrap();
        assert!(token.is_live(at(99)) && !token.is_live(at(100)));
        let revoked = TokenRecord {
            revoked_at: Some(at(1)),
            ..token
        };
        assert!(!revoked.is_live(at(50)));
    }

    #[tokio::test]
    async fn the_last_use_is_noted() {
        let store = store().await;
        store.create_token(new(1, "ci"), &operator()).await.unwrap();
        store.touch_token(new(1, "ci").id, at(42)).await.unwrap();
        assert_eq!(store.tokens().await.unwrap()[0].last_used_at, Some(at(42)));
    }

    #[test]
    fn a_hash_does_not_print() {
        assert_eq!(format!("{:?}", TokenHash::of("moltis_x")), "TokenHash(…)");
    }
}
