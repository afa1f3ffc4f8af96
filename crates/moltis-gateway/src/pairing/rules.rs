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
    if !book.is_open(now) {
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

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use moltis_proto::limits::{PENDING_TIME, WINDOW_TIME};

    use super::super::book::Waiting;
    use super::*;
    use crate::store::testing::{at, introduction, node};

    pub(in super::super) fn knock(number: u8) -> Knock {
        Knock {
            node_key: PublicKey::from_bytes([number; 32]),
            device_id: DeviceId::from_bytes([number; 16]),
            instance_id: InstanceId::from_bytes([number; 16]),
            intent: Intent::Pair,
            introduction: introduction(&format!("box-{number}")),
            code: "7Q4M-2XKD-P9VA".parse().unwrap(),
            address: IpAddr::from([10, 0, 0, number]),
        }
    }

    fn id(number: u8) -> RequestId {
        RequestId::from_bytes([number; 16])
    }

    struct Door {
        book: Book,
        now: Instant,
    }

    impl Door {
        fn shut() -> Self {
            Self {
                book: Book::default(),
                now: Instant::now(),
            }
        }

        fn open() -> Self {
            let mut door = Self::shut();
            door.book.open_window(WINDOW_TIME, at(0), door.now);
            door
        }

        fn knows(mut self, node: NodeRecord) -> Self {
            self.book.put_node(Arc::new(node));
            self
        }

        fn waits(mut self, knock: &Knock) -> Self {
            let request = knock.request(id(knock.node_key.as_bytes()[0]), at(0));
            self.book
                .put_waiting(Waiting::new(request, at(0), self.now));
            self
        }

        fn answered(mut self, number: u8, answer: Answer) -> Self {
            let request = PairingRequest {
                answer: Some(answer),
                answered_at: Some(at(1)),
                ..knock(number).request(id(number), at(0))
            };
            self.book.answer(request);
            self
        }

        fn rule(&self, knock: &Knock) -> Ruling {
            admit(&self.book, knock, self.now)
        }

        fn approve(&self, number: u8, seen: &SeenRequest) -> Result<NodeRecord, PairingError> {
            approve(&self.book, id(number), seen, "operator", at(5), self.now)
        }
    }

    fn refused(refusal: Refusal) -> Ruling {
        Ruling::Refuse(refusal)
    }

    fn revoked(number: u8) -> NodeRecord {
        NodeRecord {
            revoked_at: Some(at(1)),
            ..node(number)
        }
    }

    pub(in super::super) fn seen(number: u8) -> SeenRequest {
        SeenRequest {
            fingerprint: Fingerprint::of(&knock(number).node_key),
            code: knock(number).code,
        }
    }

    #[test]
    fn a_known_node_is_let_in_whatever_it_wants_and_whatever_the_window() {
        for door in [Door::shut(), Door::open()] {
            let door = door.knows(node(1));
            for intent in [Intent::Connect, Intent::Pair] {
                let knock = Knock { intent, ..knock(1) };
                assert_eq!(door.rule(&knock), Ruling::Accept(Arc::new(node(1))));
            }
        }
    }

    #[test]
    fn a_revoked_key_is_turned_away_for_good() {
        let door = Door::open().knows(revoked(1));
        assert_eq!(door.rule(&knock(1)), refused(Refusal::Revoked));
    }

    #[test]
    fn half_a_match_is_a_mismatch_of_the_known_node() {
        for known in [node(1), revoked(1)] {
            let door = Door::open().knows(known);
            let other_key = Knock {
                node_key: PublicKey::from_bytes([9; 32]),
                ..knock(1)
            };
            let other_device = Knock {
                device_id: DeviceId::from_bytes([9; 16]),
                ..knock(1)
            };
            for knock in [other_key, other_device] {
                assert_eq!(door.rule(&knock), Ruling::Mismatch(node(1).device_id));
            }
        }
        // Key of one, device of another: the holder of the key is the one to look at.
        let door = Door::open().knows(node(1)).knows(node(2));
        let mixed = Knock {
            device_id: node(2).device_id,
            ..knock(1)
        };
        assert_eq!(door.rule(&mixed), Ruling::Mismatch(node(1).device_id));
    }

    #[test]
    fn only_a_node_that_asks_becomes_a_request() {
        let connect = Knock {
            intent: Intent::Connect,
            ..knock(1)
        };
        assert_eq!(Door::open().rule(&connect), refused(Refusal::Unknown));
        let waiting = Door::open().waits(&knock(1));
        assert_eq!(waiting.rule(&connect), refused(Refusal::Unknown));
        assert_eq!(Door::open().rule(&knock(1)), Ruling::Create);
    }

    #[test]
    fn the_closed_window_turns_strangers_away() {
        assert_eq!(Door::shut().rule(&knock(1)), refused(Refusal::PairingOff));
        let mut door = Door::open();
        door.now += WINDOW_TIME;
        assert_eq!(door.rule(&knock(1)), refused(Refusal::PairingOff));
        let mut door = Door::open();
        door.book.close_window();
        assert_eq!(door.rule(&knock(1)), refused(Refusal::PairingOff));
    }

    #[test]
    fn a_node_that_waits_is_taken_up_again_window_or_not() {
        let door = Door::shut().waits(&knock(1));
        assert_eq!(door.rule(&knock(1)), Ruling::Reattach(id(1)));
        let other_process = Knock {
            instance_id: InstanceId::from_bytes([9; 16]),
            ..knock(1)
        };
        assert_eq!(door.rule(&other_process), Ruling::Reattach(id(1)));
    }

    #[test]
    fn one_request_for_a_key_and_one_for_a_device() {
        let door = Door::open().waits(&knock(1));
        let other_key = Knock {
            node_key: PublicKey::from_bytes([9; 32]),
            ..knock(1)
        };
        let other_device = Knock {
            device_id: DeviceId::from_bytes([9; 16]),
            ..knock(1)
        };
        for knock in [other_key, other_device] {
            assert_eq!(door.rule(&knock), refused(Refusal::KeyMismatch));
        }
    }

    #[test]
    fn the_process_that_was_told_no_is_told_again_and_a_new_one_may_ask() {
        for (answer, refusal) in [
            (Answer::Rejected, Refusal::Rejected),
            (Answer::Expired, Refusal::Expired),
        ] {
            let door = Door::open().answered(1, answer);
            assert_eq!(door.rule(&knock(1)), refused(refusal));
            let new_process = Knock {
                instance_id: InstanceId::from_bytes([9; 16]),
                ..knock(1)
            };
            assert_eq!(door.rule(&new_process), Ruling::Create);
        }
        // Approved, revoked, forgotten: it may ask anew.
        let door = Door::open().answered(1, Answer::Approved);
        assert_eq!(door.rule(&knock(1)), Ruling::Create);
    }

    #[test]
    fn a_request_whose_hour_is_over_waits_no_more() {
        let mut door = Door::shut().waits(&knock(1));
        door.now += PENDING_TIME;
        assert_eq!(door.rule(&knock(1)), refused(Refusal::Expired));
        let expired = door.approve(1, &seen(1));
        assert!(
            matches!(expired, Err(PairingError::Expired { .. })),
            "{expired:?}"
        );
    }

    #[test]
    fn a_clock_that_was_turned_gives_no_request_more_than_its_hour() {
        let now = Instant::now();
        let request = |wall| Waiting::new(knock(1).request(id(1), at(1000)), wall, now);
        assert_eq!(request(at(0)).deadline, now + PENDING_TIME);
        assert_eq!(
            request(at(1000 + 60)).deadline,
            now + PENDING_TIME - Duration::from_mins(1)
        );
        assert_eq!(request(Timestamp::MAX).deadline, now);
        assert_eq!(request(Timestamp::MIN).deadline, now + PENDING_TIME);
    }

    #[test]
    fn a_node_id_in_use_is_refused_and_a_revoked_nodes_id_is_free() {
        let taken = Knock {
            introduction: introduction("box-2"),
            ..knock(1)
        };
        let door = Door::open().knows(node(2));
        assert_eq!(door.rule(&taken), refused(Refusal::NodeIdInUse));
        let door = Door::open().knows(revoked(2));
        assert_eq!(door.rule(&taken), Ruling::Create);
        let request = taken.request(id(1), at(0));
        let warned = warnings(&door.book, &request);
        assert_eq!(
            warned,
            [Warning::RevokedNodeId(NodeId::new("box-2").unwrap())]
        );
    }

    #[test]
    fn sixteen_may_wait_and_three_from_one_address() {
        let mut door = Door::open();
        for number in 1..=16 {
            assert_eq!(door.rule(&knock(number)), Ruling::Create, "{number}");
            door = door.waits(&knock(number));
        }
        assert_eq!(door.rule(&knock(17)), refused(Refusal::PendingFull));
        assert_eq!(door.rule(&knock(1)), Ruling::Reattach(id(1)));

        for (address, neighbour) in [
            ("10.0.0.9", "10.0.0.9"),
            ("10.0.0.9", "::ffff:10.0.0.9"),
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"),
        ] {
            let from = |number, address: &str| Knock {
                address: address.parse().unwrap(),
                ..knock(number)
            };
            let door = Door::open()
                .waits(&from(1, address))
                .waits(&from(2, address))
                .waits(&from(3, address));
            assert_eq!(
                door.rule(&from(4, neighbour)),
                refused(Refusal::PendingFull)
            );
            assert_eq!(door.rule(&from(4, "2001:db8:1:3::1")), Ruling::Create);
        }
    }

    #[test]
    fn expired_requests_leave_room() {
        let mut door = Door::shut();
        for number in 1..=16 {
            door = door.waits(&knock(number));
        }
        door.now += PENDING_TIME;
        door.book.open_window(WINDOW_TIME, at(0), door.now);
        assert_eq!(door.rule(&knock(17)), Ruling::Create);
    }

    #[test]
    fn a_person_approves_exactly_what_was_shown() {
        let door = Door::shut().waits(&knock(1));
        let node = door.approve(1, &seen(1)).unwrap();
        assert_eq!(node.node_key, knock(1).node_key);
        assert_eq!(node.device_id, knock(1).device_id);
        assert_eq!(node.labels, knock(1).introduction.labels);
        assert_eq!(
            (node.paired_at, node.paired_by.as_str()),
            (at(5), "operator")
        );
        let other_code = SeenRequest {
            code: "0000-0000-0000".parse().unwrap(),
            ..seen(1)
        };
        let other_key = SeenRequest {
            fingerprint: seen(2).fingerprint,
            ..seen(1)
        };
        for seen in [other_code, other_key] {
            let changed = door.approve(1, &seen);
            assert!(
                matches!(changed, Err(PairingError::RequestChanged { .. })),
                "{changed:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_approved_says_why() {
        let unknown = Door::shut().approve(1, &seen(1));
        assert!(
            matches!(unknown, Err(PairingError::UnknownRequest { .. })),
            "{unknown:?}"
        );
        for answer in [Answer::Approved, Answer::Rejected] {
            let answered = Door::shut().answered(1, answer).approve(1, &seen(1));
            assert!(
                matches!(&answered, Err(PairingError::Answered { answer: a, .. }) if *a == answer),
                "{answered:?}"
            );
        }
        let expired = Door::shut()
            .answered(1, Answer::Expired)
            .approve(1, &seen(1));
        assert!(
            matches!(expired, Err(PairingError::Expired { .. })),
            "{expired:?}"
        );
    }

    #[test]
    fn a_pin_is_never_overwritten() {
        let same_key = NodeRecord {
            device_id: DeviceId::from_bytes([9; 16]),
            ..node(1)
        };
        let same_device = NodeRecord {
            node_key: PublicKey::from_bytes([9; 32]),
            ..revoked(1)
        };
        for known in [same_key, same_device] {
            let door = Door::shut().waits(&knock(1)).knows(known);
            let pinned = door.approve(1, &seen(1));
            assert!(matches!(pinned, Err(PairingError::Pinned)), "{pinned:?}");
        }
        let same_id = NodeRecord {
            node_id: node(1).node_id,
            ..node(2)
        };
        let taken = Door::shut()
            .waits(&knock(1))
            .knows(same_id)
            .approve(1, &seen(1));
        assert!(
            matches!(taken, Err(PairingError::NodeIdInUse { .. })),
            "{taken:?}"
        );
    }

    #[test]
    fn a_person_is_warned_of_what_could_deceive() {
        let mut request = knock(1);
        request.introduction.name = node(2).name;
        request.introduction.user = "root".to_owned();
        let twin = Knock {
            introduction: introduction("box-1"),
            ..knock(3)
        };
        let door = Door::shut().knows(node(2)).waits(&request).waits(&twin);
        let warned = warnings(&door.book, &request.request(id(1), at(0)));
        assert_eq!(
            warned,
            [
                Warning::NameTaken(node(2).name),
                Warning::NodeIdAskedTwice(node(1).node_id),
                Warning::RunsAsRoot,
            ]
        );
        assert!(warned.iter().all(|warning| !warning.to_string().is_empty()));
    }
}
