//! An accepted connection: frames pass between the gateway and the keepers until something ends it.
//!
//! Reading never waits for writing to the gateway. It does wait for a keeper that has too much to
//! take, which is this machine's own fault and bounded by the heartbeat.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::SplitStream;
use moltis_identity::noise::Opener;
use moltis_proto::code::{CloseCode, GoodbyeReason};
use moltis_proto::handshake::SessionLimits;
use moltis_proto::liveness::Liveness;
use moltis_proto::telemetry::Sample;
use moltis_proto::version::Ledger;
use moltis_proto::{Codec, ToGateway, ToKeeper, ToNode};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::attached::{Attached, ToKeepers};
use super::dial::{Socket, within};
use super::handshake::Accepted;
use super::outgoing::Outgoing;
use super::settings::Watched;
use super::socket::broken;
use super::telemetry::Telemetry;
use crate::clock::Clock;
use crate::error::{LinkError, Step};
use crate::keepers::Keepers;

/// How long a keeper may take to be found, started and heard.
const KEEPER_TIME: Duration = Duration::from_secs(15);

/// How often the settings' file is looked at.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(3);

/// What a session needs beside its connection.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) keepers: &'a dyn Keepers,
    pub(super) telemetry: Option<&'a Telemetry>,
    pub(super) settings: &'a mut Watched,
    pub(super) clock: &'a Clock,
    pub(super) stop: &'a CancellationToken,
}

/// How a session ends without an error.
#[derive(Debug)]
pub(super) struct Stopped;

/// Works until the connection ends or `stop` is cancelled.
pub(super) async fn run(
    accepted: Accepted,
    around: Surroundings<'_>,
) -> Result<Stopped, LinkError> {
    let codec = accepted.opened.codec;
    let attach = async {
        let streams = around.keepers.connect().await;
        let streams = streams.map_err(|source| LinkError::Keeper {
            problem: "cannot be reached",
            source,
        })?;
        Attached::new(streams, accepted.windows, codec).await
    };
    let (keepers, pages) = tokio::select! {
        biased;
        () = around.stop.cancelled() => return Ok(Stopped),
        attached = within(Step::Keeper, KEEPER_TIME, attach) => attached?,
    };
    let (sink, stream) = accepted.opened.socket.split();
    let mut session = Session {
        stream,
        opener: accepted.opened.opener,
        codec,
        plain: Vec::new(),
        outgoing: Outgoing::new(sink, accepted.opened.sealer, codec, pages),
        liveness: Liveness::new(&accepted.limits, around.clock.now()),
        clock: around.clock,
        tells_clock: accepted.ledger >= Ledger::CLOCK,
        sample_asked: false,
    };
    let ended = session.work(keepers, &accepted.limits, around).await;
    session.part(ended).await
}

#[derive(Debug)]
struct Session<'a> {
    stream: SplitStream<Socket>,
    opener: Opener,
    codec: Codec,
    plain: Vec<u8>,
    outgoing: Outgoing,
    liveness: Liveness,
    clock: &'a Clock,
    /// The gateway understands what our time of day is.
    tells_clock: bool,
    sample_asked: bool,
}

impl Session<'_> {
    async fn work(
        &mut self,
        keepers: Attached,
        limits: &SessionLimits,
        around: Surroundings<'_>,
    ) -> Result<Stopped, LinkError> {
        let mut telemetry_due = ticks(Duration::from_millis(
            limits.telemetry_interval_ms.clamp(1000, 3_600_000),
        ));
        let mut settings_due = ticks(SETTINGS_INTERVAL);
        let mut sampling: Option<BoxFuture<'static, Sample>> = None;
        let Attached { mut from, mut to } = keepers;
        let mut heartbeat = std::pin::pin!(sleep_until(self.next_heartbeat()));
        loop {
            tokio::select! {
                biased;
                () = around.stop.cancelled() => return Ok(Stopped),
                () = heartbeat.as_mut() => {
                    self.beat()?;
                    heartbeat.as_mut().reset(self.next_heartbeat());
                }
                message = self.stream.next(), if !to.is_full() => {
                    self.receive(message, &mut to)?;
                }
                // Behind the socket, so that what came together is written together.
                result = to.drive(), if to.has_waiting() => result?,
                error = self.outgoing.drive(&mut from) => return Err(error),
                sample = taken(&mut sampling) => {
                    sampling = None;
                    self.outgoing.sample(sample);
                }
                _ = telemetry_due.tick() => {
                    self.sample_asked = true;
                    if self.tells_clock {
                        self.outgoing.clock();
                    }
                }
                _ = settings_due.tick() => {
                    if around.settings.has_changed() {
                        return Err(LinkError::SettingsChanged);
                    }
                }
            }
            if self.sample_asked && sampling.is_none() {
                self.sample_asked = false;
                sampling = around.telemetry.map(Telemetry::sample);
            }
        }
    }

    fn next_heartbeat(&self) -> Instant {
        Instant::from_std(self.liveness.poll_timeout())
    }

    fn beat(&mut self) -> Result<(), LinkError> {
        let ping = self.liveness.handle_timeout(self.clock.now());
        if let Some(number) = ping.map_err(LinkError::Lifeless)? {
            self.outgoing.ping(number);
        }
        self.outgoing.check_stall()
    }

    fn receive(
        &mut self,
        message: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>,
        keepers: &mut ToKeepers,
    ) -> Result<(), LinkError> {
        let message = message.ok_or(LinkError::Hangup { during: None })?;
        match message.map_err(|error| broken(error, None))? {
            Message::Binary(frame) => self.open(&frame, keepers),
            Message::Close(_) => Err(LinkError::Hangup { during: None }),
            Message::Ping(_) | Message::Pong(_) => Ok(()),
            Message::Text(_) | Message::Frame(_) => {
                Err(LinkError::Protocol("text came where frames are binary"))
            }
        }
    }

    fn open(&mut self, frame: &Bytes, keepers: &mut ToKeepers) -> Result<(), LinkError> {
        self.plain.clear();
        self.opener
            .open(frame, &mut self.plain)
            .map_err(LinkError::Noise)?;
        // Before anything is obeyed: this machine may have slept since the frame came.
        self.liveness
            .handle_frame(self.clock.now())
            .map_err(LinkError::Lifeless)?;
        match self.codec.decode(&self.plain).map_err(LinkError::Codec)? {
            ToNode::Run(message) => self.pass_on(&message, keepers),
            ToNode::Sample => {
                self.sample_asked = true;
                Ok(())
            }
            ToNode::Ping { number } => {
                self.outgoing.pong(number);
                Ok(())
            }
            ToNode::Pong { .. } => Ok(()),
            ToNode::Goodbye { back_in_ms, .. } => Err(LinkError::Goodbye {
                back_in: Duration::from_millis(back_in_ms),
            }),
            ToNode::Close { code } => Err(LinkError::Closed(code)),
        }
    }

    fn pass_on(&mut self, message: &ToKeeper, keepers: &mut ToKeepers) -> Result<(), LinkError> {
        if !self.outgoing.has_listed() {
            return Err(LinkError::Protocol(
                "a run message came before the list of runs was complete",
            ));
        }
        if message.run_id().is_none() {
            return Err(LinkError::Protocol(
                "a message came that only this machine may say to its keeper",
            ));
        }
        self.outgoing.handle_heard(message);
        match self.codec {
            // Behind the byte that says `Run` the keeper's own message stands as it is.
            Codec::Postcard => keepers.deliver(message, &self.plain[1..]),
            Codec::Json => {
                let frame = Codec::Postcard.encode(message).map_err(LinkError::Codec)?;
                keepers.deliver(message, &frame);
            }
        }
        Ok(())
    }

    /// Tells the gateway why the connection ends, where it does not know yet.
    async fn part(self, ended: Result<Stopped, LinkError>) -> Result<Stopped, LinkError> {
        let close = |code| Some(ToGateway::Close { code });
        let last_word = match &ended {
            Ok(Stopped) => Some(ToGateway::Goodbye {
                reason: GoodbyeReason::Shutdown,
                back_in_ms: 0,
            }),
            Err(LinkError::KeeperLeaves) => Some(ToGateway::Goodbye {
                reason: GoodbyeReason::Upgrade,
                back_in_ms: 0,
            }),
            Err(LinkError::SettingsChanged) => close(CloseCode::Settings),
            Err(LinkError::Lifeless(why)) => close(why.close_code()),
            Err(LinkError::Protocol(_) | LinkError::Codec(_) | LinkError::Noise(_)) => {
                close(CloseCode::Protocol)
            }
            Err(_) => None,
        };
        if let Some(word) = last_word {
            self.outgoing.farewell(&word).await;
        }
        ended
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Waits for the sample that is being taken; for ever when there is none.
async fn taken(sampling: &mut Option<BoxFuture<'static, Sample>>) -> Sample {
    match sampling {
        Some(sampling) => sampling.await,
        None => pending().await,
    }
}
