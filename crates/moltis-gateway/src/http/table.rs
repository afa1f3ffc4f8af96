//! Every route there is: one row each, with who may take it and what it promises.
//!
//! The router is made of these rows, and so is the OpenAPI document, so that what is written down is
//! what is served. What a route takes is read off its handler's own arguments; what it answers, and
//! with which codes it can refuse beyond those that every route of its kind has, stands in its row.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::JsonSchema;

use super::openapi::inputs::{Arguments, Inputs};
use super::openapi::{self, Answer};
use super::{
    ApiState, doctor, events, gateway, health, nodes, output, pairing, run_events, runs, tokens,
};
use crate::api::doctor::Finding;
use crate::api::events::{LAST_EVENT_ID_HEADER, MEDIA_TYPE as EVENTS};
use crate::api::fleet::{FleetResults, FleetRuns};
use crate::api::gateway::Gateway;
use crate::api::nodes::{Node, NodeDetail};
use crate::api::pairing::{PairingCommand, PairingRequest, PairingStatus};
use crate::api::problem::Code;
use crate::api::runs::{Run, RunResult, StdinAccepted};
use crate::api::tokens::{NewToken, Token};
use crate::api::{
    Health, IDEMPOTENCY_KEY_HEADER, List, NEXT_OFFSET_HEADER, PREFIX, RUN_ID_HEADER,
    events as told, follow,
};
use crate::principal::Action;

/// One row: a way in, who may take it, and what it promises.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) action: Action,
    pub(super) handler: MethodRouter<ApiState>,
    pub(super) promise: Promise,
}

/// What the OpenAPI document says of a route beside its path, method and scope.
#[derive(Debug, Default)]
pub(super) struct Promise {
    /// A word for programs that are generated from the document; it never changes.
    pub(super) id: &'static str,
    /// One line for people.
    pub(super) summary: &'static str,
    /// What its handler takes.
    pub(super) inputs: Inputs,
    /// Headers that its handler reads by itself.
    pub(super) headers: Vec<HeaderRead>,
    /// Its answers when all is well.
    pub(super) answers: Vec<Answer>,
    /// Its own ways to refuse.
    pub(super) codes: &'static [Code],
}

/// A header that a handler reads by itself.
#[derive(Debug)]
pub(super) struct HeaderRead {
    pub(super) name: &'static str,
    /// What its value has to look like; `None` where nothing is refused.
    pub(super) pattern: Option<&'static str>,
    pub(super) words: &'static str,
}

/// Every route there is.
#[rustfmt::skip]
pub(super) fn table() -> Vec<Route> {
    use Action::{AdminNodes, AdminTokens, Diagnose, FollowEvents, Public, ReadNodes, ReadRuns, WriteRuns};
    use Code as C;
    use Method as M;
    vec![
        Route::new(M::GET, "/", Public, health::front_page)
            .is("front_page", "What is served here, in words.")
            .gives_media(200, "text/plain", "The words."),
        Route::new(M::GET, "/healthz", Public, health::healthz)
            .is("healthz", "Whether the process answers. It does so by every host and on every address.")
            .gives::<Health>(200, "It does."),
        Route::new(M::GET, "/readyz", Public, health::readyz)
            .is("readyz", "Whether the gateway can do its work.")
            .gives::<Health>(200, "It can.")
            .gives::<Health>(503, "It cannot, and `problem` says why."),

        Route::new(M::GET, "/api/v1/openapi.json", Public, openapi::show)
            .is("openapi", "This document.")
            .gives_media(200, "application/json", "An OpenAPI 3.1 document."),
        Route::new(M::GET, "/api/v1/gateway", ReadNodes, gateway::show)
            .is("show_gateway", "What this gateway is and where it listens.")
            .gives::<Gateway>(200, "The gateway."),

        Route::new(M::GET, "/api/v1/nodes", ReadNodes, nodes::list)
            .is("list_nodes", "Nodes, by name and id, a page at a time.")
            .gives::<List<Node>>(200, "The page."),
        Route::new(M::GET, "/api/v1/nodes/{id}", ReadNodes, nodes::show)
            .is("show_node", "Everything that is known of one node.")
            .gives::<NodeDetail>(200, "The node.")
            .or(&[C::NodeNotFound, C::NodeAmbiguous]),
        Route::new(M::PATCH, "/api/v1/nodes/{id}", AdminNodes, nodes::patch)
            .is("change_node", "Rename or label a node.")
            .gives::<NodeDetail>(200, "The node as it is now.")
            .or(&[C::NodeNotFound, C::NodeAmbiguous]),
        Route::new(M::DELETE, "/api/v1/nodes/{id}", AdminNodes, nodes::forget)
            .is("forget_node", "Forget a node that is revoked or offline. Its key may then ask to pair again.")
            .gives_nothing(204, "It is forgotten.")
            .or(&[C::NodeNotFound, C::NodeAmbiguous, C::NodeOnline]),
        Route::new(M::POST, "/api/v1/nodes/{id}/revoke", AdminNodes, nodes::revoke)
            .is("revoke_node", "Refuse a node's key for good, and close its connection. Repeating it changes nothing.")
            .gives::<NodeDetail>(200, "The node, revoked.")
            .or(&[C::NodeNotFound, C::NodeAmbiguous]),

        Route::new(M::GET, "/api/v1/pairing", AdminNodes, pairing::status)
            .is("show_pairing", "Whether new nodes may ask to pair, and for how long.")
            .gives::<PairingStatus>(200, "The window."),
        Route::new(M::PUT, "/api/v1/pairing", AdminNodes, pairing::set)
            .is("set_pairing", "Open or close the window in which new nodes may ask to pair.")
            .gives::<PairingStatus>(200, "The window as it is now."),
        Route::new(M::GET, "/api/v1/pairing/command", AdminNodes, pairing::command)
            .is("show_pairing_command", "The line to type on a machine that joins.")
            .gives::<PairingCommand>(200, "The line.")
            .or(&[C::NotFound]),
        Route::new(M::GET, "/api/v1/pairing/requests", AdminNodes, pairing::requests)
            .is("list_pairing_requests", "Requests to pair that wait for a person.")
            .gives::<List<PairingRequest>>(200, "The requests."),
        Route::new(M::POST, "/api/v1/pairing/requests/{id}/approve", AdminNodes, pairing::approve)
            .is("approve_pairing_request", "Take a machine in. What the person saw comes with it, and has to be what is asked for now.")
            .gives::<NodeDetail>(200, "The new node.")
            .or(&[C::NotFound, C::Ambiguous, C::AlreadyAnswered, C::RequestExpired, C::RequestChanged, C::NameInUse, C::KeyInUse, C::NodeRevoked]),
        Route::new(M::POST, "/api/v1/pairing/requests/{id}/reject", AdminNodes, pairing::reject)
            .is("reject_pairing_request", "Turn a machine away.")
            .gives_nothing(204, "It is turned away.")
            .or(&[C::NotFound, C::Ambiguous, C::AlreadyAnswered, C::RequestExpired]),

        Route::new(M::GET, "/api/v1/runs", ReadRuns, runs::list)
            .is("list_runs", "Runs, the newest first, a page at a time.")
            .gives::<List<Run>>(200, "The page.")
            .or(&[C::NodeNotFound, C::NodeAmbiguous]),
        Route::new(M::POST, "/api/v1/runs", WriteRuns, runs::start)
            .is("start_run", "Run a command. On the gateway's own machine (`local`) this takes the scope `admin`.")
            .reads(IDEMPOTENCY_KEY_HEADER, Some("^[!-~]{1,128}$"), "1 to 128 visible ASCII characters. The same request under the same key is one run, however often it is sent.")
            .gives::<Run>(201, "The run, which has begun.")
            .gives::<Run>(200, "The run, which this key had started before.")
            .gives::<RunResult>(200, "With `wait=true`: how it ended, and what it printed.")
            .gives::<FleetRuns>(201, "With `select`: the runs, which have begun, and who was skipped.")
            .gives::<FleetRuns>(200, "With `select`: none of the runs is new.")
            .gives::<FleetResults>(200, "With `select` and `wait=true`: how all of them ended, and what they printed.")
            .gives::<List<Node>>(200, "With `select` and `dry_run`, which takes the scope `nodes:read` too: the nodes that are meant, at most 1000. `next` is a `cursor` of `GET nodes` with the same `select`.")
            .gives_media(200, follow::MEDIA_TYPE, "With `follow=true`: what `GET runs/{id}/follow` gives, from the beginning.")
            .tells(RUN_ID_HEADER, "With `follow=true`: the id of the run.")
            .or(&[C::NodeNotFound, C::NodeAmbiguous, C::NotFound, C::NodeOffline, C::NodeRevoked, C::IdempotencyConflict, C::EnvNotAllowed, C::TimeoutTooLong, C::TooLarge]),
        Route::new(M::GET, "/api/v1/runs/{id}", ReadRuns, runs::show)
            .is("show_run", "One run.")
            .gives::<Run>(200, "The run.")
            .or(&[C::NotFound, C::Ambiguous]),
        Route::new(M::GET, "/api/v1/runs/{id}/output", ReadRuns, output::output)
            .is("read_output", "The exact bytes of one output. A read ends before a gap; one that begins in a gap is answered `output_gap` with its bounds.")
            .reads("range", None, "`bytes=0-99`, `bytes=100-` or `bytes=-100` (RFC 9110, 14). Not with `offset` or `follow`; several ranges are answered whole.")
            .gives_media(200, "application/octet-stream", "The bytes. With `follow=true` until the stream is complete, a gap begins, or the gateway stops, which cuts the connection.")
            .tells(NEXT_OFFSET_HEADER, "The offset behind the last byte; not with `follow=true`.")
            .gives_media(206, "application/octet-stream", "The bytes of the range.")
            .tells(NEXT_OFFSET_HEADER, "The offset behind the last byte; not with `follow=true`.")
            .or(&[C::NotFound, C::Ambiguous, C::OutputGap, C::RangeNotSatisfiable]),
        Route::new(M::GET, "/api/v1/runs/{id}/follow", ReadRuns, runs::follow)
            .is("follow_run", "Everything that happens to a run, as it happens, until it is over.")
            .gives_media(200, follow::MEDIA_TYPE, follow::IN_WORDS)
            .or(&[C::NotFound, C::Ambiguous]),
        Route::new(M::GET, "/api/v1/runs/{id}/events", ReadRuns, run_events::follow)
            .is("follow_run_events", "What happens to a run, as server-sent events, until it is over.")
            .reads(LAST_EVENT_ID_HEADER, None, "The id of the last event that the reader has: it goes on at the byte behind it, at whatever process.")
            .gives_media(200, EVENTS, told::RUN_IN_WORDS)
            .gives_nothing(204, "The reader has the last event of a run that is over.")
            .or(&[C::NotFound, C::Ambiguous]),
        Route::new(M::POST, "/api/v1/runs/{id}/stdin", WriteRuns, runs::stdin)
            .is("write_stdin", "Send bytes to a command's stdin. They are placed by their offset, so that a request can be repeated. For a run on `local` this takes the scope `admin`.")
            .gives::<StdinAccepted>(200, "Where to go on.")
            .or(&[C::NotFound, C::Ambiguous, C::Invalid, C::NodeOffline, C::RunEnded]),
        Route::new(M::POST, "/api/v1/runs/{id}/resize", WriteRuns, runs::resize)
            .is("resize_terminal", "Tell a command that its terminal has another size.")
            .gives_nothing(204, "It will be told.")
            .or(&[C::NotFound, C::Ambiguous, C::RunEnded]),
        Route::new(M::POST, "/api/v1/runs/{id}/signal", WriteRuns, runs::send_signal)
            .is("send_signal", "Send a signal to a command's process group.")
            .gives_nothing(204, "It will be sent.")
            .or(&[C::NotFound, C::Ambiguous, C::RunEnded, C::TooMany]),
        Route::new(M::POST, "/api/v1/runs/{id}/cancel", WriteRuns, runs::cancel)
            .is("cancel_run", "End a run: SIGTERM to its process group, and SIGKILL after a grace. Repeating it changes nothing.")
            .gives::<Run>(202, "The run, which will end.")
            .or(&[C::NotFound, C::Ambiguous, C::RunEnded]),
        Route::new(M::POST, "/api/v1/runs/{id}/claim", WriteRuns, runs::claim)
            .is("claim_run", "Take a run that a node brought and nobody asked for (`unclaimed`).")
            .gives::<Run>(200, "The run.")
            .or(&[C::NotFound, C::Ambiguous, C::AlreadyAnswered, C::RunEnded]),

        Route::new(M::GET, "/api/v1/events", FollowEvents, events::follow)
            .is("follow_events", "What happens, as server-sent events: the part of it that the asker may see.")
            .reads(LAST_EVENT_ID_HEADER, None, "The id of the last event that the reader has: it goes on behind it, or is told by `reset` that it cannot.")
            .gives_media(200, EVENTS, told::IN_WORDS),

        Route::new(M::GET, "/api/v1/tokens", AdminTokens, tokens::list)
            .is("list_tokens", "API tokens without their secrets, the oldest first, a page at a time.")
            .gives::<List<Token>>(200, "The page."),
        Route::new(M::POST, "/api/v1/tokens", AdminTokens, tokens::create)
            .is("create_token", "Make a token with no more scopes than the asker has.")
            .gives::<NewToken>(201, "The token, with the secret that is never shown again.")
            .or(&[C::NameInUse]),
        Route::new(M::DELETE, "/api/v1/tokens/{id}", AdminTokens, tokens::revoke)
            .is("revoke_token", "End a token. It is refused from this moment on.")
            .gives_nothing(204, "It is revoked.")
            .or(&[C::NotFound]),

        Route::new(M::GET, "/api/v1/doctor", Diagnose, doctor::findings)
            .is("diagnose", "What the gateway finds when it looks at itself.")
            .gives::<List<Finding>>(200, "Every check, also those that are well."),
    ]
    .into_iter()
    .chain(metrics())
    .collect()
}

/// The row that the feature `metrics` adds.
#[cfg(feature = "metrics")]
#[rustfmt::skip]
fn metrics() -> Vec<Route> {
    vec![
        Route::new(Method::GET, "/metrics", Action::ReadMetrics, super::metrics::scrape)
            .is("scrape_metrics", "What is counted, for Prometheus and whoever reads its format.")
            .gives_media(200, crate::metrics::scrape::MEDIA_TYPE, "OpenMetrics text. Its names stand in the operating guide."),
    ]
}

#[cfg(not(feature = "metrics"))]
fn metrics() -> Vec<Route> {
    Vec::new()
}

/// Returns the method and the path of an operation, which has to be one of the table.
pub(crate) fn way(operation: &'static str) -> (Method, &'static str) {
    static WAYS: LazyLock<HashMap<&'static str, (Method, &'static str)>> = LazyLock::new(|| {
        let rows = table().into_iter();
        rows.map(|row| (row.promise.id, (row.method, row.path)))
            .collect()
    });
    let way = WAYS.get(operation).cloned();
    way.expect("a test calls every operation, and each has a row")
}

/// Every operation, and what it does as far as rights go.
#[cfg(test)]
pub(crate) fn operations() -> Vec<(&'static str, Action)> {
    let rows = table().into_iter();
    rows.map(|row| (row.promise.id, row.action)).collect()
}

impl Route {
    /// A row without its promise.
    fn new<H, T>(method: Method, path: &'static str, action: Action, handler: H) -> Self
    where
        H: Handler<T, ApiState>,
        T: Arguments + 'static,
    {
        let filter = MethodFilter::try_from(method.clone());
        let filter = filter.expect("the table names methods that a router can tell apart");
        Self {
            method,
            path,
            action,
            handler: on(filter, handler),
            promise: Promise {
                inputs: T::inputs(),
                ..Promise::default()
            },
        }
    }

    /// Returns whether a query is refused. A check of health may be asked with one by a prober that
    /// wants to get past a cache.
    pub(super) fn refuses_query(&self) -> bool {
        self.path.starts_with(PREFIX) && self.promise.inputs.query.is_none()
    }

    /// Names it, for programs and for people.
    fn is(mut self, id: &'static str, summary: &'static str) -> Self {
        (self.promise.id, self.promise.summary) = (id, summary);
        self
    }

    /// It reads this header of a request, which has to look like the pattern where there is one.
    fn reads(
        mut self,
        name: &'static str,
        pattern: Option<&'static str>,
        words: &'static str,
    ) -> Self {
        self.promise.headers.push(HeaderRead {
            name,
            pattern,
            words,
        });
        self
    }

    /// It may answer with JSON of this type.
    fn gives<T: JsonSchema>(self, status: u16, words: &'static str) -> Self {
        self.answer(Answer::json::<T>(status, words))
    }

    /// It may answer with a body of another kind.
    fn gives_media(self, status: u16, media: &'static str, words: &'static str) -> Self {
        self.answer(Answer::media(status, media, words))
    }

    /// It may answer without a body.
    fn gives_nothing(self, status: u16, words: &'static str) -> Self {
        self.answer(Answer::empty(status, words))
    }

    /// The answer before this has a header of its own.
    fn tells(mut self, header: &'static str, words: &'static str) -> Self {
        if let Some(answer) = self.promise.answers.last_mut() {
            answer.headers.push((header, words));
        }
        self
    }

    /// It may refuse with these codes, beside those that every route of its kind has.
    fn or(mut self, codes: &'static [Code]) -> Self {
        self.promise.codes = codes;
        self
    }

    fn answer(mut self, answer: Answer) -> Self {
        self.promise.answers.push(answer);
        self
    }
}
