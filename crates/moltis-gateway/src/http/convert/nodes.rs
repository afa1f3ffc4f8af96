//! Nodes: records and presence become answers.

use std::collections::BTreeMap;

use jiff::Timestamp;
use moltis_identity::Fingerprint;
use moltis_proto::Labels;
use moltis_proto::handshake::PolicyMode;
use moltis_proto::limits::TELEMETRY_INTERVAL;

use crate::api::nodes::{Node, NodeDetail, NodeState, Policy};
use crate::api::runs::Run;
use crate::api::telemetry::Telemetry;
use crate::roster::NodeView;

impl Node {
    /// Puts together what is known and what is here.
    pub(crate) fn of(view: &NodeView, now: Timestamp) -> Self {
        let record = &view.record;
        let said = view.said();
        Self {
            id: record.node_id.to_string(),
            name: record.name.to_string(),
            state: state(view),
            fingerprint: Fingerprint::of(&record.node_key).to_string(),
            labels: labels(&record.labels),
            platform: said.platform.clone().into(),
            last_seen: view.last_seen(),
            telemetry: telemetry(view, now),
        }
    }
}

impl NodeDetail {
    /// Adds what only one node's own page shows.
    pub(crate) fn of(view: &NodeView, recent_runs: Vec<Run>, now: Timestamp) -> Self {
        let here = view.presence.as_ref();
        let claims = view.said().claims.clone();
        Self {
            node: Node::of(view, now),
            working_dir: claims.working_dir,
            timeout_seconds: claims.timeout_ms.div_ceil(1000),
            policy: claims.policy.into(),
            env_allow: claims.env_allow,
            user: claims.user,
            version: claims.version,
            connected_since: here.map(|here| here.since),
            remote_address: here.and_then(|here| here.remote).map(|ip| ip.to_string()),
            paired_at: view.record.paired_at,
            revoked_at: view.record.revoked_at,
            recent_runs,
        }
    }
}

/// Returns labels as JSON has them.
pub(crate) fn labels(labels: &Labels) -> BTreeMap<String, String> {
    labels.clone().into()
}

/// Returns whether a node is here.
pub(crate) fn state(view: &NodeView) -> NodeState {
    match (view.record.revoked_at, &view.presence) {
        (Some(_), _) => NodeState::Revoked,
        (None, Some(_)) => NodeState::Online,
        (None, None) => NodeState::Offline,
    }
}

/// Returns a node's last sample. It is stale when the next but one is missing, or its node is gone.
pub(crate) fn telemetry(view: &NodeView, now: Timestamp) -> Option<Telemetry> {
    let stamped = view.sample.as_ref()?;
    let age = now.duration_since(stamped.at).unsigned_abs();
    let stale = view.presence.is_none() || age > TELEMETRY_INTERVAL * 5 / 2;
    Some(Telemetry::of(stamped.sample.clone(), stamped.at, stale))
}

impl From<PolicyMode> for Policy {
    fn from(mode: PolicyMode) -> Self {
        match mode {
            PolicyMode::Full => Self::Full,
            PolicyMode::Off => Self::Off,
            PolicyMode::AllowList => Self::AllowList,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use moltis_proto::telemetry::Sample;

    use super::*;
    use crate::roster::{Presence, StampedSample};
    use crate::store::testing::{at, node};

    fn view(presence: Option<Presence>) -> NodeView {
        NodeView {
            record: Arc::new(node(1)),
            presence,
            heard_at: None,
            sample: Some(Arc::new(StampedSample {
                at: at(0),
                sample: Sample::default(),
            })),
        }
    }

    #[test]
    fn a_sample_is_stale_when_two_are_missing_or_its_node_is_gone() {
        let here = Presence {
            since: at(0),
            remote: None,
            heard_at: at(0),
            clock_ahead: None,
            accepted_as: None,
        };
        let stale = |view: &NodeView, seconds| Node::of(view, at(seconds)).telemetry.unwrap().stale;
        let online = view(Some(here));
        assert!(!stale(&online, 0) && !stale(&online, 75));
        assert!(stale(&online, 76));
        assert!(stale(&view(None), 0));
    }
}
