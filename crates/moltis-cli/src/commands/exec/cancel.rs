//! Asking for the end of a run until the gateway has heard it.

use std::fmt;
use std::time::Duration;

use hyper::Method;
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::Cancel;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::api::{ApiError, Client};

/// Pause before a cancel that the gateway has not heard is said again.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a second Ctrl+C waits for the gateway to hear the first.
pub(super) const LEAVE_TIME: Duration = Duration::from_millis(500);

/// A cancel that the gateway has heard and not taken.
#[derive(Debug)]
pub(super) struct Refusal {
    error: ApiError,
    is_for_good: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cancel cannot be taken: {}", self.error)?;
        if self.is_for_good {
            f.write_str("; the command goes on")
        } else {
            f.write_str("; it is asked for again until it is taken")
        }
    }
}

/// Asks for a run's end until the gateway has heard it. The first reason that it gives against it goes
/// to `refused`.
pub(super) async fn until_heard(client: &Client, run_id: &str, refused: mpsc::Sender<Refusal>) {
    let path = format!("runs/{run_id}/cancel");
    let mut refused = Some(refused);
    while let Err(error) = client.tell(Method::POST, &path, &Cancel::default()).await {
        let is_for_good = match Answer::of(&error) {
            Answer::Over => return,
            Answer::Away => {
                sleep(PAUSE).await;
                continue;
            }
            Answer::NotNow => false,
            Answer::Never => true,
        };
        if let Some(refused) = refused.take() {
            let refusal = Refusal { error, is_for_good };
            refused.try_send(refusal).ok(); // one is waiting to be said, or nobody listens
        }
        if is_for_good {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// What is answered to a cancel that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The run is over, or its row is gone.
    Over,
    /// Nobody has heard it.
    Away,
    /// The gateway cannot take it, and may in a while.
    NotNow,
    /// The gateway does not take it from us.
    Never,
}

impl Answer {
    fn of(error: &ApiError) -> Self {
        match error.code() {
            Some(Code::RunEnded | Code::NotFound) => Self::Over,
            Some(Code::StoreReadOnly | Code::Internal) => Self::NotNow,
            _ if error.passes() => Self::Away,
            _ => Self::Never,
        }
    }
}
