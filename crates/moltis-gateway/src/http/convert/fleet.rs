//! Requests for many nodes: who was skipped, in the words of the API.

use crate::api::fleet::{Skipped, SkippedCode};
use crate::exec;
use crate::store::LeftOutBecause;

impl From<exec::Skipped> for Skipped {
    fn from(skipped: exec::Skipped) -> Self {
        Self {
            node: skipped.node_id.to_string(),
            node_name: skipped.name.to_string(),
            code: skipped.why.because.into(),
            detail: skipped.why.detail,
        }
    }
}

impl From<LeftOutBecause> for SkippedCode {
    fn from(because: LeftOutBecause) -> Self {
        match because {
            LeftOutBecause::Offline => Self::NodeOffline,
            LeftOutBecause::Revoked => Self::NodeRevoked,
            LeftOutBecause::EnvNotAllowed => Self::EnvNotAllowed,
            LeftOutBecause::TimeoutTooLong => Self::TimeoutTooLong,
            LeftOutBecause::TooLarge => Self::TooLarge,
            LeftOutBecause::FailFast => Self::FailFast,
            LeftOutBecause::ShuttingDown => Self::ShuttingDown,
            LeftOutBecause::Failed => Self::Failed,
        }
    }
}
