//! From an upgraded socket to a verdict: Noise, both proofs, the introduction, and the wait for a
//! person where one has to decide.
//!
//! The thinking is [`NodeHandshake`]'s; here are the frames and the deadlines.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{Initiator, NoiseError};
use moltis_identity::{Fingerprint, NodeIdentity, StrictVerifier, random};
use moltis_proto::code::Refusal;
use moltis_proto::handshake::node::{Decision, NodeClaim, NodeHandshake, Pin};
use moltis_proto::handshake::{
    Allowance, Binding, ConnectionCode, Epoch, GatewayProof, HandshakeError, Introduction,
    SessionLimits, Verdict,
};
use moltis_proto::limits::{HANDSHAKE_FRAME_BYTES_MAX, HANDSHAKE_TIME_MAX};
use moltis_proto::liveness::Liveness;
use moltis_proto::message::Windows;
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::version::Ledger;
use moltis_proto::{Codec, Nonce, PublicKey, RequestId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::Message;

use super::dial::{Socket, within};
use super::socket::{Opened, broken};
use crate::clock::Clock;
use crate::error::{LinkError, Step};
use crate::url::GatewayUrl;

/// A request to pair is answered, or expires, within its time; a gateway that forgets to say so is
/// left this much later.
const PENDING_SLACK: Duration = Duration::from_mins(1);

/// Longer than any request waits.
const PENDING_MAX: Duration = Duration::from_hours(24);

/// What a node brings to a handshake.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    pub(super) url: &'a GatewayUrl,
    pub(super) identity: &'a NodeIdentity,
    pub(super) claim: NodeClaim,
    pub(super) pin: Pin,
    pub(super) introduction: &'a Introduction,
    pub(super) clock: &'a Clock,
}

/// What happens on the way to acceptance.
#[derive(Debug)]
pub(super) enum Progress {
    /// The gateway has proven to hold this key, and it fits the pin.
    Key(PublicKey),
    /// A person has to decide.
    Pending {
        request_id: RequestId,
        code: ConnectionCode,
        expires_in: Duration,
    },
}

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) opened: Opened,
    pub(super) gateway_key: PublicKey,
    pub(super) epoch: Epoch,
    pub(super) windows: Windows,
    pub(super) limits: SessionLimits,
    pub(super) ledger: Ledger,
    pub(super) approved: bool,
}

/// Runs the handshake to its end.
pub(super) async fn run(
    socket: Socket,
    negotiated: &Negotiated,
    claims: &Claims<'_>,
    mut progress: impl FnMut(Progress),
) -> Result<Accepted, LinkError> {
    let first = within(
        Step::Handshake,
        HANDSHAKE_TIME_MAX,
        prove(socket, negotiated, claims, &mut progress),
    );
    let (mut conversation, mut machine, decision) = first.await?;
    let gateway_key = machine.gateway_key().ok_or(LinkError::Protocol(
        "a verdict came before the gateway's key",
    ))?;
    let (decision, approved) = match decision {
        Decision::Pending {
            request_id,
            expires_in_ms,
            code,
        } => {
            let expires_in = Duration::from_millis(expires_in_ms).min(PENDING_MAX);
            progress(Progress::Pending {
                request_id,
                code,
                expires_in,
            });
            let wait = wait_for_person(&mut conversation, &mut machine, claims);
            let decision = within(Step::Handshake, expires_in + PENDING_SLACK, wait).await?;
            (decision, true)
        }
        other => (other, false),
    };
    match decision {
        Decision::Accepted {
            epoch,
            windows,
            limits,
            ledger,
        } => Ok(Accepted {
            opened: conversation.opened,
            gateway_key,
            epoch,
            windows,
            limits,
            ledger,
            approved,
        }),
        Decision::Refused(Refusal::Version) => Err(LinkError::Version(None)),
        Decision::Refused(refusal) => Err(LinkError::Refused(refusal)),
        Decision::Pending { .. } => Err(LinkError::Protocol("it decided nothing")),
    }
}

/// Steps 1 to 6.
async fn prove(
    socket: Socket,
    negotiated: &Negotiated,
    claims: &Claims<'_>,
    progress: &mut impl FnMut(Progress),
) -> Result<(Conversation, NodeHandshake, Decision), LinkError> {
    let mut conversation = Conversation::begin(socket, negotiated, claims.url).await?;
    let binding = conversation.binding;
    let mut machine = NodeHandshake::new(binding, claims.claim, claims.pin);
    let challenge = conversation.receive::<GatewayProof>().await?;
    let nonce = Nonce::from_bytes(random::bytes());
    let proof = machine
        .handle_gateway_proof(challenge, &claims.identity.secret, &StrictVerifier, nonce)
        .map_err(|error| handshake_error(error, claims.url))?;
    if let Some(key) = machine.gateway_key() {
        progress(Progress::Key(key));
    }
    conversation.send(&proof).await?;
    conversation.send(claims.introduction).await?;
    let verdict = conversation.receive::<Verdict>().await?;
    let decision = decide(&mut machine, verdict, claims.url)?;
    Ok((conversation, machine, decision))
}

/// Waits until a person has decided. The gateway repeats its `Pending` as a sign of life.
async fn wait_for_person(
    conversation: &mut Conversation,
    machine: &mut NodeHandshake,
    claims: &Claims<'_>,
) -> Result<Decision, LinkError> {
    let mut liveness = Liveness::new(&SessionLimits::STANDARD, claims.clock.now());
    loop {
        // What a patient gateway says in an hour is more than a stranger may say at once.
        conversation.allowance = Allowance::new();
        let due = Instant::from_std(liveness.poll_timeout());
        let frame = tokio::select! {
            biased;
            () = sleep_until(due) => {
                let now = claims.clock.now();
                liveness.handle_timeout(now).map_err(LinkError::Lifeless)?;
                continue;
            }
            frame = conversation.next_frame() => frame?,
        };
        let verdict = conversation.open::<Verdict>(&frame)?;
        let now = claims.clock.now();
        liveness.handle_frame(now).map_err(LinkError::Lifeless)?;
        match decide(machine, verdict, claims.url)? {
            Decision::Pending { .. } => {}
            decision => return Ok(decision),
        }
    }
}

fn decide(
    machine: &mut NodeHandshake,
    verdict: Verdict,
    url: &GatewayUrl,
) -> Result<Decision, LinkError> {
    machine
        .handle_verdict(verdict, &StrictVerifier)
        .map_err(|error| handshake_error(error, url))
}

fn handshake_error(error: HandshakeError, url: &GatewayUrl) -> LinkError {
    match error {
        HandshakeError::GatewayKeyChanged { pinned, found, .. } => LinkError::GatewayKeyChanged {
            pinned: Fingerprint::from_digest(pinned),
            found: Fingerprint::from_digest(found),
            url: url.clone(),
        },
        HandshakeError::NoCommonLedger { .. } => LinkError::Version(Some(Box::new(error))),
        source => LinkError::Handshake {
            url: url.clone(),
            source: Box::new(source),
        },
    }
}

/// Whole messages, one in a frame, before acceptance.
#[derive(Debug)]
struct Conversation {
    opened: Opened,
    binding: Binding,
    allowance: Allowance,
}

impl Conversation {
    async fn begin(
        mut socket: Socket,
        negotiated: &Negotiated,
        url: &GatewayUrl,
    ) -> Result<Self, LinkError> {
        let (initiator, message_1) = Initiator::new(negotiated).map_err(LinkError::Noise)?;
        let sent = socket.send(Message::Binary(message_1.into())).await;
        sent.map_err(|error| broken(error, Some(Step::Handshake)))?;
        let mut allowance = Allowance::new();
        let message_2 = next_frame(&mut socket, &mut allowance).await?;
        let channel = initiator.finish(&message_2).map_err(|error| match error {
            NoiseError::Length { .. } => LinkError::NotAGateway {
                url: url.clone(),
                found: "its first message is none of Noise".to_owned(),
            },
            other => LinkError::Noise(other),
        })?;
        Ok(Self {
            opened: Opened {
                socket,
                sealer: channel.sealer,
                opener: channel.opener,
                codec: negotiated.chosen.codec(),
            },
            binding: channel.binding,
            allowance,
        })
    }

    async fn send(&mut self, message: &impl Serialize) -> Result<(), LinkError> {
        let plain = self.codec().encode(message).map_err(LinkError::Codec)?;
        if plain.len() + 16 > HANDSHAKE_FRAME_BYTES_MAX {
            return Err(LinkError::Introduction(format!(
                "name, labels and lists need {} bytes, more than the {HANDSHAKE_FRAME_BYTES_MAX} that a gateway takes from a stranger",
                plain.len()
            )));
        }
        let mut frame = Vec::with_capacity(plain.len() + 16);
        let opened = &mut self.opened;
        opened
            .sealer
            .seal(&plain, &mut frame)
            .map_err(LinkError::Noise)?;
        let sent = opened.socket.send(Message::Binary(frame.into())).await;
        sent.map_err(|error| broken(error, Some(Step::Handshake)))
    }

    async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        let frame = self.next_frame().await?;
        self.open(&frame)
    }

    /// Cancel safe: a frame that came is returned, or still in the socket.
    async fn next_frame(&mut self) -> Result<Bytes, LinkError> {
        next_frame(&mut self.opened.socket, &mut self.allowance).await
    }

    fn open<T: DeserializeOwned>(&mut self, frame: &[u8]) -> Result<T, LinkError> {
        let mut plain = Vec::with_capacity(frame.len());
        self.opened
            .opener
            .open(frame, &mut plain)
            .map_err(LinkError::Noise)?;
        self.codec().decode(&plain).map_err(LinkError::Codec)
    }

    fn codec(&self) -> Codec {
        self.opened.codec
    }
}

async fn next_frame(socket: &mut Socket, allowance: &mut Allowance) -> Result<Bytes, LinkError> {
    loop {
        let hangup = LinkError::Hangup {
            during: Some(Step::Handshake),
        };
        let message = match socket.next().await {
            None => return Err(hangup),
            Some(Err(error)) => return Err(broken(error, Some(Step::Handshake))),
            Some(Ok(message)) => message,
        };
        match message {
            Message::Binary(frame) => {
                let taken = allowance.take(frame.len());
                taken.map_err(|_| LinkError::Protocol("it said too much before its verdict"))?;
                return Ok(frame);
            }
            Message::Close(_) => return Err(hangup),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Text(_) | Message::Frame(_) => {
                return Err(LinkError::Protocol("it sent text where frames are binary"));
            }
        }
    }
}
