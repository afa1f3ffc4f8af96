//! One connection as a node sees it, from the gateway's proof to its last word.
//!
//! A pure machine. Its driver dials, opens the sealed channel and carries plaintexts: it hands in what
//! came ([`Link::handle_plaintext`]), does what [`Link::poll_event`] asks, sends what
//! [`Link::poll_transmit`] gives, and comes back at [`Link::poll_timeout`]. What the gateway says of
//! runs goes on to [`Runs`], and what they have to say comes from there.
//!
//! It is the simple variant of our own node's link, whose keeper is another process and whose socket
//! is driven from both sides at once. Whatever is decided about a message stands in the machines that
//! both of them use: [`NodeHandshake`], [`Liveness`], and those of [`crate::run`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::runs::{Runs, RunsError};
use crate::code::{CloseCode, Refusal};
use crate::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use crate::handshake::{
    Allowance, Binding, ConnectionCode, GatewayProof, HandshakeError, Introduction, Signer,
    Verdict, Verifier,
};
use crate::key::{Nonce, PublicKey};
use crate::limits::{HANDSHAKE_TIME_MAX, SILENCE_MAX};
use crate::liveness::{Lifeless, Liveness, Moment};
use crate::telemetry::Sample;
use crate::version::Ledger;
use crate::{Codec, CodecError, FromKeeper, ToGateway, ToNode};

/// What sealing adds to a plaintext.
const SEAL_BYTES: usize = 16;
/// A gateway that asks for samples more often gets them as often.
const TELEMETRY_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Who dials, and what it knows.
#[derive(Clone)]
pub struct Caller<'a> {
    /// What is claimed in the proof.
    pub claim: NodeClaim,
    /// What is known of the gateway's key.
    pub pin: Pin,
    /// What is said of this machine.
    pub introduction: Introduction,
    /// The node's key.
    pub signer: &'a dyn Signer,
    /// Checks what the gateway signed.
    pub verifier: &'a dyn Verifier,
    /// Fresh random bytes.
    pub nonce: Nonce,
}

/// What the driver has to know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// The gateway has proven this key, and it fits the pin. Where there was none, no other key may
    /// take its place while a person decides: it is the pin of the next connection.
    Known(PublicKey),
    /// A person has to decide, and sees this code on the gateway's side as well. Told once.
    Pending(ConnectionCode),
    /// This node is accepted: the key that was proven is kept from now on.
    Accepted,
    /// A sample is due: answer with [`Link::send_sample`].
    SampleDue,
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkEnd {
    /// The gateway goes away and says when to come back.
    #[error("the gateway goes away, and is back in {} ms", .0.as_millis())]
    Goodbye(Duration),
    /// There is no room for this node: what a driver makes of the answer 503 with `Retry-After`.
    #[error("the gateway has no room for this node for {} seconds", .0.as_secs())]
    Busy(Duration),
    /// The gateway has closed.
    #[error("the gateway has closed: {0:?}")]
    Closed(CloseCode),
    /// The gateway does not accept this node.
    #[error("the gateway refuses this node: {0:?}")]
    Refused(Refusal),
    /// One side did not prove who it is.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The gateway took too long to answer before it had accepted.
    #[error("the gateway said nothing for {} seconds of the handshake", .0.as_secs())]
    Slow(Duration),
    /// Nothing was heard, or this machine slept.
    #[error(transparent)]
    Lifeless(#[from] Lifeless),
    /// What came is no message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The gateway broke a rule of runs.
    #[error(transparent)]
    Runs(#[from] RunsError),
}

impl LinkEnd {
    /// Returns whether only a person can mend it; else the node dials again.
    pub fn needs_person(&self) -> bool {
        match self {
            Self::Refused(refusal) => !matches!(refusal, Refusal::RateLimited { .. }),
            Self::Closed(code) => *code == CloseCode::Revoked,
            // Whoever sends too much is most likely no gateway that this node knows.
            Self::Handshake(error) => !matches!(
                error,
                HandshakeError::TooLong { .. } | HandshakeError::TooMuch
            ),
            _ => false,
        }
    }

    /// Returns when to come back, where the gateway says it.
    pub fn back_in(&self) -> Option<Duration> {
        match self {
            Self::Goodbye(back_in) | Self::Busy(back_in) => Some(*back_in),
            Self::Refused(Refusal::RateLimited { retry_ms }) => {
                Some(Duration::from_millis(*retry_ms))
            }
            _ => None,
        }
    }

    /// Returns what the gateway is told; `None` where it has gone itself.
    fn close_code(&self) -> Option<CloseCode> {
        match self {
            Self::Goodbye(_) | Self::Busy(_) | Self::Closed(_) => None,
            Self::Lifeless(why) => Some(why.close_code()),
            _ => Some(CloseCode::Protocol),
        }
    }
}

/// One connection of a node.
pub struct Link<'a> {
    codec: Codec,
    state: State<'a>,
    /// Plaintexts that go out before anything about runs.
    outgoing: VecDeque<Vec<u8>>,
    events: VecDeque<LinkEvent>,
    /// Nothing is said any more but what waits.
    is_over: bool,
}

enum State<'a> {
    /// The gateway has to prove itself, and then to say what it makes of this node.
    Proving(Box<Proving<'a>>),
    /// It has accepted.
    Accepted {
        liveness: Liveness,
        ledger: Ledger,
        telemetry_interval: Duration,
        telemetry_due: Instant,
    },
}

struct Proving<'a> {
    handshake: NodeHandshake,
    caller: Caller<'a>,
    has_proven: bool,
    has_shown_code: bool,
    allowance: Allowance,
    silence_max: Duration,
    heard: Instant,
}

impl std::fmt::Debug for Caller<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller")
            .field("claim", &self.claim)
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Link<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_accepted = matches!(self.state, State::Accepted { .. });
        f.debug_struct("Link")
            .field("codec", &self.codec)
            .field("is_accepted", &is_accepted)
            .finish_non_exhaustive()
    }
}

impl<'a> Link<'a> {
    /// Begins on a channel that is open, and waits for the gateway's proof.
    pub fn new(binding: Binding, caller: Caller<'a>, now: Moment) -> Self {
        Self {
            codec: binding.subprotocol.codec(),
            state: State::Proving(Box::new(Proving {
                handshake: NodeHandshake::new(binding, caller.claim, caller.pin),
                caller,
                has_proven: false,
                has_shown_code: false,
                allowance: Allowance::new(),
                silence_max: HANDSHAKE_TIME_MAX,
                heard: now.monotonic,
            })),
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            is_over: false,
        }
    }

    /// A frame has come and was opened.
    ///
    /// # Errors
    /// How the connection ends by it. What [`Link::poll_transmit`] still gives is the last word.
    pub fn handle_plaintext(
        &mut self,
        plaintext: &[u8],
        runs: &mut Runs,
        now: Moment,
    ) -> Result<(), LinkEnd> {
        let handled = self.read(plaintext, runs, now);
        handled.inspect_err(|end| self.part(end))
    }

    fn read(&mut self, plaintext: &[u8], runs: &mut Runs, now: Moment) -> Result<(), LinkEnd> {
        match &mut self.state {
            State::Proving(proving) => {
                proving.allowance.take(plaintext.len() + SEAL_BYTES)?;
                if proving.has_proven {
                    let verdict = decode(self.codec, plaintext)?;
                    self.handle_verdict(verdict, runs, now)
                } else {
                    let proof = decode(self.codec, plaintext)?;
                    self.handle_proof(proof, now.monotonic)
                }
            }
            State::Accepted { liveness, .. } => {
                // Before anything is obeyed: this machine may have slept since the frame came.
                liveness.handle_frame(now)?;
                let message = decode(self.codec, plaintext)?;
                self.handle_message(message, runs, now.monotonic)
            }
        }
    }

    fn handle_proof(&mut self, proof: GatewayProof, now: Instant) -> Result<(), LinkEnd> {
        let State::Proving(proving) = &mut self.state else {
            return Ok(());
        };
        let Proving {
            handshake, caller, ..
        } = &mut **proving;
        let key = proof.gateway_key;
        let (signer, verifier) = (caller.signer, caller.verifier);
        let answer = handshake.handle_gateway_proof(proof, signer, verifier, caller.nonce)?;
        self.outgoing.push_back(self.codec.encode(&answer)?);
        self.outgoing
            .push_back(self.codec.encode(&caller.introduction)?);
        self.events.push_back(LinkEvent::Known(key));
        proving.has_proven = true;
        proving.heard = now;
        proving.silence_max = SILENCE_MAX;
        Ok(())
    }

    fn handle_verdict(
        &mut self,
        verdict: Verdict,
        runs: &mut Runs,
        now: Moment,
    ) -> Result<(), LinkEnd> {
        let State::Proving(proving) = &mut self.state else {
            return Ok(());
        };
        let verifier = proving.caller.verifier;
        match proving.handshake.handle_verdict(verdict, verifier)? {
            Decision::Refused(refusal) => Err(LinkEnd::Refused(refusal)),
            Decision::Pending { code, .. } => {
                // It is repeated, as a sign of life.
                proving.heard = now.monotonic;
                proving.allowance = Allowance::new();
                if !std::mem::replace(&mut proving.has_shown_code, true) {
                    self.events.push_back(LinkEvent::Pending(code));
                }
                Ok(())
            }
            Decision::Accepted {
                windows,
                limits,
                ledger,
                ..
            } => {
                let interval = Duration::from_millis(limits.telemetry_interval_ms);
                self.state = State::Accepted {
                    liveness: Liveness::new(&limits, now),
                    ledger,
                    telemetry_interval: interval.max(TELEMETRY_INTERVAL_MIN),
                    telemetry_due: now.monotonic,
                };
                runs.handle_attached(windows, self.codec, now.monotonic);
                self.events.push_back(LinkEvent::Accepted);
                Ok(())
            }
        }
    }

    fn handle_message(
        &mut self,
        message: ToNode,
        runs: &mut Runs,
        now: Instant,
    ) -> Result<(), LinkEnd> {
        match message {
            ToNode::Run(message) => runs.handle_message(message, now)?,
            ToNode::Ping { number } => self.say(&ToGateway::Pong { number })?,
            ToNode::Pong { .. } => {}
            ToNode::Sample => self.events.push_back(LinkEvent::SampleDue),
            ToNode::Goodbye { back_in_ms, .. } => {
                return Err(LinkEnd::Goodbye(Duration::from_millis(back_in_ms)));
            }
            ToNode::Close { code } => return Err(LinkEnd::Closed(code)),
        }
        Ok(())
    }

    /// The time of [`Link::poll_timeout`] has come.
    ///
    /// # Errors
    /// How the connection ends. What [`Link::poll_transmit`] still gives is the last word.
    pub fn handle_timeout(&mut self, now: Moment) -> Result<(), LinkEnd> {
        let handled = self.beat(now);
        handled.inspect_err(|end| self.part(end))
    }

    fn beat(&mut self, now: Moment) -> Result<(), LinkEnd> {
        match &mut self.state {
            State::Proving(proving) => {
                let silent = now.monotonic.saturating_duration_since(proving.heard);
                if silent >= proving.silence_max {
                    return Err(LinkEnd::Slow(silent));
                }
                Ok(())
            }
            State::Accepted {
                liveness,
                telemetry_interval,
                telemetry_due,
                ..
            } => {
                let ping = liveness.handle_timeout(now)?;
                if *telemetry_due <= now.monotonic {
                    *telemetry_due = later(now.monotonic, *telemetry_interval);
                    self.events.push_back(LinkEvent::SampleDue);
                }
                match ping {
                    Some(number) => self.say(&ToGateway::Ping { number }),
                    None => Ok(()),
                }
            }
        }
    }

    /// Sends what this machine has and does, and where the gateway understands it what its clock
    /// says, in milliseconds since 1970.
    ///
    /// # Errors
    /// [`LinkEnd::Codec`] for a sample that does not fit a frame.
    pub fn send_sample(&mut self, sample: Sample, unix_ms: u64) -> Result<(), LinkEnd> {
        let State::Accepted { ledger, .. } = self.state else {
            return Ok(());
        };
        if ledger >= Ledger::CLOCK {
            self.say(&ToGateway::Clock { unix_ms })?;
        }
        self.say(&ToGateway::Telemetry(Box::new(sample)))
    }

    /// Leaves nothing to be said but why this side closes: a gateway that still listens may know.
    /// Before it has accepted there is no such word.
    fn part(&mut self, end: &LinkEnd) {
        self.is_over = true;
        self.outgoing.clear();
        if let (State::Accepted { .. }, Some(code)) = (&self.state, end.close_code()) {
            let close = self.codec.encode(&ToGateway::Close { code });
            self.outgoing.extend(close.ok());
        }
    }

    /// Returns the next thing for the driver to know or do.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    /// Returns the next plaintext to seal and send.
    ///
    /// # Errors
    /// [`LinkEnd::Codec`] for a message that does not fit a frame.
    pub fn poll_transmit(
        &mut self,
        runs: &mut Runs,
        now: Instant,
    ) -> Result<Option<Vec<u8>>, LinkEnd> {
        if let Some(plaintext) = self.outgoing.pop_front() {
            return Ok(Some(plaintext));
        }
        let message: Option<FromKeeper> = match self.state {
            State::Accepted { .. } if !self.is_over => runs.poll_transmit(now),
            State::Proving(_) | State::Accepted { .. } => None,
        };
        let message = message.map(ToGateway::Run);
        Ok(message
            .map(|message| self.codec.encode(&message))
            .transpose()?)
    }

    /// Returns when to call [`Link::handle_timeout`].
    pub fn poll_timeout(&self) -> Instant {
        match &self.state {
            State::Proving(proving) => proving.heard + proving.silence_max,
            State::Accepted {
                liveness,
                telemetry_due,
                ..
            } => liveness.poll_timeout().min(*telemetry_due),
        }
    }

    fn say(&mut self, message: &impl Serialize) -> Result<(), LinkEnd> {
        self.outgoing.push_back(self.codec.encode(message)?);
        Ok(())
    }
}

fn decode<T: DeserializeOwned>(codec: Codec, plaintext: &[u8]) -> Result<T, LinkEnd> {
    Ok(codec.decode(plaintext)?)
}

/// A time beyond what the clock can say is a day away.
fn later(now: Instant, wait: Duration) -> Instant {
    now + wait.min(Duration::from_hours(24))
}
