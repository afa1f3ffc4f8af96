//! What an asker holds: a run as a stream of output, and its end.
//!
//! Dropping any of these lets go of the output, never of the run. A follower is fed from memory
//! while it keeps up and reads the store when it lags; it slows nobody but itself.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream as FuturesStream;
use moltis_proto::RunId;
use moltis_proto::run::{GapReason, Stream};
use tokio::sync::watch;

use crate::output::{OutputError, OutputRead, Progress, RunOutput};
use crate::session::chain;
use crate::store::{RunRecord, RunStage, StoreError};

/// A follower that hears nothing for this long is given a sign of life.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Bytes of one [`RunEvent::Output`], at the most.
pub const EVENT_BYTES_MAX: usize = 256 * 1024;

/// Something that happened to a run.
#[derive(Debug, Clone, PartialEq)]
pub enum RunEvent {
    /// Bytes that it wrote.
    Output {
        /// To which of the two.
        stream: Stream,
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Bytes that it wrote and that are gone.
    Gap {
        /// Of which of the two.
        stream: Stream,
        /// Offset of the first byte that is gone.
        from: u64,
        /// Offset behind the last one.
        to: u64,
        /// Why.
        reason: GapReason,
    },
    /// It is over, and all of its output came before. The last event.
    Ended(Arc<RunRecord>),
    /// Nothing happened for a while.
    KeepAlive,
}

/// A run that was started, or met again.
#[derive(Debug, Clone)]
pub struct RunHandle {
    pub(super) record: watch::Receiver<Arc<RunRecord>>,
    pub(super) output: Arc<RunOutput>,
    pub(super) existed: bool,
    pub(super) unwritten: Arc<OnceLock<StoreError>>,
}

impl RunHandle {
    /// What an asker holds of a run that is over.
    pub(super) fn of_ended(record: RunRecord, output: Arc<RunOutput>) -> Self {
        Self {
            record: watch::channel(Arc::new(record)).1,
            output,
            existed: true,
            unwritten: Arc::default(),
        }
    }

    /// Returns its id.
    pub fn id(&self) -> RunId {
        self.record.borrow().id
    }

    /// Returns its record as it is now.
    pub fn record(&self) -> Arc<RunRecord> {
        Arc::clone(&self.record.borrow())
    }

    /// Returns its output.
    pub fn output(&self) -> &Arc<RunOutput> {
        &self.output
    }

    /// Returns whether an earlier request with the same key had made it.
    pub fn existed(&self) -> bool {
        self.existed
    }

    /// Returns why nobody hears how it ended: it is known here alone, and the store does not take it.
    /// `None` where it is not over, and where the store has taken it: then the
    /// [`record`](Self::record) has it.
    pub fn failure(&self) -> Option<&StoreError> {
        let failure = self.unwritten.get()?;
        (!self.is_over()).then_some(failure)
    }

    fn is_over(&self) -> bool {
        self.record.borrow().stage == RunStage::Ended
    }

    /// Waits until it is over, and returns the record with its ending; without one where there is a
    /// [`failure`](Self::failure).
    ///
    /// # Cancel safety
    /// Dropping it lets go of the waiting only.
    pub async fn wait(&mut self) -> Arc<RunRecord> {
        let unwritten = &self.unwritten;
        let ended =
            |record: &Arc<RunRecord>| record.stage == RunStage::Ended || unwritten.get().is_some();
        // An error means that nobody changes it any more: it is what it is.
        self.record.wait_for(ended).await.map(drop).ok();
        self.record()
    }

    /// Waits until its process is known to live, or it is over, and returns its record.
    ///
    /// # Cancel safety
    /// Dropping it lets go of the waiting only.
    pub async fn begun(&mut self) -> Arc<RunRecord> {
        let begun =
            |record: &Arc<RunRecord>| matches!(record.stage, RunStage::Running | RunStage::Ended);
        self.record.wait_for(begun).await.map(drop).ok();
        self.record()
    }

    /// Returns its output from these offsets on, and its end.
    pub fn follow(&self, stdout_from: u64, stderr_from: u64) -> Follow {
        Follow {
            changes: self.output.subscribe(),
            record: self.record.clone(),
            output: Arc::clone(&self.output),
            unwritten: Arc::clone(&self.unwritten),
            offsets: [stdout_from, stderr_from],
            complete: [false, false],
            turn: 0,
            over: false,
        }
    }
}

/// The output of a run as it comes, and its end.
#[derive(Debug)]
pub struct Follow {
    record: watch::Receiver<Arc<RunRecord>>,
    output: Arc<RunOutput>,
    changes: watch::Receiver<Progress>,
    unwritten: Arc<OnceLock<StoreError>>,
    offsets: [u64; 2],
    complete: [bool; 2],
    turn: usize,
    over: bool,
}

impl Follow {
    /// Returns the next event; `None` behind [`RunEvent::Ended`], and before it where output that is
    /// there cannot be read just now, its ending cannot be written, or nobody is left who could bring
    /// more. Whoever gets no [`RunEvent::Ended`] has not heard all, and follows anew from where it
    /// stands.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Option<RunEvent> {
        if self.over {
            return None;
        }
        loop {
            // What changes from here on is not missed.
            self.changes.borrow_and_update();
            self.record.borrow_and_update();
            match self.read().await {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(error) => {
                    let id = self.output.run_id();
                    tracing::warn!(run.id = %id, error = %chain(&error), "output of a run cannot be read; who follows it is cut off");
                    self.over = true;
                    return None;
                }
            }
            if self.complete == [true, true] {
                let record = Arc::clone(&self.record.borrow());
                if record.stage == RunStage::Ended {
                    self.over = true;
                    return Some(RunEvent::Ended(record));
                }
            }
            if self.unwritten.get().is_some() && self.record.borrow().stage != RunStage::Ended {
                self.over = true;
                return None;
            }
            let (changes, record) = (&mut self.changes, &mut self.record);
            let changed = async {
                tokio::select! {
                    biased; // a run that is let go of with its last word has told it
                    changed = changes.changed() => changed.is_ok(),
                    changed = record.changed() => changed.is_ok(),
                }
            };
            match tokio::time::timeout(KEEP_ALIVE, changed).await {
                Ok(true) => {}
                Ok(false) => {
                    let id = self.output.run_id();
                    tracing::error!(run.id = %id, "a run was let go of before it was over");
                    self.over = true;
                    return None;
                }
                Err(_elapsed) => return Some(RunEvent::KeepAlive),
            }
        }
    }

    /// Turns it into a stream.
    pub fn into_stream(self) -> impl FuturesStream<Item = RunEvent> + Send + 'static {
        futures_util::stream::unfold(self, async |mut follow| {
            let event = follow.next().await?;
            Some((event, follow))
        })
    }

    /// Reads what is there of both streams, in turn, so that none hides the other. An error is no
    /// gap: what cannot be read now may be read the next time.
    async fn read(&mut self) -> Result<Option<RunEvent>, OutputError> {
        for _ in Stream::BOTH {
            let stream = Stream::BOTH[self.turn];
            self.turn = 1 - self.turn;
            let at = stream.index();
            if self.complete[at] {
                continue;
            }
            let offset = self.offsets[at];
            match self.output.read(stream, offset, EVENT_BYTES_MAX).await? {
                OutputRead::Bytes(bytes) => {
                    self.offsets[at] += bytes.len() as u64;
                    return Ok(Some(RunEvent::Output {
                        stream,
                        offset,
                        bytes,
                    }));
                }
                OutputRead::Gap { to, reason, .. } => {
                    self.offsets[at] = to;
                    return Ok(Some(RunEvent::Gap {
                        stream,
                        from: offset,
                        to,
                        reason,
                    }));
                }
                OutputRead::End => self.complete[at] = true,
                OutputRead::Wait => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use moltis_proto::run::Totals;

    use super::*;
    use crate::exec::create::record_of;
    use crate::output::{EndedOutput, OutputLimits, Outputs};
    use crate::store::testing::run;

    #[tokio::test]
    async fn output_that_cannot_be_read_just_now_cuts_its_follower_off_and_is_no_gap() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = || Outputs::open(dir.path(), None, OutputLimits::default()).unwrap();
        let (id, bytes) = (run(1).id, Bytes::from(vec![7; 100_000]));
        let totals = Totals {
            stdout: bytes.len() as u64,
            stderr: 0,
        };
        let written = outputs().run(id).unwrap();
        written.append(Stream::Stdout, 0, bytes.clone()).unwrap();
        written.finish(totals);
        written.synced().await.unwrap();
        let ended = EndedOutput {
            totals,
            ..EndedOutput::default()
        };
        let mut record = record_of(run(1));
        (record.stage, record.totals) = (RunStage::Ended, totals);
        let output = outputs().ended(id, &ended).await.unwrap();
        let handle = RunHandle::of_ended(record, output);
        // A directory in the place of the file can be opened, and not be read.
        let segment = dir.path().join(format!("outputs/{id}/out-{:016x}", 0));
        let aside = dir.path().join("aside");
        std::fs::rename(&segment, &aside).unwrap();
        std::fs::create_dir(&segment).unwrap();
        let mut follow = handle.follow(0, 0);
        assert_eq!(follow.next().await, None);
        assert_eq!(follow.next().await, None);
        std::fs::remove_dir(&segment).unwrap();
        std::fs::rename(&aside, &segment).unwrap();
        let expected = RunEvent::Output {
            stream: Stream::Stdout,
            offset: 0,
            bytes,
        };
        assert_eq!(handle.follow(0, 0).next().await, Some(expected));
    }
}
