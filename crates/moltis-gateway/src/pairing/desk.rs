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

/// Writes once a minute, and at the end, when and from where nodes were seen. What was seen by this
/// process the roster knows; this is for the next one. A task of its own: with many nodes a slice
/// takes a while, and nobody who knocks shall wait for it.
pub(super) async fn keep_seen(shared: Arc<Shared>, store: Store, stop: CancellationToken) {
    let mut slice = tokio::time::interval(SLICE);
    slice.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let stopped = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            _ = slice.tick() => false,
        };
        if let Err(error) = store.touch_nodes(shared.seen.take()).await {
            tracing::warn!(%error, "it could not be written when nodes were seen");
        }
        if stopped {
            return;
        }
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
            }
        }
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
        let node = Arc::new(new);
        self.shared.change(|book| book.put_node(Arc::clone(&node)));
        self.shared.news.send_modify(|news| *news += 1);
        self.events.send(Event::NodeChanged(node.device_id));
        Ok(node)
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
        if !self.shared.book().is_open(now) {
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
        let node = self.known(device_id)?;
        let wall = self.shared.clock.now();
        let written = self.store.forget_node(device_id, wall, by).await?;
        self.shared.change(|book| book.remove_node(device_id));
        self.mismatches.remove(&device_id);
        self.changed(Event::NodeForgotten(node));
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

    fn known(&self, device_id: DeviceId) -> Result<Arc<NodeRecord>, PairingError> {
        let node = self.shared.book().node(device_id).cloned();
        node.ok_or(PairingError::UnknownNode)
    }

    fn put(&self, node: NodeRecord) -> Arc<NodeRecord> {
        let node = Arc::new(node);
        self.shared.change(|book| book.put_node(Arc::clone(&node)));
        self.changed(Event::NodeChanged(node.device_id));
        node
    }

    fn changed(&self, event: Event) {
        self.shared.changes.send_modify(|changes| *changes += 1);
        self.events.send(event);
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

#[cfg(test)]
mod tests {
    use super::super::PairingDesk;
    use super::super::rules::tests::{knock, seen};
    use super::*;
    use crate::clock::Clock;
    use crate::store::testing::{TestStore, at, operator, store};
    use crate::tasks::Tasks;

    struct Gate {
        store: TestStore,
        desk: PairingDesk,
        clock: Clock,
        events: Events,
    }

    impl Gate {
        async fn new() -> Self {
            Self::with(store().await).await
        }

        async fn with(store: TestStore) -> Self {
            let clock = Clock::manual(at(0));
            let events = Events::default();
            let tasks = Tasks::new();
            let desk =
                PairingDesk::open(store.store.clone(), clock.clone(), events.clone(), &tasks);
            Self {
                desk: desk.await.unwrap(),
                store,
                clock,
                events,
            }
        }

        /// The gateway starts anew on the same files.
        async fn restart(self) -> Self {
            let Self { store, desk, .. } = self;
            drop(desk);
            Self::with(store).await
        }

        async fn open() -> Self {
            let gate = Self::new().await;
            gate.enable().await;
            gate
        }

        async fn enable(&self) {
            let time = Duration::from_mins(10);
            self.desk.enable(time, operator()).await.unwrap();
        }

        async fn knock(&self, knock: &Knock) -> Admission {
            self.desk.admit_knock(knock.clone()).await.unwrap()
        }

        async fn pend(&self, knock: &Knock) -> (RequestId, watch::Receiver<Option<Decision>>) {
            match self.knock(knock).await {
                Admission::Pend {
                    request_id,
                    decision,
                    ..
                } => (request_id, decision),
                other => panic!("{other:?}"),
            }
        }

        async fn pair(&self, number: u8) -> Arc<NodeRecord> {
            let (id, _) = self.pend(&knock(number)).await;
            self.desk
                .approve(id, seen(number), operator())
                .await
                .unwrap()
        }

        async fn refusal(&self, knock: &Knock) -> Refusal {
            match self.knock(knock).await {
                Admission::Refuse(refusal) => refusal,
                other => panic!("{other:?}"),
            }
        }

        async fn actions(&self) -> Vec<String> {
            let lines = self.store.audit_lines(None, 100).await.unwrap();
            assert_eq!(self.store.verify_audit().await.unwrap().first_bad, None);
            lines.into_iter().rev().map(|line| line.action).collect()
        }
    }

    async fn decided(decision: &mut watch::Receiver<Option<Decision>>) -> Decision {
        decision
            .wait_for(Option::is_some)
            .await
            .unwrap()
            .clone()
            .unwrap()
    }

    #[tokio::test]
    async fn a_stranger_is_approved_and_then_known() {
        let gate = Gate::open().await;
        let mut events = gate.events.subscribe();
        let (id, mut decision) = gate.pend(&knock(1)).await;
        assert_eq!(events.recv().await.unwrap(), Event::PairingRequest(id));
        let [pending] = &gate.desk.pending()[..] else {
            panic!("one waits");
        };
        assert_eq!((pending.request.id, pending.expires_at), (id, at(3600)));
        assert_eq!(gate.desk.find_request(&id.to_string()[..4]).unwrap(), id);
        let node = gate.desk.approve(id, seen(1), operator()).await.unwrap();
        assert_eq!(
            decided(&mut decision).await,
            Decision::Approved(Arc::clone(&node))
        );
        assert!(gate.desk.pending().is_empty());
        assert!(matches!(gate.knock(&knock(1)).await, Admission::Accept(known) if known == node));
        let gate = gate.restart().await;
        assert!(matches!(gate.knock(&knock(1)).await, Admission::Accept(known) if known == node));
        assert_eq!(
            gate.actions().await,
            ["pairing.open", "pairing.request", "pairing.approve"]
        );
    }

    #[tokio::test]
    async fn the_window_is_closed_after_a_start_and_requests_survive_it() {
        let gate = Gate::new().await;
        assert_eq!(gate.desk.window(), None);
        assert_eq!(gate.refusal(&knock(1)).await, Refusal::PairingOff);
        gate.enable().await;
        assert_eq!(gate.desk.window(), Some(at(600)));
        let (id, _) = gate.pend(&knock(1)).await;
        let gate = gate.restart().await;
        assert_eq!(gate.desk.window(), None);
        assert_eq!(gate.refusal(&knock(2)).await, Refusal::PairingOff);
        let again = Knock {
            code: "0000-0000-0000".parse().unwrap(),
            ..knock(1)
        };
        let (same, _) = gate.pend(&again).await;
        assert_eq!(same, id);
        let pending = gate.desk.pending();
        assert_eq!(
            (pending[0].request.revision, &pending[0].request.code),
            (2, &again.code)
        );
        let old = gate.desk.approve(id, seen(1), operator()).await;
        assert!(
            matches!(old, Err(PairingError::RequestChanged { .. })),
            "{old:?}"
        );
        let seen = SeenRequest {
            code: again.code,
            ..seen(1)
        };
        gate.desk.approve(id, seen, operator()).await.unwrap();
    }

    #[tokio::test]
    async fn a_newer_connection_waits_in_place_of_the_older() {
        let gate = Gate::open().await;
        let (_, mut older) = gate.pend(&knock(1)).await;
        let (id, mut newer) = gate.pend(&knock(1)).await;
        assert_eq!(decided(&mut older).await, Decision::Superseded);
        gate.desk.reject(id, operator()).await.unwrap();
        assert_eq!(decided(&mut newer).await, Decision::Rejected);
        assert_eq!(gate.refusal(&knock(1)).await, Refusal::Rejected);
        let gate = gate.restart().await;
        assert_eq!(gate.refusal(&knock(1)).await, Refusal::Rejected);
    }

    #[tokio::test]
    async fn of_two_approvals_at_once_one_counts() {
        let gate = Gate::open().await;
        let (id, _) = gate.pend(&knock(1)).await;
        let (one, other) = tokio::join!(
            gate.desk.approve(id, seen(1), operator()),
            gate.desk.approve(id, seen(1), operator()),
        );
        let (won, lost) = if one.is_ok() {
            (one, other)
        } else {
            (other, one)
        };
        won.unwrap();
        assert!(
            matches!(
                &lost,
                Err(PairingError::Answered {
                    answer: Answer::Approved,
                    ..
                })
            ),
            "{lost:?}"
        );
        let late = gate.desk.reject(id, operator()).await;
        assert!(
            matches!(late, Err(PairingError::Answered { .. })),
            "{late:?}"
        );
    }

    #[tokio::test]
    async fn an_approval_whose_caller_goes_away_is_carried_out_whole() {
        let gate = Gate::open().await;
        let (id, mut decision) = gate.pend(&knock(1)).await;
        {
            let mut approve = Box::pin(gate.desk.approve(id, seen(1), operator()));
            std::future::poll_fn(|cx| {
                drop(approve.as_mut().poll(cx));
                std::task::Poll::Ready(())
            })
            .await;
        }
        assert!(matches!(
            decided(&mut decision).await,
            Decision::Approved(_)
        ));
        assert!(matches!(gate.knock(&knock(1)).await, Admission::Accept(_)));
    }

    #[tokio::test]
    async fn revoke_forget_and_pair_anew_under_the_same_id() {
        let gate = Gate::open().await;
        let device_id = gate.pair(1).await.device_id;
        let mut changes = gate.desk.changes();
        changes.mark_unchanged();
        let node = gate.desk.revoke(device_id, operator()).await.unwrap();
        assert_eq!(node.revoked_at, Some(at(0)));
        assert!(changes.has_changed().unwrap());
        assert_eq!(gate.refusal(&knock(1)).await, Refusal::Revoked);
        let twice = gate.desk.revoke(device_id, operator()).await;
        assert!(matches!(twice, Err(PairingError::Revoked)), "{twice:?}");
        // The machine has a new key and asks for its old id, which is free.
        let new_key = Knock {
            introduction: knock(1).introduction,
            ..knock(2)
        };
        let (id, _) = gate.pend(&new_key).await;
        assert!(matches!(
            gate.desk.pending()[0].warnings[0],
            super::super::Warning::RevokedNodeId(_)
        ));
        gate.desk.approve(id, seen(2), operator()).await.unwrap();
        // The old key comes back only after its record is gone, and needs another id.
        gate.desk.forget(device_id, operator()).await.unwrap();
        let gone = gate.desk.forget(device_id, operator()).await;
        assert!(matches!(gone, Err(PairingError::UnknownNode)), "{gone:?}");
        let old_key = Knock {
            instance_id: moltis_proto::InstanceId::from_bytes([9; 16]),
            ..knock(1)
        };
        assert_eq!(gate.refusal(&old_key).await, Refusal::NodeIdInUse);
        gate.desk
            .revoke(knock(2).device_id, operator())
            .await
            .unwrap();
        gate.pend(&old_key).await;
        let gate = gate.restart().await;
        assert_eq!(gate.desk.nodes().len(), 1);
        assert_eq!(gate.desk.pending().len(), 1);
    }

    #[tokio::test]
    async fn names_and_labels_change_and_stay_changed() {
        let gate = Gate::open().await;
        let device_id = gate.pair(1).await.device_id;
        let name = NodeName::new("Büro").unwrap();
        let labels = Labels::new([("a".to_owned(), "b".to_owned())].into()).unwrap();
        let by = operator;
        gate.desk
            .rename(device_id, name.clone(), by())
            .await
            .unwrap();
        gate.desk
            .relabel(device_id, labels.clone(), by())
            .await
            .unwrap();
        let unknown = DeviceId::from_bytes([99; 16]);
        assert!(gate.desk.rename(unknown, name.clone(), by()).await.is_err());
        // What the node says of name and labels later changes nothing.
        gate.knock(&knock(1)).await;
        let gate = gate.restart().await;
        let node = gate.desk.node(device_id).unwrap();
        assert_eq!((&node.name, &node.labels), (&name, &labels));
    }

    #[tokio::test]
    async fn what_a_node_says_of_itself_is_kept_and_gives_it_nothing() {
        let gate = Gate::open().await;
        let before = gate.pair(1).await;
        let mut says = knock(1);
        says.introduction.timeout_ms = 7;
        says.introduction.node_id = moltis_proto::NodeId::new("another").unwrap();
        says.introduction.platform.kernel = "7.0".to_owned();
        let Admission::Accept(now) = gate.knock(&says).await else {
            panic!("it is known");
        };
        assert_eq!(
            (now.claims.timeout_ms, now.platform.kernel.as_str()),
            (7, "7.0")
        );
        assert_eq!((&now.node_id, &now.name), (&before.node_id, &before.name));
        let gate = gate.restart().await;
        assert_eq!(
            gate.desk.node(before.device_id).unwrap().claims.timeout_ms,
            7
        );
    }

    #[tokio::test]
    async fn a_mismatch_is_told_counted_and_fills_no_disk() {
        let gate = Gate::open().await;
        let device_id = gate.pair(1).await.device_id;
        let before = gate.actions().await.len();
        let wrong = Knock {
            node_key: knock(9).node_key,
            ..knock(1)
        };
        let mut events = gate.events.subscribe();
        for _ in 0..200 {
            assert_eq!(gate.refusal(&wrong).await, Refusal::KeyMismatch);
        }
        assert_eq!(events.recv().await.unwrap(), Event::KeyMismatch(device_id));
        assert_eq!(
            events.try_recv(),
            Ok(None),
            "one bell for two hundred knocks"
        );
        let [mismatch] = &gate.desk.mismatches().await.unwrap()[..] else {
            panic!("one node is concerned");
        };
        assert_eq!((mismatch.times, mismatch.shown_key), (200, wrong.node_key));
        assert_eq!(gate.actions().await.len(), before + 1);
        let gate = gate.restart().await;
        assert_eq!(gate.desk.mismatches().await.unwrap().len(), 1);
        assert!(matches!(gate.knock(&knock(1)).await, Admission::Accept(_)));
    }

    #[tokio::test]
    async fn the_window_opens_for_a_second_to_an_hour() {
        let gate = Gate::new().await;
        for wrong in [
            Duration::ZERO,
            Duration::from_millis(999),
            Duration::from_secs(3601),
        ] {
            let refused = gate.desk.enable(wrong, operator()).await;
            assert!(
                matches!(refused, Err(PairingError::WindowTime { .. })),
                "{refused:?}"
            );
        }
        for time in [Duration::from_secs(1), Duration::from_hours(1)] {
            gate.desk.enable(time, operator()).await.unwrap();
        }
        gate.desk.disable(operator()).await.unwrap();
        gate.desk.disable(operator()).await.unwrap();
        assert_eq!(gate.desk.window(), None);
        assert_eq!(
            gate.actions().await,
            ["pairing.open", "pairing.open", "pairing.close"]
        );
    }

    #[tokio::test]
    async fn time_closes_the_window_and_ends_requests_whatever_the_wall_clock_says() {
        let gate = Gate::open().await;
        let (id, mut decision) = gate.pend(&knock(1)).await;
        let mut events = gate.events.subscribe();
        gate.clock.set(at(-1_000_000));
        tokio::time::pause();
        tokio::time::advance(Duration::from_mins(10)).await;
        assert_eq!(gate.desk.window(), None);
        tokio::time::advance(Duration::from_mins(51)).await;
        tokio::time::resume();
        assert_eq!(decided(&mut decision).await, Decision::Expired);
        assert_eq!(events.recv().await.unwrap(), Event::PairingChanged);
        assert_eq!(gate.refusal(&knock(1)).await, Refusal::Expired);
        let late = gate.desk.approve(id, seen(1), operator()).await;
        assert!(
            matches!(late, Err(PairingError::Expired { .. })),
            "{late:?}"
        );
    }

    #[tokio::test]
    async fn ids_are_found_by_their_beginning() {
        let gate = Gate::open().await;
        let (id, _) = gate.pend(&knock(1)).await;
        let text = id.to_string();
        assert_eq!(gate.desk.find_request(&text).unwrap(), id);
        assert_eq!(
            gate.desk.find_request(&text[..3].to_uppercase()).unwrap(),
            id
        );
        for none in ["", "zz", "no such id", &format!("{text}0")] {
            let unknown = gate.desk.find_request(none);
            assert!(
                matches!(unknown, Err(PairingError::UnknownRequest { .. })),
                "{unknown:?}"
            );
        }
        gate.desk.reject(id, operator()).await.unwrap();
        assert_eq!(gate.desk.find_request(&text).unwrap(), id);
    }

    #[tokio::test]
    async fn when_a_node_was_seen_is_written_in_slices() {
        let gate = Gate::open().await;
        let device_id = gate.pair(1).await.device_id;
        gate.clock.set(at(50));
        gate.desk.saw(device_id, IpAddr::from([10, 0, 0, 7]));
        tokio::time::pause();
        tokio::time::advance(SLICE).await;
        tokio::time::resume();
        let seen = async {
            while gate.store.nodes().await.unwrap()[0].last_seen_at != Some(at(50)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), seen)
            .await
            .unwrap();
        let gate = gate.restart().await;
        let node = gate.desk.node(device_id).unwrap();
        assert_eq!(node.last_seen_at, Some(at(50)));
        assert_eq!(node.last_address.as_deref(), Some("10.0.0.7"));
    }
}
