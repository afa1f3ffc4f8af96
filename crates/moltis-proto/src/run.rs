//! One command from its request to its ending: the shapes on the wire, and the machines that keep
//! its output whole.
//!
//! The node's side of a run's output is an [`outbox`], the gateway's an [`inbox`]; stdin goes the
//! other way through [`stdin`]; [`reconcile`] decides what becomes of each run when a connection
//! stands again; [`turn`] lets many runs share one connection fairly.

pub mod inbox;
pub mod outbox;
pub mod reconcile;
pub mod stdin;
pub mod turn;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::key::Digest;
use crate::{RunId, limits};

/// What to run, and how. A spec that does not fit one frame is refused before it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// The command.
    pub command: Command,
    /// Absolute path of the directory to start in; `None` is the node's own.
    pub cwd: Option<String>,
    /// Variables to set above the node's base environment, already filtered.
    #[serde(deserialize_with = "crate::map::unique")]
    pub env: BTreeMap<String, String>,
    /// Milliseconds until the run is timed out; `None` is the node's own longest time, or no limit
    /// for a run with a terminal.
    pub timeout_ms: Option<u64>,
    /// Milliseconds between SIGTERM and SIGKILL when the time is over.
    pub grace_ms: u64,
    /// Whether stdin is a pipe that `Stdin` fills.
    pub stdin: StdinMode,
    /// A terminal for the command; its output is then all on stdout.
    pub tty: Option<Tty>,
}

impl RunSpec {
    /// Returns whether the bounds hold that the types do not: a word to run, no zero byte, an absolute
    /// `cwd`, some time, and a grace of at most [`limits::GRACE_MAX`]. Else the run is refused as
    /// [`RunRefusal::Invalid`](crate::RunRefusal::Invalid).
    pub fn is_sound(&self) -> bool {
        let is_text = |text: &String| !text.contains('\0');
        let has_command = match &self.command {
            Command::Argv(words) => !words.is_empty() && words.iter().all(is_text),
            Command::Shell(line) => is_text(line),
        };
        let cwd = self.cwd.as_ref();
        has_command
            && cwd.is_none_or(|cwd| cwd.starts_with('/') && is_text(cwd))
            && self.timeout_ms != Some(0)
            && Duration::from_millis(self.grace_ms) <= limits::GRACE_MAX
    }

    /// Returns the program and its arguments; a line is `/bin/sh -c`'s.
    pub fn words(&self) -> Vec<&str> {
        match &self.command {
            Command::Argv(words) => words.iter().map(String::as_str).collect(),
            Command::Shell(line) => vec!["/bin/sh", "-c", line],
        }
    }
}

/// The command of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Program and arguments; the program is looked up in the PATH of the environment.
    Argv(Vec<String>),
    /// A line for `/bin/sh -c`.
    Shell(String),
}

/// Where a command's stdin comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdinMode {
    /// `/dev/null`.
    Empty,
    /// A pipe, or the terminal, fed by `Stdin`.
    Open,
}

/// A terminal for a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tty {
    /// Its size.
    pub size: TtySize,
    /// The value of `TERM`.
    pub term: String,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TtySize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// One of a command's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Descriptor 1, or the terminal.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// Returns 0 for stdout and 1 for stderr.
    pub fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }
}

/// Why bytes of an output are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The spool, or the gateway's store of the run, was full.
    Limit,
    /// The disk was full.
    DiskFull,
    /// The disk failed.
    DiskFailed,
    /// The node had freed them: the gateway had acknowledged them once.
    Freed,
    /// The keeper that held them died.
    KeeperDied,
    /// The machine that held them, the gateway's or the node's, lost power before they were on its
    /// disk.
    PowerCut,
}

/// How much a command wrote, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// To stdout.
    pub stdout: u64,
    /// To stderr.
    pub stderr: u64,
}

impl Totals {
    /// Returns the total of one stream.
    pub fn of(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }
}

/// The seven ways in which a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The command ended by itself.
    Exited,
    /// A signal that we did not send ended it.
    Signaled,
    /// Its time was over and its group was ended.
    TimedOut,
    /// It was cancelled and its group was ended.
    Cancelled,
    /// It never ran: there is no such program, directory or permission.
    FailedToStart,
    /// The node refused it.
    Refused,
    /// The truth cannot be known.
    Lost,
}

/// What stands beside an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It provably never started.
    NotStarted,
    /// Its machine was started anew.
    NodeRebooted,
    /// Its node does not know it any more.
    NodeForgot,
    /// Its node was revoked.
    NodeRevoked,
    /// Its node's journal is gone.
    JournalWiped,
    /// Its keeper died.
    KeeperDied,
    /// Its SSH connection broke.
    ConnectionLost,
    /// There is no such program.
    NotFound,
    /// The program may not be executed.
    NotExecutable,
    /// The working directory cannot be entered.
    WorkingDir,
    /// The node's owner does not allow it.
    Policy,
    /// A person, or the lack of one, denied it.
    ApprovalDenied,
}

/// What the kernel said when the child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExitStatus {
    /// The code of exit(3), 0 to 255.
    Code(i32),
    /// The number of the signal (signal(7)).
    Signal(i32),
}

/// How a run ended: written once, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ending {
    /// One of seven.
    pub outcome: Outcome,
    /// More, where there is more to say.
    pub reason: Option<Reason>,
    /// Present only when the kernel gave one.
    pub status: Option<ExitStatus>,
    /// Words for a person, at most `DETAIL_BYTES_MAX`; may be empty.
    pub detail: String,
    /// Milliseconds from the spawn to the ending, by the node's monotonic clock.
    pub duration_ms: u64,
    /// Processes of this run may still live: some were seen, or it was ended and nobody can tell. Of
    /// a run that ended by itself only those are seen that the system tells of: on Linux all, else
    /// those of its process group.
    pub descendants_may_survive: bool,
}

impl Ending {
    /// An ending of which the kernel said nothing, at the same moment as the start. Words that are
    /// too long are cut.
    pub fn without_status(outcome: Outcome, reason: Option<Reason>, mut detail: String) -> Self {
        if detail.len() > limits::DETAIL_BYTES_MAX {
            let to = detail.floor_char_boundary(limits::DETAIL_BYTES_MAX - '…'.len_utf8());
            detail.truncate(to);
            detail.push('…');
        }
        Self {
            outcome,
            reason,
            status: None,
            detail,
            duration_ms: 0,
            descendants_may_survive: false,
        }
    }
}

/// Where a run stands on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSummary {
    /// The run.
    pub run_id: RunId,
    /// The digest of its `Start`.
    pub digest: Digest,
    /// The journal that holds it: an entry of `Runs::journals`.
    pub journal_id: crate::JournalId,
    /// Running, or over.
    pub state: RunState,
    /// Bytes written so far, gaps included.
    pub totals: Totals,
    /// Bytes of stdin that the child's pipe has taken.
    pub stdin: u64,
}

/// Whether a run is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RunState {
    /// The child lives.
    Running {
        /// Its process id on the node.
        pid: u32,
    },
    /// The run is over; its ending follows its output.
    Ended,
}
