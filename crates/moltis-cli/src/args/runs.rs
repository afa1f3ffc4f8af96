//! `moltis runs …`: commands that run or ran.

use clap::{Args, Subcommand, ValueEnum};

use super::{Format, Remote, values};

/// Commands that run or ran, with their output
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  moltis runs list --state running
  moltis runs attach 7d0a")]
pub(crate) enum Runs {
    List(List),
    Show(Show),
    Attach(Attach),
    Cancel(Cancel),
    Output(Output),
    Claim(Claim),
}

/// List runs, newest first
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis runs list
  moltis runs list --node box --state running --json")]
pub(crate) struct List {
    /// Only runs of this node: id, unique prefix, display name, or `local`
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// Only runs in this state
    #[arg(long, value_enum)]
    pub(crate) state: Option<State>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum State {
    /// A person has to allow it first
    WaitingApproval,
    /// It was sent to the node
    Starting,
    /// Its process lives
    Running,
    /// It is over
    Ended,
}

/// Show one run
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis runs show 7d0a --json")]
pub(crate) struct Show {
    /// Id of the run, or a unique prefix of it
    #[arg(value_parser = values::run)]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Follow a run's output to its end
///
/// Prints what it wrote so far and what it writes, and ends as `moltis node exec` does: the first
/// Ctrl+C cancels the run and waits for its end, the second leaves at once. The exit code is 125 when
/// there is no such run, and 255 when the gateway cannot be asked: the run may go on.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis runs attach 7d0a")]
pub(crate) struct Attach {
    /// Id of the run, or a unique prefix of it
    #[arg(value_parser = values::run)]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// End a run
///
/// Its whole process group gets SIGTERM, and SIGKILL after a grace of 5 seconds.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis runs cancel 7d0a")]
pub(crate) struct Cancel {
    /// Id of the run, or a unique prefix of it
    #[arg(value_parser = values::run)]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Print the exact bytes that a run wrote
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis runs output 7d0a > log
  moltis runs output 7d0a --stream stderr --follow")]
pub(crate) struct Output {
    /// Id of the run, or a unique prefix of it
    #[arg(value_parser = values::run)]
    pub(crate) run: String,
    /// Which of the two outputs
    #[arg(long, value_enum, default_value = "stdout")]
    pub(crate) stream: Stream,
    /// Offset of the first byte
    #[arg(long, default_value_t = 0)]
    pub(crate) offset: u64,
    /// Go on until the output is complete
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// One of the two outputs.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Stream {
    /// Standard output, or the terminal
    Stdout,
    /// Standard error
    Stderr,
}

/// Take over a run that a node brought and nobody asked for
///
/// A node that comes back may hold a run that this gateway does not know, as after its database
/// was restored. It is kept and shown; claiming makes it an ordinary run of yours.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  moltis runs claim 7d0a")]
pub(crate) struct Claim {
    /// Id of the run, or a unique prefix of it
    #[arg(value_parser = values::run)]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) remote: Remote,
}
