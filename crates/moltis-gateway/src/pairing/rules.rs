//! The rule book of pairing. Pure: who knocks, what is known and what time it is come in; what is to
//! be done goes out.
//!
//! 1. A known key of a known device is let in, or turned away as revoked. Half a match is a key
//!    mismatch.
//! 2. Only `node add` asks for a person: `Connect` never makes a request.
//! 3. A node that waits already is taken up again, window or not.
//! 4. The process that was told no, or whose time ran out, is told so again; a new one may ask anew.
//! 5. The closed window turns strangers away.
//! 6. The node id must be free, and there must be room: 16 in all, 3 from one address.
//! 7. A person approves exactly what was shown. A pin is never overwritten.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use moltis_identity::Fingerprint;
use moltis_proto::handshake::gateway::VerifiedNode;
use moltis_proto::handshake::{ConnectionCode, Intent, Introduction};
use moltis_proto::limits::{PENDING_MAX, PENDING_PER_ADDRESS_MAX};
use moltis_proto::{DeviceId, InstanceId, NodeId, NodeName, PublicKey, Refusal, RequestId};
use tokio::time::Instant;

use super::book::Book;
use super::{PairingError, SeenRequest};
use crate::store::{Answer, Claims, NodeRecord, PairingRequest};

/// A node at the door, with the key it has proven.
#[derive(Debug, Clone)]
pub(super) struct Knock {
    pub(super) node_key: PublicKey,
    pub(super) device_id: DeviceId,
    pub(super) instance_id: InstanceId,
    pub(super) intent: Intent,
    pub(super) introduction: Introduction,
    pub(super) code: ConnectionCode,
    pub(super) address: IpAddr,
}

/// What is to be done about a knock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ruling {
    /// Let it in.
    Accept(Arc<NodeRecord>),
    /// Turn it away, and write down that this known node's key or device was half shown.
    Mismatch(DeviceId),
    /// Turn it away.
    Refuse(Refusal),
    /// Take its request up again.
    Reattach(RequestId),
    /// Make a request.
    Create,
}

/// What a person should know before approving.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A revoked node had this id.
    RevokedNodeId(NodeId),
    /// A known node has this name.
    NameTaken(NodeName),
    /// Another request asks for the same id.
    NodeIdAskedTwice(NodeId),
    /// Commands will run as root.
    RunsAsRoot,
}

impl Knock {
    pub(super) fn of(node: &VerifiedNode, address: IpAddr) -> Self {
        Self {
            node_key: node.node_key(),
            device_id: node.device_id(),
            instance_id: node.instance_id(),
            intent: node.intent(),
            introduction: node.introduction().clone(),
            code: node.connection_code().clone(),
            address: address.to_canonical(),
        }
    }

    /// Returns the request that this knock makes.
    pub(super) fn request(&self, id: RequestId, wall: Timestamp) -> PairingRequest {
        PairingRequest {
            id,
            node_key: self.node_key,
            device_id: self.device_id,
            instance_id: self.instance_id,
            introduction: self.introduction.clone(),
            address: self.address,
            code: self.code.clone(),
            revision: 1,
            first_seen_at: wall,
            last_seen_at: wall,
            answer: None,
            answered_at: None,
            answered_by: None,
        }
    }

    /// Returns the request as it is after its node has come again.
    pub(super) fn again(&self, before: &PairingRequest, wall: Timestamp) -> PairingRequest {
        PairingRequest {
            revision: before.revision.saturating_add(1),
            first_seen_at: before.first_seen_at,
            ..self.request(before.id, wall)
        }
    }
}

/// Decides about a knock.
pub(super) fn admit(book: &Book, knock: &Knock, now: Instant) -> Ruling {
    if let Some(node) = book.node_by_key(&knock.node_key) {
        return known(node, knock);
    }
    if book.node(knock.device_id).is_some() {
        return Ruling::Mismatch(knock.device_id);
    }
    match knock.intent {
        Intent::Connect => Ruling::Refuse(Refusal::Unknown),
        Intent::Pair => stranger(book, knock, now),
    }
}

fn known(node: &Arc<NodeRecord>, knock: &Knock) -> Ruling {
    if node.device_id != knock.device_id {
        return Ruling::Mismatch(node.device_id);
    }
    if node.revoked_at.is_some() {
        return Ruling::Refuse(Refusal::Revoked);
    }
    Ruling::Accept(Arc::clone(node))
}

fn stranger(book: &Book, knock: &Knock, now: Instant) -> Ruling {
    for waiting in book.waiting(now) {
        let request = &waiting.request;
        match (
            request.node_key == knock.node_key,
            request.device_id == knock.device_id,
        ) {
            (true, true) => return Ruling::Reattach(request.id),
            (false, false) => {}
            _ => return Ruling::Refuse(Refusal::KeyMismatch),
        }
    }
    if let Some(refusal) = told_before(book, knock, now) {
        return Ruling::Refuse(refusal);
    }
    if book.window(now).is_none() {
        return Ruling::Refuse(Refusal::PairingOff);
    }
    if book.holder_of(&knock.introduction.node_id).is_some() {
        return Ruling::Refuse(Refusal::NodeIdInUse);
    }
    let place = place_of(knock.address);
    let neighbours = book
        .waiting(now)
        .filter(|waiting| place_of(waiting.request.address) == place)
        .count();
    if book.waiting(now).count() >= PENDING_MAX || neighbours >= PENDING_PER_ADDRESS_MAX {
        return Ruling::Refuse(Refusal::PendingFull);
    }
    Ruling::Create
}

/// Returns the no that this very process has earned, perhaps while it was not connected.
fn told_before(book: &Book, knock: &Knock, now: Instant) -> Option<Refusal> {
    let same = |request: &&PairingRequest| {
        request.node_key == knock.node_key
            && request.device_id == knock.device_id
            && request.instance_id == knock.instance_id
    };
    if book.expired(now).iter().any(|request| same(&request)) {
        return Some(Refusal::Expired);
    }
    match book.answered().find(same)?.answer? {
        Answer::Rejected => Some(Refusal::Rejected),
        Answer::Expired => Some(Refusal::Expired),
        // Approved once, and forgotten since: it may ask anew.
        Answer::Approved => None,
    }
}

/// Returns what counts as one address: an IPv6 host has a whole /64 to itself.
fn place_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// Decides whether a request that waits may be answered now.
pub(super) fn answerable(
    book: &Book,
    id: RequestId,
    now: Instant,
) -> Result<&PairingRequest, PairingError> {
    if let Some(waiting) = book.waiting_request(id) {
        if waiting.deadline <= now {
            return Err(PairingError::Expired { id });
        }
        return Ok(&waiting.request);
    }
    match book.answered().find(|request| request.id == id) {
        Some(request) => match request.answer {
            Some(Answer::Expired) => Err(PairingError::Expired { id }),
            Some(answer) => Err(PairingError::Answered { id, answer }),
            None => Err(PairingError::UnknownRequest { id: id.to_string() }),
        },
        None => Err(PairingError::UnknownRequest { id: id.to_string() }),
    }
}

/// Decides about an approval; returns the node that it makes.
pub(super) fn approve(
    book: &Book,
    id: RequestId,
    seen: &SeenRequest,
    by: &str,
    wall: Timestamp,
    now: Instant,
) -> Result<NodeRecord, PairingError> {
    let request = answerable(book, id, now)?;
    if Fingerprint::of(&request.node_key) != seen.fingerprint || request.code != seen.code {
        return Err(PairingError::RequestChanged { id });
    }
    if book.node_by_key(&request.node_key).is_some() || book.node(request.device_id).is_some() {
        return Err(PairingError::Pinned);
    }
    let said = &request.introduction;
    if book.holder_of(&said.node_id).is_some() {
        return Err(PairingError::NodeIdInUse {
            node_id: said.node_id.clone(),
        });
    }
    Ok(NodeRecord {
        device_id: request.device_id,
        node_key: request.node_key,
        node_id: said.node_id.clone(),
        name: said.name.clone(),
        labels: said.labels.clone(),
        platform: said.platform.clone(),
        claims: Claims::from(said),
        paired_at: wall,
        paired_by: by.to_owned(),
        last_seen_at: Some(request.last_seen_at),
        last_address: Some(request.address.to_string()),
        revoked_at: None,
    })
}

/// Returns what a person should know before approving a request.
pub(super) fn warnings(book: &Book, request: &PairingRequest) -> Vec<Warning> {
    let said = &request.introduction;
    let nodes = book.nodes();
    let mut warnings = Vec::new();
    if nodes
        .iter()
        .any(|node| node.revoked_at.is_some() && node.node_id == said.node_id)
    {
        warnings.push(Warning::RevokedNodeId(said.node_id.clone()));
    }
    if nodes
        .iter()
        .any(|node| node.revoked_at.is_none() && node.name == said.name)
    {
        warnings.push(Warning::NameTaken(said.name.clone()));
    }
    let others = book.all_waiting();
    if others
        .filter(|other| other.id != request.id)
        .any(|other| other.introduction.node_id == said.node_id)
    {
        warnings.push(Warning::NodeIdAskedTwice(said.node_id.clone()));
    }
    if said.user == "root" {
        warnings.push(Warning::RunsAsRoot);
    }
    warnings
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RevokedNodeId(id) => write!(
                f,
                "a revoked node had the id `{id}`: approve only if this is that machine with a new key"
            ),
            Self::NameTaken(name) => write!(f, "another node is already called `{name}`"),
            Self::NodeIdAskedTwice(id) => {
                write!(
                    f,
                    "another request asks for the id `{id}` too: only one can have it"
                )
            }
            Self::RunsAsRoot => f.write_str("commands will run as root on that machine"),
        }
    }
}
