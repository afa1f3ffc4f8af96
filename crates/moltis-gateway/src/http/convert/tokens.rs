//! Tokens. Scopes are text in rows, so that a token of a newer gateway can be read; what is not
//! known here gives no right here.

use crate::api::tokens::{Scope, Token};
use crate::principal::Principal;
use crate::store::TokenRecord;

impl From<TokenRecord> for Token {
    fn from(record: TokenRecord) -> Self {
        Self {
            id: record.id.to_string(),
            scopes: scopes(&record.scopes),
            name: record.name,
            created_at: record.created_at,
            expires_at: record.expires_at,
            last_used_at: record.last_used_at,
        }
    }
}

impl From<TokenRecord> for Principal {
    fn from(record: TokenRecord) -> Self {
        Self::Token {
            id: record.id.to_string(),
            scopes: scopes(&record.scopes),
            name: record.name,
        }
    }
}

fn scopes(words: &[String]) -> Vec<Scope> {
    words.iter().filter_map(|word| word.parse().ok()).collect()
}
