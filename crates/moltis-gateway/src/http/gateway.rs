//! `gateway`: what this gateway is and where it listens.

use axum::extract::State;

use super::ApiState;
use crate::api::gateway::{Certificate, Gateway};

/// `GET gateway`
pub(super) async fn show(State(state): State<ApiState>) -> axum::Json<Gateway> {
    let addresses = state.addresses();
    axum::Json(Gateway {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        fingerprint: state.fingerprint().to_string(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        certificate: state.tls().map(|tls| {
            let about = tls.status().certificate;
            Certificate {
                fingerprint: about.fingerprint,
                expires_at: about.not_after,
            }
        }),
        started_at: state.started_at(),
    })
}
