//! A client of a keeper as a gateway would be one: it takes output, checks its order, and
//! acknowledges.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use moltis_node::keeper::KeeperStream;
use moltis_node::keeper::wire::{FrameReader, FrameWriter};
use moltis_proto::key::Digest;
use moltis_proto::message::Windows;
use moltis_proto::run::{
    Command, Ending, GapReason, RunSpec, RunSummary, StdinMode, Stream, Totals,
};
use moltis_proto::{BootId, FromKeeper, JournalId, RunId, RunRefusal, ToKeeper, limits};
use tokio::io::{ReadHalf, WriteHalf};

/// Nothing that a keeper does in these tests takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) const WINDOWS: Windows = Windows {
    run_bytes: limits::RUN_WINDOW_BYTES,
    connection_bytes: limits::CONNECTION_WINDOW_BYTES,
    stdin_bytes: limits::STDIN_WINDOW_BYTES,
    chunk_bytes_max: 60 * 1024,
};

/// What a client knows of one run.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) pid: Option<u32>,
    pub(crate) next: [u64; 2],
    /// Bytes that came and are not acknowledged.
    under_way: u64,
    /// The bytes, unless there are too many to keep.
    pub(crate) bytes: [Vec<u8>; 2],
    pub(crate) gaps: Vec<(Stream, u64, u64, GapReason)>,
    pub(crate) stdin: Option<(u64, bool)>,
    pub(crate) ended: Option<(Ending, Totals)>,
    pub(crate) refused: Option<RunRefusal>,
    pub(crate) state: Option<RunSummary>,
}

impl Known {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.bytes[0]).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.bytes[1]).into_owned()
    }

    pub(crate) fn ending(&self) -> &Ending {
        &self.ended.as_ref().expect("the run has ended").0
    }
}

/// What a keeper said first.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) boot_id: BootId,
    pub(crate) journals: Vec<JournalId>,
    pub(crate) runs: Vec<RunSummary>,
}

pub(crate) struct Client {
    reader: FrameReader<ReadHalf<KeeperStream>>,
    writer: FrameWriter<WriteHalf<KeeperStream>>,
    pub(crate) runs: HashMap<RunId, Known>,
    /// Whether output is acknowledged as it comes.
    pub(crate) acknowledges: bool,
    /// Whether output is kept, or only counted.
    pub(crate) keeps: bool,
}

pub(crate) fn id(number: u8) -> RunId {
    RunId::from_bytes([number; 16])
}

pub(crate) fn shell(line: &str) -> RunSpec {
    spec(Command::Shell(line.to_owned()))
}

pub(crate) fn argv(words: &[&str]) -> RunSpec {
    spec(Command::Argv(
        words.iter().map(|&word| word.to_owned()).collect(),
    ))
}

fn spec(command: Command) -> RunSpec {
    RunSpec {
        command,
        cwd: None,
        env: std::collections::BTreeMap::new(),
        timeout_ms: None,
        grace_ms: 1_000,
        stdin: StdinMode::Empty,
        tty: None,
    }
}

impl Client {
    /// Attaches and returns what the keeper holds.
    pub(crate) async fn attach(stream: KeeperStream) -> (Self, Listed) {
        Self::attach_with(stream, WINDOWS).await
    }

    pub(crate) async fn attach_with(stream: KeeperStream, windows: Windows) -> (Self, Listed) {
        let mut client = Self::knock(stream, windows).await;
        let listed = client.listed().await;
        (client, listed)
    }

    /// Asks to be attached; whether it is, is still to be heard.
    pub(crate) async fn knock(stream: KeeperStream, windows: Windows) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let mut client = Self {
            reader: FrameReader::new(reader),
            writer: FrameWriter::new(writer),
            runs: HashMap::new(),
            acknowledges: true,
            keeps: true,
        };
        client.say(ToKeeper::Attach { windows }).await;
        client
    }

    async fn listed(&mut self) -> Listed {
        let mut all = Vec::new();
        loop {
            let FromKeeper::Runs {
                boot_id,
                journals,
                runs,
                last,
            } = self.next().await
            else {
                panic!("the list of runs comes first");
            };
            all.extend(runs);
            if last {
                return Listed {
                    boot_id,
                    journals,
                    runs: all,
                };
            }
        }
    }

    pub(crate) async fn say(&mut self, message: ToKeeper) {
        self.writer.send(&message).await.unwrap();
    }

    pub(crate) async fn start(&mut self, run_id: RunId, spec: RunSpec) {
        self.runs.insert(run_id, Known::default());
        self.start_with_digest(run_id, 1, spec).await;
    }

    pub(crate) async fn start_with_digest(&mut self, run_id: RunId, digest: u8, spec: RunSpec) {
        let digest = Digest::from_bytes([digest; 32]);
        let spec = Box::new(spec);
        self.say(ToKeeper::Start {
            run_id,
            digest,
            spec,
        })
        .await;
    }

    pub(crate) async fn say_raw(&mut self, frame: &[u8]) {
        self.writer.send_encoded(frame).await.unwrap();
    }

    /// Starts a run and takes everything to its end.
    pub(crate) async fn run(&mut self, run_id: RunId, spec: RunSpec) -> &Known {
        self.start(run_id, spec).await;
        self.finish(run_id).await
    }

    /// Takes everything until this run is over or refused.
    pub(crate) async fn finish(&mut self, run_id: RunId) -> &Known {
        self.until(run_id, |known| {
            known.ended.is_some() || known.refused.is_some()
        })
        .await
    }

    /// Takes messages until one run is as asked.
    pub(crate) async fn until(
        &mut self,
        run_id: RunId,
        mut is_so: impl FnMut(&Known) -> bool,
    ) -> &Known {
        while !is_so(self.runs.entry(run_id).or_default()) {
            let message = self.next().await;
            self.take(message).await;
        }
        &self.runs[&run_id]
    }

    /// Goes on with what is there of a run, from these offsets.
    pub(crate) async fn resume(&mut self, run_id: RunId, stdout: u64, stderr: u64) {
        let known = self.runs.entry(run_id).or_default();
        known.next = [stdout, stderr];
        known.under_way = 0;
        known.ended = None;
        self.say(ToKeeper::Resume {
            run_id,
            stdout,
            stderr,
        })
        .await;
    }

    pub(crate) async fn acknowledge(&mut self, run_id: RunId) {
        let known = self.runs.get_mut(&run_id).unwrap();
        known.under_way = 0;
        let [stdout, stderr] = known.next;
        let ack = ToKeeper::Ack {
            run_id,
            stdout,
            stderr,
        };
        self.writer.send(&ack).await.ok(); // a keeper that leaves may be gone already
    }

    pub(crate) async fn stdin(&mut self, run_id: RunId, offset: u64, bytes: &[u8], eof: bool) {
        let bytes = Bytes::copy_from_slice(bytes).into();
        self.say(ToKeeper::Stdin {
            run_id,
            offset,
            bytes,
            eof,
        })
        .await;
    }

    pub(crate) async fn cancel(&mut self, run_id: RunId, grace_ms: u64) {
        self.say(ToKeeper::Cancel { run_id, grace_ms }).await;
    }

    /// Returns the next message; panics when the keeper goes or is silent for long.
    pub(crate) async fn next(&mut self) -> FromKeeper {
        self.poll().await.expect("the keeper stays")
    }

    /// Returns the next message; `None` when the keeper has closed.
    pub(crate) async fn poll(&mut self) -> Option<FromKeeper> {
        let message = tokio::time::timeout(PATIENCE, self.reader.message());
        message
            .await
            .expect("the keeper is not silent")
            .ok()
            .flatten()
    }

    pub(crate) async fn take(&mut self, message: FromKeeper) {
        let run_id = message.run_id().expect("a message about a run");
        let known = self.runs.entry(run_id).or_default();
        match message {
            FromKeeper::Started { pid, .. } => known.pid = Some(pid),
            FromKeeper::State { summary } => known.state = Some(summary),
            FromKeeper::Refused { code, .. } => known.refused = Some(code),
            FromKeeper::Output {
                stream,
                offset,
                bytes,
                ..
            } => {
                let n = stream.index();
                assert_eq!(offset, known.next[n], "output in order");
                assert!(known.ended.is_none(), "nothing behind the ending");
                known.next[n] += bytes.0.len() as u64;
                if self.keeps {
                    known.bytes[n].extend_from_slice(&bytes.0);
                }
                known.under_way += bytes.0.len() as u64;
                let under_way = known.under_way;
                assert!(
                    under_way <= u64::from(WINDOWS.run_bytes),
                    "within the window"
                );
                if self.acknowledges && under_way >= u64::from(WINDOWS.run_bytes / 4) {
                    self.acknowledge(run_id).await;
                }
            }
            FromKeeper::Gap {
                stream,
                from,
                to,
                reason,
                ..
            } => {
                let n = stream.index();
                assert_eq!(from, known.next[n], "a gap in order");
                known.next[n] = to;
                known.gaps.push((stream, from, to, reason));
            }
            FromKeeper::StdinAck { offset, closed, .. } => known.stdin = Some((offset, closed)),
            FromKeeper::Ended { ending, totals, .. } => {
                assert_eq!(
                    known.next,
                    [totals.stdout, totals.stderr],
                    "all output came before"
                );
                known.ended = Some((*ending, totals));
                if self.acknowledges {
                    self.acknowledge(run_id).await;
                }
            }
            FromKeeper::Runs { .. } => panic!("a list of runs in the middle"),
        }
    }
}
