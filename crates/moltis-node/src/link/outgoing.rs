//! What goes to the gateway: control first, then the words of the keepers, then output of all runs in
//! turn. Nothing is taken from a keeper before the socket can take it, but where output is held back:
//! then it waits in a [`Share`], and the words of other runs pass it.

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
use moltis_proto::{Codec, FromKeeper, ToGateway, ToKeeper};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::attached::FromKeepers;
use super::dial::Socket;
use super::flight::Flight;
use super::pace::Pace;
use super::share::Share;
use super::socket::broken;
use crate::error::{LinkError, Step};
use crate::keeper::wire::{WireError, decode, output_head, says_leaving};

/// The first byte of a [`ToGateway::Run`] in postcard: the bytes of a [`FromKeeper`] follow it as
/// they are.
const RUN: u8 = 0;

/// What sealing adds to a frame.
const SEAL_BYTES: usize = 16;

/// Frames that go out before the session looks at what came in.
const FRAMES_PER_TURN: u32 = 16;

/// A gateway that takes not one frame for this long is given up.
const STALL_MAX: Duration = Duration::from_secs(45);

/// Frames of keepers that are sorted before the session looks at what came in.
const SORTED_PER_TURN: u32 = 64;

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
    /// What the road does not take yet.
    share: Share,
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
            share: Share::default(),
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
            ToKeeper::Resume { run_id, .. } => self.flight.handle_resumed(*run_id),
            ToKeeper::Forget { run_id } => {
                let now = Instant::now().into_std();
                self.flight.handle_forgotten(*run_id, now);
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
    /// Cancel safe: a frame that was taken from a keeper has been handed to the socket, or waits here.
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
        let holds_back = self.holds_back(cx);
        let is_slow = holds_back || self.flight.is_slow() || self.pace.is_slow();
        if is_slow {
            self.sort(keepers, cx)?;
        }
        let mut next = self.share.next_word();
        if next.is_none() && !holds_back {
            next = self.share.next_output();
        }
        match next {
            Some(frame) => Poll::Ready(self.pass_on(&frame).map(|()| true)),
            None if is_slow => self.poll_rest(holds_back, cx),
            None => self.poll_pass(keepers, cx),
        }
    }

    /// Sends the next frame of a keeper as it comes.
    fn poll_pass(
        &mut self,
        keepers: &mut FromKeepers,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, LinkError>> {
        match keepers.poll_frame_behind(RUN, cx) {
            Poll::Ready(frame) => {
                let passed = frame.and_then(|frame| self.pass_on_or_leave(&frame));
                Poll::Ready(passed.map(|()| true))
            }
            Poll::Pending => self.poll_rest(false, cx),
        }
    }

    /// Takes what the keepers have to say, and sorts it by runs.
    fn sort(&mut self, keepers: &mut FromKeepers, cx: &mut Context<'_>) -> Result<(), LinkError> {
        for _ in 0..SORTED_PER_TURN {
            if self.share.is_full() {
                return Ok(()); // an acknowledgement has this looked at again
            }
            let Poll::Ready(frame) = keepers.poll_frame_behind(RUN, cx) else {
                return Ok(());
            };
            let frame = frame?;
            if says_leaving(&frame[1..]) {
                return self.pass_on_or_leave(&frame);
            }
            self.share.push(&frame).map_err(not_understood)?;
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// There is nothing to send for now: what was sent is flushed.
    fn poll_rest(
        &mut self,
        holds_back: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, LinkError>> {
        if self.unflushed {
            if !holds_back {
                self.pace.handle_idle();
            }
            ready!(self.sink.poll_flush_unpin(cx)).map_err(|error| broken(error, None))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(false))
    }

    /// Returns whether the road has enough to carry. An acknowledgement has this asked again.
    fn holds_back(&mut self, cx: &mut Context<'_>) -> bool {
        while self.flight.is_full() {
            self.pace.handle_held_up();
            let hold = self.held.get_or_insert_with(|| Box::pin(sleep(HOLD_MAX)));
            if hold.as_mut().poll(cx).is_pending() {
                return true;
            }
            self.held = None;
            self.flight.handle_hold_over();
        }
        self.held = None;
        false
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
        if self.codec == Codec::Postcard {
            return self.seal_and_send(framed);
        }
        let message: FromKeeper = decode(&framed[1..]).map_err(not_understood)?;
        self.send(&ToGateway::Run(message))
    }

    fn pass_on_or_leave(&mut self, framed: &Bytes) -> Result<(), LinkError> {
        self.pass_on(framed)?;
        if says_leaving(&framed[1..]) {
            // The gateway hears it, and meets the next keeper on the next connection.
            return Err(LinkError::KeeperLeaves);
        }
        Ok(())
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

fn not_understood(error: WireError) -> LinkError {
    LinkError::Keeper {
        problem: "is not understood",
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use moltis_proto::run::Stream;
    use moltis_proto::{Payload, RunId};

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
}
