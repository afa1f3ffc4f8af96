//! API tokens: see them, make one, revoke one.

use super::InProcess;
use crate::api::List;
use crate::api::problem::Problem;
use crate::api::tokens::{CreateToken, ListTokens, NewToken, Token};

impl InProcess {
    /// Returns the tokens without their secrets, the oldest first, a page at a time.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn list_tokens(&self, query: &ListTokens) -> Result<List<Token>, Problem> {
        self.call("list_tokens").ask(query).answer().await
    }

    /// Makes a token with no more scopes than its maker has.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn create_token(&self, asked: &CreateToken) -> Result<NewToken, Problem> {
        self.call("create_token").json(asked).answer().await
    }

    /// Ends a token, by its id or its name.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn revoke_token(&self, id: &str) -> Result<(), Problem> {
        self.call("revoke_token").of(id).done().await
    }
}
