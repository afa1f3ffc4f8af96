//! `gateway`: what this gateway is and where it listens.

use axum::extract::State;

use super::ApiState;
use crate::api::gateway::Gateway;

/// `GET gateway`
pub(super) async fn show(State(state): State<ApiState>) -> axum::Json<Gateway> {
    let addresses = state.addresses();
    axum::Json(Gateway {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        fingerprint: state.fingerprint().to_string(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        started_at: state.started_at(),
    })
}
