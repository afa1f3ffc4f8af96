//! The keeper of the gateway's machine, played: every run prints the same, and is over at once.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use moltis_proto::key::Digest;
use moltis_proto::run::{
    Ending, ExitStatus, GapReason, Outcome, RunState, RunSummary, Stream, Totals,
};
use moltis_proto::{BootId, Codec, FromKeeper, JournalId, Payload, RunId, RunRefusal, ToKeeper};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

pub(crate) const BOOT: BootId = BootId::from_bytes([1; 16]);
const JOURNAL: JournalId = JournalId::from_bytes([2; 16]);

/// Bytes that each run has printed, and behind which as many are gone.
pub(crate) const PRINTED: u64 = 100_000;

/// What a played keeper holds: it outlives the gateway.
#[derive(Default)]
pub(crate) struct Held {
    runs: Mutex<BTreeMap<RunId, Digest>>,
    forgotten: Mutex<Vec<RunId>>,
}

impl Held {
    /// The keeper of one connection.
    pub(crate) async fn serve(self: Arc<Self>, mut stream: DuplexStream) -> io::Result<()> {
        loop {
            let length = stream.read_u32().await?;
            let mut frame = vec![0; length as usize];
            stream.read_exact(&mut frame).await?;
            match Codec::Postcard.decode(&frame).unwrap() {
                ToKeeper::Attach { .. } => say(&mut stream, self.list()).await?,
                ToKeeper::Start { run_id, spec, .. } if !spec.is_sound() => {
                    let forgotten = self.forgotten.lock().unwrap().contains(&run_id);
                    let code = if forgotten {
                        RunRefusal::Forgotten
                    } else {
                        RunRefusal::Invalid
                    };
                    say(&mut stream, FromKeeper::Refused { run_id, code }).await?;
                }
                ToKeeper::Start { run_id, digest, .. } => {
                    self.runs.lock().unwrap().insert(run_id, digest);
                    say(&mut stream, FromKeeper::Started { run_id, pid: 7 }).await?;
                    tell(&mut stream, run_id, 0).await?;
                }
                ToKeeper::Resume { run_id, stdout, .. } => {
                    tell(&mut stream, run_id, stdout).await?;
                }
                ToKeeper::Forget { run_id } => self.forget(run_id),
                _ => {}
            }
        }
    }

    fn forget(&self, run_id: RunId) {
        let mut forgotten = self.forgotten.lock().unwrap();
        if !forgotten.contains(&run_id) {
            forgotten.push(run_id);
            forgotten.sort_unstable();
        }
    }

    /// Returns every run that was started.
    pub(crate) fn ever(&self) -> Vec<RunId> {
        self.runs.lock().unwrap().keys().copied().collect()
    }

    /// Returns those that need not be kept any more.
    pub(crate) fn forgotten(&self) -> Vec<RunId> {
        self.forgotten.lock().unwrap().clone()
    }

    fn list(&self) -> FromKeeper {
        let (runs, forgotten) = (self.runs.lock().unwrap(), self.forgotten());
        let held = runs
            .iter()
            .filter(|(run_id, _)| !forgotten.contains(run_id));
        let runs = held.map(|(run_id, digest)| RunSummary {
            run_id: *run_id,
            digest: *digest,
            journal_id: JOURNAL,
            state: RunState::Ended,
            totals: totals(),
            stdin: 0,
        });
        FromKeeper::Runs {
            boot_id: BOOT,
            journals: vec![JOURNAL],
            runs: runs.collect(),
            last: true,
        }
    }
}

fn totals() -> Totals {
    Totals {
        stdout: 2 * PRINTED,
        stderr: 0,
    }
}

/// Every run prints the same: half of it is gone already.
async fn tell(stream: &mut DuplexStream, run_id: RunId, from: u64) -> io::Result<()> {
    let mut offset = from;
    while offset < PRINTED {
        let to = PRINTED.min(offset + 16 * 1024);
        let message = FromKeeper::Output {
            run_id,
            stream: Stream::Stdout,
            offset,
            bytes: Payload((offset..to).map(byte).collect::<Bytes>()),
        };
        say(stream, message).await?;
        offset = to;
    }
    if offset < 2 * PRINTED {
        let gap = FromKeeper::Gap {
            run_id,
            stream: Stream::Stdout,
            from: offset,
            to: 2 * PRINTED,
            reason: GapReason::Limit,
        };
        say(stream, gap).await?;
    }
    let ending = Ending {
        outcome: Outcome::Exited,
        reason: None,
        status: Some(ExitStatus::Code(5)),
        detail: String::new(),
        duration_ms: 3,
        descendants_may_survive: false,
    };
    let ended = FromKeeper::Ended {
        run_id,
        ending: Box::new(ending),
        totals: totals(),
    };
    say(stream, ended).await
}

/// Returns the byte that belongs at an offset.
pub(crate) fn byte(offset: u64) -> u8 {
    b'a' + (offset % 23) as u8
}

pub(crate) async fn say(stream: &mut DuplexStream, message: FromKeeper) -> io::Result<()> {
    let bytes = Codec::Postcard.encode(&message).unwrap();
    stream
        .write_u32(u32::try_from(bytes.len()).unwrap())
        .await?;
    stream.write_all(&bytes).await
}
