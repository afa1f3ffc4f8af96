//! Events: what happens, of the whole gateway or of one run.

use axum::http::StatusCode;
use futures_util::stream;
use serde::de::DeserializeOwned;

use super::InProcess;
use super::streams::{Cut, Streamed, sse_of};
use crate::api::events::{EventData, EventKind, EventsQuery, Output, RESET, Reset, RunEventsQuery};
use crate::api::follow::Gap;
use crate::api::problem::Problem;
use crate::api::runs::Run;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Told<T> {
    /// What to send as `last_event_id` to go on behind it; `None` where it gives no place.
    pub id: Option<String>,
    /// What.
    pub what: T,
}

/// What has happened to the gateway.
#[derive(Debug, Clone, PartialEq)]
pub enum GatewayEvent {
    /// This, and what it is about as it stood then.
    Happened(EventKind, EventData),
    /// Events were missed: the lists are to be read again.
    Reset(Reset),
}

/// What has happened to a run.
#[derive(Debug, Clone, PartialEq)]
pub enum RunEvent {
    /// Its process lives.
    Started(Box<Run>),
    /// It has written something.
    Output(Output),
    /// It has written something that is gone.
    Gap(Gap),
    /// It is over. Nothing follows.
    Ended(Box<Run>),
    /// The last id was none of this run's: everything follows from the beginning.
    Reset(Reset),
}

impl InProcess {
    /// Returns what happens from now on, or behind the last event that is named: what the asker may
    /// see of it. It ends when the gateway stops.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn follow_events(
        &self,
        query: &EventsQuery,
    ) -> Result<Streamed<Told<GatewayEvent>>, Problem> {
        let response = self.call("follow_events").ask(query).send().await?;
        Ok(sse_of(response, |name, data| {
            if name == RESET {
                return read(data).map(GatewayEvent::Reset);
            }
            let kind: EventKind = name.parse().map_err(Cut::because)?;
            Ok(GatewayEvent::Happened(kind, data_of(kind, data)?))
        }))
    }

    /// Returns what happens to a run until it is over, from the beginning or behind the last event
    /// that is named. Nothing comes where that was its end.
    ///
    /// # Errors
    /// The [`Problem`] that the route answers with.
    pub async fn follow_run_events(
        &self,
        id: &str,
        query: &RunEventsQuery,
    ) -> Result<Streamed<Told<RunEvent>>, Problem> {
        let call = self.call("follow_run_events").of(id);
        let response = call.ask(query).send().await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Box::pin(stream::empty()));
        }
        Ok(sse_of(response, |name, data| match name {
            "started" => read(data).map(RunEvent::Started),
            "output" => read(data).map(RunEvent::Output),
            "gap" => read(data).map(RunEvent::Gap),
            "ended" => read(data).map(RunEvent::Ended),
            RESET => read(data).map(RunEvent::Reset),
            other => Err(Cut::because(format!("`{other}` is no event of a run"))),
        }))
    }
}

/// Reads what an event of this kind carries.
fn data_of(kind: EventKind, data: &str) -> Result<EventData, Cut> {
    use EventKind as K;
    match kind {
        K::NodeOnline | K::NodeOffline | K::NodeChanged | K::KeyCloned => {
            read(data).map(EventData::Node)
        }
        K::NodeForgotten => read(data).map(EventData::Forgotten),
        K::Telemetry => read(data).map(EventData::Telemetry),
        K::PairingChanged => read(data).map(EventData::Pairing),
        K::PairingRequest => read(data).map(EventData::PairingRequest),
        K::PairingDecided => read(data).map(EventData::PairingDecided),
        K::KeyMismatch => read(data).map(EventData::KeyMismatch),
        K::RunStarted | K::RunEnded => read(data).map(EventData::Run),
    }
}

fn read<T: DeserializeOwned>(data: &str) -> Result<T, Cut> {
    serde_json::from_str(data).map_err(Cut::because)
}
