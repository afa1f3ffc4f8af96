//! Runs on the gateway's own machine: the same run messages, to the keeper of this machine.
//!
//! The gateway starts no process. Whoever builds it gives a [`KeeperConnector`], which finds the
//! keepers of this machine or has one started; without one there is no `local`. The connection is
//! made when the first run needs it and kept while it lasts; when a keeper leaves, all are looked
//! for again. There may be several, as at a node: an older one keeps its runs ([`keepers`]).

mod keepers;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use moltis_proto::code::CloseCode;
use moltis_proto::message::Windows;
use moltis_proto::{Codec, InstanceId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::time::Instant;

use crate::exec::Shared;
use crate::exec::pump::Pump;
use crate::session::chain;
use crate::session::seat::{Command, Ready, Seat, Sitter};
use crate::store::Target;
use keepers::Keepers;

/// How long the keepers may take until they have said what they hold.
const READY_TIME_MAX: Duration = Duration::from_secs(15);

/// The wait before open runs are looked for again, and the one after a connection that stood: a
/// keeper that leaves needs a moment to be gone.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
const AGAIN_SOON: Duration = Duration::from_millis(100);

/// A connection to a keeper: frames of u32 big-endian length and one message in postcard.
pub trait KeeperStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> KeeperStream for T {}

/// What a connector's work comes to: a connection to every keeper that lives, at least one, the one
/// for new runs first.
pub type Connecting =
    Pin<Box<dyn Future<Output = io::Result<Vec<Box<dyn KeeperStream>>>> + Send + 'static>>;

/// Finds the keepers of this machine, or has one started.
pub trait KeeperConnector: Send + Sync + 'static {
    /// Connects to every keeper of this machine that lives, the one for new runs first; has one
    /// started where there is none for them. An older one that is left out is believed to be gone,
    /// and its runs with it.
    fn connect(&self) -> Connecting;
}

impl<F: Fn() -> Connecting + Send + Sync + 'static> KeeperConnector for F {
    fn connect(&self) -> Connecting {
        self()
    }
}

/// The way to the keeper of this machine. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Local(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    connector: Box<dyn KeeperConnector>,
    windows: Windows,
    /// Held while a connection is made, so that there is one.
    connecting: Mutex<()>,
    /// Rung when a connection that stood has ended.
    ended: Notify,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    pub(crate) fn new(
        shared: Arc<Shared>,
        connector: Box<dyn KeeperConnector>,
        windows: Windows,
    ) -> Self {
        Self(Arc::new(Inner {
            shared,
            connector,
            windows,
            connecting: Mutex::new(()),
            ended: Notify::new(),
        }))
    }

    /// Returns a connection that takes runs, made now where there is none.
    pub(crate) async fn ready(&self) -> Result<(Arc<Seat>, Ready), Arc<io::Error>> {
        self.seat().await.map_err(Arc::new)
    }

    async fn seat(&self) -> io::Result<(Arc<Seat>, Ready)> {
        if let Some(found) = self.connected() {
            return Ok(found);
        }
        let _one = self.0.connecting.lock().await;
        if let Some(found) = self.connected() {
            return Ok(found);
        }
        let connect = async {
            let streams = self.0.connector.connect().await?;
            let seat = Unready(self.sit_down(streams)?);
            let ready = seat.0.wait_ready().await.map_err(|_| {
                io::Error::new(
                    io::ErrorKind::ConnectionReset,
                    "the keeper went away before it said what it holds",
                )
            })?;
            Ok((Arc::clone(&seat.0), ready))
        };
        tokio::time::timeout(READY_TIME_MAX, connect)
            .await
            .map_err(|_elapsed| {
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "the keeper did not say what it holds within {} s",
                        READY_TIME_MAX.as_secs()
                    ),
                )
            })?
    }

    fn connected(&self) -> Option<(Arc<Seat>, Ready)> {
        let seat = self.0.shared.seat_of(&Target::Local)?;
        let ready = seat.ready().filter(|_| !seat.is_closing())?;
        Some((seat, ready))
    }

    fn sit_down(&self, streams: Vec<Box<dyn KeeperStream>>) -> io::Result<Arc<Seat>> {
        if streams.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no keeper of this machine was found or started",
            ));
        }
        let keepers = Keepers::attach(streams, self.0.windows).map_err(io::Error::other)?;
        let shared = &self.0.shared;
        let (seat, mailbox) = Seat::new(Sitter {
            target: Target::Local,
            epoch: shared.roster.next_epoch(),
            instance_id: InstanceId::from_bytes([0; 16]),
            codec: Codec::Postcard,
            record: None,
            remote: None,
            since: shared.clock.now(),
        });
        shared.take_local_seat(&seat);
        let stored = Arc::new(Notify::new());
        let session = LocalSession {
            pump: Pump::new(
                Arc::clone(shared),
                Arc::clone(&seat),
                self.0.windows,
                Arc::clone(&stored),
                Instant::now().into_std(),
            ),
            seat: Arc::clone(&seat),
            stored,
            mailbox,
            local: self.clone(),
        };
        shared.tasks.spawn(session.run(keepers));
        Ok(seat)
    }

    /// Takes up the runs that were left open, and again whenever the connection is lost while
    /// there are any, or one that is over has output to bring. Where keepers `may_hold` others, it finds
    /// out about those once: an older database, or one whose last writes went with the power, knows
    /// nothing of them.
    pub(crate) async fn keep_up(self, mut may_hold: bool) {
        let stop = self.0.shared.tasks.stop().clone();
        while !stop.is_cancelled() {
            may_hold |= self.0.shared.take_owed();
            let waiting = may_hold || !self.0.shared.table.at(&Target::Local).is_empty();
            if waiting && self.connected().is_none() {
                match self.ready().await {
                    Ok(_) => may_hold = false,
                    Err(error) => {
                        tracing::warn!(%error, "runs on this machine are open, and its keeper cannot be reached");
                    }
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.0.ended.notified() => tokio::time::sleep(AGAIN_SOON).await,
                () = tokio::time::sleep(AGAIN_AFTER) => {}
            }
        }
    }
}

struct LocalSession {
    local: Local,
    seat: Arc<Seat>,
    mailbox: mpsc::Receiver<Command>,
    stored: Arc<Notify>,
    pump: Pump,
}

impl LocalSession {
    async fn run(mut self, keepers: Keepers) {
        let end = self.serve(keepers).await;
        match end {
            Ok(()) => tracing::debug!("the connection to the keeper of this machine is over"),
            Err(error) => {
                tracing::warn!(error = %chain(&*error), "the connection to the keeper of this machine failed");
            }
        }
        let stood = self.seat.ready().is_some();
        self.local.0.shared.leave_local_seat(&self.seat);
        self.seat.leave();
        self.local.0.shared.let_be(&self.seat);
        if stood {
            self.local.0.ended.notify_one();
        }
    }

    /// Moves frames until a keeper is gone or leaves, or the connection is given up here.
    async fn serve(&mut self, mut keepers: Keepers) -> Result<(), Failure> {
        let stop = self.local.0.shared.tasks.stop().clone();
        loop {
            let now = Instant::now();
            self.pump.handle_timeout(now.into_std())?;
            while keepers.to.takes_more()
                && let Some(message) = self.pump.poll_transmit(now.into_std())
            {
                keepers.to.deliver(&message)?;
            }
            keepers.release_idle();
            if self.pump.is_left() {
                return Ok(()); // whoever takes its place is found by the next connection
            }
            let deadline = self.pump.poll_timeout().map(Instant::from_std);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _code = self.seat.closing() => return Ok(()),
                command = self.mailbox.recv(), if self.pump.takes_commands() => {
                    if let Some(command) = command {
                        self.pump.handle_command(command, now.into_std());
                    }
                }
                drove = keepers.to.drive(), if keepers.to.has_waiting() => drove?,
                read = keepers.from.read() => {
                    let Some(keeper) = read? else { return Ok(()) };
                    self.seat.heard(self.local.0.shared.clock.now());
                    while let Some(message) = keepers.take(keeper)? {
                        self.pump.handle_message(message, now.into_std())?;
                    }
                }
                () = self.stored.notified() => self.pump.handle_stored(now.into_std()),
                () = sleep_until(deadline) => {}
            }
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A connection that nobody may use yet. Whoever made it and does not wait until it is ready, or
/// is not there any more, leaves nothing behind.
struct Unready(Arc<Seat>);

impl Drop for Unready {
    fn drop(&mut self) {
        if self.0.ready().is_none() {
            self.0.close(CloseCode::Silence);
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
