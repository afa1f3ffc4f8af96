//! The desk's task: everything that changes a pin, a request or the window, one after the other.
//!
//! Each change is decided by the rules, written, and only then true in memory: whoever reads the
//! book never sees what a crash could take back. Answers go out once the change survives a power
//! cut; what somebody else must act on at once (a revoked node's session) hears of it before that.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use moltis_identity::Fingerprint;
use moltis_proto::limits::WINDOW_TIME_MAX;
use moltis_proto::{DeviceId, Labels, NodeName, Refusal, RequestId};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::book::Waiting;
use super::rules::{self, Knock, Ruling};
use super::{Admission, Decision, PairingError, SeenRequest, Shared};
use crate::audit::{Action, Actor, Entry};
use crate::events::{Event, Events};
use crate::store::{
    Answer, Claims, KeyMismatch, NodeRecord, PairingRequest, Sighting, Store, StoreError, Written,
};

/// How often sightings are written, and mismatches that were only counted.
const SLICE: Duration = Duration::from_mins(1);

/// Time between two audit lines about mismatches of one node.
const MISMATCH_AUDIT: Duration = Duration::from_hours(1);

/// How long an answered request is remembered.
const ANSWERED_KEPT: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// Returns the time from which on answered requests are remembered.
pub(super) fn answered_since(now: Timestamp) -> Timestamp {
    now.saturating_sub(ANSWERED_KEPT).unwrap_or(Timestamp::MIN)
}

type Told<T> = oneshot::Sender<Result<T, PairingError>>;

/// What the task is asked for.
#[derive(Debug)]
pub(super) enum Command {
    Admit(Box<Knock>, oneshot::Sender<Result<Admission, StoreError>>),
    Enable(Duration, Actor, Told<Timestamp>),
    Disable(Actor, Told<()>),
    Approve(RequestId, SeenRequest, Actor, Told<Arc<NodeRecord>>),
    Reject(RequestId, Actor, Told<()>),
    Revoke(DeviceId, Actor, Told<Arc<NodeRecord>>),
    Forget(DeviceId, Actor, Told<()>),
    Rename(DeviceId, NodeName, Actor, Told<Arc<NodeRecord>>),
    Relabel(DeviceId, Labels, Actor, Told<Arc<NodeRecord>>),
    Mismatches(Told<Vec<KeyMismatch>>),
}

/// When and from where nodes were seen since the last slice.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashMap<DeviceId, (Timestamp, IpAddr)>>);

impl Seen {
    pub(super) fn note(&self, device_id: DeviceId, at: Timestamp, source: IpAddr) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(device_id, (at, source.to_canonical()));
    }

    fn take(&self) -> Vec<Sighting> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = std::mem::take(&mut *seen).into_iter();
        seen.map(|(device_id, (at, address))| Sighting {
            device_id,
            at,
            address: address.to_string(),
        })
        .collect()
    }
}

/// Mismatches of one node: counted always, written once a minute, audited once an hour, so that
/// whoever knocks with a wrong key fills no disk.
#[derive(Debug)]
struct Mismatched {
    record: KeyMismatch,
    written: Option<Instant>,
    audited: Option<Instant>,
}

/// The task's own.
pub(super) struct Desk {
    shared: Arc<Shared>,
    store: Store,
    events: Events,
    /// Where connections wait for a decision.
    waiting: HashMap<RequestId, watch::Sender<Option<Decision>>>,
    mismatches: HashMap<DeviceId, Mismatched>,
}

impl Desk {
    pub(super) fn new(
        shared: Arc<Shared>,
        store: Store,
        events: Events,
        mismatches: Vec<KeyMismatch>,
    ) -> Self {
        let mismatches = mismatches.into_iter().map(|record| {
            let mismatched = Mismatched {
                record,
                written: None,
                audited: None,
            };
            (mismatched.record.device_id, mismatched)
        });
        Self {
            mismatches: mismatches.collect(),
            shared,
            store,
            events,
            waiting: HashMap::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) {
        let mut slice = tokio::time::interval(SLICE);
        slice.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let deadline = self.shared.book().next_deadline();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                command = commands.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => break,
                },
                () = until(deadline) => self.expire().await,
                _ = slice.tick() => self.slice().await,
            }
        }
        self.slice().await;
    }

    async fn handle(&mut self, command: Command) {
        // Whoever asked may have gone meanwhile; what was asked is done nonetheless.
        match command {
            Command::Admit(knock, told) => drop(told.send(self.admit(&knock).await)),
            Command::Enable(time, by, told) => drop(told.send(self.enable(time, &by).await)),
            Command::Disable(by, told) => drop(told.send(self.disable(&by).await)),
            Command::Approve(id, seen, by, told) => {
                drop(told.send(self.approve(id, &seen, &by).await));
            }
            Command::Reject(id, by, told) => drop(told.send(self.reject(id, &by).await)),
            Command::Revoke(id, by, told) => drop(told.send(self.revoke(id, &by).await)),
            Command::Forget(id, by, told) => drop(told.send(self.forget(id, &by).await)),
            Command::Rename(id, name, by, told) => {
                drop(told.send(self.rename(id, name, &by).await));
            }
            Command::Relabel(id, labels, by, told) => {
                drop(told.send(self.relabel(id, labels, &by).await));
            }
            Command::Mismatches(told) => drop(told.send(Ok(self.mismatches()))),
        }
    }

    async fn admit(&mut self, knock: &Knock) -> Result<Admission, StoreError> {
        let ruling = rules::admit(&self.shared.book(), knock, Instant::now());
        match ruling {
            Ruling::Accept(record) => self.learn(&record, knock).await.map(Admission::Accept),
            Ruling::Refuse(refusal) => Ok(Admission::Refuse(refusal)),
            Ruling::Mismatch(device_id) => {
                self.mismatch(device_id, knock).await;
                Ok(Admission::Refuse(Refusal::KeyMismatch))
            }
            Ruling::Reattach(id) => self.reattach(id, knock).await,
            Ruling::Create => self.create(knock).await,
        }
    }

    /// Keeps what a known node now says of itself.
    async fn learn(
        &mut self,
        record: &Arc<NodeRecord>,
        knock: &Knock,
    ) -> Result<Arc<NodeRecord>, StoreError> {
        let said = &knock.introduction;
        let new = NodeRecord {
            platform: said.platform.clone(),
            claims: Claims::from(said),
            ..record.as_ref().clone()
        };
        self.store
            .set_claims(new.device_id, &new.platform, &new.claims)
            .await?;
        Ok(self.put(new))
    }

    async fn create(&mut self, knock: &Knock) -> Result<Admission, StoreError> {
        let id = RequestId::from_bytes(moltis_identity::random::bytes());
        let wall = self.shared.clock.now();
        let request = knock.request(id, wall);
        let fingerprint = Fingerprint::of(&request.node_key).to_string();
        let by = Actor {
            name: format!("node:{}", request.introduction.node_id),
            source: Some(request.address.to_string()),
        };
        let detail = json!({ "fingerprint": fingerprint, "name": request.introduction.name });
        let audit = Entry::new(wall, &by, Action::PairingRequest, &id, detail);
        self.store.add_request(&request, audit).await?;
        tracing::info!(request.id = %id, peer.addr = %request.address, %fingerprint,
            "a node asks to pair");
        Ok(self.pend(Waiting::new(request, wall, Instant::now())))
    }

    async fn reattach(&mut self, id: RequestId, knock: &Knock) -> Result<Admission, StoreError> {
        let waiting = self.shared.book().waiting_request(id).cloned();
        let Some(Waiting { request, deadline }) = waiting else {
            return Ok(Admission::Refuse(Refusal::Expired));
        };
        let request = knock.again(&request, self.shared.clock.now());
        self.store.reattach_request(&request).await?;
        Ok(self.pend(Waiting { request, deadline }))
    }

    /// Lets a connection wait for its request's answer, in place of an older one.
    fn pend(&mut self, waiting: Waiting) -> Admission {
        let request_id = waiting.request.id;
        let expires_in = waiting.deadline.saturating_duration_since(Instant::now());
        self.shared.change(|book| book.put_waiting(waiting));
        let (told, decision) = watch::channel(None);
        if let Some(older) = self.waiting.insert(request_id, told) {
            older.send_replace(Some(Decision::Superseded));
        }
        self.events.send(Event::PairingRequest(request_id));
        Admission::Pend {
            request_id,
            expires_in,
            decision,
        }
    }

    async fn enable(&mut self, time: Duration, by: &Actor) -> Result<Timestamp, PairingError> {
        if time < Duration::from_secs(1) || time > WINDOW_TIME_MAX {
            return Err(PairingError::WindowTime { asked: time });
        }
        let wall = self.shared.clock.now();
        let detail = json!({ "seconds": time.as_secs() });
        let audit = Entry::new(wall, by, Action::PairingOpen, &"window", detail);
        self.store.note(audit).await?;
        let now = Instant::now();
        let closes = self.shared.change(|book| book.open_window(time, wall, now));
        self.events.send(Event::PairingChanged);
        Ok(closes)
    }

    async fn disable(&mut self, by: &Actor) -> Result<(), PairingError> {
        let now = Instant::now();
        if self.shared.book().window(now).is_none() {
            return Ok(());
        }
        // Closing is safe whatever the disk says.
        self.shared.change(super::book::Book::close_window);
        self.events.send(Event::PairingChanged);
        let wall = self.shared.clock.now();
        let audit = Entry::new(wall, by, Action::PairingClose, &"window", json!({}));
        self.store.note(audit).await?;
        Ok(())
    }

    async fn approve(
        &mut self,
        id: RequestId,
        seen: &SeenRequest,
        by: &Actor,
    ) -> Result<Arc<NodeRecord>, PairingError> {
        let (wall, now) = (self.shared.clock.now(), Instant::now());
        let (node, request) = {
            let book = self.shared.book();
            let node = rules::approve(&book, id, seen, &by.name, wall, now)?;
            (node, rules::answerable(&book, id, now)?.clone())
        };
        let detail = json!({
            "device": node.device_id,
            "node": node.node_id,
            "name": node.name,
            "fingerprint": seen.fingerprint.to_string(),
            "code": seen.code.as_str(),
        });
        let audit = Entry::new(wall, by, Action::PairingApprove, &id, detail);
        let written = self.store.approve_request(id, node.clone(), audit).await?;
        self.store.synced(written).await?;
        let node = self.put(node);
        self.answer(request, Answer::Approved, wall, &by.name);
        self.tell(id, Decision::Approved(Arc::clone(&node)));
        Ok(node)
    }

    async fn reject(&mut self, id: RequestId, by: &Actor) -> Result<(), PairingError> {
        let wall = self.shared.clock.now();
        let request = rules::answerable(&self.shared.book(), id, Instant::now())?.clone();
        let detail = json!({ "fingerprint": Fingerprint::of(&request.node_key).to_string() });
        let audit = Entry::new(wall, by, Action::PairingReject, &id, detail);
        let written = self.store.reject_request(id, audit).await?;
        self.answer(request, Answer::Rejected, wall, &by.name);
        self.tell(id, Decision::Rejected);
        self.store.synced(written).await?;
        Ok(())
    }

    async fn revoke(
        &mut self,
        device_id: DeviceId,
        by: &Actor,
    ) -> Result<Arc<NodeRecord>, PairingError> {
        let node = self.known(device_id)?;
        if node.revoked_at.is_some() {
            return Err(PairingError::Revoked);
        }
        let wall = self.shared.clock.now();
        let written = self.store.revoke_node(device_id, wall, by).await?;
        let written = written.ok_or(PairingError::UnknownNode)?;
        let node = self.put(NodeRecord {
            revoked_at: Some(wall),
            ..node.as_ref().clone()
        });
        tracing::info!(node.id = %node.node_id, by = %by.name, "a node is revoked");
        self.store.synced(written).await?;
        Ok(node)
    }

    async fn forget(&mut self, device_id: DeviceId, by: &Actor) -> Result<(), PairingError> {
        self.known(device_id)?;
        let wall = self.shared.clock.now();
        let written = self.store.forget_node(device_id, wall, by).await?;
        self.shared.change(|book| book.remove_node(device_id));
        self.mismatches.remove(&device_id);
        self.changed(device_id);
        self.store
            .synced(written.unwrap_or(Written::NOTHING))
            .await?;
        Ok(())
    }

    async fn rename(
        &mut self,
        device_id: DeviceId,
        name: NodeName,
        by: &Actor,
    ) -> Result<Arc<NodeRecord>, PairingError> {
        let node = self.known(device_id)?;
        let wall = self.shared.clock.now();
        let written = self.store.rename_node(device_id, &name, wall, by).await?;
        let written = written.ok_or(PairingError::UnknownNode)?;
        let node = self.put(NodeRecord {
            name,
            ..node.as_ref().clone()
        });
        self.store.synced(written).await?;
        Ok(node)
    }

    async fn relabel(
        &mut self,
        device_id: DeviceId,
        labels: Labels,
        by: &Actor,
    ) -> Result<Arc<NodeRecord>, PairingError> {
        let node = self.known(device_id)?;
        let wall = self.shared.clock.now();
        let written = self
            .store
            .relabel_node(device_id, &labels, wall, by)
            .await?;
        let written = written.ok_or(PairingError::UnknownNode)?;
        let node = self.put(NodeRecord {
            labels,
            ..node.as_ref().clone()
        });
        self.store.synced(written).await?;
        Ok(node)
    }

    async fn mismatch(&mut self, device_id: DeviceId, knock: &Knock) {
        let wall = self.shared.clock.now();
        let mismatched = self
            .mismatches
            .entry(device_id)
            .or_insert_with(|| Mismatched {
                record: KeyMismatch {
                    device_id,
                    shown_key: knock.node_key,
                    shown_device: knock.device_id,
                    address: knock.address,
                    first_seen_at: wall,
                    last_seen_at: wall,
                    times: 0,
                },
                written: None,
                audited: None,
            });
        let record = &mut mismatched.record;
        record.shown_key = knock.node_key;
        record.shown_device = knock.device_id;
        record.address = knock.address;
        record.last_seen_at = wall;
        record.times += 1;
        let now = Instant::now();
        let due = |last: Option<Instant>, every| last.is_none_or(|last| now >= last + every);
        if !due(mismatched.written, SLICE) {
            return;
        }
        let audit = due(mismatched.audited, MISMATCH_AUDIT).then(|| {
            let by = Actor {
                name: format!("node:{}", knock.introduction.node_id),
                source: Some(knock.address.to_string()),
            };
            let detail = json!({
                "shown_fingerprint": Fingerprint::of(&knock.node_key).to_string(),
                "shown_device": knock.device_id,
                "times": record.times,
            });
            Entry::new(wall, &by, Action::KeyMismatch, &device_id, detail)
        });
        tracing::warn!(device.id = %device_id, peer.addr = %knock.address, times = record.times,
            "a node came with a key that is not its own");
        let audited = audit.is_some();
        let put = self.store.put_mismatch(record.clone(), audit).await;
        // Where nothing could be written it is tried again with the next knock.
        if put.is_ok() {
            mismatched.written = Some(now);
            if audited {
                mismatched.audited = Some(now);
            }
        }
        self.events.send(Event::KeyMismatch(device_id));
    }

    fn mismatches(&self) -> Vec<KeyMismatch> {
        let all = self.mismatches.values();
        let mut all: Vec<_> = all.map(|mismatched| mismatched.record.clone()).collect();
        all.sort_by_key(|mismatch| std::cmp::Reverse(mismatch.last_seen_at));
        all
    }

    /// Does what time alone brings: the window closes, requests expire.
    async fn expire(&mut self) {
        let now = Instant::now();
        if self.shared.change(|book| book.close_stale_window(now)) {
            self.events.send(Event::PairingChanged);
        }
        let expired = self.shared.book().expired(now);
        if expired.is_empty() {
            return;
        }
        let wall = self.shared.clock.now();
        let ids = expired.iter().map(|request| request.id).collect();
        let since = answered_since(wall);
        if let Err(error) = self.store.expire_requests(ids, wall, since).await {
            // After a restart they expire again; here they are over.
            tracing::warn!(%error, "expired requests could not be written");
        }
        for request in expired {
            let id = request.id;
            self.answer(request, Answer::Expired, wall, "gateway");
            self.tell(id, Decision::Expired);
        }
        self.shared.change(|book| book.forget_answered(since));
    }

    /// Writes what was only counted.
    async fn slice(&mut self) {
        let sightings = self.shared.seen.take();
        if sightings.is_empty() {
            return;
        }
        self.shared.change(|book| {
            for seen in &sightings {
                let Some(node) = book.node(seen.device_id) else {
                    continue;
                };
                let node = NodeRecord {
                    last_seen_at: Some(seen.at),
                    last_address: Some(seen.address.clone()),
                    ..node.as_ref().clone()
                };
                book.put_node(Arc::new(node));
            }
        });
        if let Err(error) = self.store.touch_nodes(sightings).await {
            tracing::warn!(%error, "it could not be written when nodes were seen");
        }
    }

    fn known(&self, device_id: DeviceId) -> Result<Arc<NodeRecord>, PairingError> {
        let node = self.shared.book().node(device_id).cloned();
        node.ok_or(PairingError::UnknownNode)
    }

    fn put(&self, node: NodeRecord) -> Arc<NodeRecord> {
        let node = Arc::new(node);
        self.shared.change(|book| book.put_node(Arc::clone(&node)));
        self.changed(node.device_id);
        node
    }

    fn changed(&self, device_id: DeviceId) {
        self.shared.changes.send_modify(|changes| *changes += 1);
        self.events.send(Event::NodeChanged(device_id));
    }

    fn answer(&self, request: PairingRequest, answer: Answer, at: Timestamp, by: &str) {
        let answered = PairingRequest {
            answer: Some(answer),
            answered_at: Some(at),
            answered_by: Some(by.to_owned()),
            ..request
        };
        self.shared.change(|book| book.answer(answered));
    }

    fn tell(&mut self, id: RequestId, decision: Decision) {
        if let Some(waiting) = self.waiting.remove(&id) {
            waiting.send_replace(Some(decision));
        }
        self.events.send(Event::PairingDecided(id));
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
