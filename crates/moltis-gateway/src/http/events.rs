//! `GET events`: what happens, as it happens.
//!
//! A stream follows the ring of [`crate::events`] at the pace of its reader and takes the text of
//! each event from the [`press`]. It holds a number and one piece of text, so a reader that lags
//! costs nothing; one that lags for too long is told to read the present state again, and so is one
//! whose last id is not known here. Which events somebody may see follows from
//! [`authorize`](crate::principal::authorize), asked once for each kind.

mod about;
mod id;
mod press;

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;

use self::id::EventId;
pub(super) use self::press::Press;
use super::caller::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::Asked;
use super::{ApiState, sse, unread};
use crate::api::events::{EventKind, EventsQuery, ResetReason};
use crate::api::problem::Code;
use crate::events::{Event, Follower, Kinds, Missed};
use crate::principal::Action;

/// `GET events`
pub(super) async fn follow(
    State(desk): State<ApiState>,
    caller: Caller,
    Asked(query): Asked<EventsQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let kinds = match query.types.as_deref() {
        Some(types) => named(types, &caller)?,
        None => visible(&caller),
    };
    let place = desk.streams().admit(&caller.who)?;
    let last = sse::last_id(&headers, query.last_event_id);
    let reading = Reading::begin(desk.clone(), kinds, last.as_deref());
    let pieces = stream::unfold(reading, async |mut reading| {
        let piece = reading.next().await?;
        Some((Ok::<_, Infallible>(piece), reading))
    });
    let body = Body::from_stream(pieces);
    let body = unread::watched(body, place, caller.hangup, desk.tasks());
    Ok(sse::answer(body))
}

/// Makes the text of events until the gateway stops.
pub(crate) async fn print_events(desk: ApiState) {
    desk.press().print(&desk).await;
}

/// Returns what somebody does who sees an event of this kind.
fn action(kind: EventKind) -> Action {
    use EventKind as K;
    match kind {
        K::NodeOnline | K::NodeOffline | K::NodeChanged | K::NodeForgotten | K::Telemetry => {
            Action::ReadNodes
        }
        K::PairingChanged
        | K::PairingRequest
        | K::PairingDecided
        | K::KeyMismatch
        | K::KeyCloned => Action::AdminNodes,
        K::RunStarted | K::RunEnded => Action::ReadRuns,
    }
}

/// Returns all that a caller may see.
fn visible(caller: &Caller) -> Kinds {
    let all = EventKind::ALL.iter().copied();
    all.filter(|kind| caller.authorize(action(*kind)).is_ok())
        .collect()
}

/// Reads the kinds that a caller asks for. One that it may not see is refused, not left out.
fn named(types: &str, caller: &Caller) -> ApiResult<Kinds> {
    let named = types.split(',').map(|name| {
        let kind: EventKind = name.trim().parse().map_err(|error| {
            ApiError::new(Code::BadRequest, format!("`types`: {error}"))
                .hint("name events, separated by commas; without `types` all come that you may see")
        })?;
        caller.authorize(action(kind))?;
        Ok(kind)
    });
    named.collect()
}

/// One reader's place in what happens.
struct Reading {
    desk: ApiState,
    follower: Follower,
    /// What is said before anything else.
    opening: Option<Bytes>,
    /// Why the reader has to read everything again, which it is told then.
    missed: Option<ResetReason>,
    /// An event that waits for its text.
    in_hand: Option<(u64, Event)>,
}

impl Reading {
    fn begin(desk: ApiState, kinds: Kinds, last: Option<&str>) -> Self {
        let events = desk.events();
        let resumed = last.map(|last| {
            let id: EventId = last.parse().map_err(|_| ResetReason::UnknownId)?;
            if id.incarnation != desk.incarnation() {
                return Err(ResetReason::Restarted);
            }
            if id.number > events.newest() {
                return Err(ResetReason::UnknownId);
            }
            let resumed = events.resume(kinds, id.number);
            resumed.map_err(|Missed| ResetReason::TooOld)
        });
        let (follower, missed) = match resumed {
            Some(Ok(follower)) => (follower, None),
            Some(Err(reason)) => (events.follow(kinds), Some(reason)),
            None => (events.follow(kinds), None),
        };
        let mut reading = Self {
            follower,
            opening: None,
            missed,
            in_hand: None,
            desk,
        };
        reading.opening = Some(sse::opening(Some(&reading.id())));
        reading
    }

    /// Returns the next piece of the body; `None` when the gateway stops.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(opening) = self.opening.take() {
            return Some(opening);
        }
        if let Some(reason) = self.missed.take() {
            return Some(sse::reset(self.id(), reason));
        }
        let stop = self.desk.stop().clone();
        let piece = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            piece = tokio::time::timeout(sse::KEEP_ALIVE, self.piece()) => piece.ok(),
        };
        Some(piece.unwrap_or_else(|| {
            // Nothing that is for this reader lies between its last event and here.
            let id = self.in_hand.is_none().then(|| self.id());
            sse::keep_alive(id.as_ref().map(|id| id as &dyn std::fmt::Display))
        }))
    }

    /// Waits for something to tell.
    ///
    /// # Cancel safety
    /// Cancel safe: an event stays in hand until its text is there.
    async fn piece(&mut self) -> Bytes {
        loop {
            let (number, event) = match &self.in_hand {
                Some(in_hand) => in_hand,
                None => match self.follower.next().await {
                    Ok(next) => self.in_hand.insert(next),
                    Err(Missed) => return sse::reset(self.id(), ResetReason::TooOld),
                },
            };
            let text = self.desk.press().text(*number, event).await;
            self.in_hand = None;
            if !text.is_empty() {
                return text;
            }
        }
    }

    fn id(&self) -> EventId {
        EventId {
            incarnation: self.desk.incarnation(),
            number: self.follower.at(),
        }
    }
}
