//! Requests to pair, and what a person saw of one.

use moltis_identity::Fingerprint;
use moltis_proto::key::Digest;

use super::nodes::labels;
use crate::api::pairing::{Approve, PairingRequest};
use crate::pairing::{Pending, SeenRequest};

impl From<Pending> for PairingRequest {
    fn from(pending: Pending) -> Self {
        let request = pending.request;
        let said = request.introduction;
        Self {
            id: request.id.to_string(),
            name: said.name.to_string(),
            node_id: said.node_id.to_string(),
            platform: said.platform.into(),
            labels: labels(&said.labels),
            fingerprint: Fingerprint::of(&request.node_key).to_string(),
            connection_code: request.code.to_string(),
            remote_address: request.address.to_string(),
            requested_at: request.first_seen_at,
            expires_at: pending.expires_at,
            warnings: pending.warnings.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<Approve> for SeenRequest {
    /// What cannot be read was never shown, so it becomes what no request has: the desk then says
    /// what became of the request, or that it looks different.
    fn from(seen: Approve) -> Self {
        let nothing = Fingerprint::from_digest(Digest::from_bytes([0; 32]));
        Self {
            fingerprint: seen.fingerprint.trim().parse().unwrap_or(nothing),
            code: seen.connection_code.trim().parse().unwrap_or_else(|_| {
                "0000-0000-0000"
                    .parse()
                    .expect("twelve zeros are a connection code")
            }),
        }
    }
}
