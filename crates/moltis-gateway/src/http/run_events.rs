//! `GET runs/{id}/events`: what happens to one run, as server-sent events.
//!
//! The same [`Follow`] as behind the frames of [`super::follow`], written as text. The id of an
//! event is where both outputs stand behind it, so that a reader goes on at the byte, at this
//! process or a later one, and output comes whole and once. A slow reader slows itself alone: what
//! it has not read lies in the run's files.

mod position;

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use moltis_proto::run::Stream;

use self::position::Position;
use super::caller::Caller;
use super::convert::runs::gap;
use super::error::ApiResult;
use super::extract::{Asked, Id};
use super::streams::Place;
use super::{ApiState, sse};
use crate::api::events::{Output, ResetReason, RunEventsQuery};
use crate::exec::{Follow, RunEvent, RunHandle};
use crate::store::{RunRecord, RunStage};

/// Bytes of output in one event: 64 KiB of base64.
const PIECE_BYTES_MAX: usize = 48 * 1024;

/// `GET runs/{id}/events`
pub(super) async fn follow(
    State(desk): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Asked(query): Asked<RunEventsQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let id = desk.runs().find(&id).await?.record.id;
    let run = desk.runs().handle(id).await?;
    let last = sse::last_id(&headers, query.last_event_id);
    let start = Start::of(last.as_deref(), &run);
    if matches!(start, Start::Behind(Position { ended: true, .. })) {
        // Nothing will follow, and this is how a browser is told not to ask again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let place = desk.streams().admit(&caller.who)?;
    let reading = Reading::new(desk, run, &start, place);
    let pieces = stream::unfold(reading, async |mut reading| {
        let piece = reading.next().await?;
        Some((Ok::<_, Infallible>(piece), reading))
    });
    Ok(sse::answer(Body::from_stream(pieces)))
}

/// Returns whether a position is one that a run has had, or will have. The process before this one
/// may have told of bytes that are still to come again, so only an end sets a bound.
fn is_of(at: &Position, run: &RunHandle) -> bool {
    let record = run.record();
    if record.stage != RunStage::Ended {
        return !at.ended;
    }
    let within = |stream: Stream| {
        let end = run.output().end(stream).max(record.totals.of(stream));
        at.offsets[stream.index()] <= end
    };
    Stream::BOTH.into_iter().all(within)
}

/// Returns whether the run's process has lived, as far as an event tells.
fn is_written(event: &RunEvent) -> bool {
    matches!(event, RunEvent::Output { .. } | RunEvent::Gap { .. })
}

/// Where a reader's last event leaves it.
enum Start {
    /// It has none.
    Beginning,
    /// Here.
    Behind(Position),
    /// It has one that is none of this run's, and begins at the beginning.
    Lost,
}

impl Start {
    fn of(last: Option<&str>, run: &RunHandle) -> Self {
        let Some(last) = last else {
            return Self::Beginning;
        };
        let at = last.parse().ok().filter(|at| is_of(at, run));
        at.map_or(Self::Lost, Self::Behind)
    }
}

/// One reader's place in a run.
struct Reading {
    desk: ApiState,
    run: RunHandle,
    events: Follow,
    /// Where both outputs stand behind what was written last.
    at: Position,
    /// What is said before anything else.
    opening: Option<Bytes>,
    /// The reader's last id is none of this run's, which it is told then.
    lost: bool,
    /// Whether the reader knows that the run has begun.
    told_begun: bool,
    /// What has come and is not written yet, or not all of it.
    event: Option<RunEvent>,
    over: bool,
    _place: Place,
}

impl Reading {
    fn new(desk: ApiState, run: RunHandle, start: &Start, place: Place) -> Self {
        let at = match start {
            Start::Behind(at) => *at,
            Start::Beginning | Start::Lost => Position::default(),
        };
        Self {
            desk,
            events: run.follow(at.offsets[0], at.offsets[1]),
            run,
            opening: Some(sse::opening(None)),
            lost: matches!(start, Start::Lost),
            // Every id stands behind that event.
            told_begun: matches!(start, Start::Behind(_)),
            at,
            event: None,
            over: false,
            _place: place,
        }
    }

    /// Returns the next piece of the body; `None` behind the end, and when the gateway stops.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        if let Some(opening) = self.opening.take() {
            return Some(opening);
        }
        if std::mem::take(&mut self.lost) {
            return Some(sse::reset(self.at, ResetReason::UnknownId));
        }
        let stop = self.desk.stop().clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            piece = self.piece() => piece,
        }
    }

    async fn piece(&mut self) -> Option<Bytes> {
        if !self.told_begun {
            if self.event.is_none() {
                tokio::select! {
                    biased;
                    _record = self.run.begun() => {}
                    event = self.events.next() => self.event = Some(event?),
                }
            }
            let record = self.run.record();
            if record.started_at.is_some() || self.event.as_ref().is_some_and(is_written) {
                self.told_begun = true;
                return Some(self.tell("started", record));
            }
        }
        let event = match self.event.take() {
            Some(event) => event,
            None => self.events.next().await?,
        };
        Some(self.text(event))
    }

    fn text(&mut self, event: RunEvent) -> Bytes {
        match event {
            RunEvent::Output {
                stream,
                offset,
                mut bytes,
            } => {
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
                let next = offset + piece.len() as u64;
                self.at.offsets[stream.index()] = next;
                if !bytes.is_empty() {
                    self.event = Some(RunEvent::Output {
                        stream,
                        offset: next,
                        bytes,
                    });
                }
                let output = Output {
                    stream: stream.into(),
                    offset,
                    data: STANDARD.encode(piece),
                };
                sse::event(self.at, "output", &output)
            }
            RunEvent::Gap {
                stream,
                from,
                to,
                reason,
            } => {
                self.at.offsets[stream.index()] = to;
                sse::event(self.at, "gap", &gap(stream, from, to, reason))
            }
            RunEvent::Ended(record) => {
                self.over = true;
                self.at.ended = true;
                self.tell("ended", record)
            }
            RunEvent::KeepAlive => sse::keep_alive(None),
        }
    }

    fn tell(&self, name: &str, record: Arc<RunRecord>) -> Bytes {
        let status = self.desk.runs().status_of(record);
        sse::event(self.at, name, &self.desk.run(status))
    }
}
