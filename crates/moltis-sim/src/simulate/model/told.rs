//! How events read in a trace.

use std::fmt;

use super::{Happened, tag_of};

impl fmt::Debug for Happened {
    /// As the trace tells it: short, and without ids, which a trace of many worlds need not know.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked {
                place,
                script,
                key,
                timeout,
            } => {
                let script = script.brief();
                write!(
                    f,
                    "asked at {place} by {key:?} within {timeout:?}: {script}"
                )
            }
            Self::Settled { tag } => write!(f, "{tag} is settled"),
            Self::Returned { tag, result } => write!(
                f,
                "returned {tag}: {:?} {:?} {:?}/{:?} {}+{} bytes",
                result.outcome,
                result.outcome_reason,
                result.exit_code,
                result.signal,
                result.stdout_bytes,
                result.stderr_bytes
            ),
            Self::Answered { tag, run_id } => write!(f, "answered {tag}: {}", short(run_id)),
            Self::Refused { tag } => write!(f, "refused {tag}"),
            Self::IsBeside { place } => write!(f, "{place} is on the gateway's machine"),
            Self::KeeperBegan { place } => write!(f, "{place} has a new keeper"),
            Self::Woke { place } => write!(f, "{place} has slept"),
            Self::Connected { place, epoch } => {
                write!(f, "{place} is connected by {}", epoch.counter)
            }
            Self::Executed { tag, place, .. } => write!(f, "EXEC {tag} at {place}"),
            Self::Wrote { tag, stream, total } => write!(f, "{tag} wrote {stream:?} to {total}"),
            Self::ReadWrong { tag } => write!(f, "{tag} read a wrong byte"),
            Self::Ended { tag, status } => write!(f, "END {tag}: {status:?}"),
            Self::Halted { tag } => write!(f, "HALT {tag}"),
            Self::Cancelled { tag } => write!(f, "cancel of {tag}"),
            Self::CancelTaken { tag } => write!(f, "cancel of {tag} is taken"),
            Self::Seen(run) => write!(
                f,
                "seen {} of {:?}: {:?} {:?} {:?} {:?}/{:?} {}+{} bytes",
                short(&run.id),
                tag_of(run).unwrap_or_default(),
                run.state,
                run.outcome,
                run.outcome_reason,
                run.exit_code,
                run.signal,
                run.stdout_bytes,
                run.stderr_bytes
            ),
            Self::Read {
                tag,
                stream,
                offset,
                bytes,
            } => write!(f, "{tag} {stream:?} read {offset}+{}", bytes.len()),
            Self::Missed { tag, gap } => {
                write!(
                    f,
                    "{tag} {:?} misses {}..{} {:?}",
                    gap.stream, gap.from, gap.to, gap.reason
                )
            }
            Self::Revoked { place } => write!(f, "{place} is revoked"),
            Self::Befell(trouble) => write!(f, "{trouble:?}"),
        }
    }
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}
