//! What an event is about: an id becomes the thing that it names, as it stands now.

use std::sync::Arc;

use jiff::Timestamp;
use moltis_identity::Fingerprint;
use moltis_proto::{DeviceId, RequestId, RunId};

use crate::api::events::{
    Decision, EventData, ForgottenNode, KeyMismatch, NodeTelemetry, PairingDecided,
};
use crate::api::nodes::Node;
use crate::api::pairing::PairingStatus;
use crate::events::Event;
use crate::http::ApiState;
use crate::http::convert::nodes;
use crate::roster::NodeView;
use crate::store::{Answer, NodeRecord};

/// Returns what an event is about; `None` where nothing is left of it, which an event behind this
/// one tells.
pub(super) async fn data(desk: &ApiState, event: &Event) -> Option<EventData> {
    match event {
        Event::NodeOnline(device)
        | Event::NodeOffline(device)
        | Event::NodeChanged(device)
        | Event::KeyCloned(device) => node(desk, *device).map(Box::new).map(EventData::Node),
        Event::NodeForgotten(record) => Some(EventData::Forgotten(record.as_ref().into())),
        Event::Telemetry(device) => telemetry(desk, *device),
        Event::KeyMismatch(device) => mismatch(desk, *device).await,
        Event::PairingChanged => Some(EventData::Pairing(desk.pairing().window().into())),
        Event::PairingRequest(id) => {
            let request = desk.pairing().request(*id)?;
            Some(EventData::PairingRequest(Box::new(request.into())))
        }
        Event::PairingDecided(id) => decided(desk, *id),
        Event::RunStarted(id) | Event::RunEnded(id) => run(desk, *id).await,
        Event::RunLetGo(record) => {
            let status = desk.runs().status_of(Arc::clone(record));
            Some(EventData::Run(Box::new(desk.run(status))))
        }
    }
}

fn node(desk: &ApiState, device: DeviceId) -> Option<Node> {
    Some(Node::of(&view(desk, device)?, desk.clock().now()))
}

/// Returns a node as it is here, with its record as the desk has it: the roster hears of changes a
/// moment later.
fn view(desk: &ApiState, device: DeviceId) -> Option<NodeView> {
    let record = desk.pairing().node(device)?;
    Some(match desk.roster().get(device) {
        Some(view) => NodeView { record, ..view },
        None => NodeView {
            record,
            presence: None,
            heard_at: None,
            sample: None,
        },
    })
}

fn telemetry(desk: &ApiState, device: DeviceId) -> Option<EventData> {
    let view = view(desk, device)?;
    Some(EventData::Telemetry(Box::new(NodeTelemetry {
        id: view.record.node_id.to_string(),
        name: view.record.name.to_string(),
        telemetry: nodes::telemetry(&view, desk.clock().now())?,
    })))
}

async fn mismatch(desk: &ApiState, device: DeviceId) -> Option<EventData> {
    let record = desk.pairing().node(device)?;
    let all = desk.pairing().mismatches().await.ok()?;
    let mismatch = all.into_iter().find(|one| one.device_id == device)?;
    Some(EventData::KeyMismatch(KeyMismatch {
        node: record.node_id.to_string(),
        node_name: record.name.to_string(),
        fingerprint: Fingerprint::of(&record.node_key).to_string(),
        shown_fingerprint: Fingerprint::of(&mismatch.shown_key).to_string(),
        remote_address: mismatch.address.to_string(),
        first_seen_at: mismatch.first_seen_at,
        last_seen_at: mismatch.last_seen_at,
        times: mismatch.times,
    }))
}

fn decided(desk: &ApiState, id: RequestId) -> Option<EventData> {
    let request = desk.pairing().request(id)?.request;
    let (answer, decided_at) = (request.answer?, request.answered_at?);
    Some(EventData::PairingDecided(PairingDecided {
        id: id.to_string(),
        decision: answer.into(),
        node_id: request.introduction.node_id.to_string(),
        name: request.introduction.name.to_string(),
        fingerprint: Fingerprint::of(&request.node_key).to_string(),
        decided_by: request.answered_by.unwrap_or_default(),
        decided_at,
    }))
}

async fn run(desk: &ApiState, id: RunId) -> Option<EventData> {
    match desk.runs().status(id).await {
        Ok(status) => Some(EventData::Run(Box::new(desk.run(status)))),
        Err(error) => {
            tracing::warn!(run.id = %id, %error, "a run of which there is news cannot be read");
            None
        }
    }
}

impl From<Option<Timestamp>> for PairingStatus {
    /// Tells of the window by when it closes.
    fn from(expires_at: Option<Timestamp>) -> Self {
        Self {
            enabled: expires_at.is_some(),
            expires_at,
        }
    }
}

impl From<&NodeRecord> for ForgottenNode {
    fn from(record: &NodeRecord) -> Self {
        Self {
            id: record.node_id.to_string(),
            name: record.name.to_string(),
            fingerprint: Fingerprint::of(&record.node_key).to_string(),
        }
    }
}

impl From<Answer> for Decision {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Approved => Self::Approved,
            Answer::Rejected => Self::Rejected,
            Answer::Expired => Self::Expired,
        }
    }
}
