//! The play of a keeper: it answers as one would whose commands are quick. Pure.
//!
//! A command line is read as words: `print <bytes>` writes so much to stdout, `exit <code>` ends
//! with that code; all else is ignored. A run is over as soon as it has begun, and is kept until
//! the gateway says `Forget`, over broken connections too.

use std::collections::HashMap;

use moltis_proto::key::Digest;
use moltis_proto::run::{
    Command, Ending, ExitStatus, Outcome, RunSpec, RunState, RunSummary, Stream, Totals,
};
use moltis_proto::{BootId, FromKeeper, JournalId, Payload, RunId, ToKeeper};

/// Bytes that a command may print: they go in one frame, whatever the codec.
const PRINTED_MAX: u64 = 32 * 1024;

/// What one node holds.
#[derive(Debug)]
pub(super) struct Keeper {
    boot_id: BootId,
    journal_id: JournalId,
    runs: HashMap<RunId, Held>,
}

#[derive(Debug)]
struct Held {
    digest: Digest,
    code: i32,
    printed: u64,
}

impl Keeper {
    pub(super) fn new(boot_id: BootId, journal_id: JournalId) -> Self {
        Self {
            boot_id,
            journal_id,
            runs: HashMap::new(),
        }
    }

    /// Returns what a connection begins with.
    pub(super) fn list(&self) -> FromKeeper {
        let runs = self.runs.iter().map(|(id, held)| self.summary(*id, held));
        FromKeeper::Runs {
            boot_id: self.boot_id,
            journals: vec![self.journal_id],
            runs: runs.collect(),
            last: true,
        }
    }

    /// Takes a message and returns the answer.
    pub(super) fn handle(&mut self, message: ToKeeper) -> Vec<FromKeeper> {
        match message {
            ToKeeper::Start {
                run_id,
                digest,
                spec,
            } => self.start(run_id, digest, &spec),
            ToKeeper::Resume { run_id, stdout, .. } => match self.runs.get(&run_id) {
                Some(held) => held.rest(run_id, stdout),
                None => Vec::new(),
            },
            ToKeeper::Forget { run_id } => {
                self.runs.remove(&run_id);
                self.runs.shrink_to_fit();
                Vec::new()
            }
            ToKeeper::Attach { .. }
            | ToKeeper::Ack { .. }
            | ToKeeper::Stdin { .. }
            | ToKeeper::Resize { .. }
            | ToKeeper::Signal { .. }
            | ToKeeper::Cancel { .. }
            | ToKeeper::Leave => Vec::new(),
        }
    }

    fn start(&mut self, run_id: RunId, digest: Digest, spec: &RunSpec) -> Vec<FromKeeper> {
        if let Some(held) = self.runs.get(&run_id) {
            let summary = self.summary(run_id, held);
            return vec![FromKeeper::State { summary }];
        }
        let line = match &spec.command {
            Command::Argv(argv) => argv.join(" "),
            Command::Shell(line) => line.clone(),
        };
        let held = Held {
            digest,
            code: i32::try_from(word_after(&line, "exit")).unwrap_or(1),
            printed: word_after(&line, "print").min(PRINTED_MAX),
        };
        let mut said = vec![FromKeeper::Started { run_id, pid: 1 }];
        said.extend(held.rest(run_id, 0));
        self.runs.insert(run_id, held);
        said
    }

    fn summary(&self, run_id: RunId, held: &Held) -> RunSummary {
        RunSummary {
            run_id,
            digest: held.digest,
            journal_id: self.journal_id,
            state: RunState::Ended,
            totals: held.totals(),
            stdin: 0,
        }
    }
}

impl Held {
    /// Returns the output from this offset on, and the ending.
    fn rest(&self, run_id: RunId, offset: u64) -> Vec<FromKeeper> {
        let mut said = Vec::new();
        let left = usize::try_from(self.printed.saturating_sub(offset)).unwrap_or(0);
        if left > 0 {
            said.push(FromKeeper::Output {
                run_id,
                stream: Stream::Stdout,
                offset,
                bytes: Payload(vec![b'x'; left].into()),
            });
        }
        said.push(FromKeeper::Ended {
            run_id,
            ending: Box::new(Ending {
                outcome: Outcome::Exited,
                reason: None,
                status: Some(ExitStatus::Code(self.code)),
                detail: String::new(),
                duration_ms: 1,
                descendants_may_survive: false,
            }),
            totals: self.totals(),
        });
        said
    }

    fn totals(&self) -> Totals {
        Totals {
            stdout: self.printed,
            stderr: 0,
        }
    }
}

/// Returns the number behind this word; 0 where there is none.
fn word_after(line: &str, word: &str) -> u64 {
    let mut words = line.split_whitespace();
    words.find(|found| *found == word);
    words
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use moltis_proto::run::StdinMode;

    use super::*;

    const RUN: RunId = RunId::from_bytes([7; 16]);

    fn start(line: &str) -> ToKeeper {
        ToKeeper::Start {
            run_id: RUN,
            digest: Digest::from_bytes([1; 32]),
            spec: Box::new(RunSpec {
                command: Command::Shell(line.to_owned()),
                cwd: None,
                env: BTreeMap::new(),
                timeout_ms: None,
                grace_ms: 0,
                stdin: StdinMode::Empty,
                tty: None,
            }),
        }
    }

    fn keeper() -> Keeper {
        Keeper::new(BootId::from_bytes([1; 16]), JournalId::from_bytes([2; 16]))
    }

    #[test]
    fn a_run_is_told_whole_kept_and_forgotten() {
        let mut keeper = keeper();
        let said = keeper.handle(start("print 10 exit 3"));
        let [
            FromKeeper::Started { .. },
            FromKeeper::Output { bytes, .. },
            FromKeeper::Ended { ending, .. },
        ] = &said[..]
        else {
            panic!("{said:?}");
        };
        assert_eq!(bytes.0.len(), 10);
        assert_eq!(ending.status, Some(ExitStatus::Code(3)));
        let again = keeper.handle(start("print 10 exit 3"));
        assert!(matches!(again[..], [FromKeeper::State { .. }]), "once");
        assert!(matches!(keeper.list(), FromKeeper::Runs { runs, .. } if runs.len() == 1));
        keeper.handle(ToKeeper::Forget { run_id: RUN });
        assert!(matches!(keeper.list(), FromKeeper::Runs { runs, .. } if runs.is_empty()));
    }

    #[test]
    fn after_a_cut_the_rest_comes_and_no_more() {
        let mut keeper = keeper();
        keeper.handle(start("print 10"));
        let resume = |stdout| ToKeeper::Resume {
            run_id: RUN,
            stdout,
            stderr: 0,
        };
        let rest = keeper.handle(resume(4));
        assert!(
            matches!(&rest[..], [FromKeeper::Output { offset: 4, bytes, .. }, _] if bytes.0.len() == 6)
        );
        assert!(matches!(
            keeper.handle(resume(10))[..],
            [FromKeeper::Ended { .. }]
        ));
    }
}
