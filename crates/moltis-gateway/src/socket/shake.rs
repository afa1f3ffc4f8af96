//! The handshake on a new socket, and what becomes of the node: accepted, refused, or waiting.
//!
//! Who speaks when is the machine's (`moltis_proto::handshake::gateway`); here are the socket, the
//! time and the bytes that a stranger is granted.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::Responder;
use moltis_identity::{StrictVerifier, random};
use moltis_proto::code::Refusal;
use moltis_proto::handshake::gateway::{GatewayHandshake, VerifiedNode};
use moltis_proto::handshake::{Allowance, HandshakeError, Introduction, NodeProof, Verdict};
use moltis_proto::limits::{HANDSHAKE_TIME_MAX, PING_AFTER};
use moltis_proto::message::Windows;
use moltis_proto::subprotocol::Negotiated;
use moltis_proto::version::LedgerRange;
use moltis_proto::{Nonce, RequestId};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::{Door, Socket};
use crate::admission::Stranger;
use crate::metrics::Refused;
use crate::pairing::{Admission, Decision};
use crate::session::bucket::Bucket;
use crate::session::seat::{Seat, Sitter};
use crate::session::wire::{Arrival, Wire, WireError};
use crate::session::{self, chain};
use crate::store::{NodeRecord, StoreError};

/// What a ping costs a stranger: as much as a frame would, so that none keeps us busy with them.
const NOISE_COST: usize = 256;

/// How long a verdict may take to leave.
const VERDICT_TIME: Duration = Duration::from_secs(2);

/// Why nothing has come of a new socket.
#[derive(Debug, thiserror::Error)]
enum ShakeError {
    #[error("the handshake took longer than {} s", HANDSHAKE_TIME_MAX.as_secs())]
    Slow,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the store could not be asked who this is")]
    Store(#[from] StoreError),
    #[error("the node spoke while it was to wait")]
    Impatient,
    #[error("the node sends too much that costs it nothing")]
    Flood,
    #[error("the gateway is shutting down")]
    Shutdown,
}

impl ShakeError {
    /// Returns the word that it is counted under.
    fn counted(&self) -> Refused {
        match self {
            Self::Slow | Self::Wire(WireError::Stuck) => Refused::Timeout,
            Self::Handshake(HandshakeError::WeakKey { .. } | HandshakeError::Signature { .. }) => {
                Refused::BadProof
            }
            Self::Wire(WireError::Closed | WireError::Socket(_)) => Refused::Left,
            Self::Handshake(_) | Self::Wire(_) | Self::Impatient | Self::Flood => Refused::Protocol,
            Self::Store(_) => Refused::StoreFailed,
            Self::Shutdown => Refused::ShuttingDown,
        }
    }
}

/// Takes a new socket to its verdict. Returns what its session begins with, where it is accepted.
pub(super) async fn receive(
    door: Door,
    socket: Socket,
    negotiated: Negotiated,
    source: IpAddr,
    address: Option<IpAddr>,
    stranger: Stranger,
) -> Option<Box<session::Accepted>> {
    let knock = Knock {
        door: &door,
        source,
        address,
    };
    match knock.admit(socket, negotiated, stranger).await {
        Ok(Ok(accepted)) => {
            door.0.counts.accepted.one();
            Some(Box::new(accepted))
        }
        Ok(Err(why)) => {
            door.refused(why);
            None
        }
        Err(error) => {
            door.refused(error.counted());
            tracing::debug!(peer.addr = %source, error = %chain(&error), "a handshake has failed");
            None
        }
    }
}

struct Knock<'a> {
    door: &'a Door,
    source: IpAddr,
    address: Option<IpAddr>,
}

impl Knock<'_> {
    async fn admit(
        &self,
        socket: Socket,
        negotiated: Negotiated,
        mut stranger: Stranger,
    ) -> Result<Result<session::Accepted, Refused>, ShakeError> {
        let inner = &self.door.0;
        let shake = self.shake(socket, &negotiated);
        let shaken = tokio::select! {
            biased;
            () = inner.shared.tasks.stop().cancelled() => return Err(ShakeError::Shutdown),
            shaken = tokio::time::timeout(HANDSHAKE_TIME_MAX, shake) => shaken,
        };
        let (mut wire, node) = match shaken.map_err(|_elapsed| ShakeError::Slow)?? {
            Shaken::Proven(wire, node) => (wire, node),
            Shaken::Refused(wire, refusal) => {
                refuse(wire, refusal).await;
                return Ok(Err(refusal.into()));
            }
        };
        let record = match inner.shared.desk.admit(&node, self.source).await? {
            Admission::Accept(record) => {
                stranger.is_known();
                record
            }
            Admission::Refuse(refusal) => {
                tracing::info!(node.id = node.introduction().node_id.as_str(), peer.addr = %self.source, ?refusal, "a node was refused");
                refuse(wire, refusal).await;
                return Ok(Err(refusal.into()));
            }
            Admission::Pend {
                request_id,
                expires_in,
                decision,
            } => {
                stranger.waits();
                let wait = Wait {
                    request_id,
                    expires_at: Instant::now() + expires_in,
                    decision,
                };
                let refusal = match self.wait(&mut wire, &node, wait).await? {
                    Waited::Approved(record) => {
                        return self.accept(wire, &node, &record, &negotiated).map(Ok);
                    }
                    Waited::Refused(refusal) => refusal,
                    Waited::Superseded => {
                        wire.close(Instant::now() + VERDICT_TIME).await;
                        return Ok(Err(Refused::Superseded));
                    }
                };
                refuse(wire, refusal).await;
                return Ok(Err(refusal.into()));
            }
        };
        self.accept(wire, &node, &record, &negotiated).map(Ok)
    }

    async fn shake(&self, socket: Socket, negotiated: &Negotiated) -> Result<Shaken, ShakeError> {
        let inner = &self.door.0;
        let mut socket = socket;
        let mut allowance = Allowance::new();
        let message_1 = read_plain(&mut socket, &mut allowance).await?;
        let (channel, message_2) = inner
            .admission
            .crypto(|| Responder::new(negotiated)?.respond(&message_1))
            .await
            .map_err(WireError::Noise)?;
        let binding = channel.binding;
        let (mut machine, proof) = inner
            .admission
            .crypto(|| {
                GatewayHandshake::new(
                    binding,
                    &inner.identity.secret,
                    &StrictVerifier,
                    LedgerRange::CURRENT,
                    Nonce::from_bytes(random::bytes()),
                    Nonce::from_bytes(random::bytes()),
                )
            })
            .await;
        socket
            .send(Message::Binary(message_2.into()))
            .await
            .map_err(WireError::Socket)?;
        let mut wire = Wire::new(socket, negotiated.chosen.codec(), channel);
        wire.queue(&proof)?;
        let answer: NodeProof = read(&mut wire, &mut allowance).await?;
        let proven = inner
            .admission
            .crypto(|| machine.handle_proof(answer, &StrictVerifier))
            .await;
        match proven {
            Ok(()) => {}
            Err(error) => return refusal_of(wire, error),
        }
        let introduction: Introduction = read(&mut wire, &mut allowance).await?;
        match machine.handle_introduction(introduction) {
            Ok(node) => Ok(Shaken::Proven(wire, Box::new(node))),
            Err(error) => refusal_of(wire, error),
        }
    }

    /// Holds a connection until a person decides. The verdict is repeated as a sign of life; the
    /// node says nothing.
    async fn wait(
        &self,
        wire: &mut Wire,
        node: &VerifiedNode,
        mut wait: Wait,
    ) -> Result<Waited, ShakeError> {
        let stop = self.door.0.shared.tasks.stop();
        let mut bucket = Bucket::new(Instant::now().into_std());
        loop {
            let left = wait.expires_at.saturating_duration_since(Instant::now());
            wire.queue(&node.pending(wait.request_id, crate::exec::request::millis(left)))?;
            let again = Instant::now() + PING_AFTER;
            loop {
                if let Some(decision) = wait.decision.borrow_and_update().clone() {
                    return Ok(match decision {
                        Decision::Approved(record) => Waited::Approved(record),
                        Decision::Rejected => Waited::Refused(Refusal::Rejected),
                        Decision::Expired => Waited::Refused(Refusal::Expired),
                        Decision::Superseded => Waited::Superseded,
                    });
                }
                let deadline = wire
                    .write_deadline()
                    .map_or(again, |stuck| stuck.min(again));
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Err(ShakeError::Shutdown),
                    changed = wait.decision.changed() => {
                        if changed.is_err() {
                            return Err(ShakeError::Shutdown);
                        }
                    }
                    arrival = wire.next() => match arrival? {
                        Arrival::Flushed => {}
                        Arrival::Noise => {
                            if !bucket.take(Instant::now().into_std()) {
                                return Err(ShakeError::Flood);
                            }
                        }
                        Arrival::Frame(_) => return Err(ShakeError::Impatient),
                    },
                    () = tokio::time::sleep_until(deadline) => break,
                }
            }
            let now = Instant::now();
            if wire.write_deadline().is_some_and(|stuck| stuck <= now) {
                return Err(WireError::Stuck.into());
            }
        }
    }

    fn accept(
        &self,
        mut wire: Wire,
        node: &VerifiedNode,
        record: &Arc<NodeRecord>,
        negotiated: &Negotiated,
    ) -> Result<session::Accepted, ShakeError> {
        let inner = &self.door.0;
        let shared = &inner.shared;
        let windows = Windows {
            chunk_bytes_max: u32::try_from(negotiated.chosen.chunk_bytes_max())
                .unwrap_or(inner.windows.chunk_bytes_max)
                .min(inner.windows.chunk_bytes_max),
            ..inner.windows
        };
        let epoch = shared.roster.next_epoch();
        wire.queue(&node.accepted(epoch, windows, inner.limits))?;
        let (seat, mailbox) = Seat::new(Sitter {
            target: crate::store::Target::Node(record.device_id),
            epoch,
            instance_id: node.instance_id(),
            codec: wire.codec(),
            record: Some(Arc::clone(record)),
            remote: self.address,
            since: shared.clock.now(),
        });
        Ok(session::Accepted {
            device: record.device_id,
            wire,
            seat,
            mailbox,
            windows,
            limits: inner.limits,
        })
    }
}

enum Shaken {
    /// The node holds its key, and has said what it is.
    Proven(Wire, Box<VerifiedNode>),
    /// It holds its key, and can be told why it may not come in.
    Refused(Wire, Refusal),
}

/// What has come of waiting for a person.
enum Waited {
    Approved(Arc<NodeRecord>),
    Refused(Refusal),
    /// The node waits on another connection.
    Superseded,
}

struct Wait {
    request_id: RequestId,
    expires_at: Instant,
    decision: watch::Receiver<Option<Decision>>,
}

/// Before a valid proof an error is one close; after it the node is told why.
fn refusal_of(wire: Wire, error: HandshakeError) -> Result<Shaken, ShakeError> {
    match error.refusal() {
        Some(refusal) => Ok(Shaken::Refused(wire, refusal)),
        None => Err(error.into()),
    }
}

async fn refuse(mut wire: Wire, refusal: Refusal) {
    wire.queue(&Verdict::Refused { code: refusal }).ok(); // a channel that failed says nothing
    wire.close(Instant::now() + VERDICT_TIME).await;
}

/// Reads a message of the Noise handshake itself.
async fn read_plain(
    socket: &mut Socket,
    allowance: &mut Allowance,
) -> Result<axum::body::Bytes, ShakeError> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                allowance.take(bytes.len())?;
                return Ok(bytes);
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => allowance.take(NOISE_COST)?,
            Some(Ok(Message::Text(_) | Message::Frame(_))) => return Err(WireError::Text.into()),
            Some(Ok(Message::Close(_))) | None => return Err(WireError::Closed.into()),
            Some(Err(error)) => return Err(WireError::Socket(error).into()),
        }
    }
}

/// Reads one message of a stranger, within what it is granted.
async fn read<T: DeserializeOwned>(
    wire: &mut Wire,
    allowance: &mut Allowance,
) -> Result<T, ShakeError> {
    loop {
        match wire.next().await? {
            Arrival::Flushed => {}
            Arrival::Frame(frame) => {
                allowance.take(frame.len())?;
                wire.open(&frame)?;
                return Ok(wire.decode()?);
            }
            Arrival::Noise => allowance.take(NOISE_COST)?,
        }
    }
}
