//! `POST runs` with `select`: one command on every node that a selector means.

use std::num::NonZeroUsize;

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};

use super::request;
use crate::api::fleet::{FLEET_OUTPUT_BYTES_MAX, FleetResults, FleetRuns};
use crate::api::nodes::PAGE_MAX;
use crate::api::runs::{RESULT_PART_BYTES_MAX, StartQuery, StartRun};
use crate::exec::{Fleet, FleetError, FleetRequest, OnFailure, Pace, Selector};
use crate::http::ApiState;
use crate::http::caller::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::{nodes, result};
use crate::principal::Action;

/// Answers a request that names its nodes by a selector.
pub(super) async fn start(
    desk: &ApiState,
    caller: &Caller,
    select: Selector,
    asked: StartRun,
    query: StartQuery,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    check(&asked, query)?;
    if asked.dry_run {
        // It shows what the list of nodes shows.
        caller.authorize(Action::ReadNodes)?;
        return dry_run(desk, select);
    }
    let pace = pace(&asked)?;
    let run = request::read(asked, query, headers)?;
    let has_key = run.idempotency_key.is_some();
    let request = FleetRequest { select, run, pace };
    let fleet = desk.runs().start_fleet(request, caller.asker()).await?;
    if query.wait {
        return Ok(axum::Json(results(desk, fleet, has_key).await?).into_response());
    }
    let status = if fleet.runs.iter().any(|run| !run.existed) {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let runs = fleet.runs.iter();
    let answer = FleetRuns {
        items: runs
            .map(|run| desk.run(desk.runs().status_of(run.record())))
            .collect(),
        skipped: fleet.skipped.into_iter().map(Into::into).collect(),
    };
    Ok((status, axum::Json(answer)).into_response())
}

/// Refuses what only a selector gives a meaning to.
pub(super) fn refuse_its_fields(asked: &StartRun) -> ApiResult<()> {
    let field = if asked.parallel.is_some() {
        "parallel"
    } else if asked.fail_fast {
        "fail_fast"
    } else if asked.dry_run {
        "dry_run"
    } else {
        return Ok(());
    };
    Err(ApiError::invalid(format!(
        "`{field}` is for many nodes: it goes with `select`"
    )))
}

fn check(asked: &StartRun, query: StartQuery) -> ApiResult<()> {
    if asked.node.is_some() {
        return Err(ApiError::invalid(
            "`node` and `select` both say where to run: send one of them",
        ));
    }
    let of_one = if asked.tty.is_some() {
        "`tty` is a terminal of one run"
    } else if asked.stdin_open {
        "`stdin_open` is the stdin of one run"
    } else if query.follow {
        "`follow` is the output of one run"
    } else {
        return Ok(());
    };
    Err(
        ApiError::invalid(format!("{of_one}: it does not go with `select`"))
            .hint("send `stdin` or `stdin_base64` for all of them, and follow each run by its id"),
    )
}

fn pace(asked: &StartRun) -> ApiResult<Pace> {
    let on_failure = if asked.fail_fast {
        OnFailure::StartNoMore
    } else {
        OnFailure::GoOn
    };
    let parallel = match asked.parallel {
        Some(parallel) => usize::try_from(parallel).unwrap_or(usize::MAX),
        // To start no more after a failure, some must be left.
        None if asked.fail_fast => 1,
        None => return Ok(Pace::AllAtOnce),
    };
    let parallel = NonZeroUsize::new(parallel)
        .ok_or_else(|| ApiError::invalid("`parallel`: 0 nodes at a time would never end"))?;
    Ok(Pace::AtMost {
        parallel,
        on_failure,
    })
}

fn dry_run(desk: &ApiState, select: Selector) -> ApiResult<Response> {
    let meant = desk.roster().meant_by(&select);
    if meant.is_empty() {
        return Err(FleetError::NoMatch { select }.into());
    }
    // The first page of `GET nodes` with this selector, where the next one is.
    Ok(nodes::page(desk, meant, PAGE_MAX, None)?.into_response())
}

async fn results(desk: &ApiState, fleet: Fleet, has_key: bool) -> ApiResult<FleetResults> {
    let ids: Vec<_> = fleet.runs.iter().map(|run| run.id).collect();
    let share = FLEET_OUTPUT_BYTES_MAX / fleet.runs.len().max(1) as u64;
    // Two ends of two streams.
    let part = (share / 4).min(RESULT_PART_BYTES_MAX);
    let mut items = Vec::with_capacity(fleet.runs.len());
    for run in fleet.runs {
        let run = desk.runs().handle(run.id).await?;
        match result::wait(desk, run, part).await {
            Ok(result) => items.push(result),
            // It names one run, and the others go on as well.
            Err(_) if desk.stop().is_cancelled() => return Err(result::all_stopped(&ids, has_key)),
            Err(error) => return Err(error),
        }
    }
    Ok(FleetResults {
        items,
        skipped: fleet.skipped.into_iter().map(Into::into).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &str) -> StartRun {
        serde_json::from_str(body).unwrap()
    }

    fn said(result: ApiResult<impl std::fmt::Debug>) -> String {
        result.unwrap_err().problem(String::new()).detail
    }

    #[test]
    fn what_belongs_to_one_run_does_not_go_with_a_selector() {
        let plain = StartQuery::default();
        for (body, words) in [
            (r#"{"select":"all","node":"box"}"#, "`node` and `select`"),
            (r#"{"select":"all","stdin_open":true}"#, "`stdin_open`"),
            (r#"{"select":"all","tty":{"cols":80,"rows":24}}"#, "`tty`"),
        ] {
            assert!(said(check(&asked(body), plain)).contains(words), "{body}");
        }
        let follow = StartQuery {
            follow: true,
            ..plain
        };
        let words = said(check(&asked(r#"{"select":"all"}"#), follow));
        assert!(words.contains("`follow`"), "{words}");
    }

    #[test]
    fn what_belongs_to_many_does_not_go_without_a_selector() {
        for (body, field) in [
            (r#"{"parallel":1}"#, "parallel"),
            (r#"{"fail_fast":true}"#, "fail_fast"),
            (r#"{"dry_run":true}"#, "dry_run"),
        ] {
            let words = said(refuse_its_fields(&asked(body)));
            assert!(words.starts_with(&format!("`{field}`")), "{words}");
        }
        refuse_its_fields(&asked("{}")).unwrap();
    }

    #[test]
    fn to_fail_fast_is_to_go_one_by_one_where_nobody_says_how_many() {
        let at_most = |parallel, on_failure| Pace::AtMost {
            parallel: NonZeroUsize::new(parallel).unwrap(),
            on_failure,
        };
        let pace = |body| pace(&asked(body));
        assert_eq!(pace("{}").unwrap(), Pace::AllAtOnce);
        let one = at_most(1, OnFailure::StartNoMore);
        assert_eq!(pace(r#"{"fail_fast":true}"#).unwrap(), one);
        let some = at_most(7, OnFailure::GoOn);
        assert_eq!(pace(r#"{"parallel":7}"#).unwrap(), some);
        assert!(said(pace(r#"{"parallel":0}"#)).contains("`parallel`"));
    }
}
