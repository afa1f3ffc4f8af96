//! `runs`: start one, see them, and what can be said to one that goes on.
//!
//! Output has its own files: [`super::output`] for bytes, [`super::follow`] for all that happens,
//! [`super::result`] for a run that somebody waits for. One command on many nodes is in [`fleet`].

mod fleet;
pub(super) mod request;
mod signal;

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use moltis_proto::RunId;
use moltis_proto::run::TtySize;

use super::ApiState;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{Asked, Id, Json, Raw, check_beginning, check_offset};
use super::streams::held;
use super::{follow, nodes, page, result};
use crate::api::runs::{
    Cancel, FollowQuery, ListRuns, PAGE_MAX, RESULT_PART_BYTES_MAX, Resize, Run, SendSignal,
    StartQuery, StartRun, StdinAccepted, StdinQuery,
};
use crate::api::{Empty, List, RUN_ID_HEADER};
use crate::exec::RunHandle;
use crate::principal::Action;
use crate::store::{RunFilter, Target};

/// Runs in a page, where the query does not say.
const PAGE: u32 = 50;

/// `POST runs`
pub(super) async fn start(
    State(desk): State<ApiState>,
    caller: Caller,
    Asked(query): Asked<StartQuery>,
    headers: HeaderMap,
    Json(asked): Json<StartRun>,
) -> ApiResult<Response> {
    if let Some(select) = &asked.select {
        let select = select.parse()?;
        return fleet::start(&desk, &caller, select, asked, query, &headers).await;
    }
    fleet::refuse_its_fields(&asked)?;
    let request = request::read(asked, query, &headers)?;
    if desk.runs().is_here(request.target.as_deref()) {
        caller.authorize(Action::RunHere)?;
    }
    // Whoever could not read it starts nothing.
    let place = if query.follow {
        desk.outputs_read().admit_but_the_operator(&caller.who)?
    } else {
        None
    };
    let run = desk.runs().start(request, caller.asker()).await?;
    if query.follow {
        return Ok(held(followed(&desk, &run), place));
    }
    if query.wait {
        return Ok(
            axum::Json(result::wait(&desk, run, RESULT_PART_BYTES_MAX).await?).into_response(),
        );
    }
    let status = if run.existed() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let run = desk.run(desk.runs().status_of(run.record()));
    Ok((status, axum::Json(run)).into_response())
}

fn followed(desk: &ApiState, run: &RunHandle) -> Response {
    let mut response = follow::answer(desk, run.follow(0, 0));
    let id = HeaderValue::try_from(run.id().to_string());
    let id = id.expect("an id is made of hexadecimal digits");
    response.headers_mut().insert(RUN_ID_HEADER, id);
    response
}

/// `GET runs`
pub(super) async fn list(
    State(desk): State<ApiState>,
    Asked(query): Asked<ListRuns>,
) -> ApiResult<axum::Json<List<Run>>> {
    let limit = page::limit(query.limit, PAGE, PAGE_MAX)?;
    let before = query.cursor.as_deref().map(cursor).transpose()?;
    let filter = RunFilter {
        target: query
            .node
            .as_deref()
            .map(|word| target(&desk, word))
            .transpose()?,
        stage: query.state.map(Into::into),
        before,
    };
    let (page, next) = desk.runs().list(&filter, limit).await?;
    Ok(axum::Json(List {
        items: page.into_iter().map(|status| desk.run(status)).collect(),
        next: next.map(|seq| seq.to_string()),
    }))
}

/// `GET runs/{id}`
pub(super) async fn show(State(desk): State<ApiState>, Id(id): Id) -> ApiResult<axum::Json<Run>> {
    let status = desk.runs().find(&id).await?;
    Ok(axum::Json(desk.run(status)))
}

/// `POST runs/{id}/cancel`
pub(super) async fn cancel(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Json(asked): Json<Cancel>,
) -> ApiResult<(StatusCode, axum::Json<Run>)> {
    let run = touched(&desk, &caller, &id).await?;
    let grace = asked.grace_seconds.map(Duration::from_secs);
    let status = desk.runs().cancel(run, grace, caller.asker()).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(desk.run(status))))
}

/// `POST runs/{id}/claim`
pub(super) async fn claim(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Json(Empty {}): Json<Empty>,
) -> ApiResult<axum::Json<Run>> {
    let run = touched(&desk, &caller, &id).await?;
    let status = desk.runs().claim(run, caller.asker()).await?;
    Ok(axum::Json(desk.run(status)))
}

/// `POST runs/{id}/stdin`
pub(super) async fn stdin(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Asked(query): Asked<StdinQuery>,
    Raw(bytes): Raw,
) -> ApiResult<axum::Json<StdinAccepted>> {
    check_offset("offset", query.offset)?;
    let run = touched(&desk, &caller, &id).await?;
    let accepted = desk
        .runs()
        .stdin(run, query.offset, bytes, query.eof)
        .await?;
    Ok(axum::Json(StdinAccepted { accepted }))
}

/// `POST runs/{id}/resize`
pub(super) async fn resize(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Json(Resize { cols, rows }): Json<Resize>,
) -> ApiResult<StatusCode> {
    let run = touched(&desk, &caller, &id).await?;
    desk.runs().resize(run, TtySize { cols, rows }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST runs/{id}/signal`
pub(super) async fn send_signal(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Json(asked): Json<SendSignal>,
) -> ApiResult<StatusCode> {
    let number = signal::number(&asked.signal).ok_or_else(|| {
        let names = signal::names();
        ApiError::invalid(format!("`signal`: `{}` is none of {names}", asked.signal))
    })?;
    let run = touched(&desk, &caller, &id).await?;
    desk.runs().signal(run, number).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Finds a run for whoever wants to do something to it, by more than a few digits: on `local`, who
/// may start one there.
async fn touched(desk: &ApiState, caller: &Caller, id: &str) -> ApiResult<RunId> {
    check_beginning("run", id)?;
    let run = desk.runs().find(id).await?.record;
    if run.target == Target::Local {
        caller.authorize(Action::RunHere)?;
    }
    Ok(run.id)
}

/// `GET runs/{id}/follow`
pub(super) async fn follow(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Asked(from): Asked<FollowQuery>,
) -> ApiResult<Response> {
    let place = desk.outputs_read().admit_but_the_operator(&caller.who)?;
    check_offset("stdout", from.stdout)?;
    check_offset("stderr", from.stderr)?;
    let status = desk.runs().find(&id).await?;
    let events = desk
        .runs()
        .follow(status.record.id, from.stdout, from.stderr)
        .await?;
    Ok(held(follow::answer(&desk, events), place))
}

fn cursor(text: &str) -> ApiResult<u64> {
    text.parse().map_err(|_| page::no_cursor(text))
}

/// Returns the place that a filter names. A revoked node has runs too.
fn target(desk: &ApiState, word: &str) -> ApiResult<Target> {
    if word == "local" {
        return Ok(Target::Local);
    }
    if let Some(label) = word.strip_prefix("ssh:") {
        return Ok(Target::Ssh(label.to_owned()));
    }
    let word = word.strip_prefix("node:").unwrap_or(word);
    Ok(Target::Node(nodes::find(desk, word)?.record.device_id))
}
