//! What the desk knows: pins, requests and the window. Values only; the rules read it, the desk
//! changes it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use moltis_proto::limits::PENDING_TIME;
use moltis_proto::{DeviceId, NodeId, PublicKey, RequestId};
use tokio::time::Instant;

use crate::store::{NodeRecord, PairingRequest};

/// All that is known at the door.
#[derive(Debug, Default)]
pub(super) struct Book {
    nodes: HashMap<DeviceId, Arc<NodeRecord>>,
    by_key: HashMap<PublicKey, DeviceId>,
    /// Oldest first.
    waiting: Vec<Waiting>,
    /// Answered within the last day, oldest first.
    answered: Vec<PairingRequest>,
    window: Option<Window>,
}

/// A request without an answer. Its end is kept on the monotonic clock: when somebody turns the
/// wall clock back, it waits no longer for that.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    /// The request.
    pub(super) request: PairingRequest,
    /// When it expires.
    pub(super) deadline: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    closes: Instant,
    shown: Timestamp,
}

impl Waiting {
    /// Begins to wait with what is left of the request's hour. A clock that was turned meanwhile
    /// gives it no more than the whole hour.
    pub(super) fn new(request: PairingRequest, wall: Timestamp, now: Instant) -> Self {
        let waited = wall.duration_since(request.first_seen_at);
        let waited = Duration::try_from(waited).unwrap_or_default();
        Self {
            deadline: now + PENDING_TIME.saturating_sub(waited),
            request,
        }
    }

    /// Returns when it expires, by the wall clock.
    pub(super) fn expires_at(&self, wall: Timestamp, now: Instant) -> Timestamp {
        let stamped = behind(self.request.first_seen_at, PENDING_TIME);
        shown_end(stamped, self.deadline, wall, now)
    }
}

/// Returns what the wall clock will say at a deadline: what was stamped, as long as the clock has
/// not been turned since.
fn shown_end(stamped: Timestamp, deadline: Instant, wall: Timestamp, now: Instant) -> Timestamp {
    const SLACK: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);
    let end = behind(wall, deadline.saturating_duration_since(now));
    if end.duration_since(stamped).abs() <= SLACK {
        return stamped;
    }
    end
}

fn behind(at: Timestamp, time: Duration) -> Timestamp {
    at.saturating_add(jiff::SignedDuration::try_from(time).unwrap_or_default())
        .unwrap_or(Timestamp::MAX)
}

impl Book {
    /// Fills the book with what was stored. The window is closed.
    pub(super) fn new(
        nodes: Vec<Arc<NodeRecord>>,
        requests: Vec<PairingRequest>,
        wall: Timestamp,
        now: Instant,
    ) -> Self {
        let mut book = Self::default();
        for node in nodes {
            book.put_node(node);
        }
        for request in requests {
            if request.answer.is_none() {
                book.waiting.push(Waiting::new(request, wall, now));
            } else {
                book.answered.push(request);
            }
        }
        book
    }

    /// Returns the node with this device.
    pub(super) fn node(&self, device_id: DeviceId) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(&device_id)
    }

    /// Returns the node with this key.
    pub(super) fn node_by_key(&self, key: &PublicKey) -> Option<&Arc<NodeRecord>> {
        self.node(*self.by_key.get(key)?)
    }

    /// Returns the node that holds this id: at most one that is not revoked.
    pub(super) fn holder_of(&self, node_id: &NodeId) -> Option<&Arc<NodeRecord>> {
        self.nodes
            .values()
            .find(|node| node.revoked_at.is_none() && node.node_id == *node_id)
    }

    /// Returns all nodes, in the order of their approval.
    pub(super) fn nodes(&self) -> Vec<Arc<NodeRecord>> {
        let mut nodes: Vec<_> = self.nodes.values().cloned().collect();
        nodes.sort_by_key(|node| (node.paired_at, node.device_id));
        nodes
    }

    /// Adds a node, or puts what is new of it in place of the old.
    pub(super) fn put_node(&mut self, node: Arc<NodeRecord>) {
        self.by_key.insert(node.node_key, node.device_id);
        self.nodes.insert(node.device_id, node);
    }

    /// Takes a node out.
    pub(super) fn remove_node(&mut self, device_id: DeviceId) {
        if let Some(node) = self.nodes.remove(&device_id) {
            self.by_key.remove(&node.node_key);
        }
    }

    /// Returns the requests that wait, oldest first.
    pub(super) fn waiting(&self, now: Instant) -> impl Iterator<Item = &Waiting> {
        self.waiting
            .iter()
            .filter(move |waiting| now < waiting.deadline)
    }

    /// Returns the requests without an answer, whether their time is over or not.
    pub(super) fn all_waiting(&self) -> impl Iterator<Item = &PairingRequest> {
        self.waiting.iter().map(|waiting| &waiting.request)
    }

    /// Returns the request that waits under this id, whether its time is over or not.
    pub(super) fn waiting_request(&self, id: RequestId) -> Option<&Waiting> {
        self.waiting.iter().find(|waiting| waiting.request.id == id)
    }

    /// Returns the answered requests, newest first.
    pub(super) fn answered(&self) -> impl Iterator<Item = &PairingRequest> {
        self.answered.iter().rev()
    }

    /// Adds a request, or puts what is new of it in place of the old. Its deadline stays.
    pub(super) fn put_waiting(&mut self, waiting: Waiting) {
        let id = waiting.request.id;
        match self.waiting.iter_mut().find(|old| old.request.id == id) {
            Some(old) => old.request = waiting.request,
            None => self.waiting.push(waiting),
        }
    }

    /// Moves a request to the answered ones.
    pub(super) fn answer(&mut self, answered: PairingRequest) {
        self.waiting
            .retain(|waiting| waiting.request.id != answered.id);
        self.answered.push(answered);
    }

    /// Forgets requests that were answered before `since`.
    pub(super) fn forget_answered(&mut self, since: Timestamp) {
        self.answered
            .retain(|request| request.answered_at.is_some_and(|at| at >= since));
    }

    /// Returns the ids of all requests that begin with these digits.
    pub(super) fn requests_that_begin_with(&self, prefix: &str) -> Vec<RequestId> {
        let waiting = self.waiting.iter().map(|waiting| waiting.request.id);
        let answered = self.answered.iter().map(|request| request.id);
        let prefix = prefix.to_ascii_lowercase();
        if prefix.is_empty() {
            return Vec::new();
        }
        let begins = |id: &RequestId| id.to_string().starts_with(&prefix);
        let waiting: Vec<_> = waiting.filter(begins).collect();
        if waiting.is_empty() {
            return answered.filter(begins).collect();
        }
        waiting
    }

    /// Returns whether the window is open.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.window.is_some_and(|window| now < window.closes)
    }

    /// Returns when the window closes, by the wall clock; `None` while it is closed.
    pub(super) fn window(&self, wall: Timestamp, now: Instant) -> Option<Timestamp> {
        self.window
            .filter(|window| now < window.closes)
            .map(|window| shown_end(window.shown, window.closes, wall, now))
    }

    /// Opens the window.
    pub(super) fn open_window(
        &mut self,
        time: Duration,
        wall: Timestamp,
        now: Instant,
    ) -> Timestamp {
        let shown = behind(wall, time);
        self.window = Some(Window {
            closes: now + time,
            shown,
        });
        shown
    }

    /// Closes the window.
    pub(super) fn close_window(&mut self) {
        self.window = None;
    }

    /// Returns the next moment at which time alone changes something.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|waiting| waiting.deadline).min();
        let window = self.window.map(|window| window.closes);
        [waiting, window].into_iter().flatten().min()
    }

    /// Closes a window whose time is over; returns whether it did.
    pub(super) fn close_stale_window(&mut self, now: Instant) -> bool {
        let stale = self.window.is_some_and(|window| window.closes <= now);
        if stale {
            self.window = None;
        }
        stale
    }

    /// Returns the requests whose time is over.
    pub(super) fn expired(&self, now: Instant) -> Vec<PairingRequest> {
        let expired = self
            .waiting
            .iter()
            .filter(|waiting| waiting.deadline <= now);
        expired.map(|waiting| waiting.request.clone()).collect()
    }
}
