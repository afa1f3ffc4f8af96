//! Reads what a run does, across cuts: after each it connects again and goes on at the byte where
//! it stopped. Runs as a task of its own; the follow loop takes events from it.
//!
//! A gateway closes a connection of which nothing is read for long, as when `less` shows one page
//! for an hour. A person hears of a cut only where it is one to them: where the gateway is not there
//! again at once.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use moltis_gateway::api::follow::{Decoder, Frame, Gap};
use moltis_gateway::api::problem::Code;
use moltis_gateway::api::runs::{Run, Stream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::away::{Away, Barren};
use crate::api::{ApiError, Client, Cut, Pieces};

/// Events that wait for the follow loop. A full queue stops the reading, and that the gateway.
const QUEUE: usize = 8;

/// The gateway says something at least this often; after that long the connection is dead.
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// How long a gateway may take to go on behind a cut that nobody hears of. Ctrl+C waits so long.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What the follow loop is told.
#[derive(Debug)]
pub(super) enum Event {
    /// The command wrote this.
    Output(Stream, Bytes),
    /// The command wrote that, and it is gone.
    Gap(Gap),
    /// It is over.
    Ended(Box<Run>),
    /// Nothing happened for a while.
    Quiet,
    /// The connection to the gateway is cut; it is being made again.
    Cut(ApiError),
    /// It stands again.
    Back,
    /// It is not made again, or the gateway does not know the run any more.
    Failed(ApiError),
}

/// Begins to read a run from its first byte; `pieces` are its frames where they come already.
/// Called inside a `LocalSet`.
pub(super) fn start(
    client: Rc<Client>,
    run_id: String,
    pieces: Option<Pieces>,
) -> mpsc::Receiver<Event> {
    let (events, queue) = mpsc::channel(QUEUE);
    let alone = Rc::new(Semaphore::new(1));
    let tell = async move |event| events.send(event).await.is_ok();
    tokio::task::spawn_local(read(client, run_id, pieces, alone, tell));
    queue
}

/// Reads a run from its first byte to its end, or until `tell` says that nobody listens. Of all
/// readers with the same `room` at most so many hold a frame at a time.
pub(super) async fn read(
    client: Rc<Client>,
    run_id: String,
    pieces: Option<Pieces>,
    room: Rc<Semaphore>,
    tell: impl AsyncFn(Event) -> bool,
) {
    let reader = Reader {
        client,
        run_id,
        pieces,
        offsets: [0; 2],
        heard: false,
        room,
        tell,
    };
    reader.run().await;
}

struct Reader<T> {
    client: Rc<Client>,
    run_id: String,
    pieces: Option<Pieces>,
    offsets: [u64; 2],
    /// The connection of now has brought something.
    heard: bool,
    room: Rc<Semaphore>,
    tell: T,
}

/// Why one connection ended.
enum End {
    /// The run is over, or nobody listens.
    Done,
    Error(ApiError),
}

impl<T: AsyncFn(Event) -> bool> Reader<T> {
    async fn run(mut self) {
        let mut away = Away::new();
        let mut barren = Barren::default();
        loop {
            let before = self.offsets;
            self.heard = false;
            let error = match self.one_connection(&mut away).await {
                End::Done => return,
                End::Error(error) => error,
            };
            let is_barren = barren.ended(self.heard);
            if !passes(&error) || away.is_too_long() || is_barren {
                self.tell(Event::Failed(error)).await;
                return;
            }
            if self.offsets != before {
                away.gave();
                // Only then, so that a gateway that gives nothing is not asked without a pause.
                if let Ok(Ok(pieces)) = timeout(AT_ONCE, self.open()).await {
                    self.pieces = Some(pieces);
                    // It may be a new one, which lacks what its node had not taken of our stdin.
                    if !self.tell(Event::Back).await {
                        return;
                    }
                    continue;
                }
            }
            if away.begins() && !self.tell(Event::Cut(error)).await {
                return;
            }
            away.pause().await;
        }
    }

    async fn one_connection(&mut self, away: &mut Away) -> End {
        let mut pieces = match self.open().await {
            Ok(pieces) => pieces,
            Err(error) => return End::Error(error),
        };
        if away.is_over() && !self.tell(Event::Back).await {
            return End::Done;
        }
        let mut decoder = Decoder::default();
        let room = Rc::clone(&self.room);
        let mut held = None;
        loop {
            let piece = match timeout(SILENCE_MAX, pieces.next()).await {
                Ok(Ok(Some(piece))) => piece,
                cut_off => {
                    if let Some(frame) = decoder.take_torn()
                        && !self.pass_on(frame).await
                    {
                        return End::Done;
                    }
                    return match cut_off {
                        Ok(Err(error)) => End::Error(error),
                        Ok(Ok(_)) => cut(Cut::torn()),
                        Err(_) => cut(self.client.silent_for(SILENCE_MAX)),
                    };
                }
            };
            if held.is_none() {
                held = room.acquire().await.ok(); // nobody closes it
            }
            decoder.feed(&piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => {
                        let last = matches!(frame, Frame::Ended(_));
                        if !self.pass_on(frame).await || last {
                            return End::Done;
                        }
                    }
                    Ok(None) => break,
                    Err(_) => return cut(Cut::garbled()),
                }
            }
            if !decoder.is_torn() {
                held = None;
            }
        }
    }

    async fn open(&mut self) -> Result<Pieces, ApiError> {
        if let Some(pieces) = self.pieces.take() {
            return Ok(pieces);
        }
        let [stdout, stderr] = self.offsets;
        let run = &self.run_id;
        let path = format!("runs/{run}/follow?stdout={stdout}&stderr={stderr}");
        self.client.open(&path).await
    }

    /// Passes a frame on; bytes that came before are skipped. Returns whether anybody listens.
    async fn pass_on(&mut self, frame: Frame) -> bool {
        self.heard = true;
        let event = match frame {
            Frame::Output {
                stream,
                offset,
                mut bytes,
            } => {
                let at = &mut self.offsets[index(stream)];
                let known = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
                bytes.advance(known.min(bytes.len()));
                if bytes.is_empty() {
                    return true;
                }
                *at = offset.max(*at) + bytes.len() as u64;
                Event::Output(stream, bytes)
            }
            Frame::Gap(gap) => {
                let at = &mut self.offsets[index(gap.stream)];
                *at = gap.to.max(*at);
                Event::Gap(gap)
            }
            Frame::Ended(run) => Event::Ended(run),
            Frame::KeepAlive => Event::Quiet,
        };
        self.tell(event).await
    }

    async fn tell(&self, event: Event) -> bool {
        (self.tell)(event).await
    }
}

/// Returns whether somebody who follows asks again. A gateway that cannot read its store or its files
/// for a moment says so, and goes on.
pub(crate) fn passes(error: &ApiError) -> bool {
    let code = error.code();
    error.passes() || matches!(code, Some(Code::Internal | Code::StoreReadOnly))
}

fn cut(cut: Cut) -> End {
    End::Error(ApiError::Cut(cut))
}

/// Returns 0 for stdout and 1 for stderr.
pub(super) fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}
