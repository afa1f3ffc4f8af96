//! Why a run cannot be started, found, or told something.

use std::io;
use std::sync::Arc;

use moltis_proto::{NodeName, RunId};

use super::request::SpecError;
use super::route::RouteError;
use super::stdin::StdinError;
use crate::output::OutputError;
use crate::store::{RunRecord, StoreError};

/// Why a request did not become a run. Nothing was started, and no key was used up, but with
/// [`Unkept`](StartError::Unkept).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The route leads nowhere.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The node is known, and not here.
    #[error("the node `{name}` is offline")]
    Offline {
        /// Its name.
        name: NodeName,
    },
    /// The node was revoked or forgotten a moment ago.
    #[error("the node was revoked a moment ago")]
    NodeGone,
    /// This machine runs no commands of its own: nobody gave the gateway a way to a keeper.
    #[error("this gateway has no `local` route: it was built without a keeper")]
    NoLocal,
    /// The keeper of this machine cannot be reached.
    #[error("the keeper of this machine cannot be reached")]
    LocalFailed(#[source] Arc<io::Error>),
    /// The request is out of its bounds.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The key stands for another request.
    #[error("the idempotency key was used before for another request, which made run {}", .existing.id)]
    Conflict {
        /// The run that it stands for.
        existing: Box<RunRecord>,
    },
    /// The key stands for a request for many nodes.
    #[error("the idempotency key was used before for a request with `select`")]
    KeyOfFleet,
    /// The store took no row, so nothing was sent.
    #[error("the run cannot be written down, so it was not started")]
    Store(#[from] StoreError),
    /// The run is on its way, and a power cut may take its row: nobody should leave it alone.
    #[error("run {id} was made and may run, but the store cannot keep it")]
    Unkept {
        /// The run.
        id: RunId,
        /// What the store said.
        #[source]
        source: StoreError,
    },
    /// The stored output cannot be opened.
    #[error("the run's output has no place, so it was not started")]
    Output(#[from] OutputError),
    /// The gateway is shutting down.
    #[error("the gateway is shutting down")]
    ShuttingDown,
}

impl StartError {
    /// Returns whether it follows from how its place stands today, or from what that takes: of an
    /// earlier request it says nothing.
    pub(super) fn is_of_today(&self) -> bool {
        match self {
            Self::Route(_)
            | Self::Offline { .. }
            | Self::NodeGone
            | Self::NoLocal
            | Self::LocalFailed(_)
            | Self::Spec(_)
            | Self::Conflict { .. } => true,
            Self::KeyOfFleet
            | Self::Store(_)
            | Self::Unkept { .. }
            | Self::Output(_)
            | Self::ShuttingDown => false,
        }
    }
}

/// Why what is stored of a run cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Its row.
    #[error("the run's row cannot be read")]
    Store(#[from] StoreError),
    /// Its output.
    #[error("the run's output cannot be read")]
    Output(#[from] OutputError),
}

impl From<ReadError> for StartError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => Self::Store(error),
            ReadError::Output(error) => Self::Output(error),
        }
    }
}

impl From<ReadError> for RunError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => Self::Store(error),
            ReadError::Output(error) => Self::Output(error),
        }
    }
}

/// Why nothing can be said to a run, or be known of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// There is no such run.
    #[error("there is no run {0}")]
    NotFound(String),
    /// The beginning of an id leads to several.
    #[error("`{prefix}` is the beginning of several runs")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// Some of them, newest first.
        candidates: Vec<RunId>,
    },
    /// The run is over: nothing can be said to it.
    #[error("the run {0} is over")]
    Over(RunId),
    /// Bytes for stdin are not taken.
    #[error(transparent)]
    Stdin(#[from] StdinError),
    /// The run has no terminal.
    #[error("the run {0} has no terminal")]
    NoTerminal(RunId),
    /// A value is out of its bounds.
    #[error(transparent)]
    Invalid(#[from] SpecError),
    /// The run is not unclaimed.
    #[error("the run {0} is claimed already")]
    Claimed(RunId),
    /// More signals wait than a run may have.
    #[error("too many signals wait for run {0}: its node is not reachable, or slow")]
    TooManySignals(RunId),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The stored output failed.
    #[error("the run's output cannot be read")]
    Output(#[from] OutputError),
}
