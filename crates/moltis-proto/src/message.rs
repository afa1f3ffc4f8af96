//! The whole vocabulary of an accepted connection, and of the socket between link and keeper.
//!
//! Four enums, one for each direction of each leg. [`ToKeeper`] and [`FromKeeper`] are the run
//! messages; the link passes them through as they are, inside [`ToNode::Run`] and
//! [`ToGateway::Run`]. An operator's request cannot be said in any of them.
//!
//! The order of variants is the wire (postcard writes their index). New ones go to the end, with a
//! number in [`crate::version`].

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::code::{CloseCode, GoodbyeReason};
use crate::key::Digest;
use crate::payload::Payload;
use crate::run::{Ending, GapReason, RunSpec, RunSummary, Stream, Totals, TtySize};
use crate::telemetry::Sample;
use crate::{BootId, Codec, JournalId, RunId, RunRefusal, limits};

/// Gateway to node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToNode {
    /// A run message, for the keeper.
    Run(ToKeeper),
    /// Send a telemetry sample now.
    Sample,
    /// Are you there? Answered by `Pong` with the same number.
    Ping {
        /// Chosen by the sender.
        number: u64,
    },
    /// Answer to `Ping`.
    Pong {
        /// The ping's number.
        number: u64,
    },
    /// The gateway goes away for a while; runs go on.
    Goodbye {
        /// Why.
        reason: GoodbyeReason,
        /// When to dial again, in milliseconds from now.
        back_in_ms: u64,
    },
    /// The last frame of this connection.
    Close {
        /// Why.
        code: CloseCode,
    },
}

/// Node to gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToGateway {
    /// A run message, from the keeper.
    Run(FromKeeper),
    /// What this machine has and does.
    Telemetry(Box<Sample>),
    /// Are you there? Answered by `Pong` with the same number.
    Ping {
        /// Chosen by the sender.
        number: u64,
    },
    /// Answer to `Ping`.
    Pong {
        /// The ping's number.
        number: u64,
    },
    /// The node goes away for a while; runs go on.
    Goodbye {
        /// Why.
        reason: GoodbyeReason,
        /// When it expects to be back, in milliseconds from now.
        back_in_ms: u64,
    },
    /// The last frame of this connection.
    Close {
        /// Why.
        code: CloseCode,
    },
    /// What this machine's clock says, as near to the wire as can be. From ledger 2 on.
    Clock {
        /// Milliseconds since 1970 in UTC, leap seconds not counted; 0 before that.
        unix_ms: u64,
    },
}

/// Run messages towards the child process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToKeeper {
    /// The first message on a keeper's socket: opens the floor. Answered by `Runs`, all pages.
    /// Never seen on the wire between gateway and node, where `Accepted` says the same.
    Attach {
        /// How much may be under way.
        windows: Windows,
    },
    /// Start this run, once in the lifetime of its id.
    Start {
        /// The run.
        run_id: RunId,
        /// SHA-256 over the device and the spec: one id never means two commands.
        digest: Digest,
        /// What to run.
        spec: Box<RunSpec>,
    },
    /// Send the output of this run from these offsets on, whatever was sent before.
    Resume {
        /// The run.
        run_id: RunId,
        /// Offset of the first byte of stdout that the gateway does not have.
        stdout: u64,
        /// The same of stderr.
        stderr: u64,
    },
    /// Everything below these offsets is stored.
    Ack {
        /// The run.
        run_id: RunId,
        /// Bytes of stdout stored.
        stdout: u64,
        /// Bytes of stderr stored.
        stderr: u64,
    },
    /// Bytes for the child's stdin. Bytes below what is already there are skipped.
    Stdin {
        /// The run.
        run_id: RunId,
        /// Offset of the first byte.
        offset: u64,
        /// At most a chunk.
        bytes: Payload,
        /// Nothing follows these bytes.
        eof: bool,
    },
    /// The terminal has another size.
    Resize {
        /// The run.
        run_id: RunId,
        /// The new size.
        size: TtySize,
    },
    /// Send a signal to the process group; the run goes on unless the command ends of it.
    Signal {
        /// The run.
        run_id: RunId,
        /// A number of signal(7): 1 to 64.
        signal: i32,
    },
    /// End the run: SIGTERM to the group, SIGKILL after the grace.
    Cancel {
        /// The run.
        run_id: RunId,
        /// Milliseconds between the two.
        grace_ms: u64,
    },
    /// The gateway has all of this run on disk; the node may delete it.
    Forget {
        /// The run.
        run_id: RunId,
    },
    /// End every run, then the keeper itself. Said by the owner of the machine on the keeper's
    /// socket; a gateway that says it is closed.
    Leave,
}

/// Run messages from the child process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromKeeper {
    /// What this node holds: the first thing it says, in pages. Before the last page no other run
    /// message is legal, in either direction.
    Runs {
        /// This boot of the machine.
        boot_id: BootId,
        /// Every journal present, the one for new runs first. The same on each page.
        journals: Vec<JournalId>,
        /// At most a page of runs.
        runs: Vec<RunSummary>,
        /// No page follows.
        last: bool,
    },
    /// The child exists.
    Started {
        /// The run.
        run_id: RunId,
        /// Its process id on the node.
        pid: u32,
    },
    /// The answer to a `Start` whose id is known with the same digest.
    State {
        /// Where that run stands.
        summary: RunSummary,
    },
    /// The run is not started, and never will be under this id.
    Refused {
        /// The run.
        run_id: RunId,
        /// Why.
        code: RunRefusal,
    },
    /// Output, in order of offsets within a stream.
    Output {
        /// The run.
        run_id: RunId,
        /// Which of the two.
        stream: Stream,
        /// Offset of the first byte.
        offset: u64,
        /// At most a chunk, never empty.
        bytes: Payload,
    },
    /// The only legal hole: these bytes are gone.
    Gap {
        /// The run.
        run_id: RunId,
        /// Which of the two.
        stream: Stream,
        /// Offset of the first byte that is gone.
        from: u64,
        /// Offset behind the last one.
        to: u64,
        /// Why.
        reason: GapReason,
    },
    /// How much of stdin the child's pipe has taken.
    StdinAck {
        /// The run.
        run_id: RunId,
        /// Bytes taken.
        offset: u64,
        /// No more is taken: eof was delivered, or the child has closed its end.
        closed: bool,
    },
    /// The run is over. All of its output has been sent before, on this connection or earlier.
    Ended {
        /// The run.
        run_id: RunId,
        /// How.
        ending: Box<Ending>,
        /// How much the command wrote, gaps included.
        totals: Totals,
    },
}

/// How much may be under way from a node without an acknowledgement, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Windows {
    /// Output of one run, both streams together.
    pub run_bytes: u32,
    /// Output of all runs of the connection.
    pub connection_bytes: u32,
    /// Stdin of one run.
    pub stdin_bytes: u32,
    /// Largest chunk of output: depends on the codec.
    pub chunk_bytes_max: u32,
}

impl Windows {
    /// Returns what each of `count` keepers behind one connection may have under way, so that all of
    /// them together keep to this. A run always has room for four chunks, or no keeper would take it:
    /// where many share, chunks are smaller.
    #[must_use]
    pub fn shared_by(self, count: usize) -> Self {
        let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        let connection_bytes = (self.connection_bytes / count).max(4);
        let run_bytes = self.run_bytes.min(connection_bytes);
        Self {
            run_bytes,
            connection_bytes,
            chunk_bytes_max: self.chunk_bytes_max.min(run_bytes / 4),
            ..self
        }
    }
}

impl ToKeeper {
    /// Returns the run that the message is about; `None` for `Attach` and `Leave`.
    pub fn run_id(&self) -> Option<RunId> {
        match self {
            Self::Attach { .. } | Self::Leave => None,
            Self::Start { run_id, .. }
            | Self::Resume { run_id, .. }
            | Self::Ack { run_id, .. }
            | Self::Stdin { run_id, .. }
            | Self::Resize { run_id, .. }
            | Self::Signal { run_id, .. }
            | Self::Cancel { run_id, .. }
            | Self::Forget { run_id } => Some(*run_id),
        }
    }
}

impl FromKeeper {
    /// Joins the journals of several keepers, as many as a list may have: the first, then those in which
    /// runs stand, then the others. Returns them with the runs that they have.
    pub fn join(
        journals: impl IntoIterator<Item = JournalId>,
        runs: Vec<RunSummary>,
    ) -> (Vec<JournalId>, Vec<RunSummary>) {
        let mut all = Vec::new();
        let mut seen = HashSet::new();
        for journal in journals {
            if seen.insert(journal) {
                all.push(journal);
            }
        }
        if all.len() <= limits::JOURNALS_MAX {
            return (all, runs);
        }
        let used: HashSet<_> = runs.iter().map(|run| run.journal_id).collect();
        let (first, rest) = all.split_at(1);
        let (used, others): (Vec<_>, Vec<_>) = rest.iter().partition(|id| used.contains(id));
        let told = first.iter().copied().chain(used).chain(others);
        let told: Vec<_> = told.take(limits::JOURNALS_MAX).collect();
        let kept: HashSet<_> = told.iter().copied().collect();
        let is_told = |run: &RunSummary| kept.contains(&run.journal_id);
        (told, runs.into_iter().filter(is_told).collect())
    }

    /// Cuts the list of what a node holds into [`FromKeeper::Runs`] that fit a frame. There is always
    /// one, none but an only one is empty, and the last says so.
    pub fn list(
        boot_id: BootId,
        journals: &[JournalId],
        runs: &[RunSummary],
        codec: Codec,
    ) -> impl Iterator<Item = Self> {
        let page_max = match codec {
            Codec::Postcard => limits::RUNS_PAGE_MAX,
            Codec::Json => limits::RUNS_PAGE_MAX_JSON,
        };
        let count = runs.len().div_ceil(page_max).max(1);
        (1..=count).map(move |number| Self::Runs {
            boot_id,
            journals: journals.to_vec(),
            runs: runs
                .iter()
                .skip((number - 1) * page_max)
                .take(page_max)
                .cloned()
                .collect(),
            last: number == count,
        })
    }

    /// Returns the run that the message is about; `None` for `Runs`.
    pub fn run_id(&self) -> Option<RunId> {
        match self {
            Self::Runs { .. } => None,
            Self::State { summary } => Some(summary.run_id),
            Self::Started { run_id, .. }
            | Self::Refused { run_id, .. }
            | Self::Output { run_id, .. }
            | Self::Gap { run_id, .. }
            | Self::StdinAck { run_id, .. }
            | Self::Ended { run_id, .. } => Some(*run_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::run::RunState;

    use super::*;

    fn summary(number: u16) -> RunSummary {
        let mut id = [0xff; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        RunSummary {
            run_id: RunId::from_bytes(id),
            digest: Digest::from_bytes([0xff; 32]),
            journal_id: JournalId::from_bytes([0xff; 16]),
            state: RunState::Running { pid: u32::MAX },
            totals: Totals {
                stdout: (1 << 53) - 1,
                stderr: (1 << 53) - 1,
            },
            stdin: (1 << 53) - 1,
        }
    }

    #[test]
    fn keepers_that_share_a_connection_keep_to_its_window_together() {
        let windows = Windows {
            run_bytes: 1000,
            connection_bytes: 8000,
            stdin_bytes: 300,
            chunk_bytes_max: 60,
        };
        assert_eq!(windows.shared_by(1), windows);
        let parts = [
            (2, 1000, 4000, 60),
            (9, 888, 888, 60),
            (50, 160, 160, 40),
            (9000, 4, 4, 1),
        ];
        for (count, run_bytes, connection_bytes, chunk_bytes_max) in parts {
            let part = Windows {
                run_bytes,
                connection_bytes,
                chunk_bytes_max,
                ..windows
            };
            assert_eq!(windows.shared_by(count), part);
        }
    }

    #[test]
    fn more_journals_than_a_list_has_are_left_out_of_it_with_their_runs() {
        let journal = |number: u16| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&number.to_be_bytes());
            JournalId::from_bytes(id)
        };
        let of = |number: u16| RunSummary {
            journal_id: journal(number),
            ..summary(number)
        };
        let few = [1, 2, 1, 3].map(journal);
        let (told, runs) = FromKeeper::join(few, vec![of(3)]);
        assert_eq!((told, runs), ([1, 2, 3].map(journal).to_vec(), vec![of(3)]));
        // The first is there, and those with runs.
        let many = (0..600).map(journal);
        let (told, runs) = FromKeeper::join(many, (300..550).map(of).collect());
        assert_eq!((told.len(), runs.len()), (limits::JOURNALS_MAX, 250));
        assert_eq!(told[0], journal(0));
        let many = (0..600).map(journal);
        let (told, runs) = FromKeeper::join(many, (0..600).map(of).collect());
        assert_eq!((told.len(), runs.len()), (limits::JOURNALS_MAX, 256));
        assert!(runs.iter().all(|run| told.contains(&run.journal_id)));
    }

    #[test]
    fn every_page_fits_a_frame_and_only_the_last_says_so() {
        let journals = vec![JournalId::from_bytes([1; 16]); 3];
        for codec in [Codec::Postcard, Codec::Json] {
            for count in [0, 1, 128, 129, 256, 257, 4096] {
                let runs: Vec<_> = (0..count).map(summary).collect();
                let boot_id = BootId::from_bytes([2; 16]);
                let pages: Vec<_> = FromKeeper::list(boot_id, &journals, &runs, codec)
                    .map(ToGateway::Run)
                    .collect();
                let mut heard = 0;
                for (at, page) in pages.iter().enumerate() {
                    codec.encode(page).unwrap();
                    let ToGateway::Run(FromKeeper::Runs { runs, last, .. }) = page else {
                        panic!("{page:?}");
                    };
                    heard += runs.len();
                    assert_eq!(*last, at + 1 == pages.len());
                }
                assert_eq!(heard, usize::from(count));
            }
        }
    }
}
