//! Waiting for a gateway that is about to come back, so that the first question of a command does not
//! fail where it meets a restart.
//!
//! What is waited for is told, and for how long. Where nothing says that a gateway was or will be here,
//! nobody waits: a newcomer is told at once what to start.

use std::io::ErrorKind;
use std::time::Duration;

use moltis_gateway::api::problem::Code;
use tokio::time::{Instant, sleep};

use super::Context;
use crate::api::{ApiError, Client};
use crate::service::{self, GATEWAY, Word};

/// How long a command waits. A service manager waits for two seconds before it starts a gateway again;
/// the rest is for one that has much to read.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// Pauses between two questions.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits for the gateway of one command.
#[derive(Debug)]
pub(crate) struct Patience<'a> {
    context: &'a Context,
    client: &'a Client,
    since: Option<Instant>,
}

/// Why a gateway is thought to be about to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// It has just been here: it is stopping, or its connection broke.
    WasHere,
    /// A proxy is here that does not reach it.
    Proxy,
    /// Its socket is here, and nobody listens: it died.
    Socket,
    /// Its service is running, or about to start.
    Service,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(context: &'a Context, client: &'a Client) -> Self {
        Self {
            context,
            client,
            since: None,
        }
    }

    /// Waits a little where the gateway is expected back; returns whether the same question may be
    /// asked again.
    pub(crate) async fn waits_after(&mut self, error: &ApiError) -> bool {
        let since = if let Some(since) = self.since {
            since
        } else {
            let Some(sign) = self.sign_in(error).await else {
                return false;
            };
            self.tell(sign);
            *self.since.insert(Instant::now())
        };
        if !is_away(error) || since.elapsed() >= WAIT_MAX {
            return false;
        }
        sleep(PAUSE).await;
        true
    }

    async fn sign_in(&self, error: &ApiError) -> Option<Sign> {
        let source = match error {
            ApiError::NotReached { source, .. } => source,
            ApiError::ProxyWithoutGateway { .. } => return Some(Sign::Proxy),
            error => return is_away(error).then_some(Sign::WasHere),
        };
        // Of a gateway elsewhere nothing is known that would tell a restart from a wrong address.
        let home = self.client.home()?;
        let has_socket = source.kind() == ErrorKind::ConnectionRefused;
        if !has_socket && source.kind() != ErrorKind::NotFound {
            return None;
        }
        let manager = service::manager(&self.context.settings);
        let installed = manager.installed(GATEWAY).ok().flatten().is_some();
        let mut standing = None;
        if installed {
            standing = service::standing_of(&manager, GATEWAY, home).await.ok();
        }
        // The service of another home says nothing of this one.
        let standing = standing.filter(|standing| standing.word != Word::NotInstalled);
        sign(has_socket, standing.map(|standing| standing.is_wanted))
    }

    fn tell(&self, sign: Sign) {
        let what = match sign {
            Sign::WasHere => "the gateway is stopping",
            Sign::Proxy => "the proxy before the gateway does not reach it",
            Sign::Socket => "the gateway that was here does not answer any more",
            Sign::Service => "the gateway's service is about to start",
        };
        self.context.output.note(&format!(
            "{what}; waiting up to {} s for it to be there again",
            WAIT_MAX.as_secs()
        ));
    }
}

/// Asks, and asks again while the gateway is expected back. For questions that may be repeated.
pub(super) async fn ask<T>(
    context: &Context,
    client: &Client,
    question: impl AsyncFn() -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let mut patience = Patience::new(context, client);
    loop {
        match question().await {
            Err(error) if patience.waits_after(&error).await => {}
            answer => return answer,
        }
    }
}

fn is_away(error: &ApiError) -> bool {
    match error {
        ApiError::NotReached { .. } | ApiError::Cut(_) | ApiError::ProxyWithoutGateway { .. } => {
            true
        }
        error => error.code() == Some(Code::ShuttingDown),
    }
}

/// `is_wanted` says whether the service shall run; `None` where this home has none that could say.
fn sign(has_socket: bool, is_wanted: Option<bool>) -> Option<Sign> {
    match (has_socket, is_wanted) {
        (_, Some(true)) => Some(Sign::Service),
        // Whoever has stopped it knows; and where there never was one, nobody waits.
        (_, Some(false)) | (false, None) => None,
        (true, None) => Some(Sign::Socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_sign_of_a_gateway_nobody_waits() {
        for (has_socket, is_wanted, expected) in [
            (false, None, None),
            (true, None, Some(Sign::Socket)),
            (false, Some(true), Some(Sign::Service)),
            (true, Some(true), Some(Sign::Service)),
            (false, Some(false), None),
            (true, Some(false), None),
        ] {
            let found = sign(has_socket, is_wanted);
            assert_eq!(found, expected, "{has_socket} {is_wanted:?}");
        }
    }
}
