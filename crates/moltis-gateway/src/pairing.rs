//! Who may come in: the pairing window, the requests that wait for a person, and the pins.
//!
//! All pins are in memory, so a node that is known is let in without a look at the disk. Whatever
//! changes something goes through one task, in order, and is written before it counts: a request
//! whose caller goes away in the middle is still carried out as a whole. What is right is decided
//! by the rule book in [`rules`], which is pure; approve, reject, revoke, forget, rename and label
//! are one transaction each, with their audit line, and wait until it survives a power cut.
//!
//! The window is closed after a start, and closes by time. Requests survive restarts. Here is no
//! socket: the session asks [`PairingDesk::admit`] and holds the connection.

mod book;
mod desk;
mod rules;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use jiff::Timestamp;
use moltis_identity::Fingerprint;
use moltis_proto::handshake::ConnectionCode;
use moltis_proto::handshake::gateway::VerifiedNode;
use moltis_proto::{DeviceId, Labels, NodeId, NodeName, Refusal, RequestId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::book::{Book, Waiting};
use self::desk::{Command, Desk, Seen};
pub use self::rules::Warning;
use self::rules::{Knock, Ruling};
use crate::audit::Actor;
use crate::clock::Clock;
use crate::events::Events;
use crate::store::{Answer, Claims, KeyMismatch, NodeRecord, PairingRequest, Store, StoreError};
use crate::tasks::Tasks;

/// Commands that wait for the desk's task, at most. One more waits at the door.
const QUEUE_MAX: usize = 256;

/// What becomes of a node that has proven its key.
#[derive(Debug)]
pub enum Admission {
    /// It is known.
    Accept(Arc<NodeRecord>),
    /// A person has to decide.
    Pend {
        /// The request.
        request_id: RequestId,
        /// How long it waits at the longest.
        expires_in: Duration,
        /// What is decided; `None` until then. Closed when the gateway shuts down.
        decision: watch::Receiver<Option<Decision>>,
    },
    /// No.
    Refuse(Refusal),
}

/// What became of a request, for the connection that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is known now.
    Approved(Arc<NodeRecord>),
    /// A person said no.
    Rejected,
    /// Nobody said anything in time.
    Expired,
    /// Another connection of the same node waits in place of this one.
    Superseded,
}

/// A request that waits, as a person is to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The request.
    pub request: PairingRequest,
    /// When it goes away by itself.
    pub expires_at: Timestamp,
    /// What should be known before approving.
    pub warnings: Vec<Warning>,
}

/// What a person saw of a request, word for word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRequest {
    /// The fingerprint.
    pub fingerprint: Fingerprint,
    /// The connection code.
    pub code: ConnectionCode,
}

/// Why something was not done.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PairingError {
    /// No request has this id.
    #[error("no request to pair has the id `{id}`: `moltis node pending` lists those that wait")]
    UnknownRequest {
        /// What was asked for.
        id: String,
    },
    /// Several requests begin with this.
    #[error("`{id}` is the beginning of {} requests: write more of it", candidates.len())]
    AmbiguousRequest {
        /// What was asked for.
        id: String,
        /// The requests that begin with it.
        candidates: Vec<RequestId>,
    },
    /// The request was answered before.
    #[error("request `{id}` was already {}", answered(*answer))]
    Answered {
        /// The request.
        id: RequestId,
        /// With this.
        answer: Answer,
    },
    /// The request waited too long.
    #[error("request `{id}` has expired: type `moltis node add` on the machine again")]
    Expired {
        /// The request.
        id: RequestId,
    },
    /// What the person saw is not what is stored.
    #[error(
        "request `{id}` has changed since it was shown: look again, and compare the connection code with the machine's screen"
    )]
    RequestChanged {
        /// The request.
        id: RequestId,
    },
    /// Another node has this id.
    #[error(
        "node id `{node_id}` belongs to another node: reject the request, or revoke that node first"
    )]
    NodeIdInUse {
        /// The id.
        node_id: NodeId,
    },
    /// The key or the device is known. A pin is never overwritten.
    #[error("this key or device is known already: a pin is never overwritten")]
    Pinned,
    /// No node has this device id.
    #[error("there is no such node any more")]
    UnknownNode,
    /// The node is revoked already.
    #[error("the node is revoked already; `moltis node forget` deletes its record")]
    Revoked,
    /// The window cannot be opened for so long, or so short a time.
    #[error("the pairing window opens for 1 second to 60 minutes, not for {asked:?}")]
    WindowTime {
        /// What was asked for.
        asked: Duration,
    },
    /// The store did not take it; nothing has changed.
    #[error("the decision could not be kept")]
    Store(#[from] StoreError),
}

fn answered(answer: Answer) -> &'static str {
    match answer {
        Answer::Approved => "approved",
        Answer::Rejected => "rejected",
        Answer::Expired => "found to be expired",
    }
}

/// The desk at the door. Cloning shares it.
#[derive(Clone)]
pub struct PairingDesk {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// What the desk's task and its handles both see.
struct Shared {
    book: RwLock<Book>,
    seen: Seen,
    clock: Clock,
    /// Counts what people change of nodes: pins, names, labels.
    changes: watch::Sender<u64>,
    /// Counts what nodes say anew of themselves.
    news: watch::Sender<u64>,
}

impl PairingDesk {
    /// Opens the desk with what the store holds. The window is closed.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn open(
        store: Store,
        clock: Clock,
        events: Events,
        tasks: &Tasks,
    ) -> Result<Self, StoreError> {
        let now = clock.now();
        let nodes = store.nodes().await?;
        let requests = store.pairing_requests(desk::answered_since(now)).await?;
        let mismatches = store.key_mismatches().await?;
        let book = Book::new(nodes, requests, now, Instant::now());
        let shared = Arc::new(Shared {
            book: RwLock::new(book),
            seen: Seen::default(),
            clock,
            changes: watch::Sender::new(0),
            news: watch::Sender::new(0),
        });
        let (commands, waiting) = mpsc::channel(QUEUE_MAX);
        let desk = Desk::new(Arc::clone(&shared), store.clone(), events, mismatches);
        let stop = tasks.stop().clone();
        drop(tasks.spawn(desk.run(waiting, stop.clone())));
        drop(tasks.spawn(desk::keep_seen(Arc::clone(&shared), store, stop)));
        Ok(Self { shared, commands })
    }

    /// Decides about a node that has proven its key on a connection from `source`.
    ///
    /// # Errors
    /// Where a request could not be written. The node is to come again later.
    pub async fn admit(
        &self,
        node: &VerifiedNode,
        source: IpAddr,
    ) -> Result<Admission, StoreError> {
        self.admit_knock(Knock::of(node, source)).await
    }

    async fn admit_knock(&self, knock: Knock) -> Result<Admission, StoreError> {
        match self.rule(&knock) {
            Ruling::Accept(record) if knock.says_what_is_known_of(&record) => {
                Ok(Admission::Accept(record))
            }
            Ruling::Refuse(refusal) => Ok(Admission::Refuse(refusal)),
            Ruling::Accept(_) | Ruling::Mismatch(_) | Ruling::Reattach(_) | Ruling::Create => {
                let asked = self.ask(|told| Command::Admit(Box::new(knock), told));
                asked.await.ok_or(StoreError::Closed)?
            }
        }
    }

    fn rule(&self, knock: &Knock) -> Ruling {
        rules::admit(&self.shared.book(), knock, Instant::now())
    }

    /// Opens the window, for 1 second to 60 minutes from now. Returns when it closes.
    ///
    /// # Errors
    /// Where the time is out of these bounds, or the store takes nothing.
    pub async fn enable(&self, time: Duration, by: Actor) -> Result<Timestamp, PairingError> {
        self.command(|told| Command::Enable(time, by, told)).await
    }

    /// Closes the window.
    ///
    /// # Errors
    /// Where the store takes nothing; the window is closed nonetheless.
    pub async fn disable(&self, by: Actor) -> Result<(), PairingError> {
        self.command(|told| Command::Disable(by, told)).await
    }

    /// Returns when the window closes; `None` while it is closed.
    pub fn window(&self) -> Option<Timestamp> {
        let wall = self.shared.clock.now();
        self.shared.book().window(wall, Instant::now())
    }

    /// Returns the requests that wait, oldest first.
    pub fn pending(&self) -> Vec<Pending> {
        let book = self.shared.book();
        let (wall, now) = (self.shared.clock.now(), Instant::now());
        book.waiting(now)
            .map(|waiting| Pending::of(waiting, &book, wall, now))
            .collect()
    }

    /// Returns a request by its id, one that was answered within the last day too: as it was shown,
    /// with the warnings of now.
    pub fn request(&self, id: RequestId) -> Option<Pending> {
        let book = self.shared.book();
        let (wall, now) = (self.shared.clock.now(), Instant::now());
        if let Some(waiting) = book.waiting_request(id) {
            return Some(Pending::of(waiting, &book, wall, now));
        }
        let answered = book.answered().find(|request| request.id == id)?;
        let was_waiting = Waiting::new(answered.clone(), wall, now);
        Some(Pending::of(&was_waiting, &book, wall, now))
    }

    /// Returns the request with this id, or whose id begins with it. Answered ones are found too, so
    /// that answering says what became of them.
    ///
    /// # Errors
    /// Where none or several begin with it.
    pub fn find_request(&self, id: &str) -> Result<RequestId, PairingError> {
        let candidates = self.shared.book().requests_that_begin_with(id);
        match candidates[..] {
            [] => Err(PairingError::UnknownRequest {
                id: id.chars().take(64).collect(),
            }),
            [one] => Ok(one),
            _ => Err(PairingError::AmbiguousRequest {
                id: id.to_owned(),
                candidates,
            }),
        }
    }

    /// Approves a request: pins its key and device under the name, id and labels that it shows.
    /// Returns the node once that survives a power cut.
    ///
    /// # Errors
    /// Where the request is unknown, answered, expired, or not what the person saw; where its key,
    /// device or node id is taken; where the store takes nothing. Nothing has changed then.
    pub async fn approve(
        &self,
        id: RequestId,
        seen: SeenRequest,
        by: Actor,
    ) -> Result<Arc<NodeRecord>, PairingError> {
        self.command(|told| Command::Approve(id, seen, by, told))
            .await
    }

    /// Rejects a request.
    ///
    /// # Errors
    /// Where the request is unknown, answered or expired, or the store takes nothing.
    pub async fn reject(&self, id: RequestId, by: Actor) -> Result<(), PairingError> {
        self.command(|told| Command::Reject(id, by, told)).await
    }

    /// Refuses a node's key for good. [`PairingDesk::changes`] tells its session as soon as that is
    /// written; this returns when it survives a power cut.
    ///
    /// # Errors
    /// Where the node is unknown or revoked already, or the store takes nothing.
    pub async fn revoke(
        &self,
        device_id: DeviceId,
        by: Actor,
    ) -> Result<Arc<NodeRecord>, PairingError> {
        self.command(|told| Command::Revoke(device_id, by, told))
            .await
    }

    /// Deletes a node's record, so that its key may ask anew. Whether a node that is connected may
    /// be forgotten is for the caller to say.
    ///
    /// # Errors
    /// Where the node is unknown, or the store takes nothing.
    pub async fn forget(&self, device_id: DeviceId, by: Actor) -> Result<(), PairingError> {
        self.command(|told| Command::Forget(device_id, by, told))
            .await
    }

    /// Gives a node another display name.
    ///
    /// # Errors
    /// Where the node is unknown, or the store takes nothing.
    pub async fn rename(
        &self,
        device_id: DeviceId,
        name: NodeName,
        by: Actor,
    ) -> Result<Arc<NodeRecord>, PairingError> {
        self.command(|told| Command::Rename(device_id, name, by, told))
            .await
    }

    /// Gives a node other labels, in place of those it has.
    ///
    /// # Errors
    /// Where the node is unknown, or the store takes nothing.
    pub async fn relabel(
        &self,
        device_id: DeviceId,
        labels: Labels,
        by: Actor,
    ) -> Result<Arc<NodeRecord>, PairingError> {
        self.command(|told| Command::Relabel(device_id, labels, by, told))
            .await
    }

    /// Returns all mismatches of keys, the newest first.
    ///
    /// # Errors
    /// Where the gateway is shutting down.
    pub async fn mismatches(&self) -> Result<Vec<KeyMismatch>, PairingError> {
        self.command(Command::Mismatches).await
    }

    /// Returns a known node, revoked ones too.
    pub fn node(&self, device_id: DeviceId) -> Option<Arc<NodeRecord>> {
        self.shared.book().node(device_id).cloned()
    }

    /// Returns all known nodes, revoked ones too, in the order of their approval.
    pub fn nodes(&self) -> Vec<Arc<NodeRecord>> {
        self.shared.book().nodes()
    }

    /// Counts what people change of nodes. A session looks at its node again whenever this moves, and
    /// closes where the node is gone or revoked.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Counts what nodes say anew of themselves: nobody waits for that.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.shared.news.subscribe()
    }

    /// Notes that a node is connected. Kept in memory, and written once a minute.
    pub fn saw(&self, device_id: DeviceId, source: IpAddr) {
        self.shared
            .seen
            .note(device_id, self.shared.clock.now(), source);
    }

    async fn command<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, PairingError>>) -> Command,
    ) -> Result<T, PairingError> {
        self.ask(make)
            .await
            .unwrap_or(Err(PairingError::Store(StoreError::Closed)))
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (told, answer) = oneshot::channel();
        self.commands.send(make(told)).await.ok()?;
        answer.await.ok()
    }
}

impl Shared {
    fn book(&self) -> RwLockReadGuard<'_, Book> {
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut book)
    }
}

impl Pending {
    fn of(waiting: &Waiting, book: &Book, wall: Timestamp, now: Instant) -> Self {
        Self {
            expires_at: waiting.expires_at(wall, now),
            warnings: rules::warnings(book, &waiting.request),
            request: waiting.request.clone(),
        }
    }
}

impl Knock {
    /// Returns whether the node says of itself what its record says.
    fn says_what_is_known_of(&self, record: &NodeRecord) -> bool {
        self.introduction.platform == record.platform
            && Claims::from(&self.introduction) == record.claims
    }
}

impl fmt::Debug for PairingDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PairingDesk").finish_non_exhaustive()
    }
}
