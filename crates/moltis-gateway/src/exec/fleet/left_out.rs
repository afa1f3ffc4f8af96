//! Why a node that was meant has no run.

use moltis_proto::NodeName;
use moltis_proto::env::EnvError;

use crate::exec::{SpecError, StartError};
use crate::store::{LeftOut, LeftOutBecause};

/// Returns why one node does not take what another may; `None` for what none would take.
pub(super) fn because_of(error: &SpecError) -> Option<LeftOutBecause> {
    match error {
        SpecError::Env(EnvError::NotAllowed { .. }) => Some(LeftOutBecause::EnvNotAllowed),
        SpecError::TimeoutTooLong { .. } => Some(LeftOutBecause::TimeoutTooLong),
        SpecError::TooLarge { .. } => Some(LeftOutBecause::TooLarge),
        SpecError::Env(_) | SpecError::Invalid(_) => None,
    }
}

/// Returns why a node has no run.
pub(super) fn why_not(error: &StartError) -> LeftOut {
    let because = match error {
        StartError::Offline { .. } => LeftOutBecause::Offline,
        StartError::NodeGone => LeftOutBecause::Revoked,
        StartError::ShuttingDown => LeftOutBecause::ShuttingDown,
        StartError::Spec(error) => because_of(error).unwrap_or(LeftOutBecause::Failed),
        _ => LeftOutBecause::Failed,
    };
    LeftOut {
        because,
        detail: error.to_string(),
    }
}

pub(super) fn offline(name: &NodeName) -> LeftOut {
    why_not(&StartError::Offline { name: name.clone() })
}

pub(super) fn not_after_a_failure() -> LeftOut {
    LeftOut {
        because: LeftOutBecause::FailFast,
        detail: "it was not started, because one before it did not exit 0".to_owned(),
    }
}

pub(super) fn as_it_stops() -> LeftOut {
    why_not(&StartError::ShuttingDown)
}
