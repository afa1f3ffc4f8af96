//! `nodes`: see them, rename and label one, revoke it, forget it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use moltis_identity::Fingerprint;
use moltis_proto::name::NAME_CHARS_MAX;
use moltis_proto::{Labels, NodeName};

use super::ApiState;
use super::caller::Caller;
use super::convert::nodes::state;
use super::error::{ApiError, ApiResult};
use super::extract::{Asked, Id, Json};
use super::page;
use crate::api::List;
use crate::api::nodes::{ListNodes, Node, NodeDetail, NodeState, PAGE_MAX, PatchNode};
use crate::api::problem::{Candidate, Code};
use crate::exec::RouteError;
use crate::roster::NodeView;
use crate::store::{NodeRecord, RunFilter, Target};

/// Runs in a node's own page.
const RECENT_RUNS: u32 = 10;

/// `GET nodes`
pub(super) async fn list(
    State(desk): State<ApiState>,
    Asked(query): Asked<ListNodes>,
) -> ApiResult<axum::Json<List<Node>>> {
    let limit = page::limit(query.limit, PAGE_MAX, PAGE_MAX)?;
    let mut nodes = match query.select {
        Some(select) => desk.roster().meant_by(&select.parse()?),
        None => desk.roster().list(),
    };
    nodes.retain(|view| query.state.is_none_or(|wanted| wanted == state(view)));
    page(&desk, nodes, limit, query.cursor.as_deref())
}

/// Answers with a page of nodes, which are sorted as the roster sorts them.
pub(super) fn page(
    desk: &ApiState,
    nodes: Vec<NodeView>,
    limit: u32,
    cursor: Option<&str>,
) -> ApiResult<axum::Json<List<Node>>> {
    let now = desk.clock().now();
    let page = page::cut(nodes, limit, cursor, |view| {
        let record = &view.record;
        // Neither a name nor an id holds the character that is less than all others.
        format!("{}\0{}\0{}", record.name, record.node_id, record.device_id)
    })?;
    Ok(axum::Json(List {
        items: page.items.iter().map(|view| Node::of(view, now)).collect(),
        next: page.next,
    }))
}

/// `GET nodes/{id}`
pub(super) async fn show(
    State(desk): State<ApiState>,
    Id(word): Id,
) -> ApiResult<axum::Json<NodeDetail>> {
    let view = find(&desk, &word)?;
    detail(&desk, &view).await
}

/// `PATCH nodes/{id}`
pub(super) async fn patch(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(word): Id,
    Json(asked): Json<PatchNode>,
) -> ApiResult<axum::Json<NodeDetail>> {
    let view = find_whole(&desk, &word)?;
    let name = asked.name.map(name).transpose()?;
    let labels = asked.labels.map(Labels::new).transpose();
    let labels = labels.map_err(|error| ApiError::invalid(format!("`labels`: {error}")))?;
    let mut record = view.record;
    if let Some(name) = name {
        record = desk
            .pairing()
            .rename(record.device_id, name, caller.actor())
            .await?;
    }
    if let Some(labels) = labels {
        record = desk
            .pairing()
            .relabel(record.device_id, labels, caller.actor())
            .await?;
    }
    answer(&desk, record).await
}

/// Reads a name; space around it is no part of it, but counts.
fn name(text: String) -> ApiResult<NodeName> {
    let found = text.chars().count();
    if found > NAME_CHARS_MAX {
        return Err(ApiError::invalid(format!(
            "`name`: a name has at most {NAME_CHARS_MAX} characters, this one {found}"
        )));
    }
    NodeName::new(text).map_err(|error| ApiError::invalid(format!("`name`: {error}")))
}

/// `POST nodes/{id}/revoke`
pub(super) async fn revoke(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(word): Id,
    Json(crate::api::Empty {}): Json<crate::api::Empty>,
) -> ApiResult<axum::Json<NodeDetail>> {
    let view = find_whole(&desk, &word)?;
    // Who revokes twice gets the same answer twice.
    let record = match state(&view) {
        NodeState::Revoked => view.record,
        NodeState::Online | NodeState::Offline => {
            desk.pairing()
                .revoke(view.record.device_id, caller.actor())
                .await?
        }
    };
    answer(&desk, record).await
}

/// `DELETE nodes/{id}`: forgets it.
pub(super) async fn forget(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(word): Id,
) -> ApiResult<StatusCode> {
    let view = find_whole(&desk, &word)?;
    if state(&view) == NodeState::Online {
        let name = &view.record.name;
        return Err(ApiError::new(
            Code::NodeOnline,
            format!(
                "the node `{name}` is connected: only a revoked or offline one can be forgotten"
            ),
        )
        .hint(format!(
            "revoke it first: moltis node revoke '{}'",
            view.record.node_id
        )));
    }
    desk.pairing()
        .forget(view.record.device_id, caller.actor())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn detail(desk: &ApiState, view: &NodeView) -> ApiResult<axum::Json<NodeDetail>> {
    let filter = RunFilter {
        target: Some(Target::Node(view.record.device_id)),
        ..RunFilter::default()
    };
    let (page, _) = desk.runs().list(&filter, RECENT_RUNS).await?;
    let runs = page.into_iter().map(|status| desk.run(status)).collect();
    Ok(axum::Json(NodeDetail::of(view, runs, desk.clock().now())))
}

/// Answers with a node whose record was just changed: the roster may hear of it a moment later.
pub(super) async fn answer(
    desk: &ApiState,
    record: Arc<NodeRecord>,
) -> ApiResult<axum::Json<NodeDetail>> {
    let view = match desk.roster().get(record.device_id) {
        Some(view) => NodeView { record, ..view },
        None => NodeView {
            record,
            presence: None,
            heard_at: None,
            sample: None,
        },
    };
    detail(desk, &view).await
}

/// Finds a node for whoever wants to change it: by its whole id, its name, or its fingerprint. A
/// beginning that a slip has cut short could be that of any node.
fn find_whole(desk: &ApiState, word: &str) -> ApiResult<NodeView> {
    let view = find(desk, word)?;
    let record = &view.record;
    let id = record.node_id.as_str();
    let is_whole = id == word
        || record.name.as_str() == word.trim()
        || Fingerprint::of(&record.node_key).to_string() == word;
    if is_whole {
        return Ok(view);
    }
    Err(ApiError::new(
        Code::NodeNotFound,
        format!("there is no node `{word}`, and the beginning of an id changes none"),
    )
    .hint(format!("`{id}` begins so: name it by its whole id")))
}

/// Finds a node by id, unique prefix of it, name, or fingerprint. One that was revoked is found
/// too, where no other is meant.
pub(super) fn find(desk: &ApiState, word: &str) -> ApiResult<NodeView> {
    match desk.roster().find(word) {
        Ok(view) => Ok(view),
        Err(RouteError::NotFound { .. } | RouteError::Revoked { .. }) => find_other(desk, word),
        Err(error) => Err(error.into()),
    }
}

fn find_other(desk: &ApiState, word: &str) -> ApiResult<NodeView> {
    let mut nodes = desk.roster().list();
    nodes.retain(|view| {
        let record = &view.record;
        let revoked = record.revoked_at.is_some()
            && (record.node_id.as_str().starts_with(word) || record.name.as_str() == word);
        (revoked && !word.is_empty()) || Fingerprint::of(&record.node_key).to_string() == word
    });
    if nodes.len() > 1 {
        let candidates = nodes.iter().map(|view| Candidate {
            id: Fingerprint::of(&view.record.node_key).to_string(),
            name: view.record.name.to_string(),
        });
        let detail = format!("`{word}` could mean {} revoked nodes", nodes.len());
        return Err(ApiError::new(Code::NodeAmbiguous, detail)
            .hint("name one by its fingerprint")
            .candidates(candidates.collect()));
    }
    nodes.pop().ok_or_else(|| not_found(word))
}

fn not_found(word: &str) -> ApiError {
    ApiError::new(Code::NodeNotFound, format!("there is no node `{word}`"))
        .hint("`moltis node list --all` shows every node")
}
