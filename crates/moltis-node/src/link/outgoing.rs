//! What goes to the gateway: control first, then the keepers' frames in turn, and nothing is taken
//! from a keeper before the socket can take it.

use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::SinkExt as _;
use futures_util::stream::SplitSink;
use moltis_identity::noise::Sealer;
use moltis_proto::run::Totals;
use moltis_proto::telemetry::Sample;
use moltis_proto::{Codec, FromKeeper, Payload, ToGateway, ToKeeper};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::attached::FromKeepers;
use super::dial::Socket;
use super::flight::Flight;
use super::pace::Pace;
use super::socket::broken;
use crate::error::{LinkError, Step};
use crate::keeper::wire::{decode, output_head, says_leaving};

/// The first byte of a [`ToGateway::Run`] in postcard: the bytes of a [`FromKeeper`] follow it as
/// they are.
const RUN: u8 = 0;

/// What sealing adds to a frame.
const SEAL_BYTES: usize = 16;

/// More than an [`FromKeeper::Output`] has beside its bytes.
const OUTPUT_HEAD_BYTES: usize = 64;

/// Frames that go out before the session looks at what came in.
const FRAMES_PER_TURN: u32 = 16;

/// A gateway that takes not one frame for this long is given up.
const STALL_MAX: Duration = Duration::from_secs(45);

/// How long output is held back without any acknowledgement. A run that the gateway does not store
/// must not hold up the others.
const HOLD_MAX: Duration = Duration::from_secs(5);

/// How long a last word may take.
const FAREWELL_TIME: Duration = Duration::from_secs(2);

/// The sending half of a session.
#[derive(Debug)]
pub(super) struct Outgoing {
    sink: SplitSink<Socket, Message>,
    sealer: Sealer,
    codec: Codec,
    pages: VecDeque<ToGateway>,
    pong: Option<u64>,
    ping: Option<u64>,
    /// The time of day is to be told.
    clock: bool,
    sample: Option<Box<Sample>>,
    plain: Vec<u8>,
    /// Output that was too long for a slow road, cut.
    pieces: VecDeque<FromKeeper>,
    pace: Pace,
    flight: Flight,
    /// Output is held back, up to this time.
    held: Option<Pin<Box<Sleep>>>,
    unflushed: bool,
    stalled_since: Option<Instant>,
}

impl Outgoing {
    /// Begins with the pages of `Runs`, which go out before any frame of a keeper.
    pub(super) fn new(
        sink: SplitSink<Socket, Message>,
        sealer: Sealer,
        codec: Codec,
        pages: VecDeque<ToGateway>,
    ) -> Self {
        Self {
            sink,
            sealer,
            codec,
            pages,
            pong: None,
            ping: None,
            clock: false,
            sample: None,
            plain: Vec::new(),
            pieces: VecDeque::new(),
            pace: Pace::default(),
            flight: Flight::default(),
            held: None,
            unflushed: false,
            stalled_since: None,
        }
    }

    /// Returns whether the list of runs has gone out.
    pub(super) fn has_listed(&self) -> bool {
        self.pages.is_empty()
    }

    /// Answers a ping. Of several that wait only the newest is answered: any frame is a sign of
    /// life.
    pub(super) fn pong(&mut self, number: u64) {
        self.pong = Some(number);
    }

    /// Asks for a sign of life.
    pub(super) fn ping(&mut self, number: u64) {
        self.ping = Some(number);
    }

    /// Tells the time of day, as it is when it goes out.
    pub(super) fn clock(&mut self) {
        self.clock = true;
    }

    /// Sends a sample. One that still waits is replaced.
    pub(super) fn sample(&mut self, sample: Sample) {
        self.sample = Some(Box::new(sample));
    }

    /// The gateway says something about a run: what was sent of it may have arrived.
    pub(super) fn handle_heard(&mut self, message: &ToKeeper) {
        match message {
            ToKeeper::Ack {
                run_id,
                stdout,
                stderr,
            } => {
                let (stdout, stderr) = (*stdout, *stderr);
                let now = Instant::now().into_std();
                self.flight
                    .handle_ack(*run_id, Totals { stdout, stderr }, now);
                self.held = None;
            }
            ToKeeper::Resume { run_id, .. } | ToKeeper::Forget { run_id } => {
                self.flight.handle_gone(*run_id);
            }
            _ => {}
        }
    }

    /// Fails when the gateway has taken nothing for too long.
    pub(super) fn check_stall(&self) -> Result<(), LinkError> {
        match self.stalled_since {
            Some(since) if since.elapsed() >= STALL_MAX => Err(LinkError::TimedOut {
                step: Step::Write,
                after: STALL_MAX,
            }),
            _ => Ok(()),
        }
    }

    /// Sends whatever is there to send; ends with an error only.
    ///
    /// Cancel safe: a frame that was taken from a keeper has been handed to the socket.
    pub(super) async fn drive(&mut self, keepers: &mut FromKeepers) -> LinkError {
        poll_fn(|cx| self.poll_drive(keepers, cx)).await
    }

    fn poll_drive(&mut self, keepers: &mut FromKeepers, cx: &mut Context<'_>) -> Poll<LinkError> {
        for _ in 0..FRAMES_PER_TURN {
            match ready!(self.poll_next(keepers, cx)) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(error),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends one frame. `Ready(Ok(false))` when there is none and all is flushed.
    fn poll_next(
        &mut self,
        keepers: &mut FromKeepers,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, LinkError>> {
        match self.sink.poll_ready_unpin(cx) {
            Poll::Ready(Ok(())) => self.stalled_since = None,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error, None))),
            Poll::Pending => {
                self.stalled_since.get_or_insert_with(Instant::now);
                self.pace.handle_held_up();
                return Poll::Pending;
            }
        }
        if let Some(control) = self.next_control() {
            return Poll::Ready(self.send(&control).map(|()| true));
        }
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(self.send(&ToGateway::Run(piece)).map(|()| true));
        }
        if self.holds_back(cx) {
            ready!(self.sink.poll_flush_unpin(cx)).map_err(|error| broken(error, None))?;
            self.unflushed = false;
            return Poll::Ready(Ok(false));
        }
        match keepers.poll_frame_behind(RUN, cx) {
            Poll::Ready(Ok(frame)) if says_leaving(&frame[1..]) => {
                // The gateway hears it, and meets the next keeper on the next connection.
                let passed = self.pass_on(&frame);
                Poll::Ready(passed.and(Err(LinkError::KeeperLeaves)))
            }
            Poll::Ready(Ok(frame)) => Poll::Ready(self.pass_on(&frame).map(|()| true)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if self.unflushed => {
                self.pace.handle_idle();
                ready!(self.sink.poll_flush_unpin(cx)).map_err(|error| broken(error, None))?;
                self.unflushed = false;
                Poll::Ready(Ok(false))
            }
            Poll::Pending => Poll::Ready(Ok(false)),
        }
    }

    /// Returns whether the road has enough to carry. An acknowledgement has this asked again.
    fn holds_back(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.flight.is_full() {
            self.held = None;
            return false;
        }
        self.pace.handle_held_up();
        let hold = self.held.get_or_insert_with(|| Box::pin(sleep(HOLD_MAX)));
        hold.as_mut().poll(cx).is_pending()
    }

    fn next_control(&mut self) -> Option<ToGateway> {
        if let Some(number) = self.pong.take() {
            return Some(ToGateway::Pong { number });
        }
        if let Some(number) = self.ping.take() {
            return Some(ToGateway::Ping { number });
        }
        if let Some(page) = self.pages.pop_front() {
            return Some(page);
        }
        if std::mem::take(&mut self.clock) {
            let unix_ms = unix_ms(SystemTime::now());
            return Some(ToGateway::Clock { unix_ms });
        }
        self.sample.take().map(ToGateway::Telemetry)
    }

    /// A keeper's frame, with one byte before it, is the gateway's in postcard.
    fn pass_on(&mut self, framed: &Bytes) -> Result<(), LinkError> {
        if let Some(head) = output_head(&framed[1..]) {
            let which = (head.run_id, head.stream);
            let now = Instant::now().into_std();
            self.flight
                .handle_output(which, (head.offset, head.length), now);
        }
        let too_long = self
            .pace
            .chunk_bytes_max()
            .filter(|chunk| framed.len() > chunk + OUTPUT_HEAD_BYTES);
        if self.codec == Codec::Postcard && too_long.is_none() {
            return self.seal_and_send(framed);
        }
        let message: FromKeeper = decode(&framed[1..]).map_err(|error| LinkError::Keeper {
            problem: "is not understood",
            source: error.into(),
        })?;
        self.pieces = cut(message, too_long.unwrap_or(usize::MAX));
        match self.pieces.pop_front() {
            Some(piece) => self.send(&ToGateway::Run(piece)),
            None => Ok(()),
        }
    }

    fn send(&mut self, message: &ToGateway) -> Result<(), LinkError> {
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let encoded = self.codec.encode_into(message, &mut plain);
        let sent = encoded
            .map_err(LinkError::Codec)
            .and_then(|()| self.seal_and_send(&plain));
        self.plain = plain;
        sent
    }

    fn seal_and_send(&mut self, plain: &[u8]) -> Result<(), LinkError> {
        let mut frame = Vec::with_capacity(plain.len() + SEAL_BYTES);
        self.sealer
            .seal(plain, &mut frame)
            .map_err(LinkError::Noise)?;
        self.unflushed = true;
        self.pace
            .handle_sent(frame.len(), Instant::now().into_std());
        self.sink
            .start_send_unpin(Message::Binary(frame.into()))
            .map_err(|error| broken(error, None))
    }

    /// Says a last word and closes, without waiting long for a gateway that does not listen.
    pub(super) async fn farewell(mut self, message: &ToGateway) {
        let goodbye = async {
            poll_fn(|cx| self.sink.poll_ready_unpin(cx)).await.ok()?;
            self.send(message).ok()?;
            self.sink.close().await.ok()
        };
        timeout(FAREWELL_TIME, goodbye).await.ok(); // Best effort: the gateway sees the end anyway.
    }
}

fn unix_ms(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Cuts output into pieces of at most so many bytes; anything else is one piece.
fn cut(message: FromKeeper, chunk: usize) -> VecDeque<FromKeeper> {
    let FromKeeper::Output {
        run_id,
        stream,
        mut offset,
        bytes: Payload(mut rest),
    } = message
    else {
        return VecDeque::from([message]);
    };
    let mut pieces = VecDeque::new();
    while !rest.is_empty() {
        let bytes = rest.split_to(rest.len().min(chunk));
        let length = bytes.len() as u64;
        pieces.push_back(FromKeeper::Output {
            run_id,
            stream,
            offset,
            bytes: Payload(bytes),
        });
        offset += length;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use moltis_proto::RunId;
    use moltis_proto::run::Stream;

    use super::*;

    #[test]
    fn one_byte_before_a_keepers_frame_makes_it_the_gateways() {
        let message = FromKeeper::Output {
            run_id: RunId::from_bytes([7; 16]),
            stream: Stream::Stderr,
            offset: 1 << 40,
            bytes: Payload::from(&b"output"[..]),
        };
        let mut expected = vec![RUN];
        Codec::Postcard
            .encode_into(&message, &mut expected)
            .unwrap();
        let whole = Codec::Postcard.encode(&ToGateway::Run(message)).unwrap();
        assert_eq!(whole, expected);
    }

    #[test]
    fn output_that_is_cut_is_the_same_output() {
        let bytes: Vec<u8> = (0..60_000u32)
            .map(|number| number.to_le_bytes()[0])
            .collect();
        let message = FromKeeper::Output {
            run_id: RunId::from_bytes([7; 16]),
            stream: Stream::Stdout,
            offset: 1000,
            bytes: Payload(bytes.clone().into()),
        };
        let mut joined = Vec::new();
        for piece in cut(message, 16 * 1024) {
            let FromKeeper::Output { offset, bytes, .. } = piece else {
                panic!("{piece:?}");
            };
            assert_eq!(offset, 1000 + joined.len() as u64);
            assert!((1..=16 * 1024).contains(&bytes.0.len()));
            joined.extend_from_slice(&bytes.0);
        }
        assert_eq!(joined, bytes);
        let other = FromKeeper::Started {
            run_id: RunId::from_bytes([7; 16]),
            pid: 1,
        };
        assert_eq!(cut(other.clone(), 1), [other]);
    }
}
