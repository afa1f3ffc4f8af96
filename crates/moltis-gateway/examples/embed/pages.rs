//! Pages of this program that work with the gateway by calls in-process.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{Html, IntoResponse, Response};
use axum::{Extension, Form};
use bytes::Bytes;
use futures_util::{StreamExt as _, future};
use moltis_gateway::api::follow::Frame;
use moltis_gateway::api::nodes::{ListNodes, NodeState};
use moltis_gateway::api::problem::Problem;
use moltis_gateway::api::runs::StartRun;
use moltis_gateway::{Cut, Principal, User};
use serde::Deserialize;

use crate::Portal;

/// What the form of the front page sends.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    node: String,
    command: String,
}

/// `GET /`: the machines, and a form to run something on one of them.
pub(crate) async fn front(
    State(portal): State<Portal>,
    Extension(user): Extension<User>,
) -> Response {
    let name = escaped(user.name());
    let api = portal.gateway.on_behalf_of(Principal::User(user));
    let query = ListNodes {
        state: Some(NodeState::Online),
        ..ListNodes::default()
    };
    let nodes = match api.list_nodes(&query).await {
        Ok(nodes) => nodes.items,
        Err(problem) => return refused(&problem),
    };
    let options = nodes.iter().map(|node| {
        let name = escaped(&node.name);
        format!("<option>{name}</option>")
    });
    let options = options.collect::<Vec<_>>().concat();
    Html(format!(
        "<!doctype html><title>Workshop</title><h1>Workshop of {name}</h1>\
         <form method=post action=/run><select name=node>{options}</select> \
         <input name=command> <button>Run</button></form>\
         <form method=post action=/logout><button>Log out</button></form>"
    ))
    .into_response()
}

/// `POST /run`: what the command prints, as it prints it, and last how it ended.
pub(crate) async fn run(
    State(portal): State<Portal>,
    Extension(user): Extension<User>,
    Form(wanted): Form<Wanted>,
) -> Response {
    let api = portal.gateway.on_behalf_of(Principal::User(user));
    let run = StartRun {
        node: Some(wanted.node),
        command: Some(wanted.command),
        ..StartRun::default()
    };
    match api.start_and_follow(&run, None).await {
        Ok(started) => {
            let text = started
                .frames
                .filter_map(|frame| future::ready(words(frame)));
            let body = Body::from_stream(text.map(Ok::<_, Infallible>));
            // What a command prints is text and nothing else, or it could be a page of this site.
            let headers = [
                (CONTENT_TYPE, "text/plain; charset=utf-8"),
                (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            (headers, body).into_response()
        }
        Err(problem) => refused(&problem),
    }
}

/// Returns what a reader sees of one thing that happened.
fn words(frame: Result<Frame, Cut>) -> Option<Bytes> {
    match frame {
        Ok(Frame::Output { bytes, .. }) => Some(bytes),
        Ok(Frame::Gap(gap)) => {
            let gone = gap.to - gap.from;
            Some(format!("\n… {gone} bytes are gone …\n").into())
        }
        Ok(Frame::Ended(run)) => {
            let code = run.exit_code.map(|code| format!(" with {code}"));
            let outcome = run.outcome.map(|outcome| format!("{outcome:?}"));
            let (outcome, code) = (outcome.unwrap_or_default(), code.unwrap_or_default());
            Some(format!("\n-- {outcome}{code} --\n").into())
        }
        Ok(Frame::KeepAlive) => None,
        Err(cut) => Some(format!("\n-- {cut} --\n").into()),
    }
}

fn refused(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY);
    (status, format!("{problem}\n")).into_response()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}
