//! Asking for the end of a run until the gateway has heard it.

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

/// Asks for a run's end until the gateway has heard it. Where its store cannot take it, the reason
/// goes to `refused` once.
pub(super) async fn until_heard(client: &Client, run_id: &str, refused: mpsc::Sender<ApiError>) {
    let path = format!("runs/{run_id}/cancel");
    let mut refused = Some(refused);
    while let Err(error) = client.tell(Method::POST, &path, &Cancel::default()).await {
        let is_unwritable = error.code() == Some(Code::StoreReadOnly);
        // Any other answer means that it is heard, or that the ending is on its way.
        if !is_unwritable && !error.passes() {
            return;
        }
        if let Some(refused) = refused.take_if(|_| is_unwritable) {
            refused.try_send(error).ok(); // one is waiting to be said, or nobody listens
        }
        sleep(PAUSE).await;
    }
}
