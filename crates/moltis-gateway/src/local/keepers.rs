//! The keepers of this machine that live: whose run is whose, and frames from all in turn.
//!
//! Most often there is one. After an upgrade there may be several: new runs go to the first, and
//! what belongs to a run of an older one goes there until that run is forgotten. Then the older one
//! is let go, so that it may leave.

use std::collections::HashMap;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use moltis_proto::limits::PLAINTEXT_BYTES_MAX;
use moltis_proto::message::Windows;
use moltis_proto::run::RunSummary;
use moltis_proto::{Codec, FromKeeper, RunId, ToKeeper};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, ReadHalf, WriteHalf};

use super::{Failure, KeeperStream};

/// Bytes that are read at once, and that may wait for one keeper before more is asked for.
const READ_BYTES: usize = 256 * 1024;
const WRITE_BYTES: usize = 64 * 1024;

/// All keepers of this machine, the one for new runs first: what they say, and the way to them.
/// Two halves, used at once.
pub(super) struct Keepers {
    pub(super) from: FromKeepers,
    pub(super) to: ToKeepers,
}

/// Frames of all keepers.
pub(super) struct FromKeepers {
    peers: Vec<Option<Peer>>,
    /// Who is asked first for the next bytes.
    turn: usize,
}

struct Peer {
    reader: ReadHalf<Box<dyn KeeperStream>>,
    incoming: BytesMut,
    /// What it lists; `None` once that was handed on with everybody's.
    list: Option<Listed>,
}

/// What one keeper holds.
#[derive(Default)]
struct Listed {
    pages: Vec<FromKeeper>,
    whole: bool,
}

/// The way to the keeper of each run.
pub(super) struct ToKeepers {
    doors: Vec<Option<Door>>,
    /// Runs of all keepers but the first, each with its keeper.
    elsewhere: HashMap<RunId, usize>,
}

struct Door {
    writer: WriteHalf<Box<dyn KeeperStream>>,
    /// Frames, or the rest of one, that the keeper has not taken.
    outgoing: BytesMut,
}

impl Keepers {
    /// Takes the floor on each keeper; the lists come next.
    pub(super) fn attach(
        streams: Vec<Box<dyn KeeperStream>>,
        windows: Windows,
    ) -> Result<Self, Failure> {
        let windows = windows.shared_by(streams.len());
        let (mut peers, mut doors) = (Vec::new(), Vec::new());
        for stream in streams {
            let (reader, writer) = tokio::io::split(stream);
            peers.push(Some(Peer {
                reader,
                incoming: BytesMut::new(),
                list: Some(Listed::default()),
            }));
            let mut outgoing = BytesMut::new();
            put(&ToKeeper::Attach { windows }, &mut outgoing)?;
            doors.push(Some(Door { writer, outgoing }));
        }
        Ok(Self {
            from: FromKeepers { peers, turn: 0 },
            to: ToKeepers {
                doors,
                elsewhere: HashMap::new(),
            },
        })
    }

    /// Takes the next message that a keeper has said, once [`FromKeepers::read`] has brought bytes
    /// of it. The lists of all come as one, when the last is whole.
    pub(super) fn take(&mut self, keeper: usize) -> Result<Option<FromKeeper>, Failure> {
        loop {
            let Some(peer) = self.from.peers[keeper].as_mut() else {
                return Ok(None);
            };
            let Some(frame) = take_frame(&mut peer.incoming)? else {
                return Ok(None);
            };
            let message: FromKeeper = Codec::Postcard.decode(&frame)?;
            let Some(list) = &mut peer.list else {
                return Ok(Some(message));
            };
            let FromKeeper::Runs { runs, last, .. } = &message else {
                return Ok(Some(message)); // out of turn, and refused as such
            };
            list.whole |= *last;
            if keeper > 0 {
                self.to.own(keeper, runs);
            }
            list.pages.push(message);
            if let Some(whole) = self.from.take_lists() {
                return Ok(Some(whole));
            }
        }
    }

    /// Lets go of older keepers that hold no run any more and have taken what was said to them: as
    /// long as somebody is attached they would stay.
    pub(super) fn release_idle(&mut self) {
        for keeper in 1..self.to.doors.len() {
            let is_idle = self.from.is_listed(keeper) && self.to.is_idle(keeper);
            if is_idle {
                self.from.peers[keeper] = None;
                self.to.doors[keeper] = None;
            }
        }
    }
}

impl FromKeepers {
    /// Waits for bytes of any keeper, in turn; returns whose they are. `None` when one has gone.
    ///
    /// # Cancel safety
    /// What was read stays.
    pub(super) async fn read(&mut self) -> io::Result<Option<usize>> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<usize>>> {
        let count = self.peers.len();
        for step in 0..count {
            let keeper = (self.turn + step) % count;
            let Some(peer) = &mut self.peers[keeper] else {
                continue;
            };
            if peer.incoming.capacity() - peer.incoming.len() < READ_BYTES / 4 {
                peer.incoming.reserve(READ_BYTES);
            }
            match pin!(peer.reader.read_buf(&mut peer.incoming)).poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(_)) => {
                    self.turn = (keeper + 1) % count;
                    return Poll::Ready(Ok(Some(keeper)));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    }

    fn is_listed(&self, keeper: usize) -> bool {
        let peer = self.peers[keeper].as_ref();
        peer.is_none_or(|peer| peer.list.is_none())
    }

    /// Returns what all keepers hold as one list, once each has said it.
    fn take_lists(&mut self) -> Option<FromKeeper> {
        let whole = |peer: &Peer| peer.list.as_ref().is_some_and(|list| list.whole);
        if !self.peers.iter().flatten().all(whole) {
            return None;
        }
        let lists = self.peers.iter_mut().flatten();
        let pages = lists.flat_map(|peer| peer.list.take().unwrap_or_default().pages);
        let (mut boot, mut all_journals, mut all_runs) = (None, Vec::new(), Vec::new());
        for page in pages {
            if let FromKeeper::Runs {
                boot_id,
                journals,
                runs,
                ..
            } = page
            {
                boot.get_or_insert(boot_id);
                all_journals.extend(journals);
                all_runs.extend(runs);
            }
        }
        let (journals, runs) = FromKeeper::join(all_journals, all_runs);
        Some(FromKeeper::Runs {
            boot_id: boot?,
            journals,
            runs,
            last: true,
        })
    }
}

impl ToKeepers {
    /// Hands a message to the keeper of its run; [`drive`](Self::drive) brings it there.
    pub(super) fn deliver(&mut self, message: &ToKeeper) -> Result<(), Failure> {
        let keeper = message
            .run_id()
            .and_then(|run_id| self.elsewhere.get(&run_id).copied())
            .unwrap_or(0);
        if let Some(door) = &mut self.doors[keeper] {
            put(message, &mut door.outgoing)?;
        }
        if let ToKeeper::Forget { run_id } = message {
            self.elsewhere.remove(run_id);
        }
        Ok(())
    }

    /// Returns whether each keeper has room for more.
    pub(super) fn takes_more(&self) -> bool {
        let mut doors = self.doors.iter().flatten();
        doors.all(|door| door.outgoing.len() < WRITE_BYTES)
    }

    /// Returns whether there is anything to [`drive`](Self::drive).
    pub(super) fn has_waiting(&self) -> bool {
        let mut doors = self.doors.iter().flatten();
        doors.any(|door| !door.outgoing.is_empty())
    }

    /// Waits until some keeper has taken something of what waits.
    ///
    /// # Cancel safety
    /// What was written is not written again.
    pub(super) async fn drive(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_drive(cx)).await
    }

    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut took = Poll::Pending;
        for door in self.doors.iter_mut().flatten() {
            if door.outgoing.is_empty() {
                continue;
            }
            match Pin::new(&mut door.writer).poll_write(cx, &door.outgoing) {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => {
                    door.outgoing.advance(bytes);
                    took = Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        took
    }

    /// These runs belong to an older keeper.
    fn own(&mut self, keeper: usize, runs: &[RunSummary]) {
        let runs = runs.iter().map(|run| (run.run_id, keeper));
        self.elsewhere.extend(runs);
    }

    fn is_idle(&self, keeper: usize) -> bool {
        let holds_run = self.elsewhere.values().any(|owner| *owner == keeper);
        let door = self.doors[keeper].as_ref();
        !holds_run && door.is_some_and(|door| door.outgoing.is_empty())
    }
}

fn take_frame(incoming: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let Some(prefix) = incoming.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*prefix) as usize;
    if length == 0 || length > PLAINTEXT_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes: expected 1 to {PLAINTEXT_BYTES_MAX}"),
        ));
    }
    if incoming.len() < 4 + length {
        return Ok(None);
    }
    incoming.advance(4);
    Ok(Some(incoming.split_to(length).freeze()))
}

fn put(message: &ToKeeper, out: &mut BytesMut) -> Result<(), Failure> {
    let bytes = Codec::Postcard.encode(message)?;
    // A message fits a frame, which is shorter than 64 KiB.
    out.put_u32(u32::try_from(bytes.len())?);
    out.put_slice(&bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn keepers_share_the_window_of_the_connection() {
        let windows = Windows {
            run_bytes: 1000,
            connection_bytes: 3000,
            stdin_bytes: 300,
            chunk_bytes_max: 60,
        };
        let (mut streams, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            let (ours, theirs) = tokio::io::duplex(4096);
            streams.push(Box::new(ours) as Box<dyn KeeperStream>);
            ends.push(theirs);
        }
        let mut keepers = Keepers::attach(streams, windows).unwrap();
        while keepers.to.has_waiting() {
            keepers.to.drive().await.unwrap();
        }
        for mut end in ends {
            let mut frame = vec![0; end.read_u32().await.unwrap() as usize];
            end.read_exact(&mut frame).await.unwrap();
            let ToKeeper::Attach { windows } = Codec::Postcard.decode(&frame).unwrap() else {
                panic!("it was told something else");
            };
            assert_eq!((windows.run_bytes, windows.connection_bytes), (750, 750));
        }
    }
}
