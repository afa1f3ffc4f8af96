//! The API without a socket: one method for each operation, with typed requests and answers.
//!
//! A call goes through the same router as a request from outside, with the asker in its extensions
//! and no connection under it: the same [`authorize`](crate::principal::authorize), the same handlers
//! and bounds, the same refusals in the same words. So whatever the API can do can be done here, and
//! nothing can be done here that the API would refuse. A method is named as its operation in the
//! OpenAPI document, and where it goes stands in the table of routes alone.
//!
//! Here is how a call is made ([`call`]) and what its answer streams ([`streams`]); the methods are in
//! one file for each family of operations. Made by
//! [`Gateway::on_behalf_of`](crate::Gateway::on_behalf_of).

mod call;
mod events;
mod itself;
mod nodes;
mod pairing;
mod runs;
mod streams;
#[cfg(test)]
mod tests;
mod tokens;

use axum::Router;

use crate::principal::Principal;

pub use events::{GatewayEvent, RunEvent, Told};
pub use runs::{Output, Started};
pub use streams::{Cut, Streamed};

/// The API, on behalf of somebody. Cloning shares it.
///
/// ```no_run
/// # async fn example(gateway: &moltis_gateway::Gateway) -> Result<(), Box<dyn std::error::Error>> {
/// use moltis_gateway::api::runs::StartRun;
/// use moltis_gateway::api::tokens::Scope;
/// use moltis_gateway::principal::{Principal, User};
///
/// let alice = User::new("alice", [Scope::NodesRead, Scope::RunsRead, Scope::RunsWrite])?;
/// let api = gateway.on_behalf_of(Principal::User(alice));
/// let uptime = StartRun {
///     node: Some("build-box".to_owned()),
///     command: Some("uptime".to_owned()),
///     ..StartRun::default()
/// };
/// let result = api.run_to_end(&uptime, None).await?;
/// assert_eq!(result.exit_code, Some(0), "{}", result.stderr);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct InProcess {
    router: Router,
    who: Principal,
}

impl InProcess {
    pub(crate) fn new(router: Router, who: Principal) -> Self {
        Self { router, who }
    }

    /// Returns on whose behalf it asks.
    pub fn who(&self) -> &Principal {
        &self.who
    }
}
