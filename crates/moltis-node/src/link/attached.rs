//! The keepers that a session is attached to: whose run is whose, and frames from all in turn.
//!
//! Most often there is one. After an upgrade there may be several: new runs go to the first, and
//! what belongs to a run of an older one goes there until that run is forgotten.

use std::collections::{HashMap, VecDeque};
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use moltis_proto::message::Windows;
use moltis_proto::run::RunSummary;
use moltis_proto::{BootId, Codec, FromKeeper, JournalId, RunId, ToGateway, ToKeeper};
use tokio::io::{AsyncWrite as _, ReadHalf, WriteHalf};
use tokio_util::sync::CancellationToken;

use crate::error::LinkError;
use crate::keeper::KeeperStream;
use crate::keeper::wire::{FrameReader, WireError, decode, frame_into};

/// Bytes that wait for one keeper to take them. When they are as many, nothing more is read from
/// the gateway until the keeper has caught up.
const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// How long one keeper may take to say what it holds.
const LIST_TIME: Duration = Duration::from_secs(10);

/// Bytes that a way to a keeper keeps when nothing waits.
const IDLE_BYTES: usize = 4 * 1024;

/// What a session reads from its keepers, and what it hands to them: two halves, used at once.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) from: FromKeepers,
    pub(super) to: ToKeepers,
}

/// Frames of all keepers, in turn.
#[derive(Debug)]
pub(super) struct FromKeepers {
    peers: Vec<Option<Peer>>,
    /// Who is asked first for the next frame.
    turn: usize,
}

#[derive(Debug)]
struct Peer {
    reader: FrameReader<ReadHalf<KeeperStream>>,
    /// The process, where it is another one.
    pid: Option<i32>,
    released: CancellationToken,
}

/// The way to the keeper of each run.
#[derive(Debug)]
pub(super) struct ToKeepers {
    peers: Vec<Option<Door>>,
    /// Runs of all keepers but the first, each with its keeper.
    elsewhere: HashMap<RunId, usize>,
}

/// The way to one keeper.
#[derive(Debug)]
struct Door {
    writer: WriteHalf<KeeperStream>,
    /// Frames, or the rest of one, that the keeper has not taken.
    waiting: BytesMut,
    released: CancellationToken,
    /// It holds none of our runs any more: when it has taken what waits, it is released.
    is_done: bool,
}

impl Attached {
    /// Takes the floor on each keeper, and returns what they hold as the pages to send.
    pub(super) async fn new(
        streams: Vec<KeeperStream>,
        windows: Windows,
        codec: Codec,
    ) -> Result<(Self, VecDeque<ToGateway>), LinkError> {
        let windows = windows.shared_by(streams.len());
        let attach = Codec::Postcard.encode(&ToKeeper::Attach { windows });
        let attach = attach.map_err(LinkError::Codec)?;
        let (mut readers, mut doors) = (Vec::new(), Vec::new());
        for stream in streams {
            let pid = stream.pid();
            let (reader, writer) = tokio::io::split(stream);
            let released = CancellationToken::new();
            readers.push(Some(Peer {
                reader: FrameReader::new(reader),
                pid,
                released: released.clone(),
            }));
            let mut door = Door {
                writer,
                waiting: BytesMut::new(),
                released,
                is_done: false,
            };
            frame_into(&attach, &mut door.waiting);
            doors.push(Some(door));
        }
        let mut attached = Self {
            from: FromKeepers {
                peers: readers,
                turn: 0,
            },
            to: ToKeepers {
                peers: doors,
                elsewhere: HashMap::new(),
            },
        };
        while attached.to.has_waiting() {
            attached.to.drive().await?;
        }
        let pages = attached.list(codec).await?;
        Ok((attached, pages))
    }

    async fn list(&mut self, codec: Codec) -> Result<VecDeque<ToGateway>, LinkError> {
        let mut boot = None;
        let mut journals = Vec::new();
        let mut runs = Vec::new();
        for (index, peer) in self.from.peers.iter_mut().flatten().enumerate() {
            let pid = peer.pid;
            let listed = tokio::time::timeout(LIST_TIME, peer.list()).await;
            let listed = listed.unwrap_or_else(|_elapsed| Err(says_nothing(pid)))?;
            boot = boot.or(Some(listed.boot_id));
            journals.extend(listed.journals);
            if index > 0 {
                self.to.own(index, &listed.runs);
            }
            runs.extend(listed.runs);
        }
        let boot_id = boot.ok_or_else(|| keeper_broke("lists nothing"))?;
        let (journals, runs) = FromKeeper::join(journals, runs);
        let pages = FromKeeper::list(boot_id, &journals, &runs, codec);
        Ok(pages.map(ToGateway::Run).collect())
    }
}

impl FromKeepers {
    /// Returns the next frame of any keeper, in turn, with `first` in front of it.
    pub(super) fn poll_frame_behind(
        &mut self,
        first: u8,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, LinkError>> {
        let count = self.peers.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let released = |peer: &mut Peer| peer.released.is_cancelled();
            self.peers[index].take_if(released);
            let Some(peer) = &mut self.peers[index] else {
                continue;
            };
            // Cancel safe: what was read stays in the reader.
            let next = pin!(peer.reader.next_behind(first)).poll(cx);
            match next {
                Poll::Pending => {}
                Poll::Ready(Ok(Some(frame))) => {
                    self.turn = (index + 1) % count;
                    return Poll::Ready(Ok(frame));
                }
                Poll::Ready(end) => return Poll::Ready(Err(ended(end))),
            }
        }
        Poll::Pending
    }
}

impl ToKeepers {
    /// Hands a frame to the keeper of its run; [`drive`](Self::drive) brings it there.
    pub(super) fn deliver(&mut self, message: &ToKeeper, frame: &[u8]) {
        let keeper = message
            .run_id()
            .and_then(|run_id| self.elsewhere.get(&run_id).copied())
            .unwrap_or(0);
        if let Some(door) = &mut self.peers[keeper] {
            frame_into(frame, &mut door.waiting);
        }
        if let ToKeeper::Forget { run_id } = message
            && let Some(keeper) = self.elsewhere.remove(run_id)
        {
            self.release_idle(keeper);
        }
    }

    /// Returns whether some keeper has too much to take: nothing more may be delivered then.
    pub(super) fn is_full(&self) -> bool {
        let mut doors = self.peers.iter().flatten();
        doors.any(|door| door.waiting.len() > WAITING_BYTES_MAX)
    }

    /// Returns whether there is anything to [`drive`](Self::drive).
    pub(super) fn has_waiting(&self) -> bool {
        let mut doors = self.peers.iter().flatten();
        doors.any(|door| !door.waiting.is_empty())
    }

    /// Writes what waits, as far as the keepers take it; waits until one of them takes something.
    ///
    /// # Cancel safety
    /// Cancel safe: what was written is not written again.
    pub(super) async fn drive(&mut self) -> Result<(), LinkError> {
        poll_fn(|cx| self.poll_drive(cx)).await
    }

    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let mut took = Poll::Pending;
        for slot in &mut self.peers {
            let Some(door) = slot else {
                continue;
            };
            match door.poll_write(cx) {
                Poll::Ready(Ok(())) => took = Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            if door.is_done && door.waiting.is_empty() {
                door.released.cancel();
                *slot = None;
            }
        }
        took
    }

    /// These runs belong to an older keeper.
    fn own(&mut self, keeper: usize, runs: &[RunSummary]) {
        let runs = runs.iter().map(|run| (run.run_id, keeper));
        self.elsewhere.extend(runs);
        self.release_idle(keeper);
    }

    /// An older keeper stays for its runs only; as long as we are attached it would stay for ever.
    /// What was handed in before is still written to it.
    fn release_idle(&mut self, keeper: usize) {
        let holds_run = self.elsewhere.values().any(|owner| *owner == keeper);
        if keeper == 0 || holds_run {
            return;
        }
        if let Some(door) = &mut self.peers[keeper] {
            door.is_done = true;
        }
        self.peers[keeper].take_if(|door| {
            let is_over = door.waiting.is_empty();
            if is_over {
                door.released.cancel();
            }
            is_over
        });
    }
}

impl Door {
    /// Writes what waits. Ready when something was written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let mut took = Poll::Pending;
        while !self.waiting.is_empty() {
            match Pin::new(&mut self.writer).poll_write(cx, &self.waiting) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(gone())),
                Poll::Ready(Ok(bytes)) => {
                    self.waiting.advance(bytes);
                    took = Poll::Ready(Ok(()));
                }
                Poll::Pending => return took,
            }
        }
        if self.waiting.capacity() > IDLE_BYTES {
            self.waiting = BytesMut::new();
        }
        took
    }
}

/// What one keeper holds.
#[derive(Debug)]
struct Listed {
    boot_id: BootId,
    journals: Vec<JournalId>,
    runs: Vec<RunSummary>,
}

impl Peer {
    async fn list(&mut self) -> Result<Listed, LinkError> {
        let mut all = Vec::new();
        loop {
            let frame = match self.reader.next().await {
                Ok(Some(frame)) => frame,
                end => return Err(ended(end)),
            };
            let message =
                decode(&frame).map_err(|error| keeper_error("is not understood", error))?;
            let FromKeeper::Runs {
                boot_id,
                journals,
                runs,
                last,
            } = message
            else {
                return Err(keeper_broke("says something before its list of runs"));
            };
            all.extend(runs);
            if last {
                return Ok(Listed {
                    boot_id,
                    journals,
                    runs: all,
                });
            }
        }
    }
}

fn ended(end: Result<Option<Bytes>, WireError>) -> LinkError {
    match end {
        Err(WireError::RuleBroken) => {
            LinkError::Protocol("a run message came that breaks a rule of its run")
        }
        Err(WireError::Io(source)) => LinkError::Keeper {
            problem: "has gone",
            source: source.into(),
        },
        Err(error) => keeper_error("is not understood", error),
        Ok(_) => gone(),
    }
}

/// What it holds cannot be guessed: whatever is not listed is taken for lost.
fn says_nothing(pid: Option<i32>) -> LinkError {
    let seconds = LIST_TIME.as_secs();
    let words = match pid {
        Some(pid) => format!(
            "process {pid} did not list its runs within {seconds} s: `kill -CONT {pid}` where it is stopped; `kill -9 {pid}` ends it and its runs"
        ),
        None => format!("it did not list its runs within {seconds} s"),
    };
    LinkError::Keeper {
        problem: "says nothing",
        source: io::Error::new(io::ErrorKind::TimedOut, words).into(),
    }
}

fn gone() -> LinkError {
    LinkError::Keeper {
        problem: "has gone",
        source: io::Error::from(io::ErrorKind::BrokenPipe).into(),
    }
}

fn keeper_broke(problem: &'static str) -> LinkError {
    LinkError::Keeper {
        problem,
        source: io::Error::from(io::ErrorKind::InvalidData).into(),
    }
}

fn keeper_error(problem: &'static str, error: WireError) -> LinkError {
    LinkError::Keeper {
        problem,
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use moltis_proto::key::Digest;
    use moltis_proto::run::{RunState, Totals};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const WINDOWS: Windows = Windows {
        run_bytes: 1000,
        connection_bytes: 3000,
        stdin_bytes: 300,
        chunk_bytes_max: 60,
    };

    fn summary(number: u8) -> RunSummary {
        RunSummary {
            run_id: RunId::from_bytes([number; 16]),
            digest: Digest::from_bytes([0; 32]),
            journal_id: JournalId::from_bytes([number; 16]),
            state: RunState::Running { pid: 1 },
            totals: Totals::default(),
            stdin: 0,
        }
    }

    /// A keeper that lists one run; returns what it was told that it may have under way.
    async fn keeper(number: u8, stream: tokio::io::DuplexStream) -> Windows {
        let (reader, mut writer) = tokio::io::split(KeeperStream::from(stream));
        let mut reader = FrameReader::new(reader);
        let attach = reader.next().await.unwrap().unwrap();
        let ToKeeper::Attach { windows } = decode(&attach).unwrap() else {
            panic!("it was told something else");
        };
        let list = FromKeeper::Runs {
            boot_id: BootId::from_bytes([0; 16]),
            journals: vec![JournalId::from_bytes([number; 16])],
            runs: vec![summary(number)],
            last: true,
        };
        let mut frame = BytesMut::new();
        frame_into(&Codec::Postcard.encode(&list).unwrap(), &mut frame);
        writer.write_all(&frame).await.unwrap();
        windows
    }

    #[tokio::test(start_paused = true)]
    async fn a_keeper_that_says_nothing_is_named() {
        let ((ours, theirs), (mute, _stopped)) = (tokio::io::duplex(4096), tokio::io::duplex(4096));
        let mut keepers = tokio::task::JoinSet::new();
        keepers.spawn(keeper(1, theirs));
        let streams = vec![ours.into(), mute.into()];
        let attached = Attached::new(streams, WINDOWS, Codec::Postcard).await;
        let error = attached.expect_err("one says nothing");
        assert_eq!(error.to_string(), "this machine's keeper says nothing");
        let (ours, _stopped) = tokio::net::UnixStream::pair().unwrap();
        let ours = KeeperStream::from(ours);
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(ours.pid(), Some(me));
    }

    #[tokio::test]
    async fn keepers_share_the_window_of_the_connection() {
        let mut keepers = tokio::task::JoinSet::new();
        let mut streams = Vec::new();
        for number in 1..=4 {
            let (ours, theirs) = tokio::io::duplex(4096);
            streams.push(ours.into());
            keepers.spawn(keeper(number, theirs));
        }
        let attached = Attached::new(streams, WINDOWS, Codec::Postcard);
        let attached = tokio::time::timeout(Duration::from_secs(5), attached).await;
        attached.unwrap().unwrap();
        for windows in keepers.join_all().await {
            assert_eq!((windows.run_bytes, windows.connection_bytes), (750, 750));
        }
    }
}
