//! Errors of the rooms behind, in the words and statuses of the API.

use moltis_proto::NODE_ADD;
use moltis_proto::env::EnvError;

use crate::api::problem::{Candidate, Code};
use crate::exec::{
    FleetError, RouteError, RunError, SelectorError, SpecError, StartError, StdinError,
};
use crate::http::error::ApiError;
use crate::output::OutputError;
use crate::pairing::PairingError;
use crate::store::StoreError;

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::ReadOnly { .. } => Self::new(Code::StoreReadOnly, error.to_string()),
            StoreError::DiskFull { .. } => Self::new(
                Code::StoreReadOnly,
                "the disk that holds the gateway's store is full",
            )
            .hint("free some space on the gateway's machine, then try again")
            .because(error),
            StoreError::Closed => shutting_down(),
            _ => Self::internal("work with its store", error),
        }
    }
}

impl From<OutputError> for ApiError {
    fn from(error: OutputError) -> Self {
        Self::internal("read the output", error)
    }
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        let detail = error.to_string();
        match error {
            RouteError::NotFound { .. } => Self::new(Code::NodeNotFound, detail)
                .hint("`moltis node list --all` shows every node"),
            RouteError::Ambiguous { candidates, .. } => {
                let candidates = candidates.into_iter().map(|candidate| Candidate {
                    id: candidate.node_id.to_string(),
                    name: candidate.name.to_string(),
                });
                Self::new(Code::NodeAmbiguous, detail)
                    .hint("name one of them by its id")
                    .candidates(candidates.collect())
            }
            RouteError::Revoked { .. } => Self::new(Code::NodeRevoked, detail),
            RouteError::NoSuchTarget { .. } => Self::new(Code::NotFound, detail),
        }
    }
}

impl From<SpecError> for ApiError {
    fn from(error: SpecError) -> Self {
        let detail = error.to_string();
        match error {
            SpecError::Env(EnvError::NotAllowed { .. }) => Self::new(Code::EnvNotAllowed, detail).hint(
                "set it in the command itself: env NAME=value command …; the node's owner may also \
                 add its name to `env_allow` in node.json",
            ),
            SpecError::TimeoutTooLong { .. } => Self::new(Code::TimeoutTooLong, detail)
                .hint(format!(
                    "ask for less, or give the node more, there: {NODE_ADD} --host <url> --timeout <seconds>"
                )),
            SpecError::TooLarge { .. } => Self::new(Code::TooLarge, detail)
                .hint("send what is long to the command's stdin"),
            SpecError::Env(_) | SpecError::Invalid(_) => Self::invalid(detail),
        }
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        let detail = error.to_string();
        match error {
            StartError::Route(error) => error.into(),
            StartError::Spec(error) => error.into(),
            StartError::Store(error) => error.into(),
            StartError::Output(error) => error.into(),
            StartError::Unkept { id, source } => unkept(detail, source)
                .runs(&[id])
                .hint(format!("`moltis runs show {id}` tells where it stands")),
            StartError::Offline { .. } => Self::new(Code::NodeOffline, detail)
                .hint("nothing was started; `moltis node list --all` shows when it was last seen"),
            StartError::NodeGone => Self::new(Code::NodeRevoked, detail),
            StartError::NoLocal => Self::new(Code::NodeNotFound, detail),
            StartError::LocalFailed(_) => Self::internal("reach the keeper of this machine", error),
            StartError::Conflict { .. } | StartError::KeyOfFleet => {
                Self::new(Code::IdempotencyConflict, detail)
                    .hint("send a new key with a new request")
            }
            StartError::ShuttingDown => shutting_down(),
        }
    }
}

impl From<FleetError> for ApiError {
    fn from(error: FleetError) -> Self {
        let detail = error.to_string();
        match error {
            FleetError::NoMatch { select } => {
                let list = "`moltis node list --all` shows every node with its labels";
                Self::new(Code::NodeNotFound, detail).hint(match select.misspelt() {
                    Some((key, fact)) => {
                        format!("did you mean `{fact}`? `{key}` is taken for a label; {list}")
                    }
                    None => list.to_owned(),
                })
            }
            FleetError::Conflict => Self::new(Code::IdempotencyConflict, detail)
                .hint("send a new key with a new request"),
            FleetError::TooLarge { .. } => Self::new(Code::TooLarge, detail).hint(
                "send what is long to the command's stdin, or fewer nodes at a time: `parallel`",
            ),
            FleetError::Unkept { runs, source } => unkept(detail, source)
                .runs(&runs)
                .hint("`moltis runs list` shows the newest runs"),
            FleetError::Start(error) => error.into(),
        }
    }
}

impl From<SelectorError> for ApiError {
    fn from(error: SelectorError) -> Self {
        Self::invalid(format!("`select`: {error}"))
            .hint("terms joined by commas, as `gpu=true,room!=cellar,platform=linux`, or `all`")
    }
}

impl From<RunError> for ApiError {
    fn from(error: RunError) -> Self {
        let detail = error.to_string();
        match error {
            RunError::NotFound(_) => {
                Self::new(Code::NotFound, detail).hint("`moltis runs list` shows the newest runs")
            }
            RunError::Ambiguous { candidates, .. } => Self::new(Code::Ambiguous, detail)
                .hint("write more of the id")
                .candidates(nameless(&candidates)),
            RunError::Over(_) => Self::new(Code::RunEnded, detail),
            RunError::Claimed(_) => Self::new(Code::AlreadyAnswered, detail),
            RunError::Stdin(error) => error.into(),
            RunError::NoTerminal(_) => Self::invalid(detail),
            RunError::Invalid(error) => error.into(),
            RunError::TooManySignals(_) => Self::new(Code::TooMany, detail).retry_after(1),
            RunError::Store(error) => error.into(),
            RunError::Output(error) => error.into(),
        }
    }
}

impl From<StdinError> for ApiError {
    fn from(error: StdinError) -> Self {
        let detail = error.to_string();
        match error {
            StdinError::NotOpen => {
                Self::invalid(detail).hint("start the run with `stdin_open: true`")
            }
            StdinError::Hole { expected, .. } => Self::invalid(detail)
                .hint(format!("go on with offset={expected}"))
                .next_offset(expected),
            StdinError::NotPlaced => Self::new(Code::NodeOffline, detail)
                .hint("send the bytes again: they are taken when the node is back"),
            StdinError::Closed => Self::new(Code::RunEnded, detail),
        }
    }
}

impl From<PairingError> for ApiError {
    fn from(error: PairingError) -> Self {
        let detail = error.to_string();
        match error {
            PairingError::UnknownRequest { .. } => Self::new(Code::NotFound, detail),
            PairingError::AmbiguousRequest { candidates, .. } => {
                Self::new(Code::Ambiguous, detail).candidates(nameless(&candidates))
            }
            PairingError::Answered { .. } => Self::new(Code::AlreadyAnswered, detail),
            PairingError::Expired { .. } => Self::new(Code::RequestExpired, detail),
            PairingError::RequestChanged { .. } => Self::new(Code::RequestChanged, detail),
            PairingError::NodeIdInUse { .. } => Self::new(Code::NameInUse, detail),
            PairingError::Pinned => Self::new(Code::KeyInUse, detail),
            PairingError::UnknownNode => Self::new(Code::NodeNotFound, detail),
            PairingError::Revoked => Self::new(Code::NodeRevoked, detail),
            PairingError::WindowTime { .. } => Self::invalid(format!("`for_seconds`: {detail}")),
            PairingError::Store(error) => error.into(),
        }
    }
}

/// Candidates that have nothing but an id.
fn nameless(ids: &[impl ToString]) -> Vec<Candidate> {
    let candidate = |id: &_| Candidate {
        id: ToString::to_string(id),
        name: String::new(),
    };
    ids.iter().map(candidate).collect()
}

/// What was asked for is on its way, and the store failed behind it.
fn unkept(detail: String, source: StoreError) -> ApiError {
    let code = match source {
        StoreError::Closed => Code::ShuttingDown,
        _ => Code::StoreReadOnly,
    };
    ApiError::new(code, detail).because(source)
}

fn shutting_down() -> ApiError {
    ApiError::new(Code::ShuttingDown, "the gateway is stopping").retry_after(5)
}
