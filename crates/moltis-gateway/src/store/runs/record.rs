//! What a run's row holds, as types, and the way from a row to them.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use moltis_proto::key::Digest;
use moltis_proto::run::{Ending, ExitStatus, Outcome, Reason, RunSpec, Stream, Totals, TtySize};
use moltis_proto::{BootId, DeviceId, JournalId, RunId};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use sqlx::sqlite::SqliteRow;

use crate::store::row::Columns;
use crate::store::{StoreError, Written};

/// Which machine a run is on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The gateway's own.
    Local,
    /// A node, whatever it is called today.
    Node(DeviceId),
    /// An SSH target, by its label.
    Ssh(String),
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStage {
    /// A person has to allow it.
    WaitingApproval,
    /// It is written, and may have been sent.
    Starting,
    /// Its machine has said that it runs.
    Running,
    /// It is over.
    Ended,
}

impl RunStage {
    /// Returns this stage and those before it.
    pub(super) fn up_to(self) -> &'static [Self] {
        const ALL: [RunStage; 4] = [
            RunStage::WaitingApproval,
            RunStage::Starting,
            RunStage::Running,
            RunStage::Ended,
        ];
        match self {
            Self::WaitingApproval => &ALL[..1],
            Self::Starting => &ALL[..2],
            Self::Running => &ALL[..3],
            Self::Ended => &ALL,
        }
    }
}

/// What makes a repeated request the same request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunKey {
    /// Whose key it is: `operator`, `token:<id>`. Two principals never share a key.
    pub principal: String,
    /// The key, as the caller wrote it.
    pub key: String,
}

impl RunKey {
    /// Returns a key of the operator.
    pub fn of_operator(key: impl Into<String>) -> Self {
        Self {
            principal: "operator".to_owned(),
            key: key.into(),
        }
    }

    /// Returns the id of the run that this key stands for: SHA-256(label ‖ principal ‖ 0 ‖ key),
    /// cut to 16 bytes. Known without a look at the store, so a repeated request meets the same id
    /// at the keeper even if the row was lost.
    pub fn run_id(&self) -> RunId {
        self.hashed(&moltis_proto::label::RUN_ID, &[])
    }

    /// Returns the id of the run on this node that a request for many nodes with this key stands
    /// for: made as [`RunKey::run_id`], of another label, with the node's device behind the key.
    pub fn member_id(&self, device: DeviceId) -> RunId {
        self.hashed(MEMBER_LABEL, device.as_bytes())
    }

    fn hashed(&self, label: &[u8; 32], device: &[u8]) -> RunId {
        let mut hash = sha2::Sha256::new();
        hash.update(label);
        hash.update(&self.principal);
        hash.update([0]);
        hash.update(&self.key);
        if !device.is_empty() {
            hash.update([0]);
            hash.update(device);
        }
        let hash: [u8; 32] = hash.finalize().into();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        RunId::from_bytes(id)
    }
}

/// `moltis fleet run id 1`, filled with zeros to 32 bytes.
const MEMBER_LABEL: &[u8; 32] = b"moltis fleet run id 1\0\0\0\0\0\0\0\0\0\0\0";

/// A run to be written.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Random, or [`RunKey::run_id`].
    pub id: RunId,
    /// The caller's key, where there is one.
    pub key: Option<RunKey>,
    /// Who asks: `operator`, `token:<name>`.
    pub requested_by: String,
    /// Of target, spec and the stdin that came along: what must match when the request is repeated.
    pub digest: Digest,
    /// The machine.
    pub target: Target,
    /// What lists show for the machine: a node's id, `local`, `ssh:<label>`.
    pub shown: String,
    /// What to run.
    pub spec: RunSpec,
    /// [`RunStage::Starting`], or [`RunStage::WaitingApproval`].
    pub stage: RunStage,
    /// The process of the gateway that writes this.
    pub incarnation: u32,
    /// The boot that the run is sent to.
    pub boot_id: Option<BootId>,
    /// The journal that the run is sent to.
    pub journal_id: Option<JournalId>,
    /// Now.
    pub created_at: Timestamp,
    /// Now, by a clock that nobody turns; `None` where the boot of this machine is not known.
    pub asked: Option<BootMoment>,
}

/// A moment of the gateway's machine, by a clock that nobody turns and that counts its sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootMoment {
    /// The boot.
    pub boot_id: BootId,
    /// Since it began.
    pub boottime: Duration,
}

/// What became of a [`NewRun`].
#[derive(Debug, Clone)]
pub enum RunCreation {
    /// The row is written.
    Created(Written),
    /// The same request was made before: this is its run. One that was unclaimed is claimed by it.
    Existing(Box<RunRecord>),
    /// The key stands for another request.
    Conflict(Box<RunRecord>),
    /// The node is revoked or forgotten.
    NodeGone,
    /// The key stands for a request for many nodes.
    KeyOfFleet,
}

/// The first bytes of both streams, at most 64 KiB each; empty where a stream has a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heads {
    /// Of stdout.
    pub stdout: Bytes,
    /// Of stderr.
    pub stderr: Bytes,
}

impl Heads {
    /// Returns those of one stream.
    pub fn of(&self, stream: Stream) -> &Bytes {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }
}

/// A run's end, as it is written.
#[derive(Debug, Clone)]
pub struct Ended {
    /// How it ended.
    pub ending: Ending,
    /// How much it wrote.
    pub totals: Totals,
    /// What of that goes into the row.
    pub heads: Heads,
    /// When its machine said that it runs, where the row may not say so yet.
    pub started: Option<Started>,
    /// Now.
    pub at: Timestamp,
}

/// When a run has started, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// When its machine said so.
    pub at: Timestamp,
    /// Its process there.
    pub pid: Option<u32>,
}

/// A run, as it stands in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// Its place in lists: later runs have higher ones.
    pub seq: u64,
    /// Its id.
    pub id: RunId,
    /// Of target, spec and the stdin that came with the request.
    pub digest: Digest,
    /// Its machine.
    pub target: Target,
    /// What lists show for the machine.
    pub shown: String,
    /// Who asked.
    pub requested_by: String,
    /// The key that it was asked with.
    pub key: Option<RunKey>,
    /// What it runs; `None` for a run that a node brought and nobody here asked for.
    pub spec: Option<RunSpec>,
    /// How far it has come.
    pub stage: RunStage,
    /// The process of the gateway that wrote the row.
    pub incarnation: u32,
    /// The boot that it was first sent to.
    pub boot_id: Option<BootId>,
    /// The journal that it was first sent to.
    pub journal_id: Option<JournalId>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// The same by a clock that nobody turns.
    pub asked: Option<BootMoment>,
    /// When its machine said that it runs.
    pub started_at: Option<Timestamp>,
    /// Its process there.
    pub pid: Option<u32>,
    /// When its end was asked for.
    pub cancel_requested_at: Option<Timestamp>,
    /// The grace that was asked for with it.
    pub cancel_grace: Option<Duration>,
    /// The last size of its terminal that was asked for.
    pub tty_size: Option<TtySize>,
    /// A node brought it, and nobody has claimed it.
    pub unclaimed: bool,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub ending: Option<Ending>,
    /// How much it wrote; zeros before the end.
    pub totals: Totals,
    /// When its output was deleted to make room.
    pub output_freed_at: Option<Timestamp>,
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only those of this machine.
    pub target: Option<Target>,
    /// Only those in this stage, by what is known of the run itself.
    pub stage: Option<RunStage>,
    /// Only those below this `seq`: where the page before ended.
    pub before: Option<u64>,
}

/// One page of a list, newest first.
#[derive(Debug, Clone)]
pub struct RunPage {
    /// The runs.
    pub items: Vec<RunRecord>,
    /// What to pass as [`RunFilter::before`] for the next page; `None` on the last.
    pub next: Option<u64>,
}

impl std::fmt::Display for Target {
    /// Writes it as rows hold it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Node(device_id) => write!(f, "node:{device_id}"),
            Self::Ssh(label) => write!(f, "ssh:{label}"),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "local" => Ok(Self::Local),
            Some(("node", id)) => id
                .parse()
                .map(Self::Node)
                .map_err(|error| format!("{error}")),
            Some(("ssh", label)) => Ok(Self::Ssh(label.to_owned())),
            _ => Err(format!("`{text}` is no place of a run")),
        }
    }
}

pub(super) fn record(row: &SqliteRow) -> Result<RunRecord, StoreError> {
    let columns = Columns::of("runs", row);
    let principal = columns.optional_text("principal")?;
    let key = columns.optional_text("key")?;
    let tty_size = columns
        .optional_number("tty_cols")?
        .zip(columns.optional_number("tty_rows")?)
        .map(|(cols, rows)| TtySize { cols, rows });
    Ok(RunRecord {
        seq: columns.count("seq")?,
        id: RunId::from_bytes(columns.bytes("id")?),
        digest: Digest::from_bytes(columns.bytes("digest")?),
        target: columns.parsed("place")?,
        shown: columns.text("shown")?,
        requested_by: columns.text("requested_by")?,
        key: principal
            .zip(key)
            .map(|(principal, key)| RunKey { principal, key }),
        spec: columns.optional_json("spec")?,
        stage: columns.word("state")?,
        incarnation: columns.number("incarnation")?,
        boot_id: columns.optional_bytes("boot_id")?.map(BootId::from_bytes),
        journal_id: columns
            .optional_bytes("journal_id")?
            .map(JournalId::from_bytes),
        created_at: columns.time("created_at")?,
        asked: asked(&columns)?,
        started_at: columns.optional_time("started_at")?,
        pid: columns.optional_number("pid")?,
        cancel_requested_at: columns.optional_time("cancel_requested_at")?,
        cancel_grace: columns
            .optional_number("cancel_grace_ms")?
            .map(Duration::from_millis),
        tty_size,
        unclaimed: columns.integer("unclaimed")? != 0,
        ended_at: columns.optional_time("ended_at")?,
        ending: ending(&columns)?,
        totals: Totals {
            stdout: columns.count("stdout_bytes")?,
            stderr: columns.count("stderr_bytes")?,
        },
        output_freed_at: columns.optional_time("output_freed_at")?,
    })
}

fn asked(columns: &Columns<'_>) -> Result<Option<BootMoment>, StoreError> {
    let boot_id = columns.optional_bytes("asked_boot_id")?;
    let boottime_ms = columns.optional_number("asked_boottime_ms")?;
    Ok(boot_id.zip(boottime_ms).map(|(boot_id, ms)| BootMoment {
        boot_id: BootId::from_bytes(boot_id),
        boottime: Duration::from_millis(ms),
    }))
}

fn ending(columns: &Columns<'_>) -> Result<Option<Ending>, StoreError> {
    let Some(outcome) = columns.optional_word::<Outcome>("outcome")? else {
        return Ok(None);
    };
    let code = columns.optional_number("exit_code")?.map(ExitStatus::Code);
    let signal = columns.optional_number("signal")?.map(ExitStatus::Signal);
    Ok(Some(Ending {
        outcome,
        reason: columns.optional_word::<Reason>("reason")?,
        status: code.or(signal),
        detail: columns.optional_text("detail")?.unwrap_or_default(),
        duration_ms: columns.count("duration_ms")?,
        descendants_may_survive: columns.integer("survivors")? != 0,
    }))
}
