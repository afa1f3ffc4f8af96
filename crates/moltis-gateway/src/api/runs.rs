//! Runs: asking for one, seeing it, its output, and what can be sent to it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Timestamp, number};

/// The longest time that can be asked for, whatever the node says: 10 years.
pub const TIMEOUT_SECONDS_MAX: u64 = 3650 * 24 * 3600;

/// Columns, and rows, of a terminal.
pub const TTY_SIZE_MAX: u16 = 4096;

/// Runs of one page, at the most.
pub const PAGE_MAX: u32 = 500;

/// The highest offset that JSON can carry everywhere: 2^53 − 1.
pub const OFFSET_MAX: u64 = (1 << 53) - 1;

/// Names of the signals that can be sent, and their numbers on the wire: those of signal(7) for x86
/// and ARM. A node whose system counts otherwise translates.
pub const SIGNALS: [(&str, i32); 20] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("WINCH", 28),
    ("SYS", 31),
];

/// Body of `POST runs`. Exactly one of `argv` and `command`; at most one of the three `stdin…`; at
/// most one of `node` and `select`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = one_command(), "examples" = commands()))]
pub struct StartRun {
    /// A route: `local`, `node:<id or name>`, the id, a unique prefix or the name of a node. The
    /// configured route when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// A selector: the same on every node that it means, and never on `local`. Terms joined by
    /// commas, all of which hold: `key=value`, `key!=value` (also without the label) or `key`; or
    /// `all`. The keys `platform`, `arch`, `runtime`, `provider`, `state` and `name` are facts of the
    /// machine; a label of that name is `label:platform`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub select: Option<String>,
    /// With `select`: at most so many run at a time, at least 1; all at once when left out.
    #[serde(
        default,
        deserialize_with = "number::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = u32::MAX))]
    pub parallel: Option<u32>,
    /// With `select`: no more are started behind one that did not exit 0. Without `parallel` they
    /// run one after the other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fail_fast: bool,
    /// With `select`: start nothing, and answer with the nodes that are meant. No command is needed
    /// then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Program and arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub argv: Option<Vec<String>>,
    /// A line for `/bin/sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub command: Option<String>,
    /// Absolute path of the directory to start in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^/"))]
    pub cwd: Option<String>,
    /// Variables to set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Seconds until the run is timed out, at least 1; the node's longest time when left out.
    #[serde(
        default,
        deserialize_with = "number::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = TIMEOUT_SECONDS_MAX))]
    pub timeout_seconds: Option<u64>,
    /// All of stdin, as text. The gateway keeps it until the node has taken it, over its own death and
    /// restart too. Where its machine lost its power before that was on the disk, the same request under
    /// the same `Idempotency-Key` goes on with it; without one the command waits for the rest until it is
    /// cancelled or its time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// All of stdin, as bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub stdin_base64: Option<String>,
    /// Stdin comes later, by `POST runs/{id}/stdin`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin_open: bool,
    /// A terminal for the command; stdin is then open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
}

/// A terminal for a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tty {
    /// Columns, 1 to 4096.
    #[serde(deserialize_with = "number::whole")]
    #[schemars(range(min = 1, max = TTY_SIZE_MAX))]
    pub cols: u16,
    /// Rows, 1 to 4096.
    #[serde(deserialize_with = "number::whole")]
    #[schemars(range(min = 1, max = TTY_SIZE_MAX))]
    pub rows: u16,
    /// The value of `TERM`; `xterm-256color` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
}

/// Query of `POST runs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartQuery {
    /// Answer when the run is over, with a [`RunResult`].
    #[serde(default)]
    pub wait: bool,
    /// Answer as `GET runs/{id}/follow` does, from the beginning, in this one request. The header
    /// `Moltis-Run-Id` of the answer names the run.
    #[serde(default)]
    pub follow: bool,
}

/// Query of `GET runs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRuns {
    /// Only runs of this node: id, unique prefix, name, or `local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Only runs in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// At most so many: 1 to 500, 50 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = PAGE_MAX))]
    pub limit: Option<u32>,
    /// `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub cursor: Option<String>,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A person has to allow it first.
    WaitingApproval,
    /// It was sent; its process is not known yet.
    Starting,
    /// Its process lives, as far as is known.
    Running,
    /// It is over.
    Ended,
}

/// The seven ways in which a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// By itself, with a code.
    Exited,
    /// By a signal that was not ours.
    Signaled,
    /// Its time was over.
    TimedOut,
    /// Somebody cancelled it.
    Cancelled,
    /// It never ran.
    FailedToStart,
    /// The node refused it.
    Refused,
    /// The truth cannot be known.
    Lost,
}

/// What stands beside an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutcomeReason {
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
    /// A reason of a newer gateway; never sent.
    #[serde(other)]
    #[schemars(skip)]
    Unrecognised,
}

/// One of a command's two outputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output, or the terminal.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
}

/// One run: `GET runs/{id}`, and the answer of most things done to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Its id: 32 hexadecimal digits.
    pub id: String,
    /// The node's id, `local`, or `ssh:<label>`.
    pub node: String,
    /// The node's name now.
    pub node_name: String,
    /// Where it stands.
    pub state: State,
    /// How it ended; `None` until then, and for one that is `unclaimed`: its node tells it when
    /// somebody has claimed it.
    pub outcome: Option<Outcome>,
    /// More about the outcome, where there is more to say.
    pub outcome_reason: Option<OutcomeReason>,
    /// What it ended with; `None` unless the kernel gave one.
    pub exit_code: Option<i32>,
    /// The signal's number; `None` unless the kernel gave one.
    pub signal: Option<i32>,
    /// Words about the outcome; `None` where there are none.
    pub detail: Option<String>,
    /// The shell line, or `None`.
    pub command: Option<String>,
    /// Program and arguments, or `None`.
    pub argv: Option<Vec<String>>,
    /// Where it was to start; `None` is the node's own directory.
    pub cwd: Option<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Seconds that were asked for.
    pub timeout_seconds: Option<u64>,
    /// `operator`, `token:<name>`, `user:<name>`, …
    pub requested_by: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its process was known to live.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// Milliseconds from its start to its end, by the node's clock; `None` while it is not over, and
    /// where nobody knows when it ended.
    pub duration_ms: Option<u64>,
    /// When somebody asked for its end.
    pub cancel_requested_at: Option<Timestamp>,
    /// How much it has written to stdout, as far as is known.
    pub stdout_bytes: u64,
    /// How much it has written to stderr, as far as is known.
    pub stderr_bytes: u64,
    /// Whether the machine it runs on can be reached now.
    pub reachable: bool,
    /// When that machine was last heard of.
    pub last_heard_at: Option<Timestamp>,
    /// Why its output comes no further, where that is the gateway's disk: the command waits with it.
    #[serde(default)]
    pub output_waits: Option<String>,
    /// The node brought it and no row was known: `POST runs/{id}/claim` takes it.
    pub unclaimed: bool,
}

/// A run that is over, with its output: `POST runs?wait=true`, `node exec --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunResult {
    /// Its id.
    pub run_id: String,
    /// The node's id, `local`, or `ssh:<label>`.
    pub node: String,
    /// The node's name now.
    pub node_name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// More about the outcome, where there is more to say.
    pub outcome_reason: Option<OutcomeReason>,
    /// What it ended with; `None` unless the kernel gave one.
    pub exit_code: Option<i32>,
    /// The signal's number; `None` unless the kernel gave one.
    pub signal: Option<i32>,
    /// Words about the outcome; `None` where there are none.
    pub detail: Option<String>,
    /// Its output as text, bytes that are not UTF-8 as U+FFFD; its middle left out when it is long.
    pub stdout: String,
    /// The same of stderr.
    pub stderr: String,
    /// How much it wrote to stdout.
    pub stdout_bytes: u64,
    /// How much it wrote to stderr.
    pub stderr_bytes: u64,
    /// Something was left out of `stdout` or `stderr`.
    pub truncated: bool,
    /// Milliseconds from its start to its end, by the node's clock; `None` where nobody knows when it
    /// ended.
    pub duration_ms: Option<u64>,
}

/// Bytes of the beginning, and of the end, of an output in a [`RunResult`].
pub const RESULT_PART_BYTES_MAX: u64 = 512 * 1024;

/// Query of `GET runs/{id}/output`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputQuery {
    /// Which of the two; stdout when left out.
    #[serde(default)]
    pub stream: Stream,
    /// Offset of the first byte; 0 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = OFFSET_MAX))]
    pub offset: Option<u64>,
    /// Go on until the stream is complete.
    #[serde(default)]
    pub follow: bool,
}

/// Query of `GET runs/{id}/follow`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FollowQuery {
    /// Offset of the first byte of stdout to send.
    #[serde(default)]
    #[schemars(range(max = OFFSET_MAX))]
    pub stdout: u64,
    /// Offset of the first byte of stderr to send.
    #[serde(default)]
    #[schemars(range(max = OFFSET_MAX))]
    pub stderr: u64,
}

/// Query of `POST runs/{id}/stdin`, whose body is the bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StdinQuery {
    /// Offset of the first byte; bytes that were accepted before are skipped.
    #[schemars(range(max = OFFSET_MAX))]
    pub offset: u64,
    /// Nothing follows these bytes.
    #[serde(default)]
    pub eof: bool,
}

/// Answer of `POST runs/{id}/stdin`.
///
/// What was accepted may not have been delivered yet: at most the last 256 KiB. A gateway that
/// begins anew has lost that, and answers the next bytes with a problem whose `next_offset` says
/// where to go on; before the run's node is back it answers `node_offline`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StdinAccepted {
    /// Offset behind the last byte that was accepted: where to go on.
    pub accepted: u64,
}

/// Body of `POST runs/{id}/resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Columns, 1 to 4096.
    #[serde(deserialize_with = "number::whole")]
    #[schemars(range(min = 1, max = TTY_SIZE_MAX))]
    pub cols: u16,
    /// Rows, 1 to 4096.
    #[serde(deserialize_with = "number::whole")]
    #[schemars(range(min = 1, max = TTY_SIZE_MAX))]
    pub rows: u16,
}

/// Body of `POST runs/{id}/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendSignal {
    /// `INT`, `TERM`, `HUP`, …; `SIGINT` does too.
    #[schemars(regex(pattern = signal_pattern()))]
    pub signal: String,
}

/// Body of `POST runs/{id}/cancel`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// Seconds between SIGTERM and SIGKILL, at most 300; 5 when left out.
    #[serde(
        default,
        deserialize_with = "number::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(max = 300))]
    pub grace_seconds: Option<u64>,
}

/// In words of JSON Schema: one of `argv` and `command` is there, and the other is not, or null; or
/// none is needed.
fn one_command() -> Value {
    let only = |there: &str, kind: &str, other: &str| {
        json!({
            "required": [there],
            "properties": { there: { "type": kind }, other: { "type": "null" } },
        })
    };
    json!([
        only("argv", "array", "command"),
        only("command", "string", "argv"),
        {
            "required": ["select", "dry_run"],
            "properties": { "select": { "type": "string" }, "dry_run": { "const": true } },
        },
    ])
}

/// What a request holds most often. Whoever tries the document sends them as they stand.
fn commands() -> Value {
    json!([
        { "argv": ["uname", "-a"] },
        { "command": "df -h | sort", "timeout_seconds": 60 },
    ])
}

fn signal_pattern() -> String {
    format!("^(SIG)?({})$", SIGNALS.map(|(name, _)| name).join("|"))
}
