//! `moltis doctor`.

use clap::Args;

use super::{Format, Remote};

/// Say what is wrong here and at the gateway, and what to type next
///
/// Looks at this machine, as a gateway and as a node, and asks the gateway what it sees. Each line
/// is a check: ok, warning or error, and below it what to do. Nothing is changed. The exit code is 1
/// when anything is an error.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis doctor
  moltis doctor --json")]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}
